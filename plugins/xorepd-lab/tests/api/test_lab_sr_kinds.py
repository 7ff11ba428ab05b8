"""SRs of every kind: what they can do, what disks cost there, and when they are full."""

import io
import struct
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import xxhash

from tests.lab.labclient import FAST, Api, exchange, get, logged_in, put, vdi_record
from xorepd_lab import fsck
from xorepd_lab.disks.kinds import KINDS
from xorepd_lab.disks.vhd import DYNAMIC, FULL_BITMAP, Footer, Header, blocks_of, table_size
from xorepd_lab.lab import Lab
from xorepd_lab.topology import PoolSpec, SrSpec, Topology

pytestmark = pytest.mark.lab

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
BLOCK = 2 * MIB
EXTENT = 4 * MIB
END = bytes(12)
IO_ERROR = ["VDI_IO_ERROR", "Device I/O errors"]
NO_SPACE = ["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""]
DATA = bytes(range(256)) * (BLOCK // 256)

SRS = (
    SrSpec("ext", "ext", ("h1",)),
    SrSpec("tiny", "file", ("h1",), size=3 * MIB),
    SrSpec("lvm", "lvm", ("h1",), size=256 * MIB),
    SrSpec("lun", "lvmoiscsi", ("h1", "h2"), sm_config={"allocation": "thin"}),
    SrSpec("legacy", "lvm", ("h1",), sm_config={"use_vhd": "false"}),
    SrSpec("zfs", "zfs-vol", ("h1",), size=8 * TIB),
    SrSpec("iso", "iso", ("h1",), isos=("guest-tools.iso",)),
    SrSpec("drives", "udev", ("h1",)),
)
POOL = PoolSpec("kinds", ("h1", "h2"), SRS, ("lan",))


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A pool with SRs of many kinds and no VM."""
    async with Lab.start(tmp_path / "lab", Topology("kinds", (POOL,)), time_scale=FAST) as made:
        yield made
        assert await fsck.check(made) == []


@pytest.fixture
async def api(lab: Lab) -> AsyncIterator[Api]:
    async with logged_in(lab, "kinds") as made:
        yield made


async def sr_of(api: Api, name: str) -> str:
    (ref,) = await api("SR.get_by_name_label", name)
    return str(ref)


async def new_disk(api: Api, sr: str, size: int = 8 * MIB, **fields: Any) -> str:
    return str(await api("VDI.create", vdi_record(await sr_of(api, sr), size, **fields)))


def chunk(offset: int, data: bytes) -> bytes:
    return struct.pack("<QI", offset, len(data)) + data


async def upload(lab: Lab, api: Api, vdi: str, query: str, body: bytes) -> list[str]:
    """Import a body and return the error of its task."""
    task = await api("task.create", "upload", "")
    path = f"/import_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}{query}"
    await exchange(lab.pools["kinds"].plain_url, put(path, body))
    return await outcome(api, task)


async def write(lab: Lab, api: Api, vdi: str, *extents: tuple[int, bytes]) -> list[str]:
    body = b"".join(chunk(offset, data) for offset, data in extents) + END
    return await upload(lab, api, vdi, "&format=raw&chunked=1", body)


async def download(lab: Lab, api: Api, vdi: str, query: str) -> tuple[bytes, list[str]]:
    """Return the body of an export and the error of its task."""
    task = await api("task.create", "download", "")
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}{query}"
    answer = await exchange(lab.pools["kinds"].plain_url, get(path))
    return answer.partition(b"\r\n\r\n")[2], await outcome(api, task)


async def outcome(api: Api, task: str) -> list[str]:
    error = (await api.finished(task))["error_info"]
    await api("task.destroy", task)
    return list(error)


def vhd_of(index: int, data: bytes, size: int) -> bytes:
    """Return the stream of a VHD with one block."""

    footer = Footer(size, DYNAMIC, UUID(int=1)).pack()
    entries = blocks_of(size)
    table = bytearray(b"\xff" * table_size(entries))
    first = (1536 + table_size(entries)) // 512
    struct.pack_into(">I", table, 4 * index, first)
    return footer + Header(1536, entries).pack() + bytes(table) + FULL_BITMAP + data + footer


# -- what they can do -----------------------------------------------------------------------------


async def test_drivers_announce_what_their_kind_can_do(api: Api) -> None:
    drivers = {record["type"]: record for record in (await api("SM.get_all_records")).values()}

    assert drivers.keys() == {spec.type for spec in SRS}
    for name, record in drivers.items():
        assert record["features"] == {k: str(v) for k, v in KINDS[name].features.items()}
    assert "THIN_PROVISIONING" in drivers["ext"]["features"]
    assert "THIN_PROVISIONING" not in drivers["lvm"]["features"]
    assert "LARGE_VDI" in drivers["zfs-vol"]["features"]
    assert "VDI_CONFIG_CBT" not in drivers["zfs-vol"]["features"]


async def test_volumes_say_in_sm_config_how_they_are_made(api: Api) -> None:
    configs = {
        record["name_label"]: record["sm_config"]
        for record in (await api("SR.get_all_records")).values()
    }

    assert configs["lvm"] == {"use_vhd": "true"}
    assert configs["lun"] == {"use_vhd": "true", "allocation": "thin"}
    assert configs["ext"] == {}


async def test_no_disk_is_made_where_the_driver_makes_none(api: Api) -> None:
    ref = await sr_of(api, "drives")

    assert await api.failure("VDI.create", vdi_record(ref)) == ["SR_OPERATION_NOT_SUPPORTED", ref]


async def test_images_can_be_made_written_and_deleted_among_isos(lab: Lab, api: Api) -> None:
    named = await new_disk(api, "iso", BLOCK, sm_config={"path": "made.iso"})
    unnamed = await new_disk(api, "iso", BLOCK)

    assert await write(lab, api, named, (0, DATA)) == []
    assert await download(lab, api, named, "&format=raw") == (DATA, [])
    assert await api("VDI.get_location", named) == "made.iso"
    assert await api("VDI.get_location", unnamed) == f"{await api('VDI.get_uuid', unnamed)}.img"
    taken = vdi_record(await sr_of(api, "iso"), BLOCK, sm_config={"path": "made.iso"})
    assert (await api.failure("VDI.create", taken))[0] == "SR_BACKEND_FAILURE_43"
    bad = vdi_record(await sr_of(api, "iso"), BLOCK, sm_config={"path": "../made"})
    assert (await api.failure("VDI.create", bad))[0] == "SR_BACKEND_FAILURE_78"
    for image in (named, unnamed):
        assert "snapshot" not in await api("VDI.get_allowed_operations", image)
        await api("VDI.destroy", image)


async def test_an_iso_can_be_read_and_not_written(lab: Lab, api: Api) -> None:
    (image,) = await api("VDI.get_by_name_label", "guest-tools.iso")
    record = await api("VDI.get_record", image)
    assert (record["read_only"], record["location"]) == (True, "guest-tools.iso")

    content, error = await download(lab, api, image, "&format=raw")

    assert error == []
    assert len(content) == int(record["virtual_size"]) == int(record["physical_utilisation"])
    assert content[16 * 2048 : 16 * 2048 + 6] == b"\1CD001"
    assert b"guest-tools.iso\n" in content
    assert await write(lab, api, image, (0, bytes(512))) == ["VDI_READONLY", image]
    await api("SR.scan", await sr_of(api, "iso"))
    assert await api("VDI.get_location", image) == "guest-tools.iso"


# -- thick volumes --------------------------------------------------------------------------------


async def test_a_thick_disk_costs_its_full_size_from_the_beginning(api: Api) -> None:
    sr = await sr_of(api, "lvm")

    disk = await new_disk(api, "lvm", 64 * MIB)

    cost = int(await api("VDI.get_physical_utilisation", disk))
    assert 64 * MIB < cost <= 64 * MIB + 8 * MIB
    assert cost % EXTENT == 0
    assert int(await api("SR.get_physical_utilisation", sr)) == cost
    assert await api("VDI.get_sm_config", disk) == {"vdi_type": "vhd"}


async def test_a_thick_sr_refuses_what_does_not_fit(api: Api) -> None:
    sr = await sr_of(api, "lvm")
    disk = await new_disk(api, "lvm", 160 * MIB)

    assert await api.failure("VDI.create", vdi_record(sr, 160 * MIB)) == NO_SPACE
    assert await api.failure("VDI.resize", disk, str(320 * MIB)) == NO_SPACE
    assert await api.failure("VDI.clone", disk) == NO_SPACE
    await api("VDI.resize", disk, str(200 * MIB))
    small = await new_disk(api, "lvm", 2 * MIB)
    await api("VDI.destroy", small)


async def test_a_snapshot_on_a_thick_sr_deflates_its_base_copy(lab: Lab, api: Api) -> None:
    sr = await sr_of(api, "lvm")
    disk = await new_disk(api, "lvm", 64 * MIB, sm_config={"own": "kept", "host_x": "not kept"})
    assert await write(lab, api, disk, (0, DATA)) == []

    snapshot = await api("VDI.snapshot", disk)

    costs = {}
    for vdi in await api("SR.get_VDIs", sr):
        costs[vdi] = int(await api("VDI.get_physical_utilisation", vdi))
    (base,) = costs.keys() - {disk, snapshot}
    assert costs[disk] > 64 * MIB
    assert costs[snapshot] == 2 * EXTENT
    assert costs[base] == EXTENT
    assert int(await api("SR.get_physical_utilisation", sr)) == sum(costs.values())
    uuid = await api("VDI.get_uuid", base)
    config = await api("VDI.get_sm_config", snapshot)
    assert config == {"own": "kept", "vdi_type": "vhd", "vhd-parent": uuid}


async def test_a_snapshot_needs_room_for_a_whole_new_leaf(lab: Lab, api: Api) -> None:
    disk = await new_disk(api, "lvm", 160 * MIB)
    for offset in range(0, 96 * MIB, BLOCK):
        assert await write(lab, api, disk, (offset, DATA)) == []

    assert await api.failure("VDI.snapshot", disk) == NO_SPACE
    # What was written before is what the disk holds still.
    content, error = await download(lab, api, disk, "&format=raw")
    assert error == []
    assert content == DATA * 48 + bytes(64 * MIB)


async def test_a_thin_volume_costs_what_is_in_it(lab: Lab, api: Api) -> None:
    disk = await new_disk(api, "lun", 1 * GIB)
    assert int(await api("VDI.get_physical_utilisation", disk)) == 2 * EXTENT

    assert await write(lab, api, disk, *((n * BLOCK, DATA) for n in range(8))) == []

    assert int(await api("VDI.get_physical_utilisation", disk)) == 5 * EXTENT


# -- raw volumes ----------------------------------------------------------------------------------


async def test_a_raw_volume_is_whole_extents_and_has_no_snapshots(api: Api) -> None:
    disk = await new_disk(api, "lvm", 5 * MIB, sm_config={"type": "raw"})

    assert int(await api("VDI.get_virtual_size", disk)) == 8 * MIB
    assert int(await api("VDI.get_physical_utilisation", disk)) == 8 * MIB
    assert await api("VDI.get_sm_config", disk) == {"type": "raw", "vdi_type": "aio"}
    failure = await api.failure("VDI.snapshot", disk)
    assert failure == ["UNIMPLEMENTED_IN_SM_BACKEND", await sr_of(api, "lvm")]


async def test_a_raw_file_has_no_snapshots_either(api: Api) -> None:
    disk = await new_disk(api, "ext", 8 * MIB, sm_config={"type": "raw"})

    assert int(await api("VDI.get_physical_utilisation", disk)) == 8 * MIB
    failure = await api.failure("VDI.snapshot", disk)
    assert failure[0] == "SR_BACKEND_FAILURE_46"
    assert "failed to get VHD depth" in failure[2]


async def test_a_vhd_is_not_imported_where_zeroes_are_not_certain(lab: Lab, api: Api) -> None:
    stream = vhd_of(1, DATA, 8 * MIB)
    raw = await new_disk(api, "lvm", sm_config={"type": "raw"})
    legacy = await new_disk(api, "legacy", sm_config={"type": "raw"})
    thick = await new_disk(api, "lvm")

    assert await upload(lab, api, raw, "&format=vhd", stream) == IO_ERROR
    assert await upload(lab, api, legacy, "&format=vhd", stream) == IO_ERROR
    assert await write(lab, api, raw, (BLOCK, DATA)) == []
    assert await upload(lab, api, thick, "&format=vhd", stream) == []

    assert (await download(lab, api, raw, ""))[0] == bytes(BLOCK) + DATA + bytes(2 * BLOCK)
    assert (await download(lab, api, thick, ""))[0] == bytes(BLOCK) + DATA + bytes(2 * BLOCK)


async def test_a_legacy_sr_makes_no_vhds(api: Api) -> None:
    sr = await sr_of(api, "legacy")

    failure = await api.failure("VDI.create", vdi_record(sr))

    assert failure[0] == "SR_BACKEND_FAILURE_78"
    assert "Cannot create VHD type disk in legacy mode" in failure[2]


# -- volumes without VHD --------------------------------------------------------------------------


async def test_snapshots_without_vhd_show_no_chain(lab: Lab, api: Api) -> None:
    disk = await new_disk(api, "zfs")
    assert await write(lab, api, disk, (0, DATA)) == []

    snapshot = await api("VDI.snapshot", disk)
    assert await write(lab, api, disk, (0, bytes(BLOCK))) == []

    assert sorted(await api("SR.get_VDIs", await sr_of(api, "zfs"))) == sorted([disk, snapshot])
    for vdi in (disk, snapshot):
        assert await api("VDI.get_sm_config", vdi) == {}
    assert (await download(lab, api, snapshot, ""))[0] == DATA + bytes(3 * BLOCK)
    assert (await download(lab, api, disk, ""))[0] == bytes(4 * BLOCK)


async def test_a_vhd_of_a_volume_leaves_out_zeroes_that_were_written(lab: Lab, api: Api) -> None:
    extents = ((0, bytes(BLOCK)), (BLOCK, DATA))
    volume, file = await new_disk(api, "zfs"), await new_disk(api, "ext")
    for disk in (volume, file):
        assert await write(lab, api, disk, *extents) == []

    of_volume, error = await download(lab, api, volume, "&format=vhd")
    of_file, _ = await download(lab, api, file, "&format=vhd")

    assert error == []
    block = 512 + BLOCK
    assert len(of_file) - len(of_volume) == block
    assert of_volume[2560 : 2560 + block] == b"\xff" * 512 + DATA


async def test_a_disk_is_updated_only_where_the_driver_can(lab: Lab, api: Api) -> None:
    disks = {sr: await new_disk(api, sr, size=2 * MIB) for sr in ("ext", "tiny", "lvm")}

    offered = {
        sr: "update" in await api("VDI.get_allowed_operations", disk) for sr, disk in disks.items()
    }

    assert offered == {"ext": True, "tiny": False, "lvm": True}
    refused = await api.failure("VDI.update", disks["tiny"])
    assert refused == ["SR_OPERATION_NOT_SUPPORTED", await sr_of(api, "tiny")]


async def test_differences_are_only_to_be_had_of_vhds(lab: Lab, api: Api) -> None:
    disk = await new_disk(api, "zfs")
    snapshot = await api("VDI.snapshot", disk)
    file = await new_disk(api, "ext")

    body, error = await download(lab, api, disk, f"&format=vhd&base={snapshot}")
    _, mixed = await download(lab, api, file, f"&format=vhd&base={snapshot}")

    assert error[0] == "INTERNAL_ERROR"
    assert "Cannot compute differences on non-VHD images" in error[1]
    assert body.startswith(b"HTTP/1.1 500 Internal Error\r\n")
    assert "cannot compute differences" in mixed[1]


async def test_a_volume_may_be_larger_than_any_vhd(lab: Lab, api: Api) -> None:
    disk = await new_disk(api, "zfs", 4 * TIB)
    assert int(await api("VDI.get_virtual_size", disk)) == 4 * TIB
    assert await write(lab, api, disk, (3 * TIB, DATA), (4 * TIB - BLOCK, DATA)) == []

    body, error = await download(lab, api, disk, "&format=vhd")

    assert error == ["VDI_TOO_LARGE", disk, "2190433320960"]
    assert body.startswith(b"HTTP/1.1 500 Internal Error\r\n")
    repository, uuid = lab.pools["kinds"].storage.of_vdi(disk)
    with repository.store.open(uuid) as opened:
        assert opened.read(3 * TIB, BLOCK) == opened.read(4 * TIB - BLOCK, BLOCK) == DATA
        assert opened.read(2 * TIB, BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize("sr", ["ext", "lvm", "lun"])
async def test_a_vhd_has_at_most_2040_gib(api: Api, sr: str) -> None:
    ref = await sr_of(api, sr)

    failure = await api.failure("VDI.create", vdi_record(ref, 2040 * GIB + 1))

    assert failure[0] == "SR_BACKEND_FAILURE_79"
    assert "VDI size must be between 1 MB and 2088960 MB" in failure[2]


# -- full SRs of files ----------------------------------------------------------------------------


async def test_a_full_file_sr_fails_where_it_is_written_to(lab: Lab, api: Api) -> None:
    sr = await sr_of(api, "tiny")
    disk = await new_disk(api, "tiny", 1 * GIB)
    assert await write(lab, api, disk, (0, DATA)) == []

    assert await write(lab, api, disk, (0, DATA[:512]), (BLOCK, DATA)) == IO_ERROR

    assert (await api.failure("VDI.create", vdi_record(sr, 2040 * GIB)))[0] == (
        "SR_BACKEND_FAILURE_78"
    )
    large = await new_disk(api, "tiny", 200 * GIB)
    assert (await api.failure("VDI.snapshot", large))[0] == "SR_BACKEND_FAILURE_81"
    stream, error = await download(lab, api, disk, "&format=vhd")
    assert error == []
    assert stream.endswith(DATA + stream[:512])
    assert stream.count(b"conectix") == 2


# -- tar ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sr", ["ext", "zfs"])
async def test_a_tar_export_holds_the_chunks_with_data(lab: Lab, api: Api, sr: str) -> None:
    disk = await new_disk(api, sr, 16 * MIB)
    assert await write(lab, api, disk, (6 * MIB, DATA)) == []

    body, error = await download(lab, api, disk, "&format=tar")

    assert error == []
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        found = {member.name: archive.extractfile(member) for member in archive}
    names = [f"vdi/{number:08}" for number in (0, 6, 7, 15)]
    assert list(found) == [each for name in names for each in (name, f"{name}.xxhash")]
    contents = {name: file.read() for name, file in found.items() if file is not None}
    assert contents["vdi/00000006"] + contents["vdi/00000007"] == DATA
    assert contents["vdi/00000000"] == contents["vdi/00000015"] == bytes(MIB)
    for name in names:
        checksum = xxhash.xxh64_hexdigest(contents[name]).upper()
        assert contents[f"{name}.xxhash"].decode() == checksum
