"""VDI and SR calls beyond snapshots: copies, sizes, records, coalescing, SRs that come and go."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.lab.labclient import FAST, Api, get, logged_in, until, vbd_record, vdi_record, wire
from xorepd_lab.faults.faults import Fault
from xorepd_lab.lab import Lab
from xorepd_lab.topology import SMALL

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab

MIB = 1 << 20
NULL = "OpaqueRef:NULL"


async def content(lab: Lab, api: Api, vdi: str) -> bytes:
    """Return what the pool exports as the disk's bytes."""
    pool = lab.pools["prod"]
    host = pool.db.get("PBD", pool.db.get("SR", await api("VDI.get_SR", vdi), "PBDs")[0], "host")
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}&format=raw"
    async with wire(f"http://{pool.address(host)}:{pool.http_port}") as connection:
        await connection.send(get(path))
        assert " 200 " in (await connection.head()).splitlines()[0]
        return await connection.rest()


async def sr_of(api: Api, name: str) -> str:
    (sr,) = await api("SR.get_by_name_label", name)
    return str(sr)


async def base_copies(api: Api) -> list[str]:
    return list(await api("VDI.get_by_name_label", "base copy"))


async def until_gone(api: Api, names: int) -> None:
    """Wait until no more than so many base copies are left."""
    token = ""
    while len(await base_copies(api)) > names:
        token = (await api("event.from", ["vdi"], token, 5.0))["token"]


# -- copies -------------------------------------------------------------------------------------


async def test_a_copy_on_another_sr_holds_the_same(lab: Lab, api: Api) -> None:
    disk, sr = await api.disk("db01-data"), await sr_of(api, "prod-shared")
    await api("VDI.add_to_other_config", disk, "key", "value")

    copy = await api("VDI.copy", disk, sr)

    assert await content(lab, api, copy) == await content(lab, api, disk)
    record = await api("VDI.get_record", copy)
    assert (record["SR"], record["name_label"]) == (sr, "db01-data")
    assert record["other_config"]["key"] == "value"
    assert (record["is_a_snapshot"], record["snapshot_of"]) == (False, NULL)
    assert "vhd-parent" not in record["sm_config"]
    # Nothing holds either of them any more.
    for vdi in (disk, copy):
        vbds = [await api("VBD.get_record", vbd) for vbd in await api("VDI.get_VBDs", vdi)]
        assert not any(vbd["currently_attached"] for vbd in vbds)


async def test_a_copy_is_as_thin_as_what_it_is_copied_from(lab: Lab, api: Api) -> None:
    sr = await sr_of(api, "prod-shared")
    empty = await api("VDI.create", vdi_record(sr, 64 * MIB))

    copy = await api("VDI.copy", empty, sr)

    assert int(await api("VDI.get_physical_utilisation", copy)) < MIB


async def test_a_copy_with_a_base_writes_only_what_differs(lab: Lab, api: Api) -> None:
    disk, sr = await api.disk("web01-data"), await sr_of(api, "prod-local")
    first = await api("VDI.snapshot", disk)
    target = await api("VDI.copy", first, sr)
    await lab.guest_write("web01", 1, sequential=(10 * MIB, 4096), seed=9)
    second = await api("VDI.snapshot", disk)
    directory = lab.pools["prod"].srs["prod-local"].directory
    delta = await api("VDI.create", vdi_record(sr, 32 * MIB))

    assert await api("VDI.copy", second, NULL, first, target) == target
    await api("VDI.copy", second, NULL, first, delta)

    assert await content(lab, api, target) == await content(lab, api, second)
    size = (directory / f"{await api('VDI.get_uuid', delta)}.vhd").stat().st_size
    assert 2 * MIB < size < 3 * MIB


async def test_copies_into_what_cannot_take_them_are_refused(api: Api) -> None:
    disk, sr = await api.disk("db01-data"), await sr_of(api, "prod-shared")
    small = await api("VDI.create", vdi_record(sr, 2 * MIB))
    locked = await api("VDI.create", vdi_record(sr, 16 * MIB, read_only=True))
    (base,) = [await api("VDI.snapshot", disk)]

    assert await api.failure("VDI.copy", disk, NULL, NULL, small) == [
        "VDI_TOO_SMALL",
        small,
        str(16 * MIB),
    ]
    assert await api.failure("VDI.copy", disk, NULL, NULL, locked) == ["VDI_READONLY", locked]
    assert (await api.failure("VDI.copy", disk))[:2] == ["HANDLE_INVALID", "SR"]
    running = await api.disk("web01-data")
    assert await api.failure("VDI.copy", running, sr) == ["VDI_IN_USE", running, "copy"]
    assert await api("VDI.get_by_name_label", "web01-data") == [running]
    assert base


async def test_a_cancelled_copy_leaves_nothing(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    disk, sr = await api.disk("db01-data"), await sr_of(api, "prod-shared")
    before = set(await api("VDI.get_all"))

    pool.clock.scale = 4.0  # attaching takes two seconds, before anything is copied
    task = await api("Async.VDI.copy", disk, sr)
    await until(lambda: len(pool.db.get("VDI", disk, "VBDs")) > 1)
    await api("task.cancel", task)
    pool.clock.scale = FAST

    record = await api.finished(task)
    assert record["status"] == "failure"
    told = f"Server_error(TASK_CANCELLED, [ {task} ])"
    assert record["error_info"] == ["VDI_COPY_FAILED", told]
    assert set(await api("VDI.get_all")) == before


async def test_a_copy_that_finds_the_sr_full_leaves_nothing(lab: Lab, api: Api) -> None:
    disk, sr = await api.disk("db01-data"), await sr_of(api, "prod-shared")
    repository = lab.pools["prod"].storage.of(sr)
    repository.shrink_capacity(repository.store.spent() + MIB)
    before = set(await api("VDI.get_all"))

    failure = await api.failure("VDI.copy", disk, sr)
    assert failure == ["VDI_COPY_FAILED", 'Failure("sparse_dd")']

    assert set(await api("VDI.get_all")) == before


async def test_a_disk_being_copied_is_not_snapshotted(tmp_path: Path) -> None:
    async with (
        Lab.start(tmp_path / "lab", SMALL, seed=1, time_scale=0.3) as lab,
        logged_in(lab) as api,
    ):
        disk, sr = await api.disk("db01-data"), await sr_of(api, "prod-shared")
        token = (await api("event.from", ["vdi"], "", 0.0))["token"]
        task = await api("Async.VDI.copy", disk, sr)
        while "copy" not in (await api("VDI.get_current_operations", disk)).values():
            token = (await api("event.from", ["vdi"], token, 5.0))["token"]

        refused = await api.failure("VDI.snapshot", disk)

        assert refused == ["OPERATION_NOT_ALLOWED", "Snapshot operation not allowed during copy."]
        assert (await api.finished(task))["status"] == "success"


# -- records ------------------------------------------------------------------------------------


async def test_drivers_keep_no_sm_config_of_clients(api: Api) -> None:
    sr = await sr_of(api, "prod-shared")

    vdi = await api("VDI.create", vdi_record(sr, sm_config={"mine": "1", "base_mirror": "2"}))

    assert await api("VDI.get_sm_config", vdi) == {"base_mirror": "2"}


async def test_a_forgotten_disk_comes_back_with_a_scan(api: Api) -> None:
    sr = await sr_of(api, "prod-local")
    disk, vm = await api.disk("db01-data"), await api.vm("db01")
    uuid = await api("VDI.get_uuid", disk)

    await api("VDI.forget", disk)
    assert (await api.failure("VDI.get_uuid", disk))[0] == "HANDLE_INVALID"
    assert all([await api("VBD.get_empty", vbd) for vbd in await api("VM.get_VBDs", vm)])
    await api("SR.scan", sr)

    found = await api("VDI.get_by_uuid", uuid)
    assert found != disk
    assert await api("VDI.get_name_label", found) == ""
    assert await api("VDI.get_virtual_size", found) == str(16 * MIB)


async def test_disks_in_use_are_not_forgotten(api: Api) -> None:
    disk = await api.disk("web01-data")

    assert await api.failure("VDI.forget", disk) == ["VDI_IN_USE", disk, "forget"]


async def test_file_srs_take_no_introductions(api: Api) -> None:
    sr = await sr_of(api, "prod-shared")
    uuid = "7b1b3cd5-4d17-4bd6-b1c2-0d3c5a2b6d11"

    refused = await api.failure("VDI.introduce", uuid, "n", "d", sr, "user", False, False, {}, uuid)

    assert refused == ["SR_OPERATION_NOT_SUPPORTED", sr]


async def test_update_reads_the_size_of_the_file(lab: Lab, api: Api) -> None:
    disk = await api.disk("web01-data")
    before = int(await api("VDI.get_physical_utilisation", disk))
    await lab.guest_write("web01", 1, sequential=(18 * MIB, 4 * MIB))
    assert int(await api("VDI.get_physical_utilisation", disk)) == before

    # While a VM has it, nothing but live operations is allowed.
    assert await api.failure("VDI.update", disk) == ["VDI_IN_USE", disk, "update"]
    await api("VM.hard_shutdown", await api.vm("web01"))
    await api("VDI.update", disk)

    assert int(await api("VDI.get_physical_utilisation", disk)) > before


@pytest.mark.parametrize(
    ("field", "value"),
    [("sharable", True), ("read_only", True), ("managed", False), ("virtual_size", "1")],
)
async def test_what_drivers_say_of_disks_clients_cannot_set(
    api: Api, field: str, value: Any
) -> None:
    disk = await api.disk("db01-data")

    assert await api.failure(f"VDI.set_{field}", disk, value) == ["PERMISSION_DENIED", ""]


async def test_resizing_online_is_removed(api: Api) -> None:
    disk = await api.disk("web01-data")

    refused = await api.failure("VDI.resize_online", disk, str(64 * MIB))

    assert refused == ["MESSAGE_REMOVED"]
    assert "resize_online" not in await api("VDI.get_allowed_operations", disk)


async def test_sizes_and_names_need_somebody_who_sees_the_sr(api: Api) -> None:
    disk, sr = await api.disk("db01-data"), await sr_of(api, "prod-local")
    for pbd in await api("SR.get_PBDs", sr):
        await api("PBD.unplug", pbd)

    missing = ["SR_HAS_NO_PBDS", sr]
    assert await api.failure("VDI.resize", disk, str(32 * MIB)) == missing
    assert await api.failure("VDI.set_name_label", disk, "x") == missing
    assert await api.failure("VDI.enable_cbt", disk) == missing
    assert await api.failure("SR.scan", sr) == missing


async def test_allowed_operations_know_nothing_of_changed_blocks(api: Api) -> None:
    halted = await api("VDI.get_allowed_operations", await api.disk("db01-data"))
    running = await api("VDI.get_allowed_operations", await api.disk("web01-data"))

    assert set(halted) == {
        "clone", "copy", "resize", "snapshot", "destroy", "forget", "update", "generate_config",
    }  # fmt: skip
    assert set(running) == {"clone", "snapshot"}


async def test_a_disk_is_in_use_until_its_stream_is_detached(lab: Lab, api: Api) -> None:
    disk = await api.disk("web01-data")
    snapshot = await api("VDI.snapshot", disk)
    fault = lab.faults.add(Fault("export", stall=True, stall_at=4096))

    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(get(f"/export_raw_vdi?session_id={api.ref}&vdi={snapshot}"))
        await fault.stalled.wait()
        (key,) = [k for k in await api("VDI.get_sm_config", snapshot) if k.startswith("host_")]
        assert (await api("VDI.get_sm_config", snapshot))[key] == "RO"
        assert await api.failure("VDI.destroy", snapshot) == ["VDI_IN_USE", snapshot, "destroy"]
        fault.release()
        await connection.rest()

    assert key not in await api("VDI.get_sm_config", snapshot)
    assert "content_id" in await api("VDI.get_other_config", snapshot)
    await api("VDI.destroy", snapshot)


# -- coalescing ---------------------------------------------------------------------------------


@pytest.fixture
async def lonely(lab: Lab, api: Api) -> str:
    """A disk alone on its base copy; the collector is about to start."""
    disk = await api.disk("web01-data")
    snapshot = await api("VDI.snapshot", disk)
    await lab.guest_write("web01", 1, random=4, seed=1)
    await api("VDI.destroy", snapshot)
    return disk


async def test_a_disk_alone_on_its_base_copy_takes_its_place(
    lab: Lab, api: Api, lonely: str
) -> None:
    uuid = await api("VDI.get_uuid", lonely)

    await until_gone(api, 0)

    directory = lab.pools["prod"].srs["prod-shared"].directory
    assert (directory / f"{uuid}.vhd").exists()
    assert "vhd-parent" not in await api("VDI.get_sm_config", lonely)
    await lab.guest_write("web01", 1, random=4, seed=2)


@pytest.mark.parametrize(
    ("owner", "switch"), [("SR", "leaf-coalesce"), ("VDI", "leaf-coalesce"), ("SR", "coalesce")]
)
async def test_leaf_coalesce_can_be_switched_off(
    lab: Lab, api: Api, owner: str, switch: str
) -> None:
    disk, sr = await api.disk("web01-data"), await sr_of(api, "prod-shared")
    await api(f"{owner}.add_to_other_config", sr if owner == "SR" else disk, switch, "false")
    garbage = await api("VDI.create", vdi_record(sr))
    clones = [await api("VDI.snapshot", garbage)]
    await lab.guest_write("web01", 1, random=1, seed=1)
    await api("VDI.destroy", await api("VDI.snapshot", disk))
    for each in (garbage, *clones):
        await api("VDI.destroy", each)

    await lab.settled()

    # What nobody needs goes all the same.
    (base,) = await base_copies(api)
    parent = await api("VDI.get_uuid", base)
    assert (await api("VDI.get_sm_config", disk))["vhd-parent"] == parent


async def test_the_garbage_collector_can_be_switched_off(lab: Lab, api: Api) -> None:
    disk, sr = await api.disk("web01-data"), await sr_of(api, "prod-shared")
    await api("SR.add_to_other_config", sr, "gc", "false")
    await api("VDI.destroy", await api("VDI.snapshot", disk))

    await lab.settled()

    assert len(await base_copies(api)) == 1


async def test_merges_show_on_the_disks_above_them(lab: Lab, api: Api) -> None:
    disk, db = await api.disk("web01-data"), lab.pools["prod"].db
    for seed in range(2):
        await api("VDI.snapshot", disk)
        await lab.guest_write("web01", 1, random=4, seed=seed)
    seen: set[str] = set()

    async def watch() -> None:
        while True:
            await db.changed()
            seen.update(db.get("VDI", disk, "sm_config"))

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        for snapshot in await api("VDI.get_snapshots", disk):
            await api("VDI.destroy", snapshot)
        await until_gone(api, 0)
        watching.cancel()

    assert {"relinking", "paused"} <= seen
    await lab.settled()
    assert not {"relinking", "paused"} & (await api("VDI.get_sm_config", disk)).keys()


async def test_snapshots_pause_the_disk(lab: Lab, api: Api) -> None:
    disk, db = await api.disk("web01-data"), lab.pools["prod"].db
    seen: set[str] = set()

    async def watch() -> None:
        while "paused" not in seen:
            await db.changed()
            seen.update(db.get("VDI", disk, "sm_config"))

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        snapshot = await api("VDI.snapshot", disk)

    for each in (disk, snapshot):
        assert "paused" not in await api("VDI.get_sm_config", each)


# -- SRs ----------------------------------------------------------------------------------------


async def make_sr(api: Api, **device_config: str) -> str:
    (host,) = await api("host.get_by_name_label", "prod-h1")
    sr = await api("SR.create", host, device_config, "0", "new", "made", "ext", "user", False, {})
    return str(sr)


async def test_an_sr_is_made_used_and_destroyed(lab: Lab, api: Api) -> None:
    sr = await make_sr(api, device="/dev/sdz")
    record = await api("SR.get_record", sr)
    (pbd,) = record["PBDs"]
    vdi = await api("VDI.create", vdi_record(sr))

    assert (record["type"], record["shared"]) == ("ext", False)
    assert int(record["physical_size"]) > 0
    assert await api("PBD.get_currently_attached", pbd) is True
    assert await api.failure("SR.destroy", sr) == ["SR_HAS_PBD", sr]
    assert await api.failure("SR.forget", sr) == ["SR_HAS_PBD", sr]
    await api("PBD.unplug", pbd)
    assert await api.failure("SR.destroy", sr) == ["SR_NOT_EMPTY"]
    await api("PBD.plug", pbd)
    await api("VDI.destroy", vdi)
    await api("PBD.unplug", pbd)
    directory = lab.pools["prod"].sr_directory(record["uuid"])
    assert directory.is_dir()

    await api("SR.destroy", sr)

    assert not directory.exists()
    assert (await api.failure("SR.get_uuid", sr))[:2] == ["HANDLE_INVALID", "SR"]
    assert (await api.failure("PBD.get_uuid", pbd))[0] == "HANDLE_INVALID"


async def test_an_sr_needs_a_driver_and_what_the_driver_needs(api: Api) -> None:
    (host,) = await api("host.get_by_name_label", "prod-h1")
    before = await api("SR.get_all")

    unknown = await api.failure(
        "SR.create", host, {}, "0", "new", "", "zfs-of-tomorrow", "user", False, {}
    )
    (code, _, text, _) = await api.failure(
        "SR.create", host, {}, "0", "new", "", "ext", "user", False, {}
    )

    assert unknown == ["SR_UNKNOWN_DRIVER", "zfs-of-tomorrow"]
    assert (code, text) == (
        "SR_BACKEND_FAILURE_90",
        "The request is missing the device parameter",
    )
    assert await api("SR.get_all") == before
    assert {"ext", "nfs"} <= set(await api("SR.get_supported_types"))


async def test_a_forgotten_sr_comes_back_with_its_disks(api: Api) -> None:
    sr = await make_sr(api, device="/dev/sdz")
    uuid = await api("SR.get_uuid", sr)
    vdi = await api("VDI.create", vdi_record(sr, 6 * MIB))
    disk = await api("VDI.get_uuid", vdi)
    await api("VBD.create", vbd_record(await api.vm("db01"), vdi))
    (pbd,) = await api("SR.get_PBDs", sr)
    (host,) = await api("host.get_by_name_label", "prod-h1")
    await api("PBD.unplug", pbd)

    await api("SR.forget", sr)
    assert (await api.failure("VDI.get_by_uuid", disk))[0] == "UUID_INVALID"
    again = await api("SR.introduce", uuid, "back", "", "ext", "user", False, {})
    record = {"host": host, "SR": again, "device_config": {"device": "/dev/sdz"}}
    await api("PBD.plug", await api("PBD.create", record))

    found = await api("VDI.get_by_uuid", disk)
    assert await api("VDI.get_SR", found) == again
    assert await api("VDI.get_virtual_size", found) == str(6 * MIB)
    assert await api.failure("SR.introduce", uuid, "x", "", "ext", "user", False, {}) == [
        "SR_UUID_EXISTS",
        uuid,
    ]


async def test_disks_of_an_sr_that_is_introduced_again_are_bare(lab: Lab, api: Api) -> None:
    vm, disk = await api.vm("web01"), await api.disk("web01-data")
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    await api("VM.hard_shutdown", vm)
    await api("VDI.enable_cbt", disk)
    await api("VDI.add_to_other_config", disk, "xorepd-test", "mine")
    point = await api("VM.snapshot", vm, "point")
    (base,) = await api("VDI.get_snapshots", disk)
    alone = await api("VDI.snapshot", disk)
    await api("VDI.data_destroy", alone)
    vdis = {"disk": disk, "base": base, "alone": alone}
    uuids = {name: await api("VDI.get_uuid", vdi) for name, vdi in vdis.items()}
    before = await content(lab, api, base)
    uuid, hosts = await api("SR.get_uuid", sr), []
    for pbd in await api("SR.get_PBDs", sr):
        hosts.append(await api("PBD.get_host", pbd))
        await api("PBD.unplug", pbd)

    await api("SR.forget", sr)
    again = await api("SR.introduce", uuid, "prod-shared", "", "nfs", "user", True, {})
    for host in hosts:
        config = {"server": "nas", "serverpath": "/"}
        record = {"host": host, "SR": again, "device_config": config}
        await api("PBD.plug", await api("PBD.create", record))
    await api("SR.scan", again)

    found = {name: await api("VDI.get_by_uuid", each) for name, each in uuids.items()}
    records = {name: await api("VDI.get_record", vdi) for name, vdi in found.items()}
    assert not {disk, base, alone} & {*found.values()}
    for record in records.values():
        assert (record["name_label"], record["other_config"], record["tags"]) == ("", {}, [])
        assert (record["is_a_snapshot"], record["snapshot_of"]) == (False, NULL)
        assert record["VBDs"] == []
    # What the driver keeps beside the disks is still there.
    assert all(record["cbt_enabled"] for record in records.values())
    assert records["alone"]["type"] == "cbt_metadata"
    assert await api("VDI.list_changed_blocks", found["base"], found["alone"])
    assert await content(lab, api, found["base"]) == before
    for each in (vm, point):
        vbds = [await api("VBD.get_record", vbd) for vbd in await api("VM.get_VBDs", each)]
        assert [vbd["type"] for vbd in vbds] == ["CD"]


async def test_an_sr_can_be_indestructible(api: Api) -> None:
    sr = await make_sr(api, device="/dev/sdz")
    await api("SR.add_to_other_config", sr, "indestructible", "true")
    (pbd,) = await api("SR.get_PBDs", sr)
    await api("PBD.unplug", pbd)

    assert await api.failure("SR.destroy", sr) == ["SR_INDESTRUCTIBLE", sr]
