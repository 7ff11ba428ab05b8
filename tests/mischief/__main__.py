"""`make mischief`: people do what they want to both pools; the last line is one JSON object."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed

import structlog
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.mischief.deeds import table
from tests.mischief.plan import make_plan
from tests.mischief.play import Played, play, shrink

PROCESSES = (os.cpu_count() or 2) * 3 // 2
"""They wait for a third of their time."""

SHARE = 10
"""Sequences that a process does at once: few ones tell earlier what they found."""

_shrunk = set[str]()
"""Kinds of violations for which this process has looked for a shorter sequence already."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200, help="sequences")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first sequence")
    parser.add_argument("--sequence", type=int, help="only this one, and tell what happens")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--whole", action="store_true", help="do not look for shorter sequences")
    given = parser.parse_args()
    if given.sequence is not None:
        [played] = work(given.seed, given.sequence, given.sequence + 1, given.whole)
        sys.stdout.write(played.tell() + "\n")
        return finish([played], given.seed, 0.0)
    started = time.monotonic()
    last = given.first + given.n
    found: list[Played] = []
    with (
        ProcessPoolExecutor(given.processes) as workers,
        Progress(
            TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
        ) as progress,
    ):
        bar = progress.add_task("mischief", total=given.n)
        parts = [
            workers.submit(work, given.seed, first, min(first + SHARE, last), given.whole)
            for first in range(given.first, last, SHARE)
        ]
        for part in as_completed(parts):
            for played in part.result():
                found.append(played)
                if played.violations:
                    text = played.tell()
                    progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
                progress.advance(bar)
    return finish(found, given.seed, time.monotonic() - started)


def finish(found: list[Played], seed: int, seconds: float) -> int:
    counts = sum((played.counts for played in found), Counter[str]())
    kinds = Counter(played.kind for played in found if played.violations)
    report = {
        "sequences": len(found),
        "steps": sum(played.steps for played in found),
        "violations": kinds.total(),
        "seed": seed,
        "kinds": dict(kinds.most_common()),
        **{name.replace(" ", "_"): counts[name] for name in ("runs", "successes", "moments")},
        **{name.replace(" ", "_"): counts[name] for name in ("deeds", "refused deeds")},
        "seconds": round(seconds),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if kinds else 0


def work(seed: int, first: int, last: int, whole: bool) -> list[Played]:
    """Play some sequences, in a process of its own; make those shorter that violate something."""
    quieten()
    found = []
    for number in range(first, last):
        played = asyncio.run(play(make_plan(seed, number, table())))
        if played.kind and not whole and played.kind not in _shrunk:
            _shrunk.add(played.kind)
            played = asyncio.run(shrink(played))
        found.append(played)
    return found


def quieten() -> None:
    logging.disable(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


if __name__ == "__main__":
    sys.exit(main())
