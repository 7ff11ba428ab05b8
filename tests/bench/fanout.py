"""What a slow target costs a fast one: a job to both, beside a job to the fast one alone.

    python -m tests.bench.fanout [--rounds 5] [--mib 24]

Four VMs of four disks each; in each round the guests write to all sixteen, then two jobs of one
real daemon replicate them, in turns first: `alone` to the fast target, `both` to the fast one and
to a slow one. Both targets keep to a rate, 40 MB/s and a tenth of it, with the transport
`throttled`: what is measured is whether the fast one waits for anybody, rather than how two
targets share the CPUs of the machine that they run on together with the lab.

    fast   from the first VM's start to the last restore point on the fast target
    read   bytes that the source pool sent, as it counted them, until then
    CPU    seconds of the daemon until then

The slow target keeps its rate until the fast one is done; then it is let go, so that a round ends.
At the end libvhdi compares every newest restore point with its source snapshot. The last line is
one JSON object; the exit code is 1 when the fast target took more than 5 % longer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.bench.guests import DISK_SIZE, DISKS, source_pool
from tests.bench.memory import cpu_seconds
from tests.bench.served import ServedLab, pool_table, serve
from xorepd_lab.demo.proof import DISK, ProofError, disks_of, hashes, hold_files_still, login
from xorepd_lab.demo.stage import Stage, StageError
from xorepd_lab.lab import Lab
from xorepd_lab.topology import PoolSpec, SrSpec, Topology

MIB: Final = 1 << 20
VMS: Final = ("app01", "app02", "db01", "web01")
ROADS: Final = {("nbd", "read"), ("export", "vhd"), ("export", "raw")}
"""What the lab counts the bytes of a disk as that it gives."""
PLACES: Final = 2
"""Where the guests write, in turns: a round's data is not that of the round before."""
FAST_RATE: Final = 40_000_000
SLOW_RATE: Final = FAST_RATE // 10
"""Bytes per second."""
GOAL: Final = 1.05
JOBS: Final = ("alone", "both")

Records = dict[tuple[str, str], dict[str, Any]]
"""How each VM stands, by target pool and name."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fanout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--mib", type=int, default=24, help="written to each disk in a round, at most 32"
    )
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve, topology(), obey))
        return 0
    with Targets() as stage:
        try:
            return measure(stage, arguments.rounds, arguments.mib)
        except (StageError, ProofError) as error:
            print(error, file=sys.stderr)
            return 1


# -- the pools, in a process of their own ---------------------------------------------------------


def topology() -> Topology:
    """Return three pools; the disks are empty, so that each byte that moves was changed."""
    near = tuple(SrSpec(name, "ext", ("h2",)) for name in JOBS)
    far = (SrSpec("far", "ext", ("h3",)),)
    return Topology(
        "fanout",
        (
            source_pool(VMS),
            PoolSpec("fast", ("h2",), near, ("lan",)),
            PoolSpec("slow", ("h3",), far, ("lan",)),
        ),
        job=("prod", VMS[0], "fast", "both"),
    )


async def obey(lab: Lab, request: dict[str, Any]) -> Any:
    match request["command"]:
        case "write":
            for vm in VMS:
                for disk in range(DISKS):
                    where = (request["offset"], request["length"])
                    await lab.guest_write(vm, disk, sequential=where, seed=request["seed"])
            return None
        case "read":
            return sum(
                call.moved
                for call in lab.calls
                if call.pool == "prod" and (call.kind, call.name) in ROADS
            )
        case "settle":
            return await lab.settled()
        case other:
            raise ValueError(f"no command {other!r}")


class Targets(Stage):
    """The stage of the demo, with these pools and a daemon of two jobs."""

    served: ServedLab

    def start(self) -> None:
        state = self.directory / "lab"
        self.served = ServedLab(
            "tests.bench.fanout", "--serve", str(state), log=self._log("lab.log")
        )
        self.lab = self.served.process
        self.pools = {pool["name"]: pool for pool in self.served.pools}
        self.environment["XOREPD_SOCKET"] = str(self.directory / "control.sock")
        config = self.directory / "xorepd.toml"
        config.touch(mode=0o600)
        config.write_text(self._configuration(state))
        self.start_daemon(config)

    def _configuration(self, state: Path) -> str:
        text = f'[daemon]\nstate_dir = "{state}/daemon"\nsocket = "{self.socket}"\n'
        text += "".join(pool_table(pool, state) for pool in self.pools.values())
        for job in JOBS:
            targets = [target("fast", job, FAST_RATE)]
            if job == "both":
                targets.append(target("slow", "far", SLOW_RATE))
            text += (
                f'[jobs.{job}]\nsource = "prod"\nvms = {json.dumps(VMS)}\nkeep = 2\n'
                f'verify = "off"\nchanged_blocks = "enable"\ntargets = [{", ".join(targets)}]\n'
                'source_reserve = "0B"\ntarget_reserve = "0B"\n'
            )
        return text


def target(pool: str, sr: str, rate: int) -> str:
    """Return one target of a job, with a link of its own."""
    carried = f'name = "throttled", link = "{sr}", rate = "{rate * 8 // 1_000_000}Mbit/s"'
    return f'{{ pool = "{pool}", sr = "{sr}", transport = {{ {carried} }} }}'


# -- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one job took until the fast target had all its restore points."""

    fast_s: float
    read: int
    moved: int
    """Bytes of disks that the fast target took."""
    slow_moved: int
    """Bytes that the slow one had taken by then."""
    cpu_s: float


def measure(stage: Targets, rounds: int, mib: int) -> int:
    began = time.monotonic()
    stage.start()
    costs: dict[str, list[Cost]] = {job: [] for job in JOBS}
    for job in JOBS:
        say(f"the first run of {job} …")
        run(stage, job)
    for number in range(rounds):
        where = {"offset": number % PLACES * DISK_SIZE // PLACES, "length": mib * MIB}
        stage.served.ask("write", **where, seed=number)
        for job in JOBS if number % 2 else reversed(JOBS):
            say(f"round {number + 1} of {rounds}: {job} …")
            costs[job].append(run(stage, job))
            say(f"    {costs[job][-1].fast_s:.1f} s")
    say("libvhdi reads the source and all replicas …")
    prove(stage)
    return report(costs, time.monotonic() - began)


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def run(stage: Targets, job: str) -> Cost:
    """Run a job to its end, and let the slow target go when the fast one is done.

    Raises:
        StageError: a VM failed on one of the targets.
    """
    assert stage.daemon is not None
    read, cpu = stage.served.ask("read"), cpu_seconds(stage.daemon.pid)
    run_id = stage.ctl("run", job)["run_id"]
    records: Records = {}
    for record in stage.events(run_id):
        records[record["target"], record["vm_name"]] = record
        if len(finished_on(records, "fast")) == len(VMS):
            break
    read, cpu = stage.served.ask("read") - read, cpu_seconds(stage.daemon.pid) - cpu
    slow_moved = moved(records, "slow")
    if job == "both":
        stage.ctl("throttle", "far", "unlimited")
        for _ in stage.events(run_id):
            pass
        stage.ctl("throttle", "far", "auto")
    shown = stage.ctl("show", run_id)["records"]
    for record in shown:
        if record["error"]:
            raise StageError(f"{job}: {record['vm_name']} to {record['target']}: {record['error']}")
    records = {(record["target"], record["vm_name"]): record for record in shown}
    if len(records) != len(VMS) * (2 if job == "both" else 1):
        raise StageError(f"{job}: only {len(records)} replicas were made")
    done = finished_on(records, "fast")
    began = min(datetime.fromisoformat(record["started_at"]) for record in done)
    ended = max(datetime.fromisoformat(record["finished_at"]) for record in done)
    return Cost((ended - began).total_seconds(), read, moved(records, "fast"), slow_moved, cpu)


def finished_on(records: Records, pool: str) -> list[dict[str, Any]]:
    """Return the records of a target's VMs that have ended."""
    return [
        record
        for (target, _), record in records.items()
        if target == pool and record["finished_at"]
    ]


def moved(records: Records, pool: str) -> int:
    return sum(record["read_bytes"] for (name, _), record in records.items() if name == pool)


def prove(stage: Targets) -> None:
    """Have libvhdi compare every newest restore point with its source snapshot.

    Raises:
        ProofError: one of them differs.
    """
    for pool in stage.pools.values():
        hold_files_still(pool)
    stage.served.ask("settle")
    prod = stage.pools["prod"]
    pairs: list[tuple[DISK, DISK]] = []
    with login(prod) as source:
        for name in ("fast", "slow"):
            pool = stage.pools[name]
            with login(pool) as xenapi:
                for mark in newest_points(xenapi):
                    theirs = disks_of(prod, source, mark["snapshot"])
                    ours = disks_of(pool, xenapi, mark["self"])
                    pairs += [(theirs[device], ours[device]) for device in theirs]
    if len(pairs) != 3 * len(VMS) * DISKS:
        raise ProofError(f"{len(pairs)} disks of replicas are there")
    disks = sorted({disk for pair in pairs for disk in pair})
    found = dict(zip(disks, hashes(disks), strict=True))
    differ = [ours for theirs, ours in pairs if found[theirs] != found[ours]]
    if differ:
        raise ProofError(f"{len(differ)} disks of replicas differ from their source: {differ}")


def newest_points(xenapi: Any) -> list[dict[str, Any]]:
    """Return the marks of the newest restore point of each VM on each SR."""
    points: dict[str, dict[str, Any]] = {}
    for vm in xenapi.VM.get_all_records().values():
        mark = json.loads(vm["other_config"].get("xorepd:mark", "{}"))
        is_point = vm["is_a_snapshot"] and mark.get("role") == "point"
        if is_point and mark["self"] == vm["uuid"]:
            stream = json.dumps(mark["stream"])
            if stream not in points or points[stream]["order"] < mark["order"]:
                points[stream] = mark
    return list(points.values())


def report(costs: dict[str, list[Cost]], seconds: float) -> int:
    table = Table("JOB", box=None, pad_edge=False)
    names = ("FAST s", "EACH", "READ MiB", "FAST MiB", "SLOW MiB", "CPU s")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for job, each in costs.items():
        table.add_row(
            job,
            f"{median(each, 'fast_s'):.2f}",
            " ".join(f"{cost.fast_s:.1f}" for cost in each),
            *(f"{median(each, size) / MIB:.1f}" for size in ("read", "moved", "slow_moved")),
            f"{median(each, 'cpu_s'):.2f}",
        )
    Console(width=110).print(table)
    ratio = median(costs["both"], "fast_s") / median(costs["alone"], "fast_s")
    good = ratio <= GOAL
    print(
        f"medians; the fast target takes {ratio:.3f} of its time alone; libvhdi reads the same from"
        f" every source and replica; {seconds:.0f} s in all"
    )
    if not good:
        print(f"MISSED the fast target takes {ratio:.3f} of its time alone, not {GOAL}")
    facts = {job: [asdict(cost) for cost in each] for job, each in costs.items()}
    print(json.dumps({"good": good, "ratio": round(ratio, 3), "jobs": facts}))
    return 0 if good else 1


def median(costs: Sequence[Cost], name: str) -> float:
    return float(statistics.median(getattr(cost, name) for cost in costs))


if __name__ == "__main__":
    sys.exit(main())
