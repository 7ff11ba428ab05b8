"""Storage migration within a pool: a VM's disks become other disks, on other SRs.

    before   VM ──── VBD ──── disk ◄─┐         VM snapshot ──── VBD ──── its disk, on SR a
                                     └─────────── snapshot_of ──────────┘

    after    the same, but disk and its snapshots are other VDIs, on SR b; the old ones are gone

VMs and VBDs stay as they are. A disk that moves gets a new UUID, and nothing of its `other_config`
goes with it: snapshots keep their `content_id`, and one key of XAPI's own goes along where the disk
is not attached. Snapshots that belong to no snapshot of the VM stay where they are. The lab copies
each disk whole.

Source: xapi: ocaml/xapi/xapi_vm_migrate.ml, storage_smapiv1_migrate.ml, storage_mux.ml
(update_snapshot_info_dest), message_forwarding.ml, xapi_host.ml (migrate_receive).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.dispatch import perform
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.storage.vdi import split
from xorepd_lab.classes.storage.vdi_copy import copy_data, move_data
from xorepd_lab.classes.vm.domain import announce, host_text
from xorepd_lab.classes.vm.migrate import send_memory, switch
from xorepd_lab.classes.vm.power import destroy_quietly, reserved
from xorepd_lab.model.failures import NULL, ApiError, incompatible_type
from xorepd_lab.model.schema import words
from xorepd_lab.rules import placement
from xorepd_lab.rules.storage_rules import features, hosts_of

TOLD = words("name_label name_description type virtual_size read_only")
"""What the storage layer is told of a disk that it is to make anew."""
SYNCHRONISED = "config-drive"
"""The one key of a disk's `other_config` that XAPI takes along, of disks that are not attached: the
others have been exchanged before it looks."""
NEEDED = {"VDI_SNAPSHOT", "VDI_MIRROR"}
"""Of both SRs."""


@dataclass(frozen=True, slots=True)
class Move:
    """A disk and where it goes."""

    vdi: str
    sr: str
    mirrored: bool
    """Whether its VM may write to it meanwhile: it is copied from a snapshot, and then the rest."""


@rpc(
    "VM.migrate_send(vm: ref VM, dest: map string string, live: bool, vdi_map: map ref VDI ref SR,"
    " vif_map: map ref VIF ref network, options: map string string,"
    " vgpu_map: map ref VGPU ref GPU_group = {})"
)
async def migrate_send(
    call: Call,
    vm: str,
    dest: dict[str, str],
    live: bool,
    vdi_map: dict[str, str],
    vif_map: dict[str, str],
    options: dict[str, str],
    vgpu_map: dict[str, str],
) -> str:
    db = call.pool.db
    source = db.get("VM", vm, "resident_on")
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "migrate_send")):
        host = _destination(call, dest, "VM.migrate_send")
        _check(call, vm, host, vdi_map, vif_map, options)
        await _send(call, vm, host, vdi_map)
    if db.get("VM", vm, "resident_on") == host:
        text = f"migrated from host '{host_text(call, source)}' to host '{host_text(call, host)}'"
        announce(call, vm, "VM_MIGRATED", text)
    return vm


@rpc(
    "VM.assert_can_migrate(vm: ref VM, dest: map string string, live: bool,"
    " vdi_map: map ref VDI ref SR, vif_map: map ref VIF ref network, options: map string string,"
    " vgpu_map: map ref VGPU ref GPU_group = {})"
)
def assert_can_migrate(
    call: Call,
    vm: str,
    dest: dict[str, str],
    live: bool,
    vdi_map: dict[str, str],
    vif_map: dict[str, str],
    options: dict[str, str],
    vgpu_map: dict[str, str],
) -> None:
    host = _destination(call, dest, "VM.assert_can_migrate")
    _check(call, vm, host, vdi_map, vif_map, options)


@rpc("VDI.pool_migrate(vdi: ref VDI, sr: ref SR, options: map string string)")
async def pool_migrate(call: Call, vdi: str, sr: str, options: dict[str, str]) -> str:
    """Move one disk of a VM, running or halted, and the disk's snapshots; return the new one."""
    db = call.pool.db
    vbds = db.get("VDI", vdi, "VBDs")
    if not vbds:
        raise ApiError("VDI_NEEDS_VM_FOR_MIGRATE", vdi)
    vbd = vbds[0]
    vm = db.get("VBD", vbd, "VM")
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "migrate_send")):
        if db.get("VDI", vdi, "type") == "cbt_metadata":
            raise incompatible_type(vdi, "cbt_metadata")
        _check_untracked(call, vdi)
        full = [each for each in db.get("VM", vm, "VBDs") if not db.get("VBD", each, "empty")]
        kept = [db.get("VBD", each, "VDI") for each in full]
        wanted = {each: str(db.get("VDI", each, "SR")) for each in kept} | {vdi: sr}
        host = _host_for(call, vm, set(wanted.values()))
        _check(call, vm, host, wanted, {}, options)
        await _send(call, vm, host, wanted)
    return str(db.get("VBD", vbd, "VDI"))


@rpc("host.migrate_receive(host: ref host, network: ref network, options: map string string)")
def migrate_receive(call: Call, host: str, network: str, options: dict[str, str]) -> dict[str, str]:
    """Return what a sender must know of the host, a session for it included."""
    pool, db = call.pool, call.pool.db
    db.row("host", host)
    pool.life.check_reachable(host)
    pifs = [pif for pif in db.get("network", network, "PIFs") if db.get("PIF", pif, "host") == host]
    if not pifs:
        raise ApiError("HOST_CANNOT_ATTACH_NETWORK", host, network)
    address = db.get("PIF", pifs[0], "IP")
    if not address:
        raise ApiError("INTERFACE_HAS_NO_IP", pifs[0])
    session = pool.sessions.open_like(call.session, host)
    return {
        "SM": f"http://{address}/services/SM?session_id={session}",
        "host": host,
        "xenops": f"http://{address}/services/xenops?session_id={session}",
        "session_id": session,
        "master": f"http://{pool.address(pool.master)}/",
    }


# -- what stands in the way ------------------------------------------------------------------------


def _destination(call: Call, dest: Mapping[str, str], method: str) -> str:
    """Return the host that a client got ready; the lab moves nothing to another pool."""
    host = dest.get("host", NULL)
    if not call.pool.db.exists("host", host):
        raise ApiError("MESSAGE_METHOD_UNKNOWN", method)
    call.pool.sessions.check(dest.get("session_id", NULL))
    return host


def _host_for(call: Call, vm: str, srs: set[str]) -> str:
    """Return a host that sees all SRs: rather the VM's, or the master."""
    db = call.pool.db
    able = [host for host in db.refs("host") if all(host in hosts_of(db, sr) for sr in srs)]
    if not able:
        raise ApiError("NO_HOSTS_AVAILABLE")
    here = db.get("VM", vm, "resident_on")
    return min(able, key=lambda host: (host != here, host != call.pool.master))


def _check(
    call: Call,
    vm: str,
    host: str,
    wanted: Mapping[str, str],
    vif_map: Mapping[str, str],
    options: Mapping[str, str],
) -> None:
    db = call.pool.db
    if options.get("copy") == "true":
        text = "Copy mode is disallowed on intra pool storage migration, try efficient alternatives"
        raise ApiError("OPERATION_NOT_ALLOWED", f"{text}, for example, VM.copy/clone.")
    for vdi in _disks(call, vm):
        if vdi not in wanted:
            raise ApiError("VDI_NOT_IN_MAP", vdi)
    for vdi, sr in wanted.items():
        here = db.get("VDI", vdi, "SR")
        if here != sr:
            _check_features(call, here)
            _check_features(call, sr)
    placement.check_host(db, vm, host, memory=_is_live(call, vm), storage=False)
    if vif_map:
        text = "VIF mapping is not allowed for intra-pool migration"
        raise ApiError("OPERATION_NOT_ALLOWED", f"{text} -all VIFs must be on the same network")
    for vdi, sr in wanted.items():
        if host not in hosts_of(db, sr):
            raise ApiError("VM_REQUIRES_SR", vm, sr)
        if db.get("VDI", vdi, "SR") != sr:
            _check_untracked(call, vdi)


def _check_features(call: Call, sr: str) -> None:
    if NEEDED - features(call.pool.db, sr).keys():
        raise ApiError("SR_DOES_NOT_SUPPORT_MIGRATION", sr)


def _check_untracked(call: Call, vdi: str) -> None:
    if call.pool.db.get("VDI", vdi, "cbt_enabled"):
        raise ApiError("VDI_CBT_ENABLED", vdi)


# -- the work --------------------------------------------------------------------------------------


async def _send(call: Call, vm: str, host: str, wanted: Mapping[str, str]) -> None:
    moves = _moves(call, vm, host, wanted)
    for vbd in _discs_to_eject(call, vm, wanted):
        await perform(call, "VBD.eject", vbd)
    new: dict[str, str] = {}
    bases: dict[str, str] = {}
    try:
        for done, move in enumerate(moves):
            span = (done / (len(moves) + 1), 1 / (len(moves) + 1))
            target = new[move.vdi] = await perform(call, "VDI.create", _told(call, move))
            if move.mirrored:
                now = call.pool.clock.now()
                base = bases[move.vdi] = await split(
                    call, move.vdi, "snapshot", TOLD, is_a_snapshot=True, snapshot_time=now
                )
                await copy_data(call, base, target, None, span)
            else:
                content = _content_id(call, move.vdi)
                await copy_data(call, move.vdi, target, None, span)
                new[move.vdi] = await _as_snapshot(call, target, content)
        if _is_live(call, vm):
            async with reserved(call, vm, host, "vm_migrate"):
                await send_memory(call)
                await _change_over(call, vm, host, new, bases)
        else:
            await _change_over(call, vm, host, new, bases)
    except Exception:
        for made in (*bases.values(), *new.values()):
            await destroy_quietly(call, made)
        call.pool.tasks.check_cancelled(call.task)
        raise
    for old in (*bases.values(), *new):
        await perform(call, "VDI.destroy", old)


async def _change_over(
    call: Call, vm: str, host: str, new: Mapping[str, str], bases: Mapping[str, str]
) -> None:
    """Bring the copies up to date while the guest stands still, and let the VM have them."""
    db = call.pool.db
    snapshots = db.get("VM", vm, "snapshots")
    own = _disks(call, vm)
    async with call.pool.guest_still(vm):
        for vdi, base in bases.items():
            await move_data(call, vdi, new[vdi], base)
        if _is_live(call, vm):
            switch(call, vm, host, new)
        for each in (vm, *snapshots):
            _remap(call, each, new)
    for old in set(new) - set(own):
        of = db.get("VDI", old, "snapshot_of")
        db.set(
            "VDI",
            new[old],
            snapshot_of=new.get(of, of) if of in own else NULL,
            snapshot_time=db.get("VDI", old, "snapshot_time"),
        )
    call.pool.operations.refresh_vm(vm)


def _moves(call: Call, vm: str, host: str, wanted: Mapping[str, str]) -> list[Move]:
    """Return what has to be copied, small and old disks first: of the VM and of its snapshots.

    Raises:
        ApiError: VDI_NOT_IN_MAP for a disk with nowhere to go, VDI_CBT_ENABLED, and
            VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION.
    """
    db = call.pool.db
    own = _disks(call, vm)
    for vdi in own:
        if db.get("VDI", vdi, "on_boot") == "reset":
            raise ApiError("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION", vdi)
    targets = dict(wanted)
    images = _images(call, vm, host)
    followers = [
        vdi for snapshot in db.get("VM", vm, "snapshots") for vdi in _disks(call, snapshot)
    ]
    for vdi in (*images, *followers):
        if vdi not in targets:
            targets[vdi] = _place_of(call, vdi, targets, host, is_image=vdi in images)
    found = []
    for vdi in dict.fromkeys((*own, *images, *followers)):
        if targets[vdi] != db.get("VDI", vdi, "SR"):
            _check_untracked(call, vdi)
            found.append(Move(vdi, targets[vdi], own.get(vdi) == "RW"))

    def order(move: Move) -> tuple[int, str]:
        record = db.record("VDI", move.vdi)
        return record["virtual_size"], record["snapshot_time"]

    return sorted(found, key=order)


def _place_of(call: Call, vdi: str, targets: Mapping[str, str], host: str, is_image: bool) -> str:
    """Return where a disk goes that the client said nothing of: where the disk goes it is of."""
    db = call.pool.db
    followed = targets.get(db.get("VDI", vdi, "snapshot_of"))
    if followed is not None:
        return followed
    pool = db.record("pool", next(db.select("pool")))
    for_images = [pool["suspend_image_SR"], db.get("host", host, "suspend_image_sr")]
    for sr in (*(for_images if is_image else ()), pool["default_SR"]):
        if db.exists("SR", sr):
            return str(sr)
    raise ApiError("VDI_NOT_IN_MAP", vdi)


def _disks(call: Call, vm: str) -> dict[str, str]:
    """Return the VDIs of a VM's disks, each with the mode of its VBD."""
    vbds = [call.pool.db.record("VBD", vbd) for vbd in call.pool.db.get("VM", vm, "VBDs")]
    return {vbd["VDI"]: vbd["mode"] for vbd in vbds if vbd["type"] != "CD" and not vbd["empty"]}


def _images(call: Call, vm: str, host: str) -> list[str]:
    """Return the memory images, of the VM and its snapshots, that the host cannot see."""
    db = call.pool.db
    records = [db.record("VM", each) for each in (vm, *db.get("VM", vm, "snapshots"))]
    images = [each["suspend_VDI"] for each in records if each["power_state"] == "Suspended"]
    return [vdi for vdi in images if host not in hosts_of(db, db.get("VDI", vdi, "SR"))]


def _discs_to_eject(call: Call, vm: str, wanted: Mapping[str, str]) -> list[str]:
    """Return the drives whose disc the client did not say to leave where it is."""
    db = call.pool.db
    if db.get("VM", vm, "power_state") == "Suspended":
        return []
    drives = [vbd for vbd in db.get("VM", vm, "VBDs") if db.get("VBD", vbd, "type") == "CD"]
    full = {vbd: db.get("VBD", vbd, "VDI") for vbd in drives if not db.get("VBD", vbd, "empty")}
    return [vbd for vbd, vdi in full.items() if wanted.get(vdi) != db.get("VDI", vdi, "SR")]


def _told(call: Call, move: Move) -> dict[str, Any]:
    db = call.pool.db
    record = db.record("VDI", move.vdi)
    told = {name: record[name] for name in TOLD}
    told["tags"] = record["tags"] if move.mirrored and db.release != "8.3" else []
    return {**told, "SR": move.sr, "sharable": False, "other_config": {}}


def _content_id(call: Call, vdi: str) -> str:
    """Return what stands for a disk's content; for want of it, the storage layer takes its UUID."""
    record = call.pool.db.record("VDI", vdi)
    return str(record["other_config"].get("content_id", record["uuid"]))


async def _as_snapshot(call: Call, copy: str, content: str) -> str:
    """Make a snapshot of what was copied, and of nothing else."""
    snapshot = str(await perform(call, "VDI.snapshot", copy))
    await perform(call, "VDI.destroy", copy)
    call.pool.db.set("VDI", snapshot, other_config={"content_id": content})
    return snapshot


def _remap(call: Call, vm: str, new: Mapping[str, str]) -> None:
    """Let a VM or a snapshot of it have the new disks."""
    db = call.pool.db
    for vbd in db.get("VM", vm, "VBDs"):
        old = db.get("VBD", vbd, "VDI")
        if old not in new:
            continue
        db.set("VBD", vbd, VDI=new[old])
        kept = db.get("VDI", old, "other_config").get(SYNCHRONISED)
        if kept is not None:
            db.put("VDI", new[old], "other_config", SYNCHRONISED, kept)
        call.pool.operations.refresh_vbd(vbd)
    image = db.get("VM", vm, "suspend_VDI")
    if image in new:
        db.set("VM", vm, suspend_VDI=new[image])


def _is_live(call: Call, vm: str) -> bool:
    return call.pool.db.get("VM", vm, "power_state") in ("Running", "Paused")
