from __future__ import annotations

from typing import Any

import pytest

from xorepd.ids import NULL_REF
from xorepd.replication.deciding.vm_record import (
    bios_strings_of,
    left_behind,
    new_replica,
    other_config_of,
)

TEXTS = [
    "user_version",
    "memory_static_max",
    "memory_dynamic_max",
    "memory_dynamic_min",
    "memory_static_min",
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
    "PCI_bus",
    "recommendations",
]


def source(**changes: Any) -> dict[str, Any]:
    """Return a source snapshot's record, as much of it as matters here."""
    raw: dict[str, Any] = {field: f"value of {field}" for field in TEXTS}
    return (
        raw
        | {"VCPUs_params": {}, "HVM_boot_params": {"order": "cd"}, "platform": {"acpi": "1"}}
        | {
            "uuid": "snapshot-1",
            "name_label": "snapshot",
            "is_a_snapshot": True,
            "snapshot_of": "OpaqueRef:web",
            "resident_on": "OpaqueRef:host",
            "affinity": "OpaqueRef:host",
            "suspend_VDI": "OpaqueRef:vdi",
            "appliance": "OpaqueRef:appliance",
            "snapshot_schedule": "OpaqueRef:schedule",
            "VBDs": ["OpaqueRef:vbd"],
            "VIFs": ["OpaqueRef:vif"],
            "groups": ["OpaqueRef:group"],
            "ha_restart_priority": "restart",
            "ha_always_run": True,
            "order": "1",
            "start_delay": "5",
            "shutdown_delay": "5",
            "blocked_operations": {"destroy": "keep it"},
            "tags": ["production"],
            "HVM_shadow_multiplier": 1.0,
            "other_config": {
                "mac_seed": "seed",
                "auto_poweron": "true",
                "base_template_name": "Debian 12",
                "xo:backup:job": "j",
                "xorepd:mark": "{}",
                "xorepd:snapshotting": "run-1",
                "default_template": "true",
                "import_task": "OpaqueRef:task",
            },
        }
        | changes
    )


def replica(other: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    return new_replica(source(**changes), "replica", "of web01", other or {})


def test_replica_is_named_and_described_as_told() -> None:
    assert (replica()["name_label"], replica()["name_description"]) == ("replica", "of web01")


def test_hardware_of_the_source_travels() -> None:
    found = replica()

    assert {field: found[field] for field in TEXTS} == {f: f"value of {f}" for f in TEXTS}
    assert found["platform"] == {"acpi": "1"}


def test_replica_is_born_as_a_template_so_that_nothing_can_start_it() -> None:
    assert replica()["is_a_template"] is True


@pytest.mark.parametrize(
    "field",
    ["appliance", "order", "start_delay", "ha_always_run", "snapshot_schedule", "resident_on"],
)
def test_what_could_bring_it_to_life_or_points_home_stays_behind(field: str) -> None:
    assert field not in replica()


def test_priority_of_ha_is_taken_off() -> None:
    assert replica()["ha_restart_priority"] == ""


def test_no_reference_of_the_source_pool_is_sent() -> None:
    found = replica()

    assert found["affinity"] == NULL_REF
    assert "OpaqueRef:" not in repr({k: v for k, v in found.items() if k != "affinity"})


def test_tags_travel() -> None:
    assert replica()["tags"] == ["production"]


def test_other_config_travels_without_our_keys_and_what_starts_vms() -> None:
    assert other_config_of(source()) == {"mac_seed": "seed", "base_template_name": "Debian 12"}


def test_marks_stand_beside_what_the_source_gives() -> None:
    found = replica({"xorepd:mark": "new"})["other_config"]

    assert (found["xorepd:mark"], found["mac_seed"]) == ("new", "seed")


def test_fields_that_only_new_hosts_have_travel_where_they_are() -> None:
    assert "NVRAM" not in replica()
    assert replica(NVRAM={"EFI-variables": "x"})["NVRAM"] == {"EFI-variables": "x"}
    assert replica(domain_type="hvm")["domain_type"] == "hvm"


@pytest.mark.parametrize("value", [1.0, "1", "1.0"])
def test_usual_shadow_multiplier_is_not_sent(value: object) -> None:
    assert "HVM_shadow_multiplier" not in replica(HVM_shadow_multiplier=value)


@pytest.mark.parametrize("value", [4.0, "4", "4.0"])
def test_unusual_shadow_multiplier_is_sent_as_a_number(value: object) -> None:
    assert replica(HVM_shadow_multiplier=value)["HVM_shadow_multiplier"] == 4.0


def test_source_record_is_left_as_it_is() -> None:
    raw = source()

    new_replica(raw, "replica", "", {"xorepd:mark": "new"})["tags"].append("x")

    assert raw == source()


def test_only_bios_strings_that_xapi_takes_travel() -> None:
    given = {"bios-vendor": "Xen", "bios-version": "", "hp-rombios": "", "oem-1": "Xen"}

    assert bios_strings_of(source() | {"bios_strings": given}) == {"bios-vendor": "Xen"}
    assert bios_strings_of({}) == {}


def test_what_a_replica_goes_without_is_told_in_words() -> None:
    plain = {"power_state": "Running", "other_config": {}, "VUSBs": [], "VGPUs": []}
    assert left_behind(plain) == []
    assert left_behind(plain | {"VUSBs": ["OpaqueRef:usb"], "VGPUs": ["OpaqueRef:gpu"]}) == [
        "USB devices",
        "virtual GPUs",
    ]
    assert left_behind(plain | {"other_config": {"pci": "0/0000:04:00.0"}}) == ["PCI devices"]
    assert left_behind(plain | {"attached_PCIs": ["OpaqueRef:pci"]}) == ["PCI devices"]
    assert left_behind(plain | {"power_state": "Suspended"}) == ["suspended memory"]


def test_devices_of_the_source_host_are_not_named_to_the_target() -> None:
    raw = source(other_config={"pci": "0/0000:04:00.0", "vgpu_pci": "", "folder": "/web"})

    assert "pci" not in new_replica(raw, "name", "", {})["other_config"]
