"""XVA: whole VMs out of a pool and into one, as strangers read, write and spoil them."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
import zstandard

from tests.lab.labclient import (
    NULL,
    Api,
    exchange,
    get,
    logged_in,
    put,
    vbd_record,
    vif_record,
    wire,
)
from xorepd_lab.demo import judge
from xorepd_lab.faults.faults import Fault
from xorepd_lab.lab import Lab
from xorepd_lab.wire.xmlrpc import decode_value, encode_value

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab

MIB = 1 << 20


@pytest.fixture
async def dr(lab: Lab) -> AsyncIterator[Api]:
    """The SDK, logged in to the pool `dr`."""
    async with logged_in(lab, "dr") as made:
        yield made


# -- doing it -------------------------------------------------------------------------------------


def query(api: Api, **parameters: str) -> str:
    return "&".join(f"{k}={v}" for k, v in {"session_id": api.ref, **parameters}.items())


async def answer(api: Api, request: bytes, host: str | None = None) -> tuple[str, bytes]:
    """Return header and body of the answer of a host, of the first one if none is named."""
    url = api.pool.plain_url
    if host is not None:
        url = f"http://{api.pool.address(api.pool.host(host))}:{api.pool.http_port}"
    head, _, body = (await exchange(url, request)).partition(b"\r\n\r\n")
    return head.decode(), body


def home(api: Api) -> str:
    """Return the name of a host that sees all disks of its pool."""
    return {"prod": "prod-h2", "dr": "dr-h1"}[api.pool.name]


async def exported(api: Api, vm: str, **parameters: str) -> bytes:
    """Return the XVA of a VM, whose export must succeed."""
    task = await api("task.create", "export", "")
    path = f"/export?{query(api, ref=vm, task_id=task, **parameters)}"
    head, body = await answer(api, get(path), home(api))
    assert head.startswith("HTTP/1.0 200 OK")
    record = await done(api, task)
    assert record["status"] == "success", record["error_info"]
    return body


async def imported(api: Api, xva: bytes, **parameters: str) -> dict[str, Any]:
    """Import an XVA and return the record of the task."""
    task = await api("task.create", "import", "")
    path = f"/import?{query(api, task_id=task, **parameters)}"
    head, _ = await answer(api, put(path, xva), home(api))
    assert head.startswith("HTTP/1.1 200 OK")
    return await done(api, task)


async def done(api: Api, task: str) -> dict[str, Any]:
    record = await api.finished(task)
    await api("task.destroy", task)
    return record


async def made(api: Api, xva: bytes, **parameters: str) -> str:
    """Import an XVA, which must succeed, and return its only VM."""
    record = await imported(api, xva, **parameters)
    assert record["status"] == "success", record["error_info"]
    [vm] = decode_value(record["result"].encode())
    return str(vm)


async def refused(api: Api, xva: bytes, **parameters: str) -> list[str]:
    """Import an XVA, which must fail; nothing of it may stay. Return the error."""
    before = await counts(api)
    record = await imported(api, xva, **parameters)
    assert record["status"] == "failure"
    assert await counts(api) == before
    return list(record["error_info"])


async def counts(api: Api) -> dict[str, int]:
    names = ("VM", "VDI", "VBD", "VIF", "network", "VM_metrics", "VM_guest_metrics", "VTPM")
    return {name: len(api.pool.db.refs(name)) for name in names}


async def disks(api: Api, vm: str) -> dict[str, str]:
    """Return the SHA-256 of a VM's disks by position, as libvhdi reads them."""
    for repository in api.pool.storage.repositories.values():
        await repository.garbage.settled.wait()
    found = {}
    for vbd in await api("VM.get_VBDs", vm):
        record = await api("VBD.get_record", vbd)
        if record["type"] == "Disk":
            repository, uuid = api.pool.storage.of_vdi(record["VDI"])
            digest = await asyncio.to_thread(judge.sha256, repository.directory, uuid)
            found[record["userdevice"]] = digest
    return found


# -- looking into archives ------------------------------------------------------------------------


def members(xva: bytes) -> dict[str, bytes]:
    """Return the files of an archive in their order, as Python's tarfile reads them."""
    with tarfile.open(fileobj=io.BytesIO(xva)) as archive:
        found = {}
        for each in archive:
            file = archive.extractfile(each)
            assert file is not None
            found[each.name] = file.read()
        return found


def packed(files: dict[str, bytes]) -> bytes:
    """Return an archive as Python's tarfile writes it: not as XAPI would."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def manifest(xva: bytes) -> dict[str, Any]:
    read: dict[str, Any] = decode_value(members(xva)["ova.xml"])
    return read


def edited(xva: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return an archive with another ova.xml."""
    files = members(xva)
    told = decode_value(files["ova.xml"])
    change(told)
    return packed({**files, "ova.xml": encode_value(told).encode()})


def of_class(told: dict[str, Any], cls: str) -> list[dict[str, Any]]:
    return [each["snapshot"] for each in told["objects"] if each["class"] == cls]


# -- tests ----------------------------------------------------------------------------------------


async def test_an_export_is_a_tar_of_records_and_checksummed_chunks(api: Api) -> None:
    files = members(await exported(api, await api.vm("db01")))

    names = list(files)
    assert names[0] == "ova.xml"
    chunks = names[1::2]
    assert names[2::2] == [f"{name}.xxhash" for name in chunks]
    for name in chunks:
        assert files[f"{name}.xxhash"].decode() == xxhash.xxh64_hexdigest(files[name]).upper()
        assert len(files[name]) == MIB
    numbers = [int(name.partition("/")[2]) for name in chunks]
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (0, 15)
    assert len(numbers) < 16
    inner = [files[name] for name in chunks[1:-1]]
    assert inner
    assert all(any(data) for data in inner)


async def test_a_vm_comes_out_as_it_went_in_elsewhere(api: Api, dr: Api) -> None:
    vm = await api.vm("db01")
    before = await api("VM.get_record", vm)

    xva = await exported(api, vm)
    copy = await made(dr, xva)

    after = await dr("VM.get_record", copy)
    assert await disks(dr, copy) == await disks(api, vm)
    for name in ("name_label", "name_description", "memory_static_max", "VCPUs_max", "tags"):
        assert after[name] == before[name]
    assert after["uuid"] != before["uuid"]
    assert after["power_state"] == "Halted"
    assert after["version"] == "0"
    assert after["other_config"]["mac_seed"] != before["other_config"]["mac_seed"]
    [vif] = after["VIFs"]
    assert await dr("VIF.get_MAC", vif) != "02:16:3e:5e:6c:02"
    network = await dr("VIF.get_network", vif)
    assert await dr("network.get_name_label", network) == "lan"
    assert after["current_operations"] == {}


async def test_the_members_are_those_of_tars_before_posix(api: Api, tmp_path: Path) -> None:
    xva = await exported(api, await api.vm("db01"))
    file = tmp_path / "db01.xva"
    file.write_bytes(xva)

    listed = await asyncio.to_thread(
        lambda: subprocess.run(["tar", "-tvf", file], check=True, capture_output=True, text=True)
    )

    assert xva[257:265] == bytes(8)
    first = listed.stdout.splitlines()[0].split()
    assert first[0] == "-r--------"
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == list(members(xva))
    assert xva[-1024:] == bytes(1024)


@pytest.mark.stranger
@pytest.mark.skipif(shutil.which("bsdtar") is None, reason="bsdtar is not installed")
async def test_bsdtar_lists_it(api: Api, tmp_path: Path) -> None:
    xva = await exported(api, await api.vm("db01"))
    (tmp_path / "db01.xva").write_bytes(xva)

    listed = await asyncio.to_thread(
        lambda: subprocess.run(
            ["bsdtar", "-tf", tmp_path / "db01.xva"], check=True, capture_output=True, text=True
        )
    )

    assert listed.stdout.splitlines() == list(members(xva))


async def test_the_manifest_refers_to_nothing_outside(lab: Lab, api: Api) -> None:
    vm = await api.vm("db01")
    told = manifest(await exported(api, vm))

    assert told["version"]["export_vsn"] == "2"
    assert (told["version"]["xapi_major"], told["version"]["xapi_minor"]) == ("25", "6")
    classes = [each["class"] for each in told["objects"]]
    order = ["VM", "VM_metrics", "VBD", "VIF", "network", "VDI", "SR"]
    assert [cls for cls in dict.fromkeys(classes) if cls in order] == order
    ids = {each["id"] for each in told["objects"]}
    [record] = of_class(told, "VM")
    assert told["objects"][classes.index("VM")]["id"] == "Ref:0"
    assert set(record["VBDs"] + record["VIFs"]) <= ids
    for vbd in of_class(told, "VBD"):
        assert vbd["VM"] == "Ref:0"
        assert vbd["VDI"] in ids or vbd["empty"]
    for vdi in of_class(told, "VDI"):
        assert vdi["SR"] in ids
        assert (vdi["current_operations"], vdi["allowed_operations"]) == ({}, [])
    assert record["consoles"] == []
    assert all(not sr["PBDs"] for sr in of_class(told, "SR"))


async def test_references_to_nothing_get_the_identifier_of_nothing(api: Api) -> None:
    told = manifest(await exported(api, await api.vm("db01")))

    # The VM has no guest metrics, so that NULL is in the table when VBDs are written.
    [vm] = of_class(told, "VM")
    [empty] = [vbd for vbd in of_class(told, "VBD") if vbd["empty"]]
    assert vm["guest_metrics"].startswith("Ref:")
    assert empty["VDI"] == vm["guest_metrics"]


async def test_disks_come_in_the_order_of_their_identifiers_as_text(api: Api) -> None:
    vm = await api.vm("db01")
    sr = await api("VDI.get_SR", await api.disk("db01-data"))
    extra = []
    for number in range(6):
        vdi = await api("VDI.create", {**vdi_fields(sr), "name_label": f"extra{number}"})
        extra.append(await api("VBD.create", vbd_record(vm, vdi)))

    names = [name.partition("/")[0] for name in members(await exported(api, vm))][1:]

    seen = list(dict.fromkeys(names))
    assert len(seen) == 7
    assert seen == sorted(seen)
    assert seen != sorted(seen, key=lambda name: int(name[4:]))


def vdi_fields(sr: str) -> dict[str, Any]:
    return {
        "SR": sr,
        "virtual_size": str(2 * MIB),
        "type": "user",
        "sharable": False,
        "read_only": False,
        "other_config": {},
    }


async def test_an_empty_disk_still_has_its_first_and_last_chunk(api: Api) -> None:
    vm = await api.vm("db01")
    sr = await api("VDI.get_SR", await api.disk("db01-data"))
    vdi = await api("VDI.create", {**vdi_fields(sr), "virtual_size": str(6 * MIB)})
    await api("VBD.create", vbd_record(vm, vdi))
    told = manifest(xva := await exported(api, vm))

    [identifier] = [
        each["id"]
        for each in told["objects"]
        if each["class"] == "VDI" and each["snapshot"]["virtual_size"] == str(6 * MIB)
    ]
    chunks = [name for name in members(xva) if name.startswith(f"{identifier}/")]

    assert chunks == [
        f"{identifier}/{number:08}{suffix}" for number in (0, 5) for suffix in ("", ".xxhash")
    ]


@pytest.mark.parametrize("kind", ["gzip", "true", "zstd"])
async def test_compressed_exports_unpack_to_the_plain_one_and_come_back(
    api: Api, dr: Api, kind: str
) -> None:
    vm = await api.vm("db01")
    plain = await exported(api, vm)
    compressed = await exported(api, vm, use_compression=kind)

    unpacker = zstandard.ZstdDecompressor().decompressobj() if kind == "zstd" else None
    unpacked = unpacker.decompress(compressed) if unpacker else gzip.decompress(compressed)
    theirs, ours = members(unpacked), members(plain)
    assert list(theirs) == list(ours)
    assert all(theirs[name] == ours[name] for name in theirs if name != "ova.xml")
    copy = await made(dr, compressed)
    assert await disks(dr, copy) == await disks(api, vm)


async def test_a_snapshot_comes_back_as_a_template(api: Api, dr: Api) -> None:
    vm = await api.vm("web01")
    snapshot = await api("VM.snapshot", vm, "frozen")

    xva = await exported(api, snapshot)
    copy = await made(dr, xva)

    record = await dr("VM.get_record", copy)
    assert (record["is_a_template"], record["is_a_snapshot"]) == (True, False)
    assert (record["snapshot_of"], record["parent"]) == (NULL, NULL)
    assert record["name_label"] == "frozen"
    assert await disks(dr, copy) == await disks(api, snapshot)


async def test_a_running_vm_is_refused_before_any_answer(api: Api) -> None:
    task = await api("task.create", "export", "")
    vm = await api.vm("web01")

    head, body = await answer(api, get(f"/export?{query(api, ref=vm, task_id=task)}"))

    assert head.startswith("HTTP/1.1 500")
    assert b"VM_BAD_POWER_STATE" in body
    error = (await done(api, task))["error_info"]
    assert error == ["VM_BAD_POWER_STATE", vm, "halted, suspended", "running"]


@pytest.mark.leaves("task")
async def test_who_exports_and_from_where_is_asked_in_this_order(lab: Lab, api: Api) -> None:
    vm = await api.vm("db01")
    head, _ = await answer(api, get("/export?uuid=nonsense"))
    assert head.startswith("HTTP/1.1 401")
    assert 'WWW-Authenticate: Basic realm="get_export"' in head

    task = await api("task.create", "export", "")
    head, body = await answer(api, get(f"/export?{query(api, uuid='nonsense', task_id=task)}"))
    assert head.startswith("HTTP/1.1 500")
    assert b"UUID_INVALID" in body
    assert await api("task.get_status", task) == "pending"

    # db01 is on the second host's own storage.
    path = f"/export?{query(api, uuid=await api('VM.get_uuid', vm), task_id=task)}"
    head, _ = await answer(api, get(path))
    assert head.startswith("HTTP/1.1 302")
    second = lab.pools["prod"].address(lab.pools["prod"].host("prod-h2"))
    assert f"Location: https://{second}:" in head
    assert await api("task.get_status", task) == "pending"


async def test_nobody_who_sees_the_disks_means_no_answer_at_all(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    for pbd in pool.db.select("PBD", SR=pool.srs["prod-local"].ref):
        pool.db.set("PBD", pbd, currently_attached=False)
    task = await api("task.create", "export", "")

    path = f"/export?{query(api, ref=await api.vm('db01'), task_id=task)}"
    assert await exchange(pool.plain_url, get(path)) == b""
    assert (await done(api, task))["error_info"] == ["NO_HOSTS_AVAILABLE"]


async def test_an_export_holds_the_vm_and_its_disks(lab: Lab, api: Api) -> None:
    vm = await api.vm("db01")
    fault = lab.faults.add(Fault("export", "xva", stall=True, stall_at=2 * MIB))
    task = await api("task.create", "export", "")
    path = f"/export?{query(api, ref=vm, task_id=task)}"

    stream = asyncio.create_task(answer(api, get(path), home(api)))  # noqa: TID251
    await lab_stalled(lab)
    assert list((await api("VM.get_current_operations", vm)).values()) == ["export"]
    [vbd] = [
        vbd
        for vbd in await api("VDI.get_VBDs", await api.disk("db01-data"))
        if await api("VBD.get_currently_attached", vbd)
    ]
    assert await api("VBD.get_mode", vbd) == "RO"
    assert await api("VM.get_is_control_domain", await api("VBD.get_VM", vbd))
    fault.release()
    for met in lab.faults:
        met.release()
    await stream

    assert (await done(api, task))["status"] == "success"
    assert await api("VM.get_current_operations", vm) == {}
    assert not await api("VBD.get_all_records_where", f'field "uuid" = "{vbd}"')


async def lab_stalled(lab: Lab) -> None:
    for fault in lab.faults:
        await asyncio.wait_for(fault.stalled.wait(), 20)


async def test_a_cancelled_export_ends_and_leaves_nothing(lab: Lab, api: Api) -> None:
    vm = await api.vm("db01")
    fault = lab.faults.add(Fault("export", "xva", stall=True, stall_at=MIB))
    task = await api("task.create", "export", "")
    path = f"/export?{query(api, ref=vm, task_id=task)}"

    stream = asyncio.create_task(answer(api, get(path), home(api)))  # noqa: TID251
    await lab_stalled(lab)
    assert await api("task.get_allowed_operations", task) == ["cancel"]
    await api("task.cancel", task)
    fault.release()
    _, body = await stream

    assert (await done(api, task))["status"] == "cancelled"
    assert b"TASK_CANCELLED" in body
    assert await api("VM.get_current_operations", vm) == {}


async def test_a_client_that_goes_away_fails_the_export(lab: Lab, api: Api) -> None:
    vm = await api.vm("db01")
    task = await api("task.create", "export", "")
    lab.faults.add(Fault("export", "xva", bytes_per_s=20e6))
    path = f"/export?{query(api, ref=vm, task_id=task)}"
    pool = api.pool

    host = pool.address(pool.host(home(api)))
    async with wire(f"http://{host}:{pool.http_port}") as connection:
        await connection.send(get(path))
        await connection.head()

    assert (await done(api, task))["error_info"][0] == "CLIENT_ERROR"
    assert await api("VM.get_current_operations", vm) == {}


# -- import ---------------------------------------------------------------------------------------


@pytest.fixture
async def xva(api: Api) -> bytes:
    """db01 as an archive."""
    return await exported(api, await api.vm("db01"))


async def test_a_restore_keeps_identities_and_raises_the_version(
    api: Api, dr: Api, xva: bytes
) -> None:
    before = await api("VM.get_record", await api.vm("db01"))

    copy = await made(dr, xva, restore="true")

    after = await dr("VM.get_record", copy)
    assert after["uuid"] == before["uuid"]
    assert after["version"] == "1"
    assert after["other_config"]["mac_seed"] == before["other_config"]["mac_seed"]
    [ours], [theirs] = before["VIFs"], after["VIFs"]
    assert await dr("VIF.get_MAC", theirs) == await api("VIF.get_MAC", ours)
    assert await dr("VIF.get_uuid", theirs) == await api("VIF.get_uuid", ours)


async def test_a_restore_replaces_only_an_older_halted_vm(api: Api, dr: Api, xva: bytes) -> None:
    first = await made(dr, xva, restore="true")

    error = await refused(dr, xva, restore="true")
    assert error == ["VM_TO_IMPORT_IS_NOT_NEWER_VERSION", first, "1", "0"]

    def newer(told: dict[str, Any]) -> None:
        of_class(told, "VM")[0]["version"] = "5"

    second = await made(dr, edited(xva, newer), restore="true")
    assert await dr("VM.get_version", second) == "6"
    assert not dr.pool.db.exists("VM", first)
    await dr("VM.start", second, True, False)
    error = await refused(dr, edited(xva, newer), restore="true")
    assert error == ["VM_BAD_POWER_STATE", second, "Halted", "Paused"]
    skipped = await imported(dr, xva, restore="true", force="true")
    assert decode_value(skipped["result"].encode()) == []
    await dr("VM.hard_shutdown", second)


async def test_another_vm_with_the_seed_stops_a_restore(api: Api, dr: Api, xva: bytes) -> None:
    copy = await made(dr, xva, restore="true")
    seed = (await dr("VM.get_other_config", copy))["mac_seed"]

    def renamed(told: dict[str, Any]) -> None:
        of_class(told, "VM")[0]["uuid"] = "8c9a1b66-0000-4000-8000-000000000000"

    assert await refused(dr, edited(xva, renamed), restore="true") == ["DUPLICATE_MAC_SEED", seed]
    await made(dr, edited(xva, renamed))


async def test_networks_are_found_by_name_then_by_bridge_else_made(dr: Api, xva: bytes) -> None:
    def other_name(told: dict[str, Any]) -> None:
        of_class(told, "network")[0]["name_label"] = "elsewhere"

    def other_bridge(told: dict[str, Any]) -> None:
        other_name(told)
        of_class(told, "network")[0]["bridge"] = "xenbr77"

    async def network_of(vm: str) -> dict[str, Any]:
        [vif] = await dr("VM.get_VIFs", vm)
        record: dict[str, Any] = await dr("network.get_record", await dr("VIF.get_network", vif))
        return record

    assert (await network_of(await made(dr, edited(xva, other_name))))["name_label"] == "lan"
    record = await network_of(await made(dr, edited(xva, other_bridge)))
    assert (record["name_label"], record["bridge"]) == ("elsewhere", "xenbr77")
    assert record["other_config"]["import_task"].startswith("OpaqueRef:")


async def test_an_import_marks_what_it_makes_and_says_when(dr: Api, xva: bytes) -> None:
    record = await imported(dr, xva)

    assert record["other_config"]["object_creation"] == "complete"
    [vm] = decode_value(record["result"].encode())
    task = (await dr("VM.get_other_config", vm))["import_task"]
    assert task.startswith("OpaqueRef:")
    # XAPI hands it to the driver for VDIs too, and drivers drop keys that are not theirs.
    vdi = await dr.disk("db01-data")
    assert "import_task" not in await dr("VDI.get_sm_config", vdi)


async def test_an_xva_of_a_newer_pool_is_refused(dr: Api, xva: bytes) -> None:
    def future(told: dict[str, Any]) -> None:
        told["version"]["xapi_minor"] = "7"

    assert await refused(dr, edited(xva, future)) == ["IMPORT_INCOMPATIBLE_VERSION"]
    assert await refused(dr, edited(xva, future), force="true") == ["IMPORT_INCOMPATIBLE_VERSION"]


async def test_where_to_import_is_decided_before_the_body(lab: Lab, api: Api, xva: bytes) -> None:
    pool = lab.pools["prod"]
    task = await api("task.create", "import", "")

    path = f"/import?{query(api, sr_uuid='nonsense', task_id=task)}"
    head, body = await answer(api, put(path))
    assert head.startswith("HTTP/1.1 500")
    assert b"UUID_INVALID" in body

    local = pool.srs["prod-local"]
    head, _ = await answer(api, put(f"/import?{query(api, sr_uuid=local.uuid, task_id=task)}"))
    assert head.startswith("HTTP/1.1 302")

    pool.db.set("pool", next(pool.db.select("pool")), default_SR=NULL)
    head, body = await answer(api, put(f"/import?{query(api, task_id=task)}"))
    assert head.startswith("HTTP/1.1 500")
    assert b"DEFAULT_SR_NOT_FOUND" in body
    assert await api("task.get_status", task) == "pending"

    pool.db.set("SR", local.ref, content_type="iso")
    path = f"/import?{query(api, sr_id=local.ref, task_id=task)}"
    head, body = await answer(api, put(path), "prod-h2")
    assert head.startswith("HTTP/1.1 400 Bad Request")
    assert b"HTTP/1.1 500" in body
    assert (await done(api, task))["error_info"] == ["SR_OPERATION_NOT_SUPPORTED"]


async def test_chunked_transfer_is_forbidden(dr: Api) -> None:
    task = await dr("task.create", "import", "")
    request = put(
        f"/import?{query(dr, task_id=task)}", length=-1, extra="Transfer-Encoding: chunked\r\n"
    )

    head, _ = await answer(dr, request)

    assert head.startswith("HTTP/1.1 403 Forbidden")
    assert (await done(dr, task))["error_info"] == ["IMPORT_ERROR_CANNOT_HANDLE_CHUNKED"]


async def test_without_a_length_the_archive_itself_says_where_it_ends(dr: Api, xva: bytes) -> None:
    task = await dr("task.create", "import", "")
    pool = dr.pool
    async with wire(pool.plain_url) as connection:
        await connection.send(put(f"/import?{query(dr, task_id=task)}", length=-1))
        await connection.send(xva)
        assert (await connection.head()).startswith("HTTP/1.1 200 OK")
        assert (await done(dr, task))["status"] == "success"


async def test_sha1_is_taken_as_well(api: Api, dr: Api, xva: bytes) -> None:
    files: dict[str, bytes] = {}
    for name, content in members(xva).items():
        if name.endswith(".xxhash"):
            data = files[name.removesuffix(".xxhash")]
            digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
            files[name.replace(".xxhash", ".checksum")] = digest.encode()
        else:
            files[name] = content

    copy = await made(dr, packed(files))

    assert await disks(dr, copy) == await disks(api, await api.vm("db01"))


async def test_a_wrong_checksum_stops_all_but_forced_imports(dr: Api, xva: bytes) -> None:
    files = members(xva)
    name = next(name for name in files if name.endswith(".xxhash"))
    spoilt = packed({**files, name: b"0" * 16})

    code, text = await refused(dr, spoilt)

    assert code == "IMPORT_ERROR"
    assert "Invalid_checksum" in text
    await made(dr, spoilt, force="true")


async def test_archives_of_the_first_version_tell_their_checksums_again(
    dr: Api, xva: bytes
) -> None:
    def old(told: dict[str, Any]) -> None:
        told["version"]["export_vsn"] = "1"

    files = members(edited(xva, old))
    sums = {
        name.removesuffix(".xxhash"): content.decode()
        for name, content in files.items()
        if name.endswith(".xxhash")
    }
    table = {"checksum.xml": encode_value(sums).encode()}
    await made(dr, packed(files | table))

    wrong = {"checksum.xml": encode_value(dict.fromkeys(sums, "0" * 16)).encode()}
    error = await refused(dr, packed(files | wrong))
    assert error == ["IMPORT_ERROR_SOME_CHECKSUMS_FAILED"]


async def test_a_forced_import_that_fails_leaves_what_it_made(dr: Api, xva: bytes) -> None:
    before = await counts(dr)

    record = await imported(dr, xva[: len(xva) // 2], force="true")

    assert record["error_info"] == ["IMPORT_ERROR_PREMATURE_EOF"]
    after = await counts(dr)
    assert after["VM"] == before["VM"] + 1
    assert after["VDI"] == before["VDI"] + 1
    [vm] = await dr("VM.get_by_name_label", "db01")
    assert await dr("VM.get_current_operations", vm) == {}


async def test_a_client_that_goes_away_leaves_nothing(dr: Api, xva: bytes) -> None:
    before = await counts(dr)
    task = await dr("task.create", "import", "")

    async with wire(dr.pool.plain_url) as connection:
        path = f"/import?{query(dr, task_id=task)}"
        await connection.send(put(path, xva[: len(xva) // 2], length=len(xva)))
        await connection.head()

    assert (await done(dr, task))["error_info"] == ["IMPORT_ERROR_PREMATURE_EOF"]
    assert await counts(dr) == before


async def test_a_cancelled_import_leaves_nothing(lab: Lab, dr: Api, xva: bytes) -> None:
    before = await counts(dr)
    task = await dr("task.create", "import", "")
    lab.faults.add(Fault("import", "xva", stall=True, stall_at=2 * MIB))
    path = f"/import?{query(dr, task_id=task)}"

    stream = asyncio.create_task(answer(dr, put(path, xva)))  # noqa: TID251
    await lab_stalled(lab)
    await dr("task.cancel", task)
    for fault in lab.faults:
        fault.release()
    await stream

    assert (await done(dr, task))["status"] == "cancelled"
    assert await counts(dr) == before


async def test_a_failure_between_two_objects_undoes_the_first(
    lab: Lab, dr: Api, xva: bytes
) -> None:
    for method in ("VDI.create", "VM.create", "VBD.create", "VIF.create"):
        lab.faults.add(Fault("inner", method, pool="dr", error=("INTERNAL_ERROR", method)))

        assert await refused(dr, xva) == ["INTERNAL_ERROR", method]


@pytest.mark.parametrize(
    ("name", "spoil", "code"),
    [
        ("nothing", lambda xva: b"", "IMPORT_ERROR_PREMATURE_EOF"),
        ("noise", lambda xva: b"\x55" * 4096, "IMPORT_ERROR_PREMATURE_EOF"),
        ("half", lambda xva: xva[: len(xva) // 2], "IMPORT_ERROR_PREMATURE_EOF"),
        ("half of gzip", lambda xva: gzip.compress(xva, 1)[:-9000], "IMPORT_ERROR_PREMATURE_EOF"),
        ("other file first", lambda xva: packed({"a": b"b"}), "IMPORT_ERROR_PREMATURE_EOF"),
        (
            "other file first in gzip",
            lambda xva: gzip.compress(packed({"a": b"b"})),
            "IMPORT_ERROR_UNEXPECTED_FILE",
        ),
        ("no XML", lambda xva: packed({"ova.xml": b"<oops"}), "IMPORT_ERROR"),
        ("no struct", lambda xva: packed({"ova.xml": b"<value>1</value>"}), "IMPORT_ERROR"),
        (
            "path out of the archive",
            lambda xva: packed({"ova.xml": members(xva)["ova.xml"], "../../etc/passwd": b"x"}),
            "IMPORT_ERROR",
        ),
        (
            "checksum missing",
            lambda xva: packed(
                {n: c for n, c in members(xva).items() if not n.endswith("00000000.xxhash")}
            ),
            "IMPORT_ERROR",
        ),
        (
            "chunks out of order",
            lambda xva: packed(dict(reversed(list(members(xva).items())[1:]))),
            "IMPORT_ERROR_PREMATURE_EOF",
        ),
    ],
)
async def test_a_broken_archive_is_refused(
    dr: Api, xva: bytes, name: str, spoil: Callable[[bytes], bytes], code: str
) -> None:
    assert (await refused(dr, spoil(xva)))[0] == code


async def test_chunks_that_jump_over_the_end_or_back_are_refused(dr: Api, xva: bytes) -> None:
    files = members(xva)
    first = list(files)[1]
    disk = first.partition("/")[0]
    for number, text in (("99999999", "ENOSPC"), ("00000000", "Invalid XVA"), ("x", "int_of")):
        chunks = {}
        for name in list(files)[1:3]:
            chunks[name] = files[name]
        data = files[first]
        sums = {f"{disk}/{number}.xxhash": xxhash.xxh64_hexdigest(data).upper().encode()}
        body = packed({"ova.xml": files["ova.xml"], **chunks})
        hostile = trimmed(body) + packed({f"{disk}/{number}": data, **sums})

        code, told = await refused(dr, hostile)

        assert code == "IMPORT_ERROR"
        assert text in told


def trimmed(archive: bytes) -> bytes:
    """Return an archive without the blocks of zeroes at its end."""
    end = len(archive)
    while end >= 512 and archive[end - 512 : end].count(0) == 512:
        end -= 512
    return archive[:end]


async def test_sizes_that_cannot_be_are_refused_unread(dr: Api, xva: bytes) -> None:
    files = members(xva)
    huge = bytearray(packed({"ova.xml": b"x"})[:512])
    huge[124:136] = b"77777777777\0"
    huge[148:156] = b" " * 8
    huge[148:156] = b"%06o\0 " % sum(huge)
    assert (await refused(dr, bytes(huge) + b"x" * 65536))[0] == "IMPORT_ERROR"

    chunk = bytearray(packed({list(files)[1]: b"x"})[:512])
    chunk[124:136] = b"77777777777\0"
    chunk[148:156] = b" " * 8
    chunk[148:156] = b"%06o\0 " % sum(chunk)
    body = trimmed(packed({"ova.xml": files["ova.xml"]})) + bytes(chunk)
    assert "ENOSPC" in (await refused(dr, body + b"x" * 65536))[1]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
async def test_a_bomb_costs_no_memory(dr: Api, xva: bytes, kind: str) -> None:
    header = bytearray(packed({"ova.xml": b"x"})[:512])
    header[124:136] = b"%011o\0" % (15 << 20)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    whole = bytes(header) + bytes(200 << 20)
    bomb = gzip.compress(whole, 9) if kind == "gzip" else zstandard.compress(whole)
    assert len(bomb) < 1 << 20

    assert (await refused(dr, bomb))[0] == "IMPORT_ERROR"


# -- records alone --------------------------------------------------------------------------------


async def test_metadata_tells_snapshots_too_and_finds_the_disks_again(api: Api) -> None:
    vm = await api.vm("db01")
    await api("VM.snapshot", vm, "before")
    path = f"/export_metadata?{query(api, ref=vm)}"
    head, body = await answer(api, get(path))

    assert head.startswith("HTTP/1.0 200 OK")
    assert f"Content-Length: {len(body)}" in head
    told = manifest(body)
    assert sorted(each["name_label"] for each in of_class(told, "VM")) == ["before", "db01"]
    assert list(members(body)) == ["ova.xml"]

    disk = await api.disk("db01-data")
    task = await api("task.create", "import", "")
    head, _ = await answer(api, put(f"/import_metadata?{query(api, task_id=task)}", body))
    assert head.startswith("HTTP/1.1 200 OK")
    record = await done(api, task)
    assert record["status"] == "success", record["error_info"]
    [copy] = decode_value(record["result"].encode())
    [snapshot] = await api("VM.get_snapshots", copy)
    assert await api("VM.get_name_label", snapshot) == "before"
    assert await api("VM.get_parent", copy) == snapshot
    vbds = [await api("VBD.get_record", vbd) for vbd in await api("VM.get_VBDs", copy)]
    assert [vbd["VDI"] for vbd in vbds if vbd["type"] == "Disk"] == [disk]


async def test_metadata_whose_disks_are_not_here_is_refused(api: Api, dr: Api) -> None:
    path = f"/export_metadata?{query(api, ref=await api.vm('db01'))}"
    _, body = await answer(api, get(path))
    before = await counts(dr)
    task = await dr("task.create", "import", "")

    await answer(dr, put(f"/import_metadata?{query(dr, task_id=task)}", body))

    assert (await done(dr, task))["error_info"] == ["VDI_CONTENT_ID_MISSING"]
    assert await counts(dr) == before


async def test_faults_meet_xva_streams_by_the_name_xva(lab: Lab, api: Api) -> None:
    lab.faults.add(Fault("export", "xva", cut_at=100_000))
    task = await api("task.create", "export", "")
    path = f"/export?{query(api, ref=await api.vm('db01'), task_id=task)}"

    _, body = await answer(api, get(path), home(api))

    assert len(body) <= 100_000
    assert (await done(api, task))["status"] == "failure"
    assert [call.name for call in lab.calls if call.kind == "export"] == ["xva"]


async def test_a_vtpm_goes_along_with_its_contents(api: Api, dr: Api) -> None:
    vm = await api.vm("db01")
    vtpm = await api("VTPM.create", vm, False)
    await api("VTPM.set_contents", vtpm, "c2VjcmV0")

    copy = await made(dr, await exported(api, vm))

    [theirs] = await dr("VM.get_VTPMs", copy)
    assert await dr("VTPM.get_contents", theirs) == "c2VjcmV0"
    assert await dr("VTPM.get_uuid", theirs) != await api("VTPM.get_uuid", vtpm)


async def test_a_vif_of_its_own_address_keeps_it_only_in_a_restore(api: Api, dr: Api) -> None:
    vm = await api.vm("db01")
    [network] = await api("network.get_by_name_label", "lan")
    await api("VIF.create", vif_record(vm, network, MAC="02:00:00:00:00:42"))

    xva = await exported(api, vm)
    plain, whole = await made(dr, xva), await made(dr, xva, restore="true")

    async def addresses(of: str) -> set[str]:
        return {await dr("VIF.get_MAC", vif) for vif in await dr("VM.get_VIFs", of)}

    assert "02:00:00:00:00:42" in await addresses(whole)
    assert "02:00:00:00:00:42" not in await addresses(plain)


async def test_a_pool_fetches_from_another_one_over_a_redirect(api: Api, dr: Api) -> None:
    vm = await api.vm("db01")
    url = f"{api.pool.plain_url}/export?{query(api, ref=vm)}"
    sr = dr.pool.srs["dr-storage"].ref

    [copy] = await dr("VM.import", url, sr, False, False)

    assert await disks(dr, copy) == await disks(api, vm)
    before = await counts(dr)
    error = await dr.failure("VM.import", f"{api.pool.plain_url}/export?ref=x", sr, False, False)
    assert error == ["IMPORT_ERROR", "401 Unauthorized"]
    assert await counts(dr) == before


# -- restoring snapshots --------------------------------------------------------------------------

MARKS = {"mark": "of a restore point", "xo:backup:job": "nightly"}


async def a_point(api: Api) -> str:
    """Return a snapshot of db01 with keys of a client's on itself and on its disk."""
    point = str(await api("VM.snapshot", await api.vm("db01"), "point"))
    for key, value in MARKS.items():
        await api("VM.add_to_other_config", point, key, value)
        for vdi in await disks_of(api, point):
            await api("VDI.add_to_other_config", vdi, key, value)
    await api("VM.set_blocked_operations", point, {"start": "no"})
    return point


async def disks_of(api: Api, vm: str) -> list[str]:
    vbds = [await api("VBD.get_record", vbd) for vbd in await api("VM.get_VBDs", vm)]
    return [vbd["VDI"] for vbd in vbds if not vbd["empty"]]


async def restored_metadata(api: Api, archive: bytes, **parameters: str) -> dict[str, Any]:
    """Import records with their UUIDs, and return the record of the task."""
    task = await api("task.create", "import", "")
    path = f"/import_metadata?{query(api, task_id=task, restore='true', **parameters)}"
    await answer(api, put(path, archive))
    return await done(api, task)


@pytest.mark.parametrize("by", ["/import", "VM.import"])
async def test_a_restored_point_is_itself_again_but_no_snapshot(api: Api, dr: Api, by: str) -> None:
    point = await a_point(api)
    before = await api("VM.get_record", point)

    if by == "/import":
        copy = await made(dr, await exported(api, point), restore="true")
    else:
        url = f"{api.pool.plain_url}/export?{query(api, ref=point)}"
        [copy] = await dr("VM.import", url, dr.pool.srs["dr-storage"].ref, True, False)

    after = await dr("VM.get_record", copy)
    assert (after["uuid"], after["name_label"]) == (before["uuid"], "point")
    assert (after["is_a_template"], after["is_a_snapshot"]) == (True, False)
    assert (after["snapshot_of"], after["version"]) == (NULL, "1")
    assert after["other_config"].pop("import_task").startswith("OpaqueRef:")
    assert after["other_config"] == before["other_config"]
    assert after["other_config"].items() >= MARKS.items()
    assert after["blocked_operations"] == {}
    for field, cls in (("VIFs", "VIF"), ("VBDs", "VBD")):
        theirs = {await dr(f"{cls}.get_uuid", ref) for ref in after[field]}
        assert theirs == {await api(f"{cls}.get_uuid", ref) for ref in before[field]}
    [disk], [original] = await disks_of(dr, copy), await disks_of(api, point)
    assert (await dr("VDI.get_other_config", disk)).items() >= MARKS.items()
    assert await dr("VDI.get_uuid", disk) != await api("VDI.get_uuid", original)
    assert await disks(dr, copy) == await disks(api, point)


async def test_a_pool_with_relatives_refuses_a_point_of_theirs(api: Api, dr: Api) -> None:
    first, second = await a_point(api), await a_point(api)
    seed = (await api("VM.get_other_config", first))["mac_seed"]
    duplicate = ["DUPLICATE_MAC_SEED", seed]
    archives = [await exported(api, point) for point in (first, second)]

    # Exported with its disks it is no snapshot any more, whose VM could be the one that is here.
    for force in ({}, {"force": "true"}):
        assert await refused(api, archives[0], restore="true", **force) == duplicate
    copy = await made(dr, archives[0], restore="true")
    assert await refused(dr, archives[1], restore="true") == duplicate
    again = await refused(dr, archives[0], restore="true")
    assert again == ["VM_TO_IMPORT_IS_NOT_NEWER_VERSION", copy, "1", "0"]
    replaced = await made(dr, archives[0], restore="true", force="true")
    assert not dr.pool.db.exists("VM", copy)
    assert await dr("VM.get_uuid", replaced) == await api("VM.get_uuid", first)


@pytest.mark.parametrize("alone", [False, True], ids=["beside its VM", "without its VM"])
async def test_the_records_of_a_point_are_restored_where_its_disks_are(
    api: Api, alone: bool
) -> None:
    point, other = await a_point(api), await a_point(api)
    before = await api("VM.get_record", point)
    vdis = await disks_of(api, point)
    _, archive = await answer(api, get(f"/export_metadata?{query(api, uuid=before['uuid'])}"))
    refusal = (await restored_metadata(api, archive))["error_info"]
    assert refusal == ["VM_TO_IMPORT_IS_NOT_NEWER_VERSION", point, "0", "0"]
    await api("VM.destroy", point)
    if alone:
        await api("VM.destroy", await api.vm("db01"))

    record = await restored_metadata(api, archive)

    assert record["status"] == "success", record["error_info"]
    [copy] = decode_value(record["result"].encode())
    after = await api("VM.get_record", copy)
    assert (after["uuid"], after["is_a_snapshot"]) == (before["uuid"], True)
    assert after["snapshot_of"] == NULL
    assert after["other_config"].items() >= MARKS.items()
    assert await disks_of(api, copy) == vdis
    assert await api("VM.get_is_a_snapshot", other)


async def test_a_fetched_archive_that_is_none_is_an_internal_error(api: Api, dr: Api) -> None:
    sr = dr.pool.srs["dr-storage"].ref
    disk = await api.disk("web01-data")
    url = f"{api.pool.plain_url}/export_raw_vdi?{query(api, vdi=disk, format='raw')}"

    assert await dr.failure("VM.import", url, sr, True, False) == ["INTERNAL_ERROR", "End_of_file"]
