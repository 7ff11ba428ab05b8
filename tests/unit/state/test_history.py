from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.parts import NOON, record
from xorepd.errors import StateError
from xorepd.state.history import MOST_UNWRITTEN, History
from xorepd.state.records import DiskRecord, Outcome, RunRecord
from xorepd.state.store import MIGRATIONS, Store, open_store


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[History]:
    async with open_store(directory / "history.db") as store:
        yield await History.open(store)


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    async with opened(tmp_path) as made:
        yield made


async def write(history: History, *records: RunRecord) -> None:
    for each in records:
        history.add(each)
    assert await history.flush()


async def test_record_comes_back_as_it_went_in(history: History) -> None:
    written = record()

    await write(history, written)

    assert await history.of_run("run-1") == [written]
    assert await history.page() == [written]


async def test_history_outlives_the_daemon(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        history.begin("web", NOON, "run-1", [])
        await write(history, record())

    async with opened(tmp_path) as history:
        assert await history.page() == [record()]
        assert await history.last_starts() == {"web": NOON}
        assert [each.record for each in history.latest()] == [record()]


async def test_page_gives_the_newest_first_and_can_be_of_one_job(history: History) -> None:
    await write(history, *(record(run_id=str(n), job=f"job-{n % 2}") for n in range(6)))

    assert [r.run_id for r in await history.page(limit=3)] == ["5", "4", "3"]
    assert [r.run_id for r in await history.page(job="job-0", limit=2)] == ["4", "2"]


async def test_failed_run_leaves_the_newest_point_known(history: History) -> None:
    failed = record(run_id="run-2", outcome=Outcome.FAILED, restore_point=None, error="cut")

    await write(history, record(), failed)

    (latest,) = history.latest()
    assert latest.record == failed
    assert latest.newest_point_at == record().point_in_time


async def test_snapshot_without_a_restore_point_is_no_point(history: History) -> None:
    # The source was snapshotted, and then the transfer failed.
    await write(history, record(outcome=Outcome.FAILED, restore_point=None))

    (latest,) = history.latest()

    assert latest.newest_point_at is None


async def test_old_records_expire(history: History) -> None:
    old = record(run_id="old", vm_uuid="vm-gone", finished_at=NOON - timedelta(days=91))
    await write(history, old, record(run_id="new"))

    expired = await history.expire(NOON - timedelta(days=90))

    assert expired == 1
    assert [r.run_id for r in await history.page()] == ["new"]
    assert [latest.record.run_id for latest in history.latest()] == ["new"]


async def test_files_are_private(tmp_path: Path, history: History) -> None:
    await write(history, record())

    assert modes(tmp_path) == {
        "history.db": 0o600,
        "history.db-wal": 0o600,
        "history.db-shm": 0o600,
    }


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


async def test_file_of_a_newer_xorepd_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "history.db")) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")

    with pytest.raises(StateError, match="newer xorepd"):
        async with open_store(tmp_path / "history.db"):
            pass


async def test_directory_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"check \[daemon\] state_dir"):
        async with open_store(tmp_path / "nope" / "history.db"):
            pass


async def test_run_that_never_ended_is_interrupted_at_the_next_start(tmp_path: Path) -> None:
    begun = record(run_id="run-2", outcome=Outcome.RUNNING, finished_at=None, restore_point=None)
    async with opened(tmp_path) as history:
        history.begin("web", NOON, "run-1", [record(outcome=Outcome.RUNNING)])
        await write(history, record())
        history.end("run-1")
        history.begin("web", NOON, "run-2", [begun, begun])
        await history.flush()

    async with opened(tmp_path) as history:
        found, cut = await history.take_over(NOON, {"web", "db"})

        assert [(r.run_id, r.outcome, r.finished_at) for r in found] == [
            ("run-2", Outcome.INTERRUPTED, NOON)
        ] * 2
        assert cut == {"web"}
        assert "went down before the end of this run" in (found[0].error or "")
        assert await history.of_run("run-2") == found
        assert await history.of_run("run-1") == [record()]
        assert await history.flush()
        assert await history.take_over(NOON, {"web"}) == ([], {"web"})


async def test_those_whom_a_run_found_are_the_ones_that_are_interrupted(tmp_path: Path) -> None:
    pattern = record(vm_uuid="", vm_name="web*", outcome=Outcome.RUNNING)
    found = [replace(pattern, vm_uuid=f"vm-{n}", vm_name="web01") for n in range(3)]
    async with opened(tmp_path) as history:
        history.begin("web", NOON, "run-1", [pattern])
        await history.flush()
        history.expect("web", "run-1", found)
        await write(history, record(vm_uuid="vm-1"))

    async with opened(tmp_path) as history:
        records, _ = await history.take_over(NOON, ())

    assert [(r.vm_uuid, r.vm_name) for r in records] == [("vm-0", "web01"), ("vm-2", "web01")]


async def test_run_without_records_has_ended_too(history: History) -> None:
    history.begin("web", NOON, "run-1", [record(outcome=Outcome.RUNNING)])
    await history.flush()

    history.end("run-1")
    await history.flush()

    assert await history.take_over(NOON, {"web"}) == ([], set())


async def test_run_that_an_older_xorepd_began_is_interrupted_and_made_up(tmp_path: Path) -> None:
    begun = json.dumps([record(outcome=Outcome.RUNNING).to_json()])
    with closing(sqlite3.connect(tmp_path / "history.db")) as old:
        for migration in MIGRATIONS[:2]:
            old.executescript(migration)
        old.execute("PRAGMA user_version = 2")
        old.execute("INSERT INTO begun (run_id, records) VALUES ('run-1', ?)", (begun,))
        old.commit()

    async with opened(tmp_path) as history:
        found, cut = await history.take_over(NOON, {"web"})

    assert ([r.outcome for r in found], cut) == ([Outcome.INTERRUPTED], {"web"})


async def test_record_of_an_older_xorepd_is_read_under_its_new_names(tmp_path: Path) -> None:
    disk = DiskRecord("0", "root", 1 << 30, read_bytes=4096, reconnects=2)
    text = json.dumps(
        record(outcome=Outcome.LEASE_HELD, disks=(disk,)).to_json(), separators=(",", ":")
    )
    for new, old in (
        ("read_bytes", "read_bytes"),
        ("reconnects", "breaks"),
        ("lease-held", "held"),
    ):
        text = text.replace(f'"{new}"', f'"{old}"')
    with closing(sqlite3.connect(tmp_path / "history.db")) as old_file:
        for migration in MIGRATIONS[:3]:
            old_file.executescript(migration)
        old_file.execute("PRAGMA user_version = 3")
        row = "INSERT INTO runs (run_id, job, finished_at, record) VALUES ('run-1', 'web', 0, ?)"
        old_file.execute(row, (text,))
        old_file.commit()

    async with opened(tmp_path) as history:
        [found] = await history.of_run("run-1")

    assert (found.outcome, found.disks) == (Outcome.LEASE_HELD, (disk,))


# -- a store that takes nothing --------------------------------------------------------------------


@asynccontextmanager
async def full(directory: Path) -> AsyncIterator[tuple[History, Store]]:
    """Provide a history whose file has no room to grow."""
    async with open_store(directory / "history.db") as store:
        history = await History.open(store)
        await write(history, record(run_id="before"))
        await set_room(store, 1)
        yield history, store


async def set_room(store: Store, pages: int) -> None:
    await store.run(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}"))


def many(count: int) -> list[RunRecord]:
    return [record(run_id=str(n), error="x" * 2000) for n in range(count)]


async def test_what_finds_no_room_is_shown_and_written_when_there_is_some(tmp_path: Path) -> None:
    async with full(tmp_path) as (history, store):
        for each in many(20):
            history.add(each)

        assert not await history.flush()
        assert "database or disk is full; make room there" in history.problem
        assert history.unwritten == many(20)
        assert await history.page(limit=2) == [many(20)[-1], many(20)[-2]]
        assert await history.page(job="other") == []
        assert await history.of_run("7") == [many(20)[7]]
        assert history.latest()[0].record == many(20)[-1]

        await set_room(store, 1 << 20)
        assert await history.flush()
        assert (history.problem, history.unwritten) == ("", [])
        assert await history.page() == [*reversed(many(20)), record(run_id="before")]

    async with opened(tmp_path) as history:
        assert len(await history.page()) == 21


async def test_what_an_earlier_process_left_is_known_though_nothing_can_be_written(
    tmp_path: Path,
) -> None:
    async with full(tmp_path) as (history, store):
        await set_room(store, 1 << 20)
        for n in range(20):
            expected = replace(many(1)[0], run_id=str(n), vm_uuid=f"vm-{n}")
            history.begin(f"job-{n}", NOON, str(n), [expected])
        await history.flush()

    async with open_store(tmp_path / "history.db") as store:
        await set_room(store, 1)
        history = await History.open(store)

        found, cut = await history.take_over(NOON, {"job-3"})

        assert (len(found), cut) == (20, {"job-3"})
        assert not await history.flush()
        assert history.unwritten == found
        assert history.latest()[0].record == found[-1]


async def test_run_that_ended_while_nothing_could_be_written_is_not_interrupted(
    tmp_path: Path,
) -> None:
    async with full(tmp_path) as (history, store):
        for each in many(20):
            history.begin("web", NOON, each.run_id, [replace(each, outcome=Outcome.RUNNING)])
            await history.flush()
            history.add(each)
            await history.flush()
            history.end(each.run_id)
            await history.flush()
        assert history.problem
        await set_room(store, 1 << 20)
        await history.flush()

    async with opened(tmp_path) as history:
        assert await history.take_over(NOON, {"web"}) == ([], set())
        assert await history.last_starts() == {"web": NOON}


async def test_run_that_ends_when_only_its_begin_could_be_written_is_over_all_the_same(
    tmp_path: Path,
) -> None:
    async with full(tmp_path) as (history, store):
        await set_room(store, 1 << 20)
        history.begin("web", NOON, "run-1", [record(vm_name="web*", outcome=Outcome.RUNNING)])
        await history.flush()
        await set_room(store, 1)
        history.expect("web", "run-1", many(50))
        assert not await history.flush()
        history.end("run-1")
        await set_room(store, 1 << 20)
        assert await history.flush()

    async with opened(tmp_path) as history:
        assert await history.take_over(NOON, {"web"}) == ([], set())


async def test_what_is_kept_is_bounded_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    async with full(tmp_path) as (history, store):
        for n in range(MOST_UNWRITTEN + 5):
            history.begin("web", NOON, str(n), [])
            history.add(record(run_id=str(n)))
            history.end(str(n))

        assert not await history.flush()

        assert (len(history.unwritten), history.lost) == (MOST_UNWRITTEN, 5)
        assert history.waiting == MOST_UNWRITTEN + 1  # and when the job last started
        assert history.unwritten[0].run_id == "5"
        await set_room(store, 1 << 20)
        assert await history.flush()
        assert history.lost == 0
        [newest] = await history.page(limit=1)
        assert newest.run_id == str(MOST_UNWRITTEN + 4)


async def test_record_is_written_once_though_somebody_who_waits_for_it_gives_up(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as history:
        history.add(record())
        with closing(sqlite3.connect(tmp_path / "history.db")) as rival:
            rival.execute("BEGIN IMMEDIATE")
            loop = asyncio.get_running_loop()
            first = loop.create_task(history.flush(), name="first")
            await asyncio.sleep(0)
            waiting = loop.create_task(history.settled(), name="waiting")
            await asyncio.sleep(0)
            waiting.cancel()
            rival.rollback()
        assert await history.flush()
        assert await first

        assert await history.page() == [record()]


async def test_reader_beside_the_writer_misses_nothing_and_sees_nothing_twice(
    history: History,
) -> None:
    loop = asyncio.get_running_loop()
    writing = loop.create_task(history.write(), name="write")
    told: list[str] = []
    for n in range(100):
        told.append(str(n))
        history.add(record(run_id=str(n)))
        if n % 3 == 0:
            await asyncio.sleep(0)

        page = [r.run_id for r in await history.page(limit=5)]

        assert page == told[:-6:-1]
    writing.cancel()
