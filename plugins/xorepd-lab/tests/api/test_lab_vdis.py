"""VDIs and the files behind them."""

from pathlib import Path
from typing import Any

import pytest
import pyvhdi

from tests.lab.labclient import Api, exchange, get, vbd_record, vdi_record, wire
from xorepd_lab.faults.faults import Fault
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab

MIB = 1 << 20


def read_chain(directory: Path, uuid: str, parents: dict[str, str]) -> bytes:
    """Return a disk's content as libvhdi reads it."""
    files: list[Any] = []
    name: str | None = uuid
    while name is not None:
        file = pyvhdi.file()
        file.open(str(directory / f"{name}.vhd"))
        if files:
            files[-1].set_parent(file)
        files.append(file)
        name = parents.get(name)
    size = files[0].get_media_size()
    content: bytes = files[0].read_buffer_at_offset(size, 0)
    for file in files:
        file.close()
    return content


async def parents(api: Api) -> dict[str, str]:
    return {
        record["uuid"]: record["sm_config"]["vhd-parent"]
        for record in (await api("VDI.get_all_records")).values()
        if "vhd-parent" in record["sm_config"]
    }


async def base_copies(api: Api) -> list[dict[str, Any]]:
    return [
        record
        for record in (await api("VDI.get_all_records")).values()
        if record["name_label"] == "base copy"
    ]


@pytest.mark.leaves("disk")
async def test_a_disk_whose_file_is_gone_is_not_found(lab: Lab, api: Api) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    vdi, vm = await api("VDI.create", vdi_record(sr)), await api.vm("db01")
    await api("VBD.create", vbd_record(vm, vdi))
    repository, uuid = lab.pools["prod"].storage.of_vdi(vdi)
    repository.store.path(uuid).unlink()
    text = f"The VDI is not available [opterr=VDI {uuid} not found]"
    not_found = ["SR_BACKEND_FAILURE_46", "", text, ""]

    for call in ("VDI.snapshot", "VDI.clone", "VDI.enable_cbt"):
        assert await api.failure(call, vdi) == not_found, call
    assert await api.failure("VM.start", vm, False, False) == not_found
    task = await api("task.create", "export", "")
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}"
    await exchange(lab.pools["prod"].plain_url, get(path))
    assert (await api.finished(task))["error_info"] == not_found


async def test_sizes_are_rounded_up_to_2_mib(api: Api) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")

    vdi = await api("VDI.create", vdi_record(sr, 3 * MIB))
    too_large = await api.failure("VDI.create", vdi_record(sr, (2040 << 30) + 1))

    record = await api("VDI.get_record", vdi)
    assert record["virtual_size"] == str(4 * MIB)
    assert record["location"] == record["uuid"]
    assert record["managed"] is True
    assert vdi in await api("SR.get_VDIs", sr)
    assert too_large[0] == "SR_BACKEND_FAILURE_79"


async def test_a_snapshot_makes_a_base_copy(api: Api) -> None:
    disk = await api.disk("db01-data")

    snapshot = await api("VDI.snapshot", disk)

    (base,) = await base_copies(api)
    assert (base["managed"], base["read_only"], base["is_a_snapshot"]) == (False, True, False)
    for ref in (disk, snapshot):
        assert (await api("VDI.get_sm_config", ref))["vhd-parent"] == base["uuid"]
    (ref,) = await api("VDI.get_by_name_label", "base copy")
    assert await api.failure("VDI.destroy", ref) == ["VDI_NOT_MANAGED", ref]


async def test_snapshots_of_an_idle_disk_add_no_depth(api: Api) -> None:
    disk = await api.disk("db01-data")
    first = await api("VDI.snapshot", disk)

    second = await api("VDI.snapshot", disk)

    assert len(await base_copies(api)) == 1
    parent = (await api("VDI.get_sm_config", first))["vhd-parent"]
    assert (await api("VDI.get_sm_config", second))["vhd-parent"] == parent


async def test_a_snapshot_keeps_what_the_guest_changes_later(lab: Lab, api: Api) -> None:
    directory = lab.pools["prod"].srs["prod-shared"].directory
    vm, disk = await api.vm("web01"), await api.disk("web01-data")
    uuid = await api("VDI.get_uuid", disk)
    before = read_chain(directory, uuid, await parents(api))

    await api("VM.snapshot", vm, "s")
    written = await lab.guest_write("web01", 1, random=8, seed=5)

    (snapshot,) = await api("VDI.get_snapshots", disk)
    links = await parents(api)
    after = read_chain(directory, uuid, links)
    assert read_chain(directory, await api("VDI.get_uuid", snapshot), links) == before
    assert after != before
    for offset, length in written:
        after = after[:offset] + before[offset : offset + length] + after[offset + length :]
    assert after == before


async def test_destroying_snapshots_lets_the_collector_merge_the_chain(lab: Lab, api: Api) -> None:
    directory = lab.pools["prod"].srs["prod-shared"].directory
    disk = await api.disk("web01-data")
    uuid = await api("VDI.get_uuid", disk)
    for seed in range(3):
        await api("VDI.snapshot", disk)
        await lab.guest_write("web01", 1, random=4, seed=seed)
    assert len(await base_copies(api)) == 3
    before = read_chain(directory, uuid, await parents(api))
    token = (await api("event.from", ["vdi"], "", 0.0))["token"]

    for snapshot in await api("VDI.get_snapshots", disk):
        await api("VDI.destroy", snapshot)

    while await base_copies(api):
        token = (await api("event.from", ["vdi"], token, 5.0))["token"]
    assert "vhd-parent" not in await api("VDI.get_sm_config", disk)
    assert read_chain(directory, uuid, {}) == before


async def test_the_collector_leaves_open_disks_for_later(lab: Lab, api: Api) -> None:
    disk = await api.disk("web01-data")
    for seed in range(2):
        await api("VDI.snapshot", disk)
        await lab.guest_write("web01", 1, random=4, seed=seed)
    old, new = await api("VDI.get_snapshots", disk)
    fault = lab.faults.add(Fault("export", stall=True, stall_at=4096))
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={new}"

    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(get(path))
        await fault.stalled.wait()
        await api("VDI.destroy", old)
        assert len(await base_copies(api)) == 2
        fault.release()
        assert len(await connection.rest()) > 32 * MIB

    token = ""
    while len(await base_copies(api)) == 2:
        token = (await api("event.from", ["vdi"], token, 5.0))["token"]


async def test_snapshots_can_be_cloned_and_clones_written(api: Api) -> None:
    snapshot = await api("VDI.snapshot", await api.disk("db01-data"))

    clone = await api("VDI.get_record", await api("VDI.clone", snapshot))

    assert clone["is_a_snapshot"] is False
    assert clone["virtual_size"] == str(16 * MIB)


async def test_a_chain_of_30_files_is_the_longest(lab: Lab, api: Api) -> None:
    disk = await api.disk("web01-data")
    for number in range(29):
        await api("VDI.snapshot", disk)
        await lab.guest_write("web01", 1, random=1, seed=number)

    code, _, text, _ = await api.failure("VDI.snapshot", disk)

    assert code == "SR_BACKEND_FAILURE_109"
    assert "too long" in text


async def test_disks_grow_and_do_not_shrink(api: Api) -> None:
    disk = await api.disk("db01-data")

    await api("VDI.resize", disk, str(20 * MIB))
    shrink = await api.failure("VDI.resize", disk, str(2 * MIB))
    in_use = await api.failure("VDI.resize", await api.disk("web01-data"), str(64 * MIB))

    assert await api("VDI.get_virtual_size", disk) == str(20 * MIB)
    assert shrink[0] == "SR_BACKEND_FAILURE_79"
    assert in_use[0] == "VDI_IN_USE"


async def test_destroying_a_disk_removes_its_vbds(api: Api) -> None:
    vm, disk = await api.vm("db01"), await api.disk("db01-data")
    (vbd, *_) = await api("VDI.get_VBDs", disk)

    await api("VDI.destroy", disk)

    assert (await api.failure("VBD.get_uuid", vbd))[0] == "HANDLE_INVALID"
    assert vbd not in await api("VM.get_VBDs", vm)
    assert (await api.failure("VDI.destroy", disk))[:2] == ["HANDLE_INVALID", "VDI"]


async def test_a_scan_finds_and_forgets_files(lab: Lab, api: Api) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-local")
    disk = await api.disk("db01-data")
    uuid = await api("VDI.get_uuid", disk)
    file = lab.pools["prod"].srs["prod-local"].directory / f"{uuid}.vhd"
    away = file.with_suffix(".away")

    file.rename(away)
    await api("SR.scan", sr)
    assert (await api.failure("VDI.get_uuid", disk))[0] == "HANDLE_INVALID"

    away.rename(file)
    await api("SR.scan", sr)
    found = await api("VDI.get_by_uuid", uuid)
    assert await api("VDI.get_virtual_size", found) == str(16 * MIB)


async def test_an_unplugged_sr_takes_no_disks(api: Api) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-local")
    disk = await api.disk("db01-data")
    for pbd in await api("SR.get_PBDs", sr):
        await api("PBD.unplug", pbd)

    assert await api.failure("VDI.create", vdi_record(sr)) == ["SR_HAS_NO_PBDS", sr]
    assert await api.failure("VDI.snapshot", disk) == ["SR_HAS_NO_PBDS", sr]


async def test_sr_totals_follow_the_disks(api: Api) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    before = await api("SR.get_record", sr)

    await api("VDI.create", vdi_record(sr, 8 * MIB))

    after = await api("SR.get_record", sr)
    grown = int(after["virtual_allocation"]) - int(before["virtual_allocation"])
    assert grown == 8 * MIB
    assert int(after["physical_utilisation"]) > int(before["physical_utilisation"])


async def test_a_vbd_connects_a_vm_and_a_disk(api: Api) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-local")
    vm, vdi = await api.vm("db01"), await api("VDI.create", vdi_record(sr))

    vbd = await api("VBD.create", vbd_record(vm, vdi))
    assert vbd in await api("VM.get_VBDs", vm)
    assert await api("VDI.get_VBDs", vdi) == [vbd]
    assert await api("VBD.get_userdevice", vbd) == "1"
    assert (await api.failure("VBD.set_VDI", vbd, vdi))[0] == "MESSAGE_METHOD_UNKNOWN"

    await api("VBD.destroy", vbd)
    assert await api("VDI.get_VBDs", vdi) == []
