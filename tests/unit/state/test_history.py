from __future__ import annotations

import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.parts import NOON, record
from xorepd.errors import StateError
from xorepd.state.history import History
from xorepd.state.records import Outcome
from xorepd.state.store import MIGRATIONS, open_store


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    async with open_store(tmp_path / "history.db") as store:
        yield History(store)


async def test_record_comes_back_as_it_went_in(history: History) -> None:
    written = record()

    await history.append([written])

    assert await history.of_run("run-1") == [written]
    assert await history.page() == [written]


async def test_history_outlives_the_daemon(tmp_path: Path) -> None:
    async with open_store(tmp_path / "history.db") as store:
        await History(store).append([record()])
        await History(store).begin("web", NOON, "run-1", [])

    async with open_store(tmp_path / "history.db") as store:
        assert await History(store).page() == [record()]
        assert await History(store).last_starts() == {"web": NOON}


async def test_page_gives_the_newest_first_and_can_be_of_one_job(history: History) -> None:
    await history.append([record(run_id=str(n), job=f"job-{n % 2}") for n in range(6)])

    assert [r.run_id for r in await history.page(limit=3)] == ["5", "4", "3"]
    assert [r.run_id for r in await history.page(job="job-0", limit=2)] == ["4", "2"]


async def test_failed_run_leaves_the_newest_point_known(history: History) -> None:
    await history.append([record()])
    failed = record(run_id="run-2", outcome=Outcome.FAILED, restore_point=None, error="cut")

    await history.append([failed])

    (latest,) = await history.latest()
    assert latest.record == failed
    assert latest.newest_point_at == record().point_in_time


async def test_snapshot_without_a_restore_point_is_no_point(history: History) -> None:
    # The source was snapshotted, and then the transfer failed.
    await history.append([record(outcome=Outcome.FAILED, restore_point=None)])

    (latest,) = await history.latest()

    assert latest.newest_point_at is None


async def test_old_records_expire(history: History) -> None:
    old = record(run_id="old", vm_uuid="vm-gone", finished_at=NOON - timedelta(days=91))
    await history.append([old, record(run_id="new")])

    expired = await history.expire(NOON - timedelta(days=90))

    assert expired == 1
    assert [r.run_id for r in await history.page()] == ["new"]
    assert [latest.record.run_id for latest in await history.latest()] == ["new"]


async def test_files_are_private(tmp_path: Path, history: History) -> None:
    await history.append([record()])

    assert modes(tmp_path) == {
        "history.db": 0o600,
        "history.db-wal": 0o600,
        "history.db-shm": 0o600,
    }


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


async def test_broken_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_bytes(b"no database at all" * 100)

    with pytest.raises(StateError, match=r"move it aside.*only history is lost"):
        async with open_store(tmp_path / "history.db"):
            pass


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


async def test_append_is_all_or_nothing(tmp_path: Path, history: History) -> None:
    with closing(sqlite3.connect(tmp_path / "history.db")) as rival:
        rival.execute(
            "CREATE TRIGGER no BEFORE INSERT ON runs WHEN new.run_id = 'bad'"
            " BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )

    with pytest.raises(StateError, match="disk full"):
        await history.append([record(), record(run_id="bad")])

    assert await history.page() == []


async def test_run_that_never_ended_is_interrupted_at_the_next_start(tmp_path: Path) -> None:
    begun = record(run_id="run-2", outcome=Outcome.RUNNING, finished_at=None, restore_point=None)
    async with open_store(tmp_path / "history.db") as store:
        history = History(store)
        await history.begin("web", NOON, "run-1", [record(outcome=Outcome.RUNNING)])
        await history.append([record()], ended="run-1")
        await history.begin("web", NOON, "run-2", [begun, begun])

    async with open_store(tmp_path / "history.db") as store:
        history = History(store)
        found = await history.interrupted(NOON)

        assert [(r.run_id, r.outcome, r.finished_at) for r in found] == [
            ("run-2", Outcome.INTERRUPTED, NOON)
        ] * 2
        assert "died in this run" in (found[0].error or "")
        assert await history.of_run("run-2") == found
        assert await history.of_run("run-1") == [record()]
        assert await history.interrupted(NOON) == []


async def test_run_without_records_has_ended_too(history: History) -> None:
    await history.begin("web", NOON, "run-1", [record(outcome=Outcome.RUNNING)])

    await history.append([], ended="run-1")

    assert await history.interrupted(NOON) == []
