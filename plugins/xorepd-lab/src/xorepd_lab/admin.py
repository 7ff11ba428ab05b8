"""The lab's admin socket: a Unix socket over which its command line talks to a running lab.

One JSON object per line in each direction: `{"command": "write", ...}` and `{"ok": true, ...}` or
`{"ok": false, "error": "..."}`.
"""

import asyncio
import json
import socket
from dataclasses import asdict
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from zlib import crc32

import structlog

from xorepd_lab import fsck
from xorepd_lab.faults.faults import Fault, parse_incident
from xorepd_lab.guests.workload import GuestError
from xorepd_lab.lab import Lab
from xorepd_lab.model.failures import ApiError

LONGEST_PATH = 100
"""A Unix socket's address holds 108 bytes."""
LONGEST_LINE = 1 << 20

log = structlog.get_logger("xorepd_lab")


class AdminError(Exception):
    """The running lab could not do it, or there is none."""


class NotRunning(AdminError):
    """There is none."""


def socket_path(state: Path) -> Path:
    """Return where the socket of a lab is; a short place when the directory's path is long."""
    path = state.resolve() / "admin.sock"
    if len(str(path).encode()) <= LONGEST_PATH:
        return path
    return Path(gettempdir()) / f"xorepd-lab-{crc32(str(path).encode()):08x}.sock"


class Admin:
    """Serves the socket."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.path = socket_path(lab.directory)

    async def serve(self) -> asyncio.Server:
        self.path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._accept, self.path, limit=LONGEST_LINE)
        self.path.chmod(0o600)
        return server

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lab.spawn(self._talk(reader, writer), "admin")

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as error:
            # A line beyond the limit is a ValueError; what follows it could be read as anything.
            log.info("admin.closed", error=str(error))
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("a request is a JSON object")
            return {"ok": True, **await self._obey(request)}
        except (ValueError, TypeError, LookupError, OSError, ApiError, GuestError) as error:
            return {"ok": False, "error": str(error)}

    async def _obey(self, request: dict[str, Any]) -> dict[str, Any]:
        lab = self._lab
        match request.pop("command", None):
            case "write":
                return await self._write(**request)
            case "read":
                content = await lab.guest_read(**request)
                return {"content": content.decode(errors="replace")}
            case "fault-add":
                fault = lab.faults.add(Fault.from_json(request))
                return {"fault": describe(fault)}
            case "fault-list":
                return {"faults": [describe(fault) for fault in lab.faults]}
            case "fault-clear":
                lab.faults.clear()
                return {}
            case "fault-release":
                for fault in lab.faults:
                    fault.release()
                return {}
            case "incident":
                await lab.happen(parse_incident(request))
                return {}
            case "calls":
                shown = [
                    [c.pool, c.host, c.kind, c.name, c.outcome, c.originator] for c in lab.calls
                ]
                return {"calls": shown[-int(request.get("last", 100)) :]}
            case "fsck":
                return {"problems": [asdict(problem) for problem in await fsck.check(lab)]}
            case other:
                raise ValueError(f"no command {other!r}")

    async def _write(self, **request: Any) -> dict[str, Any]:
        for name in ("sequential", "trim", "within"):
            if request.get(name):
                request[name] = tuple(request[name])
        files = request.pop("files", None)
        if files:
            request["files"] = {name: text.encode() for name, text in files.items()}
        return {"written": await self._lab.guest_write(**request)}


def describe(fault: Fault) -> dict[str, Any]:
    return {**fault.to_json(), "seen": fault.seen, "fired": fault.fired}


def ask(state: Path, command: str, **request: Any) -> dict[str, Any]:
    """Send one command to the lab that runs on a directory and return its answer.

    Raises:
        AdminError: No lab runs there, or it refused.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(socket_path(state)))
        except OSError as error:
            raise NotRunning(f"no lab is running on {state}: {error}") from error
        connection.sendall(json.dumps({"command": command, **request}).encode() + b"\n")
        with connection.makefile("rb") as stream:
            line = stream.readline()
    if not line:
        raise AdminError("the lab closed the connection without an answer")
    answer: dict[str, Any] = json.loads(line)
    if not answer.pop("ok"):
        raise AdminError(str(answer["error"]))
    return answer
