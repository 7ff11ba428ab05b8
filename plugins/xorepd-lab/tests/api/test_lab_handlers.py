"""The disk handlers: exports and imports over HTTP."""

import asyncio
import random
import socket
import ssl
import struct
import subprocess
from base64 import b64encode
from pathlib import Path

import pytest
import pyvhdi

from tests.lab.labclient import Api, exchange, get, put, vdi_record, wire
from xorepd_lab.faults.faults import Fault
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab

MIB = 1 << 20
SECTOR = 512
BLOCK = 2 * MIB
END = bytes(12)


def chunk(offset: int, data: bytes) -> bytes:
    return struct.pack("<QI", offset, len(data)) + data


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


async def download(lab: Lab, api: Api, vdi: str, query: str = "", pool: str = "prod") -> bytes:
    """Return the body of an export."""
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}{query}"
    answer = await exchange(lab.pools[pool].plain_url, get(path))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
    assert b"content-length" not in head.lower()
    return body


async def upload(lab: Lab, api: Api, query: str, body: bytes) -> bytes:
    path = f"/import_raw_vdi?session_id={api.ref}{query}"
    return await exchange(lab.pools["prod"].plain_url, put(path, body))


async def new_disk(api: Api, size: int = 4 * MIB, sr: str = "prod-shared") -> str:
    (ref,) = await api("SR.get_by_name_label", sr)
    return str(await api("VDI.create", vdi_record(ref, size)))


async def new_task(api: Api) -> str:
    return str(await api("task.create", "stream", ""))


# -- export -------------------------------------------------------------------------------------


async def test_the_end_of_an_export_waits_for_a_client_that_reads_slowly(
    lab: Lab, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = lab.pools["prod"]
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={await api.disk('web01-root')}&format=vhd"
    loop, behind = asyncio.get_running_loop(), 0.0
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + behind)
    with socket.socket() as narrow:
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.setblocking(False)
        await loop.sock_connect(narrow, (pool.address(pool.master), pool.https_port))
        tls = ssl.create_default_context(cafile=pool.ca_file)
        name = pool.address(pool.master)
        reader, writer = await asyncio.open_connection(
            sock=narrow, ssl=tls, server_hostname=name, limit=4096
        )
        writer.write(get(path))
        await reader.readuntil(b"\r\n\r\n")
        [export] = [call for call in lab.calls if call.kind == "export"]
        read = 0
        while not export.outcome:  # when it is done, the last of it is still on its way
            read += len(await reader.read(4096))

        behind = 30.0
        while piece := await reader.read(1 << 20):
            read += len(piece)
        writer.close()

    assert read == export.moved


async def test_a_raw_export_is_the_whole_disk(lab: Lab, api: Api) -> None:
    vdi, task = await api.disk("db01-data"), await new_task(api)
    (host,) = await api("host.get_by_name_label", "prod-h2")
    url = lab.pools["prod"]
    member = f"http://{url.address(host)}:{url.http_port}"
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}&format=raw"

    answer = await exchange(member, get(path))

    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"task-id:{task}".encode() in head
    assert b"content-type:application/octet-stream" in head
    assert len(body) == 16 * MIB
    assert body.count(0) < len(body) - 1 * MIB
    record = await api.finished(task)
    assert (record["status"], record["result"]) == ("success", "")
    assert await api("VDI.get_VBDs", vdi) == [
        v for v in await api("VDI.get_VBDs", vdi) if not await api("VBD.get_currently_attached", v)
    ]


async def test_a_vhd_export_is_a_vhd(lab: Lab, api: Api, tmp_path: Path) -> None:
    vdi = await new_disk(api)
    data = noise(BLOCK)
    await upload(lab, api, f"&vdi={vdi}&chunked&format=raw", chunk(BLOCK, data) + END)

    body = await download(lab, api, vdi, "&format=vhd")

    assert body[:512] == body[-512:]
    assert body[28:32] == b"caml"
    assert len(body) == 2048 + SECTOR + SECTOR + BLOCK + SECTOR
    path = tmp_path / "export.vhd"
    path.write_bytes(body)
    file = pyvhdi.file()
    file.open(str(path))
    content = file.read_buffer_at_offset(file.get_media_size(), 0)
    file.close()
    assert content == bytes(BLOCK) + data


async def test_a_delta_holds_the_blocks_that_changed(lab: Lab, api: Api) -> None:
    vm, disk = await api.vm("web01"), await api.disk("web01-data")
    await api("VM.snapshot", vm, "one")
    (one,) = await api("VDI.get_snapshots", disk)
    await lab.guest_write("web01", 1, sequential=(6 * MIB, 4096), seed=3)
    await api("VM.snapshot", vm, "two")
    (two,) = [s for s in await api("VDI.get_snapshots", disk) if s != one]

    delta = await download(lab, api, two, f"&format=vhd&base={one}")

    assert delta[60:64] == struct.pack(">I", 4)
    table = struct.unpack(">16I", delta[2048 : 2048 + 64])
    assert [n for n, sector in enumerate(table) if sector != 0xFFFFFFFF] == [3]
    assert len(delta) == 2048 + SECTOR + SECTOR + BLOCK + SECTOR


async def test_a_delta_on_a_copy_of_the_base_gives_the_disk(lab: Lab, api: Api) -> None:
    vm, disk = await api.vm("web01"), await api.disk("web01-data")
    await api("VM.snapshot", vm, "one")
    (one,) = await api("VDI.get_snapshots", disk)
    copy = await api("VDI.clone", one)
    await lab.guest_write("web01", 1, random=20, seed=3)
    await api("VM.snapshot", vm, "two")
    (two,) = [s for s in await api("VDI.get_snapshots", disk) if s != one]
    delta = await download(lab, api, two, f"&format=vhd&base={one}")

    task = await new_task(api)
    await upload(lab, api, f"&vdi={copy}&format=vhd&task_id={task}", delta)

    assert (await api.finished(task))["result"] == f"<value>{copy}</value>"
    assert await download(lab, api, copy) == await download(lab, api, two)


@pytest.mark.leaves("task")
async def test_a_host_without_the_sr_redirects_to_one_that_has_it(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    vdi, task = await api.disk("db01-data"), await new_task(api)
    query = f"session_id={api.ref}&vdi={vdi}&task_id={task}"

    for request in (get(f"/export_raw_vdi?{query}"), put(f"/import_raw_vdi?{query}", length=5)):
        answer = (await exchange(pool.plain_url, request)).decode()
        address = pool.address(pool.host("prod-h2"))
        path = request.split(b" ")[1].decode()
        assert answer.startswith("HTTP/1.1 302 Found\r\n")
        assert f"Location: https://{address}:{pool.https_port}{path}\r\n" in answer

    assert await api("task.get_status", task) == "pending"


@pytest.mark.leaves("task")
async def test_unknown_disks_are_a_real_500_and_the_task_stays(lab: Lab, api: Api) -> None:
    task = await new_task(api)
    path = f"raw_vdi?session_id={api.ref}&vdi=none&task_id={task}"

    for request in (get(f"/export_{path}"), put(f"/import_{path}")):
        answer = await exchange(lab.pools["prod"].plain_url, request)
        assert answer.startswith(b"HTTP/1.1 500 Internal Error\r\n")
        assert b"UUID_INVALID: [ VDI; none ]" in answer
    assert await api("task.get_status", task) == "pending"


async def test_unknown_formats_are_404(lab: Lab, api: Api) -> None:
    vdi, task = await api.disk("web01-data"), await new_task(api)
    query = f"session_id={api.ref}&vdi={vdi}&task_id={task}"

    answer = await exchange(lab.pools["prod"].plain_url, get(f"/export_raw_vdi?{query}&format=dmg"))

    assert answer.startswith(b"HTTP/1.0 404 Not Found\r\n")
    assert (await api("task.get_error_info", task)) == ["INTERNAL_ERROR", "Unknown format dmg"]


async def test_an_export_that_cannot_attach_says_so_inside_the_body(lab: Lab, api: Api) -> None:
    lab.faults.add(Fault("export", error=("SR_BACKEND_FAILURE_46", "", "not available", "")))
    vdi, task = await api.disk("web01-data"), await new_task(api)

    body = await download(lab, api, vdi, f"&task_id={task}")

    assert body.startswith(b"HTTP/1.1 500 Internal Error\r\n")
    assert (await api.finished(task))["error_info"][0] == "SR_BACKEND_FAILURE_46"


async def test_a_stream_holds_its_disk_attached_to_the_control_domain(lab: Lab, api: Api) -> None:
    fault = lab.faults.add(Fault("export", stall=True, stall_at=4096))
    vdi, task = await new_disk(api), await new_task(api)
    query = f"session_id={api.ref}&vdi={vdi}&task_id={task}"

    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(get(f"/export_raw_vdi?{query}"))
        await fault.stalled.wait()

        (vbd,) = [await api("VBD.get_record", v) for v in await api("VDI.get_VBDs", vdi)]
        assert (vbd["mode"], vbd["currently_attached"]) == ("RO", True)
        assert await api("VM.get_is_control_domain", vbd["VM"]) is True
        assert await api.failure("VDI.destroy", vdi) == ["VDI_IN_USE", vdi, "destroy"]
        assert await api("task.get_status", task) == "pending"

        fault.release()
        await connection.rest()

    assert (await api.finished(task))["status"] == "success"
    assert await api("VDI.get_VBDs", vdi) == []
    await api("VDI.destroy", vdi)


async def test_a_client_that_leaves_ends_its_export(lab: Lab, api: Api) -> None:
    vdi, task = await api.disk("web01-root"), await new_task(api)
    query = f"session_id={api.ref}&vdi={vdi}&task_id={task}"

    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(get(f"/export_raw_vdi?{query}"))
        await connection.head()
        connection.writer.transport.abort()

    record = await api.finished(task)
    assert (record["status"], record["error_info"][0]) == ("failure", "VDI_IO_ERROR")


async def test_two_exports_of_one_disk_run_side_by_side(lab: Lab, api: Api) -> None:
    vdi = await api("VDI.snapshot", await api.disk("web01-data"))

    one, two = await asyncio.gather(download(lab, api, vdi), download(lab, api, vdi))

    assert one == two
    assert len(one) == 32 * MIB


# -- import -------------------------------------------------------------------------------------


async def test_an_import_is_answered_before_its_body(lab: Lab, api: Api) -> None:
    vdi, task = await new_disk(api), await new_task(api)
    path = f"/import_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}&format=raw&chunked=true"

    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(put(path, length=-1))
        head = await connection.head()
        await connection.send(chunk(4096, b"x" * 512))
        await connection.send(END)
        rest = await connection.rest()

    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert "Connection: close\r\n" in head
    assert rest == b""
    record = await api.finished(task)
    assert (record["status"], record["result"]) == ("success", f"<value>{vdi}</value>")
    body = await download(lab, api, vdi)
    assert body == bytes(4096) + b"x" * 512 + bytes(4 * MIB - 4096 - 512)


async def test_a_raw_import_fills_the_disk_through_curl(lab: Lab, api: Api, tmp_path: Path) -> None:
    vdi, task = await new_disk(api, sr="prod-local"), await new_task(api)
    data = noise(4 * MIB)
    source = tmp_path / "disk.raw"
    source.write_bytes(data)
    pool = lab.pools["prod"]
    url = f"{pool.url}/import_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}&format=raw"

    # The master does not see prod-local: curl follows the redirect to the host that does.
    ran = await asyncio.to_thread(
        lambda: subprocess.run(
            ["curl", "-sSfL", "--cacert", pool.ca_file, "-T", source, url],
            capture_output=True,
            text=True,
            check=False,
        )
    )

    assert ran.returncode == 0, ran.stderr
    assert (await api.finished(task))["status"] == "success"
    back = await asyncio.to_thread(
        lambda: subprocess.run(
            ["curl", "-sSfL", "--cacert", pool.ca_file, url.replace("import", "export")],
            capture_output=True,
            check=False,
        )
    )
    assert back.stdout == data
    assert back.returncode == 0


async def test_what_a_chunked_import_does_not_mention_stays(lab: Lab, api: Api) -> None:
    vdi = await new_disk(api)
    first, second = noise(8192, 1), noise(512, 2)

    await upload(lab, api, f"&vdi={vdi}&chunked", chunk(0, first) + END)
    await upload(lab, api, f"&vdi={vdi}&chunked", chunk(1024, second) + END)

    body = await download(lab, api, vdi)
    assert body[:8192] == first[:1024] + second + first[1536:]


@pytest.mark.parametrize(
    "body",
    [
        chunk(0, b"x" * 100) + END,
        chunk(100, b"x" * 512) + END,
        chunk(64 * MIB, b"x" * 512) + END,
        chunk(0, b"x" * 512),
        b"",
    ],
    ids=["odd length", "odd offset", "past the end", "no end", "nothing"],
)
async def test_bad_chunks_fail_behind_a_200(lab: Lab, api: Api, body: bytes) -> None:
    vdi, task = await new_disk(api), await new_task(api)
    path = f"/import_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}&chunked"

    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(put(path, body))
        assert (await connection.head()).startswith("HTTP/1.1 200 OK")
        connection.writer.write_eof()
        rest = await connection.rest()

    record = await api.finished(task)
    assert record["error_info"] == ["VDI_IO_ERROR", "Device I/O errors"]
    refusal, _, page = rest.partition(b"\r\n\r\n")
    assert refusal.splitlines() == [
        b"HTTP/1.1 400 Bad Request",
        b"Connection: close",
        b"Cache-Control: no-cache, no-store",
    ]
    assert page.startswith(b"HTTP/1.1 500 Internal Error\r\n")
    assert b"VDI_IO_ERROR: [ Device I/O errors ]" in page
    assert await api("VDI.get_VBDs", vdi) == []


async def test_a_client_that_leaves_fails_its_import(lab: Lab, api: Api) -> None:
    vdi, task = await new_disk(api), await new_task(api)
    path = f"/import_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}&chunked"

    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(put(path, length=-1))
        await connection.head()
        await connection.send(chunk(0, noise(MIB))[:-1])
        connection.writer.transport.abort()

    assert (await api.finished(task))["error_info"] == ["VDI_IO_ERROR", "Device I/O errors"]


async def test_a_vhd_import_needs_its_exact_length(lab: Lab, api: Api) -> None:
    source = await new_disk(api)
    await upload(lab, api, f"&vdi={source}&chunked", chunk(0, noise(MIB)) + END)
    stream = await download(lab, api, source, "&format=vhd")

    for length, status in ((None, "success"), (len(stream) + 512, "failure"), (-1, "failure")):
        target, task = await new_disk(api), await new_task(api)
        path = f"/import_raw_vdi?session_id={api.ref}&vdi={target}&task_id={task}&format=vhd"
        async with wire(lab.pools["prod"].plain_url) as connection:
            await connection.send(put(path, stream, length))
            connection.writer.write_eof()
            await connection.rest()
        assert (await api.finished(task))["status"] == status


async def test_refused_imports_fail_the_task(lab: Lab, api: Api) -> None:
    vdi = await new_disk(api)

    async def refused(query: str, extra: str = "") -> tuple[bytes, list[str]]:
        task = await new_task(api)
        path = f"/import_raw_vdi?session_id={api.ref}&task_id={task}{query}"
        answer = await exchange(lab.pools["prod"].plain_url, put(path, extra=extra))
        return answer.split(b"\r\n")[0], await api("task.get_error_info", task)

    assert await refused(f"&vdi={vdi}&format=dmg") == (
        b"HTTP/1.0 404 Not Found",
        ["INTERNAL_ERROR", "Unknown format dmg"],
    )
    assert await refused(f"&vdi={vdi}&format=vhd&chunked") == (
        b"HTTP/1.0 404 Not Found",
        ["INTERNAL_ERROR", "Cannot handle chunked VHD"],
    )
    assert await refused(f"&vdi={vdi}", "Transfer-Encoding: chunked\r\n") == (
        b"HTTP/1.0 404 Not Found",
        ["INTERNAL_ERROR", "Cannot handle encoding: chunked"],
    )
    assert await refused("") == (b"HTTP/1.1 400 Bad Request", ["VDI_MISSING"])


async def test_without_a_vdi_one_is_made(lab: Lab, api: Api) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    task, data = await new_task(api), noise(2 * MIB)

    await upload(lab, api, f"&sr_id={sr}&task_id={task}", data)

    vdi = (await api.finished(task))["result"].removeprefix("<value>").removesuffix("</value>")
    assert await api("VDI.get_name_label", vdi) == "Imported VDI"
    assert await download(lab, api, vdi) == data


async def test_writing_while_a_vm_of_the_same_host_writes_is_not_refused(
    lab: Lab, api: Api
) -> None:
    vdi, task = await api.disk("web01-data"), await new_task(api)

    await upload(lab, api, f"&vdi={vdi}&task_id={task}&chunked", chunk(0, b"!" * 4096) + END)

    assert (await api.finished(task))["status"] == "success"


async def test_writing_from_another_host_is_refused(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    vdi, task = await api.disk("web01-data"), await new_task(api)
    member = f"http://{pool.address(pool.host('prod-h2'))}:{pool.http_port}"
    path = f"/import_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}&chunked"

    await exchange(member, put(path, END))

    assert (await api.finished(task))["error_info"][0] == "SR_BACKEND_FAILURE_46"


async def test_base_copies_are_not_for_clients(lab: Lab, api: Api) -> None:
    await api("VDI.snapshot", await api.disk("web01-data"))
    (base,) = await api("VDI.get_by_name_label", "base copy")
    task = await new_task(api)

    await upload(lab, api, f"&vdi={base}&task_id={task}&chunked", END)

    assert (await api.finished(task))["error_info"] == ["VDI_NOT_MANAGED", base]


async def test_an_import_renews_the_fingerprint(lab: Lab, api: Api) -> None:
    vdi = await new_disk(api)
    await api("VDI.add_to_other_config", vdi, "content_id", "old")

    await upload(lab, api, f"&vdi={vdi}&chunked", END)

    assert (await api("VDI.get_other_config", vdi))["content_id"] not in ("", "old")


# -- credentials --------------------------------------------------------------------------------


async def test_credentials_are_asked_for(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    vdi = await new_disk(api)
    login = b64encode(f"{pool.username}:{pool.password}".encode()).decode()
    path = f"/export_raw_vdi?vdi={vdi}"

    nobody = await exchange(pool.plain_url, get(path))
    stranger = await exchange(pool.plain_url, get(f"{path}&session_id=OpaqueRef:none"))
    basic = await exchange(pool.plain_url, get(path, f"Authorization: Basic {login}\r\n"))
    cookie = await exchange(
        pool.plain_url, get(f"{path}&session_id=x", f"Cookie: a=b; session_id={api.ref}\r\n")
    )

    assert nobody.startswith(b"HTTP/1.1 401 Unauthorised\r\n")
    assert b'WWW-Authenticate: Basic realm="get_export_raw_vdi"' in nobody
    assert stranger.startswith(b"HTTP/1.1 401 ")
    assert basic.startswith(b"HTTP/1.1 200 ")
    assert cookie.startswith(b"HTTP/1.1 200 ")
    assert len(lab.pools["prod"].db.refs("session")) == 1
