"""Direct passes what every transport passes, bare and as the daemon wraps it."""

from __future__ import annotations

from xorepd.plugin.conformance import TransportConformance, surroundings
from xorepd.transports.base import Transport
from xorepd.transports.direct import DirectFactory
from xorepd.transports.registry import open_transport
from xorepd.units import MiB


class TestDirect(TransportConformance):
    factory = DirectFactory()
    refused = {"rate": {"rate": "1MiB/s"}}  # noqa: RUF012 -- declared as a class variable
    held_bytes = MiB


class TestGuardedDirect(TestDirect):
    def opened(self) -> Transport:
        return open_transport("direct", {}, surroundings())
