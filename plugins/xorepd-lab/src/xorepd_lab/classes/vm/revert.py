"""VM.revert: a VM becomes what it was when a snapshot of it was taken.

What the VM has now goes first, to make room; then the snapshot's disks are cloned. From then on
the disks are others than before: new UUIDs, no changed-block tracking, and every snapshot of an old
disk becomes one of the new disk.

Source: xapi: ocaml/xapi/xapi_vm_snapshot.ml, message_forwarding.ml, xapi_vm.ml.
"""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.dispatch import perform
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.devices import vtpm as vtpms
from xorepd_lab.classes.vm.copies import (
    copy_metrics,
    copy_vbd,
    copy_vif,
    destroy_disks,
    fresh_generation_id,
    new_disks,
    positions,
)
from xorepd_lab.classes.vm.domain import announce
from xorepd_lab.guests import agent as guest_agent
from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.model.schema import words
from xorepd_lab.rules.placement import is_live
from xorepd_lab.rules.storage_rules import hosts_of
from xorepd_lab.wire.snapshot_text import load_record

KEPT = words(
    "uuid suspend_VDI power_state parent current_operations allowed_operations metrics"
    " guest_metrics resident_on domid protection_policy snapshot_schedule"
    " scheduled_to_be_resident_on snapshots"
    " tags affinity groups consoles VBDs VIFs VGPUs VUSBs VTPMs attached_PCIs children"
    " is_snapshot_from_vmpp crash_dumps blobs"
)
"""What a revert leaves as it is, or sets in another way."""
TOLD_AS_THEY_ARE = ("SR_BACKEND_FAILURE_44", "SR_BACKEND_FAILURE_109", "VDI_INCOMPATIBLE_TYPE")


@rpc("VM.revert(snapshot: ref VM)")
async def revert(call: Call, snapshot: str) -> None:
    db, hold = call.pool.db, call.pool.operations.hold
    vm = db.get("VM", snapshot, "snapshot_of")
    if not db.exists("VM", vm):
        vm = _recreate_vm(call, snapshot, vm)
    async with (
        hold(call.task, Claim("VM", snapshot, "revert")),
        hold(call.task, Claim("VM", vm, "reverting")),
    ):
        _check_image(call, snapshot)
        if db.get("VM", vm, "power_state") != "Halted":
            await perform(call, "VM.hard_shutdown", vm)
        db.set("VM", vm, **_fields(call, snapshot))
        call.pool.tasks.progress(call.task, 0.1)
        await _restore(call, snapshot, vm)
    record = db.record("VM", snapshot)
    text = f"reverted to snapshot: {record['name_label']} (uuid {record['uuid']})"
    announce(call, vm, "VM_SNAPSHOT_REVERTED", text)


async def _restore(call: Call, snapshot: str, vm: str) -> None:
    """Replace disks, devices and reports; a VM for which that fails is left halted.

    Raises:
        ApiError: VM_REVERT_FAILED [snapshot, vm], whatever it was but for three exceptions.
    """
    db = call.pool.db
    state = db.get("VM", snapshot, "power_state")
    try:
        await _replace_disks(call, snapshot, vm)
        _replace_devices(call, snapshot, vm)
    except ApiError as error:
        db.set("VM", vm, power_state="Halted")
        if error.code in TOLD_AS_THEY_ARE:
            raise
        raise ApiError("VM_REVERT_FAILED", snapshot, vm) from error
    db.set("VM", vm, parent=snapshot, power_state=state)
    if state == "Halted":
        for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs")):
            for device in db.get("VM", vm, field):
                db.set(cls, device, currently_attached=False)
    call.pool.operations.refresh_vm(vm)


async def _replace_disks(call: Call, snapshot: str, vm: str) -> None:
    """Destroy the VM's disks that the snapshot has, and clone the snapshot's."""
    db, tasks = call.pool.db, call.pool.tasks
    ours = {vbd: db.get("VBD", vbd, "VDI") for vbd in positions(db, vm)}
    theirs = {vbd: db.get("VBD", vbd, "VDI") for vbd in positions(db, snapshot)}
    sources = {vdi: db.get("VDI", vdi, "snapshot_of") for vdi in theirs.values() if vdi != NULL}
    cds = {vbd for vbd in (*ours, *theirs) if db.get("VBD", vbd, "type") == "CD"}
    doomed = {vdi for vbd, vdi in ours.items() if vbd not in cds and vdi in sources.values()}
    # Disks that the snapshot does not know are left, attached to nothing.
    for vbd in ours:
        await perform(call, "VBD.destroy", vbd)
    for vdi in (*doomed, db.get("VM", vm, "suspend_VDI")):
        if db.exists("VDI", vdi) and not _is_iso(call, vdi):
            await perform(call, "VDI.destroy", vdi)
    tasks.progress(call.task, 0.2)
    disks = await new_disks(call, list(theirs), "clone")
    tasks.progress(call.task, 0.5)
    try:
        for vbd, vdi in disks.items():
            if vbd not in cds:
                _repoint(call, sources[theirs[vbd]], vdi)
        image = db.get("VM", snapshot, "suspend_VDI")
        memory = NULL if image == NULL else await perform(call, "VDI.clone", image)
        tasks.progress(call.task, 0.6)
        for vbd, vdi in disks.items():
            copy_vbd(call, vbd, vm, vdi, owned=False)
    except ApiError:
        await destroy_disks(call, disks)
        raise
    db.set("VM", vm, suspend_VDI=memory)
    tasks.progress(call.task, 0.7)


def _replace_devices(call: Call, snapshot: str, vm: str) -> None:
    db = call.pool.db
    for vif in db.get("VM", vm, "VIFs"):
        db.destroy("VIF", vif)
    for vif in db.get("VM", snapshot, "VIFs"):
        copy_vif(call, vif, vm, keep_mac=True)
    guest_agent.drop_report(db, vm)
    report = copy_metrics(db, "VM_guest_metrics", db.get("VM", snapshot, "guest_metrics"))
    metrics = db.get("VM", vm, "metrics")
    if db.exists("VM_metrics", metrics):
        db.destroy("VM_metrics", metrics)
    metrics = copy_metrics(db, "VM_metrics", db.get("VM", snapshot, "metrics"))
    db.set("VM", vm, guest_metrics=report, metrics=metrics)
    for vtpm in db.get("VM", vm, "VTPMs"):
        vtpms.remove(db, vtpm)
    for vtpm in db.get("VM", snapshot, "VTPMs"):
        vtpms.copy(db, vtpm, vm)


def _repoint(call: Call, old: str, new: str) -> None:
    """Make all snapshots of a disk snapshots of the one that replaces it."""
    for vdi in list(call.pool.db.select("VDI", snapshot_of=old)):
        call.pool.db.set("VDI", vdi, snapshot_of=new)


def _is_iso(call: Call, vdi: str) -> bool:
    db = call.pool.db
    return bool(db.get("SR", db.get("VDI", vdi, "SR"), "content_type") == "iso")


def _check_image(call: Call, snapshot: str) -> None:
    """Raise HOST_NOT_LIVE [host] when nobody could read the memory of a checkpoint."""
    db = call.pool.db
    if db.get("VM", snapshot, "power_state") != "Suspended":
        return
    sr = db.get("VDI", db.get("VM", snapshot, "suspend_VDI"), "SR")
    hosts = hosts_of(db, sr)
    if not hosts:
        raise ApiError("SR_HAS_NO_PBDS", sr)
    if not is_live(db, hosts[0]):
        raise ApiError("HOST_NOT_LIVE", hosts[0])


def _fields(call: Call, snapshot: str) -> dict[str, Any]:
    """Return what the VM was, as far as that is to be restored."""
    db = call.pool.db
    fields = load_record(db.get("VM", snapshot, "snapshot_metadata"), db.classes["VM"])
    if fields.get("domain_type") == "unspecified":
        fields["domain_type"] = "hvm" if fields["HVM_boot_policy"] else "pv"
    fields["ha_always_run"] = False
    fields["generation_id"] = fresh_generation_id(db, fields.get("generation_id", ""))
    return {name: value for name, value in fields.items() if name not in KEPT}


def _recreate_vm(call: Call, snapshot: str, gone: str) -> str:
    """Make the VM anew of which only a snapshot is left, under its UUID."""
    db = call.pool.db
    try:
        was = load_record(db.get("VM", snapshot, "snapshot_metadata"), db.classes["VM"])
        fields = {name: value for name, value in was.items() if name not in KEPT}
        vm = db.create("VM", uuid=was["uuid"], metrics=db.create("VM_metrics"), **fields)
    except (ApiError, KeyError) as error:
        raise ApiError("VM_REVERT_FAILED", snapshot, gone) from error
    for other in list(db.select("VM", snapshot_of=gone)):
        db.set("VM", other, snapshot_of=vm)
    return vm
