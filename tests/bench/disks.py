"""Peak memory of the daemon with many disks in transfer at once, under a small and a large budget.

    python -m tests.bench.disks [--vms 16] [--mib 12] [--budgets 16MiB 64MiB 64GiB]

A VM has four disks, and all VMs are begun at once. For each budget a new daemon sends all of them
whole to a target of its own, over NBD with TLS, and reads a sample back. The lab runs on the same
machine, so seconds tell what waiting for memory costs there, and not what it costs elsewhere.

    at rest  resident size of the daemon before the run
    peak     its largest resident size in the run
    above    what the run has added

What waits in sockets belongs to the kernel and is in none of them. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.bench.guests import DISKS, source_pool
from tests.bench.memory import cpu_seconds, peak
from tests.bench.served import ServedLab, pool_table, serve
from xorepd_lab.demo.stage import Stage, StageError
from xorepd_lab.lab import Lab
from xorepd_lab.topology import PoolSpec, SrSpec, Topology

MIB: Final = 1 << 20
BUDGETS: Final = ("16MiB", "64MiB", "64GiB")
MOST_VMS: Final = 64


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.disks")
    parser.add_argument("--vms", type=int, default=16, help=f"of four disks, at most {MOST_VMS}")
    parser.add_argument("--mib", type=int, default=12, help="written to each disk, at most 64")
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, help="[daemon] memory")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        budgets = len(arguments.budgets)
        asyncio.run(serve(arguments.serve, topology(arguments.vms, budgets), obey))
        return 0
    with ManyDisks() as stage:
        try:
            costs = measure(stage, arguments.vms, arguments.mib, arguments.budgets)
        except StageError as error:
            print(error, file=sys.stderr)
            return 1
    report(costs)
    return 0


# -- the pools, in a process of their own ---------------------------------------------------------


def topology(vms: int, targets: int) -> Topology:
    there = tuple(SrSpec(f"target-{number}", "ext", ("h2",)) for number in range(targets))
    return Topology(
        "disks",
        (
            source_pool(names(vms)),
            PoolSpec("dr", ("h2",), there, ("lan",), nbd="nbd"),
        ),
        job=("prod", names(vms)[0], "dr", "target-0"),
    )


def names(vms: int) -> list[str]:
    return [f"vm{number:02}" for number in range(vms)]


async def obey(lab: Lab, request: dict[str, Any]) -> Any:
    match request["command"]:
        case "write":
            for number, vm in enumerate(names(request["vms"])):
                for disk in range(DISKS):
                    where = (0, request["length"])
                    await lab.guest_write(vm, disk, sequential=where, seed=DISKS * number + disk)
            return None
        case other:
            raise ValueError(f"no command {other!r}")


class ManyDisks(Stage):
    """The stage of the demo, with these pools and one daemon after the other."""

    served: ServedLab

    def start(self, vms: int, budgets: list[str]) -> None:
        state = self.directory / "lab"
        arguments = ("--serve", str(state), "--vms", str(vms), "--budgets", *budgets)
        self.served = ServedLab("tests.bench.disks", *arguments, log=self._log("lab.log"))
        self.lab = self.served.process
        self.pools = {pool["name"]: pool for pool in self.served.pools}
        self.environment["XOREPD_SOCKET"] = str(self.directory / "control.sock")

    def start_daemon_with(self, budget: str, number: int, vms: int) -> int:
        """Start a daemon with that budget; return its process id."""
        state = self.directory / "lab"
        text = (
            f'[daemon]\nstate_dir = "{state}/daemon-{number}"\nsocket = "{self.socket}"\n'
            f'max_vms = {vms}\nmemory = "{budget}"\n'
        )
        text += "".join(pool_table(pool, state) for pool in self.pools.values())
        text += (
            f'[jobs.all]\nsource = "prod"\nvms = ["vm*"]\nmax_vms = {vms}\n'
            f'target = {{ pool = "dr", sr = "target-{number}" }}\n'
            'source_reserve = "0B"\ntarget_reserve = "0B"\n'
        )
        config = self.directory / f"xorepd-{number}.toml"
        config.touch(mode=0o600)
        config.write_text(text)
        self.start_daemon(config)
        assert self.daemon is not None
        return self.daemon.pid

    def stop_daemon(self) -> None:
        assert self.daemon is not None
        self.daemon.terminate()
        self.daemon.wait()
        self.daemon = None


# -- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    budget: str
    disks: int
    at_rest_kib: int
    peak_kib: int
    seconds: float
    cpu_s: float
    moved: int
    waited: int
    """Disks that waited for memory at once, at most, as the daemon's status told."""


def measure(stage: ManyDisks, vms: int, mib: int, budgets: list[str]) -> list[Cost]:
    stage.start(vms, budgets)
    stage.served.ask("write", vms=vms, length=mib * MIB)
    costs = []
    for number, budget in enumerate(budgets):
        print(f"{vms * DISKS} disks with {budget} …", file=sys.stderr, flush=True)
        pid = stage.start_daemon_with(budget, number, vms)
        costs.append(run(stage, pid, budget))
        stage.stop_daemon()
    return costs


def run(stage: ManyDisks, pid: int, budget: str) -> Cost:
    """Run the job to its end.

    Raises:
        StageError: a VM failed.
    """
    at_rest, began, cpu = peak(pid), time.monotonic(), cpu_seconds(pid)
    run_id = stage.ctl("run", "all")["run_id"]
    waited, waiting = 0, dict[str, int]()
    for record in stage.events(run_id):
        disks = record["disks"]
        waiting[record["vm_name"]] = sum(disk["waiting_for"] == "memory" for disk in disks)
        waited = max(waited, sum(waiting.values()))
    seconds, cpu = time.monotonic() - began, cpu_seconds(pid) - cpu
    records = stage.ctl("show", run_id)["records"]
    for record in records:
        if record["error"]:
            raise StageError(f"{budget}: {record['vm_name']}: {record['error']}")
    disks = sum(len(record["disks"]) for record in records)
    moved = sum(record["read_bytes"] for record in records)
    return Cost(budget, disks, at_rest, peak(pid), seconds, cpu, moved, waited)


def report(costs: list[Cost]) -> None:
    table = Table("BUDGET", box=None, pad_edge=False)
    for name in (
        "DISKS",
        "WAITED",
        "AT REST MiB",
        "PEAK MiB",
        "ABOVE MiB",
        "MOVED MiB",
        "s",
        "CPU s",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for cost in costs:
        table.add_row(
            cost.budget,
            str(cost.disks),
            str(cost.waited),
            f"{cost.at_rest_kib / 1024:.1f}",
            f"{cost.peak_kib / 1024:.1f}",
            f"{(cost.peak_kib - cost.at_rest_kib) / 1024:.1f}",
            f"{cost.moved / MIB:.0f}",
            f"{cost.seconds:.1f}",
            f"{cost.cpu_s:.1f}",
        )
    Console(width=110).print(table)
    print(json.dumps({"budgets": [asdict(cost) for cost in costs]}))


if __name__ == "__main__":
    sys.exit(main())
