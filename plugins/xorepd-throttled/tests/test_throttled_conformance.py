"""Throttled passes what every transport passes, whatever it wraps."""

from __future__ import annotations

from xorepd.plugin import MiB
from xorepd.plugin.conformance import TransportConformance
from xorepd_throttled.transport import ThrottledFactory

FAST = "8Gbit/s"


class TestThrottled(TransportConformance):
    factory = ThrottledFactory()
    options = {"rate": FAST, "pool_rate": FAST, "job_rate": "4Gbit/s"}
    refused = {
        "rate": {"rate": 12},
        "pool_rate": {"pool_rate": "fast"},
        "job_rate": {"job_rate": "1bit/s"},
        "link": {"link": "a b"},
        "through": {"through": "drect"},
        "timetable": {"timetable": {"noon": "1MiB/s"}},
        "timezone": {"timetable": {}, "timezone": "Mars/Olympus"},
    }
    held_bytes = MiB


class TestUnlimited(TransportConformance):
    factory = ThrottledFactory()


class TestThrottledThroughThrottled(TransportConformance):
    factory = ThrottledFactory()
    options = {
        "rate": FAST,
        "link": "outer",
        "through": {"name": "throttled", "rate": FAST, "link": "inner"},
    }
