"""The garbage collector of one SR: after a quiet time it removes and merges, a step at a time.

Which steps there are is in `collector`. While one is done the disks it concerns show it in their
`sm_config`: `relinking` above a base copy that is merged, `paused` on a disk that is merged itself.

Source: sm: libs/sm/cleanup.py.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from xorepd_lab.disks.collector import Kind, Step
from xorepd_lab.disks.owners import Pool, Repository
from xorepd_lab.model.failures import ApiError

QUIET_S = 20.0
"""How long it waits before it starts. XAPI's waits 5 minutes; nobody would watch the lab that long,
and a client cannot tell the difference from a collector kicked earlier."""


class GarbageCollector:
    """Works in the background when kicked, until there is nothing left to do."""

    def __init__(self, pool: Pool, repository: Repository) -> None:
        self._pool = pool
        self._repository = repository
        self._waiting = False
        self._running = 0
        self.settled = asyncio.Event()
        """Set while it neither waits nor runs: the files hold still between changes."""
        self.settled.set()
        self.stuck = False
        """Whether it hangs: it is there and does nothing."""

    def kick(self) -> None:
        """Start it, unless it waits already."""
        if not self._waiting:
            self._waiting = True
            self.settled.clear()
            self._pool.spawn(self._run(), f"gc {self._repository.ref}")

    async def _run(self) -> None:
        self._running += 1
        self.settled.clear()
        try:
            await self._work()
        finally:
            self._running -= 1
            if not self._running:
                self.settled.set()

    async def _work(self) -> None:
        again = True
        while again:
            try:
                self._waiting = True
                await self._pool.clock.nap(QUIET_S)
            finally:
                self._waiting = False
            try:
                await self._do_steps()
                # What somebody had open stays for the next round.
                again = await self._next_step(busy=False) is not None
            except ApiError as error:
                self._pool.log.warning("gc.failed", sr=self._repository.ref, error=str(error))
                return
            again = again and not self._waiting

    async def _do_steps(self) -> None:
        repository = self._repository
        while (step := await self._next_step()) is not None:
            async with self._marked(step):
                done = await repository.change(repository.store.do_step, step)
            if not done:
                return
            await repository.reconcile()

    async def _next_step(self, busy: bool = True) -> Step | None:
        """Return what is to be done next as far as the switches allow it.

        Args:
            busy: Whether chains that are open are left out.

        Source: sm: libs/sm/cleanup.py (gcEnabled, findCoalesceable, gatherLeafCoalesceable).
        """
        db, repository = self._pool.db, self._repository
        switches = db.get("SR", repository.ref, "other_config")
        if self.stuck or switches.get("gc") == "false":
            return None
        disks = [db.record("VDI", ref) for ref in db.select("VDI", SR=repository.ref, managed=True)]
        kept = {
            disk["uuid"]
            for disk in disks
            if switches.get("leaf-coalesce") == "false"
            or disk["other_config"].get("leaf-coalesce") == "false"
            or disk["on_boot"] == "reset"
            or disk["allow_caching"]
        }
        merge = switches.get("coalesce") != "false"
        return await repository.change(repository.store.next_step, kept, merge, busy)

    @asynccontextmanager
    async def _marked(self, step: Step) -> AsyncIterator[None]:
        """Show on the disks what is being done below them, or to them."""
        db, sr = self._pool.db, self._repository.ref
        key, value = ("paused", "true") if step.kind is Kind.LEAF else ("relinking", "True")
        disks = [ref for uuid in step.leaves for ref in db.select("VDI", SR=sr, uuid=uuid)]
        for vdi in disks:
            db.put("VDI", vdi, "sm_config", key, value)
        try:
            yield
        finally:
            for vdi in disks:
                if db.exists("VDI", vdi):
                    db.drop("VDI", vdi, "sm_config", key)
