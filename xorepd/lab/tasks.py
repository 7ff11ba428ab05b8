"""Tasks: the records that tell how a call or a stream went.

    pending ──► success | failure | cancelled        the first completion wins

Source: xapi: ocaml/xapi/taskHelper.ml, xapi_task.ml, db_gc_util.ml.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from xorepd.lab.clock import Clock, parse_time
from xorepd.lab.failures import NULL, ApiError
from xorepd.lab.registry import Registry
from xorepd.lab.schema import EPOCH
from xorepd.lab.xmlrpc import encode_value

COMPLETED_KEPT = timedelta(seconds=3900)
PENDING_KEPT = timedelta(hours=24)
MAX_TASKS = 200
NOTHING: Mapping[str, str] = {}


class Tasks:
    """The tasks of one pool."""

    def __init__(self, db: Registry, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._stuck: dict[str, float] = {}
        """Progress of old pending tasks at the last sweep."""

    def create(
        self,
        label: str,
        description: str = "",
        subtask_of: str = NULL,
        other_config: Mapping[str, str] = NOTHING,
    ) -> str:
        master = next(self._db.select("pool"), None)
        return self._db.create(
            "task",
            name_label=label,
            name_description=description,
            created=self._clock.now(),
            finished=EPOCH,
            status="pending",
            resident_on=self._db.get("pool", master, "master") if master else NULL,
            subtask_of=subtask_of,
            other_config=dict(other_config),
        )

    @contextmanager
    def temporary(self, label: str, subtask_of: str = NULL) -> Iterator[str]:
        """Give a task that exists while the block runs, as synchronous calls have one."""
        ref = self.create(label, subtask_of=subtask_of)
        try:
            yield ref
        finally:
            if self._db.exists("task", ref):
                self._db.destroy("task", ref)

    def is_pending(self, ref: str) -> bool:
        return self._db.exists("task", ref) and self._db.get("task", ref, "status") == "pending"

    def complete(self, ref: str, result: str) -> None:
        """Record success. `result` is XML text, see `result_text`."""
        self._finish(ref, "success", result=result)

    def fail(self, ref: str, error: ApiError) -> None:
        status = "cancelled" if error.code == "TASK_CANCELLED" else "failure"
        self._finish(ref, status, error_info=error.description)

    def progress(self, ref: str, fraction: float) -> None:
        if self.is_pending(ref):
            self._db.set("task", ref, progress=fraction)

    def is_cancelling(self, ref: str) -> bool:
        if not self._db.exists("task", ref):
            return False
        return "cancel" in self._db.get("task", ref, "current_operations").values()

    def check_cancelled(self, ref: str) -> None:
        if self.is_cancelling(ref):
            raise ApiError("TASK_CANCELLED", ref)

    def destroy(self, ref: str, by: str) -> None:
        """Remove a completed task; a pending one goes when it ends."""
        if self.is_pending(ref):
            self._db.put("task", ref, "current_operations", by, "destroy")
        else:
            self._db.destroy("task", ref)

    def cancel(self, ref: str, by: str) -> None:
        if self._db.get("task", ref, "status") == "pending":
            self._db.put("task", ref, "current_operations", by, "cancel")

    def sweep(self) -> None:
        """Do one pass of XAPI's garbage collection, which runs every 30 s."""
        now = self._clock.time()
        done: list[tuple[str, str]] = []
        stuck: dict[str, float] = {}
        young = 0
        for ref in self._db.refs("task"):
            record = self._db.record("task", ref)
            if record["status"] in ("success", "failure", "cancelled"):
                if now - parse_time(record["finished"]) > COMPLETED_KEPT:
                    self._db.destroy("task", ref)
                    continue
                done.append((record["finished"], ref))
            elif now - parse_time(record["created"]) > PENDING_KEPT:
                stuck[ref] = record["progress"]
                if self._stuck.get(ref) == record["progress"]:
                    self._db.destroy("task", ref)
                continue
            young += 1
        self._stuck = stuck
        if young > MAX_TASKS:
            # XAPI subtracts the completed ones where its comment speaks of the pending ones.
            kept = max(0, MAX_TASKS - len(done))
            for _, ref in sorted(done, reverse=True)[kept:]:
                self._db.destroy("task", ref)

    def _finish(self, ref: str, status: str, **fields: Any) -> None:
        if not self.is_pending(ref):
            return
        wanted = self._db.get("task", ref, "current_operations").values()
        if "destroy" in wanted:
            self._db.destroy("task", ref)
            return
        self._db.set(
            "task",
            ref,
            status=status,
            progress=1.0,
            finished=self._clock.now(),
            current_operations={},
            allowed_operations=[],
            **fields,
        )


def result_text(value: Any) -> str:
    """Return a call's result as tasks hold it: XML-RPC text."""
    return encode_value(value)
