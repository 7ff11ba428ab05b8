"""Explain the mistakes in a configuration: key, value, line and nearest known name."""

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
"""Values that errors never quote: a password is secret, and a wrong URL may contain one."""

_TABLES: dict[str | int, str] = {
    "daemon": "[daemon]",
    "pools": "[pools.NAME]",
    "jobs": "[jobs.NAME]",
    "relay": "[relay]",
    "clients": "[clients.NAME]",
}
"""Headers of the tables of a configuration."""

_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]\]?\s*(?:#.*)?")
_ASSIGNMENT = re.compile(
    r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*="""
)


class Explainer:
    """Turns places and reasons into sentences, and collects them."""

    def __init__(self, file: Path, text: str, tables: Mapping[str, Any]) -> None:
        self.file = file
        self._text = text
        self._tables = tables
        self._places = set[Loc]()
        self.problems: list[ConfigError] = []
        """All mistakes found so far."""

    def note(self, loc: Loc, reason: str, *, value: object = None, hint: str = "") -> None:
        """Note a mistake; the sentence quotes `value` unless it may be a secret."""
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
        """Note an unknown key, with the nearest known one."""
        self.note(loc, "there is no such key", hint=nearest(str(loc[-1]), _known_keys(loc)))

    def is_wrong(self, loc: Loc) -> bool:
        """Return whether a mistake is already noted for a place or for a table around it."""
        loc = self.as_written(loc)
        return any(loc[:length] in self._places for length in range(1, len(loc) + 1))

    def note_findings(self, findings: Iterable[ErrorDetails]) -> None:
        """Note the findings of pydantic, unknown keys first.

        A misspelt key is usually also a missing one, and the misspelling is the cause. Only the
        first mistake of a place is noted.
        """
        fresh = [finding for finding in findings if not self.is_wrong(finding["loc"])]
        for finding in sorted(fresh, key=lambda finding: finding["type"] != "extra_forbidden"):
            self._note_finding(finding)

    def as_written(self, loc: Loc) -> Loc:
        """Convert a place in the models to the place in the file, which may use short forms."""
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
            # Pydantic says dictionaries and tuples; TOML has tables and lists.
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
    """Return the message of a finding of pydantic, to follow a key."""
    if finding["type"] == "value_error":
        return str(finding["ctx"]["error"])
    return _lower_first(finding["msg"])


def key_of(loc: Loc) -> str:
    """Return a place as people write it: `jobs.web.vms[1]`."""
    key = ""
    for part in loc:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def find_line(text: str, loc: Loc) -> int | None:
    """Return the number of the line that assigns a key, or that opens its table.

    It reads lines, not TOML. A table inside a multi-line string can mislead it; the key in the
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
    # `config.load` fills in these two; they are no keys of the file.
    known = [key for key in model.model_fields if key not in {"name", "file"}]
    return [*known, "target"] if model is JobSettings else known


def _quotable(value: Any) -> object:
    """Return a value if it is short enough to quote, else None."""
    return value if isinstance(value, (bool, int, float)) or _is_short(value) else None


def _is_short(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 80


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
