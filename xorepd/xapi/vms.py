"""The XAPI calls on VMs, with names from the view of an operator."""

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
        without: Disks to leave out. Old hosts that cannot leave them out include them.
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

    A running VM stands still meanwhile: XAPI suspends it, takes the snapshot, and resumes it.
    """
    return Ref(await pool.run_task("VM.checkpoint", vm, name))


async def destroy_vm(pool: Pool, vm: Ref) -> None:
    """Destroy the record of a VM with its VBDs and VIFs, if it still exists; never its disks."""
    with suppress(ObjectGone):
        await pool.run_task("VM.destroy", vm)


async def update_keys(
    pool: Pool, kind: str, ref: Ref, field: str, add: Mapping[str, str], remove: Iterable[str] = ()
) -> None:
    """Set and remove keys of a map that others write to as well. Other keys stay unchanged.

    Args:
        kind: Class of the object, such as `VM`.
        field: The map, such as `other_config` or `blocked_operations`.
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
                break  # do not remove it even for a moment: the object may be copied right now
            await pool.call(f"{kind}.remove_from_{field}", ref, key)


async def rewrite_other_config(
    pool: Pool, kind: str, ref: Ref, add: Mapping[str, str], remove: Iterable[str] = ()
) -> dict[str, str]:
    """Set and remove keys of `other_config` in one step, on an object of ours.

    `update_keys` removes a key before it sets it again. A crash between the two would cost an
    object its mark. This function replaces the whole map instead. Do not use it on objects of
    others: a key that another client sets at the same time is lost.

    Returns:
        The map as it was.
    """
    present: dict[str, str] = await pool.call(f"{kind}.get_other_config", ref)
    removed = set(remove)
    wanted = {key: value for key, value in present.items() if key not in removed} | dict(add)
    if wanted != present:
        await pool.call(f"{kind}.set_other_config", ref, wanted)
    return present


async def create_disk_vbd(
    pool: Pool, vm: Ref, vdi: Ref, device: str, *, bootable: bool, mode: str, attached: bool = False
) -> Ref:
    """Attach a disk to a VM that does not run.

    Args:
        attached: Whether the guest has the disk plugged. It matters only for a suspended VM, which
            resumes with exactly these disks.
    """
    drive = {"VDI": vdi, "bootable": bootable, "mode": mode, "type": "Disk", "empty": False}
    return await _create_vbd(pool, vm, device, drive, attached=attached)


async def create_empty_drive(pool: Pool, vm: Ref, device: str, *, attached: bool) -> Ref:
    """Add an empty CD drive to a VM that does not run; `attached` as for a disk."""
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
    """Detach a disk from a halted VM, if the VBD still exists."""
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
    """Add a network interface to a VM; `attached` as for a disk."""
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
    """Remove a network interface from a halted VM, if it still exists."""
    with suppress(ObjectGone):
        await pool.call("VIF.destroy", vif)
