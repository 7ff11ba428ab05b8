"""Read, expand and validate a configuration file.

    bytes ── tomllib ──► tables ── ${NAME} ──► tables ── pydantic ──► Settings ── cross-checks ──►

Each mistake is reported with file, key, value, line and what to write. All mistakes are reported at
once: an invalid part is left out, and the rest is validated all the same. Nothing here reads a
secret: `xorepctl --config` loads the same file from accounts that must not know them.
"""

from __future__ import annotations

import copy
import os
import re
import stat
import tomllib
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from xorepd.config.checks import check_references
from xorepd.config.explain import Explainer, Loc, said_by
from xorepd.config.fields import DIRECTORY, check_name
from xorepd.config.models import Settings
from xorepd.errors import ConfigError, refuse

MAX_BYTES = 4 * 1024 * 1024
"""Largest file. A thousand jobs take a tenth of that."""

MAX_PARTS = 100
"""Most parts of a dotted key: the library's memory grows with their square."""
_DOTTED = re.compile(r"""(?<![\w"'-])(?:(?>[\w"'-]+)[ \t]*\.[ \t]*)+""")
_DOLLAR = re.compile(r"\$\$|\$\{([^}]*)\}|\$\{")
_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")


def load(file: Path, *, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the configuration in a file.

    Args:
        file: TOML; relative paths in it start at its directory.
        environ: Values of `${NAME}`; default: the environment of the process.

    Raises:
        ConfigError: the file cannot be read, or all its mistakes.
    """
    settings, problems = examine(file, environ=environ)
    refuse(problems)
    return settings


def examine(
    file: Path, *, environ: Mapping[str, str] | None = None
) -> tuple[Settings, list[ConfigError]]:
    """Return the valid part of a configuration, and all mistakes in it.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    file = file.absolute()
    tables, explainer = read_tables(file, environ)
    settings = validate(Settings, tables, explainer) or Settings(file=file)
    if "jobs" not in tables:
        # An empty file would silently end all replication.
        explainer.note((), "has no jobs", hint="if that is intended, write jobs = {}")
    check_references(settings, tables.get("pools"), explainer)
    return settings, explainer.problems


def read_tables(
    file: Path, environ: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], Explainer]:
    """Return the tables of a file, ready for validation, and the collector of mistakes.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    text, mode = _read(file)
    if any(run.count(".") > MAX_PARTS for run in _DOTTED.findall(text)):
        raise ConfigError(file, "", f"has a key of more than {MAX_PARTS} parts")
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(file, "", "is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or a number with thousands of digits
        raise ConfigError(file, "", f"is not TOML: {error}") from error
    explainer = Explainer(file, text, tables)
    _refuse_readable_password(explainer, tables, mode)
    expanded = _expand(explainer, tables, os.environ if environ is None else environ)
    return _with_names(explainer, expanded), explainer


M = TypeVar("M", bound=BaseModel)

_NAMED = frozenset({"pools", "jobs", "clients"})
"""Tables of named tables."""


def validate(model: type[M], tables: Mapping[str, Any], explainer: Explainer) -> M | None:
    """Return the valid part of the tables, and note all mistakes.

    An invalid key is left out; if its table requires the key, the whole table is. Return None if
    the model requires what was left out.
    """
    kept = copy.deepcopy(dict(tables))
    left_out: defaultdict[Loc, set[str]] = defaultdict(set)
    while True:
        try:
            return model.model_validate(
                {**kept, "file": explainer.file}, context={DIRECTORY: explainer.file.parent}
            )
        except ValidationError as error:
            findings = error.errors(include_url=False)
        explainer.note_findings(f for f in findings if not _is_consequence(f, left_out))
        places = {explainer.as_written(finding["loc"]): finding for finding in findings}
        removed = [
            _leave_out(kept, loc, left_out, whole=finding["type"] == "missing")
            for loc, finding in places.items()
            if loc
        ]
        if not any(removed):
            return None


def _table_of(loc: Loc) -> Loc:
    return loc[:2] if loc[0] in _NAMED else loc[:1]


def _leave_out(
    kept: dict[str, Any], loc: Loc, left_out: defaultdict[Loc, set[str]], *, whole: bool
) -> bool:
    """Remove a key from its table, or else the table; return whether something was removed."""
    place = _table_of(loc)
    above: Any = kept
    for part in place[:-1]:
        above = above.get(part)
    if not isinstance(above, dict):  # something else stands where tables with names should
        place, above = place[:1], kept
    table = above.get(place[-1])
    key = loc[len(place)] if len(loc) > len(place) else None
    if not whole and isinstance(table, dict) and key in table:
        del table[key]
        left_out[place].add(str(key))
        return True
    return above.pop(place[-1], None) is not None


def _is_consequence(finding: ErrorDetails, left_out: Mapping[Loc, Collection[str]]) -> bool:
    """Return whether a finding may be only the consequence of a key that was left out.

    The messages of our own rules name their keys.
    """
    loc: Loc = finding["loc"]
    keys = left_out.get(_table_of(loc), ()) if loc else ()
    said = said_by(finding)
    return bool(keys) and (finding["type"] == "missing" or any(key in said for key in keys))


def _read(file: Path) -> tuple[str, int]:
    """Return text and permission bits, both of the same open file."""
    try:
        with file.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(file, "", f"is larger than {MAX_BYTES} bytes")
        return content.decode(), mode
    except PermissionError as error:
        raise ConfigError(
            file,
            "",
            f"this account may not read it ({error.strerror})",
            hint="give it to the group of the service (chgrp), and chmod 640 it",
        ) from error
    except OSError as error:
        raise ConfigError(
            file, "", f"cannot be read ({error.strerror})", hint="name it with --config"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(file, "", "is not UTF-8 text") from error


def _refuse_readable_password(explainer: Explainer, tables: dict[str, Any], mode: int) -> None:
    """Refuse a file that contains a password and that is readable by others than its owner."""
    if not mode & (stat.S_IRGRP | stat.S_IROTH):
        return
    pools = tables.get("pools")
    for name, pool in pools.items() if isinstance(pools, dict) else ():
        password = pool.get("password") if isinstance(pool, dict) else None
        # If the value is only a variable, the password is in the environment, not in the file.
        if isinstance(password, str) and _VARIABLE.fullmatch(password) is None:
            explainer.note(
                ("pools", name, "password"),
                "others than the owner of this file can read it",
                hint=f"chmod 600 {explainer.file}, or use password_file",
            )


def _expand(
    explainer: Explainer, value: Any, environ: Mapping[str, str], loc: tuple[str | int, ...] = ()
) -> Any:
    """Return a value of TOML with `${NAME}` and `$$` replaced in every string."""
    match value:
        case dict():
            return {k: _expand(explainer, v, environ, (*loc, k)) for k, v in value.items()}
        case list():
            return [_expand(explainer, v, environ, (*loc, i)) for i, v in enumerate(value)]
        case str():

            def replacement(match: re.Match[str]) -> str:
                if match[0] == "$$":
                    return "$"
                if _VARIABLE.fullmatch(match[0]) is None:
                    explainer.note(
                        loc, "a variable is written ${NAME}", hint="write $$ for a dollar sign"
                    )
                elif match[1] not in environ:
                    explainer.note(
                        loc,
                        f"the environment has no variable {match[1]}",
                        hint="set it, or write $$ for a dollar sign",
                    )
                return environ.get(match[1] or "", match[0])

            return _DOLLAR.sub(replacement, value)
        case _:
            return value


def _with_names(explainer: Explainer, tables: dict[str, Any]) -> dict[str, Any]:
    """Add to each pool and job its name, as the models expect it."""
    named = dict(tables)
    if named.pop("file", None) is not None:
        explainer.note_unknown(("file",))
    for kind in ("pools", "jobs"):
        members = tables.get(kind)
        if not isinstance(members, dict):
            continue
        named[kind] = {}
        for name, table in members.items():
            if not isinstance(table, dict):
                explainer.note((kind, name), "must be a table", hint=f"write [{kind}.NAME]")
                continue
            try:
                check_name(name)
            except ValueError as error:
                explainer.note((kind, name), str(error))
            if "name" in table:
                explainer.note_unknown((kind, name, "name"))
            named[kind][name] = {**table, "name": name}
    return named
