"""How the lab's own tests talk to it: the XenAPI SDK in threads, and bare sockets for quirks."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import XenAPI

from tests.lab.whole import OF_CLIENTS, assert_whole
from tests.patience import patience
from xorepd_lab.lab import Lab
from xorepd_lab.pools import Pool
from xorepd_lab.topology import SMALL

FAST = 0.002
"""Time scale: what takes a second in a pool takes 2 ms."""
NULL = "OpaqueRef:NULL"


class Session(XenAPI.Session):  # type: ignore[misc]  # the SDK has no types
    """A session of the SDK that can be one which was logged in elsewhere."""

    def adopt(self, ref: str) -> None:
        self._session = ref


class Api:
    """One session of the SDK; calls run in a thread, one after another."""

    def __init__(self, pool: Pool, url: str | None = None) -> None:
        self.pool = pool
        self.session = Session(url or pool.url, ignore_ssl=True)

    async def login(self, originator: str = "tests") -> None:
        await asyncio.to_thread(
            self.session.login_with_password,
            self.pool.username,
            self.pool.password,
            "1.0",
            originator,
        )

    @property
    def ref(self) -> str:
        return str(self.session.handle)

    async def __call__(self, method: str, *arguments: Any) -> Any:
        return await asyncio.to_thread(self.session.xenapi_request, method, arguments)

    async def failure(self, method: str, *arguments: Any) -> list[str]:
        """Return the error of a call that must fail."""
        try:
            value = await self(method, *arguments)
        except XenAPI.Failure as error:
            return list(error.details)
        raise AssertionError(f"{method} gave {value!r}")

    async def vm(self, name: str) -> str:
        """Return the VM of that name that is no template."""
        for ref in await self("VM.get_by_name_label", name):
            if not await self("VM.get_is_a_template", ref):
                return str(ref)
        raise AssertionError(f"no VM {name}")

    async def disk(self, name: str) -> str:
        """Return the VDI of that name that is no snapshot."""
        for ref in await self("VDI.get_by_name_label", name):
            if not await self("VDI.get_is_a_snapshot", ref):
                return str(ref)
        raise AssertionError(f"no VDI {name}")

    async def finished(self, task: str) -> dict[str, Any]:
        """Wait until a task is completed and return its record."""
        token = ""
        while True:
            answer = await self("event.from", [f"task/{task}"], token, 30.0)
            token = answer["token"]
            for event in answer["events"]:
                if event["operation"] == "del":
                    raise AssertionError("the task is gone")
                if event["snapshot"]["status"] != "pending":
                    return dict(event["snapshot"])

    def close(self) -> None:
        self.session("close")()


@asynccontextmanager
async def small_lab(directory: Path, leaves: Collection[str] = ()) -> AsyncIterator[Lab]:
    """Give a lab of the small topology; what the test leaves on purpose is named by `leaves`."""
    async with Lab.start(directory, SMALL, seed=1, time_scale=FAST) as lab:
        yield lab
        await assert_whole(lab, (*OF_CLIENTS, *leaves))


@asynccontextmanager
async def logged_in(lab: Lab, pool: str = "prod", originator: str = "tests") -> AsyncIterator[Api]:
    api = Api(lab.pools[pool])
    try:
        await api.login(originator)
        yield api
    finally:
        api.close()
        lab.pools[pool].sessions.logout(api.ref)


async def until(holds: Callable[[], object]) -> None:
    """Wait until something is so that nothing announces."""
    async with asyncio.timeout(patience()):
        while True:
            if holds():
                return
            await asyncio.sleep(0.005)


class Wire:
    """A bare connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> str:
        """Return the next response's header."""
        return (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def response(self) -> tuple[str, bytes]:
        """Return header and body of a response with a length."""
        head = await self.head()
        lengths = [
            int(line.split(":")[1])
            for line in head.splitlines()
            if line.lower().startswith("content-length:")
        ]
        return head, await self.reader.readexactly(lengths[0])

    async def rest(self) -> bytes:
        """Return everything up to the end of the connection; a reset ends it as well."""
        parts = bytearray()
        with suppress(ConnectionError):
            while piece := await self.reader.read(1 << 20):
                parts += piece
        return bytes(parts)


@asynccontextmanager
async def wire(url: str, context: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
    """Open a bare connection to where a URL points."""
    split = urlsplit(url)
    reader, writer = await asyncio.open_connection(split.hostname, split.port, ssl=context)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def exchange(url: str, data: bytes) -> bytes:
    """Send bytes and return all that comes back until the server closes."""
    async with wire(url) as connection:
        with suppress(ConnectionError):
            await connection.send(data)
        return await connection.rest()


def post(body: bytes, path: str = "/", version: str = "1.1", extra: str = "") -> bytes:
    return (
        f"POST {path} HTTP/{version}\r\nHost: lab\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: text/xml\r\n{extra}\r\n"
    ).encode() + body


def put(path: str, body: bytes = b"", length: int | None = None, extra: str = "") -> bytes:
    size = "" if length == -1 else f"Content-Length: {len(body) if length is None else length}\r\n"
    return f"PUT {path} HTTP/1.1\r\nHost: lab\r\n{size}{extra}\r\n".encode() + body


def get(path: str, extra: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: lab\r\n{extra}\r\n".encode()


VM_RECORD: dict[str, Any] = {
    "name_label": "made",
    "user_version": "1",
    "is_a_template": False,
    "affinity": NULL,
    "memory_static_max": str(8 << 30),
    "memory_dynamic_max": str(8 << 30),
    "memory_dynamic_min": str(8 << 30),
    "memory_static_min": str(1 << 30),
    "VCPUs_params": {},
    "VCPUs_max": "2",
    "VCPUs_at_startup": "2",
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
}


def vdi_record(sr: str, size: int = 4 << 20, **fields: Any) -> dict[str, Any]:
    return {
        "SR": sr,
        "name_label": "made",
        "virtual_size": str(size),
        "type": "user",
        "sharable": False,
        "read_only": False,
        "other_config": {},
        **fields,
    }


def vbd_record(vm: str, vdi: str, **fields: Any) -> dict[str, Any]:
    return {
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


def vif_record(vm: str, network: str, **fields: Any) -> dict[str, Any]:
    return {
        "device": "1",
        "network": network,
        "VM": vm,
        "MAC": "",
        "MTU": "1500",
        "other_config": {},
        "qos_algorithm_type": "",
        "qos_algorithm_params": {},
        **fields,
    }
