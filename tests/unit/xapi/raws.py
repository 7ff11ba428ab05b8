"""Records as XAPI sends them: integers as text, references as OpaqueRefs, nothing left out."""

from __future__ import annotations

from typing import Any

Raw = dict[str, Any]


def vm(uuid: str, **changes: Any) -> Raw:
    return {
        "uuid": uuid,
        "name_label": uuid,
        "name_description": "",
        "power_state": "Halted",
        "is_a_template": False,
        "is_a_snapshot": False,
        "is_control_domain": False,
        "snapshot_of": "OpaqueRef:NULL",
        "snapshots": [],
        "snapshot_time": "19700101T00:00:00Z",
        "other_config": {},
        "blocked_operations": {},
        "current_operations": {},
        "tags": [],
        "VBDs": [],
        "VIFs": [],
        "ha_restart_priority": "",
    } | changes


def vdi(uuid: str, **changes: Any) -> Raw:
    return {
        "uuid": uuid,
        "name_label": uuid,
        "name_description": "",
        "SR": "OpaqueRef:sr",
        "virtual_size": "8589934592",
        "physical_utilisation": "4096",
        "type": "user",
        "managed": True,
        "missing": False,
        "sharable": False,
        "on_boot": "persist",
        "is_a_snapshot": False,
        "snapshot_of": "OpaqueRef:NULL",
        "snapshot_time": "19700101T00:00:00Z",
        "other_config": {},
        "sm_config": {},
        "tags": [],
        "VBDs": [],
    } | changes


def vbd(uuid: str, vm_ref: str, vdi_ref: str, **changes: Any) -> Raw:
    return {
        "uuid": uuid,
        "VM": vm_ref,
        "VDI": vdi_ref,
        "userdevice": "0",
        "bootable": False,
        "mode": "RW",
        "type": "Disk",
        "empty": False,
        "currently_attached": False,
    } | changes


def task(uuid: str, **changes: Any) -> Raw:
    return {
        "uuid": uuid,
        "name_label": "Async.VM.snapshot",
        "status": "pending",
        "result": "",
        "error_info": [],
    } | changes


def network(uuid: str, name: str, *pifs: str) -> Raw:
    return {"uuid": uuid, "name_label": name, "PIFs": list(pifs)}


def pif(uuid: str, network_ref: str, vlan: int) -> Raw:
    return {"uuid": uuid, "network": network_ref, "VLAN": str(vlan)}
