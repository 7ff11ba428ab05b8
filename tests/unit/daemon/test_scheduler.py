from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from tests.unit.parts import NOON, Clock, job
from xorepd.config.models import JobSettings
from xorepd.daemon.scheduler import Scheduler
from xorepd.ids import JobName


class Starts:
    """What the scheduler started; a job in `busy` is running already."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []
        self.busy: set[str] = set()
        self.first = asyncio.Event()

    def __call__(self, job: JobSettings, cause: str) -> bool:
        if job.name in self.busy:
            return False
        self.made.append((job.name, cause))
        self.first.set()
        return True


def scheduler(
    *jobs: JobSettings, last: dict[str, datetime] | None = None
) -> tuple[Scheduler, Clock, Starts]:
    clock, starts = Clock(), Starts()
    made = Scheduler(starts, clock)
    made.load(jobs, last or {})
    return made, clock, starts


def test_job_starts_when_it_is_due_and_not_before() -> None:
    schedules, clock, starts = scheduler(job())

    clock.turn(minutes=4, seconds=59)
    schedules.fire()
    assert starts.made == []

    clock.turn(seconds=1)
    schedules.fire()
    schedules.fire()
    assert starts.made == [("web", "schedule")]
    assert schedules.next_run_at("web") == NOON + timedelta(minutes=10)


def test_new_job_waits_for_its_turn() -> None:
    schedules, _, starts = scheduler(job())

    schedules.fire()

    assert starts.made == []


def test_run_missed_while_down_is_caught_up_once() -> None:
    schedules, clock, starts = scheduler(job(), last={"web": NOON - timedelta(hours=3)})

    schedules.fire()
    assert starts.made == [("web", "missed")]

    clock.turn(minutes=5)
    schedules.fire()
    assert starts.made[1:] == [("web", "schedule")]


def test_nothing_is_caught_up_when_nothing_was_missed() -> None:
    schedules, _, starts = scheduler(job(schedule="0 * * * *"), last={"web": NOON})

    schedules.fire()

    assert starts.made == []


def test_many_turns_slept_through_are_one_run() -> None:
    schedules, clock, starts = scheduler(job())

    clock.turn(hours=8)
    schedules.fire()
    schedules.fire()

    assert starts.made == [("web", "schedule")]


def test_turns_during_a_run_are_one_run_after_it() -> None:
    schedules, clock, starts = scheduler(job())
    starts.busy = {"web"}
    for _ in range(3):
        clock.turn(minutes=5)
        schedules.fire()
    assert starts.made == []

    starts.busy = set()
    schedules.ended(JobName("web"))
    schedules.ended(JobName("web"))

    assert starts.made == [("web", "coalesced")]


def test_job_by_hand_or_disabled_is_never_due() -> None:
    schedules, clock, starts = scheduler(
        job("hand", schedule=None), job("off", enabled=False), job("web")
    )

    clock.turn(days=1)
    schedules.fire()

    assert starts.made == [("web", "schedule")]
    assert schedules.next_run_at("hand") is None
    assert schedules.next_run_at("off") is None


def test_reload_leaves_the_turn_of_an_unchanged_schedule() -> None:
    schedules, clock, starts = scheduler(job(), job("db", schedule="0 13 * * *"))
    clock.turn(minutes=6)

    schedules.reload([job(keep=7), job("db", schedule="0 14 * * *")])
    schedules.fire()

    assert starts.made == [("web", "schedule")]  # due at 12:05, and not forgotten at 12:06
    assert schedules.next_run_at("db") == NOON + timedelta(hours=2)


def test_removed_job_is_not_started_any_more() -> None:
    schedules, clock, starts = scheduler(job())

    schedules.reload([])
    clock.turn(days=1)
    schedules.fire()
    schedules.ended(JobName("web"))

    assert starts.made == []


def test_clock_that_is_set_back_does_not_stop_the_schedules() -> None:
    schedules, clock, _ = scheduler(job())
    clock.turn(days=365)
    schedules.fire()

    clock.turn(days=-365)
    schedules.fire()

    assert schedules.next_run_at("web") == NOON + timedelta(minutes=5)


def test_start_in_the_future_is_not_believed() -> None:
    schedules, _, _ = scheduler(job(), last={"web": NOON + timedelta(days=365)})

    assert schedules.next_run_at("web") == NOON + timedelta(minutes=5)


async def test_loop_fires_what_a_reload_makes_due() -> None:
    schedules, _, starts = scheduler()

    async with asyncio.TaskGroup() as group:
        loop = group.create_task(schedules.run())
        schedules.load([job()], {"web": NOON - timedelta(hours=1)})
        await starts.first.wait()
        loop.cancel()

    assert starts.made == [("web", "missed")]


async def test_loop_wakes_by_itself_when_a_job_comes_due() -> None:
    starts = Starts()

    def clock() -> datetime:
        # The wall clock, as if it were now 30 ms before the job is due.
        return NOON + timedelta(minutes=5, seconds=loop.time() - begun - 0.03)

    loop = asyncio.get_running_loop()
    begun = loop.time()
    schedules = Scheduler(starts, clock)
    schedules.load([job()], {})

    async with asyncio.TaskGroup() as group:
        running = group.create_task(schedules.run())
        await starts.first.wait()
        running.cancel()

    assert starts.made == [("web", "schedule")]
    assert clock() >= NOON + timedelta(minutes=5)
