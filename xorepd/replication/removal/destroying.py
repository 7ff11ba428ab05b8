"""Destroy what is ours: snapshots, disks, unneeded source snapshots, data of bases.

Everything here asks `ownership` right before it destroys, by the records of that moment.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime

import structlog

from xorepd.errors import ObjectGone, XapiError
from xorepd.replication.deciding.data_destroy import is_agreed
from xorepd.replication.format.inventory import Marked, VmSnapshot
from xorepd.replication.format.marks import FOR, KEY, KEYS_OF_STAGING, Mark, Use, decode, uses_of
from xorepd.replication.format.ownership import objection, own_mark, used_by_vms
from xorepd.xapi.cache import PoolCache
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import CONTENT_ID, Vdi, Vm
from xorepd.xapi.vdis import destroy_data, destroy_disk
from xorepd.xapi.vms import destroy_vm, rewrite_other_config, update_keys

log = structlog.get_logger(__name__)

GONE_S = 5.0
"""Longest wait for the news that a disk is gone."""

NOT_AGREED = "another daemon has written on it that it needs its data"


async def destroy_group(pool: Pool, group: VmSnapshot, *, even_if_changed: bool = False) -> bool:
    """Destroy a snapshot VM of ours, then those of its disks and memory that no other VM uses.

    A disk that a VM of others uses stays until it is detached; then a sweep finds it. If one of the
    disks was written to, everything stays, because a person may need the data.

    Args:
        even_if_changed: an operator has confirmed that such data may be lost.

    Returns:
        Whether it is gone.
    """
    vms, vdis, own = pool.cache.vms, pool.cache.vdis, group.vm.ref
    now = [vdis.get(disk.vdi.ref, disk.vdi) for disk in group.disks]
    free = [vdi for vdi in now if not used_by_vms(pool.cache, vdi, but=own)]
    objections = [objection(vms.get(own, group.vm))]
    objections += [objection(vdi, even_if_changed=even_if_changed) for vdi in free]
    if why := next(filter(None, objections), ""):
        log.warning("snapshot.kept", pool=pool.name, snapshot=group.vm.uuid, reason=why)
        return False
    image = group.image
    if image is not None and not used_by_vms(pool.cache, image, but=own):
        free.append(vdis.get(image.ref, image))
    await destroy_vm(pool, own)
    for vdi in free:
        await try_destroy_disk(pool, vdi, even_if_changed=even_if_changed)
    return True


async def destroy_unsigned(pool: Pool, group: VmSnapshot) -> None:
    """Destroy a snapshot that a run took and did not sign; its name proves that it is ours.

    The disks are signed first, because nothing else identifies them once the VM record is gone.
    Their marks record what they held when they were created, as far as that is known. So a disk
    that was written to stays, as in any other snapshot of ours.
    """
    for disk in group.disks:
        await sign_disk(pool, disk.vdi, replace(group.mark, content=disk.mark.content))
    if group.image is not None:
        await sign_disk(pool, group.image, group.mark)
    signed = group.mark.on(group.vm.uuid, group.vm.ref)
    with suppress(ObjectGone):
        await rewrite_other_config(pool, "VM", group.vm.ref, {KEY: signed.encode()})
    await pool.refresh()
    marked = [
        Marked(pool.cache.vdis.get(disk.vdi.ref, disk.vdi), disk.mark) for disk in group.disks
    ]
    await destroy_group(pool, replace(group, disks=tuple(marked)))


async def sign_disk(pool: Pool, vdi: Vdi, mark: Mark) -> None:
    """Sign a disk that other evidence proves to be ours, and that is not attached for writing.

    Args:
        mark: with the content id that the disk had when it was created, if that is known;
            otherwise its present content counts.
    """
    content = mark.content or vdi.content_id or f"xorepd-{vdi.uuid}"
    keys = {KEY: replace(mark.on(vdi.uuid, vdi.ref), content=content).encode()}
    if not vdi.content_id:
        keys |= {CONTENT_ID: content}
    with suppress(ObjectGone):
        await rewrite_other_config(pool, "VDI", vdi.ref, keys, KEYS_OF_STAGING)


async def destroy_record(pool: Pool, vm: Vm) -> bool:
    """Destroy the record of a VM of ours, never its disks; log why if it stays."""
    if why := objection(pool.cache.vms.get(vm.ref, vm)):
        log.warning("vm.kept", pool=pool.name, vm=vm.uuid, reason=why)
        return False
    await destroy_vm(pool, vm.ref)
    return True


async def try_destroy_disk(pool: Pool, vdi: Vdi, *, even_if_changed: bool = False) -> bool:
    """Destroy a disk of ours, or log why it stays for the next sweep."""
    vdi = pool.cache.vdis.get(vdi.ref, vdi)
    if why := objection(vdi, even_if_changed=even_if_changed):
        log.warning("disk.kept", pool=pool.name, vdi=vdi.uuid, reason=why)
        return False
    if older := older_metadata(pool.cache, vdi):
        log.info("disk.kept", pool=pool.name, vdi=vdi.uuid, reason=f"{older.uuid} goes first")
        return False
    was_stuck = pool.is_stuck(vdi.ref)
    try:
        await destroy_disk(pool, vdi, even_if_changed=even_if_changed)
        if vdi.is_bare:  # newer ones wait for it
            await pool.cache.wait_for(lambda: vdi.ref not in pool.cache.vdis, GONE_S)
    except XapiError as error:
        tell = log.debug if was_stuck else log.warning  # it was logged before
        tell("disk.not_destroyed", pool=pool.name, vdi=vdi.uuid, error=str(error))
        return False
    return True


def older_metadata(cache: PoolCache, vdi: Vdi) -> Vdi | None:
    """Return what changed-block tracking keeps of an older snapshot of the same disk, if anything.

    Drivers of file SRs lose the older logs when a newer one is destroyed first, also the logs of
    others. So the oldest goes first. XAPI's times have whole seconds; within one, the order in our
    marks decides.

    Source: sm: libs/sm/VDI.py (delete), libs/sm/drivers/FileSR.py.
    """
    if not vdi.is_bare:
        return None
    alike = (
        other
        for other in cache.vdis.values()
        if other.is_bare and other.snapshot_of == vdi.snapshot_of and other.ref != vdi.ref
    )
    return next((other for other in alike if _age(other) < _age(vdi)), None)


def _age(vdi: Vdi) -> tuple[datetime, int]:
    mark = own_mark(vdi)
    return vdi.snapshot_time, mark.order if mark else 0


async def release(pool: Pool, what: VmSnapshot | Marked, sr: str) -> None:
    """Release a source snapshot for a target. If no other target uses it, destroy it.

    Args:
        what: a source snapshot, or a disk of one whose VM record is gone.
        sr: UUID of the target SR.
    """
    try:
        match what:
            case VmSnapshot(vm=vm):
                if (await _uses_now(pool, "VM", vm)).keys() - {sr}:
                    log.info("snapshot.released", snapshot=vm.uuid, sr=sr)
                    await _strike_off(pool, "VM", vm, sr)
                    for disk in what.disks:
                        await _strike_off(pool, "VDI", disk.vdi, sr)
                else:
                    await destroy_group(pool, what)
            case Marked(vdi=vdi):
                is_held = older_metadata(pool.cache, vdi) is not None  # then any run may take it
                if (await _uses_now(pool, "VDI", vdi)).keys() - {sr} or is_held:
                    await _strike_off(pool, "VDI", vdi, sr)
                else:
                    await try_destroy_disk(pool, vdi)
    except ObjectGone:
        log.info("snapshot.gone", sr=sr)  # another daemon or a person was faster


async def shed(pool: Pool, base: VmSnapshot | Marked) -> str:
    """Destroy the data of a base, if every target still agrees, and keep its changed-block logs.

    Returns why the data stays, in words; empty if it is gone.

    The keys are written on the disks first, because XAPI wants the snapshot's record destroyed
    before the data of its disks. If this ends early, the disks say which targets use them and that
    their data may go.
    """
    try:
        if isinstance(base, Marked):
            if not is_agreed(await _uses_now(pool, "VDI", base.vdi)):
                return NOT_AGREED
            if why := objection(base.vdi):
                return why
            return await _try_destroy_data(pool, base.vdi)
        uses = await _uses_now(pool, "VM", base.vm)
        if not is_agreed(uses):
            return NOT_AGREED
        if why := next(filter(None, (objection(disk.vdi) for disk in base.disks)), ""):
            return why
        for disk in base.disks:
            present = await _uses_now(pool, "VDI", disk.vdi)
            add = {FOR + sr: use.value for sr, use in uses.items() if present.get(sr) is not use}
            gone = [FOR + sr for sr in present.keys() - uses.keys()]
            await update_keys(pool, "VDI", disk.vdi.ref, "other_config", add, gone)
        await destroy_vm(pool, base.vm.ref)
        kept = [await _try_destroy_data(pool, disk.vdi) for disk in base.disks]
        log.info(
            "base.data_destroyed", snapshot=base.vm.uuid, disks=len(kept), destroyed=kept.count("")
        )
        return next(filter(None, kept), "")
    except ObjectGone:
        log.info("snapshot.gone")  # another daemon or a person was faster
        return ""
    except XapiError as error:  # its data is a matter of room: no reason to fail a run
        log.warning(
            "base.data_not_destroyed", pool=pool.name, taken=base.mark.moment, error=str(error)
        )
        return str(error)


async def _try_destroy_data(pool: Pool, vdi: Vdi) -> str:
    """Destroy the data of a disk, or return why it stays for the next prune."""
    was_stuck = pool.is_stuck(vdi.ref)
    try:
        await destroy_data(pool, pool.cache.vdis.get(vdi.ref, vdi))
    except XapiError as error:
        tell = log.debug if was_stuck else log.warning
        tell("base.data_not_destroyed", pool=pool.name, vdi=vdi.uuid, error=str(error))
        return str(error)
    return ""


async def say_use(pool: Pool, base: VmSnapshot | Marked, sr: str, use: Use) -> None:
    """Write what one target needs a base for; key by key, because others write on it as well."""
    kind, ref = ("VM", base.vm.ref) if isinstance(base, VmSnapshot) else ("VDI", base.vdi.ref)
    with suppress(ObjectGone):
        await update_keys(pool, kind, ref, "other_config", {FOR + sr: use.value})


async def _uses_now(pool: Pool, kind: str, what: Vm | Vdi) -> dict[str, Use]:
    """Ask the pool itself: another daemon may have written since the cache was filled."""
    present = await pool.call(f"{kind}.get_other_config", what.ref)
    mark = decode(present)
    return uses_of(present, mark) if mark is not None else {}


async def _strike_off(pool: Pool, kind: str, what: Vm | Vdi, sr: str) -> None:
    await pool.call(f"{kind}.remove_from_other_config", what.ref, FOR + sr)
    mark = decode(what.other_config)
    if mark is not None and mark.stream.sr == sr:  # of the earlier form: the mark itself says it
        plain = replace(mark, stream=mark.stream.of_source, confirmed=False)
        await rewrite_other_config(pool, kind, what.ref, {KEY: plain.encode()})
