from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.unit.parts import job
from tests.unit.replication.builders import STREAM
from tests.unit.replication.test_selection import vm
from xorepd.ids import VmUuid
from xorepd.replication.deciding.selection import select_vms
from xorepd.replication.deciding.vanished import Stray, find_strays
from xorepd.replication.format.marks import KEY, Mark, ReplicaKey, Role
from xorepd.xapi.records import Vm
from xorepd.xapi.tables import Tables

SR = ReplicaKey(pool="pool-1", vm="", sr="sr-1")


def replica(of: str = "web01", *, stream: ReplicaKey = STREAM, **facts: Any) -> Vm:
    plain = {"role": Role.REPLICA, "run": "r", "self": f"uuid-of-replica of {of}", "job": "web"}
    mark = Mark(**(plain | {"stream": replace(stream, vm=f"uuid-of-{of}")} | facts))
    name = f"replica of {of}"
    made = vm(name, other_config={KEY: mark.encode()})
    return replace(made, name_label=f"[XO Backup web] {of}")


def strays(pool: list[Vm], *replicas: Vm, **changes: Any) -> list[Stray]:
    wanted, source, target = job(**({"vms": ["web*"]} | changes)), Tables(), Tables()
    for tables, vms in ((source, pool), (target, replicas)):
        for each in vms:
            tables.put(each)
    return list(find_strays(wanted, select_vms(wanted, pool), source, target, SR))


def test_replica_whose_vm_is_gone_is_found_with_the_name_that_it_had() -> None:
    [stray] = strays([vm("web02")], replica("web01"), replica("web02"))

    assert (stray.vm, stray.name, stray.exists) == ("uuid-of-web01", "web01", False)


def test_vm_whose_name_another_one_has_by_now_is_replaced() -> None:
    [stray] = strays([vm("web01", uuid="another")], replica("web01"))

    assert (stray.vm, stray.exists, stray.is_replaced) == ("uuid-of-web01", False, True)
    [missed] = strays([vm("web02")], replica("web01"))
    assert not missed.is_replaced


def test_snapshots_of_a_vm_that_is_gone_are_counted() -> None:
    def snapshot(name: str, role: Role = Role.SOURCE, stream: ReplicaKey = STREAM) -> Vm:
        of_source = replace(stream, vm="uuid-of-web01", sr="")
        mark = Mark(role, of_source, "run", self=f"uuid-of-{name}")
        return vm(name, is_a_snapshot=True, other_config={KEY: mark.encode()})

    others = (snapshot("c", Role.POINT), snapshot("d", stream=replace(STREAM, pool="pool-2")))
    clone = replace(snapshot("e"), uuid=VmUuid("another"))

    [stray] = strays([snapshot("a"), snapshot("b"), *others, clone], replica("web01"))

    assert stray.snapshots == 2


def test_replica_whose_vm_is_not_meant_any_more_is_told_apart() -> None:
    [stray] = strays([vm("web01", tags=["no"])], replica("web01"), exclude_tags=["no"])

    assert stray.exists


def test_vm_that_became_a_template_is_gone() -> None:
    [stray] = strays([vm("web01", is_a_template=True)], replica("web01"))

    assert not stray.exists


def test_vm_that_an_operator_excluded_is_not_missed() -> None:
    assert strays([], replica("web01"), exclude=["web01"]) == []
    assert strays([], replica("web01"), exclude=["uuid-of-web01"]) == []


def test_vm_that_is_named_is_missed_by_its_own_run_alone() -> None:
    assert strays([], replica("web01"), vms=["web01", "web*"]) == []
    assert strays([], replica("web01"), vms=["uuid-of-web01", "web*"]) == []


def test_replicas_of_other_jobs_pools_and_storage_are_not_missed() -> None:
    assert (
        strays(
            [],
            replica(job="other"),
            replica(stream=replace(STREAM, pool="pool-2")),
            replica(stream=replace(STREAM, sr="sr-2")),
            replica(self="another VM"),
            replica(role=Role.POINT),
            vm("not ours"),
        )
        == []
    )
