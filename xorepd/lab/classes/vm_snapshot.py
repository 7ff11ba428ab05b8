"""VM.snapshot and VM.clone: a new record over new leaves of the same disks.

The disks are taken one after another, so a snapshot is consistent per disk and not across disks.

Source: xapi: ocaml/xapi/xapi_vm_clone.ml, xapi_vm_snapshot.ml.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from xorepd.lab.classes.vif import mac_from_seed
from xorepd.lab.dispatch import Call, perform, rpc
from xorepd.lab.failures import NULL, ApiError
from xorepd.lab.operations import Claim
from xorepd.lab.registry import Registry
from xorepd.lab.rules import features
from xorepd.lab.schema import EPOCH, words

OF_THE_OBJECT = words(
    "uuid VBDs VIFs VTPMs VGPUs VUSBs consoles crash_dumps attached_PCIs snapshots"
    " children blocked_operations current_operations allowed_operations blobs power_state"
    " resident_on scheduled_to_be_resident_on domid suspend_VDI last_booted_record"
    " last_boot_CPU_flags metrics guest_metrics is_default_template is_control_domain"
    " requires_reboot pending_guidances pending_guidances_recommended"
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
    "start_delay": 0,
    "shutdown_delay": 0,
    "order": 0,
    "version": 0,
    "ha_always_run": False,
}
DROPPED_KEYS = ("default_template", "xensource_internal")


@rpc("VM.snapshot(vm: ref VM, new_name: string, ignore_vdis: set ref VDI = [])")
async def snapshot(call: Call, vm: str, new_name: str, ignore_vdis: list[str]) -> str:
    pool, db = call.pool, call.pool.db
    async with pool.operations.hold(call.task, Claim("VM", vm, "snapshot")):
        for vbd, vdi in disks(db, vm):
            if vdi not in ignore_vdis and db.get("VBD", vbd, "type") == "Disk":
                check_disk(db, vdi)
        async with _new_disks(call, vm, ignore_vdis, "VDI.snapshot") as copies:
            state = db.get("VM", vm, "power_state")
            ref = _copy_record(
                call,
                vm,
                name_label=new_name,
                is_a_snapshot=True,
                is_a_template=True,
                snapshot_of=vm,
                snapshot_time=pool.clock.now(),
                snapshot_info={
                    "power-state-at-snapshot": state,
                    "disk-snapshot-type": "crash_consistent",
                },
                snapshot_metadata=dump_record(db.record("VM", vm)),
                parent=db.get("VM", vm, "parent"),
            )
            _copy_devices(call, vm, ref, copies)
        db.set("VM", vm, parent=ref)
    pool.operations.refresh("VM", ref)
    return ref


@rpc("VM.snapshot_with_quiesce(vm: ref VM, new_name: string)")
def snapshot_with_quiesce(call: Call, vm: str, new_name: str) -> str:
    raise ApiError("VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", vm)


@rpc("VM.clone(vm: ref VM, new_name: string)")
async def clone(call: Call, vm: str, new_name: str) -> str:
    pool, db = call.pool, call.pool.db
    async with (
        pool.operations.hold(call.task, Claim("VM", vm, "clone")),
        _new_disks(call, vm, [], "VDI.clone") as copies,
    ):
        seed = db.new_uuid()
        ref = _copy_record(
            call,
            vm,
            name_label=new_name,
            is_a_snapshot=False,
            snapshot_of=NULL,
            snapshot_time=EPOCH,
            snapshot_info={},
            snapshot_metadata="",
            transportable_snapshot_id="",
            parent=NULL,
        )
        db.put("VM", ref, "other_config", "mac_seed", seed)
        _copy_devices(call, vm, ref, copies, mac_seed=seed)
    pool.operations.refresh("VM", ref)
    return ref


def disks(db: Registry, vm: str) -> list[tuple[str, str]]:
    """Return the VBDs of a VM that are not empty, with their VDIs, by position."""
    pairs = [
        (vbd, str(db.get("VBD", vbd, "VDI")))
        for vbd in db.get("VM", vm, "VBDs")
        if not db.get("VBD", vbd, "empty")
    ]
    return sorted(pairs, key=lambda pair: str(db.get("VBD", pair[0], "userdevice")))


def check_disk(db: Registry, vdi: str) -> None:
    """Raise what keeps a disk from being part of a VM's snapshot."""
    record = db.record("VDI", vdi)
    if record["on_boot"] == "reset":
        raise ApiError("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
    if record["sharable"]:
        raise ApiError("VDI_IS_SHARABLE", vdi)
    if "copy" in record["current_operations"].values():
        raise ApiError("OPERATION_NOT_ALLOWED", "Snapshot operation not allowed during copy.")
    if "VDI_SNAPSHOT" not in features(db, record["SR"]):
        raise ApiError("SR_OPERATION_NOT_SUPPORTED", record["SR"])


def dump_record(record: dict[str, Any]) -> str:
    """Return a record as the text that `snapshot_metadata` holds."""

    def quoted(value: Any) -> str:
        match value:
            case list():
                return "(" + " ".join(f"'{item}'" for item in value) + ")"
            case dict():
                return "(" + " ".join(f"('{k}' '{v}')" for k, v in value.items()) + ")"
            case bool():
                return f"'{str(value).lower()}'"
            case _:
                return f"'{value}'"

    left_out = ("snapshot_metadata", "allowed_operations", "current_operations")
    members = (f"('{k}' {quoted(v)})" for k, v in record.items() if k not in left_out)
    return "(" + " ".join(members) + ")"


@asynccontextmanager
async def _new_disks(
    call: Call, vm: str, ignored: list[str], method: str
) -> AsyncIterator[dict[str, str]]:
    """Make a new VDI for each disk in turn; give VBD → VDI, and undo it when the block fails."""
    db = call.pool.db
    made: dict[str, str] = {}
    copies: dict[str, str] = {}
    wanted = [(vbd, vdi) for vbd, vdi in disks(db, vm) if vdi not in ignored]
    try:
        for number, (vbd, vdi) in enumerate(wanted):
            call.pool.tasks.check_cancelled(call.task)
            if db.get("VBD", vbd, "type") == "CD":
                copies[vbd] = vdi
                continue
            made[vbd] = copies[vbd] = await perform(call, method, vdi)
            call.pool.tasks.progress(call.task, (number + 1) / (len(wanted) + 1))
        yield copies
    except Exception:
        for vdi in made.values():
            await perform(call, "VDI.destroy", vdi)
        raise


def _copy_record(call: Call, vm: str, **changes: Any) -> str:
    db = call.pool.db
    source = db.record("VM", vm)
    fields = {name: value for name, value in source.items() if name not in OF_THE_OBJECT}
    fields["other_config"] = {
        k: v for k, v in source["other_config"].items() if k not in DROPPED_KEYS
    }
    fields.update(FRESH)
    fields["generation_id"] = f"{db.rng.getrandbits(63)}:{db.rng.getrandbits(63)}"
    for cls, field in (("VM_metrics", "metrics"), ("VM_guest_metrics", "guest_metrics")):
        if db.exists(cls, source[field]):
            fields[field] = db.create(cls, **{**db.record(cls, source[field]), "uuid": ""})
    fields.update(changes)
    return db.create("VM", **fields)


def _copy_devices(
    call: Call, vm: str, new: str, copies: dict[str, str], mac_seed: str | None = None
) -> None:
    db = call.pool.db
    for vbd in db.get("VM", vm, "VBDs"):
        source = db.record("VBD", vbd)
        if not source["empty"] and vbd not in copies:
            continue
        kept = words(
            "userdevice bootable mode type unpluggable empty qos_algorithm_type"
            " qos_algorithm_params"
        )
        ref = db.create(
            "VBD",
            VM=new,
            VDI=copies.get(vbd, NULL),
            other_config={"owner": "", **source["other_config"]},
            **{name: source[name] for name in kept},
        )
        call.pool.operations.refresh_vbd(ref)
    for vif in db.get("VM", vm, "VIFs"):
        source = db.record("VIF", vif)
        kept = words(
            "device network MAC MAC_autogenerated MTU other_config qos_algorithm_type"
            " qos_algorithm_params locking_mode ipv4_allowed ipv6_allowed"
        )
        fields = {name: source[name] for name in kept}
        if mac_seed is not None:
            fields["MAC"] = mac_from_seed(mac_seed, source["device"])
            fields["MAC_autogenerated"] = True
        db.create("VIF", VM=new, allowed_operations=["attach"], **fields)
    for vtpm in db.get("VM", vm, "VTPMs"):
        source = db.record("VTPM", vtpm)
        if not source["is_unique"]:
            db.create("VTPM", **{**source, "uuid": "", "VM": new})
