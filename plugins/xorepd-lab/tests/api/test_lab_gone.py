"""VDIs whose files are gone: what each call says of them."""

from typing import Any

import pytest

from tests.lab.labclient import NULL, Api, exchange, get, put, vbd_record, vdi_record
from tests.lab.nbdclient import allow_nbd, connected, nbd_info
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.leaves("result", "task", "session", "disk")]


@pytest.fixture
async def gone(lab: Lab, api: Api) -> str:
    """A tracked snapshot whose file and log somebody has deleted."""
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    disk = await api("VDI.create", vdi_record(sr))
    await api("VDI.enable_cbt", disk)
    vdi = str(await api("VDI.snapshot", disk))
    delete(lab, await api("VDI.get_uuid", vdi))
    return vdi


def delete(lab: Lab, uuid: str) -> None:
    directory = lab.pools["prod"].srs["prod-shared"].directory
    for file in directory.glob(f"{uuid}.*"):
        file.unlink()
    for repository in lab.pools["prod"].storage.repositories.values():
        repository.store.nodes()


async def said(api: Api, vdi: str) -> list[str]:
    """Return what the driver of file SRs says of a VDI that it does not find."""
    uuid = await api("VDI.get_uuid", vdi)
    text = f"The VDI is not available [opterr=VDI {uuid} not found]"
    return ["SR_BACKEND_FAILURE_46", "", text, ""]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("VDI.snapshot", ()),
        ("VDI.clone", ()),
        ("VDI.resize", (str(8 << 20),)),
        ("VDI.copy", ("SR", NULL, NULL)),
        ("VDI.data_destroy", ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_call_on_it_says_that_it_was_not_found(
    api: Api, gone: str, method: str, arguments: tuple[Any, ...]
) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    before = {*await api("VDI.get_all")}

    given = [sr if each == "SR" else each for each in arguments]
    assert await api.failure(method, gone, *given) == await said(api, gone)

    assert {*await api("VDI.get_all")} == before
    assert await api("VDI.get_type", gone) == "user"
    assert await api("VDI.get_VBDs", gone) == []


@pytest.mark.parametrize("way", ["export", "import"])
async def test_a_stream_of_it_fails_in_its_task(lab: Lab, api: Api, gone: str, way: str) -> None:
    task = await api("task.create", "stream", "")
    path = f"{way}_raw_vdi?session_id={api.ref}&vdi={gone}&task_id={task}"

    request = get(f"/{path}") if way == "export" else put(f"/{path}&chunked", bytes(12))
    answer = await exchange(lab.pools["prod"].plain_url, request)

    assert answer.startswith(b"HTTP/1.1 200 OK")
    record = await api.finished(task)
    assert (record["status"], record["error_info"]) == ("failure", await said(api, gone))


async def test_a_difference_from_it_fails_in_the_task(lab: Lab, api: Api, gone: str) -> None:
    head = await api("VDI.get_snapshot_of", gone)
    task = await api("task.create", "stream", "")
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={head}&base={gone}&format=vhd&task_id={task}"

    await exchange(lab.pools["prod"].plain_url, get(path))

    assert (await api.finished(task))["error_info"] == await said(api, gone)


async def test_nbd_closes_without_a_word(lab: Lab, api: Api, gone: str) -> None:
    await allow_nbd(api)
    info = await nbd_info(api, gone)
    async with connected(info) as nbd:
        await nbd.greet()
        nbd.say(1, info["exportname"].encode())
        assert await nbd.rest() == b""


async def test_changed_blocks_since_it_cannot_be_told(api: Api, gone: str) -> None:
    disk = await api("VDI.get_snapshot_of", gone)
    newer = await api("VDI.snapshot", disk)

    assert await api.failure("VDI.list_changed_blocks", gone, newer) == await said(api, gone)
    refused = await api.failure("VDI.list_changed_blocks", newer, gone)
    assert refused[0] == "SR_BACKEND_FAILURE_460"


async def test_a_vm_with_it_does_not_start(lab: Lab, api: Api, gone: str) -> None:
    vm = await api.vm("db01")
    vbd = await api("VBD.create", vbd_record(vm, gone))

    (host,) = await api("host.get_by_name_label", "prod-h2")
    assert await api.failure("VM.start_on", vm, host, False, False) == await said(api, gone)

    assert await api("VM.get_power_state", vm) == "Halted"
    await api("VBD.destroy", vbd)


async def test_its_name_is_written_before_the_driver_is_asked(api: Api, gone: str) -> None:
    uuid = await api("VDI.get_uuid", gone)
    text = f"Storage_interface.Storage_error ([S(Vdi_does_not_exist);S({uuid})])"
    failure = ["INTERNAL_ERROR", text]

    assert await api.failure("VDI.set_name_label", gone, "renamed") == failure
    assert await api("VDI.get_name_label", gone) == "renamed"
    assert await api.failure("VDI.update", gone) == failure
    await api("VDI.add_to_other_config", gone, "k", "no driver is asked for that")


async def test_it_can_be_destroyed(api: Api, gone: str) -> None:
    await api("VDI.destroy", gone)

    assert (await api.failure("VDI.get_record", gone))[0] == "HANDLE_INVALID"


async def test_a_scan_drops_its_record(api: Api, gone: str) -> None:
    await api("SR.scan", await api("VDI.get_SR", gone))

    assert (await api.failure("VDI.get_record", gone))[0] == "HANDLE_INVALID"


@pytest.mark.leaves("file")
async def test_a_disk_whose_parent_is_gone_is_another_matter(lab: Lab, api: Api) -> None:
    vdi = await api("VDI.snapshot", await api.disk("web01-data"))
    parent = (await api("VDI.get_sm_config", vdi))["vhd-parent"]
    delete(lab, parent)

    failure = await api.failure("VDI.snapshot", vdi)

    assert failure[0] == "SR_BACKEND_FAILURE_65"
