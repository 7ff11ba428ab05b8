"""VM: snapshots, checkpoints, clones and copies.

Source: xapi: ocaml/xapi/message_forwarding.ml, xapi_vm.ml, xapi_vm_snapshot.ml.
"""

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.vm.copies import copy_vm
from xorepd_lab.classes.vm.domain import announce, leave
from xorepd_lab.classes.vm.power import destroy_quietly
from xorepd_lab.classes.vm.suspend import resume_here, suspend_here
from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.model.registry import Registry
from xorepd_lab.rules.storage_rules import features


@rpc("VM.snapshot(vm: ref VM, new_name: string, ignore_vdis: set ref VDI = [])")
async def snapshot(call: Call, vm: str, new_name: str, ignore_vdis: list[str]) -> str:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "snapshot")):
        ref = await copy_vm(call, vm, new_name, "snapshot", ignore_vdis)
    announce(call, vm, "VM_SNAPSHOTTED", f"snapshotted, snapshot name: {new_name}")
    return ref


@rpc("VM.checkpoint(vm: ref VM, new_name: string)")
async def checkpoint(call: Call, vm: str, new_name: str) -> str:
    """Take a snapshot with the memory: a running VM is suspended for it and goes on afterwards."""
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "checkpoint")):
        host = db.get("VM", vm, "resident_on")
        running = db.get("VM", vm, "power_state") == "Running"
        info: dict[str, str] = {}  # of what did not run, nothing is said
        if running:
            info = {"power-state-at-snapshot": "Running", "disk-snapshot-type": "crash_consistent"}
            _check_disks(db, vm)
            await suspend_here(call, vm)
        try:
            ref = await copy_vm(call, vm, new_name, "checkpoint", [], info=info)
        finally:
            if running:
                await resume_here(call, vm, host, paused=False)
    announce(call, vm, "VM_CHECKPOINTED", f"checkpointed, snapshot name: {new_name}")
    return ref


@rpc("VM.clone(vm: ref VM, new_name: string)")
async def clone(call: Call, vm: str, new_name: str) -> str:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "clone")):
        ref = await copy_vm(call, vm, new_name, "clone", [])
        await _halt_copy_of_snapshot(call, vm, ref)
    return ref


@rpc("VM.copy(vm: ref VM, new_name: string, sr: ref SR)")
async def copy(call: Call, vm: str, new_name: str, sr: str) -> str:
    """Clone a VM with full copies of its disks; an SR that is none leaves them where they are."""
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "copy")):
        target = sr if db.exists("SR", sr) else NULL
        if target != NULL and db.get("SR", target, "content_type") == "iso":
            raise ApiError("OPERATION_NOT_ALLOWED", "Cannot copy a VM's disks to an ISO SR")
        ref = await copy_vm(call, vm, new_name, "copy", [], sr=target)
        await _halt_copy_of_snapshot(call, vm, ref)
    return ref


async def _halt_copy_of_snapshot(call: Call, vm: str, ref: str) -> None:
    """Drop the memory that a VM made from a checkpoint came with."""
    db = call.pool.db
    if db.get("VM", vm, "is_a_snapshot") and db.get("VM", ref, "power_state") != "Halted":
        await destroy_quietly(call, db.get("VM", ref, "suspend_VDI"))
        leave(call, ref)


def _check_disks(db: Registry, vm: str) -> None:
    """Raise SR_OPERATION_NOT_SUPPORTED [vm] before the VM is suspended for nothing.

    The parameter is the VM, where an SR belongs.
    """
    disks = [vbd for vbd in db.get("VM", vm, "VBDs") if db.get("VBD", vbd, "type") != "CD"]
    vdis = [db.get("VBD", vbd, "VDI") for vbd in disks]
    srs = {db.get("VDI", vdi, "SR") for vdi in vdis if db.exists("VDI", vdi)}
    if any("VDI_SNAPSHOT" not in features(db, sr) for sr in srs):
        raise ApiError("SR_OPERATION_NOT_SUPPORTED", vm)
