"""One pool, as the rest of xorepd uses it: calls, tasks, records, and its HTTP side."""

from __future__ import annotations

import asyncio
import copy
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import structlog

from xorepd.config.models import PoolSettings
from xorepd.errors import ObjectBusy, ObjectGone, PasswordUnusable, XapiError, XapiUnreachable
from xorepd.ids import PoolName, Ref
from xorepd.tidying import to_the_end
from xorepd.units import format_duration
from xorepd.xapi.cache import PoolCache
from xorepd.xapi.clock import PoolClock
from xorepd.xapi.events import EventFeed
from xorepd.xapi.pace import Pace
from xorepd.xapi.records import BadRecord, PoolRecord, R, Task, Vdi, read_record
from xorepd.xapi.rpc.explained import Names, explain, nameless
from xorepd.xapi.rpc.failures import translate
from xorepd.xapi.rpc.session import Guard, Session

log = structlog.get_logger(__name__)

TASK_TIMEOUT_S = 7500.0
"""XAPI queues an operation on a busy object for up to 2 h before it reports that."""

TASK_LOOK_S = 30.0
"""Period at which a task is read without an event: events of short-lived tasks can be missed."""

_REFRESH_S = 60.0
_STUCK_S = 3600.0
"""Pause before a disk that stayed in use is tried again."""
_TIDYING_S = 15.0
_END_S = 60.0
"""How long a cancelled call may take to end before the next run fails."""

task_owner: ContextVar[str] = ContextVar("task_owner", default="xorepd:")
"""The owner of the tasks that are started in this context."""


@dataclass(frozen=True, slots=True)
class EndedTasks:
    """The result of `end_tasks_of`."""

    has_ended: bool
    """A call was still running, so records that were read before lack its effect."""
    evidence: tuple[Task, ...]
    """Tasks that prove what we created, or which disk we wrote."""


class _Moment:
    """Shares tokens of `event.inject` among callers; each gets one newer than its call."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._asked = self._answered = 0
        self._token = ""

    async def after_now(self, inject: Callable[[], Awaitable[str]]) -> str:
        """Return a token that was requested after this call, perhaps by another caller."""
        asked = self._asked
        async with self._turn:
            if self._answered <= asked:
                self._asked += 1
                self._token, self._answered = await inject(), self._asked
            return self._token


class Pool:
    """A pool's XAPI: `async with` keeps a session and an event feed for it.

    An unreachable pool is not an error until the first call.
    """

    def __init__(self, settings: PoolSettings, read_password: Callable[[], str]) -> None:
        self.name: PoolName = settings.name
        self.settings = settings
        self.cache = PoolCache()
        self.session = Session(settings, read_password, self.cache.describe)
        self.pace = Pace(settings.name, settings.slow_answer)
        self.clock = PoolClock(settings.name)
        self._feed = EventFeed(self.session, self.cache)
        self._moment = _Moment()
        self._group = asyncio.TaskGroup()
        self._feeding: asyncio.Task[None] | None = None
        self._turns: defaultdict[Ref, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._guard: Guard | None = None
        self._stuck: dict[Ref, float] = {}
        """Disks that stayed in use for too long → when, in loop time."""

    def guarded(self, guard: Guard) -> Pool:
        """Return a view of this pool whose changes a guard must allow, one by one.

        Session, records and locks are shared. Removing a task of our own needs no permission: it
        affects no other daemon, and must not be skipped.
        """
        view = copy.copy(self)
        view._guard = guard
        return view

    def is_stuck(self, vdi: Ref) -> bool:
        """Return whether a disk stayed in use for too long a short time ago."""
        noted = self._stuck.get(vdi)
        return noted is not None and asyncio.get_running_loop().time() - noted < _STUCK_S

    def note_stuck(self, vdi: Ref) -> None:
        """Remember that a disk stays in use."""
        self._stuck.setdefault(vdi, asyncio.get_running_loop().time())
        if not self.is_stuck(vdi):
            self._stuck[vdi] = asyncio.get_running_loop().time()

    def unguarded(self) -> Pool:
        """Return a view of this pool for changes that no guard may forbid."""
        view = copy.copy(self)
        view._guard = None
        return view

    def check(self) -> None:
        """Check that the guard allows a change.

        Raises:
            XorepdError: the guard forbids it.
        """
        if self._guard is not None:
            self._guard()

    async def __aenter__(self) -> Pool:
        await self._group.__aenter__()
        self._feeding = self._group.create_task(self._feed.run(), name=f"events {self.name}")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._feeding is not None:
            self._feeding.cancel()
        await self.session.end()
        await self._feed.stop()
        self.session.close()
        await self._group.__aexit__(None, None, None)

    async def call(self, method: str, *params: object) -> Any:
        """Make a short XAPI call and return its value (see `Session.call`)."""
        answer = await self.session.call(method, *params, guard=self._guard)
        self.pace.note(self.session.take_times())
        return answer

    def storage_turn(self, sr: Ref) -> asyncio.Lock:
        """Return the lock to hold during a storage operation on an SR."""
        return self._turns[sr]

    # -- records -----------------------------------------------------------------------------

    def read(self, cls: type[R], ref: Ref, raw: object) -> R:
        """Parse a record that a call has returned.

        Raises:
            XapiUnreachable: it is not a record of its class.
        """
        try:
            return read_record(cls, ref, raw)
        except BadRecord as error:
            raise XapiUnreachable(self.name, self.session.url, str(error)) from error

    async def refresh(self) -> None:
        """Wait until the cache has everything that has happened until now.

        Concurrent callers share one request.

        Raises:
            XapiError: the pool does not answer, or its events do not come.
        """
        token = await self._moment.after_now(self._inject)
        self._feed.hurry()
        try:
            has_come = await self.cache.wait_for_generation(token, _REFRESH_S)
        except ValueError as error:
            raise XapiUnreachable(self.name, self.session.url, str(error)) from error
        if not has_come:
            if isinstance(self.cache.failure, PasswordUnusable):
                raise self.cache.failure
            raise XapiUnreachable(
                self.name, self.session.url, f"no events for {_REFRESH_S:.0f} s"
            ) from self.cache.failure
        self.session.remember_members(host.address for host in self.cache.hosts.values())

    async def _inject(self) -> str:
        known = () if self.cache.failure else tuple(self.cache.table(PoolRecord))
        pools = known or await self.call("pool.get_all")
        if not pools:
            raise XapiUnreachable(self.name, self.session.url, "it knows of no pool")
        return str(await self.call("event.inject", "pool", pools[0]))

    # -- tasks -------------------------------------------------------------------------------

    async def run_task(self, method: str, *params: object, timeout: float = TASK_TIMEOUT_S) -> str:
        """Run a long XAPI call as a task and return its result (a reference, or "").

        Cancelling the caller cancels the task, as far as XAPI lets itself be cancelled.

        Raises:
            XapiError: the task failed.
        """
        if method.endswith(".destroy"):  # a removal can wait
            await self.pace.pause()
        task_ref = await self._start(method, params)
        try:
            return await self._result_of(task_ref, method, timeout)
        finally:
            await self.discard_call(task_ref)

    @asynccontextmanager
    async def creating(self, sr: Ref, method: str, *params: object) -> AsyncIterator[Ref]:
        """Run a call that creates a disk on an SR, and provide its reference until it is signed.

        If the block succeeds, the task of the call is removed. Else the task stays: it proves to
        `end_tasks_of` that the object is ours.

        Raises:
            XapiError: what the task failed with.
        """
        async with self.storage_turn(sr):
            task_ref = await self._start(method, params)
            try:
                made = Ref(await self._result_of(task_ref, method, TASK_TIMEOUT_S))
            except XapiError:  # nothing was created
                await self.discard_call(task_ref)
                raise
        yield made
        await self.discard_call(task_ref)

    async def _start(self, method: str, params: Iterable[object]) -> Ref:
        call = self.session.call(
            f"Async.{method}", *params, owner=task_owner.get(), guard=self._guard
        )
        return Ref(await call)

    async def _result_of(self, task_ref: Ref, method: str, timeout: float) -> str:
        try:
            task = await self.finished_task(task_ref, timeout)
        except asyncio.CancelledError:
            await self._cancel_task(task_ref)
            raise
        except TimeoutError:
            await self._cancel_task(task_ref)
            late = ["TASK_TIMEOUT", method, format_duration(timeout)]
            raise self.translated(late) from None
        except ObjectGone as gone:  # the task is gone, which says nothing about the object
            raise self.translated(["TASK_GONE", method]) from gone
        return task_result(self.name, task, self.cache.describe)

    def translated(self, details: Sequence[str]) -> XapiError:
        """Return the exception for an error of this pool: its code and parameters."""
        return translate(self.name, details, names=self.cache.describe)

    def disk(self, uuid: str) -> Vdi:
        """Return a disk by its UUID.

        Raises:
            ObjectGone: there is none.
        """
        found = self.cache.by_uuid(Vdi, uuid)
        if found is None:
            raise self.gone("VDI", uuid)
        return found

    def gone(self, kind: str, ref: str) -> ObjectGone:
        """Return the error for a missing object, by its reference or UUID."""
        said = explain("HANDLE_INVALID", [kind, ref], self.cache.describe).text
        return ObjectGone(self.name, kind, ref, said=said)

    async def finished_task(self, task_ref: Ref, timeout: float) -> Task:
        """Wait until a task is finished, and return its record, whatever the result.

        Raises:
            ObjectGone: the task has vanished, so its result is unknown.
            TimeoutError: not finished after `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            while True:
                await self.cache.wait_for(self._end_of(task_ref), TASK_LOOK_S)
                known = self.cache.tasks.get(task_ref)
                if known is None or not known.is_finished:
                    raw = await self.call("task.get_record", task_ref)
                    known = self.read(Task, task_ref, raw)
                if known.is_finished:
                    return known

    def _end_of(self, task_ref: Ref) -> Callable[[], bool]:
        """Return a predicate: whether a task is finished, or seems to be gone.

        A toolstack restart removes tasks without events. Then the feed reads everything again.
        """
        readings, seen = self.cache.readings, False

        def has_come() -> bool:
            nonlocal seen
            known = self.cache.tasks.get(task_ref)
            if known is None:
                return seen or self.cache.readings != readings
            seen = True
            return known.is_finished

        return has_come

    async def create_task(self, label: str) -> Ref:
        """Create a task for a request on the HTTP side."""
        return Ref(await self.call("task.create", label, task_owner.get()))

    async def end_tasks_of(self, owner: str) -> EndedTasks:
        """End the tasks that an earlier process has left for this owner.

        A call that XAPI still executes would change the pool after the caller has read it. So it is
        cancelled, and this method waits for its end. Tasks that prove what we created or wrote
        stay. The caller removes them (`discard_told`) after it has marked the objects.

        Raises:
            ObjectBusy: a call does not end.
        """
        ended, evidence = False, []
        for known in [task for task in self.cache.tasks.values() if task.owner == owner]:
            self.check()  # they may belong to another daemon by now
            task = known
            if task.is_call and not task.is_finished:
                ended = True
                task = await self._end_call(task) or task
            if task.made or task.wrote:
                evidence.append(task)
            elif task.is_finished:
                await self.destroy_task(task.ref)
            else:
                await self._abandon_task(task.ref)
        return EndedTasks(ended, tuple(evidence))

    async def _end_call(self, task: Task) -> Task | None:
        """Wait for the end of a call and return its record; None if its task is gone."""
        try:
            await self.call("task.cancel", task.ref)
            return await self.finished_task(task.ref, _END_S)
        except ObjectGone:  # it has ended, and its removal was requested before
            return None
        except TimeoutError:
            busy = f"{task.name_label} of an earlier run does not end"
            raise ObjectBusy(self.name, "task", task.uuid, busy) from None

    async def destroy_task(self, task_ref: Ref) -> None:
        """Remove a task of ours, if it still exists."""
        with suppress(ObjectGone):
            await self.session.call("task.destroy", task_ref)

    async def discard_call(self, task_ref: Ref) -> None:
        """Remove the task of a call during cleanup, cancelled or not; best effort.

        XAPI removes a pending task when its call ends.
        """
        with suppress(XapiError, TimeoutError):
            await to_the_end(self.destroy_task(task_ref), _TIDYING_S)

    async def discard_request(self, task_ref: Ref) -> None:
        """Remove the task of a request on the HTTP side, even if the request never arrived."""
        known = self.cache.tasks.get(task_ref)
        is_finished = known is not None and known.is_finished
        gone = self.destroy_task(task_ref) if is_finished else self._abandon_task(task_ref)
        with suppress(XapiError, TimeoutError):
            await to_the_end(gone, _TIDYING_S)

    async def discard_told(self, task: Task) -> None:
        """Remove a task of `end_tasks_of` after its object was marked."""
        gone = self.destroy_task if task.is_finished else self._abandon_task
        await gone(task.ref)

    async def _abandon_task(self, task_ref: Ref) -> None:
        """Remove a pending task of `create_task`, which else stays until its request ends."""
        with suppress(ObjectGone):
            await self.session.call("task.set_status", task_ref, "cancelled")
            await self.session.call("task.destroy", task_ref)

    async def _cancel_task(self, task_ref: Ref) -> None:
        with suppress(XapiError, TimeoutError):
            await to_the_end(self.session.call("task.cancel", task_ref), _TIDYING_S)


def task_result(pool: str, task: Task, names: Names = nameless) -> str:
    """Return the result of a finished task. XAPI wraps it in XML, `<value>OpaqueRef:…</value>`.

    Raises:
        XapiError: the task failed or was cancelled.
    """
    match task.status:
        case "success":
            return task.value
        case "cancelled" if not task.error_info:
            raise translate(pool, ["TASK_CANCELLED", task.name_label], names=names)
        case _:
            error = task.error_info or ["INTERNAL_ERROR", "no error in the task"]
            raise translate(pool, error, names=names)
