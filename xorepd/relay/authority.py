"""Decide from the records of the pool which disks a client may write. Pure.

The relay has the credentials of the target pool, and its clients do not. So it does not trust what
a client says about a disk. It writes only to disks that a daemon has created and signed as staging
disks of the same replica and run, and that are not in use.
"""

from __future__ import annotations

from collections.abc import Collection

from xorepd.relay.protocol.messages import Open
from xorepd.replication.format.marks import Mark, Role
from xorepd.replication.format.ownership import own_mark, used_by_vms
from xorepd.xapi.cache import PoolCache
from xorepd.xapi.records import Sr, Vdi


class NotAllowed(Exception):
    """The client may not write the disk; the message names the disk and the reason."""


_WRITABLE = ("user", "suspend")
"""Types of VDI: disks, and the memory of suspended VMs."""


def disk_for(
    asked: Open, cache: PoolCache, client: str, pools: Collection[str]
) -> tuple[Vdi, Sr, Mark]:
    """Return the disk that a client requests, its SR and its mark.

    Args:
        cache: Current records of the target pool.
        pools: UUIDs of the source pools whose replicas the client may write; empty: all.

    Raises:
        NotAllowed: the client may not write the disk.
    """
    vdi = cache.by_uuid(Vdi, asked.vdi)
    if vdi is None:
        raise NotAllowed(f"the target pool has no disk {asked.vdi!r}")
    name = f"disk {vdi.uuid} ({vdi.name_label})"
    mark = own_mark(vdi)
    if mark is None or mark.role is not Role.DISK:
        raise NotAllowed(f"{name} is no staging disk: no xorepd has signed it as one")
    if str(mark.stream) != asked.stream:
        raise NotAllowed(f"{name} is of another stream than {asked.stream}")
    if mark.run != asked.run:
        raise NotAllowed(f"{name} is of run {mark.run}, not of {asked.run}")
    if pools and mark.stream.pool not in pools:
        raise NotAllowed(
            f"client {client} may not write replicas of pool {mark.stream.pool}; "
            f"add it to [clients.{client}] pools if it should"
        )
    sr = cache.srs.get(vdi.sr)
    if sr is None or sr.uuid != mark.stream.sr:
        raise NotAllowed(f"{name} does not lie on the storage repository of its stream")
    if vdi.is_a_snapshot or vdi.missing or not vdi.managed or vdi.type not in _WRITABLE:
        raise NotAllowed(f"{name} is none that can be written")
    if used_by_vms(cache, vdi):
        raise NotAllowed(f"{name} belongs to a VM")
    if asked.virtual_size > vdi.virtual_size:
        raise NotAllowed(f"{name} has {vdi.virtual_size} bytes, not {asked.virtual_size}")
    return vdi, sr, mark
