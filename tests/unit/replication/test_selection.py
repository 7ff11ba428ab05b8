from __future__ import annotations

from typing import Any

import pytest

from tests.unit.parts import job
from tests.unit.replication.builders import STREAM
from tests.unit.xapi import raws
from xorepd.ids import Ref
from xorepd.replication.deciding.selection import disk_exclusion, select_vms
from xorepd.replication.format.marks import BLOCK_TEXT, KEY, Mark, Role
from xorepd.xapi.records import Vbd, Vdi, Vm, read_record

UUID = "3d6b2b1e-8a4f-4a57-9f3b-6c1f4d2e7a90"


def vm(name: str, **changes: Any) -> Vm:
    uuid = changes.pop("uuid", f"uuid-of-{name}")
    return read_record(Vm, Ref(f"OpaqueRef:{uuid}"), raws.vm(uuid, name_label=name, **changes))


def marked(role: Role, *, self: str = "someone else") -> dict[str, Any]:
    return {"other_config": {KEY: Mark(role=role, stream=STREAM, run="r", self=self).encode()}}


POOL = [
    vm("web02", tags=["gold"]),
    vm("web01", power_state="Running"),
    vm("db01", tags=["gold", "scratch"], power_state="Running"),
    vm("mail", uuid=UUID),
    vm("web-snapshot", is_a_snapshot=True, tags=["gold"]),
    vm("web-template", is_a_template=True, tags=["gold"]),
    vm("web-dom0", is_control_domain=True, tags=["gold"]),
]


def found(pool: list[Vm] = POOL, **changes: Any) -> list[str]:
    return [vm.name_label for vm in select_vms(job(**changes), pool).found]


def test_pattern_finds_vms_and_neither_snapshots_templates_nor_control_domains() -> None:
    assert found(vms=["web*"]) == ["web01", "web02"]
    assert found(vms=["*"]) == ["db01", "mail", "web01", "web02"]


def test_tags_add_to_what_patterns_find() -> None:
    assert found(vms=["web*"], tags=["gold"]) == ["db01", "web01", "web02"]
    assert found(vms=["-*"], tags=["gold", "none"]) == ["db01", "web02"]


@pytest.mark.parametrize(
    ("exclusion", "left"),
    [
        ({"exclude": ["web02"]}, ["db01"]),
        ({"exclude": ["web*", UUID]}, ["db01"]),
        ({"exclude_tags": ["scratch", "x"]}, ["web02"]),
        ({"power_states": ["running", "paused"]}, ["db01"]),
        ({"power_states": ["running"], "exclude": ["db*"]}, []),
    ],
)
def test_what_is_excluded_is_not_found(exclusion: dict[str, Any], left: list[str]) -> None:
    assert found(vms=["-*"], tags=["gold"], **exclusion) == left


def test_what_is_named_is_wanted_whatever_excludes_it_and_only_once() -> None:
    selection = select_vms(
        job(vms=["db01", UUID, "nobody", "*"], exclude_tags=["scratch"], exclude=["m*"]), POOL
    )

    assert selection.named == ("db01", UUID, "nobody")
    assert selection.wanted == ("db01", UUID, "nobody", "uuid-of-web01", "uuid-of-web02")
    assert selection.left_out == ()


@pytest.mark.parametrize(
    ("traits", "because"),
    [
        ({"blocked_operations": {"start": BLOCK_TEXT}}, "its start is blocked as a replica's is"),
        (marked(Role.REPLICA, self="uuid-of-web03"), "it is a replica"),
        (marked(Role.MEMORY, self="uuid-of-web03"), "it is a replica"),
        (
            {"power_state": "Running"} | marked(Role.REPLICA, self="uuid-of-web03"),
            "it is a replica, though it is running; `xorepctl forget --keep-replica` makes it an "
            "ordinary VM",
        ),
    ],
)
def test_replica_is_found_by_nothing_and_named(traits: dict[str, Any], because: str) -> None:
    replica = vm("web03", **traits)

    selection = select_vms(job(vms=["web*"]), [*POOL, replica])

    assert replica not in selection.found
    assert [(left.vm, left.reason) for left in selection.replicas] == [(replica, because)]


@pytest.mark.parametrize("power_state", ["Running", "Halted"])
@pytest.mark.parametrize(
    "inherited",
    [
        {"tags": ["Continuous Replication"]},
        {"tags": ["Disaster Recovery"]},
        {"other_config": {"xo:backup:sr": "sr-1"}},
        {"other_config": {"xo:copy_of": "vm-1"}},
        {"other_config": {"xo:source_vm": "vm-1"}},
        {"blocked_operations": {"start": "not on Sundays"}},
        marked(Role.REPLICA),
        marked(Role.POINT),
        marked(Role.MEMORY),
        {"tags": ["Continuous Replication"]} | marked(Role.POINT),
    ],
)
def test_clone_of_a_replica_is_a_vm_like_others(
    inherited: dict[str, Any], power_state: str
) -> None:
    clone = vm("web03", power_state=power_state, **inherited)

    selection = select_vms(job(vms=["web*"]), [*POOL, clone])

    assert clone in selection.found
    assert selection.left_out == ()


def test_what_the_configuration_leaves_out_is_no_replica() -> None:
    selection = select_vms(job(vms=["*"], exclude=["web*"], power_states=["running"]), POOL)

    assert len(selection.left_out) == 3
    assert selection.replicas == ()


def test_replica_is_wanted_when_it_is_named() -> None:
    copy = vm("web03", **marked(Role.REPLICA))

    assert select_vms(job(vms=["web03", "web*"]), [copy]).wanted == ("web03",)


def test_vm_that_was_reverted_to_a_snapshot_of_ours_is_no_replica() -> None:
    assert found([vm("web01", **marked(Role.SOURCE))], vms=["web*"]) == ["web01"]


@pytest.mark.parametrize(("tag", "is_out"), [("xo:no-bak", 1), ("xo:no-bak=test", 1), ("xo:n", 0)])
def test_tag_of_xen_orchestra_that_says_no_backup_is_honoured(tag: str, is_out: int) -> None:
    selection = select_vms(job(vms=["web*"]), [vm("web01", tags=[tag])])

    assert len(selection.left_out) == is_out
    assert len(selection.found) == 1 - is_out


def test_reasons_are_counted() -> None:
    selection = select_vms(
        job(vms=["*"], exclude_tags=["gold"], power_states=["running"], exclude=["web01"]), POOL
    )

    assert selection.reasons == {
        "excluded by tag gold": 2,
        "it is halted": 1,
        "excluded by name": 1,
    }


DISK = read_record(
    Vdi, Ref("OpaqueRef:disk"), raws.vdi("disk-uuid", name_label="scratch 1", tags=["temporary"])
)
DRIVE = read_record(Vbd, Ref("OpaqueRef:drive"), raws.vbd("drive", "vm", "disk", userdevice="2"))


@pytest.mark.parametrize(
    ("exclusion", "because"),
    [
        ({}, ""),
        ({"exclude_disk_tags": ["temporary"]}, "tag temporary"),
        ({"exclude_disk_tags": ["temp"]}, ""),
        ({"exclude_disks": {"web*": ["2"]}}, "exclude_disks has '2'"),
        ({"exclude_disks": {"web01": ["0", "scratch*"]}}, "exclude_disks has 'scratch*'"),
        ({"exclude_disks": {"uuid-of-web01": ["disk-uuid"]}}, "exclude_disks has 'disk-uuid'"),
        ({"exclude_disks": {"db*": ["2"], "web01": ["3", "scratch"]}}, ""),
    ],
)
def test_disk_stays_behind_by_tag_or_by_vm(exclusion: dict[str, Any], because: str) -> None:
    assert disk_exclusion(job(**exclusion), vm("web01"), DRIVE, DISK) == because


@pytest.mark.parametrize(("name", "stays"), [("a [NOBAK]", True), ("[NOSNAP]", False)])
def test_name_of_a_disk_can_keep_it_out_as_in_xen_orchestra(name: str, stays: bool) -> None:
    disk = read_record(Vdi, Ref("OpaqueRef:disk"), raws.vdi("disk", name_label=name))

    assert bool(disk_exclusion(job(), vm("web01"), DRIVE, disk)) is stays
