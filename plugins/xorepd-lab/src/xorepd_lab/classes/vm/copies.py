"""What snapshots, clones and copies of a VM share: new disks, a new record, copied devices.

The disks are taken one after another, so a snapshot is consistent per disk and not across disks.

Source: xapi: ocaml/xapi/xapi_vm_clone.ml, xapi_vbd_helpers.ml (copy), xapi_vif_helpers.ml (copy).
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.dispatch import perform
from xorepd_lab.classes.devices import vtpm as vtpms
from xorepd_lab.classes.devices.vif import introduce
from xorepd_lab.classes.vm.records import remove_vm
from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.model.registry import Registry
from xorepd_lab.model.schema import EPOCH, words
from xorepd_lab.wire.snapshot_text import dump_record

OF_THE_OBJECT = words(
    "uuid VBDs VIFs VTPMs VGPUs VUSBs consoles crash_dumps attached_PCIs snapshots"
    " children blocked_operations current_operations allowed_operations blobs power_state"
    " resident_on scheduled_to_be_resident_on domid suspend_VDI metrics guest_metrics"
    " is_default_template requires_reboot pending_guidances pending_guidances_recommended"
    " pending_guidances_full domarch"
)
"""What belongs to one record and is never copied."""
FRESH = {
    "appliance": NULL,
    "protection_policy": NULL,
    "snapshot_schedule": NULL,
    "suspend_SR": NULL,
    "is_snapshot_from_vmpp": False,
    "is_vmss_snapshot": False,
    "transportable_snapshot_id": "",
    "start_delay": 0,
    "shutdown_delay": 0,
    "order": 0,
    "version": 0,
    "ha_always_run": False,
}
DROPPED_KEYS = ("default_template", "xensource_internal")
OWNER = "owner"
"""Key of a VBD's `other_config`: the disk goes when the VM goes."""
OF_VBDS = words(
    "userdevice device bootable mode type unpluggable currently_attached other_config"
    " qos_algorithm_type qos_algorithm_params"
)
OF_VIFS = words(
    "device network MAC MTU currently_attached other_config qos_algorithm_type"
    " qos_algorithm_params locking_mode ipv4_allowed ipv6_allowed ipv4_configuration_mode"
    " ipv4_addresses ipv4_gateway ipv6_configuration_mode ipv6_addresses ipv6_gateway trunks"
)

Disks = dict[str, str]
"""The new VDI of each VBD; NULL for an empty drive."""


async def copy_vm(
    call: Call,
    vm: str,
    name: str,
    method: str,
    ignored: list[str],
    sr: str = NULL,
    info: Mapping[str, str] | None = None,
) -> str:
    """Make a new VM over new disks; whatever fails, all of it goes again.

    Only a death of the toolstack leaves disks behind, which then belong to nobody.

    Args:
        method: `snapshot`, `checkpoint`, `clone` or `copy`.
        ignored: VDIs to leave out, of a snapshot or checkpoint.
        sr: Where copies go; NULL leaves each on its own SR.
        info: `snapshot_info`, where it is not that of this moment.
    """
    db, operations = call.pool.db, call.pool.operations
    is_snapshot = method in ("snapshot", "checkpoint")
    vbds = [vbd for vbd in positions(db, vm) if db.get("VBD", vbd, "VDI") not in ignored]
    disks = await new_disks(call, vbds, method, sr)
    ref = NULL
    try:
        ref = _copy_record(call, vm, name, method, info)
        for vbd, vdi in disks.items():
            copy_vbd(call, vbd, ref, vdi, owned=True)
        for vif in db.get("VM", vm, "VIFs"):
            copy_vif(call, vif, ref, keep_mac=is_snapshot)
        for vtpm in db.get("VM", vm, "VTPMs"):
            vtpms.copy(db, vtpm, ref)
        image = db.get("VM", vm, "suspend_VDI")
        if image != NULL and method != "snapshot":
            db.set("VM", ref, suspend_VDI=await _new_disk(call, image, method, sr))
    except Exception:
        if db.exists("VM", ref):
            remove_vm(call, ref)
        await destroy_disks(call, disks)
        raise
    state = _state_of_copy(method, db.get("VM", vm, "power_state"))
    db.set("VM", ref, power_state=state)
    if state == "Halted":
        _detach_all(db, ref)
    if is_snapshot:
        db.set("VM", vm, parent=ref)
    operations.refresh_vm(ref)
    return ref


def positions(db: Registry, vm: str) -> list[str]:
    """Return the VBDs of a VM by their position."""

    def position(vbd: str) -> tuple[int, str]:
        userdevice = str(db.get("VBD", vbd, "userdevice"))
        return (int(userdevice) if userdevice.isdigit() else 1 << 30, userdevice)

    return sorted(db.get("VM", vm, "VBDs"), key=position)


async def new_disks(call: Call, vbds: list[str], method: str, sr: str = NULL) -> Disks:
    """Make the new VDI of each VBD in turn; destroy those made when one fails.

    CDs are not copied, empty drives have nothing to copy. Progress follows the disks' sizes.
    """
    db, tasks = call.pool.db, call.pool.tasks
    sizes = {vbd: _size(db, vbd) for vbd in vbds}
    total, done = sum(sizes.values()) or 1, 0
    disks: Disks = {}
    try:
        for vbd in vbds:
            tasks.check_cancelled(call.task)
            record = db.record("VBD", vbd)
            if record["empty"] or record["type"] == "CD":
                disks[vbd] = NULL if record["empty"] else record["VDI"]
            else:
                disks[vbd] = await _new_disk(call, record["VDI"], method, sr)
            done += sizes[vbd]
            tasks.progress(call.task, done / total)
    except Exception:
        await destroy_disks(call, disks)
        raise
    return disks


async def _new_disk(call: Call, vdi: str, method: str, sr: str) -> str:
    match method:
        case "snapshot" | "checkpoint":
            return await _perform_cancellably(call, "VDI.snapshot", vdi)
        case "copy":
            target = sr if sr != NULL else call.pool.db.get("VDI", vdi, "SR")
            return await _perform_cancellably(call, "VDI.copy", vdi, target, NULL, NULL)
        case _:
            return await _perform_cancellably(call, "VDI.clone", vdi)


async def _perform_cancellably(call: Call, name: str, *arguments: str) -> str:
    """Make a call for another one, and cancel it when that one is cancelled."""
    made, failures = "", []
    async with asyncio.TaskGroup() as group:
        watcher = group.create_task(_pass_on_cancelling(call))
        try:
            made = str(await perform(call, name, *arguments))
        except ApiError as error:
            failures.append(error)  # the group would wrap it
        finally:
            watcher.cancel()
    for failure in failures:
        raise failure
    return made


async def _pass_on_cancelling(call: Call) -> None:
    db, tasks = call.pool.db, call.pool.tasks
    while not tasks.is_cancelling(call.task):
        await db.changed()
    for subtask in db.get("task", call.task, "subtasks"):
        tasks.cancel(subtask, call.task)


async def destroy_disks(call: Call, disks: Disks) -> None:
    """Destroy the disks that were made, CDs apart, as far as that goes."""
    for vbd, vdi in disks.items():
        if vdi == NULL or call.pool.db.get("VBD", vbd, "type") == "CD":
            continue
        try:
            await perform(call, "VDI.destroy", vdi)
        except ApiError as error:
            call.pool.log.warning("vdi.left", vdi=vdi, error=str(error))


def copy_vbd(call: Call, vbd: str, vm: str, vdi: str, owned: bool) -> str:
    """Give a VM a VBD like another one, over another VDI.

    Args:
        owned: The disk is to go with the VM, whoever owned the original.
    """
    db = call.pool.db
    source = db.record("VBD", vbd)
    fields = {name: source[name] for name in OF_VBDS}
    if owned and source["type"] == "Disk":
        fields["other_config"] = {OWNER: "", **source["other_config"]}
    return db.create("VBD", VM=vm, VDI=vdi, empty=vdi == NULL, **fields)


def copy_vif(call: Call, vif: str, vm: str, keep_mac: bool) -> str:
    source = call.pool.db.record("VIF", vif)
    fields = {name: source[name] for name in OF_VIFS if name in source}
    if not keep_mac:
        fields["MAC"] = ""
    return introduce(call, {"VM": vm, **fields})


def copy_metrics(db: Registry, cls: str, ref: str) -> str:
    """Return a copy of a metrics record. Every VM has VM_metrics, a template gets new ones."""
    if not db.exists(cls, ref):
        return db.create(cls) if cls == "VM_metrics" else NULL
    return db.create(cls, **{**db.record(cls, ref), "uuid": ""})


def fresh_generation_id(db: Registry, current: str) -> str:
    if not current:
        return ""
    return f"{db.rng.getrandbits(62)}:{db.rng.getrandbits(62)}"


def _copy_record(
    call: Call, vm: str, name: str, method: str, info: Mapping[str, str] | None
) -> str:
    pool, db = call.pool, call.pool.db
    source = db.record("VM", vm)
    is_snapshot = method in ("snapshot", "checkpoint")
    fields = {field: value for field, value in source.items() if field not in OF_THE_OBJECT}
    fields.update(
        FRESH,
        name_label=name,
        other_config=_other_config(db, source, is_snapshot),
        generation_id=fresh_generation_id(db, source["generation_id"]),
        guest_metrics=copy_metrics(db, "VM_guest_metrics", source["guest_metrics"]),
        metrics=copy_metrics(db, "VM_metrics", source["metrics"]),
        is_a_template=is_snapshot or source["is_a_template"],
        is_a_snapshot=is_snapshot,
        snapshot_of=vm if is_snapshot else NULL,
        snapshot_time=pool.clock.now() if is_snapshot else EPOCH,
        snapshot_info=_snapshot_info(source, is_snapshot) if info is None else dict(info),
        snapshot_metadata=dump_record(source) if is_snapshot else "",
        parent=source["parent"] if is_snapshot else NULL,
    )
    return db.create("VM", **fields)


def _other_config(db: Registry, source: dict[str, Any], is_snapshot: bool) -> dict[str, str]:
    config = {k: v for k, v in source["other_config"].items() if k not in DROPPED_KEYS}
    if not is_snapshot:
        config["mac_seed"] = db.new_uuid()
    if source["is_a_template"]:
        config.setdefault("base_template_name", source["name_label"])
    return config


def _snapshot_info(source: dict[str, Any], is_snapshot: bool) -> dict[str, str]:
    if not is_snapshot:
        return {}
    return {
        "power-state-at-snapshot": source["power_state"],
        "disk-snapshot-type": "crash_consistent",
    }


def _state_of_copy(method: str, state: str) -> str:
    suspended = state == "Suspended" or (method == "checkpoint" and state == "Running")
    return "Suspended" if suspended and method != "snapshot" else "Halted"


def _detach_all(db: Registry, vm: str) -> None:
    for vbd in db.get("VM", vm, "VBDs"):
        db.set("VBD", vbd, currently_attached=False)
    for vif in db.get("VM", vm, "VIFs"):
        db.set("VIF", vif, currently_attached=False)


def _size(db: Registry, vbd: str) -> int:
    vdi = db.get("VBD", vbd, "VDI")
    return int(db.get("VDI", vdi, "virtual_size")) if db.exists("VDI", vdi) else 0
