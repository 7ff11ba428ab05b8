"""Changed-block tracking, as a client of a pool sees it."""

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from uuid import UUID

import pytest

from tests.lab.labclient import Api, get, logged_in, put, vbd_record, vdi_record, wire
from xorepd_lab.disks.cbt import CbtLogs, LogHeader, log_size
from xorepd_lab.disks.chain import DiskError
from xorepd_lab.disks.vhd import blocks_of, table_size
from xorepd_lab.faults.faults import Fault
from xorepd_lab.lab import Lab
from xorepd_lab.topology import SMALL, PoolSpec, SrSpec, Topology

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab

MIB = 1 << 20
BLOCK = 65536
UNRELATED = (
    "Failed to calculate changed blocks for given VDIs."
    " [opterr=Source and target VDI are unrelated]"
)


def blocks(bitmap: str) -> set[int]:
    """Return the numbers of the changed blocks in what list_changed_blocks gave."""
    raw = b64decode(bitmap, validate=True)
    return {i for i in range(len(raw) * 8) if raw[i // 8] & 0x80 >> i % 8}


def touched(written: Iterable[tuple[int, int]]) -> set[int]:
    return {
        block
        for offset, length in written
        for block in range(offset // BLOCK, (offset + length - 1) // BLOCK + 1)
    }


async def changed(api: Api, older: str, newer: str) -> set[int]:
    return blocks(await api("VDI.list_changed_blocks", older, newer))


async def messages(api: Api) -> list[tuple[str, str]]:
    records = (await api("message.get_all_records")).values()
    return [(record["name"], record["obj_uuid"]) for record in records]


def log_of(lab: Lab, uuid: str) -> Path:
    return lab.pools["prod"].srs["prod-shared"].directory / f"{uuid}.cbtlog"


@pytest.fixture
async def tracked(api: Api) -> str:
    """The second disk of web01, a running VM, with tracking switched on."""
    disk = await api.disk("web01-data")
    await api("VDI.enable_cbt", disk)
    return disk


async def test_writes_between_two_snapshots_are_reported(lab: Lab, api: Api, tracked: str) -> None:
    await lab.guest_write("web01", 1, random=3, seed=1)
    first = await api("VDI.snapshot", tracked)
    written = await lab.guest_write("web01", 1, random=9, sequential=(20 * MIB, 3 * BLOCK), seed=2)
    second = await api("VDI.snapshot", tracked)
    await lab.guest_write("web01", 1, random=3, seed=3)

    bitmap = await api("VDI.list_changed_blocks", first, second)

    assert len(b64decode(bitmap)) == 32 * MIB // BLOCK // 8
    assert blocks(bitmap) == touched(written)
    record = await api("VDI.get_record", second)
    assert record["cbt_enabled"] is True
    assert (await api("VDI.get_record", tracked))["cbt_enabled"] is True


async def test_bitmaps_begin_with_the_highest_bit(lab: Lab, api: Api, tracked: str) -> None:
    first = await api("VDI.snapshot", tracked)
    await lab.guest_write("web01", 1, sequential=(0, BLOCK))
    await lab.guest_write("web01", 1, sequential=(9 * BLOCK, 2 * BLOCK))
    second = await api("VDI.snapshot", tracked)

    raw = b64decode(await api("VDI.list_changed_blocks", first, second))

    assert raw[:3] == bytes([0b10000000, 0b01100000, 0])


async def test_the_data_of_a_snapshot_is_an_older_one_with_the_changed_blocks(
    lab: Lab, api: Api, tracked: str
) -> None:
    async def content(vdi: str) -> bytes:
        path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}&format=raw"
        async with wire(lab.pools["prod"].plain_url) as connection:
            await connection.send(get(path))
            await connection.head()
            return await connection.rest()

    first = await api("VDI.snapshot", tracked)
    await lab.guest_write("web01", 1, random=12, trim=(8 * MIB, MIB), seed=2)
    second = await api("VDI.snapshot", tracked)
    old, new = bytearray(await content(first)), await content(second)
    assert old != new

    for block in await changed(api, first, second):
        old[block * BLOCK : (block + 1) * BLOCK] = new[block * BLOCK : (block + 1) * BLOCK]

    assert old == new


async def test_only_later_elements_of_the_same_line_have_changed_blocks(
    lab: Lab, api: Api, tracked: str
) -> None:
    first = await api("VDI.snapshot", tracked)
    second = await api("VDI.snapshot", tracked)
    other = await api.disk("web01-root")
    await api("VDI.enable_cbt", other)
    other = await api("VDI.snapshot", other)
    clone = await api("VDI.clone", second)

    unrelated = ["SR_BACKEND_FAILURE_460", "", UNRELATED, ""]
    assert await changed(api, first, second) == set()
    assert await api.failure("VDI.list_changed_blocks", second, first) == unrelated
    assert await api.failure("VDI.list_changed_blocks", first, other) == unrelated
    assert await api.failure("VDI.list_changed_blocks", first, clone) == unrelated
    code, _, text, _ = await api.failure("VDI.list_changed_blocks", first, first)
    assert code == "SR_BACKEND_FAILURE_460"
    assert "[opterr=Source and target VDI are same]" in text
    elsewhere = await api.disk("db01-data")
    assert (await api.failure("VDI.list_changed_blocks", elsewhere, first))[0] == "INTERNAL_ERROR"


async def test_an_attached_disk_cannot_be_asked_about(lab: Lab, api: Api, tracked: str) -> None:
    first = await api("VDI.snapshot", tracked)
    second = await api("VDI.snapshot", tracked)
    assert await api.failure("VDI.list_changed_blocks", first, tracked) == [
        "VDI_IN_USE",
        tracked,
        "list_changed_blocks",
    ]

    fault = lab.faults.add(Fault("export", stall=True, stall_at=4096))
    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(get(f"/export_raw_vdi?session_id={api.ref}&vdi={second}"))
        await fault.stalled.wait()
        busy = await api.failure("VDI.list_changed_blocks", first, second)
        fault.release()
        await connection.rest()

    assert busy == ["VDI_IN_USE", second, "list_changed_blocks"]


async def test_disks_attached_to_a_checkpoint_can_be_asked_about(
    lab: Lab, api: Api, tracked: str
) -> None:
    first = await api("VDI.snapshot", tracked)
    second = await api("VDI.snapshot", tracked)
    snapshot = await api("VM.snapshot", await api.vm("db01"), "s")
    vbd = await api("VBD.create", vbd_record(snapshot, second))
    lab.pools["prod"].db.set("VBD", vbd, currently_attached=True)

    assert await changed(api, first, second) == set()


async def test_enable_and_disable_have_their_checks(lab: Lab, api: Api, tracked: str) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    snapshot = await api("VDI.snapshot", tracked)
    suspend = await api("VDI.create", vdi_record(sr, type="suspend"))
    reset = await api("VDI.create", vdi_record(sr))
    await api("VDI.set_on_boot", reset, "reset")

    for method in ("VDI.enable_cbt", "VDI.disable_cbt"):
        assert await api.failure(method, snapshot) == [
            "OPERATION_NOT_ALLOWED",
            f"VDI is a snapshot: {snapshot}",
        ]
        assert await api.failure(method, suspend) == ["VDI_INCOMPATIBLE_TYPE", suspend, "Suspend"]
        assert await api.failure(method, reset) == ["VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION"]
    await api("VDI.enable_cbt", tracked)
    pool = lab.pools["prod"]
    restrictions = {"restrict_cbt": "true"}
    pool.db.set("pool", next(pool.db.select("pool")), restrictions=restrictions)
    assert await api.failure("VDI.enable_cbt", tracked) == ["LICENCE_RESTRICTION", "CBT"]
    driver = next(pool.db.select("SM", type="nfs"))
    features = dict(pool.db.get("SM", driver, "features"))
    del features["VDI_CONFIG_CBT"]
    pool.db.set("SM", driver, features=features)
    assert await api.failure("VDI.enable_cbt", tracked) == ["SR_OPERATION_NOT_SUPPORTED", sr]


async def test_disabling_ends_the_line_for_good(lab: Lab, api: Api, tracked: str) -> None:
    first = await api("VDI.snapshot", tracked)
    await api("VDI.disable_cbt", tracked)
    assert not log_of(lab, await api("VDI.get_uuid", tracked)).exists()
    assert await api("VDI.get_cbt_enabled", tracked) is False
    assert await api("VDI.get_cbt_enabled", first) is True

    await api("VDI.enable_cbt", tracked)
    second = await api("VDI.snapshot", tracked)

    assert (await api.failure("VDI.list_changed_blocks", first, second))[0].endswith("_460")


async def test_clones_and_copies_are_not_tracked(api: Api, tracked: str) -> None:
    snapshot = await api("VDI.snapshot", tracked)
    (sr,) = await api("SR.get_by_name_label", "prod-shared")

    clone = await api("VDI.clone", snapshot)
    copy = await api("VDI.copy", snapshot, sr)

    assert await api("VDI.get_cbt_enabled", clone) is False
    assert await api("VDI.get_cbt_enabled", copy) is False


async def test_a_snapshot_can_lose_its_data_and_still_tell_what_changed(
    lab: Lab, api: Api, tracked: str
) -> None:
    first = await api("VDI.snapshot", tracked)
    written = await lab.guest_write("web01", 1, random=5, seed=2)
    second = await api("VDI.snapshot", tracked)
    uuid = await api("VDI.get_uuid", first)
    directory = lab.pools["prod"].srs["prod-shared"].directory
    assert (directory / f"{uuid}.vhd").exists()

    await api("VDI.data_destroy", first)
    await api("VDI.data_destroy", first)

    assert not (directory / f"{uuid}.vhd").exists()
    record = await api("VDI.get_record", first)
    assert (record["type"], record["is_a_snapshot"]) == ("cbt_metadata", True)
    assert record["snapshot_of"] == tracked
    assert record["other_config"]["content_id"] == "/No content: this is a cbt_metadata VDI/"
    assert await changed(api, first, second) == touched(written)
    incompatible = ["VDI_INCOMPATIBLE_TYPE", first, "CBT metadata"]
    for method in ("VDI.clone", "VDI.snapshot", "VDI.copy"):
        assert await api.failure(method, first) == incompatible
    assert await api.failure("VDI.resize", first, str(64 * MIB)) == incompatible
    assert await api.failure("VDI.enable_cbt", first) == incompatible
    assert await api.failure("VDI.get_nbd_info", first) == incompatible
    vm = await api.vm("db01")
    assert (await api.failure("VBD.create", vbd_record(vm, first)))[0] == "VDI_INCOMPATIBLE_TYPE"


async def test_data_destroy_is_for_tracked_snapshots(api: Api, tracked: str) -> None:
    plain = await api("VDI.snapshot", await api.disk("web01-root"))

    assert await api.failure("VDI.data_destroy", tracked) == [
        "OPERATION_NOT_ALLOWED",
        f"VDI is not a snapshot: {tracked}",
    ]
    assert await api.failure("VDI.data_destroy", plain) == ["VDI_NO_CBT_METADATA", plain]


async def test_data_destroy_needs_the_vm_snapshot_gone(api: Api, tracked: str) -> None:
    vm = await api.vm("web01")
    snapshot = await api("VM.snapshot", vm, "s")
    (disk,) = await api("VDI.get_snapshots", tracked)

    assert await api.failure("VDI.data_destroy", disk) == ["VDI_IN_USE", disk, "data_destroy"]
    assert await api("VDI.get_type", disk) == "user"

    await api("VM.destroy", snapshot)
    await api("VDI.data_destroy", disk)
    assert await api("VDI.get_type", disk) == "cbt_metadata"


@pytest.fixture
async def slow_lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A lab in which 4 s are half a second."""
    async with Lab.start(tmp_path / "lab", SMALL, seed=1, time_scale=0.125) as lab:
        yield lab


async def test_data_destroy_waits_for_vbds_to_go(slow_lab: Lab) -> None:
    async with logged_in(slow_lab) as api, logged_in(slow_lab) as other:
        disk = await api.disk("db01-data")
        await api("VDI.enable_cbt", disk)
        snapshot = await api("VDI.snapshot", disk)
        vbd = await api("VBD.create", vbd_record(await api.vm("db01"), snapshot))
        token = (await other("event.from", ["vdi"], "", 0.0))["token"]

        async with asyncio.TaskGroup() as group:
            call = group.create_task(api("VDI.data_destroy", snapshot))
            await other("event.from", ["vdi"], token, 5.0)
            assert await other("VDI.get_type", snapshot) == "cbt_metadata"
            await other("VBD.destroy", vbd)
            await call

        assert await api("VDI.get_type", snapshot) == "cbt_metadata"
        assert await api("VDI.get_VBDs", snapshot) == []


async def test_destroying_a_middle_snapshot_gives_its_changes_to_the_next(
    lab: Lab, api: Api, tracked: str
) -> None:
    first = await api("VDI.snapshot", tracked)
    written = await lab.guest_write("web01", 1, random=4, seed=1)
    middle = await api("VDI.snapshot", tracked)
    written += await lab.guest_write("web01", 1, random=4, seed=2)
    last = await api("VDI.snapshot", tracked)

    await api("VDI.destroy", middle)

    assert await changed(api, first, last) == touched(written)


async def test_on_file_srs_destroying_middle_metadata_cuts_the_line(api: Api, tracked: str) -> None:
    first, middle, last = [await api("VDI.snapshot", tracked) for _ in range(3)]
    await api("VDI.data_destroy", middle)
    assert await changed(api, first, last) == set()

    await api("VDI.destroy", middle)

    code, _, text, *_ = await api.failure("VDI.list_changed_blocks", first, last)
    assert code.endswith("_460")
    assert "Source and target VDI are unrelated" in text
    # What is older is lost for good, whoever it belongs to; what is newer is not.
    newest = await api("VDI.snapshot", tracked)
    assert (await api.failure("VDI.list_changed_blocks", first, newest))[0].endswith("_460")
    assert await changed(api, last, newest) == set()


async def test_metadata_of_two_streams_is_destroyed_oldest_first_without_harm(
    lab: Lab, api: Api, tracked: str
) -> None:
    ours, theirs = [await api("VDI.snapshot", tracked) for _ in range(2)]
    written = await lab.guest_write("web01", 1, random=4, seed=1)
    ours_next, theirs_next = [await api("VDI.snapshot", tracked) for _ in range(2)]
    for base in (ours, theirs):
        await api("VDI.data_destroy", base)

    assert await changed(api, ours, ours_next) == touched(written)
    await api("VDI.destroy", ours)
    assert await changed(api, theirs, theirs_next) == touched(written)
    await api("VDI.destroy", theirs)

    later = await lab.guest_write("web01", 1, random=4, seed=2)
    head = await api("VDI.snapshot", tracked)
    for base in (ours_next, theirs_next):
        assert await changed(api, base, head) == touched(later)


async def test_a_halted_disk_can_be_compared_with_its_base_without_a_snapshot(
    lab: Lab, api: Api, tracked: str
) -> None:
    base = await api("VDI.snapshot", tracked)
    await api("VDI.data_destroy", base)
    written = await lab.guest_write("web01", 1, random=4, seed=1)

    await api("VM.hard_shutdown", await api.vm("web01"))

    assert await changed(api, base, tracked) == touched(written)


@pytest.fixture
async def volumes(tmp_path: Path) -> AsyncIterator[Lab]:
    """A pool with an SR of logical volumes."""
    sr = SrSpec("volumes", "lvm", ("h1",), size=256 * MIB)
    pool = PoolSpec("prod", ("h1",), (sr,), ("lan",))
    topology = Topology("volumes", (pool,))
    async with Lab.start(tmp_path / "lab", topology, seed=1, time_scale=0.002) as lab:
        yield lab


async def test_on_lvm_destroying_middle_metadata_keeps_the_line(volumes: Lab) -> None:
    async with logged_in(volumes) as api:
        (sr,) = await api("SR.get_by_name_label", "volumes")
        disk = await api("VDI.create", vdi_record(sr, 8 * MIB))
        await api("VDI.enable_cbt", disk)
        first, middle, last = [await api("VDI.snapshot", disk) for _ in range(3)]
        await api("VDI.data_destroy", middle)

        await api("VDI.destroy", middle)

        assert await changed(api, first, last) == set()


async def test_on_lvm_a_log_is_a_volume_that_needs_room(volumes: Lab) -> None:
    async with logged_in(volumes) as api:
        (sr,) = await api("SR.get_by_name_label", "volumes")
        disk = await api("VDI.create", vdi_record(sr, 8 * MIB))
        before = int(await api("SR.get_physical_utilisation", sr))
        repository = volumes.pools["prod"].storage.of(sr)

        repository.shrink_capacity(before + 4 * MIB - 1)
        refused = await api.failure("VDI.enable_cbt", disk)
        repository.restore_capacity()
        await api("VDI.enable_cbt", disk)
        await api("SR.update", sr)

        assert refused[0] == "SR_BACKEND_FAILURE_457"
        assert await api("VDI.get_cbt_enabled", disk) is True
        assert int(await api("SR.get_physical_utilisation", sr)) == before + 4 * MIB


async def test_a_grown_disk_reports_what_was_written_behind_its_old_end(lab: Lab, api: Api) -> None:
    disk = await api.disk("db01-data")
    await api("VDI.enable_cbt", disk)
    first = await api("VDI.snapshot", disk)
    await api("VDI.resize", disk, str(24 * MIB))
    await api("VM.start", await api.vm("db01"), False, False)
    written = await lab.guest_write("db01", 0, sequential=(20 * MIB, BLOCK))
    second = await api("VDI.snapshot", disk)

    bitmap = await api("VDI.list_changed_blocks", first, second)

    assert len(b64decode(bitmap)) == 24 * MIB // BLOCK // 8
    assert blocks(bitmap) == touched(written)


@pytest.mark.parametrize(
    ("sizes", "bitmaps"),
    [((32, 16), (64, 32)), ((16, 32), (32, 32)), ((16, 16), (32, 16)), ((16, 16), (16, 16))],
)
def test_contradicting_logs_are_refused(
    tmp_path: Path, sizes: tuple[int, int], bitmaps: tuple[int, int]
) -> None:
    older, middle, newer = (str(UUID(int=number)) for number in (1, 2, 3))
    for uuid, size, bitmap, child in (
        (older, 8, 16, middle),
        (middle, sizes[0], bitmaps[0], newer),
        (newer, sizes[1], bitmaps[1], str(UUID(int=0))),
    ):
        header = LogHeader(size * MIB, child=UUID(child))
        (tmp_path / f"{uuid}.cbtlog").write_bytes(header.pack() + bytes(bitmap))

    with pytest.raises(DiskError) as error:
        CbtLogs(tmp_path, lambda _: None).changed(older, newer)

    assert error.value.backend == 459


async def test_imports_are_tracked(lab: Lab, api: Api) -> None:
    disk = await api.disk("db01-data")
    await api("VDI.enable_cbt", disk)
    first = await api("VDI.snapshot", disk)
    task = await api("task.create", "import", "")
    chunk = (3 * BLOCK).to_bytes(8, "little") + (512).to_bytes(4, "little") + b"x" * 512
    path = f"/import_raw_vdi?session_id={api.ref}&vdi={disk}&format=raw&chunked&task_id={task}"
    pool = lab.pools["prod"]
    address = pool.address(pool.host("prod-h2"))
    async with wire(f"http://{address}:{pool.http_port}") as connection:
        await connection.send(put(path, chunk + bytes(12)))
        await connection.rest()
    assert (await api.finished(task))["status"] == "success"

    second = await api("VDI.snapshot", disk)

    assert await changed(api, first, second) == {3}


async def test_the_flag_is_down_while_somebody_may_write(lab: Lab, api: Api) -> None:
    disk, vm = await api.disk("db01-data"), await api.vm("db01")
    await api("VDI.enable_cbt", disk)
    uuid = await api("VDI.get_uuid", disk)
    logs = lab.pools["prod"].storage.of(await api("VDI.get_SR", disk)).store.logs
    assert logs.header(uuid).consistent is True

    await api("VM.start", vm, False, False)
    running = logs.header(uuid).consistent
    snapshot = await api("VDI.snapshot", disk)
    assert logs.header(await api("VDI.get_uuid", snapshot)).consistent is True
    assert logs.header(uuid).consistent is False
    await api("VM.hard_shutdown", vm)

    assert running is False
    assert logs.header(uuid).consistent is True


async def test_enabling_for_a_running_vm_begins_with_the_flag_down(
    lab: Lab, api: Api, tracked: str
) -> None:
    logs = lab.pools["prod"].storage.of(await api("VDI.get_SR", tracked)).store.logs

    assert logs.header(await api("VDI.get_uuid", tracked)).consistent is False
    assert any(key.startswith("host_") for key in await api("VDI.get_sm_config", tracked))


async def test_an_unclean_stop_costs_the_tracking_at_the_next_start(lab: Lab, api: Api) -> None:
    disk, vm = await api.disk("db01-data"), await api.vm("db01")
    pool, uuid = lab.pools["prod"], await api("VDI.get_uuid", disk)
    await api("VDI.enable_cbt", disk)
    await api("VM.start", vm, False, False)
    first = await api("VDI.snapshot", disk)

    await pool.storage.unclean_stop([disk])
    await api("VM.hard_shutdown", vm)
    assert await api("VDI.get_cbt_enabled", disk) is True
    await api("VM.start", vm, False, False)

    assert await api("VDI.get_cbt_enabled", disk) is False
    assert ("VDI_CBT_METADATA_INCONSISTENT", uuid) in await messages(api)
    second = await api("VDI.snapshot", disk)
    assert (await api.failure("VDI.list_changed_blocks", first, second))[0].endswith("_460")
    assert await api("VDI.get_cbt_enabled", second) is False


async def test_a_snapshot_without_room_for_the_log_ends_the_tracking(lab: Lab, api: Api) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    disk = await api("VDI.create", vdi_record(sr, 64 * MIB))
    await api("VDI.enable_cbt", disk)
    uuid = await api("VDI.get_uuid", disk)
    repository = lab.pools["prod"].storage.of(sr)
    two_leaves = 2 * table_size(blocks_of(64 * MIB))
    room = two_leaves + log_size(64 * MIB) - 1
    repository.shrink_capacity(repository.store.spent() + room)

    snapshot = await api("VDI.snapshot", disk)

    assert await api("VDI.get_cbt_enabled", snapshot) is True
    assert await api("VDI.get_cbt_enabled", disk) is False
    assert ("VDI_CBT_SNAPSHOT_FAILED", uuid) in await messages(api)


async def test_tracked_disks_refuse_to_be_reset_on_boot(api: Api) -> None:
    disk = await api.disk("web01-data")
    halted = await api.disk("db01-data")
    await api("VDI.enable_cbt", halted)

    assert await api.failure("VDI.set_on_boot", halted, "reset") == ["VDI_CBT_ENABLED", halted]
    assert (await api.failure("VDI.set_on_boot", disk, "reset"))[0] == "VM_BAD_POWER_STATE"


async def test_a_scan_sees_logs_as_the_driver_does(lab: Lab, api: Api, tracked: str) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    first = await api("VDI.snapshot", tracked)
    await api("VDI.data_destroy", first)
    uuid = await api("VDI.get_uuid", first)
    await api("VDI.forget", first)

    await api("SR.scan", sr)

    record = await api("VDI.get_record", await api("VDI.get_by_uuid", uuid))
    size = log_of(lab, uuid).stat().st_size
    assert record["type"] == "cbt_metadata"
    assert record["cbt_enabled"] is True
    assert (int(record["virtual_size"]), int(record["physical_utilisation"])) == (size, size)


async def test_tracking_survives_the_end_of_the_lab(tmp_path: Path) -> None:
    state = tmp_path / "lab"
    async with Lab.start(state, SMALL, seed=1, time_scale=0.002) as lab, logged_in(lab) as api:
        disk = await api.disk("web01-data")
        await api("VDI.enable_cbt", disk)
        first = await api("VDI.get_uuid", await api("VDI.snapshot", disk))
        written = await lab.guest_write("web01", 1, random=4, seed=1)

    async with Lab.start(state, SMALL, seed=1, time_scale=0.002) as lab, logged_in(lab) as api:
        written += await lab.guest_write("web01", 1, random=4, seed=2)
        second = await api("VDI.snapshot", await api.disk("web01-data"))
        assert await changed(api, await api("VDI.get_by_uuid", first), second) == touched(written)


async def test_logs_are_in_blktaps_format(lab: Lab, api: Api, tracked: str) -> None:
    first = await api("VDI.snapshot", tracked)
    await lab.guest_write("web01", 1, sequential=(9 * BLOCK, BLOCK))
    uuid, older = await api("VDI.get_uuid", tracked), await api("VDI.get_uuid", first)

    raw = log_of(lab, uuid).read_bytes()

    assert len(raw) == 48 + 32 * MIB // BLOCK // 8
    assert raw[:16].hex() == older.replace("-", "")
    assert raw[16:32] == bytes(16)
    assert raw[32:36] == bytes(4)  # inconsistent: in use
    assert int.from_bytes(raw[40:48], "little") == 32 * MIB
    assert raw[48:51] == bytes([0, 0b10, 0])
