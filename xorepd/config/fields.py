"""The types of values in a configuration: sizes, durations, paths, cron expressions.

Each parses what people write, or raises `ValueError` with a sentence that says what to write
instead. `config.load` adds file, key and line.
"""

from __future__ import annotations

import difflib
import re
import uuid
import zoneinfo
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any
from urllib.parse import urlsplit

from croniter import croniter
from croniter.croniter import CroniterError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
)

from xorepd.units import parse_duration, parse_size

DIRECTORY = "directory"
"""Key of the validation context: the directory that relative paths start from."""

NOTHING: Mapping[Any, Any] = MappingProxyType({})
"""The content of a table that is absent."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class Table(BaseModel):
    """Frozen, and strict: TOML has types, so `max_vms = "3"` is a mistake and not a number."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the most similar known word, or an empty text."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def check_name(text: str) -> str:
    """Check that a name needs no quoting in a URL, a log or a file name."""
    if _NAME.fullmatch(text) is None or len(text) > 64:
        raise ValueError(
            "a name is up to 64 letters, digits, '.', '_' or '-', and begins with a letter or digit"
        )
    return text


def _size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        return parse_size(value)
    raise ValueError('write a size as text, such as "64MiB" or "1.5GiB"')


def _duration(value: object) -> float:
    if isinstance(value, str):
        return parse_duration(value)
    # A plain number would leave open whether it means seconds or minutes.
    raise ValueError('write a duration as text with its unit, such as "30s", "15m" or "1h30m"')


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("must be longer than 0s")
    return seconds


def _path(value: object, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("write a path as text")
    directory: Path = (info.context or {}).get(DIRECTORY, Path("/"))
    return directory / value


def _zone(value: object) -> zoneinfo.ZoneInfo:
    if isinstance(value, zoneinfo.ZoneInfo):
        return value
    if not isinstance(value, str):
        raise ValueError('write a time zone by name, such as "Europe/Paris"')
    try:
        return zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        hint = nearest(value, zoneinfo.available_timezones())
        raise ValueError(
            "is not a known time zone; " + (hint or 'write one such as "Europe/Paris"')
        ) from None


def _cron(expression: str) -> str:
    fields = expression.split()
    if len(fields) != 5 and not (len(fields) == 1 and expression.startswith("@")):
        raise ValueError(
            f"a schedule has 5 fields (minute hour day month weekday), this one has {len(fields)}"
        )
    for field, bounds in zip(fields, _CRON_BOUNDS, strict=False):
        for part in field.split(","):
            _check_cron_part(part, bounds)
    try:
        # Syntax alone is not enough: "0 0 30 2 *" is well formed and never due.
        croniter(expression, datetime(2000, 1, 1)).get_next(datetime)  # noqa: DTZ001 -- wall time
    except (CroniterError, KeyError, ValueError) as error:
        raise ValueError(f"is not a schedule that is ever due ({error})") from None
    return expression


_CRON_BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
"""Least and greatest value of each field of a schedule."""

_CRON_NAMES = {
    name: number
    for names, first in (
        ("jan feb mar apr may jun jul aug sep oct nov dec", 1),
        ("sun mon tue wed thu fri sat", 0),
    )
    for number, name in enumerate(names.split(), first)
}


def _check_cron_part(part: str, bounds: tuple[int, int]) -> None:
    """Refuse what croniter accepts without sense: random values, and steps beyond the field."""
    if part[:1] in {"h", "H", "r", "R"}:
        raise ValueError(f"has {part!r}, which would change with each start; write a number")
    values, slash, step = part.partition("/")
    if not slash or not step.isdecimal():
        return
    low, dash, high = values.partition("-")
    first = bounds[0] if low in {"*", "?"} else _cron_number(low)
    last = _cron_number(high) if dash else bounds[1]
    if first is None or last is None:
        return  # croniter reports the mistake
    width = (last - first) % (bounds[1] - bounds[0] + 1)  # 22-3 wraps around
    if int(step) > width:
        raise ValueError(
            f"has {part!r}, whose step of {step} is larger than its field, so that it only means "
            f"{first}; write that, or a smaller step"
        )


def _cron_number(text: str) -> int | None:
    return int(text) if text.isdecimal() else _CRON_NAMES.get(text.lower())


def _command(words: tuple[str, ...]) -> tuple[str, ...]:
    if words and not words[0].startswith("/"):
        raise ValueError("begin with the absolute path of a program")
    if any("\0" in word for word in words):
        raise ValueError("contains a zero byte")
    return words


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ValueError("is not a UUID") from None


def _fingerprint(text: str) -> str:
    algorithm, _, digits = text.partition(":")
    plain = digits.replace(":", "").lower()
    if algorithm.lower() != "sha256" or _FINGERPRINT.fullmatch(plain) is None:
        raise ValueError(
            "write sha256: and 64 hexadecimal digits, as "
            "`openssl x509 -noout -fingerprint -sha256` prints them"
        )
    return plain


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.username is not None or parts.password is not None:
        raise ValueError("contains an account; write it to username and password_file")
    if parts.scheme not in {"https", "http"} or not parts.hostname:
        raise ValueError("write it as https://host or https://host:port")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("the port is not a number from 1 to 65535") from None
    if port == 0 or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError("write only https://host or https://host:port")
    return text.rstrip("/")


def _distinct(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not texts:
        raise ValueError("name at least one")
    for index, text in enumerate(texts):
        if not text:
            raise ValueError("an entry is empty")
        if text in texts[:index]:
            raise ValueError(f"{text!r} is listed twice")
    return texts


def freeze(mapping: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return a read-only copy: a frozen model alone would still hold a mutable dict."""
    return MappingProxyType(dict(mapping))


Size = Annotated[int, BeforeValidator(_size)]
"""Bytes, written `64MiB`."""
Duration = Annotated[float, BeforeValidator(_duration), AfterValidator(_positive)]
"""Seconds, written `15m`; never zero."""
Grace = Annotated[float, BeforeValidator(_duration)]
"""Seconds, written `60s`; may be zero."""
FilePath = Annotated[Path, BeforeValidator(_path)]
"""Absolute, or relative to the directory of the configuration file."""
Zone = Annotated[zoneinfo.ZoneInfo, BeforeValidator(_zone)]
Cron = Annotated[str, AfterValidator(_cron)]
Command = Annotated[tuple[str, ...], Field(strict=False, max_length=64), AfterValidator(_command)]
"""The absolute path of a program and its arguments; empty: no program."""
UuidText = Annotated[str, AfterValidator(_uuid)]
Fingerprints = Annotated[
    tuple[str, ...],
    Field(strict=False, max_length=256),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    AfterValidator(lambda texts: tuple(_fingerprint(text) for text in texts)),
]
"""SHA-256 of certificates in DER form, 64 lower-case hexadecimal digits each; one or several."""
Url = Annotated[str, AfterValidator(_url)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[
    tuple[str, ...], Field(strict=False, max_length=10_000), AfterValidator(_distinct)
]
TextMap = Annotated[Mapping[str, str], AfterValidator(freeze)]
Options = Annotated[Mapping[str, Any], AfterValidator(freeze)]
