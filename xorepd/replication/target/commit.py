"""The staging disks become the replica's, and a snapshot of the replica becomes the restore point.

XAPI cannot swap several disks at once, so the replica says in its mark what is being swapped for
what before the first of them moves. The restore point's VM record, which `VM.snapshot` makes after
its disks, is the one moment that decides: recovery undoes a commit before it and finishes it after.

    mark the replica ─► swap disks, record, interfaces ─► VM.snapshot ─► sign the point ─► unmark
          └──────────── undo_commit until here ──────────────┘└──── finish_commit from here ────┘

The snapshot is taken under a name that only our own call gives, and gets its own when it is signed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import structlog

from xorepd.errors import WrittenTo, XapiFailure
from xorepd.ids import Ref
from xorepd.replication.context.assignment import Pair
from xorepd.replication.context.board import Progress
from xorepd.replication.deciding.vm_record import bios_strings_of, new_replica, other_config_of
from xorepd.replication.format.current import KEY as CURRENT
from xorepd.replication.format.current import Current, State, own_current
from xorepd.replication.format.inventory import (
    TargetSide,
    VmSnapshot,
    disks_of,
    is_live,
    read_target,
)
from xorepd.replication.format.marks import (
    BLOCK_TEXT,
    BLOCKED_ON_REPLICA,
    DISPLACED,
    KEY,
    KEYS_OF_STAGING,
    REPLICA_TAG,
    XO_KEYS_OF_POINTS,
    Commit,
    Mark,
    Role,
    decode,
    displaced_text,
    xo_point,
)
from xorepd.replication.format.ownership import Content, content_of, own_mark, temporary_name
from xorepd.replication.source.snapshot import replica_name
from xorepd.replication.target.interfaces import Interface, update_interfaces
from xorepd.replication.target.vm_record import carry_vtpm, update_replica
from xorepd.replication.transfer.staging import Staged
from xorepd.units import format_size
from xorepd.xapi.records import CONTENT_ID, Vbd, Vdi, Vm
from xorepd.xapi.vms import (
    create_disk_vbd,
    destroy_vbd,
    rewrite_other_config,
    take_snapshot,
    update_keys,
)

log = structlog.get_logger(__name__)


async def commit(
    pair: Pair,
    progress: Progress,
    side: TargetSide,
    snapshot: VmSnapshot,
    staged: Sequence[Staged],
    interfaces: Sequence[Interface],
) -> str:
    """Turn complete staging disks into a new restore point.

    Returns:
        UUID of the restore point.

    Raises:
        WrittenTo: something wrote to one of the disks on either side meanwhile.
    """
    await _check_contents(pair, snapshot, staged)
    raw = await pair.source.call("VM.get_record", snapshot.vm.ref)
    replica = side.replica.ref if side.replica else await _create_replica(pair, raw)
    uuid: str = await pair.target.call("VM.get_uuid", replica)
    previous = await _previous_source(pair, side)
    leaving, staying = _part_drives(pair, side, {disk.mark.device for disk in staged})
    name = temporary_name(pair.run_id)
    new = {disk.mark.device: disk.uuid for disk in staged}
    mark = replace(
        pair.blank(Role.REPLICA).on(uuid, replica),
        snapshot=snapshot.vm.uuid,
        order=snapshot.mark.order,
        moment=snapshot.mark.moment,
        offset=snapshot.mark.offset,
        disks=new,
        commit=Commit(
            run=pair.run_id,
            old={vbd.userdevice: str(vdi.uuid) for vbd, vdi in leaving if vdi is not None},
            new=new,
            point=name,
            title=_point_name(pair, snapshot.vm.snapshot_time),
        ),
    )
    standby = Current(
        pair.current.lineage,
        pair.current.epoch,
        State.STANDBY,
        uuid,
        peer=pair.vm.uuid,
        since=pair.clock().isoformat(timespec="seconds"),
        by=pair.run_id,
    )
    await protect(pair, replica)
    keys = xo_point(
        pair.job_id,
        pair.vm.uuid,
        snapshot.vm.snapshot_time,
        pair.sr.uuid,
        copy_of=snapshot.vm.uuid,
    )
    if side.replica is None or own_current(side.replica) is None:
        keys |= {CURRENT: standby.encode()}
    await rewrite_other_config(pair.target, "VM", replica, keys | {KEY: mark.encode()})
    for vbd, vdi in leaving:
        if vdi is not None and not is_live(vdi, pair.stream):
            await _note_displaced(pair, vbd, vdi)
        await destroy_vbd(pair.target, vbd.ref)
    for disk in staged:
        await _attach(pair, replica, disk)
    await update_replica(pair.target, replica, raw, previous)
    await carry_vtpm(pair.source, raw, pair.target, replica)
    await _describe(pair, progress, replica, raw, previous, snapshot)
    progress.remarks += await update_interfaces(pair, replica, interfaces)
    began = pair.clock()
    point = await take_snapshot(pair.target, replica, name, without=staying)
    ended = pair.clock()
    # From here on the restore point exists: whatever happens now, recovery finishes this.
    await pair.target.refresh()
    side = read_target(pair.target.cache, pair.stream, pair.sr.ref)
    if side.fresh is None:
        if point in pair.target.cache.vms:
            raise WrittenTo(pair.target.name, f"replica {replica_name(pair)}", uuid)
        raise pair.target.gone("restore point", point)
    pair.target.clock.compare(side.fresh.vm.snapshot_time, began, ended)
    await finish_commit(pair, side, side.fresh)
    return str(side.fresh.vm.uuid)


async def finish_commit(pair: Pair, side: TargetSide, point: VmSnapshot) -> None:
    """Mark a restore point that was taken as what it is, and release the replica from its commit.

    The point's record is marked last: a marked point has all its disks marked.
    """
    disks = {}
    for vbd, vdi in disks_of(pair.target.cache, point.vm):
        mark = _inherited_mark(pair, vdi)
        if mark is None:  # of a disk that others attached: it goes when this point goes
            mark = Mark(role=Role.POINT, stream=pair.stream, run=point.mark.run)
        else:
            disks[vbd.userdevice] = str(vdi.uuid)
        content = mark.content or vdi.content_id or f"xorepd-{vdi.uuid}"
        mark = replace(mark, role=Role.POINT, device=vbd.userdevice, content=content)
        mark = replace(mark, onto="", base="", reason="")  # how it was sent is over
        keys = {KEY: mark.on(vdi.uuid, vdi.ref).encode()}
        if not vdi.content_id:
            keys |= {CONTENT_ID: content}
        await rewrite_other_config(pair.target, "VDI", vdi.ref, keys, KEYS_OF_STAGING)
    inherited = decode(point.vm.other_config)
    assert inherited is not None
    mark = replace(
        inherited.on(point.vm.uuid, point.vm.ref),
        role=Role.POINT,
        commit=None,
        arrived=point.vm.snapshot_time.isoformat(),
        disks=disks,
    )
    await rewrite_other_config(pair.target, "VM", point.vm.ref, {KEY: mark.encode()}, [CURRENT])
    assert side.replica is not None
    assert side.mark is not None
    if (commit := side.mark.commit) is not None and commit.title:
        await pair.target.call("VM.set_name_label", point.vm.ref, commit.title)
    await _release(pair, side.replica, side.mark)


async def _check_contents(pair: Pair, snapshot: VmSnapshot, staged: Sequence[Staged]) -> None:
    """Make sure that the disks on both sides hold what was read and written, and nothing else.

    Raises:
        WrittenTo: one of them does not.
    """
    await pair.target.refresh()
    for disk in staged:
        vdi = pair.target.cache.vdis.get(disk.ref)
        if vdi is not None and content_of(vdi, disk.mark) is not Content.PROVEN:
            raise WrittenTo(pair.target.name, f"staging disk {vdi.name_label}", vdi.uuid)
    for marked in snapshot.disks:
        vdi = pair.source.cache.vdis.get(marked.vdi.ref)
        mark = own_mark(vdi) if vdi is not None else None
        if vdi is not None and mark and content_of(vdi, mark) is Content.CHANGED:
            raise WrittenTo(pair.source.name, f"snapshot of disk {vdi.name_label}", vdi.uuid)


def _inherited_mark(pair: Pair, vdi: Vdi) -> Mark | None:
    """Return what a restore point's disk has from the replica's own disk, if that was ours."""
    mark, origin = decode(vdi.other_config), pair.target.cache.vdis.get(vdi.snapshot_of)
    if mark is None or mark.stream != pair.stream:
        return None
    is_ours = own_mark(vdi) or (origin is not None and mark.self == origin.uuid)
    return mark if is_ours else None


async def undo_commit(pair: Pair, side: TargetSide, pending: Commit) -> None:
    """Put the disks back that the replica had before a commit that never came to its point."""
    assert side.replica is not None
    replica = side.replica
    attached = {(vbd.userdevice, str(vdi.uuid)): vbd for vbd, vdi in side.live}
    ours = {*pending.new.values(), *pending.old.values()}
    for (device, uuid), vbd in attached.items():
        if uuid in ours and pending.old.get(device) != uuid:  # people may have moved it
            await destroy_vbd(pair.target, vbd.ref)
    for device, old in pending.old.items():
        vdi = pair.target.cache.by_uuid(Vdi, old)
        if (device, old) not in attached and vdi is not None:
            await create_disk_vbd(
                pair.target, replica.ref, vdi.ref, device, bootable=device == "0", mode="RW"
            )
        if vdi is not None and DISPLACED in vdi.other_config:
            await update_keys(pair.target, "VDI", vdi.ref, "other_config", {}, [DISPLACED])
    assert side.mark is not None
    mark = replace(side.mark, disks=pending.old)
    if side.points:
        newest = side.points[0]
        raw = await pair.target.call("VM.get_record", newest.vm.ref)
        await update_replica(pair.target, replica.ref, raw)
        await carry_vtpm(pair.target, raw, pair.target, replica.ref)
        await pair.target.call("VM.set_name_description", replica.ref, raw["name_description"])
        mark = replace(newest.mark.on(replica.uuid, replica.ref), role=Role.REPLICA, arrived="")
        mark = replace(mark, disks=pending.old)
    await _release(pair, replica, mark)


async def cancel_commit(pair: Pair, side: TargetSide) -> None:
    """End a commit that has swapped nothing yet; the replica may be running by now."""
    assert side.replica is not None
    assert side.mark is not None
    assert side.mark.commit is not None
    mark = replace(side.mark, disks=side.mark.commit.old)
    if side.points:
        newest = side.points[0].mark.on(side.replica.uuid, side.replica.ref)
        mark = replace(newest, role=Role.REPLICA, arrived="", disks=side.mark.commit.old)
    await _release(pair, side.replica, mark)


async def _previous_source(pair: Pair, side: TargetSide) -> Mapping[str, Any] | None:
    """Return the record of the source that the replica was last brought up to, if it is there."""
    if side.replica is None or side.mark is None:
        return None
    snapshot = pair.source.cache.by_uuid(Vm, side.mark.snapshot)
    if snapshot is None:
        return None
    raw: Mapping[str, Any] = await pair.source.call("VM.get_record", snapshot.ref)
    return raw


def _part_drives(
    pair: Pair, side: TargetSide, wanted: Collection[str]
) -> tuple[list[tuple[Vbd, Vdi | None]], list[Ref]]:
    """Return the replica's drives that make room for the new disks, and the disks that stay.

    Our own disks make room. A drive that others gave to the replica stays, unless the source
    has a disk at its device.
    """
    leaving: list[tuple[Vbd, Vdi | None]] = []
    staying: list[Ref] = []
    for vbd in pair.target.cache.present(Vbd, side.replica.vbds if side.replica else ()):
        vdi = None if vbd.empty else pair.target.cache.vdis.get(vbd.vdi)
        is_ours = vdi is not None and is_live(vdi, pair.stream)
        if vbd.userdevice in wanted or is_ours:
            leaving.append((vbd, vdi))
        elif vdi is not None and vbd.type == "Disk":
            staying.append(vdi.ref)
    return leaving, staying


async def _note_displaced(pair: Pair, vbd: Vbd, vdi: Vdi) -> None:
    """Write on a disk of others that it makes room: soon it may be in no VM."""
    log.warning("disk.displaced", device=vbd.userdevice, vdi=vdi.uuid, name=vdi.name_label)
    noted = {DISPLACED: displaced_text(vdi.uuid, vbd.userdevice)}
    await update_keys(pair.target, "VDI", vdi.ref, "other_config", noted)


async def _create_replica(pair: Pair, raw: Mapping[str, Any]) -> Ref:
    """Create the replica: startable at no moment, and without disks as yet."""
    blank = pair.blank(Role.REPLICA)
    record = new_replica(
        raw, temporary_name(pair.run_id), raw["name_description"], {KEY: blank.encode()}
    )
    ref = Ref(await pair.target.call("VM.create", record))
    uuid: str = await pair.target.call("VM.get_uuid", ref)
    await rewrite_other_config(pair.target, "VM", ref, {KEY: blank.on(uuid, ref).encode()})
    await pair.target.call("VM.set_name_label", ref, f"[Importing…] {replica_name(pair)}")
    await protect(pair, ref)
    await pair.target.call("VM.set_is_a_template", ref, False)
    if strings := bios_strings_of(raw):
        try:
            await pair.target.call("VM.set_bios_strings", ref, strings)
        except XapiFailure as failure:
            log.warning("bios_strings.not_copied", reason=str(failure))
    return ref


async def protect(pair: Pair, replica: Ref) -> None:
    """Block every way to start the replica; what is blocked already, by any text, stays so."""
    blocked = await pair.target.call("VM.get_blocked_operations", replica)
    missing = {op: BLOCK_TEXT for op in BLOCKED_ON_REPLICA if op not in blocked}
    await update_keys(pair.target, "VM", replica, "blocked_operations", missing)


async def _attach(pair: Pair, replica: Ref, disk: Staged) -> None:
    content = disk.plan.source.vdi
    await pair.target.call("VDI.set_name_label", disk.ref, content.name_label)
    await create_disk_vbd(
        pair.target,
        replica,
        disk.ref,
        disk.mark.device,
        bootable=disk.plan.bootable,
        mode=disk.plan.mode,
    )


async def _describe(
    pair: Pair,
    progress: Progress,
    replica: Ref,
    raw: Mapping[str, Any],
    previous: Mapping[str, Any] | None,
    snapshot: VmSnapshot,
) -> None:
    """Name, describe and tag the replica; tags and keys that others gave it, or took, stay so."""
    moved = sum(disk.read_bytes for disk in progress.disks.values())
    when = snapshot.vm.snapshot_time.strftime("%Y%m%dT%H%M%SZ")
    description = (
        f"{pair.vm.name_description} -- last replication: {when} {format_size(moved)} read".lstrip()
    )
    await pair.target.call("VM.set_name_label", replica, replica_name(pair))
    await pair.target.call("VM.set_name_description", replica, description)
    present = await pair.target.call("VM.get_record", replica)
    known = previous or {"other_config": {}}
    new_tags = {*raw.get("tags", ())} - {*known.get("tags", ())}
    for tag in (new_tags | {REPLICA_TAG}) - set(present["tags"]):
        await pair.target.call("VM.add_tags", replica, tag)
    keys = other_config_of(raw).items() - other_config_of(known).items()
    await rewrite_other_config(pair.target, "VM", replica, dict(keys))


async def _release(pair: Pair, replica: Vm, mark: Mark | None) -> None:
    """Take off the live replica what belongs to its restore point, and end the commit."""
    assert mark is not None
    for _, vdi in disks_of(pair.target.cache, replica):
        if is_live(vdi, pair.stream):
            gone = [*XO_KEYS_OF_POINTS, *KEYS_OF_STAGING]
            await rewrite_other_config(pair.target, "VDI", vdi.ref, {}, gone)
    # Xen Orchestra tells a replica by its blocked start and a job id on the live VM.
    kept = {KEY: replace(mark, commit=None).encode(), "xo:backup:job": pair.job_id}
    await rewrite_other_config(pair.target, "VM", replica.ref, kept, XO_KEYS_OF_POINTS)


def _point_name(pair: Pair, moment: datetime) -> str:
    when = moment.strftime("%Y%m%dT%H%M%SZ")
    return f"{pair.vm.name_label} - {pair.job} / {pair.job} {when}"
