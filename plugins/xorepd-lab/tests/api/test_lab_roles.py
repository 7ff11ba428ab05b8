"""What users without root's rights may do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.lab.labclient import FAST, Api, exchange, get, vdi_record
from xorepd_lab.calls.signatures import METHODS
from xorepd_lab.lab import Lab
from xorepd_lab.model.roles import ROLES, lowest_role, permission
from xorepd_lab.topology import SMALL, AccountSpec

pytestmark = pytest.mark.lab

NOBODY = AccountSpec("nobody", "")


@asynccontextmanager
async def lab_of_roles(directory: Path) -> AsyncIterator[Lab]:
    """A lab whose first pool has a user of each role, called like it, and one of none."""
    accounts = (*(AccountSpec(role, role) for role in ROLES), NOBODY)
    prod, *others = SMALL.pools
    topology = replace(SMALL, pools=(replace(prod, accounts=accounts), *others))
    async with Lab.start(directory, topology, seed=1, time_scale=FAST) as lab:
        yield lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab_of_roles(tmp_path / "lab") as made:
        yield made


@asynccontextmanager
async def user(lab: Lab, name: str) -> AsyncIterator[Api]:
    pool = lab.pools["prod"]
    api = Api(pool)
    password = pool.accounts.get(name, pool.password)
    try:
        await asyncio.to_thread(api.session.login_with_password, name, password, "1.0", "tests")
        yield api
    finally:
        api.close()


async def refused_login(lab: Lab, name: str, password: str) -> list[str]:
    api = Api(lab.pools["prod"])
    try:
        with pytest.raises(XenAPI.Failure) as refused:
            await asyncio.to_thread(api.session.login_with_password, name, password)
    finally:
        api.close()
    return list(refused.value.details)


async def test_a_session_of_a_user_says_whose_it_is_and_what_it_may(lab: Lab) -> None:
    async with user(lab, "vm-operator") as api:
        session = await api("session.get_record", api.ref)

    assert session["auth_user_name"] == "vm-operator"
    assert session["is_local_superuser"] is False
    assert session["auth_user_sid"].startswith("S-1-5-21-")
    granted = set(session["rbac_permissions"])
    assert {"vm-operator", "vm.start", "vm.get_uuid", "vdi.list_changed_blocks"} <= granted
    assert not granted & {"vm.snapshot", "vm.destroy", "http/get_export_raw_vdi"}


async def test_roots_session_lists_no_permissions(lab: Lab) -> None:
    async with user(lab, "root") as api:
        assert await api("session.get_rbac_permissions", api.ref) == []
        assert await api("session.get_subject", api.ref) == "OpaqueRef:NULL"


async def test_a_call_above_the_role_is_denied_with_the_roles_that_may(lab: Lab) -> None:
    async with user(lab, "vm-admin") as api:
        vm = await api.vm("web01")

        assert await api.failure("VM.snapshot", vm, "s") == [
            "RBAC_PERMISSION_DENIED",
            "vm.snapshot",
            "No permission in user session. (Roles with this permission:"
            " pool-admin, pool-operator, vm-power-admin)",
        ]
        assert await api("VM.set_name_description", vm, "allowed") == ""


async def test_an_async_call_above_the_role_fails_in_its_task(lab: Lab) -> None:
    async with user(lab, "vm-admin") as api:
        task = await api.finished(await api("Async.VM.snapshot", await api.vm("web01"), "s"))

    assert task["status"] == "failure"
    assert task["error_info"][:2] == ["RBAC_PERMISSION_DENIED", "vm.snapshot"]


LADDER: list[tuple[str, str]] = [
    ("read-only", "VM.get_all"),
    ("vm-operator", "VM.clean_shutdown"),
    ("vm-operator", "VDI.list_changed_blocks"),
    ("vm-operator", "VM.add_tags"),
    ("vm-admin", "VDI.create"),
    ("vm-admin", "VDI.get_nbd_info"),
    ("vm-admin", "VDI.data_destroy"),
    ("vm-admin", "VM.add_to_blocked_operations"),
    ("vm-admin", "network.create"),
    ("vm-power-admin", "VM.snapshot"),
    ("vm-power-admin", "VM.revert"),
    ("vm-power-admin", "SR.scan"),
    ("pool-operator", "VM.set_ha_restart_priority"),
    ("pool-operator", "PBD.plug"),
    ("pool-operator", "message.create"),
    ("pool-operator", "secret.get_value"),
    ("vm-power-admin", "VDI.revert"),
    ("pool-operator", "SR.get_live_hosts"),
    ("pool-operator", "PCI.get_dom0_access_status"),
    ("pool-admin", "VM.set_uefi_mode"),
    ("pool-admin", "VM.get_secureboot_readiness"),
    ("pool-admin", "network.add_purpose"),
    ("pool-admin", "VM.update_allowed_operations"),
    ("pool-admin", "subject.create"),
    ("", "VTPM.get_contents"),
    ("", "session.change_password"),
]


@pytest.mark.parametrize(("lowest", "method"), LADDER)
def test_each_method_has_its_lowest_role(lowest: str, method: str) -> None:
    assert lowest_role(method) == lowest


async def test_a_role_may_what_lower_ones_may(lab: Lab) -> None:
    pool = lab.pools["prod"]
    newer = {method.name for method in METHODS.values() if method.newer}
    for place, role in enumerate(ROLES):
        session = await pool.sessions.login(pool.master, role, pool.accounts[role], "")
        for lowest, method in LADDER:
            if method in newer:  # this pool has never heard of it
                continue
            may = lowest != "" and ROLES.index(lowest) <= place
            assert pool.sessions.allows(session, method) is may, (role, method)


async def test_some_keys_need_another_role_than_their_map(lab: Lab) -> None:
    async with user(lab, "vm-operator") as api:
        vm = await api.vm("web01")

        await api("VM.add_to_other_config", vm, "XenCenter.CustomFields.a", "1")
        await api("VM.remove_from_other_config", vm, "folder")
        denied = await api.failure("VM.add_to_other_config", vm, "mine", "1")
        assert denied[:2] == ["RBAC_PERMISSION_DENIED", "vm.add_to_other_config"]
    async with user(lab, "vm-admin") as api:
        await api("VM.add_to_other_config", vm, "mine", "1")
        denied = await api.failure("VM.add_to_other_config", vm, "pci", "1")
        assert denied[1] == "vm.add_to_other_config/key:pci"
    assert permission("VM.get_other_config", "pci") == "vm.get_other_config"


async def test_unknown_methods_are_denied_to_who_may_not_call_extensions(lab: Lab) -> None:
    async with user(lab, "pool-operator") as api:
        denied = await api.failure("VM.fly")
    async with user(lab, "pool-admin") as api:
        unknown = await api.failure("VM.fly")

    assert denied[:2] == ["RBAC_PERMISSION_DENIED", "host.call_extension"]
    assert unknown == ["MESSAGE_METHOD_UNKNOWN", "VM.fly"]


async def test_tasks_of_others_need_a_high_role(lab: Lab) -> None:
    async with user(lab, "vm-admin") as owner, user(lab, "vm-power-admin") as other:
        task = await owner("task.create", "mine", "")

        for method, *values in (
            ("task.cancel",),
            ("task.destroy",),
            ("task.set_progress", 0.5),
            ("task.set_status", "success"),
        ):
            denied = await other.failure(method, task, *values)
            assert denied[:2] == ["RBAC_PERMISSION_DENIED", "task.destroy/any"]
        await owner("task.set_status", task, "success")
        async with user(lab, "pool-operator") as operator:
            await operator("task.destroy", task)
        assert (await owner.failure("task.get_status", task))[0] == "HANDLE_INVALID"


async def test_disk_handlers_ask_for_a_role_too(lab: Lab) -> None:
    pool = lab.pools["prod"]
    async with user(lab, "vm-operator") as operator, user(lab, "vm-admin") as admin:
        vdi = await admin.disk("db01-data")
        task = await operator("task.create", "t", "")
        path = f"/export_raw_vdi?vdi={vdi}&task_id={task}&session_id="

        refused = await exchange(pool.plain_url, get(path + operator.ref))
        record = await operator("task.get_record", task)
        assert refused.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert record["status"] == "failure"
        denied = ["RBAC_PERMISSION_DENIED", "http/get_export_raw_vdi"]
        assert record["error_info"][:2] == denied

        host = await admin("SR.get_PBDs", await admin("VDI.get_SR", vdi))
        address = pool.address(await admin("PBD.get_host", host[0]))
        url = f"http://{address}:{pool.http_port}"
        allowed = await exchange(url, get(f"/export_raw_vdi?vdi={vdi}&session_id={admin.ref}"))
        assert allowed.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_handlers_that_are_not_simulated_ask_for_the_role_of_theirs(lab: Lab) -> None:
    url = lab.pools["prod"].plain_url
    async with user(lab, "read-only") as reader:
        for path, answer in (
            ("/host_backup", b"HTTP/1.1 403 Forbidden\r\n"),
            ("/system-status", b"HTTP/1.1 403 Forbidden\r\n"),
            ("/rrd_updates", b"HTTP/1.1 400 Bad Request\r\n"),
            ("/audit_log", b"HTTP/1.0 404 Not Found\r\n"),
        ):
            told = await exchange(url, get(f"{path}?session_id={reader.ref}"))
            assert told.startswith(answer), path


async def test_who_has_no_role_or_no_right_to_be_here_cannot_log_in(lab: Lab) -> None:
    pool = lab.pools["prod"]
    no_role = await refused_login(lab, "nobody", pool.accounts["nobody"])
    async with user(lab, "root") as root:
        (subject,) = [
            ref
            for ref, record in (await root("subject.get_all_records")).items()
            if record["other_config"]["subject-name"] == "read-only"
        ]
        await root("subject.destroy", subject)
    no_subject = await refused_login(lab, "read-only", pool.accounts["read-only"])
    stranger = await refused_login(lab, "stranger", "x")

    assert no_role[:2] == ["RBAC_PERMISSION_DENIED", "session.login_with_password"]
    assert no_subject[:2] == ["SESSION_AUTHORIZATION_FAILED", "read-only"]
    assert stranger[:2] == ["SESSION_AUTHENTICATION_FAILED", "stranger"]


async def test_a_new_role_counts_from_the_next_login(lab: Lab) -> None:
    async with user(lab, "root") as root, user(lab, "read-only") as reader:
        (role,) = await root("role.get_by_name_label", "vm-power-admin")
        subject = await reader("session.get_subject", reader.ref)
        await root("subject.add_to_roles", subject, role)
        assert await root.failure("subject.add_to_roles", subject, role) == ["ROLE_ALREADY_EXISTS"]
        vm = await reader.vm("web01")

        assert (await reader.failure("VM.snapshot", vm, "s"))[0] == "RBAC_PERMISSION_DENIED"
        async with user(lab, "read-only") as again:
            assert await again("VM.snapshot", vm, "s")


async def test_root_can_end_the_sessions_of_a_user(lab: Lab) -> None:
    pool = lab.pools["prod"]
    async with user(lab, "root") as root, user(lab, "read-only") as reader:
        identifier = await root("session.get_auth_user_sid", reader.ref)
        assert await root("session.get_all_subject_identifiers") == [identifier]
        await root("session.logout_subject_identifier", identifier)

        assert not pool.db.exists("session", reader.ref)
        assert pool.db.exists("session", root.ref)


async def test_roles_are_records_with_their_permissions(lab: Lab) -> None:
    async with user(lab, "read-only") as api:
        (admin,) = await api("role.get_by_name_label", "pool-admin")
        (reader,) = await api("role.get_by_name_label", "read-only")
        able = await api("role.get_by_permission_name_label", "vm.snapshot")
        names = {await api("role.get_name_label", ref) for ref in able}
        permissions: Any = await api("role.get_permissions_name_label", reader)
        everything = await api("role.get_all_records")

    assert admin == "OpaqueRef:0165f154-ba3e-034e-6b27-5d271af109ba"
    assert names == {"pool-admin", "pool-operator", "vm-power-admin"}
    assert "vm.get_uuid" in permissions
    assert "vm.start" not in permissions
    assert [r for r in everything.values() if r["name_label"] == "http/put_import_raw_vdi"]
    assert everything[reader]["is_internal"] is False


async def test_accounts_survive_a_restart(tmp_path: Path) -> None:
    async with lab_of_roles(tmp_path) as lab:
        passwords = dict(lab.pools["prod"].accounts)
    async with lab_of_roles(tmp_path) as lab:
        assert lab.pools["prod"].accounts == passwords
        async with user(lab, "vm-admin") as api:
            (sr,) = await api("SR.get_by_name_label", "prod-shared")
            assert await api("VDI.create", vdi_record(sr))
