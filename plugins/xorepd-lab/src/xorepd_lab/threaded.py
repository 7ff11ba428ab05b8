"""A lab in a thread, for clients that block: scripts, the XenAPI SDK, tests without asyncio.

with threaded_lab(directory) as lab:
    session = XenAPI.Session(lab.pools["prod"].url, ignore_ssl=True)
    lab.run(lab.lab.guest_write("web01", 0, random=10))
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from xorepd_lab.faults.faults import Fault
from xorepd_lab.lab import Lab
from xorepd_lab.pools import Pool
from xorepd_lab.topology import SMALL, Topology

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ThreadedLab:
    """A lab that runs elsewhere. Its objects may be read from here, and changed through `call`."""

    lab: Lab
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event

    @property
    def pools(self) -> dict[str, Pool]:
        return self.lab.pools

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the lab in its thread and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a plain function of the lab in its thread and return its result."""

        async def in_loop() -> T:
            return work(*args, **kwargs)

        return self.run(in_loop())

    @contextmanager
    def fault(self, fault: Fault) -> Iterator[Fault]:
        """Add a rule, and remove all rules at the end."""
        try:
            yield self.call(self.lab.faults.add, fault)
        finally:
            self.call(self.lab.faults.clear)


@contextmanager
def threaded_lab(
    state: Path, topology: Topology = SMALL, seed: int = 1, time_scale: float = 0.01
) -> Iterator[ThreadedLab]:
    """Run a lab in a thread of its own while the block runs; arguments as of `Lab.start`."""
    started: Future[ThreadedLab] = Future()

    async def live() -> None:
        async with Lab.start(state, topology, seed=seed, time_scale=time_scale) as lab:
            stop = asyncio.Event()
            started.set_result(ThreadedLab(lab, asyncio.get_running_loop(), stop))
            await stop.wait()

    with ThreadPoolExecutor(1, thread_name_prefix="lab") as executor:
        life = executor.submit(asyncio.run, live())
        either: list[Future[Any]] = [started, life]
        wait(either, return_when=FIRST_COMPLETED)
        if not started.done():
            life.result()  # raises what kept the lab from starting
        running = started.result()
        try:
            yield running
        finally:
            running.loop.call_soon_threadsafe(running.stop.set)
            life.result()
