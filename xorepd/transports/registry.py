"""Transports by name: entry points, loaded when a job first needs them.

If a job names a transport that is not available, the error says what to install. A broken transport
that no job names does no harm. A plug-in is loaded and opened in a thread, so that it cannot hang
the daemon.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from xorepd.errors import Refused
from xorepd.transports.base import API, GROUP, Surroundings, Transport
from xorepd.transports.guard import guarded
from xorepd.units import format_duration

OURS = {"compressed": "xorepd-compressed", "throttled": "xorepd-throttled"}
"""Our transports, and the distributions that contain them."""

OPEN_S = 10.0
"""Longest time to load and open a transport, which at most read files."""


def installed() -> list[str]:
    """Return the names of all installed transports."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def open_transport(
    name: str, options: Mapping[str, Any], surroundings: Surroundings, *, timeout: float = OPEN_S
) -> Transport:
    """Open a transport with its options; block for `timeout` seconds at most.

    Raises:
        Refused: it is not installed, installed twice, broken, of another version, its options are
            invalid, or it hangs.
    """
    point = _find(name)
    opened: list[Transport | Refused] = []

    def work() -> None:
        try:
            opened.append(_open(name, point, options, surroundings))
        except Refused as error:
            opened.append(error)

    # A daemon thread: if it hangs, the process can still end.
    thread = threading.Thread(target=work, name=f"open transport {name}", daemon=True)
    thread.start()
    thread.join(timeout)
    if not opened:
        raise Refused(
            f"transport {name} did not open within {format_duration(timeout)}; "
            "update or remove its package"
        )
    if isinstance(opened[0], Refused):
        raise opened[0]
    return guarded(name, opened[0])


def open_inner(name: str, options: Mapping[str, Any], surroundings: Surroundings) -> Transport:
    """Open a transport for another one that wraps it (`Surroundings.opener`).

    Raises:
        ValueError: as `open_transport` refuses.
    """
    try:
        return open_transport(name, options, surroundings)
    except Refused as error:
        raise ValueError(str(error)) from error


def _find(name: str) -> EntryPoint:
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        there = installed()
        raise Refused(
            f"transport {name} is not installed (there is {', '.join(there)}); "
            f"{suggest(name, there)}"
        )
    if len(found) > 1:
        owners = ", ".join(sorted(point.dist.name if point.dist else "?" for point in found))
        raise Refused(
            f"transport {name} comes from several packages ({owners}); remove all but one"
        )
    return found[0]


def suggest(name: str, there: Collection[str]) -> str:
    """Return the remedy for a missing transport.

    It suggests only packages that are known to exist.
    """
    near = get_close_matches(name, {*OURS, *there}, 1)
    if not near:
        return "name one of those, or install the package that brings it"
    install = "" if near[0] in there else f"install {OURS[near[0]]}"
    return install if near[0] == name else f"did you mean {near[0]}? {install}".rstrip()


def _open(
    name: str, point: EntryPoint, options: Mapping[str, Any], surroundings: Surroundings
) -> Transport:
    try:
        factory = point.load()
    except BaseException as error:  # SystemExit too: it would silently end the thread
        raise Refused(
            f"transport {name} cannot be loaded ({error}); reinstall its package"
        ) from error
    api = getattr(factory, "api", None)
    if api != API:
        raise Refused(
            f"transport {name} was made for transport API {api}, this is {API}; "
            "install matching versions"
        )
    try:
        transport: Transport = factory.open(options, surroundings)
    except ValueError as error:
        raise Refused(f"transport {name}: {error}") from error
    except BaseException as error:
        raise Refused(
            f"transport {name} cannot be opened ({type(error).__name__}: {error}); "
            "report it to the author of the package"
        ) from error
    if not callable(getattr(transport, "carry", None)):
        raise Refused(
            f"transport {name} opened something that is not a transport; "
            "report it to the author of the package"
        )
    return transport
