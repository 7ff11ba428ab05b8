"""What proves that an object is ours, and that a disk holds what we put there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.replication.builders import OTHER_STREAM, STREAM, World, earlier_text
from xorepd.ids import Ref
from xorepd.replication.format.marks import KEY, Mark, Role
from xorepd.replication.format.ownership import (
    Content,
    content_of,
    is_as_made,
    is_changed,
    is_of,
    objection,
    own_mark,
    run_that_named,
    temporary_name,
    used_by_vms,
    was_made_of_changed,
)
from xorepd.xapi.records import CONTENT_ID, Vdi, Vm

BLANK = Mark(Role.DISK, STREAM, "run-1")


async def disk_of(world: World, ref: Ref) -> Vdi:
    return (await world.cache()).vdis[ref]


async def vm_of(world: World, ref: Ref) -> Vm:
    return (await world.cache()).vms[ref]


# -- signed ------------------------------------------------------------------------------------


async def test_mark_that_names_uuid_and_reference_is_the_objects_own() -> None:
    world = World()
    vm, disk = world.vm(), world.disk()
    on_vm, on_disk = world.mark(vm, Role.REPLICA), world.mark(disk, Role.DISK)

    assert own_mark(await vm_of(world, vm)) == on_vm
    assert own_mark(await disk_of(world, disk)) == on_disk


@pytest.mark.parametrize("how", ["clone", "snapshot"])
async def test_mark_that_a_copy_inherits_is_nobodys(how: str) -> None:
    world = World()
    vm, disk = world.vm(), world.disk()
    world.attach(vm, disk)
    world.mark(vm, Role.REPLICA)
    world.mark(disk, Role.DISK)
    copy = world.clone(vm) if how == "clone" else world.snapshot(vm)
    assert KEY in world.raw(copy)["other_config"]

    assert own_mark(await vm_of(world, copy)) is None
    assert own_mark(await disk_of(world, world.disks(copy)[0])) is None


@pytest.mark.parametrize(
    ("uuid", "ref", "is_own"),
    [
        (True, True, True),
        (True, False, False),  # imported with its UUID
        (False, True, False),
        (False, False, False),
    ],
)
async def test_mark_is_its_own_by_uuid_and_reference_together(
    *, uuid: bool, ref: bool, is_own: bool
) -> None:
    world = World()
    disk = world.disk()
    mark = BLANK.on(world.uuid(disk) if uuid else "another", disk if ref else "OpaqueRef:another")
    world.set_key(disk, KEY, mark.encode())

    assert (own_mark(await disk_of(world, disk)) is not None) == is_own


@pytest.mark.parametrize(("uuid", "is_own"), [(True, True), (False, False)])
async def test_mark_of_the_earlier_form_is_its_own_by_uuid_alone(
    *, uuid: bool, is_own: bool
) -> None:
    world = World()
    disk = world.disk()
    mark = BLANK.on(world.uuid(disk) if uuid else "another", "")
    world.set_key(disk, KEY, earlier_text(mark, "2026-03-02T12:00:00+00:00"))

    assert (own_mark(await disk_of(world, disk)) is not None) == is_own


@pytest.mark.parametrize("text", [BLANK.encode(), "{", "none", "null"])
async def test_mark_that_names_nothing_is_nobodys(text: str) -> None:
    world = World()
    disk, vm = world.disk(), world.vm()
    for each in (disk, vm):
        world.set_key(each, KEY, text)

    assert own_mark(await disk_of(world, disk)) is None
    assert own_mark(await vm_of(world, vm)) is None


async def test_object_without_a_mark_has_none() -> None:
    world = World()

    assert own_mark(await disk_of(world, world.disk())) is None


async def test_mark_counts_for_its_role_and_its_stream_alone() -> None:
    world = World()
    ref = world.disk()
    mark, disk = world.mark(ref, Role.POINT), await disk_of(world, ref)

    assert is_of(disk, Role.POINT, STREAM) == mark
    assert is_of(disk, Role.DISK, STREAM) is None
    assert is_of(disk, Role.POINT, OTHER_STREAM) is None
    assert is_of(await disk_of(world, world.clone_disk(ref)), Role.POINT, STREAM) is None


# -- named ---------------------------------------------------------------------------------------


async def test_vm_that_a_call_of_a_run_named_tells_its_run() -> None:
    world = World()

    assert run_that_named(await vm_of(world, world.vm(temporary_name("run-7")))) == "run-7"


@pytest.mark.parametrize("name", ["", "web01", "xorepd-unmarked-", " xorepd-unmarked-run-7"])
async def test_vm_of_any_other_name_was_named_by_no_run(name: str) -> None:
    world = World()

    assert run_that_named(await vm_of(world, world.vm(name))) == ""


async def test_copy_of_a_named_vm_has_a_name_of_its_own() -> None:
    world = World()
    vm = world.vm(temporary_name("run-7"))

    assert run_that_named(await vm_of(world, world.clone(vm, "clone by a user"))) == ""


# -- content -------------------------------------------------------------------------------------


async def content(world: World, ref: Ref, twin: Ref | None = None) -> Content:
    cache = await world.cache()
    mark = own_mark(cache.vdis[ref])
    assert mark is not None
    return content_of(cache.vdis[ref], mark, cache.vdis[twin] if twin else None)


async def test_disk_that_has_the_content_id_of_its_mark_is_proven() -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.DISK)

    assert await content(world, disk) is Content.PROVEN
    assert not is_changed(await disk_of(world, disk))


async def test_disk_that_something_wrote_to_is_changed() -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.DISK)
    world.write(disk)

    assert await content(world, disk) is Content.CHANGED
    assert is_changed(await disk_of(world, disk))


async def test_disk_that_is_open_for_writing_is_changed_though_nothing_may_be_written_yet() -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.DISK)
    vbd = world.attach(world.vm(), disk, currently_attached=True)

    assert await content(world, disk) is Content.CHANGED
    world.detach(vbd)
    assert await content(world, disk) is Content.CHANGED


async def test_disk_that_is_read_is_proven() -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.DISK)
    world.attach(world.vm(), disk, mode="RO", currently_attached=True)

    assert await content(world, disk) is Content.PROVEN


@pytest.mark.parametrize(
    "changes", [{"type": "cbt_metadata"}, {"missing": True}, {"managed": False}]
)
async def test_disk_without_data_has_nothing_that_could_have_changed(
    changes: dict[str, object],
) -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.POINT)
    world.write(disk)
    world.raw(disk).update(changes)

    assert await content(world, disk) is Content.PROVEN


async def test_mark_of_the_earlier_form_does_not_say_what_its_disk_held() -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.POINT)
    world.mark_earlier(disk)

    assert await content(world, disk) is Content.UNKNOWN
    assert not is_changed(await disk_of(world, disk))


@pytest.mark.parametrize(
    ("written", "told"),
    [((), Content.PROVEN), (("disk",), Content.CHANGED), (("twin",), Content.CHANGED)],
)
async def test_disk_of_the_earlier_form_and_its_twin_tell_of_each_other(
    written: tuple[str, ...], told: Content
) -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.DISK)
    world.mark_earlier(disk)
    refs = {"disk": disk, "twin": world.snapshot_disk(disk)}
    for each in written:
        world.write(refs[each])

    assert await content(world, disk, refs["twin"]) is told


@pytest.mark.parametrize("without", ["disk", "twin", "both"])
async def test_disk_of_the_earlier_form_is_unknown_where_one_of_both_has_no_content_id(
    without: str,
) -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.DISK)
    world.mark_earlier(disk)
    twin = world.snapshot_disk(disk)
    for name, each in (("disk", disk), ("twin", twin)):
        if without in (name, "both"):
            del world.raw(each)["other_config"][CONTENT_ID]

    assert await content(world, disk, twin) is Content.UNKNOWN


@pytest.mark.parametrize("is_written", [False, True])
async def test_twin_has_no_say_where_the_mark_tells(*, is_written: bool) -> None:
    world = World()
    disk = world.disk()
    twin = world.disk()
    world.mark(disk, Role.DISK)
    if is_written:
        world.write(disk)
        world.set_key(twin, CONTENT_ID, world.content_id(disk))

    told = Content.CHANGED if is_written else Content.PROVEN
    assert await content(world, disk, twin) is told


async def test_only_a_disk_that_is_ours_is_known_to_be_changed() -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.DISK)
    clone, stranger = world.clone_disk(disk), world.disk()
    world.write(clone)
    world.write(stranger)

    assert not is_changed(await disk_of(world, clone))
    assert not is_changed(await disk_of(world, stranger))


# -- before anything was signed -------------------------------------------------------------------


async def made_by_a_clone(
    world: World, *, is_written: bool = False, is_earlier: bool = False
) -> bool:
    origin = world.disk()
    world.mark(origin, Role.POINT)
    if is_earlier:
        world.mark_earlier(origin)
    clone = world.clone_disk(origin)
    if is_written:
        world.write(clone)
    return await as_made(world, clone)


async def as_made(world: World, ref: Ref) -> bool:
    cache = await world.cache()
    return is_as_made(cache, cache.vdis[ref])


async def test_clone_has_the_content_of_its_origin_until_something_writes_to_it() -> None:
    assert await made_by_a_clone(World())
    assert not await made_by_a_clone(World(), is_written=True)


async def test_clone_whose_mark_does_not_say_what_it_held_has_what_another_disk_has() -> None:
    assert await made_by_a_clone(World(), is_earlier=True)
    assert not await made_by_a_clone(World(), is_written=True, is_earlier=True)
    world = World()
    clone = world.clone_disk(world.disk())
    assert await as_made(world, clone)
    world.write(clone)
    assert not await as_made(world, clone)


async def test_clone_of_a_disk_that_had_been_written_to_is_not_as_it_says() -> None:
    world = World()
    origin = world.disk()
    world.mark(origin, Role.POINT)
    world.write(origin)

    assert not await as_made(world, world.clone_disk(origin))


async def test_new_disk_has_no_content_until_something_writes_to_it() -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.DISK, unsigned=True, content="content-of-ours")
    del world.raw(disk)["other_config"][CONTENT_ID]
    assert await as_made(world, disk)

    world.write(disk)

    assert not await as_made(world, disk)


# -- use -----------------------------------------------------------------------------------------


async def test_memory_is_used_by_the_vm_that_is_suspended_in_it() -> None:
    world = World()
    image, other = world.disk(type="suspend"), world.disk(type="suspend")
    vm = world.vm(power_state="Suspended", suspend_VDI=image)
    cache = await world.cache()

    assert used_by_vms(cache, cache.vdis[image])
    assert not used_by_vms(cache, cache.vdis[image], but=vm)
    assert not used_by_vms(cache, cache.vdis[other])


# -- what may be destroyed -----------------------------------------------------------------------


async def test_signed_disk_that_nothing_wrote_to_may_be_destroyed() -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.DISK)

    assert objection(await disk_of(world, disk)) == ""


async def test_signed_disk_of_the_earlier_form_may_be_destroyed() -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.DISK)
    world.mark_earlier(disk)

    assert objection(await disk_of(world, disk)) == ""


async def test_signed_disk_that_something_wrote_to_is_not_to_be_destroyed() -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.DISK)
    world.write(disk)

    assert objection(await disk_of(world, disk)) == "something wrote to it since it was signed"


@pytest.mark.parametrize("what", ["clone", "snapshot", "unsigned", "stranger"])
async def test_disk_that_is_not_signed_is_not_to_be_destroyed(what: str) -> None:
    world = World()
    disk = world.disk()
    world.mark(disk, Role.DISK, unsigned=what == "unsigned")
    refs = {
        "unsigned": disk,
        "clone": world.clone_disk(disk),
        "snapshot": world.snapshot_disk(disk),
    }
    ref = refs.get(what) or world.disk()

    assert objection(await disk_of(world, ref)) == "it is not signed as ours"


async def test_name_of_a_run_proves_nothing_on_a_disk() -> None:
    world = World()
    disk = world.disk(name_label=temporary_name("run-1"))

    assert objection(await disk_of(world, disk)) == "it is not signed as ours"


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("Halted", ""),
        ("Suspended", ""),
        ("Running", "it is running"),
        ("Paused", "it is paused"),
    ],
)
async def test_signed_vm_may_be_destroyed_while_it_is_not_used(state: str, why: str) -> None:
    world = World()
    signed = world.vm(power_state=state)
    world.mark(signed, Role.REPLICA)
    named = world.vm(temporary_name("run-1"), power_state=state)

    assert objection(await vm_of(world, signed)) == why
    assert objection(await vm_of(world, named)) == why


@pytest.mark.parametrize("state", ["Halted", "Suspended", "Running"])
async def test_snapshot_of_a_vm_has_the_power_state_that_this_had(state: str) -> None:
    world = World()
    vm = world.vm(power_state=state)
    snapshot = world.snapshot(vm, temporary_name("run-1"))
    assert objection(await vm_of(world, snapshot)) == ""

    world.mark(snapshot, Role.SOURCE)
    world.raw(snapshot)["name_label"] = "snapshot"

    assert objection(await vm_of(world, snapshot)) == ""


async def test_vm_that_is_neither_signed_nor_named_by_a_run_is_not_to_be_destroyed() -> None:
    world = World()
    vm = world.vm("web01")
    world.mark(vm, Role.REPLICA)
    clone, snapshot = world.clone(vm), world.snapshot(vm)
    imported = world.vm("imported")
    mark = replace(BLANK, role=Role.REPLICA).on(world.uuid(imported), vm)
    world.set_key(imported, KEY, mark.encode())

    for each in (clone, snapshot, imported, world.vm("")):
        assert objection(await vm_of(world, each)) == "it is not signed as ours"


def test_clone_tells_whether_its_origin_was_written_to_after_it_was_signed() -> None:
    mark = Mark(Role.DISK, STREAM, "run-1", content="content-1").on("disk", "OpaqueRef:disk")
    key = {KEY: mark.encode()}

    assert not was_made_of_changed({**key, CONTENT_ID: "content-1"})
    assert was_made_of_changed({**key, CONTENT_ID: "content-2"})
    assert was_made_of_changed(key)
    assert not was_made_of_changed({})
