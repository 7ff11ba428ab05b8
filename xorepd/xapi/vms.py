"""The calls on VMs that we use, named as an operator would name them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from xorepd.errors import ObjectGone, XapiFailure
from xorepd.ids import NULL_REF, Ref
from xorepd.xapi.pool import Pool


async def take_snapshot(pool: Pool, vm: Ref, name: str, *, without: Collection[Ref] = ()) -> Ref:
    """Snapshot a VM with its disks; crash-consistent per disk, one disk after the other.

    Args:
        without: disks to leave out. Hosts that cannot do that yet take them along.
    """
    if without:
        try:
            return Ref(await pool.run_task("VM.snapshot", vm, name, list(without)))
        except XapiFailure as failure:
            if failure.code != "MESSAGE_PARAMETER_COUNT_MISMATCH":
                raise
    return Ref(await pool.run_task("VM.snapshot", vm, name))


async def take_checkpoint(pool: Pool, vm: Ref, name: str) -> Ref:
    """Snapshot a VM with its disks and its memory.

    A VM that runs stands still meanwhile: XAPI suspends it, snapshots it, and resumes it.
    """
    return Ref(await pool.run_task("VM.checkpoint", vm, name))


async def destroy_vm(pool: Pool, vm: Ref) -> None:
    """Destroy a VM's record with its VBDs and VIFs, never its disks; gone already is fine."""
    with suppress(ObjectGone):
        await pool.run_task("VM.destroy", vm)


async def update_keys(
    pool: Pool, kind: str, ref: Ref, field: str, add: Mapping[str, str], remove: Iterable[str] = ()
) -> None:
    """Set and remove keys of a map that others write to as well; other keys stay as they are.

    Args:
        kind: class of the object, such as `VM`.
        field: the map, such as `other_config` or `blocked_operations`.
    """
    for key in remove:
        await pool.call(f"{kind}.remove_from_{field}", ref, key)
    for key, value in add.items():
        for attempt in (1, 2, 3):
            try:
                await pool.call(f"{kind}.add_to_{field}", ref, key, value)
                break
            except XapiFailure as failure:
                if failure.code != "MAP_DUPLICATE_KEY" or attempt == 3:
                    raise
            if (await pool.call(f"{kind}.get_{field}", ref)).get(key) == value:
                break  # at no moment is it away: a copy may be made of the object just now
            await pool.call(f"{kind}.remove_from_{field}", ref, key)


async def rewrite_other_config(
    pool: Pool, kind: str, ref: Ref, add: Mapping[str, str], remove: Iterable[str] = ()
) -> None:
    """Set and remove keys of `other_config` in one step, on an object of ours.

    `update_keys` takes a key away before it sets it anew: to die between the two would cost an
    object its mark. This replaces the whole map instead, so it is not for objects of others: a key
    that somebody sets in the same instant is lost.
    """
    present = await pool.call(f"{kind}.get_other_config", ref)
    removed = set(remove)
    wanted = {key: value for key, value in present.items() if key not in removed} | dict(add)
    if wanted != present:
        await pool.call(f"{kind}.set_other_config", ref, wanted)


async def create_disk_vbd(
    pool: Pool, vm: Ref, vdi: Ref, device: str, *, bootable: bool, mode: str, attached: bool = False
) -> Ref:
    """Attach a disk to a VM that does not run.

    Args:
        attached: whether the guest has it at hand; it counts for a suspended VM only, which is
            resumed with no other disks than these.
    """
    drive = {"VDI": vdi, "bootable": bootable, "mode": mode, "type": "Disk", "empty": False}
    return await _create_vbd(pool, vm, device, drive, attached=attached)


async def create_empty_drive(pool: Pool, vm: Ref, device: str, *, attached: bool) -> Ref:
    """Give a VM that does not run a CD drive without a CD; `attached` as for a disk."""
    drive = {"VDI": NULL_REF, "bootable": False, "mode": "RO", "type": "CD", "empty": True}
    return await _create_vbd(pool, vm, device, drive, attached=attached)


async def _create_vbd(
    pool: Pool, vm: Ref, device: str, drive: Mapping[str, Any], *, attached: bool
) -> Ref:
    record: dict[str, Any] = {
        "VM": vm,
        "userdevice": device,
        "unpluggable": True,
        "other_config": {},
        "qos_algorithm_type": "",
        "qos_algorithm_params": {},
        **drive,
    }
    if attached:
        record["currently_attached"] = True
    return Ref(await pool.call("VBD.create", record))


async def destroy_vbd(pool: Pool, vbd: Ref) -> None:
    """Detach a disk from a halted VM; gone already is fine."""
    with suppress(ObjectGone):
        await pool.call("VBD.destroy", vbd)


async def create_vif(
    pool: Pool,
    vm: Ref,
    network: Ref,
    device: str,
    mac: str,
    mtu: int,
    other: Mapping[str, str],
    *,
    attached: bool = False,
) -> Ref:
    """Give a VM a network interface; `attached` as for a disk."""
    record: dict[str, Any] = {
        "VM": vm,
        "network": network,
        "device": device,
        "MAC": mac,
        "MTU": mtu,
        "other_config": dict(other),
        "qos_algorithm_type": "",
        "qos_algorithm_params": {},
    }
    if attached:
        record["currently_attached"] = True
    return Ref(await pool.call("VIF.create", record))


async def destroy_vif(pool: Pool, vif: Ref) -> None:
    """Take an interface from a halted VM; gone already is fine."""
    with suppress(ObjectGone):
        await pool.call("VIF.destroy", vif)
