"""Operations hold the objects they work on; who comes later waits inside the server.

An operation on a busy object does not fail. It is tried again after a random wait of 1-20 s, or as
soon as something is released, for up to two hours; the caller only sees a slow call.

Source: xapi: ocaml/xapi/message_forwarding.ml, helpers.ml (Repeat_with_uniform_backoff and
Early_wakeup).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from xorepd.lab.clock import Clock
from xorepd.lab.failures import NULL, ApiError
from xorepd.lab.registry import Registry
from xorepd.lab.rules import (
    allowed_sr_operations,
    allowed_vbd_operations,
    allowed_vdi_operations,
    allowed_vm_operations,
    check_sr,
    check_vdi,
    check_vm,
)
from xorepd.lab.tasks import Tasks

SHORTEST_WAIT_S, LONGEST_WAIT_S = 1.0, 20.0
GIVE_UP_S = 7200.0

_CHECKS = {"VM": check_vm, "VDI": check_vdi, "SR": check_sr}
_ALLOWED = {
    "VM": allowed_vm_operations,
    "VDI": allowed_vdi_operations,
    "SR": allowed_sr_operations,
    "VBD": allowed_vbd_operations,
}


@dataclass(frozen=True, slots=True)
class Claim:
    cls: str
    ref: str
    operation: str


class Operations:
    """Current and allowed operations of one pool's objects."""

    def __init__(self, db: Registry, tasks: Tasks, clock: Clock) -> None:
        self._db = db
        self._tasks = tasks
        self._clock = clock

    @asynccontextmanager
    async def hold(self, task: str, *claims: Claim) -> AsyncIterator[None]:
        """Hold all objects while the block runs; wait until all are free.

        Raises:
            ApiError: the first check that fails; OTHER_OPERATION_IN_PROGRESS only after two hours,
                TASK_CANCELLED when the task was cancelled meanwhile.
        """
        await self._wait(task, claims)
        key = task if task != NULL else self._db.new_ref()
        for claim in claims:
            self._db.put(claim.cls, claim.ref, "current_operations", key, claim.operation)
            self.refresh(claim.cls, claim.ref)
        try:
            yield
        finally:
            for claim in claims:
                if self._db.exists(claim.cls, claim.ref):
                    self._db.drop(claim.cls, claim.ref, "current_operations", key)
                    self.refresh(claim.cls, claim.ref)

    def refresh(self, cls: str, ref: str) -> None:
        """Compute `allowed_operations` anew."""
        if self._db.exists(cls, ref):
            self._db.set(cls, ref, allowed_operations=_ALLOWED[cls](self._db, ref))

    def refresh_vbd(self, vbd: str) -> None:
        """Compute what follows from a VBD's attachment: its own operations and its VDI's."""
        if self._db.exists("VBD", vbd):
            self.refresh("VBD", vbd)
            self.refresh("VDI", self._db.get("VBD", vbd, "VDI"))

    async def _wait(self, task: str, claims: tuple[Claim, ...]) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._clock.scaled(GIVE_UP_S) + GIVE_UP_S
        while True:
            self._tasks.check_cancelled(task)
            try:
                for claim in claims:
                    _CHECKS[claim.cls](self._db, claim.ref, claim.operation)
            except ApiError as error:
                if error.code != "OTHER_OPERATION_IN_PROGRESS" or loop.time() > give_up:
                    raise
            else:
                return
            if self._db.exists("task", task):
                self._db.set("task", task, allowed_operations=["cancel"])
            nap = self._clock.scaled(self._db.rng.uniform(SHORTEST_WAIT_S, LONGEST_WAIT_S))
            try:
                async with asyncio.timeout(nap):
                    await self._db.changed()
            except TimeoutError:
                continue
