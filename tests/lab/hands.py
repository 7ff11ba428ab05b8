"""What administrators do by hand: functions that take the XenAPI SDK, for `World.ask`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from tests.patience import patience

Deed = Callable[[Any], Any]
"""Done with the SDK, logged in to one pool."""

MiB = 1 << 20


def vm_of(xenapi: Any, name: str) -> str:
    """Return the reference of the one VM of that name that is no snapshot."""
    found = [
        str(vm) for vm in xenapi.VM.get_by_name_label(name) if not xenapi.VM.get_is_a_snapshot(vm)
    ]
    [vm] = found
    return vm


def replicas_of(xenapi: Any) -> list[str]:
    """Return the replicas, each a VM with our mark on itself."""
    return [
        ref
        for ref, vm in xenapi.VM.get_all_records().items()
        if '"role":"replica"' in vm["other_config"].get("xorepd:mark", "")
        and vm["uuid"] in vm["other_config"]["xorepd:mark"]
    ]


def replica_of(xenapi: Any) -> str:
    [replica] = replicas_of(xenapi)
    return replica


def disks_of(xenapi: Any, vm: str) -> dict[str, str]:
    """Return the hard disks of a VM: device → VDI."""
    vbds = [xenapi.VBD.get_record(vbd) for vbd in xenapi.VM.get_VBDs(vm)]
    return {vbd["userdevice"]: vbd["VDI"] for vbd in vbds if vbd["type"] == "Disk"}


def drive_of(xenapi: Any, vm: str, device: str) -> str:
    [vbd] = [v for v in xenapi.VM.get_VBDs(vm) if xenapi.VBD.get_userdevice(v) == device]
    return str(vbd)


def create_disk(xenapi: Any, sr: str, name: str, size: int = 8 * MiB) -> str:
    record = {
        "SR": xenapi.SR.get_by_name_label(sr)[0],
        "virtual_size": str(size),
        "type": "user",
        "sharable": False,
        "read_only": False,
        "other_config": {},
        "name_label": name,
    }
    return str(xenapi.VDI.create(record))


def attach(
    xenapi: Any, vm: str, vdi: str | None, device: str, *, kind: str = "Disk", mode: str = "RW"
) -> str:
    """Give a VM a drive; with a disk in it, unless there is none."""
    record = {
        "VM": vm,
        "VDI": vdi or "OpaqueRef:NULL",
        "userdevice": device,
        "bootable": False,
        "mode": mode,
        "type": kind,
        "empty": vdi is None,
        "other_config": {},
        "qos_algorithm_type": "",
        "qos_algorithm_params": {},
    }
    return str(xenapi.VBD.create(record))


def detach(xenapi: Any, vm: str, device: str) -> str:
    """Take a drive from a VM, running or not; return the disk that was in it."""
    vbd = drive_of(xenapi, vm, device)
    record = xenapi.VBD.get_record(vbd)
    if record["currently_attached"]:
        xenapi.VBD.unplug(vbd)
    xenapi.VBD.destroy(vbd)
    return str(record["VDI"])


def free_the_control_domains(xenapi: Any) -> None:
    """Unplug and destroy what a toolstack that died has left attached to its control domain."""
    for ref, vbd in xenapi.VBD.get_all_records().items():
        if xenapi.VM.get_is_control_domain(vbd["VM"]):
            xenapi.VBD.unplug(ref)
            xenapi.VBD.destroy(ref)


def destroy_with_disks(xenapi: Any, vm: str) -> None:
    """Delete a VM or snapshot as the usual tools do: with its disks."""
    disks = disks_of(xenapi, vm).values()
    xenapi.VM.destroy(vm)
    for disk in disks:
        xenapi.VDI.destroy(disk)


def destroy_disks(uuids: Iterable[str]) -> Deed:
    """Return a deed that destroys some disks, by their UUIDs."""

    def deed(xenapi: Any) -> None:
        for uuid in uuids:
            xenapi.VDI.destroy(xenapi.VDI.get_by_uuid(uuid))

    return deed


def wait_for(holds: Callable[[Any], bool]) -> Deed:
    """Return a deed that ends when something holds: it asks again whenever a disk changes."""

    def wait(xenapi: Any) -> None:
        deadline, token = time.monotonic() + patience(), ""
        while not holds(xenapi):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{holds.__name__} does not come true")
            batch = getattr(xenapi.event, "from")(["vdi", "vbd"], token, 5.0)
            token = batch["token"]

    return wait


def create_vm(xenapi: Any, name: str) -> str:
    """Create a halted VM without anything, like web01 in other respects."""
    like, *_ = (  # not `next`: a StopIteration in a thread hangs the loop that waits for it
        vm
        for vm in xenapi.VM.get_all_records().values()
        if not vm["is_control_domain"] and not vm["is_default_template"]
    )
    kept = (
        "user_version memory_static_max memory_dynamic_max memory_dynamic_min memory_static_min"
        " VCPUs_params VCPUs_max VCPUs_at_startup actions_after_shutdown actions_after_reboot"
        " actions_after_crash PV_bootloader PV_kernel PV_ramdisk PV_args PV_bootloader_args"
        " PV_legacy_args HVM_boot_policy HVM_boot_params platform PCI_bus recommendations"
    )
    record = {field: like[field] for field in kept.split()}
    record |= {
        "name_label": name,
        "name_description": "",
        "is_a_template": False,
        "affinity": "OpaqueRef:NULL",
        "other_config": {},
    }
    return str(xenapi.VM.create(record))


def delete_snapshots(xenapi: Any) -> None:
    """Destroy all snapshots of web01 with their disks."""
    for snapshot in xenapi.VM.get_snapshots(vm_of(xenapi, "web01")):
        disks = disks_of(xenapi, snapshot).values()
        xenapi.VM.destroy(snapshot)
        for vdi in disks:
            xenapi.VDI.destroy(vdi)


def strip_keys_of_xen_orchestra(xenapi: Any) -> None:
    """Take away every key of Xen Orchestra's from VMs and disks, as it does itself."""
    for kind in (xenapi.VM, xenapi.VDI):
        for ref, record in kind.get_all_records().items():
            for key in record["other_config"]:
                if key.startswith("xo:"):
                    kind.remove_from_other_config(ref, key)
