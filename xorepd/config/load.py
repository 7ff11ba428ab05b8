"""Find, read, expand and validate a configuration file.

    bytes ── tomllib ──► tables ── ${NAME} ──► tables ── pydantic ──► Settings ── cross-checks ──►

Whatever is wrong ends as one `ConfigError` that names file, key, value, line and what to write.
Nothing here reads a secret: `xorepctl --config` loads the same file as an account that must not.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xorepd.config.checks import check_references
from xorepd.config.explain import Explainer
from xorepd.config.fields import DIRECTORY, check_name
from xorepd.config.models import Settings
from xorepd.errors import ConfigError

MAX_BYTES = 4 * 1024 * 1024
"""A thousand jobs take a tenth of that; more is not a configuration."""

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
    file = file.absolute()
    named, explainer = read_tables(file, environ)
    try:
        settings = Settings.model_validate(
            {**named, "file": file}, context={DIRECTORY: file.parent}
        )
    except ValidationError as error:
        # `from None`: pydantic's own text repeats the input, and that may be a password.
        raise explainer.from_validation(error) from None
    check_references(settings, explainer)
    return settings


def read_tables(
    file: Path, environ: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], Explainer]:
    """Return the tables of a file, ready for their models, and what explains a mistake in them.

    Raises:
        ConfigError: it cannot be read, is no TOML, or others can read a password in it.
    """
    text, mode = _read(file)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(file, "", f"is not TOML: {error}") from error
    explainer = Explainer(file, text, tables)
    _refuse_readable_password(explainer, tables, mode)
    expanded = _expand(explainer, tables, os.environ if environ is None else environ)
    return _with_names(explainer, expanded), explainer


def _read(file: Path) -> tuple[str, int]:
    """Return text and permission bits of one and the same open file."""
    try:
        with file.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(file, "", f"is larger than {MAX_BYTES} bytes")
        return content.decode(), mode
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
            raise explainer.error(
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
                    raise explainer.error(
                        loc, "a variable is written ${NAME}", hint="write $$ for a dollar sign"
                    )
                try:
                    return environ[match[1]]
                except KeyError:
                    raise explainer.error(
                        loc,
                        f"the environment has no variable {match[1]}",
                        hint="set it, or write $$ for a dollar sign",
                    ) from None

            return _DOLLAR.sub(replacement, value)
        case _:
            return value


def _with_names(explainer: Explainer, tables: dict[str, Any]) -> dict[str, Any]:
    """Return the tables with the name of each pool and job inside it, as the models have it."""
    named = dict(tables)
    if "file" in tables:
        raise explainer.unknown_key(("file",))
    for kind in ("pools", "jobs"):
        members = tables.get(kind)
        if not isinstance(members, dict):
            continue
        named[kind] = {}
        for name, table in members.items():
            if not isinstance(table, dict):
                raise explainer.error((kind, name), "must be a table", hint=f"write [{kind}.NAME]")
            try:
                check_name(name)
            except ValueError as error:
                raise explainer.error((kind, name), str(error)) from None
            if "name" in table:
                raise explainer.unknown_key((kind, name, "name"))
            named[kind][name] = {**table, "name": name}
    return named
