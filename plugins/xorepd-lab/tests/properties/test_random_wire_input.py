"""Whatever comes in at the front: the pool answers or hangs up, and goes on."""

import asyncio
import json
import re
import socket
import struct
import xmlrpc.client
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lab.labclient import small_lab
from xorepd_lab.lab import Lab
from xorepd_lab.model.failures import ApiError
from xorepd_lab.wire.jsonrpc import JsonCall
from xorepd_lab.wire.jsonrpc import decode_call as decode_json
from xorepd_lab.wire.xmlrpc import DEEPEST, Malformed, decode_value, encode_value
from xorepd_lab.wire.xmlrpc import decode_call as decode_xml

pytestmark = pytest.mark.lab

ANSWER_S = 20.0
PING = xmlrpc.client.dumps(("alive",), "system.isAlive:x").encode()
LAUGHS = b"""<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]><methodCall><methodName>&c;</methodName><params/>
</methodCall>"""


def post(body: bytes, path: str = "/", length: int | str | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nContent-Length: {size}\r\n\r\n".encode() + body


def xml(value: bytes) -> bytes:
    return (
        b"<methodCall><methodName>VM.get_by_uuid</methodName><params><param>"
        b"<value>OpaqueRef:x</value></param><param>" + value + b"</param></params></methodCall>"
    )


def nested_xml(depth: int) -> bytes:
    return xml(b"<value><array><data>" * depth + b"</data></array></value>" * depth)


CORPUS: list[bytes] = [
    post(LAUGHS),
    post(b'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><r>&x;</r>'),
    post(nested_xml(10)),
    post(nested_xml(6000)),
    post(b"[" * 100_000, "/jsonrpc"),
    post(b'{"a":' * 50_000, "/jsonrpc"),
    post(xml(b"<value><int>" + b"9" * 10_000 + b"</int></value>")),
    post(b'{"method":"VM.get_all","params":[' + b"9" * 10_000 + b'],"id":1}', "/jsonrpc"),
    post(b'{"method":"VM.get_all","params":[1e999, NaN],"id":1}', "/jsonrpc"),
    post(b'{"method":"VM.get_all","params":["\xff\xfe"],"id":1}', "/jsonrpc"),
    post(b'{"method":"VM.get_all","params":["\\u0000"],"id":1,"id":2,"params":[]}', "/jsonrpc"),
    post(b'{"method":"VM.get_all","params":{},"id":[]}', "/jsonrpc"),
    post(b"null", "/jsonrpc"),
    post(b"\x00" * 1000),
    post(b"\xff\xfe\x00"),
    post(b""),
    post(b"", length=-1),
    post(b"", length="1" * 500),
    post(b"", length=1 << 62),
    post(xml(b"<value><struct><member><name>a</name><value/></member>" * 5000)),
    post(xml(b"<value><base64>!!</base64></value>")),
    post(xml(b"<value><nil/></value>")),
    post(xml(b"<value><dateTime.iso8601>never</dateTime.iso8601></value>")),
    b"GET " + b"/" * 900 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100 + b"\r\n",
    b"GET /%00%0d%0aX:%20y HTTP/1.1\r\nConnection: close\r\n\r\n",
    b"GET /export_raw_vdi%0d%0aX-Evil:1?vdi=x HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\nX: y\n\n\r\n\r\n",
    b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    b"PUT /import_raw_vdi?vdi=x&chunked=true HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz",
    b"CONNECT / HTTP/1.1\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
]


class Front:
    """The front of a pool, fed from outside the loop that serves it."""

    def __init__(self, runner: asyncio.Runner, url: str) -> None:
        self.runner = runner
        self.address = urlsplit(url)

    def feed(self, data: bytes) -> bytes:
        """Send bytes, say that there are no more, and return all that comes back."""
        return self.runner.run(asyncio.wait_for(self._feed(data), ANSWER_S))

    async def _feed(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(self.address.hostname, self.address.port)
        answer = bytearray()
        with suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
            writer.write_eof()
        with suppress(ConnectionError):
            while piece := await reader.read(1 << 16):
                answer += piece
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        return bytes(answer)

    def assert_alive(self) -> None:
        assert b"<value>alive</value>" in self.feed(post(PING))


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with asyncio.Runner(debug=True) as runner:
        lab = small_lab(tmp_path_factory.mktemp("wire") / "lab")

        async def begin() -> Lab:
            return await lab.__aenter__()

        async def end() -> None:
            await lab.__aexit__(None, None, None)

        pool = runner.run(begin()).pools["prod"]
        try:
            yield Front(runner, pool.plain_url)
        finally:
            runner.run(end())


def statuses(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.[01] ([^\r]*)\r\n", answer)


@pytest.mark.parametrize("number", range(len(CORPUS)))
def test_what_is_known_to_break_servers_breaks_nothing(front: Front, number: int) -> None:
    answer = front.feed(CORPUS[number])

    assert answer == b"" or answer.startswith(b"HTTP/")
    assert b"\r\nX-Evil" not in answer
    assert b"root:" not in answer
    front.assert_alive()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=3000))
def test_any_bytes_are_survived(front: Front, data: bytes) -> None:
    front.feed(data)
    front.assert_alive()


@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(st.sampled_from([post(PING), b"GET / HTTP/1.1\r\n\r\n"]), max_size=6))
def test_requests_that_are_sent_at_once_are_answered_in_order(
    front: Front, pieces: list[bytes]
) -> None:
    kinds = [b"403 Forbidden" if each.startswith(b"GET") else b"200 OK" for each in pieces]
    refused = kinds.index(b"403 Forbidden") + 1 if b"403 Forbidden" in kinds else len(kinds)
    assert statuses(front.feed(b"".join(pieces))) == kinds[:refused]  # XAPI hangs up after it


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, len(post(PING)) - 1))
def test_requests_that_end_early_are_not_answered(front: Front, cut: int) -> None:
    assert front.feed(post(PING)[:cut]) == b""
    front.assert_alive()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
METHODS = st.sampled_from(
    ["VM.set_name_label", "event.from", "VDI.create", "task.create", "VM.get_all_records_where",
     "session.login_with_password", "system.isAlive:x", "VM.fly", "Async.VM.snapshot"]
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(method=METHODS, params=st.lists(JSON, max_size=5))
def test_calls_with_any_parameters_are_answered(
    front: Front, method: str, params: list[Any]
) -> None:
    body = json.dumps({"method": method, "params": params, "id": 1}).encode()

    answer = front.feed(post(body, "/jsonrpc"))

    assert statuses(answer) in ([b"200 OK"], [b"500 Internal Error"])


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode()))
def test_decoding_ends_with_a_call_or_a_refusal(body: bytes) -> None:
    with suppress(Malformed):
        name, params = decode_xml(body)
        assert isinstance(name, str)
        assert isinstance(params, list)
    with suppress(Malformed, ApiError):
        assert isinstance(decode_json(body), JsonCall)


XML_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]))
VALUES = st.recursive(
    st.booleans() | XML_TEXT.filter(lambda text: "\ufffe" not in text and "\uffff" not in text),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(value=VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert decode_value(encode_value(value).encode()) == value


def test_elements_nest_so_deep_and_no_deeper() -> None:
    shallow = (DEEPEST - 1) // 3
    value: Any = ""
    for _ in range(shallow):
        value = [value]
    assert decode_value(encode_value(value).encode()) == value

    with pytest.raises(Malformed):
        decode_value(encode_value([value]).encode())


def test_everything_but_one_is_false() -> None:
    for text, meant in (("1", True), ("0", False), ("true", False), (" 1", False)):
        assert decode_value(f"<value><boolean>{text}</boolean></value>".encode()) is meant


def test_the_first_of_equal_members_counts() -> None:
    member = "<member><name>a</name><value>{}</value></member>"
    text = f"<value><struct>{member.format(1)}{member.format(2)}</struct></value>"

    assert decode_value(text.encode()) == {"a": "1"}
    assert decode_json(b'{"method":"m","params":[],"id":1,"id":2}').id == 1


def test_a_reset_in_the_middle_is_survived(front: Front) -> None:
    async def reset() -> None:
        reader, writer = await asyncio.open_connection(front.address.hostname, front.address.port)
        del reader
        writer.write(post(PING)[:50])
        await writer.drain()
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    front.runner.run(reset())
    front.assert_alive()
