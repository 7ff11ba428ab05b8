"""content_id of disks that somebody attaches; what holds on any pool is in ../pool."""

import pytest

from tests.lab.labclient import Api, vbd_record, vdi_record
from tests.lab.nbdclient import allow_nbd, detached, exported, nbd_info
from tests.lab.vmwatch import empty_drive

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab


async def content(api: Api, vdi: str) -> str | None:
    other_config: dict[str, str] = await api("VDI.get_other_config", vdi)
    return other_config.get("content_id")


async def dom0(api: Api) -> str:
    (host,) = await api("host.get_by_name_label", "prod-h1")
    return str(await api("host.get_control_domain", host))


async def test_a_started_vm_takes_it_from_its_disks_and_leaves_new_ones(api: Api) -> None:
    vm, disk = await api.vm("db01"), await api.disk("db01-data")
    await api("VDI.add_to_other_config", disk, "content_id", "ours")

    await api("VM.start", vm, False, False)
    running = await api("VDI.snapshot", disk)
    assert (await content(api, disk), await content(api, running)) == (None, None)
    await api("VM.hard_shutdown", vm)

    assert await content(api, disk) not in (None, "ours")
    assert await content(api, running) is None


async def test_the_disks_of_a_snapshot_of_a_running_vm_have_none(api: Api) -> None:
    snapshot = await api("VM.snapshot", await api.vm("web01"), "s")

    vbds = [await api("VBD.get_record", vbd) for vbd in await api("VM.get_VBDs", snapshot)]
    vdis = [vbd["VDI"] for vbd in vbds if vbd["type"] == "Disk"]
    assert [await content(api, vdi) for vdi in vdis] == [None, None]


@pytest.mark.parametrize("mode", ["RO", "RW"])
async def test_a_disk_that_was_plugged_for_writing_has_a_new_one(api: Api, mode: str) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    config = {"content_id": "ours"}
    disk = await api("VDI.create", vdi_record(sr, other_config=config))
    vbd = await api("VBD.create", vbd_record(await dom0(api), disk, mode=mode))
    before = await content(api, disk)

    await api("VBD.plug", vbd)
    plugged = await content(api, disk)
    await api("VBD.unplug", vbd)
    await api("VBD.destroy", vbd)

    after = await content(api, disk)
    if mode == "RO":
        assert (before, plugged, after) == ("ours", "ours", "ours")
    else:
        assert (before, plugged) == ("ours", None)
        assert after not in (None, "ours")


async def test_a_disk_that_was_plugged_for_reading_gets_one_where_it_has_none(api: Api) -> None:
    vdi = await api("VDI.snapshot", await api.disk("web01-data"))
    vbd = await api("VBD.create", vbd_record(await dom0(api), vdi, mode="RO"))

    await api("VBD.plug", vbd)
    assert await content(api, vdi) is None
    await api("VBD.unplug", vbd)
    await api("VBD.destroy", vbd)

    assert await content(api, vdi)


async def test_a_disc_is_attached_for_reading_too(api: Api) -> None:
    disc = await api("VDI.snapshot", await api.disk("web01-data"))
    drive = await empty_drive(api, await api.vm("web01"))

    await api("VBD.insert", drive, disc)
    assert await content(api, disc) is None
    await api("VBD.eject", drive)

    assert await content(api, disc)


@pytest.mark.parametrize("before", ["ours", None])
async def test_reading_over_nbd_keeps_it_and_makes_it_where_there_is_none(
    api: Api, before: str | None
) -> None:
    await allow_nbd(api)
    vdi = await api("VDI.snapshot", await api.disk("web01-data"))
    if before:
        await api("VDI.add_to_other_config", vdi, "content_id", before)

    async with exported(await nbd_info(api, vdi)) as nbd:
        assert await nbd.read(0, 512)
        assert await content(api, vdi) == before
    await detached(api, vdi)

    assert await content(api, vdi)
    assert before in (None, await content(api, vdi))
