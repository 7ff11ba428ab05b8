"""HTTP, XML-RPC and JSON-RPC as a client meets them."""

import asyncio
import json
import ssl
import xmlrpc.client
from typing import Any

import pytest
import XenAPI

from tests.lab.labclient import Api, exchange, get, post, wire
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.debug, pytest.mark.leaves("task", "session")]


def xml_call(method: str, *params: Any) -> bytes:
    return xmlrpc.client.dumps(params, method).encode()


async def raw_call(lab: Lab, body: bytes, path: str = "/") -> str:
    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(post(body, path))
        head, answer = await connection.response()
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    return answer.decode()


async def json_call(lab: Lab, **members: Any) -> Any:
    return json.loads(await raw_call(lab, json.dumps(members).encode(), "/jsonrpc"))


async def test_integers_and_strings_are_untyped_text(lab: Lab, api: Api) -> None:
    vdi = await api.disk("web01-root")

    size = await raw_call(lab, xml_call("VDI.get_virtual_size", api.ref, vdi))
    name = await raw_call(lab, xml_call("VDI.get_name_label", api.ref, vdi), "/RPC2")

    assert "<name>Value</name><value>67108864</value>" in size
    assert "<name>Value</name><value>web01-root</value>" in name
    assert "<name>Status</name><value>Success</value>" in size


async def test_booleans_floats_and_times_are_typed(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")

    record = await raw_call(lab, xml_call("VM.get_record", api.ref, vm))

    assert "<name>is_a_template</name><value><boolean>0</boolean></value>" in record
    assert "<name>HVM_shadow_multiplier</name><value><double>1</double></value>" in record
    assert (
        "<name>snapshot_time</name>"
        "<value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value>"
    ) in record


async def test_64_bit_integers_are_taken_as_strings(api: Api) -> None:
    vm = await api.vm("db01")

    await api("VM.set_user_version", vm, str(1 << 40))

    assert await api("VM.get_user_version", vm) == str(1 << 40)


async def test_list_methods_is_a_bare_array(lab: Lab) -> None:
    answer = await raw_call(lab, xml_call("system.listMethods"))

    (methods,), _ = xmlrpc.client.loads(answer)
    assert isinstance(methods, list)
    assert {"VM.snapshot", "event.from", "VDI.get_uuid"} <= set(methods)
    assert not any(name.startswith("Async.") for name in methods)


async def test_both_versions_of_json_rpc_answer_in_their_own_shape(lab: Lab, api: Api) -> None:
    vdi = await api.disk("web01-root")
    good = {"method": "VDI.get_virtual_size", "params": [api.ref, vdi], "id": 7}
    bad = {"method": "VDI.get_uuid", "params": [api.ref, "OpaqueRef:none"], "id": "x"}

    assert await json_call(lab, **good) == {"result": 67108864, "error": None, "id": 7}
    assert await json_call(lab, jsonrpc="2.0", **good) == {
        "jsonrpc": "2.0",
        "result": 67108864,
        "id": 7,
    }
    assert await json_call(lab, **bad) == {
        "result": None,
        "error": ["HANDLE_INVALID", "VDI", "OpaqueRef:none"],
        "id": "x",
    }
    assert await json_call(lab, jsonrpc="2.0", **bad) == {
        "jsonrpc": "2.0",
        "error": {"code": 1, "message": "HANDLE_INVALID", "data": ["VDI", "OpaqueRef:none"]},
        "id": "x",
    }


async def test_errors_name_what_was_wrong(api: Api) -> None:
    vm = await api.vm("web01")
    vm_uuid = await api("VM.get_uuid", vm)

    assert await api.failure("VM.fly", vm) == ["MESSAGE_METHOD_UNKNOWN", "VM.fly"]
    mismatch = "MESSAGE_PARAMETER_COUNT_MISMATCH"
    assert await api.failure("VM.snapshot", vm) == [mismatch, "VM.snapshot", "2", "1"]
    assert await api.failure("VM_get_uuid", vm, "more") == [mismatch, "VM_get_uuid", "1", "2"]
    assert await api.failure("VM.get_by_uuid", "none") == ["UUID_INVALID", "VM", "none"]
    # A UUID is no reference.
    assert await api.failure("VM.get_name_label", vm_uuid) == ["HANDLE_INVALID", "VM", vm_uuid]
    await api("VM.add_to_other_config", vm, "k", "1")
    assert await api.failure("VM.add_to_other_config", vm, "k", "2") == [
        "MAP_DUPLICATE_KEY",
        "VM",
        "other_config",
        vm,
        "k",
    ]
    await api("VM.set_HVM_boot_params", vm, {"order": "c"})
    refused = await api.failure("VM.add_to_HVM_boot_params", vm, "order", "d")
    assert refused == ["MAP_DUPLICATE_KEY", "VM", "HVM__boot_params", vm, "order"]
    await api("VM.remove_from_other_config", vm, "k")
    await api("VM.remove_from_other_config", vm, "k")
    assert (await api.failure("Async.VM.get_uuid", vm))[0] == "Fault"


async def test_records_can_be_filtered(api: Api) -> None:
    found = await api(
        "VM.get_all_records_where",
        'field "is_control_domain" = "false" and field "is_a_template" = "false"'
        ' and not field "name__label" = "db01"',
    )

    assert [record["name_label"] for record in found.values()] == ["web01"]
    for expression in ('field "x', "true true", "not", "(" * 5000, 'field = "a"'):
        code, shown, _ = await api.failure("VM.get_all_records_where", expression)
        assert (code, shown) == ("INVALID_VALUE", expression)
    missing = await api.failure("VM.get_all_records_where", 'field "x" = "y"')
    assert missing == ["INTERNAL_ERROR", "missing field", "x", ""]


async def test_both_spellings_of_a_method_are_known(api: Api) -> None:
    vm = await api.vm("web01")

    assert await api("VM_get_uuid", vm) == await api("VM.get_uuid", vm)


async def test_a_header_of_more_than_1024_bytes_is_refused(lab: Lab) -> None:
    url = lab.pools["prod"].plain_url
    start = "GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\nX-Fill: "
    room = 1024 - len(start) - 4

    fits = await exchange(url, f"{start}{'x' * room}\r\n\r\n".encode())
    over = await exchange(url, f"{start}{'x' * (room + 1)}\r\n\r\n".encode())
    endless = await exchange(url, b"GET / HTTP/1.1\r\nX: " + b"x" * 1024)

    assert fits.startswith(b"HTTP/1.1 403 Forbidden")
    assert over.startswith(b"HTTP/1.1 431 Request Header Fields Too Large")
    assert endless.startswith(b"HTTP/1.1 431 ")


async def test_bodies_have_a_limit_and_need_a_length(lab: Lab) -> None:
    url = lab.pools["prod"].plain_url

    too_long = await exchange(url, b"POST / HTTP/1.1\r\nContent-Length: 307201\r\n\r\n")
    no_length = await exchange(url, b"POST / HTTP/1.1\r\nHost: lab\r\n\r\n")
    no_xml = await exchange(url, post(b"nonsense", version="1.0"))
    no_json = await exchange(url, post(b"{}", path="/jsonrpc"))

    for answer in (too_long, no_length, no_xml, no_json):
        assert b" 500 Internal Error\r\n" in answer
        assert b"<h1>HTTP 500 internal server error</h1>" in answer
    assert no_xml.startswith(b"HTTP/1.0 ")


async def test_connections_are_kept_as_http_1_1_says(lab: Lab) -> None:
    body = xml_call("system.isAlive:me", "me")

    async with wire(lab.pools["prod"].plain_url) as connection:
        for _ in range(2):
            await connection.send(post(body))
            head, answer = await connection.response()
            assert "connection: keep-alive\r\n" in head
            assert b"<value>me</value>" in answer
        await connection.send(post(body, version="1.0", extra="Connection: keep-alive\r\n"))
        await connection.response()
        await connection.send(post(body, version="1.0"))
        await connection.response()
        assert await connection.rest() == b""


async def test_unknown_http_methods_are_not_implemented(lab: Lab) -> None:
    answer = await exchange(lab.pools["prod"].plain_url, b"DELETE / HTTP/1.1\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 501 Method not implemented\r\n")


async def test_members_send_clients_to_the_master(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    member = f"https://{pool.address(pool.host('prod-h2'))}:{pool.https_port}"
    other = Api(pool, member)
    try:
        expected = ["HOST_IS_SLAVE", pool.address(pool.master)]
        with pytest.raises(XenAPI.Failure) as refused:
            await other.login()
        other.session.adopt(api.ref)

        assert refused.value.details == expected
        assert await other.failure("VM.get_all") == expected
    finally:
        other.close()


async def test_the_certificates_of_all_hosts_verify(lab: Lab) -> None:
    pool = lab.pools["prod"]
    context = ssl.create_default_context(cafile=pool.ca_file)

    for name in ("prod-h1", "prod-h2"):
        url = f"https://{pool.address(pool.host(name))}:{pool.https_port}"
        async with wire(url, context) as connection:
            await connection.send(get("/"))
            assert (await connection.head()).startswith("HTTP/1.1 200 OK")


async def test_every_record_holds_all_fields(api: Api) -> None:
    vm = await api("VM.get_record", await api.vm("web01"))
    vdi = await api("VDI.get_record", await api.disk("web01-root"))

    assert len(vm) == 90
    assert len(vdi) == 32
    assert vm["VCPUs_max"] == "2"
    assert vm["start_delay"] == "0"
    assert vdi["parent"] == "OpaqueRef:NULL"


async def test_calls_are_recorded_in_order_without_secrets(lab: Lab, api: Api) -> None:
    await api("VM.get_all")
    await api.failure("VM.get_uuid", "OpaqueRef:none")

    seen = [(c.kind, c.host, c.name, c.outcome) for c in lab.calls]

    assert seen == [
        ("rpc", "prod-h1", "session.login_with_password", "ok"),
        ("rpc", "prod-h1", "VM.get_all", "ok"),
        ("rpc", "prod-h1", "VM.get_uuid", "HANDLE_INVALID"),
    ]
    assert lab.pools["prod"].password not in str(lab.calls)
    assert all(api.ref not in call.arguments for call in lab.calls)


async def test_arguments_of_the_wrong_type_are_internal_errors(api: Api) -> None:
    vm = await api.vm("web01")

    async def text(method: str, *arguments: Any) -> str:
        code, shown = await api.failure(method, *arguments)
        assert code == "INTERNAL_ERROR"
        return shown

    named = await text("VM.set_name_label", vm, True)
    assert named == "Failure(\"Expected string, got 'true'\")"
    assert await text("VM.set_actions_after_reboot", vm, "dance") == (
        "Failure(\"Unknown tag 'dance'\")"
    )
    for number in ("many", "", str(1 << 63), " 1", "9" * 5000):
        assert (await text("VM.set_user_version", vm, number)).startswith('Failure("Expected int64')
    assert "FieldNotFound" in await text("VDI.create", {})
    assert await text("VM.create", []) == 'Failure("bad __structure")'


async def test_methods_with_defaults_ignore_what_is_too_much(api: Api) -> None:
    assert await api("VM.snapshot", await api.vm("web01"), "s", [], "more", ["and", "more"])


async def test_removed_calls_are_known_and_refused(api: Api) -> None:
    (vbd, *_) = await api("VBD.get_all")

    assert await api.failure("VBD.get_metrics", vbd) == ["MESSAGE_REMOVED"]
    assert await api.failure("VMPP.get_all") == ["MESSAGE_REMOVED"]
    assert await api.failure("host.license_apply", "a", "b", "c") == ["MESSAGE_REMOVED"]


async def test_an_unknown_method_might_be_an_extension(lab: Lab) -> None:
    answer = await raw_call(lab, xml_call("Async.VM.fly", "OpaqueRef:dead"))
    assert "<value>SESSION_INVALID</value><value>OpaqueRef:dead</value>" in answer

    answer = await raw_call(lab, xml_call("Async.VM.fly"))
    assert "<value>MESSAGE_METHOD_UNKNOWN</value><value>VM.fly</value>" in answer


async def test_strings_end_where_xml_cannot_hold_them(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")

    await json_call(lab, method="VM.set_name_description", params=[api.ref, vm, "a\0b"], id=1)

    assert await api("VM.get_name_description", vm) == "a"


async def test_bytes_that_are_no_utf_8_are_refused_before_dispatch(lab: Lab) -> None:
    for text in (b"\xff", b"\\ud800"):
        body = b'{"method": "VM.get_all", "params": ["' + text + b'"], "id": 7}'
        answer = json.loads(await raw_call(lab, body, "/jsonrpc"))

        assert (answer["jsonrpc"], answer["id"]) == ("2.0", 0)
        assert answer["error"][:2] == ["INVALID_VALUE", "Invalid UTF-8 string in parameter"]


async def test_headers_choose_the_task_of_a_call(lab: Lab, api: Api) -> None:
    parent, own = [await api("task.create", name, "") for name in ("parent", "own")]
    body = xml_call("Async.VM.update_allowed_operations", api.ref, await api.vm("web01"))

    async def call(header: str) -> str:
        async with wire(lab.pools["prod"].plain_url) as connection:
            await connection.send(post(body, extra=header))
            _, answer = await connection.response()
        return answer.decode()

    await call(f"subtask-of: {parent}\r\nx-http-other-config-who: me\r\n")
    answer = await call(f"task-id: {own}\r\n")

    (child,) = await api("task.get_subtasks", parent)
    assert (await api("task.get_other_config", child)) == {"http:who": "me"}
    assert f"<value>{own}</value>" in answer
    assert await api("task.get_status", own) == "pending"


async def test_several_requests_may_be_sent_at_once(lab: Lab) -> None:
    pings = [post(xml_call("system.isAlive:x", str(number))) for number in range(3)]

    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(b"".join(pings))
        answers = [(await connection.response())[1] for _ in pings]

    assert all(f"<value>{n}</value>".encode() in answer for n, answer in enumerate(answers))


async def test_a_header_that_is_none_is_an_internal_error(lab: Lab) -> None:
    url = lab.pools["prod"].plain_url
    bad = (
        b"GET /\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: a\r\n\r\n",
    )

    for start in bad:
        answer = await exchange(url, start)
        assert answer.startswith(b"HTTP/1.1 500 Internal Error\r\n")
        assert b"The HTTP headers could not be parsed." in answer
    negative = await exchange(url, b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n")
    assert negative.startswith(b"HTTP/1.1 500 Internal Error\r\n")


async def test_nothing_of_a_request_becomes_a_header_of_the_answer(lab: Lab) -> None:
    url = lab.pools["prod"].plain_url
    asked = (
        b"OPTIONS / HTTP/1.1\r\nAccess-Control-Request-Headers: X-Mine\r\nConnection: close\r\n\r\n"
    )

    assert b"X-Evil" not in await exchange(url, b"BREW / HTTP/1.1\nX-Evil: 1\r\n\r\n")
    allowed = b"Access-Control-Allow-Headers: X-Mine, X-Requested-With\r\n"
    assert allowed in await exchange(url, asked)


HANDLERS_NOT_SIMULATED = ("/host_rrds", "/audit_log", "/services/plugin/x", "/system-status")


async def tls_answer(lab: Lab, request: bytes) -> tuple[str, bytes]:
    """Return header and body of the answer to a request with TLS."""
    pool = lab.pools["prod"]
    context = ssl.create_default_context(cafile=pool.ca_file)
    async with wire(pool.url, context) as connection:
        await connection.send(request)
        return await connection.response()


async def test_the_website_knows_one_page_and_serves_it_with_tls_only(lab: Lab) -> None:
    for path in ("/", "/index.html"):
        head, _ = await tls_answer(lab, get(path))
        assert head.startswith("HTTP/1.1 200 OK\r\n")
    for path in ("/nothing", "/%3Cb%3E", "/rrd", "/importer", "/..", "/RPC2", "/jsonrpc"):
        head, page = await tls_answer(lab, get(path))
        assert head.startswith("HTTP/1.1 404 Not Found\r\n"), path
        assert b"<b>" not in page
    for path in ("/", "/nothing"):
        plain = await exchange(lab.pools["prod"].plain_url, get(path))
        assert plain.startswith(b"HTTP/1.1 403 Forbidden\r\n"), path


async def test_statistics_are_answered_as_without_the_service_that_has_them(
    lab: Lab, api: Api
) -> None:
    url = lab.pools["prod"].plain_url
    session = f"session_id={api.ref}"

    nobody = await exchange(url, get("/rrd_updates?start=1"))
    assert nobody.startswith(b"HTTP/1.1 401 Unauthorised\r\n")
    assert b'WWW-Authenticate: Basic realm="rrd_updates"\r\n' in nobody
    for path in ("/rrd_updates", "/vm_rrd", "/sr_rrd", "/vm_rrds"):
        answer = await exchange(url, get(f"{path}?{session}"))
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), path
    for path in ("/rrd_updates?start=1&", "/vm_rrd?uuid=x&", "/host_rrd?"):
        answer = await exchange(url, get(f"{path}{session}"))
        assert answer.startswith(b"HTTP/1.0 404 Not Found\r\n"), path


@pytest.mark.parametrize("path", HANDLERS_NOT_SIMULATED)
async def test_a_handler_that_is_not_simulated_asks_for_credentials_all_the_same(
    lab: Lab, api: Api, path: str
) -> None:
    url = lab.pools["prod"].plain_url

    nobody = await exchange(url, get(path))
    root = await exchange(url, get(f"{path}?session_id={api.ref}"))

    assert nobody.startswith(b"HTTP/1.1 401 Unauthorised\r\n")
    assert root.startswith(b"HTTP/1.0 404 Not Found\r\n")


async def test_only_answers_to_calls_may_be_read_by_pages_of_other_sites(lab: Lab) -> None:
    url = lab.pools["prod"].plain_url
    body, close = xml_call("system.isAlive:x", "x"), "Connection: close\r\n"
    cors = b"access-control-allow-origin"

    for path in ("/", "/jsonrpc"):
        data = body if path == "/" else b'{"method": "x", "params": [], "id": 1}'
        assert cors in (await exchange(url, post(data, path, extra=close))).lower()
    for request in (
        get("/export_raw_vdi"),
        get("/nothing"),
        b"PUT /x HTTP/1.1\r\n\r\n",
        b"DELETE / HTTP/1.1\r\n\r\n",
        post(b"nonsense"),
    ):
        assert cors not in (await exchange(url, request)).lower()


async def test_paths_without_a_handler_are_forbidden_or_rpc(lab: Lab) -> None:
    forbidden = await exchange(lab.pools["prod"].plain_url, b"PUT /x HTTP/1.1\r\n\r\n")

    assert forbidden.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    for path in ("/json", "/RPC2/more", "/any"):
        assert "<value>x</value>" in await raw_call(lab, xml_call("system.isAlive:x", "x"), path)


async def test_nobody_is_told_to_continue(lab: Lab) -> None:
    body = xml_call("system.isAlive:x", "x")
    extra = "Expect: 100-continue\r\nConnection: close\r\n"

    answer = await exchange(lab.pools["prod"].plain_url, post(body, extra=extra))

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_connections_above_the_limit_wait(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = lab.pools["prod"]
    front = pool.frontages[pool.master].front
    monkeypatch.setattr(front, "places", asyncio.Semaphore(1))
    ping = post(xml_call("system.isAlive:x", "x"))

    async with wire(pool.plain_url) as first:
        await first.send(ping)
        await first.response()
        async with wire(pool.plain_url) as second:
            await second.send(ping)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await second.reader.read(1)
            first.writer.close()
            assert (await second.head()).startswith("HTTP/1.1 200 OK")


async def test_a_header_has_to_come_in_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xorepd_lab.wire.http.READ_TIMEOUT_S", 0.05)

    late = await exchange(lab.pools["prod"].plain_url, b"GET / HTTP/1.1\r\nHost: ")

    assert late.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


async def test_text_is_escaped_as_xapi_does_it(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")
    await api("VM.set_name_description", vm, "<a href=\"b\">'&'</a>")

    answer = await raw_call(lab, xml_call("VM.get_name_description", api.ref, vm))

    assert "<value>&lt;a href=&quot;b&quot;&gt;'&amp;'&lt;/a&gt;</value>" in answer
