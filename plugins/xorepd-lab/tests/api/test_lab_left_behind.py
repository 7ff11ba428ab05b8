"""What a toolstack leaves behind that ends while it has disks attached to its control domain."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.lab.labclient import FAST, NULL, Api, get, logged_in, put, until, vdi_record, wire
from tests.lab.nbdclient import allow_nbd, dom0_vbds, exported, nbd_info
from xorepd_lab.calls.recorder import OutsideCall
from xorepd_lab.faults.faults import Fault, Where
from xorepd_lab.faults.incidents import Incident
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.leaves("result", "task", "session")]

MIB = 1 << 20
RESTART = Incident("toolstack-restart", pool="prod")


async def new_disk(api: Api) -> str:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    return str(await api("VDI.create", vdi_record(sr, 4 * MIB)))


@asynccontextmanager
async def stream_in_the_middle(lab: Lab, api: Api, way: str, vdi: str) -> AsyncIterator[None]:
    """Hold a stream of which a part has passed while the block runs; it ends afterwards."""
    where: Where = "export" if way == "export" else "import"
    fault = lab.faults.add(Fault(where, stall=True, stall_at=4096))
    path = f"?session_id={api.ref}&vdi={vdi}&format=raw"
    async with wire(lab.pools["prod"].plain_url) as connection:
        if way == "export":
            await connection.send(get(f"/export_raw_vdi{path}"))
        else:
            chunk = struct.pack("<QI", 0, 2 * MIB) if way == "chunked" else b""
            end = bytes(12) if way == "chunked" else b"x" * 2 * MIB
            path = f"/import_raw_vdi{path}{'&chunked' if way == 'chunked' else ''}"
            await connection.send(put(path, chunk + b"x" * MIB, length=4 * MIB))
        await fault.stalled.wait()
        yield
        fault.release()
        if way != "export":
            await connection.send(b"x" * MIB + end)
        await connection.rest()


async def detached(api: Api, vdi: str) -> None:
    """Do what is left to somebody who owns the disk."""
    for vbd in await api("VDI.get_VBDs", vdi):
        await api("VBD.unplug", vbd)
        await api("VBD.destroy", vbd)


async def left(api: Api, vdi: str) -> dict[str, Any]:
    (vbd,) = await dom0_vbds(api, vdi)
    return vbd


@pytest.mark.parametrize("way", ["export", "raw", "chunked"])
async def test_a_stream_leaves_its_disk_attached_when_the_toolstack_restarts(
    lab: Lab, api: Api, way: str
) -> None:
    vdi = await new_disk(api)
    async with stream_in_the_middle(lab, api, way, vdi):
        await lab.happen(RESTART)

    async with logged_in(lab) as later:
        vbd = await left(later, vdi)
        assert vbd["currently_attached"] is True
        assert vbd["mode"] == ("RO" if way == "export" else "RW")
        assert "unplug" in vbd["allowed_operations"]
        assert await later.failure("VDI.destroy", vdi) == ["VDI_IN_USE", vdi, "destroy"]
        [key] = [k for k in await later("VDI.get_sm_config", vdi) if k.startswith("host_")]
        assert key

        await detached(later, vdi)

        assert "content_id" in await later("VDI.get_other_config", vdi)
        await later("VDI.destroy", vdi)


async def test_a_snapshot_that_was_being_read_cannot_lose_its_data(lab: Lab, api: Api) -> None:
    disk = await api.disk("web01-data")
    await api("VDI.enable_cbt", disk)
    vdi = await api("VDI.snapshot", disk)
    async with stream_in_the_middle(lab, api, "export", vdi):
        await lab.happen(RESTART)

    async with logged_in(lab) as later:
        waits = asyncio.get_running_loop().time()
        lab.pools["prod"].clock.scale = 0.05
        refused = await later.failure("VDI.data_destroy", vdi)
        assert refused == ["VDI_IN_USE", vdi, "data_destroy"]
        assert asyncio.get_running_loop().time() - waits >= 4 * 0.05
        assert await later("VDI.get_type", vdi) == "user"

        await detached(later, vdi)

        await later("VDI.data_destroy", vdi)
        assert await later("VDI.get_type", vdi) == "cbt_metadata"


async def test_a_vbd_that_is_still_attached_cannot_be_destroyed_first(lab: Lab, api: Api) -> None:
    vdi = await new_disk(api)
    async with stream_in_the_middle(lab, api, "chunked", vdi):
        await lab.happen(RESTART)

    async with logged_in(lab) as later:
        (vbd,) = await later("VDI.get_VBDs", vdi)
        assert (await later.failure("VBD.destroy", vbd))[0] == "OPERATION_NOT_ALLOWED"
        await detached(later, vdi)


async def test_a_tracked_disk_that_was_imported_into_is_consistent_again_when_detached(
    lab: Lab, api: Api
) -> None:
    vdi = await new_disk(api)
    await api("VDI.enable_cbt", vdi)
    uuid = await api("VDI.get_uuid", vdi)
    async with stream_in_the_middle(lab, api, "chunked", vdi):
        await lab.happen(RESTART)
    repository, _ = lab.pools["prod"].storage.of_vdi(vdi)
    assert not repository.store.logs.is_consistent(uuid)

    async with logged_in(lab) as later:
        await detached(later, vdi)

    assert repository.store.logs.is_consistent(uuid)


@pytest.mark.parametrize("into", ["new", "there"])
async def test_a_copy_leaves_both_its_disks_attached_and_what_it_had_made(
    lab: Lab, api: Api, into: str
) -> None:
    source = await new_disk(api)
    (sr,) = await api("SR.get_by_name_label", "prod-local")
    there = await api("VDI.create", vdi_record(sr, 4 * MIB)) if into == "there" else NULL
    before = {*await api("VDI.get_all")}
    lab.pools["prod"].clock.scale = 1.0
    task = await api("Async.VDI.copy", source, sr if into == "new" else NULL, NULL, there)
    await until(lambda: len(attached(lab, source)) == 1)
    await until(lambda: len(lab.pools["prod"].db.refs("VDI")) > len(before) - (into == "there"))
    target = there if into == "there" else ({*await api("VDI.get_all")} - before).pop()
    await until(lambda: len(attached(lab, target)) == 1)
    lab.pools["prod"].clock.scale = FAST

    await lab.happen(RESTART)

    async with logged_in(lab) as later:
        assert (await later.failure("task.get_status", task))[0] == "HANDLE_INVALID"
        assert (await left(later, source))["mode"] == "RO"
        assert (await left(later, target))["mode"] == "RW"
        for vdi in (source, target):
            assert (await later.failure("VDI.destroy", vdi))[0] == "VDI_IN_USE"
            await detached(later, vdi)
            await later("VDI.destroy", vdi)


def exchanges(lab: Lab) -> list[OutsideCall]:
    return [call for call in lab.calls if (call.kind, call.name) == ("nbd", "connect")]


def attached(lab: Lab, vdi: str) -> list[str]:
    return list(lab.pools["prod"].db.select("VBD", VDI=vdi, currently_attached=True))


async def test_a_toolstack_that_restarts_elsewhere_leaves_nothing(lab: Lab, api: Api) -> None:
    vdi = await new_disk(api)
    async with stream_in_the_middle(lab, api, "export", vdi):
        await lab.happen(Incident("toolstack-restart", pool="prod", host="prod-h2"))

    await until(lambda: not attached(lab, vdi))


async def test_nbd_lets_go_of_its_disk_unless_it_ends_while_nobody_answers(
    lab: Lab, api: Api
) -> None:
    await allow_nbd(api)
    vdis = [await api("VDI.snapshot", await api.disk("web01-data")) for _ in range(2)]
    infos = [await nbd_info(api, vdi) for vdi in vdis]
    pool = lab.pools["prod"]

    async with exported(infos[0]) as first:
        async with exported(infos[1]) as second, asyncio.TaskGroup() as group:
            pool.clock.scale = 0.1
            group.create_task(lab.happen(RESTART))
            await until(lambda: not pool.life.can_call(pool.master))
            second.writer.transport.abort()
            await until(lambda: exchanges(lab)[1].outcome)
            pool.clock.scale = FAST
        await first.read(0, 512)

    async with logged_in(lab) as later:
        await until(lambda: not attached(lab, vdis[0]))
        assert (await left(later, vdis[1]))["mode"] == "RO"
        await detached(later, vdis[1])


async def test_a_host_that_boots_has_nothing_attached(lab: Lab, api: Api) -> None:
    vdi = await new_disk(api)
    async with stream_in_the_middle(lab, api, "chunked", vdi):
        await lab.happen(RESTART)
    assert attached(lab, vdi)

    await lab.happen(Incident("host-restart", pool="prod", host="prod-h1"))

    async with logged_in(lab) as later:
        assert await later("VDI.get_VBDs", vdi) == []
        await later("VDI.destroy", vdi)
