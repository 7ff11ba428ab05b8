"""What a pool may answer in place of XAPI's answer: each costs its call and nothing else."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from xmlrpc.client import Fault, dumps

import pytest

from tests.hostile import Talk, serving
from tests.unit.xapi import raws
from xorepd.config.models import PoolSettings
from xorepd.errors import LONGEST, ObjectGone, XapiError, XapiFailure, XapiUnreachable
from xorepd.units import MiB
from xorepd.xapi.rpc import answers
from xorepd.xapi.rpc.session import Session

SESSION = "OpaqueRef:5e5510"
Speak = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


def value(given: Any) -> bytes:
    return dumps(({"Status": "Success", "Value": given},), methodresponse=True).encode()


def failure(*description: Any) -> bytes:
    told = {"Status": "Failure", "ErrorDescription": list(description)}
    return dumps((told,), methodresponse=True).encode()


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


def settings(port: int) -> PoolSettings:
    plain = {"name": "prod", "url": f"http://127.0.0.1:{port}", "plaintext": True, "password": "x"}
    return PoolSettings.model_validate(plain)


@asynccontextmanager
async def session_with(talk: Talk, *, limit: int = 64 * 1024) -> AsyncIterator[Session]:
    async with serving(talk, limit=limit) as port:
        session = Session(settings(port), lambda: "x")
        try:
            yield session
        finally:
            await session.end()
            session.close()


@asynccontextmanager
async def pool_that(speak: Speak) -> AsyncIterator[Session]:
    """Provide a session with a pool that logs everybody in, and then speaks as it likes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.transport.is_closing():
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None
            body = await reader.readexactly(int(length[1]))
            method = re.search(rb"<methodName>(.*?)</methodName>", body)
            assert method is not None
            match method[1].decode():
                case "session.login_with_password":
                    writer.write(http(value(SESSION)))
                case "session.logout":
                    writer.write(http(value("")))
                case name:
                    await speak(name, writer)
            await writer.drain()

    async with session_with(talk) as session:
        yield session


def saying(*spoken: bytes) -> Speak:
    """Return what gives these answers, the last one again and again."""
    rest = list(spoken)

    async def speak(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(rest.pop(0) if len(rest) > 1 else rest[0])

    return speak


async def refused(spoken: bytes, method: str = "VM.set_name_label", timeout: float = 20.0) -> str:
    """Return the sentence for an answer to a call, after which the next call succeeds."""
    async with pool_that(saying(spoken, http(value("u-1")))) as session:
        with pytest.raises(XapiUnreachable) as caught:
            await session.call(method, "OpaqueRef:vm", timeout=timeout)
        assert await session.call("VM.get_uuid", "OpaqueRef:vm") == "u-1"
    text = str(caught.value)
    assert text.startswith("pool prod: no answer from 127.0.0.1:")
    assert len(text) < 1000
    return text


PAGE = b"<!DOCTYPE html>\n<html><head><title>502</title></head><body>Bad gateway</body></html>"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (PAGE, "a web page"),
        (b"<html><body>no doctype</body></html>", "a web page"),
        (b"<HTML>shouting</HTML>", "a web page"),
        (b"502 Bad Gateway", "not XML-RPC"),
        (b"", "not XML-RPC"),
        (b"\0" * 500, "not XML-RPC"),
        (b"\xff\xfe<\0m\0", "not XML-RPC"),
        (b'{"jsonrpc": "2.0", "result": null}', "not XML-RPC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "'svg', not XML-RPC"),
        (b"<methodResponse><params>", "not XML-RPC"),
        (b"<methodResponse></methodResponse>", "not XML-RPC"),
        (b"<methodResponse><fault/></methodResponse>", "not XML-RPC"),
        (b'<?xml version="1.0" encoding="martian"?><methodResponse/>', "not XML-RPC"),
        (value("caf\xe9").replace("caf\xe9".encode(), b"caf\xe9"), "not XML-RPC"),
        (value("nul").replace(b"nul", b"n\0l"), "not XML-RPC"),
        (value(1).replace(b"<int>1", b"<int>one"), "not XML-RPC"),
        (value(1).replace(b"<int>1", b"<int>" + b"9" * 5000), "not XML-RPC"),
        (value(1.5).replace(b"double", b"bigdecimal").replace(b"1.5", b"x"), "not XML-RPC"),
        (value(True).replace(b"<boolean>1", b"<boolean>2"), "not XML-RPC"),
        (value({"a": "b"}).replace(b"<name>a</name>", b""), "not XML-RPC"),
        (value({"a": "b"}).replace(b"<name>a</name>", b"<value><array/></value>"), "not XML-RPC"),
        (value("x").replace(b"string", b"script"), "'script', not XML-RPC"),
        (value("x").replace(b"string", b"base64"), "'base64', not XML-RPC"),
        (value(1.5).replace(b"<param>", b"<param><value>2</value>"), "not XML-RPC"),
        (dumps(("just a text",), methodresponse=True).encode(), "neither value nor error"),
        (dumps(({},), methodresponse=True).encode(), "neither value nor error"),
        (dumps(({"Status": "Success"},), methodresponse=True).encode(), "neither value"),
        (dumps((["Status"],), methodresponse=True).encode(), "neither value nor error"),
        (failure(), "neither value nor error"),
        (failure(["nested"]), "neither value nor error"),
        (dumps(Fault(-32700, "parse error"), methodresponse=True).encode(), "parse error"),
    ],
)
async def test_what_is_no_answer_of_xapi_costs_its_call_only(body: bytes, said: str) -> None:
    assert said in await refused(http(body))


async def test_a_call_that_only_reads_is_asked_again() -> None:
    async with pool_that(saying(http(PAGE), http(value("u-1")))) as session:
        assert await session.call("VM.get_uuid", "OpaqueRef:vm") == "u-1"


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("Async.VM.snapshot", {"ref": "OpaqueRef:task"}),
        ("VM.create", ["OpaqueRef:vm"]),
        ("task.create", False),
    ],
)
async def test_a_value_of_another_kind_is_no_answer(method: str, given: object) -> None:
    assert f"no answer to {method}" in await refused(http(value(given)), method)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("VM.get_record", "OpaqueRef:vm"),
        ("VM.get_record", {}),
        ("VM.get_record", raws.vm("u-1")),
        ("VIF.get_record", "OpaqueRef:vif"),
        ("VM.get_other_config", {"key": ["no text"]}),
        ("VM.get_uuid", ["u-1"]),
        ("VDI.get_virtual_size", "-1"),
        ("VDI.get_virtual_size", "9" * 20 + "x"),
        ("pool.get_all", "OpaqueRef:pool"),
        ("pool.get_all", [["OpaqueRef:pool"]]),
        ("VDI.get_nbd_info", ["10.0.0.1"]),
        ("VM.get_all_records", {"OpaqueRef:vm": "no record"}),
        ("event.from", []),
    ],
)
async def test_a_getter_that_keeps_giving_another_kind_is_no_answer(
    method: str, given: object
) -> None:
    async with pool_that(saying(http(value(given)))) as session:
        with pytest.raises(XapiUnreachable, match=f"no answer to {method}"):
            await session.call(method, "OpaqueRef:vm")


@pytest.mark.parametrize("depth", [answers.DEEPEST, 1_000, 100_000])
async def test_structures_in_structures_are_refused_at_some_depth(depth: int) -> None:
    nest = b"<value><array><data>" * depth + b"</data></array></value>" * depth
    body = value("X").replace(b"<value><string>X</string></value>", nest)

    assert f"more than {answers.DEEPEST} deep" in await refused(http(body))


async def test_entities_that_multiply_are_refused_unread() -> None:
    lines = [f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10)]
    entities = '<!ENTITY e0 "laugh">' + "".join(lines)
    body = f"<?xml version='1.0'?><!DOCTYPE methodResponse [{entities}]><methodResponse>&e9;"

    assert "not XML-RPC" in await refused(http(body.encode()))


async def test_a_compressed_answer_is_refused_and_never_unpacked() -> None:
    bomb = gzip.compress(bytes(64 * MiB))

    assert "compressed" in await refused(http(bomb, "Content-Encoding: gzip"))


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        (["Content-Length: -5", "Connection: close"], "XML-RPC"),
        (["Content-Length: 99999999999999999999999", "Connection: close"], "XML-RPC"),
        (["Content-Length: many", "Connection: close"], "XML-RPC"),
        (["Transfer-Encoding: chunked"], "prod"),
        ([f"X-{number}: 1" for number in range(200)], "more than 100 headers"),
        ([f"X-Long: {'x' * 100_000}"], "more than 65536 bytes"),
        (["no colon at all \0 \x7f"], "XML-RPC"),
    ],
)
async def test_headers_of_any_kind_cost_their_call_only(headers: list[str], said: str) -> None:
    async def speak(name: str, writer: asyncio.StreamWriter) -> None:
        if name == "VM.get_uuid":
            writer.write(http(value("u-1")))
            return
        writer.write("\r\n".join(["HTTP/1.1 200 OK", *headers, "", "beyond"]).encode("latin-1"))
        writer.close()

    async with pool_that(speak) as session:
        with pytest.raises(XapiUnreachable, match=said):
            await session.call("VM.set_name_label", "OpaqueRef:vm")
        assert await session.call("VM.get_uuid", "OpaqueRef:vm") == "u-1"


@pytest.mark.parametrize(
    "status_line",
    [
        "HTTP/1.1 302 Found\r\nLocation: /",
        "SSH-2.0-OpenSSH_9",
        "HTTP/1.1 abc",
        "\0\0\0",
        "HTTP/9 200",
    ],
)
async def test_what_does_not_begin_as_an_answer_is_none(status_line: str) -> None:
    async def speak(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{status_line}\r\n\r\n".encode())
        writer.close()

    async with pool_that(speak) as session:
        with pytest.raises(XapiUnreachable):
            await session.call("VM.set_name_label", "OpaqueRef:vm")


def without_end(begin: bytes, more: bytes, pause_s: float = 0.0) -> Speak:
    """Return what begins an answer and goes on with it until nobody takes it any more."""

    async def speak(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while True:
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(pause_s)  # of the other side's patience, not of the test

    return speak


OPEN = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
BEGUN = value("X").partition(b"X")[0]


@pytest.mark.parametrize(
    "speak",
    [
        without_end(OPEN + BEGUN, b"endless " * 8192),
        without_end(OPEN + BEGUN.removesuffix(b"<string>"), b"<nil/><nil/>" * 4096),
        without_end(OPEN, b" " * 65536),
        without_end(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        without_end(OPEN.replace(b"Connection: close", b"Transfer-Encoding: chunked"),
                    b"10000\r\n" + b" " * 65536 + b"\r\n"),
    ],
)  # fmt: skip
async def test_an_answer_without_end_is_cut_at_its_bound(speak: Speak) -> None:
    async with pool_that(speak) as session:
        with pytest.raises(XapiUnreachable, match=f"longer than {answers.LARGEST // MiB} MiB"):
            await session.call("VM.set_name_label", "OpaqueRef:vm")


@pytest.mark.parametrize(
    "speak",
    [
        without_end(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", 0.05),
        without_end(OPEN, b" ", 0.05),
        without_end(OPEN + BEGUN, b"x", 0.05),
        without_end(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
    ],
)
async def test_an_answer_that_drips_ends_at_its_deadline(speak: Speak) -> None:
    async with pool_that(speak) as session:
        with pytest.raises(XapiUnreachable, match=r"longer than 1 s|timed out"):
            await session.call("VM.set_name_label", "OpaqueRef:vm", timeout=1.0)


async def test_a_large_answer_that_keeps_coming_may_take_longer() -> None:
    async def speak(_: str, writer: asyncio.StreamWriter) -> None:
        answer = http(value("x" * 4 * MiB))
        for start in range(0, len(answer), MiB // 4):
            writer.write(answer[start : start + MiB // 4])
            await writer.drain()
            await asyncio.sleep(0.1)

    async with pool_that(speak) as session:
        assert len(await session.call("VTPM.get_contents", "OpaqueRef:v", timeout=1.0)) == 4 * MiB


async def test_a_pool_that_takes_no_bytes_of_a_request_ends_at_its_deadline() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"</methodCall>")
        writer.write(http(value(SESSION)))
        await asyncio.Event().wait()

    async with session_with(talk, limit=1024) as session:
        with pytest.raises(XapiUnreachable):
            await session.call("VM.set_name_label", "x" * 16 * MiB, timeout=1.0)


async def test_fifty_megabytes_of_error_text_come_to_nothing() -> None:
    text = await refused(http(failure("INTERNAL_ERROR", "x" * 50 * MiB)))

    assert "longer than 8 MiB" in text


@pytest.mark.parametrize(
    "description",
    [
        ["INTERNAL_ERROR", "x" * MiB],
        ["INTERNAL_ERROR", *(["x" * 1000] * 1000)],
        ["X" * MiB],
        ["HANDLE_INVALID", "VM", "x" * MiB],
        ["OTHER_OPERATION_IN_PROGRESS", "VM", "x" * MiB, "y" * MiB],
    ],
)
async def test_error_texts_are_cut(description: list[str]) -> None:
    async with pool_that(saying(http(failure(*description)))) as session:
        with pytest.raises(XapiError) as caught:
            await session.call("VM.set_name_label", "OpaqueRef:vm")

    assert isinstance(caught.value, XapiFailure | ObjectGone | XapiError)
    assert len(str(caught.value)) < LONGEST + 100
    assert len(repr(vars(caught.value))) < 20_000


@pytest.mark.parametrize(
    "master", ["", "[::1", "10.0.0.1/../x", "a b", "x" * 5000, "evil\r\nHost: x", "10.0.0.1:99999"]
)
async def test_a_master_that_is_no_address_is_not_gone_to(master: str) -> None:
    async with pool_that(saying(http(failure("HOST_IS_SLAVE", master)))) as session:
        with pytest.raises(XapiError) as caught:
            await session.call("VM.set_name_label", "OpaqueRef:vm")

    assert "pool prod" in str(caught.value)


async def test_a_session_that_is_no_text_is_none() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"</methodCall>")
        writer.write(http(value({"not": "a session"})))

    async with session_with(talk) as session:
        with pytest.raises(XapiUnreachable, match="session"):
            await session.call("pool.get_all")
