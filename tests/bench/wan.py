"""What a thin, long link costs: `compressed` beside `direct`, on the files of an installed system.

    python -m tests.bench.wan [--mib 2048] [--tree DIRECTORY]

    near: source pool, daemon ──── 100 Mbit/s, 80 ms round trip ──── far: target pool, relay

Two jobs of one real daemon replicate the same disk over a link made of network namespaces (see
`tests.bench.network`): one with the transport `direct`, one through `xorepd relay`. Everything
passes the link: calls of XAPI, disks, the relay's connection. First each sends the disk whole, then
the guest installs the files that were held back, and each sends what that changed.

    transfer  the step of the run in which the disk travels
    link      bytes that left the near side in the whole run, with every packet's headers
    busy      the share of what the link could have carried during the transfer that it did carry

At the end libvhdi reads source and replicas, which must be equal. The last line is one JSON object;
the exit code is 1 when a goal is missed, or when the link cannot be made. Needs root.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.bench.far_apart import JOBS, FarApart
from tests.bench.installed import Installed, InstalledError, lay_out, make_image
from tests.bench.memory import cpu_seconds
from tests.bench.network import Link, NetworkError, open_link
from xorepd_lab.demo.proof import DISK, ProofError, disks_of, hashes, hold_files_still, login
from xorepd_lab.demo.stage import StageError

MIB, GIB = 1 << 20, 1 << 30
BITS_PER_S: Final = 100_000_000
ROUND_TRIP_S: Final = 0.08

GOODPUT_GOAL: Final = 0.94
"""Share of its rate that the link gives to one bulk connection, or this is no such link."""
FASTER_GOAL: Final = 3.0
BUSY_GOAL: Final = 0.9


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.wan")
    parser.add_argument("--mib", type=int, default=2048, help="how much of the system is taken")
    parser.add_argument("--tree", type=Path, help="an installed system; else this machine's")
    arguments = parser.parse_args()
    with FarApart() as stage:
        try:
            stage.need(8 * arguments.mib * MIB)
            return measure(stage, arguments.tree, arguments.mib)
        except (StageError, ProofError, NetworkError, InstalledError) as error:
            print(error, file=sys.stderr)
            return 1


@dataclass(frozen=True)
class Cost:
    """What one run took: seconds, and bytes with every packet's headers."""

    seconds: float
    transfer_s: float
    moved: int
    """Bytes of the disk that the run carried."""
    sent: int
    """Bytes over the link, near to far, in the whole run."""
    returned: int
    """The same, far to near."""
    busy: float
    daemon_s: float
    """CPU seconds of the daemon, and of the relay."""
    relay_s: float


@dataclass
class Measured:
    goodput: float
    """Of one bulk connection, as a share of the link's rate."""
    round_trip_ms: float
    runs: dict[str, dict[str, Cost]] = field(default_factory=dict)
    """By what was sent, then by job."""

    @property
    def times_faster(self) -> float:
        full = self.runs["full"]
        return full["direct"].seconds / full["compressed"].seconds

    def missed(self) -> Iterator[str]:
        if self.goodput < GOODPUT_GOAL:
            yield f"the link: {self.goodput:.3f} of its rate in one connection, not {GOODPUT_GOAL}"
        if self.times_faster < FASTER_GOAL:
            yield f"full: {self.times_faster:.2f} times as fast as direct, not {FASTER_GOAL:g}"
        busy = self.runs["full"]["compressed"].busy
        if busy < BUSY_GOAL:
            yield f"full, compressed: the link is {busy:.0%} busy, not {BUSY_GOAL:.0%}"

    def summary(self) -> dict[str, Any]:
        return {
            "goodput": round(self.goodput, 3),
            "round_trip_ms": round(self.round_trip_ms, 1),
            "times_faster": round(self.times_faster, 2),
            **{
                what: {job: asdict(cost) for job, cost in jobs.items()}
                for what, jobs in self.runs.items()
            },
        }


def measure(stage: FarApart, tree: Path | None, mib: int) -> int:
    began = time.monotonic()
    with ExitStack() as stack:
        link = stack.enter_context(open_link(BITS_PER_S, ROUND_TRIP_S))
        say("the link by itself …")
        measured = Measured(
            link.measured_rate() * 8 / BITS_PER_S, link.measured_round_trip() * 1000
        )
        say("the disk …")
        installed, image = make_disk(stage.directory, tree, mib)
        stack.enter_context(link.near.entered())
        stack.callback(stage.stop)  # while the link is there: the daemon says goodbye to both pools
        stage.start(link, image)
        image.unlink()
        measured.runs["full"] = run_each(stage, link, "full")
        stage.near.ask("install", files=installed.later)
        measured.runs["delta"] = run_each(stage, link, "delta")
        say("libvhdi reads the source and both replicas …")
        prove(stage)
    missed = list(measured.missed())
    return report(measured, missed, time.monotonic() - began)


def make_disk(directory: Path, tree: Path | None, mib: int) -> tuple[Installed, Path]:
    """Return what is installed, and the image of a disk a quarter larger."""
    installed = lay_out(directory / "tree", tree, mib)
    image = directory / "system.ext4"
    make_image(installed.tree, image, -(-installed.size * 5 // 4 // GIB) * GIB)
    shutil.rmtree(installed.tree)
    return installed, image


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def run_each(stage: FarApart, link: Link, what: str) -> dict[str, Cost]:
    costs = {}
    for job in JOBS:
        say(f"{what}: {job} …")
        costs[job] = run(stage, link, job, what)
        say(f"    {costs[job].seconds:.1f} s")
    return costs


def run(stage: FarApart, link: Link, job: str, what: str) -> Cost:
    """Run a job and follow its steps.

    Raises:
        StageError: it failed, or did not send a full or delta as it should.
    """
    busy_s = [cpu_seconds(process.pid) if process else 0.0 for process in stage.workers]
    sent, returned = link.near.sent(), link.far.sent()
    steps: dict[str, tuple[float, int]] = {}
    """When the run was first seen in each of its steps, and what had been sent by then."""
    for record in stage.events(stage.ctl("run", job)["run_id"]):
        if record["step"] not in steps:
            steps[record["step"]] = time.monotonic(), link.near.sent()
    [record] = stage.ctl("history", "--limit", "1")["records"]
    if record["outcome"] != what:
        raise StageError(f"{job} is {record['outcome']}: {record['error']}")
    began, ended = (datetime.fromisoformat(record[key]) for key in ("started_at", "finished_at"))
    (start, sent_before), (end, sent_after) = steps["transfer"], steps["commit"]
    carried = (sent_after - sent_before) * 8
    daemon_s, relay_s = (
        cpu_seconds(process.pid) - before if process else 0.0
        for process, before in zip(stage.workers, busy_s, strict=True)
    )
    return Cost(
        seconds=round((ended - began).total_seconds(), 2),
        transfer_s=round(end - start, 2),
        moved=record["read_bytes"],
        sent=link.near.sent() - sent,
        returned=link.far.sent() - returned,
        busy=round(carried / (end - start) / link.bits_per_s, 4),
        daemon_s=round(daemon_s, 2),
        relay_s=round(relay_s, 2),
    )


def prove(stage: FarApart) -> None:
    """Have libvhdi compare each job's newest restore point with the source.

    Raises:
        ProofError: one of them differs.
    """
    near, far = stage.pools["near"], stage.pools["far"]
    for pool in (near, far):
        hold_files_still(pool)
    stage.near.ask("settle")
    read: list[DISK] = []
    with login(near) as source, login(far) as target:
        for record in stage.ctl("history", "--limit", str(len(JOBS)))["records"]:
            point = record["restore_point"]
            read += disks_of(far, target, point).values()
        config = target.VM.get_other_config(target.VM.get_by_uuid(point))
        mark = json.loads(config["xorepd:mark"])
        read += disks_of(near, source, mark["snapshot"]).values()
    found = hashes(read)
    if len(found) != len(JOBS) + 1 or len(set(found)) != 1:
        raise ProofError(f"source and replicas differ: {found}")


def report(measured: Measured, missed: list[str], seconds: float) -> int:
    names = ("s", "TRANSFER s", "DISK MiB", "LINK MiB", "BACK MiB", "BUSY", "DAEMON s", "RELAY s")
    table = Table("SENT", "JOB", box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for what, jobs in measured.runs.items():
        for job, cost in jobs.items():
            table.add_row(
                what,
                job,
                f"{cost.seconds:.1f}",
                f"{cost.transfer_s:.1f}",
                *(f"{size / MIB:.1f}" for size in (cost.moved, cost.sent, cost.returned)),
                f"{cost.busy:.1%}",
                f"{cost.daemon_s:.1f}",
                f"{cost.relay_s:.1f}",
            )
    Console(width=110).print(table)
    print(
        f"one bulk connection gets {measured.goodput:.1%} of {BITS_PER_S / 1e6:.0f} Mbit/s, a round"
        f" trip takes {measured.round_trip_ms:.1f} ms; compressed is {measured.times_faster:.2f}"
        f" times as fast; libvhdi reads the same from source and replicas; {seconds:.0f} s in all"
    )
    for line in missed:
        print(f"MISSED {line}")
    print(json.dumps({"good": not missed, "seconds": round(seconds), **measured.summary()}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
