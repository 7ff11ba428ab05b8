"""Every class of the data model, with every getter, as the SDK sees it."""

import asyncio
import re
import xmlrpc.client
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.lab.labclient import FAST, Api, logged_in
from xorepd.lab.datamodel import CLASSES, NEWER_CLASSES
from xorepd.lab.generics import REMOVED, WITHOUT_GETTERS, WITHOUT_LISTS, WITHOUT_NAMES
from xorepd.lab.lab import Lab
from xorepd.lab.schema import ClassSpec, Type
from xorepd.lab.topology import SMALL, AccountSpec

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
        session = XenAPI.Session(api.pool.plain_url)
        session._session = api.ref
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


async def test_a_newer_pool_shows_newer_fields_and_classes(tmp_path: Path) -> None:
    prod, *others = SMALL.pools
    topology = replace(SMALL, pools=(replace(prod, release="newer"), *others))
    for _ in range(2):
        # The second time it is resumed.
        async with (
            Lab.start(tmp_path / "lab", topology, seed=1, time_scale=FAST) as lab,
            logged_in(lab) as api,
        ):
            vm = await api.vm("web01")
            record = await api("VM.get_record", vm)
            assert set(record) == set(NEWER_CLASSES["VM"].fields)
            assert await api("VM.get_groups", vm) == []
            assert await api("VM_group.create", {"name_label": "g"})
            proxy = xmlrpc.client.ServerProxy(lab.pools["prod"].plain_url)
            names = await asyncio.to_thread(proxy.system.listMethods)
            proxy("close")()
            assert isinstance(names, list)
            assert "VM_group.get_all" in names
            async with logged_in(lab, "dr") as other:
                assert (await other.failure("VM_group.get_all"))[0] == "MESSAGE_METHOD_UNKNOWN"


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
