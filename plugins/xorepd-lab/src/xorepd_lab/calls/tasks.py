"""Tasks: the records that tell how a call or a stream went.

    pending ──► success | failure | cancelled        the first completion wins

Source: xapi: ocaml/xapi/taskHelper.ml, xapi_task.ml, db_gc_util.ml.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from xorepd_lab.model.clock import Clock, parse_time
from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.model.registry import Registry
from xorepd_lab.model.schema import EPOCH
from xorepd_lab.wire.xmlrpc import encode_value

COMPLETED_KEPT = timedelta(seconds=3900)
PENDING_KEPT = timedelta(hours=24)
MAX_TASKS = 200


@dataclass(frozen=True, slots=True)
class TaskWish:
    """What the headers of a request say of its task."""

    other_config: Mapping[str, str] = field(default_factory=dict)
    task: str = ""
    """The client's own task, to be used for the call; it is not completed with it."""
    subtask_of: str = NULL


NOTHING = TaskWish()


class Tasks:
    """The tasks of one pool."""

    def __init__(self, db: Registry, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._stuck: dict[str, float] = {}
        """Progress of old pending tasks at the last sweep."""
        self._held: set[str] = set()
        self._owners: dict[str, str] = {}
        """The session that each task was made with."""

    def create(
        self,
        label: str,
        description: str = "",
        subtask_of: str = NULL,
        other_config: Mapping[str, str] = NOTHING.other_config,
        session: str = NULL,
    ) -> str:
        master = next(self._db.select("pool"), None)
        ref = self._db.create(
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
        if session != NULL:
            self._owners[ref] = session
        return ref

    def adopt(self, wish: TaskWish) -> str | None:
        """Return the task that a client wants its call to run in, if there is one."""
        return wish.task if wish.task and self._db.exists("task", wish.task) else None

    def owner(self, ref: str) -> str:
        """Return the session that made a task; NULL for the toolstack's own."""
        return self._owners.get(ref, NULL)

    def of_session(self, session: str) -> list[str]:
        """Return the tasks that were made with a session."""
        return [
            ref
            for ref, owner in self._owners.items()
            if owner == session and self._db.exists("task", ref)
        ]

    @contextmanager
    def temporary(
        self,
        label: str,
        subtask_of: str = NULL,
        other_config: Mapping[str, str] = NOTHING.other_config,
        session: str = NULL,
    ) -> Iterator[str]:
        """Give a task that exists while the block runs, as synchronous calls have one."""
        ref = self.create(label, "", subtask_of, other_config, session)
        try:
            yield ref
        finally:
            self._owners.pop(ref, None)
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

    def destroy(self, ref: str) -> None:
        """Remove a completed task; a pending one goes when it ends."""
        if self.is_pending(ref):
            self._db.put("task", ref, "current_operations", "task", "destroy")
        else:
            self._db.destroy("task", ref)

    def cancel(self, ref: str, by: str) -> None:
        """Ask the work of a task to end; who does the work sees to it, or does not."""
        if self._db.get("task", ref, "status") == "pending":
            self._db.set("task", ref, current_operations={by: "cancel"})

    def sweep(self) -> None:
        """Do one pass of XAPI's garbage collection, which runs every 30 s."""
        for gone in [ref for ref in self._owners if not self._db.exists("task", ref)]:
            del self._owners[gone]
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

    def hold(self, ref: str) -> None:
        """Keep a task pending whatever happens to its work."""
        self._held.add(ref)

    def _finish(self, ref: str, status: str, **fields: Any) -> None:
        if not self.is_pending(ref) or ref in self._held:
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
            allowed_operations=[],
            **fields,
        )


def result_text(value: Any) -> str:
    """Return a call's result as tasks hold it: XML-RPC text."""
    return encode_value(value)
