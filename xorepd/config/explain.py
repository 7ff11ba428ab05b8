"""Say what is wrong with a configuration in one sentence: key, value, line, nearest known name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from xorepd.config.fields import nearest
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
}
"""How the tables of a configuration begin."""

_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]\]?\s*(?:#.*)?")
_ASSIGNMENT = re.compile(
    r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*="""
)


class Explainer:
    """Turns a place in a configuration and a reason into a `ConfigError`."""

    def __init__(self, file: Path, text: str) -> None:
        self.file = file
        self._text = text

    def error(self, loc: Loc, reason: str, *, value: object = None, hint: str = "") -> ConfigError:
        """Return the error for one place; `value` is quoted unless it may be a secret."""
        line = find_line(self._text, loc)
        if _SECRET_KEYS.intersection(loc):
            value = None
        at = f" (line {line})" if line else ""
        return ConfigError(self.file, key_of(loc), reason + at, value=value, hint=hint)

    def unknown_key(self, loc: Loc) -> ConfigError:
        """Return the error for a key that does not exist there, with the nearest that does."""
        return self.error(loc, "there is no such key", hint=nearest(str(loc[-1]), _known_keys(loc)))

    def from_validation(self, error: ValidationError) -> ConfigError:
        """Return the first of pydantic's findings, unknown keys before all others.

        A misspelt key is usually also a missing one, and the misspelling is what to mend.
        """
        findings = error.errors(include_url=False)
        first = min(findings, key=lambda finding: finding["type"] != "extra_forbidden")
        return self._from_finding(first)

    def _from_finding(self, finding: ErrorDetails) -> ConfigError:
        loc: Loc = finding["loc"]
        match finding["type"]:
            case "extra_forbidden":
                return self.unknown_key(loc)
            case "missing":
                return self.error(loc[:-1], f"the key {loc[-1]!r} is required")
            # Pydantic speaks of dictionaries and tuples, TOML does not.
            case "model_type" | "dict_type" | "mapping_type":
                reason = (
                    f"must be a table, such as {_TABLES.get(loc[0]) if len(loc) < 3 else '{ … }'}"
                )
            case "tuple_type":
                reason = 'must be a list, such as ["a", "b"]'
            case "value_error":
                reason = str(finding["ctx"]["error"])
            case _:
                reason = _lower_first(finding["msg"])
        return self.error(loc, reason, value=_quotable(finding["input"]))


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
    wanted = tuple(part for part in loc if isinstance(part, str))
    table: tuple[str, ...] = ()
    best, line_of_best = 0, None
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.fullmatch(line):
            table = found = _parts(header[1])
        elif assignment := _ASSIGNMENT.match(line):
            found = (*table, *_parts(assignment[1]))
        else:
            continue
        if len(found) > best and found == wanted[: len(found)]:
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
        case ("jobs", _, "target"):
            model = TargetSettings
        case _:
            return []
    # What load.py fills in itself is no key of the file.
    return [key for key in model.model_fields if key not in {"name", "file"}]


def _quotable(value: Any) -> object:
    """Return a value worth repeating; tables and long texts are not."""
    return value if isinstance(value, (bool, int, float)) or _is_short(value) else None


def _is_short(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 80


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
