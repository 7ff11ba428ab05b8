"""The options of the transport, read strictly: each error names the option and the remedy."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from xorepd.plugin import GiB, MiB, Refused, format_size, parse_size
from xorepd.relay.certificates import client_context
from xorepd_compressed.room import LEAST

KNOWN = ("relay", "certificate", "key", "ca", "level", "window", "link")
LEVEL = 3
"""Of zstd: one thread fills 700 Mbit/s with it, and level 9 sends only 5 % less."""
WINDOW = 8 * MiB
"""Of data read and not sent yet, per disk: at 80 ms and three to one, enough for 300 Mbit/s."""
LARGEST_WINDOW = GiB

_LINK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")


@dataclass(frozen=True, slots=True)
class Access:
    """Where the relay is, and who we are there."""

    host: str
    port: int
    certificate: Path
    key: Path
    ca: Path

    @property
    def name(self) -> str:
        """Who we are, for people: the relay goes by the certificate itself."""
        return self.certificate.stem

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Options:
    access: Access
    level: int
    """Of zstd."""
    window: int
    """Bytes of disk that may be held, per disk."""
    link: str
    """What the disks on one connection are known by."""


def read_options(given: Mapping[str, Any]) -> Options:
    """Return the options that a configuration gives; the files are read once to see that they fit.

    Raises:
        ValueError: one is unknown, missing or wrong.
    """
    for name in given:
        if name not in KNOWN:
            near = get_close_matches(name, KNOWN, 1)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(KNOWN)}"
            raise ValueError(f"there is no option {name}; {hint}")
    host, port = _relay(given.get("relay"))
    certificate, key, ca = (_file(name, given.get(name)) for name in ("certificate", "key", "ca"))
    access = Access(host, port, certificate, key, ca)
    level, window = _level(given.get("level", LEVEL)), _window(given.get("window"))
    link = _link(given["link"]) if "link" in given else f"{access.name}@{access.address}"
    _check_key(key)
    try:
        client_context(certificate, key, ca)
    except Refused as error:
        raise ValueError(f"certificate, key, ca: {error}") from error
    return Options(access, level, window, link)


def _relay(value: Any) -> tuple[str, int]:
    if isinstance(value, str):
        host, _, port = value.rpartition(":")
        if _HOST.fullmatch(host) and port.isdecimal() and 0 < int(port) < 65536:
            return host.strip("[]"), int(port)
    raise ValueError('relay must be a host and a port, such as "relay.example.net:9443"')


def _file(option: str, value: Any) -> Path:
    if value is None:
        raise ValueError(
            f"{option} is missing; `xorepd relay init` makes the files for certificate, key and ca"
        )
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError(f'{option} must be the whole path of a file, such as "/etc/xorepd/x.pem"')
    return Path(value)


def _check_key(key: Path) -> None:
    try:
        mode = key.stat().st_mode
    except OSError as error:
        raise ValueError(f"key: {key} cannot be read ({error.strerror})") from error
    if mode & stat.S_IRWXO:
        raise ValueError(f"key: everyone can use {key}; chmod 600 {key}")


def _level(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 19:
        return value
    raise ValueError("level must be a number from 1 (fast) to 19 (small)")


def _window(value: Any) -> int:
    if value is None:
        return WINDOW
    try:
        window = parse_size(value)
    except (ValueError, TypeError, AttributeError):
        raise ValueError("window must be a size, such as 8MiB") from None
    if not LEAST <= window <= LARGEST_WINDOW:
        raise ValueError(
            f"window must be between {format_size(LEAST)} and {format_size(LARGEST_WINDOW)}"
        )
    return window


def _link(value: Any) -> str:
    if not isinstance(value, str) or _LINK.fullmatch(value) is None:
        raise ValueError("link must be a name of letters, digits, dots and hyphens, such as wan")
    return value
