"""Every class of the data model, with every getter, as the SDK sees it."""

import asyncio
import re
import xmlrpc.client
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import XenAPI

from tests.lab.labclient import FAST, Api, Session, logged_in
from xorepd_lab.calls.generics import REMOVED, WITHOUT_GETTERS, WITHOUT_LISTS, WITHOUT_NAMES
from xorepd_lab.classes.unsimulated import unsimulated
from xorepd_lab.lab import Lab
from xorepd_lab.model.datamodel import CLASSES, NEWER_CLASSES
from xorepd_lab.model.schema import ClassSpec, Type
from xorepd_lab.topology import SMALL, AccountSpec

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def anything() -> dict[str, Any]:
    """One object of each class, as far as they can be made without more."""
    return {
        "secret": {"value": "s", "other_config": {}},
        "user": {"short_name": "u", "fullname": "U", "other_config": {}},
        "VM_appliance": {"name_label": "a", "name_description": ""},
        "VMSS": {"name_label": "s", "type": "snapshot", "frequency": "daily"},
        "Observer": {"name_label": "o", "hosts": []},
        "PVS_cache_storage": {},
    }


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    prod, *others = SMALL.pools
    prod = replace(prod, accounts=(AccountSpec("reader", "read-only"),))
    topology = replace(SMALL, pools=(prod, *others))
    async with (
        Lab.start(tmp_path / "lab", topology, seed=1, time_scale=FAST) as lab,
        logged_in(lab) as made,
    ):
        yield made


def fits(declared: Type, value: Any) -> bool:
    """Say whether a value from the wire is one of the declared type."""
    match declared.kind:
        case "string":
            return isinstance(value, str)
        case "int":
            return isinstance(value, str) and re.fullmatch(r"-?\d+", value) is not None
        case "float":
            return isinstance(value, float)
        case "bool":
            return isinstance(value, bool)
        case "datetime":
            return isinstance(value, xmlrpc.client.DateTime)
        case "enum":
            return value in declared.values
        case "ref":
            return isinstance(value, str) and value.startswith("OpaqueRef:")
        case "set" if declared.item is not None:
            item = declared.item
            return isinstance(value, list) and all(fits(item, each) for each in value)
        case "map" if declared.key is not None and declared.item is not None:
            key, item = declared.key, declared.item
            return isinstance(value, dict) and all(
                fits(key, k) and fits(item, v) for k, v in value.items()
            )
    return False


class Reader:
    """The SDK in one thread: thousands of calls need no task each."""

    def __init__(self, session: Any, ref: str) -> None:
        self._session = session
        self._ref = ref

    def __call__(self, method: str, *arguments: Any) -> Any:
        """Return what a call gives; None for one that XAPI has removed."""
        removed = method in REMOVED or f"{method.partition('.')[0]}.*" in REMOVED
        if not removed:
            return self._session.xenapi_request(method, arguments)
        with pytest.raises(XenAPI.Failure, match="MESSAGE_REMOVED"):
            self._session.xenapi_request(method, arguments)
        return None

    def objects(self, spec: ClassSpec) -> list[str]:
        if spec.name == "session":
            return [self._ref]
        if spec.name in WITHOUT_LISTS:
            return []
        refs: list[str] | None = self(f"{spec.name}.get_all")
        records = self(f"{spec.name}.get_all_records")
        assert refs is None or set(refs) == set(records)
        return refs or []

    def read(self, spec: ClassSpec, ref: str) -> None:
        cls = spec.name
        record = self(f"{cls}.get_record", ref)
        if record is None:
            return
        assert set(record) == set(spec.fields), cls
        for name, field in spec.fields.items():
            assert fits(field.type, record[name]), (cls, name, record[name])
            if cls not in WITHOUT_GETTERS:
                alone = self(f"{cls}.get_{name}", ref)
                assert alone is None or alone == record[name], (cls, name)
        assert self(f"{cls}.get_by_uuid", record["uuid"]) in (ref, None)
        if "name_label" in record and cls not in WITHOUT_NAMES:
            assert ref in (self(f"{cls}.get_by_name_label", record["name_label"]) or [ref])


async def test_every_getter_of_every_class_gives_what_the_table_says(
    api: Api, anything: dict[str, Any]
) -> None:
    for cls, record in anything.items():
        await api(f"{cls}.create", record)
    await api("blob.create", "text/plain", False)
    await api("task.create", "t", "")
    await api("VM.snapshot", await api.vm("web01"), "s")
    pool = (await api("pool.get_all_records")).popitem()[1]
    await api("message.create", "HELLO", "5", "Pool", pool["uuid"], "text")

    def read_all() -> set[str]:
        session = Session(api.pool.plain_url)
        session.adopt(api.ref)
        reader = Reader(session, api.ref)
        seen = set()
        for spec in CLASSES.values():
            # The first and the last are as good as all; there are thousands of roles.
            objects = reader.objects(spec)
            for ref in {*objects[:1], *objects[-1:]}:
                seen.add(spec.name)
                reader.read(spec, ref)
        session("close")()
        return seen

    seen = await asyncio.to_thread(read_all)

    made = set(anything) - WITHOUT_LISTS
    usual = {
        "pool",
        "host",
        "host_metrics",
        "VM",
        "VDI",
        "VBD",
        "VIF",
        "SR",
        "PBD",
        "SM",
        "network",
    }
    usual |= {"PIF_metrics", "Certificate"}
    assert made | usual | {"PIF", "session", "task", "message", "blob", "role", "subject"} <= seen


async def test_every_class_is_counted_with_the_events(api: Api) -> None:
    counts = (await api("event.from", ["pool"], "", 0.0))["valid_ref_counts"]

    assert set(counts) == {name.lower() for name in CLASSES} - {"message"}


async def test_newer_fields_are_unknown_to_older_releases(api: Api) -> None:
    vm = await api.vm("web01")

    assert (await api.failure("VM.get_groups", vm))[0] == "MESSAGE_METHOD_UNKNOWN"
    assert (await api.failure("VM_group.get_all"))[0] == "MESSAGE_METHOD_UNKNOWN"
    assert "groups" not in await api("VM.get_record", vm)


@asynccontextmanager
async def xapi_26(directory: Path, release: Literal["26", "newer"] = "26") -> AsyncIterator[Lab]:
    """Give a lab whose pool prod runs xapi 26, and dr XCP-ng 8.3."""
    prod, *others = SMALL.pools
    topology = replace(SMALL, pools=(replace(prod, release=release), *others))
    async with Lab.start(directory, topology, seed=1, time_scale=FAST) as lab:
        yield lab


async def test_a_newer_pool_shows_newer_fields_and_classes(tmp_path: Path) -> None:
    for _ in range(2):
        # The second time it is resumed.
        async with xapi_26(tmp_path / "lab", "newer") as lab, logged_in(lab) as api:
            vm = await api.vm("web01")
            record = await api("VM.get_record", vm)
            assert set(record) == set(NEWER_CLASSES["VM"].fields)
            assert await api("VM.get_groups", vm) == []
            assert await api("VM_group.create", {"name_label": "g"})
            proxy = xmlrpc.client.ServerProxy(lab.pools["prod"].plain_url)
            names = await asyncio.to_thread(proxy.system.listMethods)
            proxy("close")()
            assert isinstance(names, list)
            assert {"VM_group.get_all", "VDI.revert"} <= set(names)
            assert names == sorted(await api("host.list_methods"))
            async with logged_in(lab, "dr") as other:
                assert (await other.failure("VM_group.get_all"))[0] == "MESSAGE_METHOD_UNKNOWN"
                assert "VDI.revert" not in await other("host.list_methods")


async def test_a_pool_of_xapi_26_has_its_fields_with_their_defaults(tmp_path: Path) -> None:
    async with xapi_26(tmp_path / "lab") as lab, logged_in(lab) as api:
        (pool,) = (await api("pool.get_all_records")).values()
        host, *_ = (await api("host.get_all_records")).values()
        certificate, *_ = (await api("Certificate.get_all_records")).values()
        driver, *_ = (await api("SM.get_all_records")).values()
        vm = await api("VM.get_record", await api.vm("web01"))
        metrics = await api("VM_metrics.get_record", vm["metrics"])
        assert await api("Host_driver.get_all") == []
        assert await api("VM.get_all_where", 'field "name__label" = "web01"') == [
            await api.vm("web01")
        ]
        await api("pool.set_limit_console_sessions", (await api("pool.get_all"))[0], True)

    expected: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
        (
            pool,
            {
                "ext_auth_cache_enabled": True,
                "ext_auth_cache_size": "50",
                "ext_auth_cache_expiry": "300",
                "recommendations": {},
                "license_server": {},
                "ha_reboot_vm_on_internal_shutdown": True,
                "limit_console_sessions": False,
                "vm_console_idle_timeout": "0",
                "auto_update_vm_secureboot_certificates": False,
            },
        ),
        (
            host,
            {
                "ssh_enabled": True,
                "ssh_enabled_timeout": "0",
                "console_idle_timeout": "0",
                "ssh_auto_mode": False,
                "max_cstate": "",
                "secure_boot": False,
                "ntp_mode": "Factory",
                "ntp_custom_servers": [],
                "timezone": "UTC",
                "API_version_minor": "23",
            },
        ),
        (metrics, {"numa_optimised": False, "numa_nodes": "0", "numa_node_memory": {}}),
        (vm, {"groups": [], "secureboot_certificates_state": "ok"}),
        (driver, {"supported_image_formats": []}),
        (certificate, {"purpose": []}),
    )
    for record, fields in expected:
        assert {name: record[name] for name in fields} == fields
    assert str(host["ssh_expiry"]) == "19700101T00:00:00Z"
    assert host["software_version"]["xapi_build"] == "26.17.0"
    assert certificate["fingerprint_sha256"] == certificate["fingerprint"]
    assert re.fullmatch("([0-9A-F]{2}:){19}[0-9A-F]{2}", certificate["fingerprint_sha1"])


async def test_a_disk_is_reverted_by_no_driver(tmp_path: Path) -> None:
    async with xapi_26(tmp_path / "lab") as lab, logged_in(lab) as api:
        disk = await api.disk("web01-data")
        snapshot = await api("VDI.snapshot", disk)
        (sr,) = await api("SR.get_by_name_label", "prod-shared")

        assert await api.failure("VDI.revert", snapshot) == ["SR_OPERATION_NOT_SUPPORTED", sr]
        assert "vdi_revert" not in await api("SR.get_allowed_operations", sr)
        missing = await api.failure("VDI.revert", "OpaqueRef:none")
        assert missing == ["HANDLE_INVALID", "VDI", "OpaqueRef:none"]


async def test_vms_are_put_into_groups(tmp_path: Path) -> None:
    async with xapi_26(tmp_path / "lab") as lab, logged_in(lab) as api:
        vm = await api.vm("web01")
        one, other = [await api("VM_group.create", {"name_label": name}) for name in "ab"]

        await api("VM.set_groups", vm, [one])
        await api("VM.set_groups", vm, [other])

        assert await api("VM.get_groups", vm) == [other]
        assert await api("VM_group.get_VMs", one) == []
        assert await api("VM_group.get_VMs", other) == [vm]
        assert await api.failure("VM.set_groups", vm, [one, other]) == ["TOO_MANY_GROUPS"]
        assert (await api.failure("VM.set_groups", vm, ["OpaqueRef:none"]))[0] == "HANDLE_INVALID"
        await api("VM.set_groups", vm, [])
        assert await api("VM_group.get_VMs", other) == []


async def test_only_newer_pools_offer_newer_operations(tmp_path: Path, api: Api) -> None:
    async with xapi_26(tmp_path / "26") as lab, logged_in(lab) as newer:
        assert "sysprep" in await newer("VM.get_allowed_operations", await newer.vm("web01"))
        assert "sysprep" not in await newer("VM.get_allowed_operations", await newer.vm("db01"))
    assert "sysprep" not in await api("VM.get_allowed_operations", await api.vm("web01"))


# -- calls that are known and not simulated -------------------------------------------------------


async def test_calls_that_are_not_simulated_are_known(api: Api) -> None:
    vm, host = await api.vm("web01"), (await api("host.get_all"))[0]

    assert await api.failure("VM.set_uefi_mode", vm, "user") == [
        "NOT_IMPLEMENTED",
        "VM.set_uefi_mode",
    ]
    assert await api.failure("host.get_log", host) == ["NOT_IMPLEMENTED", "host.get_log"]
    assert await api.failure("VM.set_uefi_mode", "OpaqueRef:none", "user") == [
        "HANDLE_INVALID",
        "VM",
        "OpaqueRef:none",
    ]
    for call in ("disable_dom0_access", "enable_dom0_access", "get_dom0_access_status"):
        refused = await api.failure(f"PCI.{call}", "OpaqueRef:none")
        assert refused == ["HANDLE_INVALID", "PCI", "OpaqueRef:none"]
    few = await api.failure("VM.set_uefi_mode", vm)
    assert few == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.set_uefi_mode", "2", "1"]
    unknown = await api.failure("VM.set_uefi_mode", vm, "sideways")
    assert unknown == ["INTERNAL_ERROR", "Failure(\"Unknown tag 'sideways'\")"]
    task = await api("Async.host.dmesg", host)
    assert (await api.finished(task))["error_info"] == ["NOT_IMPLEMENTED", "host.dmesg"]
    internal = await api.failure("host.update_master", host, "192.0.2.1")
    assert internal[0] == "INTERNAL_ERROR"
    assert "non-pool (external) session" in internal[1]


async def test_what_is_not_simulated_asks_for_the_role_as_well(api: Api) -> None:
    reader, vm = Api(api.pool), await api.vm("web01")
    login = reader.session.login_with_password
    await asyncio.to_thread(login, "reader", api.pool.accounts["reader"], "1.0", "tests")
    try:
        refused = await reader.failure("VM.set_uefi_mode", vm, "user")
        assert refused[0] == "RBAC_PERMISSION_DENIED"
    finally:
        reader.close()


async def test_no_call_of_xapi_is_unknown(tmp_path: Path, api: Api) -> None:
    async def refusals(asked: Api, newer: bool) -> set[str]:
        calls = [method for method in unsimulated() if newer or not method.newer]
        return {(await asked.failure(method.name, *range(20)))[0] for method in calls}

    expected = {"NOT_IMPLEMENTED", "INTERNAL_ERROR", "MESSAGE_PARAMETER_COUNT_MISMATCH"}
    assert await refusals(api, newer=False) <= expected
    async with xapi_26(tmp_path / "26") as lab, logged_in(lab) as other:
        assert await refusals(other, newer=True) <= expected


async def test_secure_boot_is_as_ready_as_the_vm_is(api: Api) -> None:
    vm, (pool,) = await api.vm("db01"), await api("pool.get_all")

    async def readiness() -> Any:
        return await api("VM.get_secureboot_readiness", vm)

    assert await readiness() == "not_supported"
    await api("VM.set_HVM_boot_params", vm, {"firmware": "uefi"})
    assert await readiness() == "disabled"
    await api("VM.add_to_platform", vm, "secureboot", "true")
    assert await readiness() == "first_boot"
    assert await api("pool.get_guest_secureboot_readiness", pool) == "not_ready"


async def test_no_guess_is_the_secret_of_a_pool(api: Api) -> None:
    proxy = xmlrpc.client.ServerProxy(api.pool.plain_url)
    for method, *arguments in (("slave_login", "OpaqueRef:x", "a"), ("slave_local_login", "a")):
        answer: Any = await asyncio.to_thread(getattr(proxy.session, method), *arguments)
        assert answer["ErrorDescription"][0] == "SESSION_AUTHENTICATION_FAILED"
    proxy("close")()


async def test_messages_are_about_objects_that_exist(api: Api) -> None:
    vm = await api.vm("web01")
    uuid = await api("VM.get_uuid", vm)
    refused = await api.failure("message.create", "N", "1", "VM", "none", "")
    ref = await api("message.create", "N", "1", "VM", uuid, "body")

    assert refused == ["UUID_INVALID", "VM", "none"]
    since = xmlrpc.client.DateTime("20200101T00:00:00Z")
    later = xmlrpc.client.DateTime("20990101T00:00:00Z")
    assert set(await api("message.get", "VM", uuid, since)) == {ref}
    assert await api("message.get", "VM", uuid, later) == {}
    assert set(await api("message.get_since", since)) == {ref}
    assert (await api("message.get_record", ref))["body"] == "body"
    assert (await api.failure("message.get_body", ref))[0] == "MESSAGE_METHOD_UNKNOWN"
    await api("message.destroy_many", [ref])
    assert await api("message.get_all") == []
    assert (await api.failure("message.destroy", ref))[0] == "HANDLE_INVALID"
