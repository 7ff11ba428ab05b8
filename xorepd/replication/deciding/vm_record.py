"""The VM record of a replica: which fields of the source travel, and how they are kept up.

A whitelist: no reference of one pool is ever sent to another. What would bring a replica to life by
itself (HA priority, `auto_poweron`, appliance, start order) stays behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xorepd.ids import NULL_REF

Raw = Mapping[str, Any]

_REQUIRED = (
    "user_version",
    "memory_static_max",
    "memory_dynamic_max",
    "memory_dynamic_min",
    "memory_static_min",
    "VCPUs_params",
    "VCPUs_max",
    "VCPUs_at_startup",
    "actions_after_shutdown",
    "actions_after_reboot",
    "actions_after_crash",
    "PV_bootloader",
    "PV_kernel",
    "PV_ramdisk",
    "PV_args",
    "PV_bootloader_args",
    "PV_legacy_args",
    "HVM_boot_policy",
    "HVM_boot_params",
    "platform",
    "PCI_bus",
    "recommendations",
)
_OPTIONAL = (
    "xenstore_data",
    "hardware_platform_version",
    "has_vendor_device",
    "domain_type",
    "NVRAM",
)
"""Absent on old hosts: sent where the source has them."""

MEMORY = ("memory_static_min", "memory_static_max", "memory_dynamic_min", "memory_dynamic_max")
VCPUS = ("VCPUs_max", "VCPUs_at_startup")

PLAIN_SETTERS = tuple(field for field in _REQUIRED + _OPTIONAL if field not in MEMORY + VCPUS)
"""Set one by one, in any order; the others have rules among themselves."""

_BIOS_STRINGS = frozenset(
    {
        "bios-vendor",
        "bios-version",
        "system-manufacturer",
        "system-product-name",
        "system-version",
        "system-serial-number",
        "baseboard-manufacturer",
        "baseboard-product-name",
        "baseboard-version",
        "baseboard-serial-number",
        "baseboard-asset-tag",
        "baseboard-location-in-chassis",
        "enclosure-asset-tag",
    }
)
"""What a client may set; XAPI adds others by itself, and takes no empty one
(xapi: ocaml/xapi/xapi_vm.ml, set_bios_strings)."""

_PRIVATE_PREFIXES = ("xo:", "xorepd:")
_PASSED_THROUGH = "pci"
"""Names devices of one host; on any other the VM would not start."""
_LEFT_BEHIND = {
    "auto_poweron",
    "import_task",
    "default_template",
    "xensource_internal",
    _PASSED_THROUGH,
}

_HARDWARE = {
    "VUSBs": "USB devices",
    "VGPUs": "virtual GPUs",
    "attached_PCIs": "PCI devices",
}
"""References to what a replica cannot have: the hardware of other hosts."""


def bios_strings_of(raw: Raw) -> dict[str, str]:
    """Return the BIOS strings of the source that can be given to a replica."""
    given = dict(raw.get("bios_strings") or {})
    return {key: value for key, value in given.items() if key in _BIOS_STRINGS and value}


def other_config_of(raw: Raw) -> dict[str, str]:
    """Return the keys of a source VM's `other_config` that its replica gets."""
    return {
        key: value
        for key, value in raw["other_config"].items()
        if not key.startswith(_PRIVATE_PREFIXES) and key not in _LEFT_BEHIND
    }


def left_behind(raw: Raw, *, with_memory: bool = False) -> list[str]:
    """Return what of a source VM its replica goes without, in words.

    Args:
        raw: record of the VM itself: its snapshot does not tell of all.
        with_memory: whether its memory was snapshotted as well.
    """
    found = [words for field, words in _HARDWARE.items() if raw.get(field)]
    if raw["other_config"].get(_PASSED_THROUGH) and "PCI devices" not in found:
        found.append("PCI devices")
    if raw["power_state"] == "Suspended" and not with_memory:
        found.append("suspended memory")
    return found


def new_replica(raw: Raw, name: str, description: str, other: Mapping[str, str]) -> dict[str, Any]:
    """Return the record to create a replica from.

    It is created as a template: `VM.create` ignores blocked operations, and a template cannot be
    started until they are set.

    Args:
        raw: record of the source snapshot.
        other: marks, beside what the source's `other_config` gives.
    """
    record = {field: raw[field] for field in _REQUIRED}
    record |= {field: raw[field] for field in _OPTIONAL if field in raw}
    record |= {
        "name_label": name,
        "name_description": description,
        "is_a_template": True,
        "affinity": NULL_REF,
        "ha_restart_priority": "",
        "tags": list(raw.get("tags", ())),
        "other_config": {**other_config_of(raw), **other},
    }
    # Hosts before XAPI 2.x refuse a float that the encoder writes as "1".
    if float(raw.get("HVM_shadow_multiplier", 1.0)) != 1.0:
        record["HVM_shadow_multiplier"] = float(raw["HVM_shadow_multiplier"])
    return record
