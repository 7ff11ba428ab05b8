"""VMs: what creation keeps, what snapshots are, and what may not be started."""

from typing import Any

import pytest

from pool.target import NULL, Bench

pytestmark = pytest.mark.pool

EPOCH = "19700101T00:00:00Z"


def disks(bench: Bench, vm: str) -> list[str]:
    return [bench.api.VBD.get_VDI(vbd) for vbd in bench.api.VM.get_VBDs(vm)]


def vif_record(bench: Bench, vm: str, **fields: Any) -> dict[str, Any]:
    return {
        "device": "0",
        "network": bench.network,
        "VM": vm,
        "MAC": "",
        "MTU": "1500",
        "other_config": {},
        "qos_algorithm_type": "",
        "qos_algorithm_params": {},
        **fields,
    }


def test_a_new_vm_is_halted_and_nothing_is_blocked(bench: Bench) -> None:
    vm = bench.new_vm(
        power_state="Running", blocked_operations={"start": "no"}, tags=["xorepd-test"]
    )

    record = bench.api.VM.get_record(vm)
    assert record["power_state"] == "Halted"
    assert record["blocked_operations"] == {}
    assert record["tags"] == ["xorepd-test"]
    assert record["is_a_snapshot"] is False
    assert "mac_seed" in record["other_config"]
    assert record["resident_on"] == NULL


def test_a_blocked_operation_gives_its_reason(bench: Bench) -> None:
    vm = bench.new_vm()

    bench.api.VM.add_to_blocked_operations(vm, "start", "because of a test")

    assert bench.failure("VM.start", vm, False, False) == [
        "OPERATION_BLOCKED",
        vm,
        "because of a test",
    ]
    assert "start" not in bench.api.VM.get_allowed_operations(vm)
    bench.api.VM.remove_from_blocked_operations(vm, "start")
    assert "start" in bench.api.VM.get_allowed_operations(vm)


def test_a_template_does_not_start(bench: Bench) -> None:
    vm = bench.new_vm(is_a_template=True)

    assert bench.failure("VM.start", vm, False, False) == ["VM_IS_TEMPLATE", vm, "start"]
    bench.api.VM.set_is_a_template(vm, False)
    assert bench.api.VM.get_is_a_template(vm) is False


def test_a_snapshot_is_a_template_without_blocks_and_with_all_disks(bench: Bench) -> None:
    vm, vdi = bench.new_vm(), bench.new_vdi()
    vbd = bench.new_disk(vm, vdi, userdevice="0")
    bench.api.VM.add_to_blocked_operations(vm, "start", "not inherited")
    bench.api.VM.add_to_other_config(vm, "xorepd-test", "inherited")

    snapshot = bench.keep_vm(bench.api.VM.snapshot(vm, bench.name()))

    record = bench.api.VM.get_record(snapshot)
    (copied,) = [bench.api.VBD.get_record(each) for each in record["VBDs"]]
    bench.keep_vdi(copied["VDI"])
    assert (record["is_a_snapshot"], record["is_a_template"]) == (True, True)
    assert record["snapshot_of"] == vm
    assert record["blocked_operations"] == {}
    assert record["other_config"]["xorepd-test"] == "inherited"
    assert record["snapshot_info"]["power-state-at-snapshot"] == "Halted"
    assert copied["userdevice"] == "0"
    assert bench.api.VDI.get_snapshot_of(copied["VDI"]) == vdi
    assert bench.api.VM.get_parent(vm) == snapshot
    assert bench.failure("VM.start", snapshot, False, False)[0] == "VM_IS_SNAPSHOT"
    bench.api.VBD.destroy(vbd)


def test_a_clone_has_a_seed_of_its_own(bench: Bench) -> None:
    vm = bench.new_vm()

    clone = bench.keep_vm(bench.api.VM.clone(vm, bench.name()))

    seeds = {bench.api.VM.get_other_config(each)["mac_seed"] for each in (vm, clone)}
    assert len(seeds) == 2
    assert bench.api.VM.get_is_a_template(clone) is False


def test_clones_and_copies_inherit_every_mark_and_no_block(bench: Bench) -> None:
    vm, vdi = bench.new_vm(), bench.new_vdi(other_config={"xorepd-test": "disk"})
    bench.new_disk(vm, vdi, userdevice="0", other_config={"xorepd-test": "drive"})
    bench.api.VM.add_to_other_config(vm, "xorepd-test", "vm")
    bench.api.VM.add_to_blocked_operations(vm, "start", "not inherited")
    snapshot = bench.keep_vm(bench.api.VM.snapshot(vm, bench.name()))
    bench.keep_vdi(disks(bench, snapshot)[0])

    made = {
        "clone": bench.api.VM.clone(vm, bench.name()),
        "copy": bench.api.VM.copy(vm, bench.name(), NULL),
        "clone of a snapshot": bench.api.VM.clone(snapshot, bench.name()),
    }

    for how, copy in made.items():
        bench.keep_vm(copy)
        [disk] = disks(bench, copy)
        bench.keep_vdi(disk)
        record, of_disk = bench.api.VM.get_record(copy), bench.api.VDI.get_record(disk)
        assert record["blocked_operations"] == {}, how
        assert record["other_config"]["xorepd-test"] == "vm", how
        assert (record["snapshot_info"], record["snapshot_metadata"]) == ({}, ""), how
        assert (record["is_a_snapshot"], record["snapshot_of"]) == (False, NULL), how
        assert str(record["snapshot_time"]) == EPOCH, how
        assert (record["parent"], record["snapshots"]) == (NULL, []), how
        # A clone of a snapshot is a template until somebody says otherwise.
        assert record["is_a_template"] is (how == "clone of a snapshot"), how
        assert of_disk["other_config"]["xorepd-test"] == "disk", how
        assert (of_disk["is_a_snapshot"], of_disk["snapshot_of"]) == (False, NULL), how
        [vbd] = record["VBDs"]
        assert bench.api.VBD.get_other_config(vbd)["xorepd-test"] == "drive", how
    blocked = bench.api.VM.get_blocked_operations(vm)
    assert blocked == {"start": "not inherited"}


def test_a_clone_of_a_snapshot_starts_when_it_is_no_template(bench: Bench) -> None:
    snapshot = bench.keep_vm(bench.api.VM.snapshot(bench.new_vm(), bench.name()))
    clone = bench.keep_vm(bench.api.VM.clone(snapshot, bench.name()))

    assert bench.failure("VM.start", clone, False, False) == ["VM_IS_TEMPLATE", clone, "start"]
    bench.api.VM.set_is_a_template(clone, False)

    assert "start" in bench.api.VM.get_allowed_operations(clone)
    assert bench.api.VM.get_is_a_template(snapshot) is True


def test_snapshots_keep_their_macs_and_clones_get_new_ones(bench: Bench) -> None:
    vm = bench.new_vm()
    vif = vif_record(bench, vm, MAC="02:16:3e:00:00:2a", other_config={"xorepd-test": "vif"})
    bench.call("VIF.create", vif)
    snapshot = bench.keep_vm(bench.api.VM.snapshot(vm, bench.name()))

    clones = [bench.api.VM.clone(each, bench.name()) for each in (vm, snapshot)]

    [of_snapshot] = bench.api.VM.get_VIFs(snapshot)
    assert bench.api.VIF.get_MAC(of_snapshot) == "02:16:3e:00:00:2a"
    macs = set()
    for clone in clones:
        bench.keep_vm(clone)
        [ref] = bench.api.VM.get_VIFs(clone)
        record = bench.api.VIF.get_record(ref)
        assert record["other_config"]["xorepd-test"] == "vif"
        assert record["network"] == bench.network
        macs.add(record["MAC"])
    assert len(macs) == 2
    assert "02:16:3e:00:00:2a" not in macs


def test_an_interface_can_be_made_again_with_a_mac_that_another_vm_has(bench: Bench) -> None:
    vm = bench.new_vm()
    bench.call("VIF.create", vif_record(bench, vm, MAC="02:16:3e:00:00:2b"))
    clone = bench.keep_vm(bench.api.VM.clone(vm, bench.name()))
    [vif] = bench.api.VM.get_VIFs(clone)

    bench.api.VIF.destroy(vif)
    vif = bench.call("VIF.create", vif_record(bench, clone, MAC="02:16:3e:00:00:2b"))

    assert bench.api.VIF.get_MAC(vif) == "02:16:3e:00:00:2b"
    assert bench.api.VIF.get_MAC_autogenerated(vif) is False


def test_a_vm_that_is_halted_cannot_be_shut_down(bench: Bench) -> None:
    vm = bench.new_vm()

    refused = bench.failure("VM.hard_shutdown", vm)

    assert refused == ["VM_BAD_POWER_STATE", vm, "paused, suspended, running", "halted"]


def test_positions_of_disks_are_taken_once(bench: Bench) -> None:
    vm, vdi = bench.new_vm(), bench.new_vdi()
    bench.afterwards("VBD.destroy", bench.new_disk(vm, vdi, userdevice="1"))

    refused = bench.failure(
        "VBD.create",
        {
            "VM": vm,
            "VDI": bench.new_vdi(),
            "userdevice": "1",
            "bootable": False,
            "mode": "RW",
            "type": "Disk",
            "empty": False,
            "other_config": {},
            "qos_algorithm_type": "",
            "qos_algorithm_params": {},
        },
    )

    assert refused == ["DEVICE_ALREADY_EXISTS", "1"]
    assert "1" not in bench.api.VM.get_allowed_VBD_devices(vm)


def test_macs_are_checked_and_made_up(bench: Bench) -> None:
    vm = bench.new_vm()
    record = vif_record(bench, vm)

    vif = bench.api.VIF.create(record)

    assert bench.api.VIF.get_MAC_autogenerated(vif) is True
    assert len(bench.api.VIF.get_MAC(vif).split(":")) == 6
    assert bench.failure("VIF.create", record) == ["DEVICE_ALREADY_EXISTS", "0"]
    assert bench.failure("VIF.create", {**record, "device": "1", "MAC": "zz"}) == [
        "MAC_INVALID",
        "zz",
    ]
