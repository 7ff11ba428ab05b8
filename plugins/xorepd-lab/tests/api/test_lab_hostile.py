"""Answers as no pool gives them, but what stands in front of one, or in its place."""

import asyncio
import json
import xmlrpc.client
from typing import Any

import pytest
from test_lab_incidents import administered
from typer.testing import CliRunner

from tests.lab.labclient import Api, Wire, exchange, get, post, until, wire
from tests.lab.nbdclient import allow_nbd, connected, exported, nbd_info
from xorepd_lab.__main__ import app
from xorepd_lab.faults.faults import Fault, Faults
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab

MIB = 1 << 20
PIB = 1 << 50


def call(api: Api, method: str, *arguments: Any) -> bytes:
    return post(xmlrpc.client.dumps((api.ref, *arguments), method).encode())


def json_call(api: Api, method: str, *arguments: Any) -> bytes:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": [api.ref, *arguments]}
    return post(json.dumps(request).encode(), path="/jsonrpc")


async def answered(lab: Lab, request: bytes) -> tuple[str, bytes]:
    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(request)
        return await connection.response()


# -- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["xml", "json", "events"])
async def test_an_answer_can_be_a_page_with_status_200(
    lab: Lab, faults: Faults, api: Api, kind: str
) -> None:
    requests = {
        "xml": call(api, "VM.get_all"),
        "json": json_call(api, "VM.get_all"),
        "events": call(api, "event.from", ["vm"], "", 0.0),
    }
    method = "event.from" if kind == "events" else "VM.get_all"
    fault = faults.add(Fault("rpc", method, http_status=200))

    head, body = await answered(lab, requests[kind])

    assert head.startswith("HTTP/1.1 200 ")
    assert "content-type: text/html" in head
    assert body.startswith(b"<html>")
    assert (fault.fired, lab.calls[-1].outcome) == (1, "200")


@pytest.mark.parametrize(("moment", "made"), [("before", 0), ("after", 1)])
@pytest.mark.parametrize("status", [200, 504])
async def test_a_page_can_come_instead_of_the_work_or_of_its_answer(
    lab: Lab, faults: Faults, api: Api, moment: Any, made: int, status: int
) -> None:
    vm = await api.vm("db01")
    faults.add(Fault("rpc", "VM.snapshot", http_status=status, moment=moment))

    head, body = await answered(lab, call(api, "VM.snapshot", vm, "s"))

    assert head.startswith(f"HTTP/1.1 {status} ")
    assert body.startswith(b"<html>")
    assert len(await api("VM.get_snapshots", vm)) == made


async def test_a_stream_can_be_a_page_with_status_200(lab: Lab, faults: Faults, api: Api) -> None:
    vdi = await api("VDI.snapshot", await api.disk("web01-data"))
    faults.add(Fault("export", http_status=200))

    path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}"
    answer = await exchange(lab.pools["prod"].plain_url, get(path))

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"<html>" in answer


# -- too much, too slow ---------------------------------------------------------------------------


async def read_some(connection: Wire, size: int) -> bytes:
    return await connection.reader.readexactly(size)


@pytest.mark.parametrize("kind", ["xml", "json", "events"])
async def test_an_answer_can_have_no_end(lab: Lab, faults: Faults, api: Api, kind: str) -> None:
    requests = {
        "xml": call(api, "VM.get_all"),
        "json": json_call(api, "VM.get_all"),
        "events": call(api, "event.from", ["vm"], "", 0.0),
    }
    faults.add(Fault("rpc", "event.from" if kind == "events" else "VM.get_all", endless=True))
    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(requests[kind])

        head = await connection.head()
        body = await read_some(connection, 8 * MIB)

        assert "content-length" not in head.lower()
        assert body.rstrip(b" ")[-1:] in (b">", b"}")
        assert await api("VM.get_all"), "others are served meanwhile"


async def test_a_stream_can_have_no_end(lab: Lab, faults: Faults, api: Api) -> None:
    vdi = await api("VDI.snapshot", await api.disk("web01-data"))
    faults.add(Fault("export", endless=True))
    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(get(f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}"))
        await connection.head()

        body = await read_some(connection, 48 * MIB)

        assert body[32 * MIB :] == b" " * 16 * MIB


async def test_an_error_can_have_50_mb_of_text(lab: Lab, faults: Faults, api: Api) -> None:
    faults.add(Fault("rpc", "VM.clone", error=("INTERNAL_ERROR", "long: "), error_pad=50_000_000))
    faults.add(Fault("rpc", "VM.copy", error=("INTERNAL_ERROR",), error_pad=1000))

    code, text = await api.failure("VM.clone", await api.vm("db01"), "c")
    task = await api.finished(await api("Async.VM.copy", await api.vm("db01"), "c", ""))

    assert (code, len(text)) == ("INTERNAL_ERROR", 50_000_006)
    assert text.startswith("long: xxx")
    assert [len(each) for each in task["error_info"]] == [14, 1000]
    await api("task.destroy", (await api("task.get_all"))[0])


async def test_an_answer_can_come_byte_by_byte(lab: Lab, faults: Faults, api: Api) -> None:
    faults.add(Fault("rpc", "VM.get_all", bytes_per_s=4.0))
    loop = asyncio.get_running_loop()
    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(call(api, "VM.get_all"))
        await connection.head()

        began = loop.time()
        pieces = [await connection.reader.read(MIB) for _ in range(2)]

        assert [len(piece) for piece in pieces] == [4, 4]
        assert loop.time() - began > 0.9
    slow = faults.add(Fault("rpc", "VM.get_all", bytes_per_s=0.2))
    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(call(api, "VM.get_all"))
        await connection.head()

        assert len(await connection.reader.read(MIB)) == 1
        assert slow.fired == 1


# -- what a pool says of itself -------------------------------------------------------------------


async def test_nbd_info_can_lack_its_certificate(lab: Lab, faults: Faults, api: Api) -> None:
    await allow_nbd(api, "nbd")
    vdi = await api.disk("web01-data")
    faults.add(Fault("rpc", "VDI.get_nbd_info", rewrite=("(<name>cert</name><value>)[^<]*", r"\1")))

    infos = await api("VDI.get_nbd_info", vdi)

    assert [info["cert"] for info in infos] == ["", ""]
    assert all(info["subject"] and info["exportname"] for info in infos)


async def test_a_disk_can_claim_to_have_1_pib(lab: Lab, faults: Faults, api: Api) -> None:
    claimed = rf"\g<1>{PIB}<"
    rule = ("(<name>virtual_size</name><value>)33554432<", claimed)
    faults.add(Fault("rpc", times=None, rewrite=rule))
    vdi, root = await api.disk("web01-data"), await api.disk("web01-root")

    record = await api("VDI.get_record", vdi)
    events = (await api("event.from", ["vdi"], "", 0.0))["events"]

    assert record["virtual_size"] == str(PIB)
    sizes = {event["ref"]: event["snapshot"]["virtual_size"] for event in events}
    assert (sizes[vdi], sizes[root]) == (str(PIB), str(64 * MIB))


async def test_the_length_of_a_rewritten_answer_fits(lab: Lab, faults: Faults, api: Api) -> None:
    faults.add(Fault("rpc", "pool.get_all", rewrite=("OpaqueRef:[0-9a-f-]+", "longer " * 1000)))

    head, body = await answered(lab, json_call(api, "pool.get_all"))

    assert f"content-length: {len(body)}" in head.lower()
    assert json.loads(body)["result"] == ["longer " * 1000]


# -- NBD ------------------------------------------------------------------------------------------


async def test_an_nbd_port_can_accept_and_say_nothing(lab: Lab, faults: Faults, api: Api) -> None:
    await allow_nbd(api)
    vdi = await api("VDI.snapshot", await api.disk("web01-data"))
    info, other = [await nbd_info(api, vdi, host) for host in ("prod-h1", "prod-h2")]
    fault = faults.add(Fault("greeting", host="prod-h1", stall=True))

    async with connected(info) as nbd:
        await until(lambda: fault.fired)
        async with exported(other) as served:
            assert await served.read(0, 512)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await nbd.take(1)
        faults.clear()
        await nbd.greet()


@pytest.mark.parametrize("what", [{"reset": True}, {"error": ("X",)}], ids=["cut", "closed"])
async def test_an_nbd_port_can_close_without_a_word(
    lab: Lab, faults: Faults, api: Api, what: dict[str, Any]
) -> None:
    await allow_nbd(api)
    info = await nbd_info(api, await api("VDI.snapshot", await api.disk("web01-data")))
    faults.add(Fault("greeting", **what))

    async with connected(info) as nbd:
        assert await nbd.rest() == b""
    async with exported(info) as nbd:
        assert await nbd.read(0, 512)


async def test_connections_to_nbd_are_no_requests(lab: Lab, faults: Faults, api: Api) -> None:
    await allow_nbd(api)
    info = await nbd_info(api, await api("VDI.snapshot", await api.disk("web01-data")))
    every = faults.add(Fault("any", "*", times=None, delay_s=0.001))

    async with exported(info):
        pass

    assert every.seen == 1


# -- by hand --------------------------------------------------------------------------------------


async def test_people_make_answers_hostile(lab: Lab, api: Api) -> None:
    cli = CliRunner()
    async with administered(lab) as directory:
        state = ("--state", str(directory))
        for arguments in (
            ["rpc", *state, "--match", "VM.get_all", "--http-status", "200"],
            ["rpc", *state, "--no-end", "--error", "X", "--error-pad", "10"],
            ["rpc", *state, "--rewrite", "a+", "b"],
            ["greeting", *state, "--stall", "--times", "0"],
        ):
            result = await asyncio.to_thread(cli.invoke, app, ["fault", "add", *arguments])
            assert result.exit_code == 0, result.output

    assert [rule.to_json() for rule in lab.faults] == [
        {"where": "rpc", "match": "VM.get_all", "http_status": 200},
        {"where": "rpc", "error": ["X"], "error_pad": 10, "endless": True},
        {"where": "rpc", "rewrite": ["a+", "b"]},
        {"where": "greeting", "times": None, "stall": True},
    ]
    lab.faults.clear()
