"""What the transports of a daemon share and its operator can turn: links, by name.

A link is made by the first transport that names it and joined by the others. Its terms come from
the configuration; a rate that the operator sets goes before them until the next reload.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link as people see it."""

    rate_bytes_per_s: float
    """What may pass now; infinite where nothing limits it."""
    reason: str
    """What sets the rate: `configuration`, `command`, or a period of a timetable."""
    active_disks: int
    """Disks that are being carried over it."""
    sent_bytes: int
    """Since the daemon's start."""


class Link(Protocol):
    """Something that limits everything that passes it."""

    terms: Any
    """What the configuration says of it, comparable; None where it says nothing."""

    def renew(self, terms: Any) -> None:
        """Live by these terms from now on, and forget what the operator set."""

    def set_rate(self, rate: float | None) -> None:
        """Let this rate rule, in bytes per second; None goes back to the terms."""

    def state(self) -> LinkState: ...


L = TypeVar("L", bound=Link)


class Links:
    """The links of a daemon, or of a configuration that is being checked; for any thread.

    Args:
        strict: whether two different terms for one link are refused, as they are when a
            configuration is checked. Later, a run that began under an older one may still come with
            its terms: then those in force stay.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._links: dict[str, Link] = {}
        self._lock = threading.Lock()

    def share(self, name: str, make: Callable[[], L]) -> L:
        """Return the link of that name; the first to ask makes it.

        Raises:
            ValueError: it has other terms elsewhere, or belongs to another kind of transport.
        """
        offered = make()
        with self._lock:
            link = self._links.setdefault(name, offered)
            if not isinstance(link, type(offered)):
                raise ValueError(f"link {name} belongs to another transport; choose another name")
            if offered.terms is not None and link.terms != offered.terms:
                if link.terms is None:
                    link.renew(offered.terms)
                elif self._strict:
                    raise ValueError(
                        f"{name} is set up differently in another job; "
                        "write the same in both, or name two links"
                    )
            return link

    def adopt(self, checked: Links) -> None:
        """Let the links of a new configuration rule; those that stay keep their streams."""
        with self._lock:
            for name, link in checked._links.items():
                mine = self._links.get(name)
                if mine is None or type(mine) is not type(link):
                    self._links[name] = link
                else:
                    mine.renew(link.terms)
            for name in self._links.keys() - checked._links.keys():
                del self._links[name]

    def states(self) -> dict[str, LinkState]:
        """Return all links as they are now, by name."""
        with self._lock:
            return {name: link.state() for name, link in sorted(self._links.items())}

    def set_rate(self, name: str, rate: float | None) -> LinkState:
        """Let a rate rule over a link, in bytes per second; None goes back to its terms.

        Raises:
            KeyError: there is no such link.
            ValueError: the link cannot be that slow.
        """
        with self._lock:
            link = self._links[name]
            link.set_rate(rate)
            return link.state()
