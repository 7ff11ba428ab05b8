"""The staging disks become the replica's, and a snapshot of the replica becomes the restore point.

XAPI cannot swap several disks at once, so the replica says in its mark what is being swapped for
what before the first of them moves. The restore point's VM record, which `VM.snapshot` makes after
its disks, is the one moment that decides: recovery undoes a commit before it and finishes it after.

    mark the replica ─► swap disks, record, interfaces ─► VM.snapshot ─► sign the point ─► unmark
          └──────────── undo_commit until here ──────────────┘└──── finish_commit from here ────┘
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import structlog

from xorepd.errors import ObjectGone, XapiFailure
from xorepd.ids import Ref
from xorepd.replication.assignment import Assignment
from xorepd.replication.inventory import Group, TargetSide, disks_of, is_live, read_target
from xorepd.replication.markers import (
    BLOCK_TEXT,
    BLOCKED_ON_REPLICA,
    CONFIRMED,
    KEY,
    REPLICA_TAG,
    XO_KEYS_OF_POINTS,
    Commit,
    Mark,
    Role,
    decode,
    xo_point,
)
from xorepd.replication.preflight import Interface
from xorepd.replication.record import bios_strings_of, new_replica, other_config_of, update_replica
from xorepd.replication.snapshot import replica_name
from xorepd.replication.staging import Staged
from xorepd.replication.vtpm import carry_vtpm
from xorepd.units import format_size
from xorepd.xapi.records import Vbd, Vdi, Vif, Vm
from xorepd.xapi.vms import (
    create_disk_vbd,
    create_vif,
    destroy_vbd,
    destroy_vif,
    rewrite_other_config,
    take_snapshot,
    update_keys,
)

log = structlog.get_logger(__name__)

VIF_SOURCE = "xorepd:source"
"""On the replica's interfaces: what the source had. While it has the same, changes that somebody
made to the replica's interface stay."""


async def commit(
    a: Assignment,
    side: TargetSide,
    snapshot: Group,
    staged: Sequence[Staged],
    interfaces: Sequence[Interface],
) -> str:
    """Turn complete staging disks into a new restore point.

    Returns:
        UUID of the restore point.
    """
    raw = await a.source.call("VM.get_record", snapshot.vm.ref)
    replica = side.replica.ref if side.replica else await _create_replica(a, raw)
    uuid: str = await a.target.call("VM.get_uuid", replica)
    previous = await _previous_source(a, side)
    leaving, staying = _part_drives(a, side, {disk.mark.device for disk in staged})
    name = _point_name(a, snapshot.vm.snapshot_time)
    mark = Mark(
        role=Role.REPLICA,
        stream=a.stream,
        run=a.run_id,
        self=uuid,
        job=a.job.name,
        snapshot=snapshot.vm.uuid,
        time=snapshot.mark.time,
        commit=Commit(
            run=a.run_id,
            old={vbd.userdevice: str(vdi.uuid) for vbd, vdi in leaving if vdi is not None},
            new={disk.mark.device: disk.uuid for disk in staged},
            point=name,
        ),
    )
    await protect(a, replica)
    keys = xo_point(
        a.job.id, a.vm.uuid, snapshot.vm.snapshot_time, a.sr.uuid, copy_of=snapshot.vm.uuid
    )
    await rewrite_other_config(a.target, "VM", replica, keys | {KEY: mark.encode()})
    for vbd, _ in leaving:
        await destroy_vbd(a.target, vbd.ref)
    for disk in staged:
        await _attach(a, replica, disk)
    await update_replica(a.target, replica, raw, previous)
    await carry_vtpm(a.source, raw, a.target, replica)
    await _describe(a, replica, raw, previous, snapshot)
    await _update_interfaces(a, replica, interfaces)
    point = await take_snapshot(a.target, replica, name, without=staying)
    # From here on the restore point exists: whatever happens now, recovery finishes this.
    await a.target.refresh()
    side = read_target(a.target.cache, a.stream, a.sr.ref)
    if side.fresh is None:
        raise ObjectGone(a.target.name, "restore point", point)
    await finish_commit(a, side, side.fresh)
    return str(side.fresh.vm.uuid)


async def finish_commit(a: Assignment, side: TargetSide, point: Group) -> None:
    """Mark a restore point that was taken as what it is, and release the replica from its commit.

    The point's record is marked last: a marked point has all its disks marked.
    """
    for vbd, vdi in disks_of(a.target.cache, point.vm):
        mark = _inherited_mark(a, vdi)
        if mark is None:  # of a disk that somebody else attached: it goes when this point goes
            mark = Mark(role=Role.POINT, stream=a.stream, run=point.mark.run)
        mark = replace(mark, role=Role.POINT, self=vdi.uuid, device=vbd.userdevice)
        mark = replace(mark, onto="", base="", reason="")  # how it was sent is over
        keys = {KEY: mark.encode()}
        await rewrite_other_config(a.target, "VDI", vdi.ref, keys, [CONFIRMED])
    inherited = decode(point.vm.other_config)
    assert inherited is not None
    mark = replace(inherited, role=Role.POINT, self=point.vm.uuid, commit=None)
    await rewrite_other_config(a.target, "VM", point.vm.ref, {KEY: mark.encode()})
    assert side.replica is not None
    await _release(a, side.replica, side.mark)


def _inherited_mark(a: Assignment, vdi: Vdi) -> Mark | None:
    """Return what a restore point's disk has from the replica's own disk, if that was ours."""
    mark, origin = decode(vdi.other_config), a.target.cache.vdis.get(vdi.snapshot_of)
    if mark is None or mark.stream != a.stream:
        return None
    is_ours = mark.self == vdi.uuid or (origin is not None and mark.self == origin.uuid)
    return mark if is_ours else None


async def sign_torn(a: Assignment, torn: Iterable[Vdi]) -> None:
    """Make disks known for ours that are left of a restore point which XAPI did not finish.

    Only the commit under way tells that they are; signed, they can be destroyed at any time.
    """
    for vdi in torn:
        mark = Mark(role=Role.POINT, stream=a.stream, run=a.run_id, self=vdi.uuid)
        await rewrite_other_config(a.target, "VDI", vdi.ref, {KEY: mark.encode()})


async def undo_commit(a: Assignment, side: TargetSide, pending: Commit) -> None:
    """Put the disks back that the replica had before a commit that never came to its point."""
    assert side.replica is not None
    replica = side.replica
    attached = {(vbd.userdevice, str(vdi.uuid)): vbd for vbd, vdi in side.live}
    for (device, uuid), vbd in attached.items():
        if pending.new.get(device) == uuid:
            await destroy_vbd(a.target, vbd.ref)
    for device, old in pending.old.items():
        vdi = a.target.cache.by_uuid(Vdi, old)
        if (device, old) not in attached and vdi is not None:
            await create_disk_vbd(
                a.target, replica.ref, vdi.ref, device, bootable=device == "0", mode="RW"
            )
    mark = side.mark
    if side.points:
        newest = side.points[0]
        raw = await a.target.call("VM.get_record", newest.vm.ref)
        await update_replica(a.target, replica.ref, raw)
        await carry_vtpm(a.target, raw, a.target, replica.ref)
        await a.target.call("VM.set_name_description", replica.ref, raw["name_description"])
        mark = replace(newest.mark, role=Role.REPLICA, self=replica.uuid)
    await _release(a, replica, mark)


async def _previous_source(a: Assignment, side: TargetSide) -> Mapping[str, Any] | None:
    """Return the record of the source that the replica was last brought up to, if it is there."""
    if side.replica is None or side.mark is None:
        return None
    snapshot = a.source.cache.by_uuid(Vm, side.mark.snapshot)
    if snapshot is None:
        return None
    raw: Mapping[str, Any] = await a.source.call("VM.get_record", snapshot.ref)
    return raw


def _part_drives(
    a: Assignment, side: TargetSide, wanted: Collection[str]
) -> tuple[list[tuple[Vbd, Vdi | None]], list[Ref]]:
    """Return the replica's drives that make room for the new disks, and the disks that stay.

    Our own disks make room. A drive that somebody else gave to the replica stays with it, unless
    the source has a disk in its place.
    """
    leaving: list[tuple[Vbd, Vdi | None]] = []
    staying: list[Ref] = []
    for vbd in a.target.cache.present(Vbd, side.replica.vbds if side.replica else ()):
        vdi = None if vbd.empty else a.target.cache.vdis.get(vbd.vdi)
        is_ours = vdi is not None and is_live(vdi, a.stream)
        if vbd.userdevice in wanted or is_ours:
            leaving.append((vbd, vdi))
            if not is_ours:
                log.warning("drive.detached", device=vbd.userdevice, vdi=vdi and vdi.uuid)
        elif vdi is not None and vbd.type == "Disk":
            staying.append(vdi.ref)
    return leaving, staying


async def _create_replica(a: Assignment, raw: Mapping[str, Any]) -> Ref:
    """Create the replica: startable at no moment, and without disks as yet."""
    blank = Mark(role=Role.REPLICA, stream=a.stream, run=a.run_id, job=a.job.name)
    record = new_replica(
        raw, f"[Importing…] {replica_name(a)}", raw["name_description"], {KEY: blank.encode()}
    )
    ref = Ref(await a.target.call("VM.create", record))
    uuid: str = await a.target.call("VM.get_uuid", ref)
    await rewrite_other_config(a.target, "VM", ref, {KEY: blank.on(uuid).encode()})
    await protect(a, ref)
    await a.target.call("VM.set_is_a_template", ref, False)
    if strings := bios_strings_of(raw):
        try:
            await a.target.call("VM.set_bios_strings", ref, strings)
        except XapiFailure as failure:
            log.warning("bios_strings.not_copied", reason=str(failure))
    return ref


async def protect(a: Assignment, replica: Ref) -> None:
    """Block every way to start the replica; what is blocked already, by any text, stays so."""
    blocked = await a.target.call("VM.get_blocked_operations", replica)
    missing = {op: BLOCK_TEXT for op in BLOCKED_ON_REPLICA if op not in blocked}
    await update_keys(a.target, "VM", replica, "blocked_operations", missing)


async def _attach(a: Assignment, replica: Ref, disk: Staged) -> None:
    content = disk.plan.source.vdi
    await a.target.call("VDI.set_name_label", disk.ref, content.name_label)
    await create_disk_vbd(
        a.target,
        replica,
        disk.ref,
        disk.mark.device,
        bootable=disk.plan.bootable,
        mode=disk.plan.mode,
    )


async def _describe(
    a: Assignment,
    replica: Ref,
    raw: Mapping[str, Any],
    previous: Mapping[str, Any] | None,
    snapshot: Group,
) -> None:
    """Name, describe and tag the replica; tags and keys that others gave it, or took, stay so."""
    moved = sum(disk.moved_bytes for disk in a.progress.disks.values())
    when = snapshot.vm.snapshot_time.strftime("%Y%m%dT%H%M%SZ")
    description = (
        f"{a.vm.name_description} -- last replication: {when} {format_size(moved)} read".lstrip()
    )
    await a.target.call("VM.set_name_label", replica, replica_name(a))
    await a.target.call("VM.set_name_description", replica, description)
    present = await a.target.call("VM.get_record", replica)
    known = previous or {"other_config": {}}
    new_tags = {*raw.get("tags", ())} - {*known.get("tags", ())}
    for tag in (new_tags | {REPLICA_TAG}) - set(present["tags"]):
        await a.target.call("VM.add_tags", replica, tag)
    keys = other_config_of(raw).items() - other_config_of(known).items()
    await rewrite_other_config(a.target, "VM", replica, dict(keys))


async def _update_interfaces(a: Assignment, replica: Ref, interfaces: Sequence[Interface]) -> None:
    """Give the replica the source's interfaces, with their MACs; unchanged ones are not touched."""
    refs = await a.target.call("VM.get_VIFs", replica)
    present = {
        vif.device: vif
        for ref in refs
        for vif in [Vif.parse(Ref(ref), await a.target.call("VIF.get_record", ref))]
    }
    for wanted in interfaces:
        source = f"{wanted.mac} {wanted.source_network}"
        vif = present.pop(wanted.device, None)
        if vif is not None and vif.other_config.get(VIF_SOURCE) == source:
            continue
        if vif is not None:
            await destroy_vif(a.target, vif.ref)
        await create_vif(
            a.target,
            replica,
            wanted.network,
            wanted.device,
            wanted.mac,
            wanted.mtu,
            {VIF_SOURCE: source},
        )
    for vif in present.values():
        if VIF_SOURCE in vif.other_config:  # the source has it no more; others' own ones stay
            await destroy_vif(a.target, vif.ref)


async def _release(a: Assignment, replica: Vm, mark: Mark | None) -> None:
    """Take off the live replica what belongs to its restore point, and end the commit."""
    assert mark is not None
    for _, vdi in disks_of(a.target.cache, replica):
        if is_live(vdi, a.stream):
            gone = [*XO_KEYS_OF_POINTS, CONFIRMED]
            await rewrite_other_config(a.target, "VDI", vdi.ref, {}, gone)
    # Xen Orchestra tells a replica by its blocked start and a job id on the live VM.
    kept = {KEY: replace(mark, commit=None).encode(), "xo:backup:job": a.job.id}
    await rewrite_other_config(a.target, "VM", replica.ref, kept, XO_KEYS_OF_POINTS)


def _point_name(a: Assignment, moment: datetime) -> str:
    when = moment.strftime("%Y%m%dT%H%M%SZ")
    return f"{a.vm.name_label} - {a.job.name} / {a.job.name} {when}"
