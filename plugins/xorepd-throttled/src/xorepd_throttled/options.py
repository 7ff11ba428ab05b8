"""The options of the transport, read strictly: each error names the option and the remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any
from zoneinfo import ZoneInfo

from xorepd.plugin import parse_rate
from xorepd_throttled.timetable import Period, Tariff, parse_period

KNOWN = ("through", "link", "rate", "timetable", "timezone", "pool_rate", "job_rate")
SLOWEST = 8000.0
"""Bytes per second, 64 kbit/s. At this rate a disk of 1 GiB takes a day and a half; a lower rate is
a mistaken unit."""

_LINK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Options:
    through: str
    """Name of the transport that carries."""
    through_options: Mapping[str, Any]
    link: str | None
    """None: the default, made of the two pools."""
    link_tariff: Tariff | None
    """None: nothing is said of it here; so for the other two."""
    pool_tariff: Tariff | None
    job_tariff: Tariff | None


def read_options(given: Mapping[str, Any]) -> Options:
    """Return the options that a configuration gives.

    Raises:
        ValueError: one is unknown or wrong.
    """
    for name in given:
        if name not in KNOWN:
            near = get_close_matches(name, KNOWN, 1)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(KNOWN)}"
            raise ValueError(f"there is no option {name}; {hint}")
    through, through_options = _through(given.get("through", "direct"))
    return Options(
        through=through,
        through_options=through_options,
        link=_link(given["link"]) if "link" in given else None,
        link_tariff=_tariff(given),
        pool_tariff=Tariff(_rate("pool_rate", given["pool_rate"]))
        if "pool_rate" in given
        else None,
        job_tariff=Tariff(_rate("job_rate", given["job_rate"])) if "job_rate" in given else None,
    )


def check_rate(rate: float) -> float:
    """Return a rate in bytes per second, unless it is too slow.

    Raises:
        ValueError: it is.
    """
    if not rate >= SLOWEST:
        raise ValueError("the slowest rate is 64kbit/s")
    return rate


def _through(value: Any) -> tuple[str, Mapping[str, Any]]:
    match value:
        case str() if value:
            return value, {}
        case {"name": str(name), **rest} if name:
            options: dict[str, Any] = {str(key): option for key, option in rest.items()}
            return name, options
    raise ValueError("through must be the name of a transport, or a table with name and options")


def _link(value: Any) -> str:
    if not isinstance(value, str) or _LINK.fullmatch(value) is None:
        raise ValueError("link must be a name of letters, digits, dots and hyphens, such as wan")
    return value


def _tariff(given: Mapping[str, Any]) -> Tariff | None:
    if "timezone" in given and "timetable" not in given:
        raise ValueError("timezone means nothing without a timetable; remove it, or add one")
    if "rate" not in given and "timetable" not in given:
        return None
    rate = _rate("rate", given["rate"]) if "rate" in given else math.inf
    return Tariff(rate, _periods(given.get("timetable", {})), _zone(given.get("timezone", "UTC")))


def _periods(value: Any) -> tuple[tuple[Period, float], ...]:
    if not isinstance(value, Mapping):
        raise ValueError('timetable must be a table, such as { "08:00-18:00" = "20Mbit/s" }')
    periods = []
    for text, rate in value.items():
        try:
            period = parse_period(text)
        except ValueError as error:
            raise ValueError(f"timetable: {error}") from None
        periods.append((period, _rate(f'timetable "{text}"', rate)))
    return tuple(periods)


def _zone(value: Any) -> ZoneInfo:
    try:
        return ZoneInfo(value)
    except (KeyError, OSError, TypeError, ValueError):
        raise ValueError(f"timezone {value!r} is not known; write it like Europe/Paris") from None


def _rate(option: str, value: Any) -> float:
    if value == "unlimited":
        return math.inf
    if not isinstance(value, str):
        raise ValueError(f"{option} must be a text, such as 100Mbit/s, 12MiB/s or unlimited")
    try:
        return check_rate(parse_rate(value))
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
