"""All that a plug-in may import. The rest of xorepd is private and changes without notice.

A transport implements `Transport` and its factory `TransportFactory`, and names the `API` it was
written for. Its tests inherit `xorepd.plugin.conformance.TransportConformance`.
"""

from xorepd.data.reader import Piece, Reader
from xorepd.data.writer import Writer
from xorepd.data.zeroes import UNIT, without_zeroes
from xorepd.errors import DataError, ProtocolViolation, Refused, Remedy
from xorepd.extents import Extent, split
from xorepd.tidying import to_the_end
from xorepd.transports.base import (
    API,
    GROUP,
    Surroundings,
    Target,
    TargetDisk,
    Transport,
    TransportFactory,
    Verifier,
)
from xorepd.transports.links import Link, Links, LinkState
from xorepd.units import GiB, KiB, MiB, format_duration, format_size, parse_rate, parse_size

__all__ = [
    "API",
    "GROUP",
    "UNIT",
    "DataError",
    "Extent",
    "GiB",
    "KiB",
    "Link",
    "LinkState",
    "Links",
    "MiB",
    "Piece",
    "ProtocolViolation",
    "Reader",
    "Refused",
    "Remedy",
    "Surroundings",
    "Target",
    "TargetDisk",
    "Transport",
    "TransportFactory",
    "Verifier",
    "Writer",
    "format_duration",
    "format_size",
    "parse_rate",
    "parse_size",
    "split",
    "to_the_end",
    "without_zeroes",
]
