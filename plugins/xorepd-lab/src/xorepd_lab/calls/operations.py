"""Operations hold the objects they work on; who comes later waits inside the server.

An operation on a busy object does not fail. It is tried again after a random wait of 1-20 s, or as
soon as something is released, for up to two hours; the caller only sees a slow call.

Source: xapi: ocaml/xapi/message_forwarding.ml, helpers.ml (Repeat_with_uniform_backoff and
Early_wakeup).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from xorepd_lab.calls.tasks import Tasks
from xorepd_lab.model.clock import Clock
from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.model.registry import Registry
from xorepd_lab.model.schema import words
from xorepd_lab.rules.device_rules import (
    allowed_vbd_operations,
    allowed_vif_operations,
    check_vbd,
    check_vif,
)
from xorepd_lab.rules.host_rules import (
    allowed_host_operations,
    allowed_pool_operations,
    check_host_operation,
    check_pool_operation,
)
from xorepd_lab.rules.storage_rules import (
    allowed_sr_operations,
    allowed_vdi_operations,
    check_sr,
    check_vdi,
    hosts_of,
)
from xorepd_lab.rules.vm_rules import (
    allowed_appliance_operations,
    allowed_vm_operations,
    check_appliance,
    check_vm,
)

SHORTEST_WAIT_S, LONGEST_WAIT_S = 1.0, 20.0
GIVE_UP_S = 7200.0

MOST_QUEUED = 100
"""Operations that may wait at a time, one more not counted; the next is refused."""
QUICKLY_S = 120.0
"""How long VBDs are waited for when a VM starts."""

_CHECKS: dict[str, Callable[[Registry, str, str], None]] = {
    "VM": check_vm,
    "VDI": check_vdi,
    "SR": check_sr,
    "VBD": check_vbd,
    "VIF": check_vif,
    "VM_appliance": check_appliance,
    "host": check_host_operation,
    "pool": check_pool_operation,
}
_ALLOWED: dict[str, Callable[[Registry, str], list[str]]] = {
    "VM": allowed_vm_operations,
    "VDI": allowed_vdi_operations,
    "SR": allowed_sr_operations,
    "VBD": allowed_vbd_operations,
    "VIF": allowed_vif_operations,
    "VM_appliance": allowed_appliance_operations,
    "host": allowed_host_operations,
    "pool": allowed_pool_operations,
}


@dataclass(frozen=True, slots=True)
class Claim:
    cls: str
    ref: str
    operation: str


ON_ITS_HOST = set(
    words(
        "clean_shutdown clean_reboot hard_shutdown hard_reboot pause unpause suspend snapshot"
        " checkpoint pool_migrate migrate_send send_sysrq send_trigger call_plugin"
    )
)
"""What the host of a running VM does; other operations any host can do that sees its disks."""


def executing_host(db: Registry, claim: Claim) -> str | None:
    """Return the one host that can do the work, None when it is the master or any.

    Source: xapi: ocaml/xapi/message_forwarding.ml (forward_vm_op, choose_pbds_for_sr).
    """
    if claim.cls == "VM" and claim.operation in ON_ITS_HOST:
        host = db.get("VM", claim.ref, "resident_on")
        return str(host) if db.exists("host", host) else None
    if claim.cls == "SR" and not db.get("SR", claim.ref, "shared"):
        return next(iter(hosts_of(db, claim.ref)), None)
    return None


class Operations:
    """Current and allowed operations of one pool's objects."""

    def __init__(self, db: Registry, tasks: Tasks, clock: Clock) -> None:
        self._db = db
        self._tasks = tasks
        self._clock = clock
        self._queued = 0
        self.reach: Callable[[str], None] = lambda host: None
        """Raises what the master says when a host that has to do the work is not there."""

    @asynccontextmanager
    async def hold(
        self, task: str, *claims: Claim, patience_s: float = GIVE_UP_S, forced: bool = False
    ) -> AsyncIterator[None]:
        """Hold all objects while the block runs; wait until all are free.

        Args:
            patience_s: How long to wait; 0 fails at once.
            forced: Do without what a VM's guest must announce for the operation.

        Raises:
            ApiError: the first check that fails; OTHER_OPERATION_IN_PROGRESS only after all
                patience, TASK_CANCELLED when the task was cancelled meanwhile,
                TOO_MANY_PENDING_TASKS when too many wait already.
        """
        with self._queue():
            await self._wait(task, claims, patience_s, forced)
        for claim in claims:
            host = executing_host(self._db, claim)
            if host is not None:
                self.reach(host)
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
        """Compute `allowed_operations` anew; a VM's VTPMs and appliance follow it."""
        if not self._db.exists(cls, ref):
            return
        self._db.set(cls, ref, allowed_operations=_ALLOWED[cls](self._db, ref))
        if cls == "VM":
            vm = self._db.record(cls, ref)
            for vtpm in vm["VTPMs"]:
                operations = ["destroy"] if vm["power_state"] == "Halted" else []
                self._db.set("VTPM", vtpm, allowed_operations=operations)
            self.refresh("VM_appliance", vm["appliance"])

    def refresh_vm(self, vm: str) -> None:
        """Compute anew what follows from a VM's power state: its own and its devices' operations.

        Source: xapi: ocaml/xapi/xapi_vm.ml (update_allowed_operations).
        """
        record = self._db.record("VM", vm)
        for vbd in record["VBDs"]:
            self.refresh_vbd(vbd)
        for vif in record["VIFs"]:
            self.refresh("VIF", vif)
        self.refresh("VM", vm)

    def refresh_vbd(self, vbd: str) -> None:
        """Compute what follows from a VBD's attachment: its own operations and its VDI's."""
        if self._db.exists("VBD", vbd):
            self.refresh("VBD", vbd)
            self.refresh("VDI", self._db.get("VBD", vbd, "VDI"))

    @contextmanager
    def _queue(self) -> Iterator[None]:
        """Count who waits, or only looks whether it has to."""
        if self._queued > MOST_QUEUED:
            raise ApiError("TOO_MANY_PENDING_TASKS")
        self._queued += 1
        try:
            yield
        finally:
            self._queued -= 1

    async def _wait(
        self, task: str, claims: tuple[Claim, ...], patience_s: float, forced: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time()
        if patience_s:
            give_up += self._clock.scaled(patience_s) + patience_s
        while True:
            self._tasks.check_cancelled(task)
            try:
                for claim in claims:
                    if forced and claim.cls == "VM":
                        check_vm(self._db, claim.ref, claim.operation, strict=False)
                    else:
                        _CHECKS[claim.cls](self._db, claim.ref, claim.operation)
            except ApiError as error:
                if error.code != "OTHER_OPERATION_IN_PROGRESS" or loop.time() >= give_up:
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
