"""What it costs to carry a disk from one pool to another: our CPU and memory beside curl's.

    python -m tests.bench.relay [--gib 2] [--rounds 1]

Both pools are a lab in a process of its own; only the process that carries is measured. It reads a
snapshot that is full of data (as an export or over NBD), hashes it, and writes it in extents. curl
does the same without looking at a byte: `curl export | curl --upload import`, raw.

The last line is one JSON object. The exit code is 1 when a goal is missed: in clear at most 0.3 of
curl's CPU seconds per GiB, under TLS at most 0.7, and 120 MiB of memory with 16 disks at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import urlencode

import uvloop
import XenAPI
from rich.console import Console
from rich.table import Table

from xorepd.config.models import PoolSettings
from xorepd.data.digest import Digest, Observed
from xorepd.data.http.chunked import open_chunked
from xorepd.data.http.export import open_export, read_map
from xorepd.data.nbd.exports import NbdExport
from xorepd.data.nbd.reader import NbdConnectionLimit, open_nbd_reader
from xorepd.data.reader import Reader
from xorepd.ids import Ref, VdiUuid
from xorepd.transports.direct import Direct
from xorepd.xapi.endpoints import DiskEndpoint
from xorepd.xapi.pool import Pool
from xorepd_lab.demo.stage import Stage

GIB: Final = 1 << 30
PLAIN_GOAL, TLS_GOAL = 0.3, 0.7
MEMORY_GOAL_MIB, AT_ONCE = 120, 16
STALL_S: Final = 300.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.relay")
    parser.add_argument(
        "--gib", type=int, choices=(1, 2), default=2, help="how much data the disk holds"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        uvloop.run(carry(json.loads(arguments.worker)))
        return 0
    with Stage() as stage:
        return measure(stage, arguments.gib, arguments.rounds)


# -- the one who measures -----------------------------------------------------------------------


def measure(stage: Stage, gib: int, rounds: int) -> int:
    stage.start_lab("--time-scale", "0.01")
    stage.guest("--disk", "1", "--sequential", "0", str(gib * GIB), "--seed", "1")
    bench = Bench(stage, gib)
    costs: dict[str, list[float]] = {}
    for _ in range(rounds):
        for tls in (False, True):
            for name in ("export", "nbd", "curl"):
                label = f"{name}, {'TLS' if tls else 'plain'}"
                print(f"{label} …", file=sys.stderr)
                costs.setdefault(label, []).append(bench.cpu_per_gib(name, tls))
    print("16 disks at once …", file=sys.stderr)
    memory = bench.peak_of_many()
    return report({label: statistics.median(each) for label, each in costs.items()}, memory)


def report(costs: dict[str, float], memory_mib: float) -> int:
    table = Table("WAY", "CPU s/GiB", "OF CURL'S", "GOAL", box=None, pad_edge=False)
    figures: dict[str, Any] = {"peak_mib_16_disks": round(memory_mib, 1)}
    good = memory_mib <= MEMORY_GOAL_MIB
    for label, cost in costs.items():
        goal = TLS_GOAL if label.endswith("TLS") else PLAIN_GOAL
        ratio = cost / costs["curl, " + label.split(", ")[1]]
        is_ours = not label.startswith("curl")
        good = good and (not is_ours or ratio <= goal)
        table.add_row(label, f"{cost:.2f}", f"{ratio:.2f}", f"{goal}" if is_ours else "")
        figures[label] = {"cpu_s_per_gib": round(cost, 3), "of_curl": round(ratio, 3)}
    Console().print(table)
    print(f"peak memory with {AT_ONCE} disks at once: {memory_mib:.1f} MiB")
    print(json.dumps({"good": good, **figures}))
    return 0 if good else 1


class Bench:
    """The disks that are carried, and the processes that carry them."""

    def __init__(self, stage: Stage, gib: int) -> None:
        self._stage, self._gib = stage, gib
        self._prod, self._dr = stage.pools["prod"], stage.pools["dr"]
        source, self._target = self._login(self._prod), self._login(self._dr)
        self._source = source
        vm = source.xenapi.VM.get_by_name_label("web01")[0]
        snapshot = source.xenapi.VM.snapshot(vm, "bench")
        disks = {
            source.xenapi.VBD.get_userdevice(vbd): source.xenapi.VBD.get_VDI(vbd)
            for vbd in source.xenapi.VM.get_VBDs(snapshot)
            if source.xenapi.VBD.get_type(vbd) == "Disk"
        }
        self._large, self._small = disks["1"], disks["0"]
        self._network = source.xenapi.PIF.get_network(
            next(
                ref for ref, pif in source.xenapi.PIF.get_all_records().items() if pif["management"]
            )
        )

        source.xenapi.network.remove_purpose(self._network, "nbd")  # each case sets its own

    @staticmethod
    def _login(pool: dict[str, Any]) -> Any:
        session = XenAPI.Session(pool["plain_url"])
        session.xenapi.login_with_password(pool["username"], pool["password"], "1.0", "bench")
        return session

    def cpu_per_gib(self, way: str, tls: bool) -> float:
        if way == "curl":
            return self._curl(tls)
        purpose = "nbd" if tls else "insecure_nbd"
        network = self._source.xenapi.network
        network.add_purpose(self._network, purpose)
        try:
            [result] = self._workers(way, tls, [self._large])
        finally:
            network.remove_purpose(self._network, purpose)
        return float(result["cpu_s"]) / (int(result["bytes"]) / GIB)

    def peak_of_many(self) -> float:
        network = self._source.xenapi.network
        network.add_purpose(self._network, "nbd")
        try:
            [result] = self._workers("nbd", True, [self._small] * AT_ONCE)
        finally:
            network.remove_purpose(self._network, "nbd")
        return float(result["peak_kib"]) / 1024

    def _workers(self, way: str, tls: bool, disks: list[str]) -> list[dict[str, Any]]:
        targets = [self._new_target(disk) for disk in disks]
        task = {
            "way": way,
            "tls": tls,
            "prod": self._prod,
            "dr": self._dr,
            "pairs": [
                [self._source.xenapi.VDI.get_uuid(disk), self._target.xenapi.VDI.get_uuid(target)]
                for disk, target in zip(disks, targets, strict=True)
            ],
        }
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tests.bench.relay", "--worker", json.dumps(task)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
        finally:
            for target in targets:
                self._target.xenapi.VDI.destroy(target)
        return [json.loads(done.stdout.splitlines()[-1])]

    def _new_target(self, disk: str) -> str:
        sr = self._target.xenapi.SR.get_by_uuid(self._dr["srs"][0]["uuid"])
        size = self._source.xenapi.VDI.get_virtual_size(disk)
        record = {
            "SR": sr,
            "virtual_size": size,
            "type": "user",
            "sharable": False,
            "read_only": False,
            "other_config": {},
        }
        return str(self._target.xenapi.VDI.create(record))

    def _curl(self, tls: bool) -> float:
        target = self._new_target(self._large)
        size = int(self._source.xenapi.VDI.get_virtual_size(self._large))
        urls = [
            self._url(self._prod, tls, "export_raw_vdi", self._source, self._large),
            self._url(self._dr, tls, "import_raw_vdi", self._target, target),
        ]
        common = ["curl", "--silent", "--show-error", "--fail"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        download = [*common, "--cacert", self._prod["ca_file"], urls[0]]
        length = ["-H", "Transfer-Encoding:", "-H", f"Content-Length: {size}"]
        upload = [*common, "--cacert", self._dr["ca_file"], *length, "--upload-file", "-", urls[1]]
        with subprocess.Popen(download, stdout=subprocess.PIPE) as down:
            up = subprocess.run(upload, stdin=down.stdout, check=False)
        assert down.returncode == 0, "curl could not export"
        assert up.returncode == 0, "curl could not import"
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._target.xenapi.VDI.destroy(target)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return spent / (size / GIB)

    @staticmethod
    def _url(pool: dict[str, Any], tls: bool, endpoint: str, session: Any, vdi: str) -> str:
        base = pool["url"] if tls else pool["plain_url"]
        query = {"session_id": session.handle, "vdi": vdi, "format": "raw"}
        return f"{base}/{endpoint}?{urlencode(query)}"


# -- the one who carries, in a process of its own -----------------------------------------------


async def carry(task: dict[str, Any]) -> None:
    pairs = task["pairs"]
    async with opened(task["prod"], task["tls"]) as prod, opened(task["dr"], task["tls"]) as dr:
        budget = NbdConnectionLimit(16)
        before = resource.getrusage(resource.RUSAGE_SELF)
        async with asyncio.TaskGroup() as group:
            copies = [
                group.create_task(copy(task, prod, dr, budget, VdiUuid(source), VdiUuid(target)))
                for source, target in pairs
            ]
        after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    moved = sum(each.result() for each in copies)
    print(json.dumps({"cpu_s": spent, "bytes": moved, "peak_kib": after.ru_maxrss}))


@asynccontextmanager
async def opened(pool: dict[str, Any], tls: bool) -> AsyncIterator[Pool]:
    settings = PoolSettings.model_validate(
        {
            "name": pool["name"],
            "url": pool["url"] if tls else pool["plain_url"],
            "username": pool["username"],
            "password": pool["password"],
            "ca_file": Path(pool["ca_file"]) if tls else None,
            "plaintext": not tls,
        }
    )
    async with Pool(settings, lambda: pool["password"]) as connected:
        await connected.refresh()
        yield connected


async def copy(
    task: dict[str, Any],
    prod: Pool,
    dr: Pool,
    budget: NbdConnectionLimit,
    source: VdiUuid,
    target: VdiUuid,
) -> int:
    """Carry one disk as a run of the daemon does; return how many bytes."""
    disk = next(vdi for vdi in prod.cache.vdis.values() if vdi.uuid == source)
    there = next(vdi for vdi in dr.cache.vdis.values() if vdi.uuid == target)
    endpoint = DiskEndpoint(prod, disk.sr)
    moved = 0

    def count(size: int) -> None:
        nonlocal moved
        moved += size

    async with AsyncExitStack() as stack:
        reader: Reader
        if task["way"] == "nbd":
            extents = await read_map(endpoint, source, what="map")
            exports = [
                NbdExport(
                    info["address"],
                    int(info["port"]),
                    info["exportname"],
                    info["cert"] if task["tls"] else "",
                    info["subject"],
                )
                for info in await prod.call("VDI.get_nbd_info", Ref(disk.ref))
            ]
            connections = 1 if len(task["pairs"]) > 1 else 2
            reader = await stack.enter_async_context(
                open_nbd_reader(
                    lambda: budget.connections(exports, connections, "NBD", stall=STALL_S),
                    disk.virtual_size,
                    extents,
                    "NBD",
                )
            )
        else:
            reader = await stack.enter_async_context(
                open_export(endpoint, source, base=None, what="export")
            )
        await Direct().carry(
            Observed(reader, Digest(), count),
            SimpleNamespace(
                open=lambda size, extents: open_chunked(
                    DiskEndpoint(dr, there.sr), target, fresh=True, what="import"
                )
            ),
        )
    return moved


if __name__ == "__main__":
    sys.exit(main())
