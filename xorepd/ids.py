"""Types for identifiers, so that a type checker finds one passed in place of another."""

from __future__ import annotations

from typing import NewType

PoolName = NewType("PoolName", str)
"""The configured name of a pool."""
JobName = NewType("JobName", str)
RunId = NewType("RunId", str)
"""One execution of a job: a UUID, new each time."""

PoolUuid = NewType("PoolUuid", str)
VmUuid = NewType("VmUuid", str)
VdiUuid = NewType("VdiUuid", str)
SrUuid = NewType("SrUuid", str)

Ref = NewType("Ref", str)
"""An OpaqueRef: valid for this connection, never stored."""

NULL_REF = Ref("OpaqueRef:NULL")


def is_null(ref: str) -> bool:
    """Return whether a reference is null.

    Old records have `""` or `Ref:…` where new ones have `OpaqueRef:NULL`.
    """
    return ref == NULL_REF or not ref.startswith("OpaqueRef:")
