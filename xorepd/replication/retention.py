"""Which restore points and source snapshots stay. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

T = TypeVar("T")


def select_superseded(newest_first: Sequence[T], keep: int) -> list[T]:
    """Return the restore points beyond the newest `keep`, oldest first.

    The newest one is the base of the next run and always stays.
    """
    return list(reversed(newest_first[max(1, keep) :]))


def select_unneeded(snapshots: Collection[T], needed: Collection[T]) -> list[T]:
    """Return the source snapshots that no restore point needs as its base any more."""
    return [snapshot for snapshot in snapshots if snapshot not in needed]
