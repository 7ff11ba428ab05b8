"""Say what is wrong with a configuration, a sentence each: key, value, line, nearest known name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from xorepd.config.fields import nearest
from xorepd.config.keep import Keep
from xorepd.config.models import (
    DaemonSettings,
    JobSettings,
    PoolSettings,
    Settings,
    TargetSettings,
)
from xorepd.errors import ConfigError

Loc = tuple[str | int, ...]

_SECRET_KEYS = frozenset({"password", "url"})
"""Never quoted in an error: the one is a secret, the other may hold one when it is mistaken."""

_TABLES: dict[str | int, str] = {
    "daemon": "[daemon]",
    "pools": "[pools.NAME]",
    "jobs": "[jobs.NAME]",
    "relay": "[relay]",
    "clients": "[clients.NAME]",
}
"""How the tables of a configuration begin."""

_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]\]?\s*(?:#.*)?")
_ASSIGNMENT = re.compile(
    r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*="""
)


class Explainer:
    """Turns places in a configuration and reasons into sentences, and collects them."""

    def __init__(self, file: Path, text: str, tables: Mapping[str, Any]) -> None:
        self.file = file
        self._text = text
        self._tables = tables
        self._places = set[Loc]()
        self.problems: list[ConfigError] = []
        """What was found so far."""

    def note(self, loc: Loc, reason: str, *, value: object = None, hint: str = "") -> None:
        """Note what is wrong in one place; `value` is quoted unless it may be a secret."""
        loc = self.as_written(loc)
        self._places.add(loc)
        line = find_line(self._text, loc)
        if _SECRET_KEYS.intersection(loc):
            value = None
        at = f" (line {line})" if line else ""
        self.problems.append(
            ConfigError(self.file, key_of(loc), reason + at, value=value, hint=hint)
        )

    def note_unknown(self, loc: Loc) -> None:
        """Note a key that does not exist there, with the nearest that does."""
        self.note(loc, "there is no such key", hint=nearest(str(loc[-1]), _known_keys(loc)))

    def is_wrong(self, loc: Loc) -> bool:
        """Return whether something is wrong already in a place, or with what it is in."""
        loc = self.as_written(loc)
        return any(loc[:length] in self._places for length in range(1, len(loc) + 1))

    def note_findings(self, findings: Iterable[ErrorDetails]) -> None:
        """Note what pydantic has found, unknown keys before all others.

        A misspelt key is usually also a missing one, and the misspelling is what to mend. Of a
        place where something is wrong already nothing more is said.
        """
        fresh = [finding for finding in findings if not self.is_wrong(finding["loc"])]
        for finding in sorted(fresh, key=lambda finding: finding["type"] != "extra_forbidden"):
            self._note_finding(finding)

    def as_written(self, loc: Loc) -> Loc:
        """Return a place in the models as a place in the file, which has short forms."""
        match loc:
            case ("jobs", name, "targets", 0, *rest) if "target" in self._written(("jobs", name)):
                loc = ("jobs", name, "target", *rest)
        match loc:
            case (*above, "keep", "last") if not isinstance(self._written(loc[:-1]), dict):
                return (*above, "keep")
            case _:
                return loc

    def _written(self, loc: Loc) -> Any:
        value: Any = self._tables
        for part in loc:
            value = value[part]
        return value

    def _note_finding(self, finding: ErrorDetails) -> None:
        loc: Loc = finding["loc"]
        match finding["type"]:
            case "extra_forbidden":
                return self.note_unknown(loc)
            case "missing" if loc[0] == "jobs" and loc[-1] == "targets":
                return self.note(loc[:-1], "the key 'target' or 'targets' is required")
            case "missing":
                return self.note(loc[:-1], f"the key {loc[-1]!r} is required")
            # Pydantic speaks of dictionaries and tuples, TOML does not.
            case "model_type" | "dict_type" | "mapping_type":
                reason = (
                    f"must be a table, such as {_TABLES.get(loc[0]) if len(loc) < 3 else '{ … }'}"
                )
            case "tuple_type":
                reason = 'must be a list, such as ["a", "b"]'
            case _:
                reason = said_by(finding)
        return self.note(loc, reason, value=_quotable(finding["input"]))


def said_by(finding: ErrorDetails) -> str:
    """Return what one of pydantic's findings says, in words that fit behind a key."""
    if finding["type"] == "value_error":
        return str(finding["ctx"]["error"])
    return _lower_first(finding["msg"])


def key_of(loc: Loc) -> str:
    """Return a place as a person writes it: `jobs.web.vms[1]`."""
    key = ""
    for part in loc:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def find_line(text: str, loc: Loc) -> int | None:
    """Return the number of the line that assigns a key, or that opens its table.

    Reads lines, not TOML: a table inside a multi-line string can mislead it, and the key in the
    error is right all the same.
    """
    table: Loc = ()
    tables_of: Counter[Loc] = Counter()
    best, line_of_best = 0, None
    for number, line in enumerate(text.splitlines(), start=1):
        found: Loc
        if header := _HEADER.fullmatch(line):
            table = found = _parts(header[1])
            if line.lstrip().startswith("[["):
                table = found = (*table, tables_of[table])
                tables_of[found[:-1]] += 1
        elif assignment := _ASSIGNMENT.match(line):
            found = (*table, *_parts(assignment[1]))
        else:
            continue
        if len(found) > best and found == loc[: len(found)]:
            best, line_of_best = len(found), number
    return line_of_best


def _parts(dotted: str) -> tuple[str, ...]:
    if dotted.strip()[:1] in {'"', "'"}:
        return (dotted.strip().strip("\"'"),)
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _known_keys(loc: Loc) -> list[str]:
    model: type[BaseModel]
    match loc[:-1]:
        case ():
            model = Settings
        case ("daemon",):
            model = DaemonSettings
        case ("pools", _):
            model = PoolSettings
        case ("jobs", _):
            model = JobSettings
        case ("jobs", _, "targets", _) | ("jobs", _, "target"):
            model = TargetSettings
        case ("jobs", *_, "keep"):
            model = Keep
        case _:
            return []
    # What load.py fills in itself is no key of the file.
    known = [key for key in model.model_fields if key not in {"name", "file"}]
    return [*known, "target"] if model is JobSettings else known


def _quotable(value: Any) -> object:
    """Return a value worth repeating; tables and long texts are not."""
    return value if isinstance(value, (bool, int, float)) or _is_short(value) else None


def _is_short(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 80


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
