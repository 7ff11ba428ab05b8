from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.parts import job
from tests.unit.replication.builders import STREAM
from tests.unit.replication.test_selection import vm
from xorepd.config.models import JobSettings
from xorepd.ids import PoolName, Ref
from xorepd.replication.deciding.orphans import Orphan, find_orphans
from xorepd.replication.format.marks import KEY, Mark, Role
from xorepd.xapi.cache import EventBatch, PoolCache
from xorepd.xapi.records import PoolRecord, Record, Sr, Vm, read_record

PROD, DR = PoolName("prod"), PoolName("dr")


async def cache(uuid: str, *records: Record) -> PoolCache:
    made = PoolCache()
    pool = read_record(
        PoolRecord, Ref("OpaqueRef:pool"), {"uuid": uuid, "name_label": "", "master": ""}
    )
    await made.apply(EventBatch("1,1", (pool, *records), (), {}, is_first=True))
    return made


def replica(of: str = "web01", **facts: Any) -> Vm:
    uuid = f"uuid-of-replica of {of}"
    stream = replace(STREAM, vm=f"uuid-of-{of}")
    mark = Mark(
        **({"role": Role.REPLICA, "run": "r", "self": uuid, "job": "web"} | facts), stream=stream
    )
    made = vm(f"replica of {of}", other_config={KEY: mark.encode()})
    return replace(made, name_label=f"[XO Backup web] {of}")


def point(of: str, number: int, offset: int = 0) -> Vm:
    uuid = f"uuid-of-point {number} of {of}"
    stream = replace(STREAM, vm=f"uuid-of-{of}")
    mark = Mark(Role.POINT, stream, "r", self=uuid, job="web", order=number, offset=offset)
    mark = replace(mark, moment=f"2026-03-0{number}T12:00:00+00:00")
    return vm(f"point {number} of {of}", is_a_snapshot=True, other_config={KEY: mark.encode()})


SR = read_record(
    Sr, Ref("OpaqueRef:sr"), {"uuid": "sr-1", "name_label": "dr-storage", "type": "nfs"}
)


async def orphans(
    jobs: Sequence[JobSettings],
    *replicas: Vm,
    sources: Sequence[Vm] = (vm("web01"), vm("web02")),
    answers: bool = True,
) -> list[Orphan]:
    pools = {DR: await cache("pool-2", SR, *replicas)}
    if answers:
        pools[PROD] = await cache("pool-1", *sources)
    return find_orphans(jobs, pools)


async def test_replica_of_a_job_that_was_removed_is_shown_with_its_points() -> None:
    found = await orphans([], replica("web01"), point("web01", 1), point("web01", 2), point("x", 3))

    orphan, left = found
    assert (left.replica, left.points, left.name) == ("", 1, "uuid-of-x")
    assert (orphan.pool, orphan.sr, orphan.job, orphan.points) == (DR, "dr-storage", "web", 2)
    assert orphan.vm == "uuid-of-web01"
    assert str(orphan.newest_point_at) == "2026-03-02 12:00:00+00:00"


async def test_newest_point_is_told_by_the_daemons_clock() -> None:
    [orphan] = await orphans([], replica("web01"), point("web01", 1), point("web01", 2, 86400))

    assert str(orphan.newest_point_at) == "2026-03-01 12:00:00+00:00"


@pytest.mark.parametrize(
    "means",
    [
        {"vms": ["web01"]},
        {"vms": ["uuid-of-web01"]},
        {"vms": ["web*"]},
        {"name": "renamed"},
        {"targets": [{"pool": "dr", "sr": "sr-1"}]},
        {"targets": [{"pool": "prod", "sr": "x"}, {"pool": "dr", "sr": "dr-storage"}]},
    ],
)
async def test_replica_that_a_job_means_has_one_whatever_the_job_is_called(
    means: dict[str, Any],
) -> None:
    assert await orphans([job(**means)], replica("web01")) == []


@pytest.mark.parametrize(
    "means",
    [
        {"vms": ["web02"]},
        {"vms": ["*"], "exclude": ["web01"]},
        {"source": "dr"},
        {"targets": [{"pool": "dr", "sr": "other"}]},
        {"targets": [{"pool": "prod", "sr": "dr-storage"}]},
    ],
)
async def test_replica_that_no_job_means_any_more_is_an_orphan(means: dict[str, Any]) -> None:
    assert len(await orphans([job(**means)], replica("web01"))) == 1


async def test_replica_whose_vm_is_gone_belongs_to_the_job_that_misses_it() -> None:
    gone: dict[str, Any] = {"sources": [vm("web02")]}

    assert await orphans([job(vms=["web01"])], replica("web01"), **gone) == []
    assert await orphans([job(vms=["uuid-of-web01"])], replica("web01"), **gone) == []
    assert await orphans([job(vms=["w*"])], replica("web01"), **gone) == []
    assert len(await orphans([job("other", vms=["w*"])], replica("web01"), **gone)) == 1
    excluded = job(vms=["w*"], exclude=["web01"])
    assert len(await orphans([excluded], replica("web01"), **gone)) == 1
    assert len(await orphans([job(vms=["web02"])], replica("web01"), **gone)) == 1


@pytest.mark.parametrize(
    "means", [{"vms": ["web01"]}, {"vms": ["w*"]}, {"vms": ["-*"], "tags": ["gold"]}]
)
async def test_vm_that_is_gone_is_gone_whatever_has_its_name_by_now(means: dict[str, Any]) -> None:
    rebuilt = vm("web01", uuid="another", tags=["gold"])

    [orphan] = await orphans([job(**means)], replica("web01"), sources=[rebuilt])

    assert (orphan.vm, orphan.source_vm_exists) == ("uuid-of-web01", False)
    by_uuid = job(vms=["uuid-of-web01"])
    assert await orphans([by_uuid], replica("web01"), sources=[rebuilt]) == []
    template = vm("web01", uuid="another", is_a_template=True)
    assert await orphans([job(**means)], replica("web01"), sources=[template]) == []


async def test_source_that_does_not_answer_makes_no_orphans() -> None:
    assert await orphans([job(vms=["w*"])], replica("web01"), answers=False) == []
    assert len(await orphans([job("other")], replica("web01"), answers=False)) == 1


async def test_clones_of_replicas_are_no_orphans() -> None:
    assert await orphans([], replica("web01", self="another")) == []


async def test_job_whose_source_is_silent_may_mean_what_another_job_made() -> None:
    [orphan] = await orphans([job("other")], replica("web01"), answers=False)

    assert (orphan.possible_job, orphan.source, orphan.source_vm_exists) == ("other", "", False)


async def test_what_this_daemon_has_replicated_is_known() -> None:
    pools = {PROD: await cache("pool-1", vm("web01")), DR: await cache("pool-2", SR, replica())}
    runs = {("uuid-of-web01", "sr-1")}

    [known] = find_orphans([], pools, runs)
    [strange] = find_orphans([], pools, {("uuid-of-web01", "sr-2")})

    assert (known.known, known.source, known.source_vm_exists) == (True, "prod", True)
    assert not strange.known
