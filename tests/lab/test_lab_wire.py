"""HTTP, XML-RPC and JSON-RPC as a client meets them."""

import json
import ssl
import xmlrpc.client
from typing import Any

import pytest
import XenAPI

from tests.lab.labclient import Api, exchange, get, post, wire
from xorepd.lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab


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
    assert {"VM.snapshot", "Async.VM.snapshot", "event.from", "VDI.get_uuid"} <= set(methods)  # type: ignore[arg-type]
    assert "Async.VM.get_uuid" not in methods  # type: ignore[operator]


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
    assert await api.failure("VM.snapshot", vm, "a", [], "more") == [
        "MESSAGE_PARAMETER_COUNT_MISMATCH",
        "VM.snapshot",
        "2",
        "4",
    ]
    assert await api.failure("VM.get_by_uuid", "none") == ["UUID_INVALID", "VM", "none"]
    # A UUID is no reference.
    assert await api.failure("VM.get_name_label", vm_uuid) == ["HANDLE_INVALID", "VM", vm_uuid]
    assert await api.failure("VM.set_name_label", vm, True) == ["FIELD_TYPE_ERROR", "name_label"]
    assert await api.failure("VM.set_actions_after_reboot", vm, "dance") == [
        "INVALID_VALUE",
        "actions_after_reboot",
        "dance",
    ]
    await api("VM.add_to_other_config", vm, "k", "1")
    assert await api.failure("VM.add_to_other_config", vm, "k", "2") == [
        "MAP_DUPLICATE_KEY",
        "VM",
        "other_config",
        vm_uuid,
        "k",
    ]
    await api("VM.remove_from_other_config", vm, "k")
    await api("VM.remove_from_other_config", vm, "k")
    assert (await api.failure("Async.VM.get_uuid", vm))[0] == "Fault"


async def test_records_can_be_filtered(api: Api) -> None:
    found = await api(
        "VM.get_all_records_where",
        'field "is_control_domain" = "false" and not field "name__label" = "db01"',
    )

    assert [record["name_label"] for record in found.values()] == ["web01"]


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

    assert fits.startswith(b"HTTP/1.1 200 OK")
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
    body = xml_call("system.isAlive:me")

    async with wire(lab.pools["prod"].plain_url) as connection:
        for _ in range(2):
            await connection.send(post(body))
            head, answer = await connection.response()
            assert "connection: keep-alive\r\n" in head
            assert b"<value>me</value>" in answer
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
        other.session._session = api.ref

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
    assert api.ref not in str(lab.calls)
