"""What a run does when nothing goes wrong, judged by libvhdi and the XenAPI SDK."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.lab import hands
from tests.lab.world import World, world
from xorepd.state.records import Outcome
from xorepd_lab.topology import SMALL


@pytest.mark.debug
async def test_first_run_is_a_full_and_equals_the_source(two_pools: World) -> None:
    record = await two_pools.replicate()

    assert record.outcome is Outcome.FULL
    assert {disk.reason for disk in record.disks} == {"first-run"}
    assert record.restore_point == await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


@pytest.mark.parametrize(("source", "target"), [("26", "26"), ("8.3", "26"), ("26", "8.3")])
async def test_pools_of_all_releases_serve_as_source_and_as_target(
    tmp_path: Path, source: Literal["8.3", "26"], target: Literal["8.3", "26"]
) -> None:
    releases = {"prod": source, "dr": target}
    pools = tuple(replace(pool, release=releases[pool.name]) for pool in SMALL.pools)

    async with world(tmp_path / "lab", replace(SMALL, pools=pools)) as made:
        first = await made.replicate()
        await made.lab.guest_write("web01", 1, random=3, seed=5, within=(0, 2 << 20))
        second = await made.replicate()

        assert (first.outcome, second.outcome) == (Outcome.FULL, Outcome.DELTA)
        await made.newest_equals_its_source()
        assert await made.left_over() == []


async def test_second_run_sends_only_what_changed(replicated: World) -> None:
    await replicated.lab.guest_write("web01", 1, random=3, seed=5, within=(0, 2 << 20))

    record = await replicated.replicate()

    assert record.outcome is Outcome.DELTA
    assert {disk.device: disk.read_bytes for disk in record.disks} == {"0": 0, "1": 2 << 20}
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


async def test_a_daemon_without_memory_continues_with_deltas(replicated: World) -> None:
    for seed in range(3):
        await replicated.lab.guest_write("web01", 0, random=2, seed=seed)

        assert (await replicated.replicate()).outcome is Outcome.DELTA

    await replicated.newest_equals_its_source()


async def test_files_of_the_guest_arrive_in_a_clean_filesystem(replicated: World) -> None:
    await replicated.lab.guest_write("web01", 0, files={"/etc/motd": b"new\n"})

    record = await replicated.replicate()

    assert record.outcome is Outcome.DELTA
    await replicated.newest_equals_its_source()


@pytest.mark.debug
async def test_retention_keeps_the_newest_points_and_one_base(replicated: World) -> None:
    points = [(await replicated.points())[0]["self"]]
    for seed in range(3):
        await replicated.lab.guest_write("web01", 1, random=1, seed=seed)
        points.append((await replicated.replicate(keep=2)).restore_point)

    assert [mark["self"] for mark in await replicated.points()] == [points[3], points[2]]
    assert len(await replicated.bases()) == 1
    assert await replicated.left_over() == []


async def test_an_older_point_keeps_its_own_content(replicated: World) -> None:
    old = (await replicated.points())[0]["self"]
    before = await replicated.hashes("dr", old)

    await replicated.lab.guest_write("web01", 0, random=20, seed=3)
    await replicated.replicate()

    assert await replicated.hashes("dr", old) == before


async def test_a_grown_disk_is_grown_on_the_target(replicated: World) -> None:
    def grow(xenapi: Any) -> None:
        vm = xenapi.VM.get_by_name_label("web01")[0]
        xenapi.VM.hard_shutdown(vm)
        for vbd in xenapi.VM.get_VBDs(vm):
            if xenapi.VBD.get_userdevice(vbd) == "1":
                xenapi.VDI.resize(xenapi.VBD.get_VDI(vbd), str(48 << 20))
        xenapi.VM.start(vm, False, False)

    await replicated.ask("prod", grow)
    await replicated.lab.guest_write("web01", 1, sequential=(40 << 20, 1 << 20), seed=1)

    record = await replicated.replicate()

    assert record.outcome is Outcome.DELTA
    assert {disk.device: disk.virtual_size for disk in record.disks}["1"] == 48 << 20
    point = (await replicated.points())[0]
    ours = await replicated.exported_hashes("dr", point["self"])
    assert ours == await replicated.exported_hashes("prod", point["snapshot"])


async def test_a_new_disk_is_sent_whole_and_the_others_as_deltas(replicated: World) -> None:
    def add_disk(xenapi: Any) -> None:
        vm = xenapi.VM.get_by_name_label("web01")[0]
        sr = xenapi.SR.get_by_name_label("prod-shared")[0]
        vdi = xenapi.VDI.create(
            {
                "SR": sr,
                "virtual_size": str(8 << 20),
                "type": "user",
                "sharable": False,
                "read_only": False,
                "other_config": {},
                "name_label": "web01-new",
            }
        )
        xenapi.VBD.create(
            {
                "VM": vm,
                "VDI": vdi,
                "userdevice": "4",
                "bootable": False,
                "mode": "RW",
                "type": "Disk",
                "empty": False,
                "other_config": {},
                "qos_algorithm_type": "",
                "qos_algorithm_params": {},
            }
        )

    await replicated.ask("prod", add_disk)

    record = await replicated.replicate()

    assert record.outcome is Outcome.FULL
    assert {disk.device: disk.reason for disk in record.disks} == {
        "0": "",
        "1": "",
        "4": "new-disk",
    }
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


async def test_a_base_deleted_by_hand_costs_a_comparison_that_says_so(
    replicated: World,
) -> None:
    await replicated.ask("prod", hands.delete_snapshots)

    record = await replicated.replicate()

    assert record.outcome is Outcome.DELTA
    assert {disk.mode for disk in record.disks} == {"resync"}
    assert {disk.reason for disk in record.disks} == {"base-gone-on-source"}
    assert len(await replicated.points()) == 2
    await replicated.newest_equals_its_source()


async def test_the_replica_is_protected_named_and_tagged_as_xen_orchestra_does(
    replicated: World,
) -> None:
    def look(xenapi: Any) -> dict[str, Any]:
        [record] = [
            vm
            for vm in xenapi.VM.get_all_records().values()
            if "Continuous Replication" in vm["tags"] and not vm["is_a_snapshot"]
        ]
        return dict(record)

    replica = await replicated.ask("dr", look)

    assert replica["name_label"] == "[XO Backup web] web01"
    assert set(replica["blocked_operations"]) == {
        "start",
        "start_on",
        "resume",
        "resume_on",
        "unpause",
    }
    assert replica["is_a_template"] is False
    assert replica["power_state"] == "Halted"
    assert "-- last replication:" in replica["name_description"]
    assert "xo:copy_of" not in replica["other_config"]


async def test_source_and_point_carry_the_keys_that_xen_orchestra_looks_for(
    replicated: World,
) -> None:
    def keys_of(uuid: str) -> Any:
        def read(xenapi: Any) -> list[dict[str, str]]:
            vm = xenapi.VM.get_by_uuid(uuid)
            disks = [
                xenapi.VDI.get_other_config(xenapi.VBD.get_VDI(vbd))
                for vbd in sorted(xenapi.VM.get_VBDs(vm), key=xenapi.VBD.get_userdevice)
                if xenapi.VBD.get_type(vbd) == "Disk"
            ]
            return [xenapi.VM.get_other_config(vm), *disks]

        return read

    point = (await replicated.points())[0]

    source = await replicated.ask("prod", keys_of(point["snapshot"]))
    target = await replicated.ask("dr", keys_of(point["self"]))

    for ours, theirs in zip(target, source, strict=True):
        for key in ("xo:backup:job", "xo:backup:vm", "xo:backup:datetime"):
            assert ours[key] == theirs[key]
        assert theirs["xo:backup:exported"] == "true"
        assert ours["xo:backup:includeNonNbdQcow2Fix"] == "true"
    assert target[0]["xo:copy_of"] == point["snapshot"]
    assert [d["xo:backup:contentKey"] for d in target[1:]] == [
        d["xo:backup:contentKey"] for d in source[1:]
    ]


async def test_interfaces_keep_their_mac_and_follow_the_networks_by_name(
    replicated: World,
) -> None:
    def interfaces(name: str) -> Any:
        def read(xenapi: Any) -> list[tuple[str, str, str]]:
            found = []
            for vm in xenapi.VM.get_all_records().values():
                if vm["name_label"] == name and not vm["is_a_snapshot"]:
                    for vif in vm["VIFs"]:
                        record = xenapi.VIF.get_record(vif)
                        network = xenapi.network.get_name_label(record["network"])
                        found.append((record["device"], record["MAC"], network))
            return found

        return read

    source = await replicated.ask("prod", interfaces("web01"))
    replica = await replicated.ask("dr", interfaces("[XO Backup web] web01"))

    assert replica == source != []


async def test_a_halted_vm_on_a_local_sr_is_replicated_too(two_pools: World) -> None:
    record = await two_pools.replicate(vms=("db01",))

    assert record.outcome is Outcome.FULL
    await two_pools.newest_equals_its_source()


async def test_replicas_are_never_sources(replicated: World) -> None:
    async with replicated.daemon() as context:
        record = await replicated.run(
            context,
            source="dr",
            vms=("[XO Backup web] web01",),
            target={"pool": "prod", "sr": "prod-shared"},
        )

    assert record.outcome is Outcome.FAILED
    assert "is itself a replica" in (record.error or "")
    assert await replicated.left_over() == []
