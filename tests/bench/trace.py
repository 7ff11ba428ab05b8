"""How much of our code one plain delta runs through: what a newcomer reads to follow it.

    python -m tests.bench.trace [--verify off]

One VM, from one pool of the lab to another: transport `direct`, read through the export
handler, no changed-block tracking, a sample read back, as a configuration that says nothing else
has it; `--verify off` for no reading back. The first copy is made before; what counts is the second
run, from the call of `run_job` to its record.

How it is counted: a profile function of every thread (`sys.setprofile`, `threading.setprofile`)
notes the code object of each frame that is entered or resumed meanwhile, including those of tasks
that watch the pools at the same time. How these fall makes a few functions more or less. A function
is ours when its file is in the package `xorepd`; the lab is another one. A comprehension, a
generator expression and a lambda inside a function count as that function; a function inside a
function counts for itself. Bodies of modules and classes do not count, and neither does what has no
file of ours: methods that `dataclass` or pydantic generate, and functions of C.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import logging
import re
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import structlog

import xorepd
from tests.lab.world import new_run, world
from xorepd.replication.run.jobs import run_job
from xorepd.state.records import Outcome, RunRecord

PACKAGE: Final = Path(next(iter(xorepd.__path__)))
VM: Final = "web01"
INNER: Final = re.compile(r"(\.<locals>\.<(lambda|listcomp|setcomp|dictcomp|genexpr)>)+$")
"""The end of the qualified name of what belongs to the function around it."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.trace")
    parser.add_argument("--verify", choices=("off", "sample", "full"), default="sample")
    verify = parser.parse_args().verify
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="xorepd-trace-") as directory:
        entered = asyncio.run(trace(Path(directory) / "lab", verify))
    report(functions(entered))
    return 0


class Entered:
    """The code objects that any thread enters while this records."""

    def __init__(self) -> None:
        self.code: set[CodeType] = set()
        self._is_recording = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at this thread, and at each that starts from now on; record nothing yet."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    @contextmanager
    def recording(self) -> Iterator[None]:
        self._is_recording = True
        try:
            yield
        finally:
            self._is_recording = False

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if self._is_recording and event == "call":
            self.code.add(frame.f_code)


async def trace(directory: Path, verify: str) -> set[CodeType]:
    """Run a first copy and a delta of a new lab; return what the delta entered.

    Raises:
        RuntimeError: it was no plain delta.
    """
    entered = Entered()
    plain = {"vms": (VM,), "changed_blocks": "off", "verify": verify, "resume": "24h"}
    with entered.watching():
        async with world(directory) as pools, pools.daemon() as context:
            await pools.run(context, **plain)
            await pools.lab.guest_write(VM, 0, random=8, seed=1)
            job, run_id = pools.job(**plain), new_run()
            with entered.recording():
                [record] = await run_job(job, run_id, context)
            must_be_plain(record)
    return entered.code


def must_be_plain(record: RunRecord) -> None:
    readers = [disk.reader for disk in record.disks]
    if record.outcome is not Outcome.DELTA or set(readers) != {"export"}:
        raise RuntimeError(f"{record.outcome} read by {readers}: {record.error}")


def functions(entered: set[CodeType]) -> dict[Path, set[str]]:
    """Return the names of our functions among the code objects, by file within the package."""
    found: dict[Path, set[str]] = defaultdict(set)
    for code in entered:
        file = Path(code.co_filename)
        if file.is_relative_to(PACKAGE) and code.co_flags & inspect.CO_OPTIMIZED:
            found[file.relative_to(PACKAGE)].add(INNER.sub("", code.co_qualname))
    return found


def report(found: dict[Path, set[str]]) -> None:
    """Print the functions by package and file, and a last line of JSON."""
    by_package: dict[Path, list[Path]] = defaultdict(list)
    for file in sorted(found):
        by_package[file.parent].append(file)
    for package, files in sorted(by_package.items()):
        name = ".".join(("xorepd", *package.parts))
        print(f"{name}: {len(files)} files, {sum(len(found[f]) for f in files)} functions")
        for file in files:
            print(f"  {file.name}: {', '.join(sorted(found[file]))}")
    counts = {"files": len(found), "functions": sum(map(len, found.values()))}
    print(json.dumps(counts))


if __name__ == "__main__":
    sys.exit(main())
