"""Parse and format sizes, durations and rates as people write them."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from fractions import Fraction

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB
TiB = 1024 * GiB

_SIZES = {"": 1, "B": 1, "KiB": KiB, "MiB": MiB, "GiB": GiB, "TiB": TiB}
_DURATIONS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]iB|B)?")
_RATES = {"k": 10**3, "M": 10**6, "G": 10**9}
_RATE_BITS = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG])?bit/s")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")


def parse_size(text: str) -> int:
    """Parse a size such as `64MiB`, `1.5 GiB` or `4096` into bytes.

    Raises:
        ValueError: the text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write it like 64MiB or 1.5GiB")
    return int(Fraction(match[1]) * _SIZES[match[2] or ""])


def parse_duration(text: str) -> float:
    """Parse a duration such as `15m`, `1h30m` or `20s` into seconds.

    Raises:
        ValueError: the text is not a duration.
    """
    compact = text.replace(" ", "")
    if not compact or _DURATION_PART.sub("", compact):
        raise ValueError(f"{text!r} is not a duration; write it like 30s, 15m or 1h30m")
    return sum(float(n) * _DURATIONS[unit] for n, unit in _DURATION_PART.findall(compact))


def parse_rate(text: str) -> float:
    """Parse a rate such as `100Mbit/s` or `12MiB/s` into bytes per second.

    Raises:
        ValueError: the text is not a rate.
    """
    compact = text.strip()
    if match := _RATE_BITS.fullmatch(compact):
        return float(Fraction(match[1]) * _RATES.get(match[2] or "", 1) / 8)
    size, slash, second = compact.rpartition("/")
    if slash and second == "s":
        with suppress(ValueError):
            return float(parse_size(size))
    raise ValueError(f"{text!r} is not a rate; write it like 100Mbit/s or 12MiB/s")


def format_size(size: float) -> str:
    """Return a size for people: `512 B`, `2.0 MiB`, `8.0 GiB`."""
    for unit, factor in (("TiB", TiB), ("GiB", GiB), ("MiB", MiB), ("KiB", KiB)):
        if abs(size) >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"


def format_rate(bytes_per_s: float) -> str:
    """Return a rate for people: `100 Mbit/s`, `1.5 Gbit/s`, `unlimited`."""
    if bytes_per_s == math.inf:
        return "unlimited"
    bits = bytes_per_s * 8
    for prefix, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if bits >= factor:
            return f"{bits / factor:.4g} {prefix}bit/s"
    return f"{bits:.4g} bit/s"


def format_duration(seconds: float) -> str:
    """Return a duration for people: `0.4 s`, `42 s`, `3 m 20 s`, `2 h 5 m`, `3 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} m"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
