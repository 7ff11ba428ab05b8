from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import trustme

from tests.unit.parts import JOB, NOON, POOLS, job, settings_of
from xorepd.config.diff import compare
from xorepd.config.models import Settings
from xorepd.daemon.engine import open_engine, open_transports
from xorepd.ids import RunId
from xorepd.state.records import Outcome
from xorepd.units import MiB


@pytest.mark.parametrize(
    ("transport", "words"),
    [('"drect"', "did you mean direct"), ('{ name = "direct", speed = 9 }', "direct")],
)
def test_transport_that_cannot_be_had_is_refused_before_anything_runs(
    tmp_path: Path, transport: str, words: str
) -> None:
    settings = settings_of(tmp_path, POOLS + JOB + f"transport = {transport}\n")

    [problem] = open_transports(settings, lambda: NOON)[1]

    assert (problem.key, words in str(problem)) == ("jobs.web.transport", True)


def test_transport_of_one_of_several_targets_is_refused_by_its_place(tmp_path: Path) -> None:
    one = '{ pool = "dr", sr = "dr-storage" }'
    two = f'targets = [{one}, {{ pool = "prod", sr = "b", transport = "drect" }}]'
    settings = settings_of(tmp_path, POOLS + JOB.replace(f"target = {one}", two))

    [problem] = open_transports(settings, lambda: NOON)[1]

    assert problem.key == "jobs.web.targets[1].transport"
    assert "did you mean direct" in str(problem)


async def test_pool_that_a_reload_moved_is_asked_at_its_new_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROD_PASSWORD", "x")
    monkeypatch.setenv("DR_PASSWORD", "x")

    def at(port: int) -> str:
        text = POOLS.replace("prod.example", f"127.0.0.1:{port}") + JOB
        return text.replace("dr.example", f"127.0.0.1:{port}")

    old, new = settings_of(tmp_path, at(1)), settings_of(tmp_path, at(2))
    async with open_engine(old, lambda: NOON) as engine:
        (before,) = await engine.run(job(), RunId("1"))
        engine.apply(new)
        (after,) = await engine.run(job(), RunId("2"))

    assert {before.outcome, after.outcome} == {Outcome.FAILED}
    assert "127.0.0.1:1" in (before.error or "")
    assert "127.0.0.1:2" in (after.error or "")


async def test_memory_that_a_reload_changed_counts_for_those_who_wait(tmp_path: Path) -> None:
    def with_memory(size: str) -> Settings:
        return settings_of(tmp_path, f'[daemon]\nmemory = "{size}"\n' + POOLS + JOB)

    old, new = with_memory("16MiB"), with_memory("32MiB")
    changes = compare(old, new)
    async with open_engine(old, lambda: NOON) as engine, asyncio.TaskGroup() as group:
        with engine.budget.allocate() as one, engine.budget.allocate() as other:
            await one.take(16 * MiB)
            waiting = group.create_task(other.take(16 * MiB))
            await asyncio.sleep(0)
            assert engine.budget.waiting == 1
            engine.apply(new)
            await waiting

    assert (changes.daemon, changes.needs_restart) == (("memory",), ())


async def test_target_pool_that_cannot_be_opened_fails_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROD_PASSWORD", "x")
    monkeypatch.setenv("DR_PASSWORD", "x")
    ca_file = tmp_path / "dr.pem"
    ca_file.write_text(trustme.CA().cert_pem.bytes().decode())
    pools = POOLS.replace("prod.example", "127.0.0.1:1") + f'ca_file = "{ca_file}"\n'
    settings = settings_of(tmp_path, pools + JOB)
    ca_file.unlink()

    targets = [{"pool": "prod", "sr": "here"}, {"pool": "dr", "sr": "dr-storage"}]
    async with open_engine(settings, lambda: NOON) as engine:
        here, there = await engine.run(job(targets=targets), RunId("1"))

    assert "no answer from 127.0.0.1:1" in (here.error or "")
    assert there.error == (
        f"cannot open pool dr: ca_file {ca_file} cannot be used (No such file or directory)"
    )
