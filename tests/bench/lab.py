"""What the lab itself costs: streams in and out, NBD reads, and a pool of a thousand VMs.

    python -m tests.bench.lab [--gib 1] [--rounds 3]

The lab runs in a process of its own; its CPU seconds are what counts, since the client here takes
the other core. All cases are run once per round, the median is reported. A case with a goal that is
missed makes the exit code 1; the last line is one JSON object for programs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import shutil
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import XenAPI

from tests.bench.memory import cpu_seconds
from xorepd_lab.demo.stage import ended_by_signals
from xorepd_lab.lab import Lab
from xorepd_lab.topology import GIB, LARGE, DiskSpec, PoolSpec, SrSpec, Topology, VmSpec

FAST: Final = 0.002
PIECE: Final = 2 << 20
MAC: Final = "02:16:3e:00:00:01"


@dataclass
class Case:
    """One thing that is measured, with its goal in MB (10^6 bytes) per CPU second of the lab."""

    name: str
    run: Callable[[], int]
    goal: float | None = None
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    moved: int = 0

    @property
    def per_core(self) -> float:
        return self.moved / 1e6 / max(statistics.median(self.cpu_s), 0.001)

    @property
    def good(self) -> bool:
        return self.goal is None or self.per_core >= self.goal

    def summary(self) -> dict[str, Any]:
        return {
            "cpu_s_per_gib": round(statistics.median(self.cpu_s) * GIB / self.moved, 3),
            "mb_per_s_per_core": round(self.per_core),
            "mb_per_s_wall": round(self.moved / 1e6 / statistics.median(self.wall_s)),
            "goal": self.goal,
            "good": self.good,
        }


@dataclass
class Load:
    """How long a pool of many VMs takes to stand, and what it needs then."""

    name: str
    seconds: float
    cpu_s: float
    rss_mib: float

    GOAL_S: Final = 20.0
    GOAL_MIB: Final = 600.0

    @property
    def good(self) -> bool:
        return self.seconds < self.GOAL_S and self.rss_mib < self.GOAL_MIB


# -- the lab's side, in a process of its own ------------------------------------------------------


def bench_topology(gib: int) -> Topology:
    """Return one pool with one running VM, whose disk is going to be full of data."""
    size = gib * GIB
    guest = VmSpec("full", (DiskSpec("full", "store", size),), "lan", MAC, running_on="h1")
    pool = PoolSpec("bench", ("h1",), (SrSpec("store", "ext", ("h1",)),), ("lan",), (guest,))
    return Topology("bench", (pool,))


async def serve(state: Path, gib: int) -> None:
    """Run the lab until stdin closes; print one JSON line when it is ready."""
    async with Lab.start(state, bench_topology(gib), time_scale=FAST) as lab:
        await lab.guest_write("full", 0, sequential=(0, gib * GIB))
        pool = lab.pools["bench"]
        told = {
            "plain_url": pool.plain_url,
            "url": pool.url,
            "password": pool.password,
        }
        print(json.dumps(told), flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def load(state: Path) -> None:
    """Build or resume the large topology and print what that took."""
    began = time.monotonic()
    async with Lab.start(state, LARGE, time_scale=FAST) as lab:
        seconds, cpu_s = time.monotonic() - began, time.process_time()
        [pool] = lab.pools.values()
        session = XenAPI.Session(pool.plain_url)
        await asyncio.to_thread(session.login_with_password, pool.username, pool.password)
        vms = await asyncio.to_thread(session.xenapi_request, "VM.get_all", ())
        session("close")()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "rss_mib": peak, "vms": len(vms)}))


# -- the client's side ----------------------------------------------------------------------------


class Client:
    """Plain blocking requests, as cheap as they can be."""

    def __init__(self, told: dict[str, Any], gib: int, scratch: Path) -> None:
        self.told = told
        self.size = gib * GIB
        self.scratch = scratch
        self.session = XenAPI.Session(told["plain_url"])
        self.session.login_with_password("root", told["password"])
        api = self.session.xenapi
        self.full = api.VDI.get_by_name_label("full")[0]
        self.sr = api.SR.get_by_name_label("store")[0]
        self.noise = os.urandom(PIECE)

    @contextlib.contextmanager
    def connected(self, tls: bool) -> Iterator[socket.socket]:
        split = urlsplit(self.told["url" if tls else "plain_url"])
        with socket.create_connection((split.hostname, split.port)) as plain:
            if not tls:
                yield plain
                return
            with _client_context().wrap_socket(plain) as wrapped:
                yield wrapped

    def export(self, form: str, tls: bool = False, keep: Path | None = None) -> int:
        """Read the full disk and return how many bytes came."""
        path = f"/export_raw_vdi?session_id={self.session.handle}&vdi={self.full}&format={form}"
        moved = 0
        with self.connected(tls) as connection, contextlib.ExitStack() as stack:
            out = stack.enter_context(keep.open("wb")) if keep else None
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(1)
            buffer = bytearray(PIECE)
            flags = 0 if tls or out else socket.MSG_TRUNC
            while count := connection.recv_into(buffer, PIECE, flags):
                moved += count
                if out:
                    out.write(memoryview(buffer)[:count])
        assert moved >= self.size
        return moved

    def read_nbd(self, tls: bool = False) -> int:
        """Read the full disk over NBD, two requests of 2 MiB under way, and return its size."""
        with self._nbd(tls) as connection:
            offsets = range(0, self.size, PIECE)
            for offset in offsets[:2]:
                connection.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, offset, offset, PIECE))
            buffer = bytearray(PIECE)
            flags = 0 if tls else socket.MSG_TRUNC
            for number in range(len(offsets)):
                if number + 2 < len(offsets):
                    ahead = offsets[number + 2]
                    request = struct.pack(">IHHQQI", 0x25609513, 0, 0, ahead, ahead, PIECE)
                    connection.sendall(request)
                magic, error, _ = struct.unpack(">IIQ", _exactly(connection, 16))
                assert (magic, error) == (0x67446698, 0)
                left = PIECE
                while left:
                    left -= connection.recv_into(buffer, left, flags)
            connection.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
        return self.size

    @contextlib.contextmanager
    def _nbd(self, tls: bool) -> Iterator[socket.socket]:
        api = self.session.xenapi
        [network] = api.network.get_all()
        purpose = "nbd" if tls else "insecure_nbd"
        api.network.add_purpose(network, purpose)
        try:
            info = api.VDI.get_nbd_info(self.full)[0]
            connection = socket.create_connection((info["address"], int(info["port"])))
            with contextlib.closing(connection):
                assert _exactly(connection, 16) == b"NBDMAGICIHAVEOPT"
                assert _exactly(connection, 2)
                connection.sendall(struct.pack(">I", 1))
                if tls:
                    connection.sendall(struct.pack(">8sII", b"IHAVEOPT", 5, 0))
                    assert struct.unpack(">QIII", _exactly(connection, 20))[2] == 1
                    connection = _client_context().wrap_socket(connection)
                name = info["exportname"].encode()
                connection.sendall(struct.pack(">8sII", b"IHAVEOPT", 1, len(name)) + name)
                size, _ = struct.unpack(">QH", _exactly(connection, 10))
                _exactly(connection, 124)
                assert size == self.size
                yield connection
                connection.close()
        finally:
            api.network.remove_purpose(network, purpose)

    def import_vhd(self, tls: bool = False) -> int:
        stream = self.scratch / "full.vhd"
        if not stream.exists():
            self.export("vhd", keep=stream)
        length = stream.stat().st_size
        with stream.open("rb") as file:
            return self._import("vhd", "", length, lambda to: to.sendfile(file), tls)

    def import_raw(self, tls: bool = False) -> int:
        def send(to: socket.socket) -> None:
            for _ in range(self.size // PIECE):
                to.sendall(self.noise)

        return self._import("raw", "", self.size, send, tls)

    def import_chunked(self, tls: bool = False) -> int:
        def send(to: socket.socket) -> None:
            for offset in range(0, self.size, PIECE):
                to.sendall(struct.pack("<QI", offset, PIECE))
                to.sendall(self.noise)
            to.sendall(bytes(12))

        return self._import("raw", "&chunked=1", None, send, tls)

    def _import(
        self,
        form: str,
        more: str,
        length: int | None,
        send: Callable[[socket.socket], Any],
        tls: bool,
    ) -> int:
        api = self.session.xenapi
        vdi = api.VDI.create(
            {
                "SR": self.sr,
                "name_label": "imported",
                "virtual_size": str(self.size),
                "type": "user",
                "sharable": False,
                "read_only": False,
                "other_config": {},
            }
        )
        task = api.task.create("bench", "")
        path = (
            f"/import_raw_vdi?session_id={self.session.handle}&vdi={vdi}&task_id={task}"
            f"&format={form}{more}"
        )
        said = "" if length is None else f"Content-Length: {length}\r\n"
        try:
            with self.connected(tls) as connection:
                connection.sendall(f"PUT {path} HTTP/1.1\r\nHost: lab\r\n{said}\r\n".encode())
                send(connection)
                while connection.recv(PIECE):
                    pass
            assert api.task.get_status(task) == "success", api.task.get_error_info(task)
        finally:
            api.task.destroy(task)
            api.VDI.destroy(vdi)
        return self.size


def _client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _exactly(connection: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        piece = connection.recv(length - len(parts))
        assert piece, "the server closed the connection"
        parts += piece
    return bytes(parts)


def measure(gib: int, rounds: int) -> list[Case]:
    """Run all cases of streams against a lab in another process."""
    with tempfile.TemporaryDirectory(prefix="bench-lab-") as directory:
        scratch = Path(directory)
        arguments = ["--serve", str(scratch / "state"), "--gib", str(gib)]
        lab = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.lab", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert lab.stdin is not None
        assert lab.stdout is not None
        try:
            client = Client(json.loads(lab.stdout.readline()), gib, scratch)
            cases = [
                Case("export vhd", lambda: client.export("vhd"), goal=600),
                Case("export raw", lambda: client.export("raw"), goal=600),
                Case("export vhd, TLS", lambda: client.export("vhd", tls=True)),
                Case("NBD read", client.read_nbd, goal=400),
                Case("NBD read, TLS", lambda: client.read_nbd(tls=True), goal=400),
                Case("import vhd", client.import_vhd),
                Case("import raw", client.import_raw),
                Case("import chunked raw", client.import_chunked),
                Case("import vhd, TLS", lambda: client.import_vhd(tls=True)),
            ]
            client.import_vhd()  # makes the file it sends
            for _ in range(rounds):
                for case in cases:
                    cpu, wall = cpu_seconds(lab.pid), time.monotonic()
                    case.moved = case.run()
                    case.wall_s.append(time.monotonic() - wall)
                    case.cpu_s.append(cpu_seconds(lab.pid) - cpu)
        finally:
            lab.stdin.close()
            lab.wait()
    return cases


def measure_loads() -> list[Load]:
    """Build the large topology, then resume it."""
    state = Path(tempfile.mkdtemp(prefix="bench-lab-"))
    try:
        found = []
        for name in ("1,000 VMs, built", "1,000 VMs, resumed"):
            command = [sys.executable, "-m", "tests.bench.lab", "--load", str(state)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            told = json.loads(done.stdout)
            assert told["vms"] >= 1000
            found.append(Load(name, told["seconds"], told["cpu_s"], told["rss_mib"]))
        return found
    finally:
        shutil.rmtree(state, ignore_errors=True)


def report(cases: list[Case], loads: list[Load]) -> bool:
    """Print the table and the line for programs; say whether all goals hold."""
    print(f"{'':22}{'CPU s/GiB':>10}{'MB/s core':>11}{'MB/s wall':>11}{'goal':>7}")
    for case in cases:
        facts = case.summary()
        goal = f"{case.goal:.0f}" if case.goal else ""
        print(
            f"{case.name:22}{facts['cpu_s_per_gib']:>10.2f}{facts['mb_per_s_per_core']:>11}"
            f"{facts['mb_per_s_wall']:>11}{goal:>7}{'' if case.good else '  MISSED'}"
        )
    for each in loads:
        goal = f"goal {Load.GOAL_S:.0f} s, {Load.GOAL_MIB:.0f} MiB"
        print(
            f"{each.name:22}{each.seconds:>8.1f} s ({each.cpu_s:.1f} of CPU)"
            f"{each.rss_mib:>7.0f} MiB   {goal}{'' if each.good else '  MISSED'}"
        )
    good = all(case.good for case in cases) and all(load.good for load in loads)
    facts = {case.name: case.summary() for case in cases}
    facts |= {
        each.name: {
            "seconds": round(each.seconds, 1),
            "cpu_s": round(each.cpu_s, 1),
            "rss_mib": round(each.rss_mib),
            "good": each.good,
        }
        for each in loads
    }
    print(json.dumps({"good": good, **facts}))
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lab")
    parser.add_argument("--gib", type=int, default=1, help="data per stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("streams", "loads"))
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve, options.gib))
        return 0
    if options.load:
        asyncio.run(load(options.load))
        return 0
    with ended_by_signals():
        cases = measure(options.gib, options.rounds) if options.only != "loads" else []
        loads = measure_loads() if options.only != "streams" else []
    return 0 if report(cases, loads) else 1


if __name__ == "__main__":
    sys.exit(main())
