from __future__ import annotations

import asyncio
from typing import Any

from tests.unit.xapi import raws
from xorepd.ids import Ref
from xorepd.xapi.cache import EventBatch, PoolCache
from xorepd.xapi.records import Network, Record, Task, Vbd, Vdi, Vm, read_record
from xorepd.xapi.tables import MOST_DEPARTED

A, B = Ref("OpaqueRef:a"), Ref("OpaqueRef:b")


def batch(
    *changed: Record,
    generation: int = 1,
    deleted: tuple[tuple[str, Ref], ...] = (),
    counts: dict[str, int] | None = None,
    is_first: bool = False,
) -> EventBatch:
    return EventBatch(f"{generation:020d},{7:020d}", changed, deleted, counts or {}, is_first)


def vm(ref: Ref, uuid: str, **changes: Any) -> Vm:
    return read_record(Vm, ref, raws.vm(uuid, **changes))


async def test_records_of_a_batch_are_known_by_reference_and_by_uuid() -> None:
    cache = PoolCache()

    await cache.apply(batch(vm(A, "u-a")))

    assert cache.vms[A].uuid == "u-a"
    assert cache.by_uuid(Vm, "u-a") is cache.vms[A]


async def test_later_record_takes_the_place_of_the_earlier() -> None:
    cache = PoolCache()
    await cache.apply(batch(vm(A, "u-a", name_label="old")))

    await cache.apply(batch(vm(A, "u-a", name_label="new")))

    assert [each.name_label for each in cache.vms.values()] == ["new"]
    assert cache.by_uuid(Vm, "u-a") is cache.vms[A]


async def test_deleted_record_is_gone_from_both_ways_to_it() -> None:
    cache = PoolCache()
    await cache.apply(batch(vm(A, "u-a")))

    await cache.apply(batch(deleted=(("vm", A),)))

    assert A not in cache.vms
    assert cache.by_uuid(Vm, "u-a") is None


async def test_deletion_of_what_was_never_known_is_no_event() -> None:
    cache = PoolCache()

    await cache.apply(batch(deleted=(("vm", A),)))

    assert not cache.vms


async def test_uuid_belongs_to_one_class() -> None:
    cache = PoolCache()

    await cache.apply(batch(vm(A, "u-a")))

    assert cache.by_uuid(Vdi, "u-a") is None


async def test_first_batch_forgets_everything_before() -> None:
    cache = PoolCache()
    await cache.apply(batch(vm(A, "u-a")))

    await cache.apply(batch(vm(B, "u-b"), is_first=True))

    assert list(cache.vms) == [B]
    assert cache.by_uuid(Vm, "u-a") is None


async def test_object_that_changes_its_uuid_is_found_by_the_new_one_only() -> None:
    cache = PoolCache()
    await cache.apply(batch(vm(A, "u-old")))

    await cache.apply(batch(vm(A, "u-new")))

    assert cache.by_uuid(Vm, "u-old") is None
    assert cache.by_uuid(Vm, "u-new") is cache.vms[A]


async def test_objects_that_swap_their_uuids_are_both_found() -> None:
    cache = PoolCache()
    await cache.apply(batch(vm(A, "u-1"), vm(B, "u-2")))

    await cache.apply(batch(vm(A, "u-2"), vm(B, "u-1")))

    assert cache.by_uuid(Vm, "u-2") is cache.vms[A]
    assert cache.by_uuid(Vm, "u-1") is cache.vms[B]


async def test_object_that_takes_over_a_uuid_keeps_it_when_the_former_is_deleted() -> None:
    cache = PoolCache()
    await cache.apply(batch(vm(A, "u-1")))
    await cache.apply(batch(vm(B, "u-1")))

    await cache.apply(batch(deleted=(("vm", A),)))

    assert cache.by_uuid(Vm, "u-1") is cache.vms[B]


async def test_count_that_differs_names_the_class_to_read_again() -> None:
    cache = PoolCache()

    missed = await cache.apply(batch(vm(A, "u-a"), counts={"vm": 2, "vdi": 0}))

    assert missed == ["vm"]


async def test_counts_that_agree_ask_for_nothing() -> None:
    cache = PoolCache()

    assert await cache.apply(batch(vm(A, "u-a"), counts={"vm": 1})) == []
    assert await cache.apply(batch()) == []


async def test_count_of_a_class_that_we_do_not_keep_is_ignored() -> None:
    assert await PoolCache().apply(batch(counts={"vtpm": 12})) == []


async def test_class_that_is_read_again_is_replaced_whole() -> None:
    cache = PoolCache()
    await cache.apply(
        batch(vm(A, "u-a"), vm(B, "u-b"), read_record(Network, A, raws.network("n", "lan")))
    )

    await cache.replace(Vm, [vm(B, "u-b")])

    assert list(cache.vms) == [B]
    assert cache.by_uuid(Vm, "u-a") is None
    assert A in cache.networks


async def test_references_that_dangle_are_left_out() -> None:
    cache = PoolCache()
    await cache.apply(batch(vm(A, "u-a")))

    assert cache.present(Vm, [B, A]) == [cache.vms[A]]


async def test_waiter_is_woken_by_the_change_it_waits_for() -> None:
    cache = PoolCache()

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(cache.wait_for(lambda: A in cache.vms, 10))
        await asyncio.sleep(0)
        await cache.apply(batch(vm(B, "u-b")))
        was_done = waiting.done()
        await cache.apply(batch(vm(A, "u-a")))

    assert not was_done
    assert waiting.result()


async def test_waiter_for_what_holds_already_does_not_wait() -> None:
    assert await PoolCache().wait_for(lambda: True, 0)


async def test_waiter_gives_up_at_its_deadline() -> None:
    assert not await PoolCache().wait_for(lambda: False, 0)


async def test_waiter_can_read_the_cache_after_giving_up() -> None:
    cache = PoolCache()
    await cache.wait_for(lambda: False, 0)

    await cache.apply(batch(vm(A, "u-a")))

    assert A in cache.vms


async def test_barrier_falls_with_the_first_batch_behind_it() -> None:
    cache = PoolCache()
    token = f"{41:020d},{0:020d}"
    await cache.apply(batch(generation=41))

    before = await cache.wait_for_generation(token, 0)
    await cache.apply(batch(generation=42))
    after = await cache.wait_for_generation(token, 0)

    assert not before
    assert after


async def test_barrier_of_another_database_is_taken_from_its_first_batch() -> None:
    cache = PoolCache()
    await cache.apply(batch(generation=5000))

    await cache.apply(batch(generation=3, is_first=True))

    assert not await cache.wait_for_generation(f"{4000:020d},{0:020d}", 0)


async def test_failure_is_known_until_the_next_batch() -> None:
    cache = PoolCache()
    failure = OSError("gone")

    await cache.fail(failure)
    during = cache.failure
    await cache.apply(batch())

    assert during is failure
    assert cache.failure is None


async def test_failure_wakes_who_waits() -> None:
    cache = PoolCache()

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(cache.wait_for(lambda: cache.failure is not None, 10))
        await asyncio.sleep(0)
        await cache.fail(OSError("gone"))

    assert waiting.result()


async def test_any_class_is_reached_by_its_type() -> None:
    cache = PoolCache()

    await cache.apply(batch(read_record(Task, A, raws.task("t"))))

    assert cache.table(Task) == cache.tasks == {A: read_record(Task, A, raws.task("t"))}


# -- names -----------------------------------------------------------------------------------------


async def test_objects_are_called_by_name_and_uuid() -> None:
    cache = PoolCache()
    web, disk = vm(A, "u-a", name_label="web01"), Ref("OpaqueRef:disk")
    drive = read_record(Vbd, B, raws.vbd("u-b", A, disk, userdevice="1"))
    strange = read_record(Vbd, Ref("OpaqueRef:c"), raws.vbd("u-c", "OpaqueRef:gone", disk))
    await cache.apply(
        batch(web, drive, strange, read_record(Vdi, disk, raws.vdi("u-d", name_label="root")))
    )

    assert cache.describe("object", A) == "VM web01 (u-a)"
    assert cache.describe("VM", "u-a") == "VM web01 (u-a)"
    assert cache.describe("VDI", disk) == "VDI root (u-d)"
    assert cache.describe("VBD", B) == "drive 1 of VM web01 (u-a)"
    assert cache.describe("VBD", "OpaqueRef:c") == "drive 0 of a VM that is gone"
    assert cache.describe("VM", "OpaqueRef:other") == ""
    assert cache.describe("VM", "") == ""


async def test_snapshots_and_templates_are_called_so() -> None:
    cache = PoolCache()
    snapshot = vm(A, "u-a", name_label="base", is_a_snapshot=True, is_a_template=True)

    await cache.apply(batch(snapshot, vm(B, "u-b", name_label="", is_a_template=True)))

    assert cache.describe("VM", A) == "snapshot base (u-a)"
    assert cache.describe("VM", B) == "template u-b"


async def test_what_has_gone_is_still_called_by_its_name() -> None:
    cache = PoolCache()
    await cache.apply(batch(vm(A, "u-a", name_label="web01"), vm(B, "u-b", name_label="db")))

    await cache.apply(batch(deleted=(("vm", A),)))
    await cache.apply(batch(is_first=True))

    assert cache.describe("VM", A) == "VM web01 (u-a)"
    assert cache.describe("VM", B) == "VM db (u-b)"
    assert not cache.vms


async def test_only_so_many_names_of_what_has_gone_are_kept_and_none_is_endless() -> None:
    cache = PoolCache()
    refs = [Ref(f"OpaqueRef:{i}") for i in range(MOST_DEPARTED + 10)]
    await cache.apply(batch(*(vm(ref, ref[10:], name_label="x" * 10_000) for ref in refs)))

    await cache.apply(batch(deleted=tuple(("vm", ref) for ref in refs)))

    assert cache.describe("VM", refs[0]) == ""
    assert cache.describe("VM", refs[-1]).startswith("VM xxx")
    assert len(cache.describe("VM", refs[-1])) < 200


async def test_a_class_that_is_read_anew_keeps_its_names() -> None:
    cache = PoolCache()
    await cache.apply(batch(vm(A, "u-a", name_label="web01"), vm(B, "u-b", name_label="db")))

    await cache.replace(Vm, [vm(A, "u-a", name_label="web02")])

    assert cache.describe("VM", A) == "VM web02 (u-a)"
    assert cache.describe("VM", B) == "VM db (u-b)"
    assert list(cache.vms) == [A]
