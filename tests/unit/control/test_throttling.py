"""`xorepctl throttle` and what is behind it, with a throttled job in a real configuration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.control.stage import Stage, stage
from tests.unit.parts import JOB, NOON, POOLS, settings_of
from xorepd.ctl import app
from xorepd.daemon.engine import open_engine, open_transports
from xorepd.errors import ControlError
from xorepd.transports.links import Link, Links

link = pytest.importorskip("xorepd_throttled.link")

WEB = JOB + 'transport = { name = "throttled", link = "wan", rate = "%s" }\n'
DB = (WEB % "100Mbit/s").replace("jobs.web", "jobs.db").replace("web01", "db01")


def text(rate: str = "100Mbit/s") -> str:
    return POOLS + WEB % rate


def links(directory: Path, rate: str = "100Mbit/s") -> Links:
    made, problems = open_transports(settings_of(directory, text(rate)), lambda: NOON)
    assert problems == []
    return made


@asynccontextmanager
async def throttled(directory: Path) -> AsyncIterator[Stage]:
    async with stage(directory) as on:
        on.links.adopt(links(directory))
        yield on


async def test_links_of_the_configuration_are_shown_before_anything_runs(tmp_path: Path) -> None:
    async with throttled(tmp_path) as on:
        found = (await on.client.links()).links

    assert [(link.name, link.rate_bytes_per_s, link.reason) for link in found] == [
        ("job:web", None, "configuration"),
        ("pool:dr", None, "configuration"),
        ("wan", 12_500_000, "configuration"),
    ]


@pytest.mark.parametrize(
    ("rate", "found"),
    [("20Mbit/s", (2_500_000, "command")), ("unlimited", (None, "command"))],
)
async def test_rate_is_set_and_unset(
    tmp_path: Path, rate: str, found: tuple[float | None, str]
) -> None:
    async with throttled(tmp_path) as on:
        reply = await on.client.set_rate("wan", rate)
        assert (reply.rate_bytes_per_s, reply.reason) == found

        reply = await on.client.set_rate("wan", "auto")
        assert (reply.rate_bytes_per_s, reply.reason) == (12_500_000, "configuration")


@pytest.mark.parametrize(
    ("link", "rate", "words", "status"),
    [
        ("wlan", "1MiB/s", r"no link 'wlan'; did you mean 'wan'\?", 404),
        ("wan", "fast", "'fast' is not a rate; .* or unlimited, or auto", 400),
        ("wan", "", "is not a rate", 400),
        ("wan", "1kbit/s", "link wan: the slowest rate is 64kbit/s", 422),
    ],
)
async def test_what_cannot_be_set_is_refused(
    tmp_path: Path, link: str, rate: str, words: str, status: int
) -> None:
    async with throttled(tmp_path) as on:
        with pytest.raises(ControlError, match=words) as caught:
            await on.client.set_rate(link, rate)

    assert caught.value.status == status


async def test_command_shows_and_sets(tmp_path: Path) -> None:
    async with throttled(tmp_path) as on:

        def ask(*words: str) -> str:
            result = CliRunner().invoke(app, ["throttle", *words, "--socket", str(on.socket)])
            assert result.exit_code == 0, result.output
            return result.output

        shown = await asyncio.to_thread(ask)
        set_to = await asyncio.to_thread(ask, "wan", "20Mbit/s")
        told = json.loads(await asyncio.to_thread(ask, "wan", "--json"))

    assert "100 Mbit/s" in shown
    assert "pool:dr" in shown
    assert "20 Mbit/s" in set_to
    assert "pool:dr" not in set_to
    assert [(link["name"], link["reason"]) for link in told["links"]] == [("wan", "command")]


def link_of_a_run(of: Links) -> Link:
    """Return the link `wan` as a run finds it."""
    found: Link = of.share("wan", lambda: link.ThrottledLink(None, lambda: NOON))
    return found


async def test_reload_forgets_what_was_set_and_reaches_what_runs(tmp_path: Path) -> None:
    old = settings_of(tmp_path, text())
    async with open_engine(old, lambda: NOON) as engine:
        engine.offer(links(tmp_path, "100Mbit/s"))
        engine.adopt_links()
        before = link_of_a_run(engine.links)
        engine.links.set_rate("wan", 8000)
        new = settings_of(tmp_path, text("20Mbit/s"))
        engine.offer(links(tmp_path, "20Mbit/s"))
        assert engine.links.states()["wan"].rate_bytes_per_s == 8000

        engine.apply(new)

        assert link_of_a_run(engine.links) is before
        state = engine.links.states()["wan"]
        assert (state.rate_bytes_per_s, state.reason) == (2_500_000, "configuration")


def test_two_jobs_that_disagree_on_a_link_are_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, text("50Mbit/s") + DB)

    [problem] = open_transports(settings, lambda: NOON)[1]

    assert problem.key == "jobs.db.transport"
    assert "wan is set up differently in another job" in str(problem)
