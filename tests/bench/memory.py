"""Peak memory and CPU of the daemon while it moves one large disk that is full of data.

    python -m tests.bench.memory [--gib 2]

The lab, the daemon and both disks are on this machine: wall time says little, memory and CPU
seconds per GiB of the daemon's own process are what is measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from xorepd_lab.demo.stage import Stage, StageError

GIB = 1 << 30
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.memory")
    parser.add_argument(
        "--gib", type=int, choices=(1, 2), default=2, help="how much of the disk is written"
    )
    gib = parser.parse_args().gib
    with Stage() as stage:
        try:
            stage.need(3 * gib * GIB)
            measure(stage, gib)
        except StageError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def measure(stage: Stage, gib: int) -> None:
    stage.start_lab()
    stage.guest("--disk", "1", "--sequential", "0", str(gib * GIB), "--seed", "1")
    stage.start_daemon()
    assert stage.daemon is not None
    pid = stage.daemon.pid
    idle = peak(pid)
    cpu, wall = cpu_seconds(pid), time.monotonic()
    stage.ctl_live("run", "web", "--wait")
    cpu, wall = cpu_seconds(pid) - cpu, time.monotonic() - wall
    [record] = stage.ctl("history", "--limit", "1")["records"]
    moved = record["read_bytes"] / GIB
    print(f"outcome             {record['outcome']}, {len(record['disks'])} disks at once")
    print(f"moved               {moved:.2f} GiB, then read back and compared")
    print(f"peak RSS at rest    {idle / 1024:.1f} MiB")
    print(f"peak RSS of the run {peak(pid) / 1024:.1f} MiB")
    print(f"CPU                 {cpu:.1f} s, {cpu / moved:.2f} s per GiB with reading back")
    print(f"wall                {wall:.1f} s")


def peak(pid: int) -> int:
    """Return the peak resident size of a process so far, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__":
    sys.exit(main())
