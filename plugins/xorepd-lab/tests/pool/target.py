"""The pool under test, a session on it, and what a test made there."""

import http.client
import os
import ssl
import uuid
import xmlrpc.client
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import XenAPI

NULL = "OpaqueRef:NULL"
MIB = 1 << 20
PATIENCE_S = 120.0
DISK_HANDLER_S = 300
RELEASE_S, RELEASE_TRIES = 5.0, 6
"""A real host detaches a disk some seconds after a stream of it has ended."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a pool is and what may be used of it."""

    url: str
    username: str
    password: str
    sr: str
    network: str = ""

    @classmethod
    def from_environment(cls) -> Self | None:
        """Return the real pool that the environment names, if it names one."""
        url = os.environ.get("XOREPD_TEST_POOL_URL")
        if not url:
            return None
        return cls(
            url=url,
            username=os.environ.get("XOREPD_TEST_POOL_USER", "root"),
            password=Path(os.environ["XOREPD_TEST_POOL_PASSWORD_FILE"]).read_text().rstrip("\n"),
            sr=os.environ["XOREPD_TEST_POOL_SR"],
            network=os.environ.get("XOREPD_TEST_POOL_NETWORK", ""),
        )


@dataclass
class Bench:
    """A session, short ways to make things, and their removal in the opposite order."""

    target: Target
    session: XenAPI.Session
    sr: str
    network: str
    _undo: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    @property
    def ref(self) -> str:
        return str(self.session.handle)

    @property
    def api(self) -> Any:
        return self.session.xenapi

    def call(self, method: str, *arguments: Any) -> Any:
        return self.session.xenapi_request(method, arguments)

    def failure(self, method: str, *arguments: Any) -> list[str]:
        """Return the error of a call that must fail."""
        try:
            value = self.call(method, *arguments)
        except XenAPI.Failure as failure:
            return list(failure.details)
        raise AssertionError(f"{method} gave {value!r}")

    def name(self) -> str:
        return f"xorepd-test {uuid.uuid4().hex[:8]}"

    def afterwards(self, method: str, *arguments: str) -> None:
        """Have a call made at the end of the test, whatever becomes of it."""
        self._undo.append((method, arguments))

    def clean(self) -> None:
        """Remove what was made, the last first; what cannot be removed fails the test."""
        left = []
        while self._undo:
            method, arguments = self._undo.pop()
            try:
                self._remove(method, *arguments)
            except XenAPI.Failure as failure:
                left.append(f"{method}: {failure}")
        assert not left

    def _remove(self, method: str, ref: str, *arguments: str) -> None:
        """Make a call that removes something, and wait while a stream still has it attached."""
        for last in [False] * RELEASE_TRIES + [True]:
            try:
                self.call(method, ref, *arguments)
            except XenAPI.Failure as failure:
                if failure.details[0] == "HANDLE_INVALID":  # the test itself removed it
                    return
                if failure.details[0] != "VDI_IN_USE" or last:
                    raise
                token = self.call("event.from", [f"vdi/{ref}"], "", 0.0)["token"]
                self.call("event.from", [f"vdi/{ref}"], token, RELEASE_S)
            else:
                return

    # -- making things ----------------------------------------------------------------------------

    def new_vdi(self, size: int = 4 * MIB, **fields: Any) -> str:
        record = {
            "SR": self.sr,
            "name_label": self.name(),
            "virtual_size": str(size),
            "type": "user",
            "sharable": False,
            "read_only": False,
            "other_config": {},
            **fields,
        }
        return self.keep_vdi(self.call("VDI.create", record))

    def keep_vdi(self, vdi: str) -> str:
        """Take charge of a VDI that a test made in another way."""
        self.afterwards("VDI.destroy", vdi)
        return str(vdi)

    def new_vm(self, **fields: Any) -> str:
        record = {
            "name_label": self.name(),
            "user_version": "1",
            "is_a_template": False,
            "affinity": NULL,
            "memory_static_max": str(256 * MIB),
            "memory_dynamic_max": str(256 * MIB),
            "memory_dynamic_min": str(256 * MIB),
            "memory_static_min": str(128 * MIB),
            "VCPUs_params": {},
            "VCPUs_max": "1",
            "VCPUs_at_startup": "1",
            "actions_after_shutdown": "destroy",
            "actions_after_reboot": "restart",
            "actions_after_crash": "restart",
            "PV_bootloader": "",
            "PV_kernel": "",
            "PV_ramdisk": "",
            "PV_args": "",
            "PV_bootloader_args": "",
            "PV_legacy_args": "",
            "HVM_boot_policy": "BIOS order",
            "HVM_boot_params": {"order": "c"},
            "platform": {},
            "PCI_bus": "",
            "other_config": {},
            "recommendations": "",
            **fields,
        }
        return self.keep_vm(self.call("VM.create", record))

    def keep_vm(self, vm: str) -> str:
        self.afterwards("VM.destroy", vm)
        return str(vm)

    def new_disk(self, vm: str, vdi: str, **fields: Any) -> str:
        record = {
            "VM": vm,
            "VDI": vdi,
            "userdevice": "autodetect",
            "bootable": False,
            "mode": "RW",
            "type": "Disk",
            "empty": False,
            "other_config": {},
            "qos_algorithm_type": "",
            "qos_algorithm_params": {},
            **fields,
        }
        return str(self.call("VBD.create", record))

    def result(self, task: str) -> str:
        """Wait until a task has succeeded and return the reference that it made."""
        record = self.finished(task)
        assert record["status"] == "success", record["error_info"]
        text: str = record["result"]
        return text.removeprefix("<value>").removesuffix("</value>")

    def call_as(self, session: str, headers: dict[str, str], method: str, *arguments: Any) -> Any:
        """Make a call with a session and with headers of one's own, which the SDK does not send."""
        body = xmlrpc.client.dumps((session, *arguments), method).encode()
        _, _, answer = _request("POST", f"{self.target.url}/", body, headers)
        ((found,), _) = xmlrpc.client.loads(answer)
        assert isinstance(found, dict)
        assert found["Status"] == "Success", found
        return found["Value"]

    def new_task(self) -> str:
        task = self.call("task.create", self.name(), "")
        self.afterwards("task.destroy", task)
        self.afterwards("task.set_status", task, "success")  # a pending one is only marked
        return str(task)

    def finished(self, task: str) -> dict[str, Any]:
        """Wait until a task is done and return its record."""
        token = ""
        while True:
            answer = self.call("event.from", [f"task/{task}"], token, PATIENCE_S)
            token = answer["token"]
            record: dict[str, Any] = self.call("task.get_record", task)
            if record["status"] != "pending":
                return record
            if not answer["events"]:
                raise AssertionError(f"nothing heard of task {record['name_label']!r}")

    # -- disk handlers ----------------------------------------------------------------------------

    def read_disk(self, vdi: str, **query: str) -> bytes:
        """Return the body of an export whose task succeeded."""
        task = self.new_task()
        status, body = self.http(
            "GET", "/export_raw_vdi", {"vdi": vdi, "task_id": task, **query}, b""
        )
        record = self.finished(task)
        assert (status, record["status"]) == (200, "success"), record["error_info"]
        return body

    def write_disk(self, vdi: str, body: bytes, **query: str) -> dict[str, Any]:
        """Import a body and return the record of its task."""
        task = self.new_task()
        status, _ = self.http(
            "PUT", "/import_raw_vdi", {"vdi": vdi, "task_id": task, **query}, body
        )
        assert status == 200
        return self.finished(task)

    def http(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """Make one request, at another host if the first one says so."""
        url = f"{self.target.url}{path}?{urlencode({'session_id': self.ref, **query})}"
        while True:
            status, location, answer = _request(method, url, body)
            if status != 302:
                return status, answer
            url = location


def _request(
    method: str, url: str, body: bytes, headers: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, str, bytes]:
    split = urlsplit(url)
    assert split.hostname is not None
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(
        split.hostname, split.port or 443, timeout=DISK_HANDLER_S, context=context
    )
    try:
        connection.putrequest(method, f"{split.path}?{split.query}", skip_accept_encoding=True)
        connection.putheader("Content-Length", str(len(body)))
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        # The server may have said no, or sent us elsewhere, and closed before it read all of it.
        with suppress(ConnectionError, ssl.SSLError):
            connection.send(body)
        response = connection.getresponse()
        answer = response.read()
        return response.status, response.getheader("Location", ""), answer
    finally:
        connection.close()


@contextmanager
def bench_on(target: Target) -> Iterator[Bench]:
    """Log in, and remove at the end whatever was made."""
    session = XenAPI.Session(target.url, ignore_ssl=True)
    session.login_with_password(target.username, target.password, "1.0", "xorepd-test")
    bench = Bench(
        target,
        session,
        sr=_find(session, "SR", target.sr),
        network=_find(session, "network", target.network),
    )
    try:
        yield bench
    finally:
        try:
            bench.clean()
        finally:
            session.logout()
            session("close")()


def _find(session: XenAPI.Session, cls: str, name: str) -> str:
    """Return an object by its UUID or name; the first of all when no name is given."""
    if not name:
        return str(session.xenapi_request(f"{cls}.get_all", ())[0])
    try:
        return str(session.xenapi_request(f"{cls}.get_by_uuid", (name,)))
    except XenAPI.Failure:
        (found,) = session.xenapi_request(f"{cls}.get_by_name_label", (name,))
        return str(found)
