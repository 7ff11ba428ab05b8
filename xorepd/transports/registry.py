"""Transports by name: entry points, loaded when a job first needs them.

One that a job names and that cannot be had is an error which says what to install; one that is
merely installed and broken hurts nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

from xorepd.errors import Refused
from xorepd.transports.base import API, GROUP, Transport, TransportFactory


def installed() -> list[str]:
    """Return the names of all installed transports."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def open_transport(name: str, options: Mapping[str, Any]) -> Transport:
    """Return a transport with its options.

    Raises:
        Refused: not installed, installed twice, broken, of another version, or wrong options.
    """
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        near = get_close_matches(name, installed(), 1)
        hint = f"did you mean {near[0]}?" if near else f"install xorepd-{name}"
        have = ", ".join(installed())
        raise Refused(f"transport {name} is not installed (there is {have}); {hint}")
    if len(found) > 1:
        owners = ", ".join(sorted(point.dist.name if point.dist else "?" for point in found))
        raise Refused(
            f"transport {name} comes from several packages ({owners}); remove all but one"
        )
    try:
        factory: TransportFactory = found[0].load()
    except Exception as error:
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
        return factory.open(options)
    except ValueError as error:
        raise Refused(f"transport {name}: {error}") from error
