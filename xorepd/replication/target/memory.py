"""The memory of a source VM: a suspended VM beside each restore point, to be resumed as it was.

    source snapshot ── its memory ──► image on the target SR ─┐
    restore point ──── its disks ───► clones of them ─────────┴─► suspended VM, blocked

XAPI does not turn a halted VM into a suspended one, and does not swap the disks of a suspended one.
So the replica stays halted, and each run with memory makes one more VM after its commit. If that
fails, this restore point has no memory, and nothing else is lost.

The VM is created as a template, which cannot be resumed. When the VM is complete, its mark names
the source snapshot, and so the restore point with which it is removed; a sweep removes a VM whose
mark does not. Until then its disks and its image are staging disks, which the sweep removes one by
one; afterwards their role is `memory`, and they are removed with the VM. If a person resumes the
VM, it is theirs: no run touches it again.

Source: xapi: ocaml/xapi/xapi_vm.ml (create), xapi_vbd.ml (create), xapi_xenops.ml (resume).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import structlog

from xorepd.config.choices import SnapshotKind
from xorepd.errors import Refused, XapiFailure, XorepdError
from xorepd.ids import Ref
from xorepd.replication.context.assignment import Assignment, Pair
from xorepd.replication.context.board import DiskProgress
from xorepd.replication.deciding.modes import Full, FullReason
from xorepd.replication.deciding.vm_record import bios_strings_of, new_replica
from xorepd.replication.format.inventory import (
    Marked,
    SourceSide,
    VmSnapshot,
    disks_of,
    read_target,
)
from xorepd.replication.format.marks import (
    KEY,
    REPLICA_TAG,
    XO_KEYS_OF_POINTS,
    Mark,
    Role,
)
from xorepd.replication.format.ownership import temporary_name
from xorepd.replication.source.snapshot import HAS_MEMORY, block_migration, replica_name
from xorepd.replication.target.commit import protect
from xorepd.replication.target.interfaces import Interface
from xorepd.replication.target.suspended import sign_disk
from xorepd.replication.transfer.disks import fill
from xorepd.replication.transfer.resume_offset import Confirmations
from xorepd.replication.transfer.staging import PlannedDisk, Staged
from xorepd.state.records import MEMORY
from xorepd.xapi.records import CONTENT_ID, Vbd, Vdi
from xorepd.xapi.vdis import clone_disk, create_disk
from xorepd.xapi.vms import (
    create_disk_vbd,
    create_empty_drive,
    create_vif,
    rewrite_other_config,
)

log = structlog.get_logger(__name__)

_XO_KEYS = (*XO_KEYS_OF_POINTS, "xo:backup:sr")


# -- before a run -------------------------------------------------------------------------------


async def check_memory(a: Assignment, side: SourceSide) -> None:
    """Refuse a VM that could not be resumed on the target.

    Raises:
        Refused: why, and what to do about it.
    """
    vm = side.vm
    if a.job.snapshot is not SnapshotKind.MEMORY or vm.power_state not in HAS_MEMORY:
        return
    objection = ""
    if side.excluded:
        disk = side.excluded[0]
        objection = (
            f"all its disks are needed for that, and disk {disk.vdi.name_label} stays behind "
            f"({disk.reason}); include it"
        )
    elif (await a.pair.source.call("VM.get_record", vm.ref)).get("VTPMs"):
        objection = "it has a virtual TPM, which XAPI gives to halted VMs only; leave the VM out"
    if objection:
        raise Refused(
            f"pool {a.pair.source.name}: VM {vm.name_label} cannot be replicated with its memory: "
            f'{objection}, or set snapshot = "plain" in job {a.job.name}'
        )


# -- after its commit ---------------------------------------------------------------------------


async def carry_memory(
    a: Assignment, snapshot: VmSnapshot, interfaces: Sequence[Interface]
) -> None:
    """Make the suspended VM that goes with the restore point just committed, or say why not.

    Args:
        interfaces: those of the replica.
    """
    pair = a.pair
    image = pair.source.cache.vdis.get(snapshot.vm.suspend_vdi)
    progress = a.progress.disks[MEMORY] = DiskProgress(
        device=MEMORY,
        name=f"memory of {pair.vm.name_label}",
        virtual_size=image.virtual_size if image else 0,
        mode=MEMORY,
    )
    if image is None:
        was_there = snapshot.vm.power_state == "Suspended"
        progress.reason = "it has been removed" if was_there else "the VM was not running"
        log.info("memory.skipped", reason=progress.reason)
        return
    try:
        async with pair.source_vm.lock:
            await block_migration(pair, pair.vm)
        with pair.source_vm.reading(pair.stream.sr):
            staged = await _stage_image(pair, snapshot, image)
            without_map = replace(a, carrier=replace(a.carrier, maps=None))
            await fill(without_map, staged)  # no run asks what it holds
        await _build(pair, snapshot, staged, interfaces)
    except XorepdError as error:
        progress.reason = str(error)
        log.error("memory.not_copied", reason=str(error))  # noqa: TRY400 -- the sentence says all


async def _stage_image(pair: Pair, snapshot: VmSnapshot, image: Vdi) -> Staged:
    """Make the disk for the memory, which has no base and is sent whole each time."""
    blank = replace(_blank(pair, snapshot), role=Role.DISK, snapshot=image.uuid, device=MEMORY)
    name = f"[Importing] memory of {pair.vm.name_label}"
    blank = replace(blank, content=pair.new_content(MEMORY))
    async with create_disk(
        pair.target,
        pair.sr.ref,
        image.virtual_size,
        name,
        "",
        {KEY: blank.encode()},
        kind="suspend",
    ) as ref:
        uuid: str = await pair.target.call("VDI.get_uuid", ref)
        mark = blank.on(uuid, ref)
        signed = {KEY: mark.encode(), CONTENT_ID: mark.content}
        await rewrite_other_config(pair.target, "VDI", ref, signed)
    plan = PlannedDisk(Marked(image, mark), Full(FullReason.NEW_DISK), bootable=False, mode="RW")
    return Staged(plan, ref, uuid, mark, Confirmations(pair.target, ref, uuid))


async def _build(
    pair: Pair, snapshot: VmSnapshot, staged: Staged, interfaces: Sequence[Interface]
) -> None:
    """Put the suspended VM together from its memory and clones of the restore point's disks.

    Raises:
        Refused: the restore point is not all of the snapshot.
    """
    await pair.target.refresh()
    side = read_target(pair.target.cache, pair.stream, pair.sr.ref)
    point = next((p for p in side.points if p.mark.snapshot == snapshot.vm.uuid), None)
    if point is None or not point.contents >= snapshot.contents:
        raise Refused(
            f"pool {pair.target.name}: the restore point of VM {pair.vm.name_label} has been "
            "changed before its memory was there; the next run makes another one"
        )
    raw = await pair.source.call("VM.get_record", snapshot.vm.ref)
    blank = _blank(pair, snapshot)
    when = snapshot.vm.snapshot_time.strftime("%Y%m%dT%H%M%SZ")
    name = f"{replica_name(pair)} (memory, {when})"
    record = new_replica(
        raw, temporary_name(pair.run_id), raw["name_description"], {KEY: blank.encode()}
    )
    record |= {
        "power_state": "Suspended",
        "suspend_VDI": staged.ref,
        "last_booted_record": raw.get("last_booted_record", ""),
        "last_boot_CPU_flags": raw.get("last_boot_CPU_flags", {}),
        "tags": sorted({*record["tags"], REPLICA_TAG}),
    }
    vm = Ref(await pair.target.call("VM.create", record))
    uuid: str = await pair.target.call("VM.get_uuid", vm)
    await rewrite_other_config(pair.target, "VM", vm, {KEY: blank.on(uuid, vm).encode()})
    await pair.target.call("VM.set_name_label", vm, f"[Importing…] {name}")
    await protect(pair, vm)
    if strings := bios_strings_of(raw):
        try:
            await pair.target.call("VM.set_bios_strings", vm, strings)
        except XapiFailure as failure:
            log.warning("bios_strings.not_copied", reason=str(failure))
    disks = await _attach_disks(pair, snapshot, point, vm)
    for vbd in pair.source.cache.present(Vbd, snapshot.vm.vbds):
        if vbd.type == "CD":  # the guest knows the drive; what is in it belongs to its pool
            plugged = vbd.currently_attached
            await create_empty_drive(pair.target, vm, vbd.userdevice, attached=plugged)
    for each in interfaces:
        if each.network is not None:
            await create_vif(
                pair.target, vm, each.network, each.device, each.mac, each.mtu, {}, attached=True
            )
    await pair.target.call("VDI.set_name_label", staged.ref, f"memory of {pair.vm.name_label}")
    for disk in (*disks, (staged.ref, staged.mark)):
        await sign_disk(pair.target, disk, Role.MEMORY)
    await pair.target.call("VM.set_name_label", vm, name)
    await pair.target.call("VM.set_is_a_template", vm, False)
    whole = replace(blank.on(uuid, vm), snapshot=snapshot.vm.uuid)
    await rewrite_other_config(pair.target, "VM", vm, {KEY: whole.encode()})
    log.info("memory.copied", vm=uuid, point=point.vm.uuid)


async def _attach_disks(
    pair: Pair, snapshot: VmSnapshot, point: VmSnapshot, vm: Ref
) -> list[tuple[Ref, Mark]]:
    """Clone the disks of a restore point and attach them as the source's are; return the clones."""
    plugged = {vbd.userdevice: vbd for vbd, _ in disks_of(pair.source.cache, snapshot.vm)}
    drives = {vdi.uuid: vbd for vbd, vdi in disks_of(pair.target.cache, point.vm)}
    clones = []
    for disk in point.disks:
        if disk.mark.snapshot not in snapshot.contents:  # not of this snapshot
            continue
        device = disk.mark.device
        async with clone_disk(pair.target, pair.target.disk(disk.vdi.uuid)) as ref:
            uuid: str = await pair.target.call("VDI.get_uuid", ref)
            mark = replace(_blank(pair, snapshot).on(uuid, ref), role=Role.DISK, device=device)
            mark = replace(mark, content=disk.mark.content)
            await rewrite_other_config(pair.target, "VDI", ref, {KEY: mark.encode()}, _XO_KEYS)
        drive = drives[disk.vdi.uuid]
        await create_disk_vbd(
            pair.target,
            vm,
            ref,
            device,
            bootable=drive.bootable,
            mode=drive.mode,
            attached=device in plugged and plugged[device].currently_attached,
        )
        clones.append((ref, mark))
    return clones


def _blank(pair: Pair, snapshot: VmSnapshot) -> Mark:
    origin = snapshot.mark
    return replace(
        pair.blank(Role.MEMORY), order=origin.order, moment=origin.moment, offset=origin.offset
    )
