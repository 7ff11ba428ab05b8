"""Sessions, and what wrong calls are answered."""

import xmlrpc.client
from typing import Any

import pytest
import XenAPI

from pool.target import Bench

pytestmark = pytest.mark.pool


def test_a_wrong_password_is_refused(bench: Bench) -> None:
    session = XenAPI.Session(bench.target.url, ignore_ssl=True)

    with pytest.raises(XenAPI.Failure) as refused:
        session.login_with_password(bench.target.username, "surely not this")

    assert refused.value.details[:2] == ["SESSION_AUTHENTICATION_FAILED", bench.target.username]
    session("close")()


def test_a_session_that_logged_out_is_invalid(bench: Bench) -> None:
    session = XenAPI.Session(bench.target.url, ignore_ssl=True)
    session.login_with_password(bench.target.username, bench.target.password, "1.0", "xorepd-test")
    ref = session.handle
    session.xenapi.session.logout()

    # The SDK would log in again by itself, so one layer below it.
    answer: Any = xmlrpc.client.ServerProxy.__getattr__(session, "VM.get_all")(ref)

    assert answer["Status"] == "Failure"
    assert answer["ErrorDescription"] == ["SESSION_INVALID", ref]
    session("close")()


def test_a_session_knows_who_it_is(bench: Bench) -> None:
    record = bench.api.session.get_record(bench.ref)

    assert record["originator"] == "xorepd-test"
    assert record["pool"] is False
    assert bench.api.session.get_this_host(bench.ref) in bench.api.host.get_all()


def test_integers_are_strings_and_dates_are_dates(bench: Bench) -> None:
    record = bench.api.VDI.get_record(bench.new_vdi())

    assert record["virtual_size"] == str(4 << 20)
    assert isinstance(record["snapshot_time"], xmlrpc.client.DateTime)
    assert record["managed"] is True
    assert record["tags"] == []


def test_wrong_calls_name_what_is_wrong_with_them(bench: Bench) -> None:
    vm = bench.new_vm()

    assert bench.failure("VM.levitate", vm) == ["MESSAGE_METHOD_UNKNOWN", "VM.levitate"]
    code, method, *counts = bench.failure("VM.get_record", vm, vm)
    assert (code, method) == ("MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record")
    assert counts == ["1", "2"]
    code, cls, ref = bench.failure("VM.get_record", "OpaqueRef:none")
    assert (code, cls.lower(), ref) == ("HANDLE_INVALID", "vm", "OpaqueRef:none")
    code, cls, text = bench.failure("VM.get_by_uuid", "none")
    assert (code, cls.lower(), text) == ("UUID_INVALID", "vm", "none")


def test_a_key_is_added_once_and_removed_as_often_as_you_like(bench: Bench) -> None:
    vm = bench.new_vm()

    bench.api.VM.add_to_other_config(vm, "xorepd-test", "1")

    code, _, field, ref, key = bench.failure("VM.add_to_other_config", vm, "xorepd-test", "2")
    assert (code, field, ref, key) == ("MAP_DUPLICATE_KEY", "other_config", vm, "xorepd-test")
    bench.api.VM.remove_from_other_config(vm, "xorepd-test")
    bench.api.VM.remove_from_other_config(vm, "xorepd-test")
    assert "xorepd-test" not in bench.api.VM.get_other_config(vm)


def test_unknown_members_of_enums_are_refused(bench: Bench) -> None:
    vm = bench.new_vm()

    refused = bench.failure("VM.add_to_blocked_operations", vm, "levitate", "no")

    # Which one it is depends on where the toolstack notices.
    assert refused[0] in {"INVALID_VALUE", "INTERNAL_ERROR"}
    assert bench.api.VM.get_blocked_operations(vm) == {}


def test_no_page_is_shown_where_nothing_is(bench: Bench) -> None:
    for path in ("/xorepd-test", "/xorepd-test/rrd_updates"):
        status, _ = bench.http("GET", path, {}, b"")
        assert status in {403, 404}  # the former without a website
    status, _ = bench.http("PUT", "/xorepd-test", {}, b"")
    assert status == 403


def test_a_create_names_the_member_it_misses(bench: Bench) -> None:
    refused = bench.failure("VDI.create", {"SR": bench.sr})

    assert refused[0] == "INTERNAL_ERROR"
    assert "FieldNotFound" in refused[1]
