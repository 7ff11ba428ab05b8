"""`make sweep`: strikes at every request of a run, or every Kth; a JSON object ends it."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

import structlog
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.sweep.sweep import Phase, Result, Strike, sweep

PROCESSES = (os.cpu_count() or 2) * 3 // 2
"""They wait for a third of their time."""

SHARES = 4
"""Parts of each kind of strike for one process: small ones tell earlier what they found."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="strike at every Kth request")
    parser.add_argument("--phase", choices=list(Phase), action="append")
    parser.add_argument("--strike", choices=list(Strike), action="append")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    phases = [Phase(phase) for phase in given.phase or Phase]
    strikes = [Strike(strike) for strike in given.strike or Strike]
    started = time.monotonic()
    total = Result()
    shares = given.processes * SHARES
    step = given.every * shares
    with (
        ProcessPoolExecutor(given.processes) as workers,
        Progress(
            TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
        ) as progress,
    ):
        bar = progress.add_task("sweep", total=len(phases) * len(strikes) * shares)
        parts = [
            workers.submit(work, phase, strike, 1 + given.every * share, step, given.seed)
            for phase in phases
            for strike in strikes
            for share in range(shares)
        ]
        for part in as_completed(parts):
            found = part.result()
            total.cases += found.cases
            total.violations += found.violations
            for phase, number in found.requests.items():
                total.requests[phase] = max(total.requests.get(phase, 0), number)
            for violation in found.violations:
                progress.console.print(violation, highlight=False, markup=False)
            progress.advance(bar)
    sys.stdout.write(
        json.dumps(
            {
                "n": total.requests,
                "cases": total.cases,
                "violations": len(total.violations),
                "seconds": round(time.monotonic() - started),
                "seed": given.seed,
                "every": given.every,
            }
        )
        + "\n"
    )
    return 1 if total.violations else 0


def work(phase: Phase, strike: Strike, first: int, step: int, seed: int) -> Result:
    """Do one worker's part of a sweep, in a process of its own."""
    logging.disable(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    return asyncio.run(sweep(phase, [strike], first, step, seed))


if __name__ == "__main__":
    sys.exit(main())
