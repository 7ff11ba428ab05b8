"""What finding our marks costs: CPU of reading one stream's inventory, and walks of all records.

    python -m tests.bench.marks [--vms 1000] [--points 3]

The pools of the first part are made of records alone: each VM has two disks, one source snapshot,
and a replica with restore points. CPU seconds are those of one reading, the median of many. In the
second part the daemon's code replicates one VM of a lab once more, with changed-block tracking off,
and each walk through all VMs or all disks of a pool counts, by the function that walks. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import structlog

from tests.lab.world import new_run, world
from tests.unit.replication.builders import SR, STREAM, SourceWorld, TargetWorld, World
from xorepd.ids import Ref
from xorepd.replication.deciding.orphans import find_orphans
from xorepd.replication.format.doubts import find_unresolved
from xorepd.replication.format.inventory import read_source, read_target
from xorepd.replication.format.marks import ReplicaKey
from xorepd.replication.run.jobs import run_job
from xorepd.xapi.records import PoolRecord, Sr, Vbd, Vdi, Vm, read_record
from xorepd.xapi.tables import Tables

MOST_S = 3.0
"""How long one case is measured."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.marks")
    parser.add_argument("--vms", type=int, default=1000)
    parser.add_argument("--points", type=int, default=3, help="restore points of each VM")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    seconds = measure(arguments.vms, arguments.points)
    for what, cpu_s in seconds.items():
        print(f"{what:<42}{cpu_s * 1000:>10.3f} ms")
    with tempfile.TemporaryDirectory(prefix="bench-marks-") as directory:
        walks = asyncio.run(count_walks(Path(directory)))
    for walker, count in walks.most_common():
        print(f"{walker:<42}{count:>10}")
    told = {what: round(cpu_s, 6) for what, cpu_s in seconds.items()}
    print(json.dumps({"cpu_s": told, "walks": walks.total(), "walkers": dict(walks)}))
    return 0


# -- CPU ------------------------------------------------------------------------------------------


def measure(vms: int, points: int) -> dict[str, float]:
    """Return the CPU seconds of each reading, by its name."""
    sources, targets = SourceWorld(), TargetWorld()
    sources.source_snapshot(**{STREAM.sr.replace("-", "_"): "held"})
    for number in range(points):
        targets.run(f"run-{number}")
    source, target = pool_of(sources, vms), pool_of(targets, vms)
    which = f"-of-{vms // 2}"
    stream = replace(STREAM, vm=f"{STREAM.vm}{which}")
    vm = source.by_uuid(Vm, f"{sources.uuid(sources.web)}{which}")
    assert vm is not None
    assert len(read_target(target, stream, SR).points) == points
    assert len(read_source(source, stream, vm).snapshots) == 1
    a_disk = next(iter(target.vdis.values()))

    def after_a_change() -> None:
        target.put(a_disk)
        read_target(target, stream, SR)

    cases: dict[str, Callable[[], object]] = {
        "source side of one stream": lambda: read_source(source, stream, vm),
        "target side of one stream": lambda: read_target(target, stream, SR),
        "the same, after a disk has changed": after_a_change,
        "doubts of the target": lambda: find_unresolved("dr", target),
        "orphans of both": lambda: find_orphans([], cast(Any, {"prod": source, "dr": target})),
        "taking in the target's records": lambda: copy_of(target, stream),
    }
    return {what: cpu_of(case) for what, case in cases.items()}


def pool_of(part: World, copies: int) -> Tables:
    """Return the records of a pool that holds the same part for each of many source VMs."""
    tables = Tables()
    tables.put(
        read_record(PoolRecord, Ref("OpaqueRef:pool"), {"uuid": STREAM.pool, "name_label": "dr"})
    )
    tables.put(
        read_record(Sr, SR, {"uuid": STREAM.sr, "name_label": "sr", "type": "ext", "PBDs": []})
    )
    written = [(cls, ref, json.dumps(raw)) for cls, ref, raw in part.raws()]
    for number in range(copies):
        for cls, ref, text in written:
            plain = re.sub(r"(OpaqueRef:v\w+-|v\w+-\d+-uuid|\bvm-1\b)", rf"\1-of-{number}", text)
            name = re.sub(r"(OpaqueRef:v\w+-)", rf"\1-of-{number}", ref)
            tables.put(read_record(cls, Ref(name), json.loads(plain)))
    return tables


def copy_of(tables: Tables, stream: ReplicaKey) -> None:
    made = Tables()
    for cls in (Vm, Vdi, Vbd):
        for record in tables.table(cls).values():
            made.put(record)
    read_target(made, stream, SR)


def cpu_of(case: Callable[[], object]) -> float:
    """Return what one case takes: the median of its times, after one that does not count."""
    case()
    times: list[float] = []
    began = time.monotonic()
    while len(times) < 3 or (time.monotonic() - began < MOST_S and len(times) < 1000):
        before = time.process_time()
        case()
        times.append(time.process_time() - before)
    return statistics.median(times)


# -- walks ----------------------------------------------------------------------------------------


class Walked(Mapping[Ref, Any]):
    """One table, and a count of those who walk through all of it."""

    def __init__(self, table: Mapping[Ref, Any], walks: Counter[str]) -> None:
        self._table, self._walks = table, walks

    def __getitem__(self, ref: Ref) -> Any:
        return self._table[ref]

    def __contains__(self, ref: object) -> bool:
        return ref in self._table

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Ref]:
        return iter(self._table)

    def get(self, ref: Ref, default: Any = None) -> Any:
        return self._table.get(ref, default)

    def values(self) -> Any:
        code = sys._getframe(1).f_code
        self._walks[f"{Path(code.co_filename).stem}.{code.co_qualname.split('.<')[0]}"] += 1
        return self._table.values()


async def count_walks(directory: Path) -> Counter[str]:
    """Return who walked through all VMs or disks of a pool how often in one delta of one VM."""
    walks = Counter[str]()
    async with world(directory / "lab") as made, made.daemon() as context:
        job = made.job(vms=("web*",), verify="off")
        [first] = await run_job(job, new_run(), context)
        assert first.error is None, first.error
        for pool in context.pools.values():
            pool.cache.vms = Walked(pool.cache.vms, walks)
            pool.cache.vdis = Walked(pool.cache.vdis, walks)
        [record] = await run_job(job, new_run(), context)
        assert record.error is None, record.error
    return walks


if __name__ == "__main__":
    sys.exit(main())
