from __future__ import annotations

import io
import json
import logging
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog

from xorepd.process.logs import LONGEST, configure

SECRET = "geheim-7f3a"
REF = "OpaqueRef:3d6b2b1e-8a4f-4a57-9f3b-6c1f4d2e7a90"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    configure(level="info", style="json", out=out)
    yield out
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_event_is_one_line_of_json(lines: io.StringIO) -> None:
    structlog.get_logger().info("run.finished", outcome="delta", read_bytes=4096)

    (line,) = lines.getvalue().splitlines()
    event = json.loads(line)
    assert list(event)[:3] == ["timestamp", "level", "event"]
    assert (event["event"], event["read_bytes"]) == ("run.finished", 4096)


@pytest.mark.parametrize(
    "facts",
    [
        {"password": SECRET},
        {"session": f"OpaqueRef:{SECRET}"},
        {"session_ref": f"OpaqueRef:{SECRET}"},
        {"headers": {"Authorization": SECRET, "Cookie": SECRET}},
        {"account": [{"Password": SECRET}]},
        {"url": f"https://h/export_raw_vdi?session_id=OpaqueRef:{SECRET}&vdi=1"},
        {"url": f"https://root:{SECRET}@host/"},
        {"error": f"session_id={SECRET}"},
        {"error": f"{{'session_id': 'OpaqueRef:{SECRET}'}}"},
        {"error": f"GET / Authorization: Basic {SECRET}"},
        {"error": ValueError(f"password={SECRET}")},
    ],
)
def test_secret_is_masked(lines: io.StringIO, facts: dict[str, object]) -> None:
    structlog.get_logger().warning("x.y", **facts)

    assert SECRET not in lines.getvalue()
    assert "***" in lines.getvalue()


@pytest.mark.parametrize(
    "fact", ["x" * 50_000_000, {"said": ["x" * 1_000_000]}, ValueError("x" * 1_000_000)]
)
def test_a_text_of_others_is_cut(lines: io.StringIO, fact: object) -> None:
    structlog.get_logger().warning("run.finished", error=fact)

    assert len(lines.getvalue()) < 30_000


def test_a_secret_where_a_text_is_cut_is_masked(lines: io.StringIO) -> None:
    before = "x" * (LONGEST - len(" session_id=geh"))

    structlog.get_logger().warning("x.y", error=f"{before} session_id={SECRET}")

    assert "geh" not in lines.getvalue()


def test_secret_in_a_traceback_is_masked(lines: io.StringIO) -> None:
    try:
        raise ValueError(f"GET /?session_id={SECRET} failed")
    except ValueError:
        structlog.get_logger().exception("x.crashed")

    assert "ValueError" in lines.getvalue()
    assert SECRET not in lines.getvalue()


def test_secret_of_a_library_is_masked(lines: io.StringIO) -> None:
    logging.getLogger("aiohttp.client").warning("retrying session_id=%s", SECRET)

    assert json.loads(lines.getvalue())["logger"] == "aiohttp.client"
    assert SECRET not in lines.getvalue()


@pytest.mark.parametrize(
    "facts", [{"vm": REF}, {"error": ValueError(REF)}, {"disks": [{REF: REF}]}]
)
def test_no_reference_is_logged(lines: io.StringIO, facts: dict[str, object]) -> None:
    structlog.get_logger().warning(f"x.{REF}", **facts)
    logging.getLogger("aiohttp.client").warning("gone: %s", REF)
    try:
        raise ValueError(REF)
    except ValueError:
        structlog.get_logger().exception("x.crashed")

    assert len(lines.getvalue().splitlines()) == 3
    assert "OpaqueRef" not in lines.getvalue()


def test_harmless_facts_stay(lines: io.StringIO) -> None:
    structlog.get_logger().info("x.y", path="/sessions", step="transfer", vm="password-server")

    event = json.loads(lines.getvalue())
    assert (event["path"], event["vm"]) == ("/sessions", "password-server")


@contextmanager
def on_a_console() -> Iterator[io.StringIO]:
    out = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure(level="info", style="console", out=out)
    try:
        yield out
    finally:
        structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(level)


def test_console_shows_no_local_variables() -> None:
    with on_a_console() as out:
        password = SECRET
        try:
            raise ValueError(f"{len(password)}")
        except ValueError:
            structlog.get_logger().exception("x.crashed")

    assert "x.crashed" in out.getvalue()
    assert SECRET not in out.getvalue()


ODD = "web\x9b31m\x1b]0;t\x07\u202e\n[/b]"


@pytest.mark.parametrize(
    "facts",
    [
        {"vm": ODD},
        {"disks": [{"name": ODD}, {ODD: 1}]},
        {"error": ValueError(ODD)},
        {"names": (ODD, {ODD})},
        {ODD: 1},
    ],
)
def test_a_line_on_a_console_commands_no_terminal(facts: dict[str, object]) -> None:
    with on_a_console() as out:
        structlog.get_logger().warning(ODD, **facts)
        logging.getLogger("aiohttp.client").warning("%s", ODD)

    assert len(out.getvalue().splitlines()) == 2
    assert "[/b]" in out.getvalue()
    obeyed = [c for c in out.getvalue() if c != "\n" and unicodedata.category(c) in ("Cc", "Cf")]
    assert obeyed == []


def test_a_traceback_on_a_console_keeps_its_lines_and_commands_no_terminal() -> None:
    with on_a_console() as out:
        try:
            raise ValueError(ODD)
        except ValueError:
            structlog.get_logger().exception("x.crashed")

    assert len(out.getvalue().splitlines()) > 3
    assert not {"\x9b", "\x1b", "\u202e"} & set(out.getvalue())
