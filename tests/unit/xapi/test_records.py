from __future__ import annotations

from datetime import UTC, datetime
from xmlrpc.client import DateTime

import pytest

from tests.unit.xapi import raws
from xorepd.data.http.imports import IMPORT_LABEL
from xorepd.ids import Ref
from xorepd.xapi.records import (
    EPOCH,
    RECORDS,
    Host,
    Network,
    Pbd,
    Pif,
    PoolRecord,
    Sr,
    Task,
    Vbd,
    Vdi,
    Vif,
    Vm,
    parse_time,
    read_record,
)

REF = Ref("OpaqueRef:1")


@pytest.mark.parametrize(
    "value",
    [
        "20260821T10:15:30Z",
        "20260821T10:15:30",
        "2026-08-21T10:15:30Z",
        "2026-08-21T10:15:30.123Z",
        DateTime("20260821T10:15:30Z"),
    ],
)
def test_date_is_read_in_each_way_that_pools_write_it(value: object) -> None:
    assert parse_time(value) == datetime(2026, 8, 21, 10, 15, 30, tzinfo=UTC)


@pytest.mark.parametrize("value", ["", None, "never", "2026", "20269999T99:99:99Z", "²²²²"])
def test_date_that_cannot_be_read_is_never(value: object) -> None:
    assert parse_time(value) == EPOCH


def test_never_of_xapi_is_the_epoch() -> None:
    assert parse_time("19700101T00:00:00Z") == EPOCH


def test_vm_is_read_with_what_replication_looks_at() -> None:
    raw = raws.vm(
        "u-1",
        name_label="web01",
        is_a_snapshot=True,
        snapshot_of="OpaqueRef:2",
        snapshot_time="20260821T10:15:30Z",
        other_config={"a": "b"},
        VBDs=["OpaqueRef:3", "OpaqueRef:NULL"],
    )

    vm = read_record(Vm, REF, raw)

    assert (vm.ref, vm.uuid, vm.name_label) == (REF, "u-1", "web01")
    assert (vm.is_a_snapshot, vm.snapshot_of) == (True, "OpaqueRef:2")
    assert vm.snapshot_time.year == 2026
    assert vm.other_config == {"a": "b"}
    assert vm.vbds == ("OpaqueRef:3",)


def test_numbers_come_as_text() -> None:
    vdi = read_record(
        Vdi, REF, raws.vdi("u-1", virtual_size="8589934592", physical_utilisation="12")
    )

    assert (vdi.virtual_size, vdi.physical_utilisation) == (8589934592, 12)


def test_fields_that_old_hosts_lack_read_as_nothing() -> None:
    flags = {"is_a_template": False, "is_a_snapshot": False, "is_control_domain": False}

    vm = read_record(Vm, REF, {"uuid": "u", "name_label": "", "power_state": "Halted"} | flags)
    vdi = read_record(
        Vdi, REF, {"uuid": "u", "name_label": "", "virtual_size": "1", "is_a_snapshot": False}
    )

    assert (vm.tags, vm.vbds, vm.other_config, vm.snapshot_time) == ((), (), {}, EPOCH)
    assert (vdi.managed, vdi.missing, vdi.type, vdi.on_boot) == (True, False, "user", "persist")


@pytest.mark.parametrize(
    "changes", [{"managed": False}, {"missing": True}, {"type": "cbt_metadata"}]
)
def test_disk_without_its_data_says_so(changes: dict[str, object]) -> None:
    assert not read_record(Vdi, REF, raws.vdi("u", **changes)).has_data


def test_ordinary_disk_has_data() -> None:
    assert read_record(Vdi, REF, raws.vdi("u")).has_data


@pytest.mark.parametrize(
    ("changes", "is_bare"),
    [
        ({}, True),
        ({"cbt_enabled": False}, False),
        ({"managed": False}, False),
        ({"missing": True}, False),
        ({"type": "user"}, False),
    ],
)
def test_only_metadata_that_is_there_tells_what_changed(
    changes: dict[str, object], is_bare: bool
) -> None:
    bare: dict[str, object] = {"type": "cbt_metadata", "cbt_enabled": True}
    raw = raws.vdi("u", **bare | changes)

    assert read_record(Vdi, REF, raw).is_bare is is_bare


@pytest.mark.parametrize(
    ("size", "used", "free"),
    [("100", "40", 60), ("100", "140", 0), ("0", "0", None), ("-1", "-1", None)],
)
def test_free_room_is_known_where_the_size_is(size: str, used: str, free: int | None) -> None:
    raw = {"uuid": "u", "name_label": "sr", "type": "nfs"}

    sr = read_record(Sr, REF, raw | {"physical_size": size, "physical_utilisation": used})

    assert sr.free == free


@pytest.mark.parametrize(
    ("status", "is_finished"),
    [
        ("pending", False),
        ("cancelling", False),
        ("success", True),
        ("failure", True),
        ("cancelled", True),
    ],
)
def test_task_is_finished_with_each_final_state(status: str, is_finished: bool) -> None:
    assert read_record(Task, REF, raws.task("u", status=status)).is_finished is is_finished


@pytest.mark.parametrize(
    ("changes", "owner"),
    [
        ({}, ""),
        ({"name_description": "made by hand"}, ""),
        ({"name_description": "xorepd:a/b/c"}, "xorepd:a/b/c"),
        ({"name_description": "xorepd:a/b/c run-1 attempt-1"}, "xorepd:a/b/c"),
        ({"other_config": {"http:xorepd": "xorepd:a/b/c run-1 attempt-1"}}, "xorepd:a/b/c"),
        ({"other_config": {"xorepd": "xorepd:a/b/c"}}, ""),
    ],
)
def test_task_knows_on_whose_behalf_it_runs(changes: dict[str, str], owner: str) -> None:
    assert read_record(Task, REF, raws.task("u", **changes)).owner == owner


def test_task_of_a_call_is_told_from_one_of_a_request() -> None:
    assert read_record(Task, REF, raws.task("u", name_label="Async.VDI.clone")).is_call
    assert not read_record(Task, REF, raws.task("u", name_label="xorepd import")).is_call


@pytest.mark.parametrize("call", ["Async.VDI.create", "Async.VDI.clone"])
def test_task_of_a_call_that_made_a_disk_tells_which(call: str) -> None:
    raw = raws.task("u", name_label=call, status="success", result="<value>OpaqueRef:v</value>")

    assert read_record(Task, REF, raw).made == "OpaqueRef:v"
    assert read_record(Task, REF, raw).wrote is None


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "pending", "result": ""},
        {"status": "failure"},
        {"status": "cancelled"},
        {"name_label": "Async.VDI.snapshot"},
        {"name_label": "Async.VM.clone"},
        {"name_label": "VDI.clone"},
    ],
)
def test_task_that_made_no_disk_of_ours_tells_of_none(changes: dict[str, str]) -> None:
    plain = {"name_label": "Async.VDI.clone", "status": "success"}
    raw = raws.task("u", **(plain | {"result": "<value>OpaqueRef:v</value>"} | changes))

    assert read_record(Task, REF, raw).made is None


@pytest.mark.parametrize("status", ["pending", "success", "failure", "cancelled"])
def test_task_of_a_request_that_writes_a_disk_tells_which_however_it_ended(status: str) -> None:
    found = read_record(
        Task, REF, raws.task("u", name_label=f"{IMPORT_LABEL}the-vdi", status=status)
    )

    assert (found.wrote, found.made) == ("the-vdi", None)


@pytest.mark.parametrize("label", ["xorepd export the-vdi", "Async.VDI.clone", "import the-vdi"])
def test_task_of_anything_else_wrote_to_no_disk(label: str) -> None:
    assert read_record(Task, REF, raws.task("u", name_label=label)).wrote is None


def test_every_other_class_is_read() -> None:
    name = {"uuid": "u", "name_label": "n"}

    assert (
        read_record(Vbd, REF, raws.vbd("u", "OpaqueRef:vm", "OpaqueRef:vdi")).vdi == "OpaqueRef:vdi"
    )
    assert (
        read_record(Vif, REF, {"uuid": "u", "device": "0", "MAC": "m", "MTU": "9000"}).mtu == 9000
    )
    assert read_record(Pbd, REF, {"uuid": "u", "host": "OpaqueRef:h"}).host == "OpaqueRef:h"
    assert read_record(Host, REF, name | {"address": "10.0.0.1"}).address == "10.0.0.1"
    assert read_record(Network, REF, name | {"PIFs": ["OpaqueRef:p"]}).pifs == ("OpaqueRef:p",)
    assert read_record(Pif, REF, {"uuid": "u", "VLAN": "12"}).vlan == 12
    assert read_record(PoolRecord, REF, name | {"master": "OpaqueRef:h"}).master == "OpaqueRef:h"


def test_classes_are_found_by_the_names_that_events_use() -> None:
    assert RECORDS["vm"] is Vm
    assert RECORDS["pif"] is Pif
    assert all(kind == kind.lower() == cls.kind.lower() for kind, cls in RECORDS.items())


@pytest.mark.parametrize(
    ("kind", "sm_config", "zeroes"),
    [
        ("ext", {}, True),
        ("nfs", {}, True),
        ("lvm", {"use_vhd": "true"}, True),
        ("lvmoiscsi", {"allocation": "thick", "use_vhd": "true"}, True),
        ("lvm", {}, False),
        ("lvmohba", {"use_vhd": "false"}, False),
        ("equal", {"allocation": "thick"}, False),
        ("equal", {"allocation": "thin"}, True),
        ("cslg", {}, False),
    ],
)
def test_sr_tells_whether_its_new_disks_are_zeroes(
    kind: str, sm_config: dict[str, str], zeroes: bool
) -> None:
    raw = {"uuid": "sr", "name_label": "disks", "type": kind, "sm_config": sm_config}

    assert read_record(Sr, Ref("OpaqueRef:sr"), raw).zeroes_new_disks is zeroes
