"""Find, read, expand and validate a configuration file.

    bytes ── tomllib ──► tables ── ${NAME} ──► tables ── pydantic ──► Settings ── cross-checks ──►

Whatever is wrong is said in a sentence with file, key, value, line and what to write. All of it is
said at once: what is wrong in one place is left out, and the rest is looked at all the same.
Nothing here reads a secret: `xorepctl --config` loads the same file as an account that must not.
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
"""A thousand jobs take a tenth of that; more is not a configuration."""

MAX_PARTS = 100
"""Of a dotted key: the library takes memory by the square of them."""
_DOTTED = re.compile(r"""(?<![\w"'-])(?:(?>[\w"'-]+)[ \t]*\.[ \t]*)+""")
_DOLLAR = re.compile(r"\$\$|\$\{([^}]*)\}|\$\{")
_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")


def load(file: Path, *, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the configuration that a file holds.

    Args:
        file: TOML; relative paths in it start at its directory.
        environ: What `${NAME}` stands for; the process's environment by default.

    Raises:
        ConfigError: it cannot be read, or something in it cannot be used.
    """
    settings, problems = examine(file, environ=environ)
    refuse(problems)
    return settings


def examine(
    file: Path, *, environ: Mapping[str, str] | None = None
) -> tuple[Settings, list[ConfigError]]:
    """Return what of a configuration can be used, and everything that is wrong with it.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    file = file.absolute()
    tables, explainer = read_tables(file, environ)
    settings = validate(Settings, tables, explainer) or Settings(file=file)
    if "jobs" not in tables:
        # An emptied file would quietly end all replication.
        explainer.note((), "has no jobs", hint="if none are meant, write jobs = {}")
    check_references(settings, tables.get("pools"), explainer)
    return settings, explainer.problems


def read_tables(
    file: Path, environ: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], Explainer]:
    """Return the tables of a file, ready for their models, and what collects mistakes in them.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    text, mode = _read(file)
    if any(run.count(".") > MAX_PARTS for run in _DOTTED.findall(text)):
        raise ConfigError(file, "", f"has a key of more than {MAX_PARTS} parts")
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(file, "", "is nested too deep") from None
    except ValueError as error:  # TOMLDecodeError is one, and numbers of thousands of digits are
        raise ConfigError(file, "", f"is not TOML: {error}") from error
    explainer = Explainer(file, text, tables)
    _refuse_readable_password(explainer, tables, mode)
    expanded = _expand(explainer, tables, os.environ if environ is None else environ)
    return _with_names(explainer, expanded), explainer


M = TypeVar("M", bound=BaseModel)

_NAMED = frozenset({"pools", "jobs", "clients"})
"""Tables that hold tables by name."""


def validate(model: type[M], tables: Mapping[str, Any], explainer: Explainer) -> M | None:
    """Return what of the tables can be used, after noting everything that cannot.

    What is wrong is left out, key by key; where a table cannot do without, as a whole. None: the
    model cannot do without what is left out.
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
    """Remove a key from its table, or the table where it has no such key; return whether it did."""
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
    """Return whether a finding may only be there because something was left out.

    Our own rules name the keys that they are about.
    """
    loc: Loc = finding["loc"]
    keys = left_out.get(_table_of(loc), ()) if loc else ()
    said = said_by(finding)
    return bool(keys) and (finding["type"] == "missing" or any(key in said for key in keys))


def _read(file: Path) -> tuple[str, int]:
    """Return text and permission bits of one and the same open file."""
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
    """Refuse a file that holds a password and that others than its owner can read."""
    if not mode & (stat.S_IRGRP | stat.S_IROTH):
        return
    pools = tables.get("pools")
    for name, pool in pools.items() if isinstance(pools, dict) else ():
        password = pool.get("password") if isinstance(pool, dict) else None
        # A password that is nothing but a variable stands in the environment, not in the file.
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
    """Return the tables with the name of each pool and job inside it, as the models have it."""
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
