"""A source pool of guests with four empty disks each: every byte that moves later was written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from xorepd_lab.topology import DiskSpec, PoolSpec, SrSpec, VmSpec

MIB: Final = 1 << 20
DISKS: Final = 4
DISK_SIZE: Final = 64 * MIB


def source_pool(names: Iterable[str]) -> PoolSpec:
    """Return the pool `prod`, which serves NBD, with a running guest of each name."""
    guests = tuple(
        VmSpec(
            name,
            tuple(DiskSpec(f"{name}-{disk}", "store", DISK_SIZE) for disk in range(DISKS)),
            "lan",
            f"02:16:3e:00:00:{number:02x}",
            running_on="h1",
            cd_drive=False,
        )
        for number, name in enumerate(names)
    )
    store = SrSpec("store", "ext", ("h1",))
    return PoolSpec("prod", ("h1",), (store,), ("lan",), guests, nbd="nbd")
