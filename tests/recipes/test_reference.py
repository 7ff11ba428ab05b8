"""The pages of reference name everything that there is: options, commands, requests, log events."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from tests.recipes.pages import ROOT
from xorepd import cli, ctl
from xorepd.config.models import DaemonSettings, JobSettings, PoolSettings
from xorepd.control import protocol
from xorepd.control.commands import ROUTES

_EVENT = re.compile(r"[a-z_]+\.[a-z_]+")
_LEVELS = {"debug", "info", "warning", "error", "exception", "log"}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


@pytest.mark.parametrize(
    ("model", "table"),
    [(DaemonSettings, "daemon"), (PoolSettings, "pools.NAME"), (JobSettings, "jobs.NAME")],
)
def test_every_option_is_listed(model: type[BaseModel], table: str) -> None:
    section = page("configuration.md").split(f"## `[{table}]`\n")[1].split("\n## ")[0]

    listed = set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))

    written_shorter = {"target"} if model is JobSettings else set()
    assert listed == (model.model_fields.keys() | written_shorter) - {"name"}


@pytest.mark.parametrize(("program", "app"), [("xorepd", cli.app), ("xorepctl", ctl.app)])
def test_every_command_is_listed(program: str, app: typer.Typer) -> None:
    text = page("commands.md")

    assert [
        name for name in _commands(typer.main.get_command(app), program) if name not in text
    ] == []


def _commands(command: object, name: str) -> Iterator[str]:
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield f"`{name}"
        return
    for each, below in subcommands.items():
        yield from _commands(below, f"{name} {each}")


def test_every_request_is_listed() -> None:
    requests = re.findall(r"^    ((?:GET|POST)  ?/\S+)", protocol.__doc__ or "", re.MULTILINE)
    text = page("control-api.md")

    listed = {tuple(r.partition("?")[0].split()) for r in requests}
    assert listed == {route[:2] for route in ROUTES}, "they stand in the docstring of protocol"
    assert [r for r in requests if f"| `{' '.join(r.split())}" not in text] == []


def events() -> set[str]:
    """Return every event that daemon, relay and our transports log."""
    places = [ROOT / "xorepd", *(ROOT / "plugins").glob("xorepd-[!l]*/src")]
    files = [file for place in places for file in place.rglob("*.py")]
    return {event for file in files if "lab" not in file.parts for event in _logged(file)}


def _logged(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _LEVELS
        ):
            for part in (part for each in node.args[:2] for part in ast.walk(each)):
                if isinstance(part, ast.Constant) and _EVENT.fullmatch(str(part.value)):
                    yield str(part.value)


def test_every_log_event_is_listed_and_no_other() -> None:
    rows = re.findall(
        r"^\| (`[a-z_]+\.[a-z_]+`(?:, `[a-z_]+\.[a-z_]+`)*) \|", page("log-events.md"), re.M
    )
    listed = {event.strip("`") for row in rows for event in row.split(", ")}

    assert len(listed) > 100
    assert listed == events()
