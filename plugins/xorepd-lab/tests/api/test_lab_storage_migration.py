"""Disks that move to another SR of their pool: what becomes of them, of snapshots and of VBDs."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab.labclient import FAST, NULL, Api, exchange, get, logged_in, vdi_record
from tests.lab.vmwatch import empty_drive, messages
from xorepd_lab.faults.faults import Fault
from xorepd_lab.lab import Lab
from xorepd_lab.topology import SMALL

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.leaves("result", "session")]

MIB = 1 << 20
PAGE = 4096
EMPTY = 24 * MIB
"""From here on web01-data holds nothing."""
MARK = {"xorepd-test": "mine", "config-drive": "true"}


@pytest.fixture
async def other_sr(api: Api) -> str:
    """A second SR that all hosts see."""
    (host,) = await api("host.get_by_name_label", "prod-h1")
    config = {"server": "nas", "serverpath": "/other"}
    return str(await api("SR.create", host, config, "0", "other", "", "nfs", "", True, {}))


async def marked(api: Api, vdi: str) -> dict[str, Any]:
    """Put marks on a disk and return its record."""
    for key, value in MARK.items():
        await api("VDI.add_to_other_config", vdi, key, value)
    return dict(await api("VDI.get_record", vdi))


async def drive(api: Api, vm: str, vdi: str) -> str:
    """Return the VBD by which a VM has a disk."""
    (vbd,) = [v for v in await api("VM.get_VBDs", vm) if await api("VBD.get_VDI", v) == vdi]
    return str(vbd)


async def read(lab: Lab, api: Api, vdi: str) -> bytes:
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}&format=raw"
    pool = lab.pools["prod"]
    address = pool.address(pool.host("prod-h2"))
    body = (await exchange(f"http://{address}:{pool.http_port}", get(path))).partition(b"\r\n\r\n")
    return body[2]


def result_of(task: dict[str, Any]) -> str:
    assert task["status"] == "success", task["error_info"]
    text: str = task["result"]
    return text.removeprefix("<value>").removesuffix("</value>")


async def vdis(api: Api, vm: str) -> list[str]:
    return [await api("VBD.get_VDI", vbd) for vbd in await api("VM.get_VBDs", vm)]


async def copy_of(api: Api, point: str, disk: str) -> str:
    """Return the disk of a VM's snapshot that is of that disk."""
    held = [vdi for vdi in await vdis(api, point) if vdi != NULL]
    (found,) = [vdi for vdi in held if await api("VDI.get_snapshot_of", vdi) == disk]
    return found


async def destination(api: Api, host: str) -> dict[str, str]:
    (ref,) = await api("host.get_by_name_label", host)
    (network,) = await api("network.get_by_name_label", "lan")
    return dict(await api("host.migrate_receive", ref, network, {}))


async def test_a_moved_disk_is_another_one_without_its_marks(
    lab: Lab, api: Api, other_sr: str
) -> None:
    vm, disk = await api.vm("web01"), await api.disk("web01-data")
    before = await marked(api, disk)
    vbd = await drive(api, vm, disk)
    untouched = await api.disk("web01-root")

    moved = await api("VDI.pool_migrate", disk, other_sr, {})

    after = await api("VDI.get_record", moved)
    assert after["uuid"] != before["uuid"]
    assert after["SR"] == other_sr
    for field in ("name_label", "name_description", "virtual_size", "type", "read_only"):
        assert after[field] == before[field]
    assert after["other_config"] == {}
    assert await api.failure("VDI.get_record", disk) == ["HANDLE_INVALID", "VDI", disk]
    assert (await api.failure("VDI.get_by_uuid", before["uuid"]))[0] == "UUID_INVALID"
    record = await api("VBD.get_record", vbd)
    assert (record["VDI"], record["currently_attached"]) == (moved, True)
    assert await drive(api, vm, untouched)
    assert (await api("VM.get_record", vm))["power_state"] == "Running"
    assert (await api.failure("VDI.destroy", moved))[0] == "VDI_IN_USE"
    assert await messages(api, vm) == []


async def test_the_guest_writes_on_while_its_disk_moves(lab: Lab, api: Api, other_sr: str) -> None:
    disk = await api.disk("web01-data")
    before = await read(lab, api, await api("VDI.snapshot", disk))
    lab.pools["prod"].clock.scale = 0.02
    task = await api("Async.VDI.pool_migrate", disk, other_sr, {})
    pages: list[int] = []
    while await api("task.get_status", task) == "pending":
        pages.append(EMPTY + len(pages) * PAGE)
        await lab.guest_write("web01", 1, sequential=(pages[-1], PAGE), seed=len(pages))

    moved = result_of(await api.finished(task))
    await lab.guest_write("web01", 1, sequential=(pages[-1] + PAGE, PAGE), seed=0)
    pages.append(pages[-1] + PAGE)
    await api("VM.hard_shutdown", await api.vm("web01"))

    after = await read(lab, api, moved)
    assert len(pages) > 2
    assert after[:EMPTY] == before[:EMPTY]
    assert all(any(after[page : page + PAGE]) for page in pages)
    assert after[pages[-1] + PAGE :] == before[pages[-1] + PAGE :]


async def test_the_disk_of_a_halted_vm_moves_and_gets_a_new_content_id(lab: Lab, api: Api) -> None:
    vm, disk = await api.vm("db01"), await api.disk("db01-data")
    await api("VDI.add_to_other_config", disk, "content_id", "old")
    await marked(api, disk)
    before = await read(lab, api, disk)
    (shared,) = await api("SR.get_by_name_label", "prod-shared")

    moved = await api("VDI.pool_migrate", disk, shared, {})

    record = await api("VDI.get_record", moved)
    assert set(record["other_config"]) == {"content_id", "config-drive"}
    assert record["other_config"]["content_id"] != "old"
    assert await read(lab, api, moved) == before
    assert await api("VM.get_power_state", vm) == "Halted"
    assert await api("VM.get_resident_on", vm) == NULL
    assert [v for v in await vdis(api, vm) if v != NULL] == [moved]


async def test_the_snapshots_of_a_vm_follow_their_disk(lab: Lab, api: Api, other_sr: str) -> None:
    vm, disk = await api.vm("web01"), await api.disk("web01-data")
    root = await api.disk("web01-root")
    await marked(api, disk)
    await api("VDI.add_tags", disk, "gold")
    first = await api("VM.snapshot", vm, "first")
    await lab.guest_write("web01", 1, random=4, seed=1)
    second = await api("VM.snapshot", vm, "second")
    alone = await api("VDI.snapshot", disk)
    old = {point: await copy_of(api, point, disk) for point in (first, second)}
    await api("VDI.add_to_other_config", old[second], "content_id", "named")
    before = {point: await read(lab, api, vdi) for point, vdi in old.items()}
    records = {point: await api("VDI.get_record", vdi) for point, vdi in old.items()}
    drives = {point: await drive(api, point, vdi) for point, vdi in old.items()}
    of_root = await copy_of(api, first, root)

    moved = await api("VDI.pool_migrate", disk, other_sr, {})

    assert await api("VDI.get_tags", moved) == []
    for point in (first, second):
        new = await api("VBD.get_VDI", drives[point])
        record = await api("VDI.get_record", new)
        assert (await api.failure("VDI.get_record", old[point]))[0] == "HANDLE_INVALID"
        assert record["uuid"] != records[point]["uuid"]
        assert (record["SR"], record["is_a_snapshot"]) == (other_sr, True)
        assert record["snapshot_of"] == moved
        assert record["snapshot_time"] == records[point]["snapshot_time"]
        assert record["name_label"] == "web01-data"
        assert record["tags"] == []
        assert record["other_config"] == {
            "config-drive": "true",
            "content_id": records[point]["other_config"]["content_id"],
        }
        assert await read(lab, api, new) == before[point]
    assert set(await api("VM.get_snapshots", vm)) == {first, second}
    assert await copy_of(api, first, root) == of_root
    # It belongs to no snapshot of the VM: it stays, of a disk that is gone.
    assert await api("VDI.get_snapshot_of", alone) == disk
    assert await api("VDI.get_SR", alone) != other_sr
    assert (await api("VDI.get_other_config", alone))["xorepd-test"] == "mine"


async def test_later_releases_take_the_tags_of_a_disk_along(tmp_path: Path) -> None:
    pools = tuple(replace(pool, release="26") for pool in SMALL.pools)
    topology = replace(SMALL, pools=pools)
    async with Lab.start(tmp_path, topology, time_scale=FAST) as lab, logged_in(lab) as api:
        disk = await api.disk("db01-data")
        await api("VDI.add_tags", disk, "gold")
        (shared,) = await api("SR.get_by_name_label", "prod-shared")

        moved = await api("VDI.pool_migrate", disk, shared, {})

        assert await api("VDI.get_tags", moved) == ["gold"]


async def test_a_snapshot_without_a_content_id_gets_the_uuid_it_had(
    api: Api, other_sr: str
) -> None:
    disk = await api.disk("web01-data")
    point = await api("VM.snapshot", await api.vm("web01"), "s")
    copy = await copy_of(api, point, disk)
    uuid = await api("VDI.get_uuid", copy)
    vbd = await drive(api, point, copy)

    # As a reader of it leaves one, nobody may read it here.
    assert "content_id" not in await api("VDI.get_other_config", copy)
    await api("VDI.pool_migrate", disk, other_sr, {})

    moved = await api("VBD.get_VDI", vbd)
    assert await api("VDI.get_other_config", moved) == {"content_id": uuid}


async def test_a_vm_goes_to_another_host_with_its_disks(lab: Lab, api: Api) -> None:
    vm, data, root = (
        await api.vm("web01"),
        await api.disk("web01-data"),
        await api.disk("web01-root"),
    )
    for disk in (data, root):
        await marked(api, disk)
    (local,) = await api("SR.get_by_name_label", "prod-local")
    (shared,) = await api("SR.get_by_name_label", "prod-shared")
    dest = await destination(api, "prod-h2")
    uuid = await api("VM.get_uuid", vm)

    moved = await api("VM.migrate_send", vm, dest, True, {data: local, root: shared}, {}, {})

    assert moved == vm
    assert await api("VM.get_uuid", vm) == uuid
    assert await api("VM.get_resident_on", vm) == dest["host"]
    assert await messages(api, vm) == ["VM_MIGRATED"]
    disks = [await api("VDI.get_record", vdi) for vdi in await vdis(api, vm) if vdi != NULL]
    by_name = {disk["name_label"]: disk for disk in disks}
    assert by_name["web01-root"]["other_config"].items() >= MARK.items()
    assert by_name["web01-data"]["other_config"] == {}
    assert by_name["web01-data"]["SR"] == local
    await lab.guest_write("web01", 1, random=1, seed=1)


async def test_a_disk_that_only_another_host_sees_takes_the_vm_along(lab: Lab, api: Api) -> None:
    vm, disk = await api.vm("web01"), await api.disk("web01-data")
    (local,) = await api("SR.get_by_name_label", "prod-local")
    (host,) = await api("host.get_by_name_label", "prod-h2")

    await api("VDI.pool_migrate", disk, local, {})

    assert await api("VM.get_resident_on", vm) == host
    assert await messages(api, vm) == []


async def test_a_disc_is_ejected_unless_it_is_in_the_map(api: Api, other_sr: str) -> None:
    vm, data, root = (
        await api.vm("web01"),
        await api.disk("web01-data"),
        await api.disk("web01-root"),
    )
    shared = await api("VDI.get_SR", root)
    disc = await api("VDI.create", vdi_record(shared, read_only=True))
    tray = await empty_drive(api, vm)
    await api("VBD.insert", tray, disc)

    dest = await destination(api, "prod-h1")
    stays = {data: shared, root: shared, disc: shared}
    await api("VM.migrate_send", vm, dest, True, stays, {}, {})
    assert await api("VBD.get_VDI", tray) == disc

    await api("VM.migrate_send", vm, dest, True, {data: shared, root: shared}, {}, {})
    assert await api("VBD.get_empty", tray) is True


# -- what is refused ------------------------------------------------------------------------------


async def test_what_cannot_move_says_why(lab: Lab, api: Api, other_sr: str) -> None:
    vm, data, root = (
        await api.vm("web01"),
        await api.disk("web01-data"),
        await api.disk("web01-root"),
    )
    shared = await api("VDI.get_SR", root)
    lonely = await api("VDI.create", vdi_record(shared))
    dest = await destination(api, "prod-h1")

    async def sent(*arguments: Any) -> list[str]:
        failure = await api.failure("VM.migrate_send", vm, dest, True, *arguments)
        assert await api.failure("VM.assert_can_migrate", vm, dest, True, *arguments) == failure
        return failure

    assert await api.failure("VDI.pool_migrate", lonely, other_sr, {}) == [
        "VDI_NEEDS_VM_FOR_MIGRATE",
        lonely,
    ]
    assert (await sent({data: other_sr}, {}, {})) == ["VDI_NOT_IN_MAP", root]
    (vif,) = await api("VM.get_VIFs", vm)
    (lan,) = await api("network.get_by_name_label", "lan")
    everything = {data: other_sr, root: shared}
    assert (await sent(everything, {vif: lan}, {}))[0] == "OPERATION_NOT_ALLOWED"
    assert (await sent(everything, {}, {"copy": "true"}))[0] == "OPERATION_NOT_ALLOWED"
    iso = await api("SR.introduce", "", "isos", "", "iso", "iso", True, {})
    unfit = ["SR_DOES_NOT_SUPPORT_MIGRATION", iso]
    assert (await sent({**everything, data: iso}, {}, {})) == unfit
    await api("VM.add_to_blocked_operations", vm, "migrate_send", "stay")
    assert await api.failure("VDI.pool_migrate", data, other_sr, {}) == [
        "OPERATION_BLOCKED",
        vm,
        "stay",
    ]


async def test_a_tracked_disk_does_not_move_and_neither_does_one_with_a_tracked_snapshot(
    api: Api, other_sr: str
) -> None:
    vm, disk = await api.vm("web01"), await api.disk("web01-data")
    await api("VDI.enable_cbt", disk)
    assert await api.failure("VDI.pool_migrate", disk, other_sr, {}) == ["VDI_CBT_ENABLED", disk]

    point = await api("VM.snapshot", vm, "s")
    copy = await copy_of(api, point, disk)
    await api("VDI.disable_cbt", disk)

    assert await api.failure("VDI.pool_migrate", disk, other_sr, {}) == ["VDI_CBT_ENABLED", copy]
    assert await api("VDI.get_SR", disk) != other_sr


async def test_another_pool_is_not_known(lab: Lab, api: Api) -> None:
    async with logged_in(lab, "dr") as there:
        (host,) = await there("host.get_all")
        (network,) = await there("network.get_by_name_label", "lan")
        dest = await there("host.migrate_receive", host, network, {})

    failure = await api.failure("VM.migrate_send", await api.vm("db01"), dest, True, {}, {}, {})
    assert failure == ["MESSAGE_METHOD_UNKNOWN", "VM.migrate_send"]


@pytest.mark.parametrize("skip", range(3))
async def test_a_move_that_fails_leaves_everything_as_it_was(
    lab: Lab, api: Api, other_sr: str, skip: int
) -> None:
    vm, disk = await api.vm("web01"), await api.disk("web01-data")
    await marked(api, disk)
    await api("VM.snapshot", vm, "one")
    before = {**await api("VDI.get_all_records")}
    error = ("SR_BACKEND_FAILURE_44", "", "There is insufficient space", "")
    lab.faults.add(Fault("inner", "VDI.*", skip=skip, error=error))

    assert await api.failure("VDI.pool_migrate", disk, other_sr, {}) == list(error)

    after = await api("VDI.get_all_records")
    managed = {ref for ref, vdi in after.items() if vdi["managed"]}
    assert managed == {ref for ref, vdi in before.items() if vdi["managed"]}
    assert after[disk]["other_config"].items() >= MARK.items()
    await lab.guest_write("web01", 1, random=1, seed=1)


async def test_a_move_can_be_cancelled(lab: Lab, api: Api, other_sr: str) -> None:
    disk = await api.disk("web01-data")
    fault = lab.faults.add(Fault("inner", "VDI.create", stall=True))
    task = await api("Async.VDI.pool_migrate", disk, other_sr, {})
    async with asyncio.timeout(20):
        await fault.stalled.wait()

    await api("task.cancel", task)
    fault.release()

    assert (await api.finished(task))["status"] == "cancelled"
    assert await api("VDI.get_SR", disk) != other_sr
    assert await api("SR.get_VDIs", other_sr) == []
