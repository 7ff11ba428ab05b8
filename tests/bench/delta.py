"""What a delta costs in bytes: changed blocks of 64 KiB beside the 2 MiB blocks of a VHD.

    python -m tests.bench.delta [--gib 8] [--maps 4GiB]

One guest writes, two jobs of one real daemon replicate the same disk, each to an SR of its own:
`fine` follows changed-block tracking over NBD, `coarse` must not: it reads what the VHD export
gives, and sends what of that differs from the map of its restore point, or all with `--maps 0B`.
For each way of writing:

    read      bytes that the source pool sent, as the pool counted them
    sent      bytes that the target pool received, as the pool counted them
    written   sectors that became present in the VHDs of the target SR, by their bitmaps
    on disk   what these files grew by, with everything that a VHD adds

"Changed" are the blocks of 64 KiB that the guest wrote to, from the list of its writes; the bitmap
that the daemon got has to name exactly these. At the end libvhdi reads the source and both
replicas, which must be equal. The last line is one JSON object; the exit code is 1 when a goal is
missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.bench.memory import cpu_seconds
from tests.bench.served import ServedLab, pool_table, serve
from xorepd_lab.demo.proof import DISK, ProofError, disks_of, hashes, hold_files_still, login
from xorepd_lab.demo.stage import BIN, Stage, StageError
from xorepd_lab.lab import Lab
from xorepd_lab.topology import DiskSpec, PoolSpec, SrSpec, Topology, VmSpec

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE: Final = 4 * KIB
FINE: Final = 64 * KIB
COARSE: Final = 2 * MIB
VM: Final = "db01"

AMPLIFICATION_GOAL: Final = 1.02
"""Bytes read, sent and written for each byte of the changed 64 KiB blocks, at most."""
RATIO_GOAL, RATIO_CASE, RATIO_GIB = 20.0, "1,000 pages", 8
"""How many times fewer bytes are sent there than the blocks of 2 MiB have, on a disk of 8 GiB at
least: on a smaller one the pages share their large blocks."""

Write = tuple[int, int]
"""Offset and length of what the guest wrote, multiples of 4 KiB."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.delta")
    parser.add_argument(
        "--gib", type=int, default=8, help="size of the disk; 20 times fewer is a goal from 8 on"
    )
    parser.add_argument(
        "--maps", default="4GiB", help='[daemon] maps; "0B" shows what is sent without any'
    )
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve, topology(arguments.gib), obey))
        return 0
    with Pools() as stage:
        stage.maps = arguments.maps
        try:
            stage.need(2 * arguments.gib * GIB)
            return measure(stage, arguments.gib)
        except (StageError, ProofError) as error:
            print(error, file=sys.stderr)
            return 1


# -- what the guest writes ------------------------------------------------------------------------


def pages(count: int, size: int) -> list[Write]:
    """Return that many pages in random places, as a file system's metadata or a mail spool."""
    rng = random.Random(count)
    return [(rng.randrange(size // PAGE) * PAGE, PAGE) for _ in range(count)]


def sequential(length: int, size: int) -> list[Write]:
    """Return one large file, which begins nowhere in particular."""
    start = (size // 3) // PAGE * PAGE
    return [(start, length)]


def database(size: int) -> list[Write]:
    """Return what a database does between two runs: table pages, mostly hot ones, and a log.

    Nine of ten table writes fall into a hot set of 128 MiB in 64 places; each is of 8 to 64 KiB.
    The log is appended to, 64 MiB in all.
    """
    rng = random.Random(7)
    log_start, log_length, append = size - 256 * MIB, 64 * MIB, 256 * KIB
    hot = [rng.randrange(log_start // COARSE) * COARSE for _ in range(64)]
    writes = []
    for _ in range(4000):
        length = rng.choice((8, 16, 32, 64)) * KIB
        if rng.random() < 0.9:
            offset = rng.choice(hot) + rng.randrange((COARSE - length) // (8 * KIB) + 1) * 8 * KIB
        else:
            offset = rng.randrange((log_start - length) // (8 * KIB)) * 8 * KIB
        writes.append((offset, length))
    return writes + [(log_start + at, append) for at in range(0, log_length, append)]


def cases(size: int) -> dict[str, list[Write]]:
    return {
        "100 pages": pages(100, size),
        RATIO_CASE: pages(1_000, size),
        "10,000 pages": pages(10_000, size),
        "256 MiB in sequence": sequential(256 * MIB, size),
        "database": database(size),
    }


def touched(writes: Sequence[Write], block: int) -> int:
    """Return the bytes of the blocks that some writes touch."""
    blocks: set[int] = set()
    for offset, length in writes:
        blocks.update(range(offset // block, -(-(offset + length) // block)))
    return len(blocks) * block


# -- the pools, in a process of their own ---------------------------------------------------------


def topology(gib: int) -> Topology:
    """Return two pools; the disk is empty, so that each byte that moves later was changed."""
    disk = DiskSpec("data", "store", gib * GIB)
    guest = VmSpec(VM, (disk,), "lan", "02:16:3e:00:00:01", running_on="h1")
    store = SrSpec("store", "ext", ("h1",))
    targets = tuple(SrSpec(name, "ext", ("h2",)) for name in ("fine", "coarse"))
    return Topology(
        "delta",
        (
            PoolSpec("prod", ("h1",), (store,), ("lan",), (guest,), nbd="nbd"),
            PoolSpec("dr", ("h2",), targets, ("lan",)),
        ),
        job=("prod", VM, "dr", "fine"),
    )


async def obey(lab: Lab, request: dict[str, Any]) -> Any:
    match request["command"]:
        case "write":
            for number, write in enumerate(request["writes"]):
                seed = request["seed"] * 100_000 + number
                await lab.guest_write(VM, 0, sequential=tuple(write), seed=seed)
            return None
        case "traffic":
            return [
                sum(c.moved for c in lab.calls if (c.pool, c.kind, c.name) in ways)
                for ways in (
                    {("prod", "nbd", "read"), ("prod", "export", "vhd"), ("prod", "export", "raw")},
                    {("dr", "import", "raw"), ("dr", "import", "vhd")},
                )
            ]
        case "settle":
            return await lab.settled()
        case other:
            raise ValueError(f"no command {other!r}")


class Pools(Stage):
    """The stage of the demo, with these pools and a daemon of two jobs."""

    served: ServedLab
    maps: str

    def start(self, gib: int) -> None:
        state = self.directory / "lab"
        arguments = ["--serve", str(state), "--gib", str(gib)]
        self.served = ServedLab("tests.bench.delta", *arguments, log=self._log("lab.log"))
        self.lab = self.served.process
        self.pools = {pool["name"]: pool for pool in self.served.pools}
        hold_files_still(self.pools["dr"])  # chains are to show what each run added
        self.environment["XOREPD_SOCKET"] = str(self.directory / "control.sock")
        config = self.directory / "xorepd.toml"
        config.touch(mode=0o600)
        config.write_text(self._configuration(state))
        self.start_daemon(config)

    def sr(self, name: str) -> Path:
        [sr] = [sr for sr in self.pools["dr"]["srs"] if sr["name"] == name]
        return Path(sr["directory"])

    def _configuration(self, state: Path) -> str:
        text = f'[daemon]\nstate_dir = "{state}/daemon"\nsocket = "{self.socket}"\n'
        text += f'maps = "{self.maps}"\n'
        text += "".join(pool_table(pool, state) for pool in self.pools.values())
        for name, changed_blocks in (("fine", "enable"), ("coarse", "off")):
            text += (
                f'[jobs.{name}]\nsource = "prod"\nvms = ["{VM}"]\n'
                f'target = {{ pool = "dr", sr = "{name}" }}\nkeep = 24\nverify = "off"\n'
                f'changed_blocks = "{changed_blocks}"\n'
                'source_reserve = "0B"\ntarget_reserve = "0B"\n'
            )
        return text


def stored(directory: Path) -> tuple[int, int]:
    """Return the bytes of sectors that are present in the VHDs of an SR, and what they take.

    Source: Virtual Hard Disk Image Format Specification 1.0 (big-endian throughout).
    """
    present = allocated = 0
    for path in directory.glob("*.vhd"):
        with path.open("rb") as file:
            file.seek(512)
            table_offset, entries, block_size = struct.unpack(">16xQ4xII", file.read(36))
            assert block_size == COARSE
            file.seek(table_offset)
            for block in struct.unpack(f">{entries}I", file.read(4 * entries)):
                if block != 0xFFFFFFFF:
                    file.seek(block * 512)
                    bitmap = file.read(COARSE // 512 // 8)
                    present += int.from_bytes(bitmap, "big").bit_count() * 512
        allocated += path.stat().st_blocks * 512
    return present, allocated


# -- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one run of one job took. Bytes, and seconds of the daemon."""

    read: int
    sent: int
    written: int
    on_disk: int
    cpu_s: float
    wall_s: float

    @property
    def most(self) -> int:
        return max(self.read, self.sent, self.written)


@dataclass
class Case:
    name: str
    guest: int
    """Bytes of the guest's writes, each place once."""
    changed: int
    tracked: int = 0
    """What the bitmap named, as the daemon read it."""
    costs: dict[str, Cost] = field(default_factory=dict)

    @property
    def amplification(self) -> float:
        return self.costs["fine"].most / self.changed

    @property
    def times_fewer(self) -> float:
        return self.costs["coarse"].read / self.costs["fine"].sent

    def missed(self, gib: int, *, has_maps: bool) -> Iterator[str]:
        if self.tracked != self.changed:
            yield f"{self.name}: the bitmap names {self.tracked} bytes, not {self.changed}"
        if self.amplification > AMPLIFICATION_GOAL:
            yield f"{self.name}: {self.amplification:.3f} of what changed, not {AMPLIFICATION_GOAL}"
        mapped = self.costs["coarse"].sent / self.changed
        if has_maps and mapped > AMPLIFICATION_GOAL:
            yield f"{self.name}: {mapped:.3f} of what changed with maps, not {AMPLIFICATION_GOAL}"
        if self.name == RATIO_CASE and gib >= RATIO_GIB and self.times_fewer < RATIO_GOAL:
            yield f"{self.name}: {self.times_fewer:.1f} times fewer bytes, not {RATIO_GOAL:g}"

    def summary(self) -> dict[str, Any]:
        return {
            "guest": self.guest,
            "changed": self.changed,
            "amplification": round(self.amplification, 4),
            "times_fewer": round(self.times_fewer, 2),
            **{job: asdict(cost) for job, cost in self.costs.items()},
        }


def measure(stage: Pools, gib: int) -> int:
    began = time.monotonic()
    stage.start(gib)
    for job in ("fine", "coarse"):
        say(f"the first run of {job} …")
        run(stage, job)
    measured = []
    for number, (name, writes) in enumerate(cases(gib * GIB).items()):
        say(f"{name}: the guest writes …")
        stage.served.ask("write", writes=writes, seed=number)
        case = Case(name, touched(writes, PAGE), touched(writes, FINE))
        for job, reader in (("fine", "nbd-changes"), ("coarse", "export")):
            say(f"{name}: {job} …")
            disk, case.costs[job] = run(stage, job)
            if (disk["reader"], disk["writer"]) != (reader, "chunked"):
                raise StageError(f"{job} was read by {disk['reader']}: {disk['reader_reason']}")
            case.tracked = disk["changed_bytes"] or case.tracked
        measured.append(case)
    say("libvhdi reads the source and both replicas …")
    prove(stage)
    has_maps = stage.maps != "0B"
    missed = [line for case in measured for line in case.missed(gib, has_maps=has_maps)]
    return report(measured, missed, time.monotonic() - began)


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def run(stage: Pools, job: str) -> tuple[dict[str, Any], Cost]:
    """Run a job; return the record of its disk, and what the run cost."""
    assert stage.daemon is not None
    (read, sent), (written, on_disk) = stage.served.ask("traffic"), stored(stage.sr(job))
    cpu, wall = cpu_seconds(stage.daemon.pid), time.monotonic()
    stage.run(BIN / "xorepctl", "run", job, "--wait")
    cpu, wall = cpu_seconds(stage.daemon.pid) - cpu, time.monotonic() - wall
    (read_after, sent_after), (written_after, on_disk_after) = (
        stage.served.ask("traffic"),
        stored(stage.sr(job)),
    )
    [record] = stage.ctl("history", "--limit", "1")["records"]
    return record["disks"][0], Cost(
        read=read_after - read,
        sent=sent_after - sent,
        written=written_after - written,
        on_disk=on_disk_after - on_disk,
        cpu_s=round(cpu, 2),
        wall_s=round(wall, 2),
    )


def prove(stage: Pools) -> None:
    """Have libvhdi compare the newest restore points with the source.

    Raises:
        ProofError: one of them differs.
    """
    hold_files_still(stage.pools["prod"])
    stage.served.ask("settle")
    records = stage.ctl("history", "--limit", "2")["records"]
    prod, dr = stage.pools["prod"], stage.pools["dr"]
    read: list[DISK] = []
    with login(dr) as xenapi:
        for record in records:
            point = record["restore_point"]
            read += disks_of(dr, xenapi, point).values()
        vm = xenapi.VM.get_by_uuid(point)
        mark = json.loads(xenapi.VM.get_other_config(vm)["xorepd:mark"])
    with login(prod) as xenapi:
        read += disks_of(prod, xenapi, mark["snapshot"]).values()
    found = hashes(read)
    if len(found) != 3 or len(set(found)) != 1:
        raise ProofError(f"source and replicas differ: {found}")


def report(measured: list[Case], missed: list[str], seconds: float) -> int:
    names = ("GUEST WROTE", "CHANGED", "READ", "SENT", "WRITTEN", "ON DISK", "SENT/CHANGED")
    table = Table("CASE", "JOB", box=None, pad_edge=False)
    for name in (*names, "CPU s", "WALL s"):
        table.add_column(name, justify="right", no_wrap=True)
    for case in measured:
        for job, cost in case.costs.items():
            sizes = (case.guest, case.changed, cost.read, cost.sent, cost.written, cost.on_disk)
            table.add_row(
                case.name,
                job,
                *(f"{size / MIB:.1f}" for size in sizes),
                f"{cost.sent / case.changed:.3f}",
                f"{cost.cpu_s:.2f}",
                f"{cost.wall_s:.1f}",
            )
    Console(width=130).print(table)
    print(f"MiB; libvhdi reads the same from the source and both replicas; {seconds:.0f} s in all")
    for line in missed:
        print(f"MISSED {line}")
    facts = {case.name: case.summary() for case in measured}
    print(json.dumps({"good": not missed, "seconds": round(seconds), "cases": facts}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
