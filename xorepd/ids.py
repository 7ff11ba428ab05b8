"""Names for the strings that identify things, so that one is never passed for another."""

from __future__ import annotations

from typing import NewType

PoolName = NewType("PoolName", str)
"""A pool as the configuration calls it."""
JobName = NewType("JobName", str)
RunId = NewType("RunId", str)
"""One execution of a job: a UUID, new each time."""

PoolUuid = NewType("PoolUuid", str)
VmUuid = NewType("VmUuid", str)
VdiUuid = NewType("VdiUuid", str)
SrUuid = NewType("SrUuid", str)

Ref = NewType("Ref", str)
"""An OpaqueRef: good for this connection, never stored."""

NULL_REF = Ref("OpaqueRef:NULL")


def is_null(ref: str) -> bool:
    """Return whether a reference points nowhere.

    Old records hold `""` or `Ref:…` where new ones hold `OpaqueRef:NULL`.
    """
    return ref == NULL_REF or not ref.startswith("OpaqueRef:")
