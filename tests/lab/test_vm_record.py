"""The VM record of a replica follows its source, in whichever direction that is changed."""

from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs

from tests.lab import hands
from tests.lab.world import World
from xorepd.state.records import Outcome

MEMORY = ("memory_static_min", "memory_dynamic_min", "memory_dynamic_max", "memory_static_max")


async def test_memory_and_processors_are_followed_up_and_down(replicated: World) -> None:
    def shape(memory: tuple[int, int, int, int], most: int, at_startup: int) -> hands.Deed:
        def change(xenapi: Any) -> None:
            vm = hands.vm_of(xenapi, "web01")
            low, dynamic_low, dynamic_high, high = (str(size * hands.MiB) for size in memory)
            xenapi.VM.set_memory_limits(vm, low, high, dynamic_low, dynamic_high)
            if most >= int(xenapi.VM.get_VCPUs_at_startup(vm)):
                xenapi.VM.set_VCPUs_max(vm, str(most))
                xenapi.VM.set_VCPUs_at_startup(vm, str(at_startup))
            else:
                xenapi.VM.set_VCPUs_at_startup(vm, str(at_startup))
                xenapi.VM.set_VCPUs_max(vm, str(most))

        return change

    await replicated.ask("prod", lambda x: x.VM.hard_shutdown(hands.vm_of(x, "web01")))
    steps = [
        ((4096, 4096, 8192, 8192), 8, 8),  # all of it above what was
        ((512, 512, 1024, 1024), 2, 1),  # all of it below
        ((512, 1024, 1024, 2048), 4, 1),  # the ceilings alone
        ((256, 256, 512, 512), 3, 3),  # memory down, processors up
    ]
    for memory, most, at_startup in steps:
        await replicated.ask("prod", shape(memory, most, at_startup))
        assert (await replicated.replicate(keep=1)).outcome is Outcome.DELTA

        replica = await replicated.ask("dr", lambda x: x.VM.get_record(hands.replica_of(x)))
        assert [int(replica[field]) // hands.MiB for field in MEMORY] == list(memory)
        assert (replica["VCPUs_max"], replica["VCPUs_at_startup"]) == (str(most), str(at_startup))
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


async def test_a_renamed_and_halted_vm_goes_on_under_its_uuid(replicated: World) -> None:
    def rename(xenapi: Any) -> str:
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VM.hard_shutdown(vm)
        xenapi.VM.set_name_label(vm, "www")
        xenapi.VM.set_name_description(vm, "the web server")
        xenapi.VM.add_to_platform(vm, "nested-virt", "true")
        xenapi.VM.add_to_other_config(vm, "auto_poweron", "true")
        return str(xenapi.VM.get_uuid(vm))

    uuid = await replicated.ask("prod", rename)

    assert (await replicated.replicate(vms=(uuid,))).outcome is Outcome.DELTA

    replica = await replicated.ask("dr", lambda x: x.VM.get_record(hands.replica_of(x)))
    assert replica["name_label"] == "[XO Backup web] www"
    assert replica["name_description"].startswith("the web server -- last replication:")
    assert replica["platform"]["nested-virt"] == "true"
    assert "auto_poweron" not in replica["other_config"]
    assert len(await replicated.points()) == 2
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


async def test_cd_drives_stay_behind_whatever_is_in_them(replicated: World) -> None:
    def insert(xenapi: Any) -> str:
        iso = hands.create_disk(xenapi, "prod-shared", "tools.iso")
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VBD.insert(hands.drive_of(xenapi, vm, "3"), iso)
        return str(xenapi.VDI.get_uuid(iso))

    def eject(xenapi: Any) -> None:
        xenapi.VBD.eject(hands.drive_of(xenapi, hands.vm_of(xenapi, "web01"), "3"))

    iso = await replicated.ask("prod", insert)
    for _ in range(2):
        record = await replicated.replicate(keep=1)
        assert {disk.device for disk in record.disks} == {"0", "1"}
    await replicated.ask("prod", eject)
    assert (await replicated.replicate(keep=1)).outcome is Outcome.DELTA

    assert iso in {v["uuid"] for v in await replicated.ask("prod", all_vdis)}
    assert len(await replicated.bases()) == 1
    await replicated.newest_equals_its_source()
    assert await replicated.left_over(but=[iso]) == []


def all_vdis(xenapi: Any) -> list[dict[str, Any]]:
    return list(xenapi.VDI.get_all_records().values())


async def test_a_vm_without_any_disk_is_replicated_and_pruned_too(two_pools: World) -> None:
    await two_pools.ask("prod", lambda xenapi: hands.create_vm(xenapi, "pxe"))

    outcomes = [(await two_pools.replicate(vms=("pxe",), keep=2)).outcome for _ in range(4)]

    assert outcomes == [Outcome.FULL, Outcome.DELTA, Outcome.DELTA, Outcome.DELTA]
    assert len(await two_pools.points()) == 2
    assert len(await two_pools.bases()) == 1
    assert await two_pools.left_over() == []

    # Its first disk.
    def add_disk(xenapi: Any) -> None:
        vdi = hands.create_disk(xenapi, "prod-shared", "first")
        hands.attach(xenapi, hands.vm_of(xenapi, "pxe"), vdi, "0")

    await two_pools.ask("prod", add_disk)
    record = await two_pools.replicate(vms=("pxe",), keep=2)
    assert {disk.reason for disk in record.disks} == {"new-disk"}
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


def _give_vtpm(contents: str, *, is_unique: bool = False) -> hands.Deed:
    def deed(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01")
        present = xenapi.VM.get_VTPMs(vm)
        if not present:
            xenapi.VM.hard_shutdown(vm)
        vtpm = present[0] if present else xenapi.VTPM.create(vm, is_unique)
        xenapi.VTPM.set_contents(vtpm, contents)

    return deed


def _vtpms_of_replica(xenapi: Any) -> list[str]:
    replica = hands.replica_of(xenapi)
    [point] = xenapi.VM.get_snapshots(replica)
    return [
        xenapi.VTPM.get_contents(vtpm)
        for vm in (replica, point)
        for vtpm in xenapi.VM.get_VTPMs(vm)
    ]


async def test_the_contents_of_a_vtpm_arrive_with_the_disks(replicated: World) -> None:
    for contents in ("c2VjcmV0IG9mIGEgVFBN", "YW5vdGhlciBzZWNyZXQ="):
        await replicated.ask("prod", _give_vtpm(contents))
        assert (await replicated.replicate(keep=1)).outcome is Outcome.DELTA
        assert await replicated.ask("dr", _vtpms_of_replica) == [contents, contents]


async def test_an_empty_vtpm_never_replaces_one_that_holds_something(replicated: World) -> None:
    await replicated.ask("prod", _give_vtpm("c2VjcmV0IG9mIGEgVFBN"))
    await replicated.replicate(keep=1)

    await replicated.ask("prod", _give_vtpm(""))
    await replicated.replicate(keep=1)

    assert set(await replicated.ask("dr", _vtpms_of_replica)) == {"c2VjcmV0IG9mIGEgVFBN"}


async def test_a_pool_that_forbids_vtpms_gets_the_disks_all_the_same(
    replicated: World,
) -> None:
    db = replicated.lab.pools["dr"].db
    db.put("pool", next(db.select("pool")), "restrictions", "restrict_vtpm", "true")
    await replicated.ask("prod", _give_vtpm("c2VjcmV0IG9mIGEgVFBN"))

    with capture_logs() as logs:
        assert (await replicated.replicate(keep=1)).outcome is Outcome.DELTA

    [said] = [entry for entry in logs if entry["event"] == "vtpm.not_copied"]
    assert "restrict_vtpm" in said["reason"]
    assert "c2VjcmV0" not in str(logs)


async def test_the_memory_of_a_suspended_vm_stays_behind_and_is_named(replicated: World) -> None:
    await replicated.ask("prod", lambda x: x.VM.suspend(hands.vm_of(x, "web01")))

    with capture_logs() as logs:
        assert (await replicated.replicate()).outcome is Outcome.DELTA

    [said] = [entry for entry in logs if entry["event"] == "vm.not_copied"]
    assert said["what"] == ["suspended memory"]
    assert await replicated.ask("dr", lambda x: x.VM.get_power_state(hands.replica_of(x))) == (
        "Halted"
    )
    image = await replicated.ask(
        "prod", lambda x: x.VDI.get_uuid(x.VM.get_suspend_VDI(hands.vm_of(x, "web01")))
    )
    assert await replicated.left_over(but=[image]) == []


async def test_ways_to_start_a_replica_that_somebody_opened_are_closed_again(
    replicated: World,
) -> None:
    await replicated.ask(
        "dr", lambda x: x.VM.remove_from_blocked_operations(hands.replica_of(x), "resume_on")
    )

    await replicated.replicate()

    blocked = await replicated.ask("dr", lambda x: x.VM.get_blocked_operations(hands.replica_of(x)))
    assert set(blocked) == {"start", "start_on", "resume", "resume_on", "unpause"}


async def test_firmware_variables_are_followed(replicated: World) -> None:
    await replicated.ask("prod", lambda x: x.VM.hard_shutdown(hands.vm_of(x, "web01")))
    for content in ("Rmlyc3Q=", "U2Vjb25k"):
        variables = {"EFI-variables": content}
        await replicated.ask(
            "prod", lambda x, v=variables: x.VM.set_NVRAM(hands.vm_of(x, "web01"), v)
        )
        await replicated.replicate()
        found = await replicated.ask("dr", lambda x: x.VM.get_NVRAM(hands.replica_of(x)))
        assert found == variables
