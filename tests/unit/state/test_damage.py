"""Damage of any kind to the files of the state: set aside, made anew, and said."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.unit.parts import NOON, record
from xorepd.errors import StateError
from xorepd.state.aside import MOST, list_set_aside, set_aside
from xorepd.state.history import History, check_history
from xorepd.state.maps import Maps, open_maps
from xorepd.state.store import open_store

Damage = Callable[[Path], object]
LIMIT = 1 << 30
PAGE = b"A" * 4096


def clock() -> datetime:
    return NOON


async def make_history(file: Path) -> None:
    async with open_store(file) as store:
        history = await History.open(store)
        history.begin("web", NOON, "run-1", [record(run_id="run-1")])
        for number in range(50):
            history.add(record(run_id=f"run-{number}", vm_name=f"vm-{number}"))
        history.begin("web", NOON, "run-99", [record(run_id="run-99")])
        assert await history.flush()


async def use_history(file: Path) -> None:
    """Do all that a daemon does with its history."""
    async with open_store(file, check=check_history) as store:
        history = await History.open(store)
        await history.take_over(NOON, ["web"])
        await history.flush()
        await history.last_starts()
        history.latest()
        await history.page(limit=1000)
        await history.of_run("run-1")
        history.begin("web", NOON, "run-100", [record(run_id="run-100")])
        history.add(record(run_id="run-100"))
        history.end("run-100")
        assert await history.flush()
        await history.expire(NOON)
        assert [each.run_id for each in await history.page(limit=1)] == ["run-100"]


async def make_maps(file: Path) -> None:
    async with open_maps(file, LIMIT, clock) as maps:
        assert maps is not None
        for stream in ("one", "two"):
            draft = await maps.draw(stream, "content", None)
            await draft.write(dict.fromkeys(range(50), PAGE), 1 << 30)
            await draft.complete()


async def use_maps(file: Path) -> None:
    """Do all that a daemon does with its maps; they may be lost, and none may be another's."""
    async with open_maps(file, LIMIT, clock) as maps:
        assert maps is not None
        try:
            await _work_with(maps)
        except StateError:
            assert list_set_aside(file.parent)  # found in use: it is made anew at the next start


async def _work_with(maps: Maps) -> None:
    base = await maps.find("one", "content")
    if base is not None:
        await base.read(0, 100)
    draft = await maps.draw("one", "next", base)
    await draft.write({0: PAGE, 7: PAGE}, 1 << 30)
    await draft.complete()
    await maps.retain("one", {"next"})
    found = await maps.find("one", "next")
    assert found is not None
    await found.read(0, 100)
    await maps.forget("one", {"next"})


KINDS = {"history.db": (make_history, use_history), "maps.db": (make_maps, use_maps)}


def sql(*statements: str) -> Damage:
    def damage(file: Path) -> None:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    return damage


def overwritten(start: int, data: bytes) -> Damage:
    def damage(file: Path) -> None:
        with file.open("r+b") as opened:
            opened.seek(start)
            opened.write(data)

    return damage


def replaced(file: Path) -> None:
    file.unlink()
    file.mkdir()


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def with_a_foreign_log(file: Path) -> None:
    Path(f"{file}-wal").write_bytes(random.Random(1).randbytes(100_000))


SET_ASIDE: dict[str, Damage] = {
    "garbage": lambda file: file.write_bytes(b"no database at all" * 100),
    "zeroes": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "half of it": truncated,
    "a directory": replaced,
    "its head": overwritten(0, bytes(100)),
    "its first page": overwritten(100, b"\xff" * 3000),
    "text that is not UTF-8 in the schema": sql(
        "UPDATE sqlite_master SET name = CAST(x'ff00fe' AS TEXT), sql = CAST(x'fffe' AS TEXT)"
        " WHERE type = 'table' AND rootpage > 1"
    ),
    "a number that no release has": sql("PRAGMA user_version = 1000000000"),
    "a schema that ends early": sql("PRAGMA user_version = 0"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("damage", SET_ASIDE.values(), ids=SET_ASIDE)
async def test_a_damaged_file_is_set_aside_and_made_anew_and_said(
    tmp_path: Path, name: str, damage: Damage
) -> None:
    make, use = KINDS[name]
    file = tmp_path / name
    await make(file)
    damage(file)
    whole = file.read_bytes() if file.is_file() else b""

    with capture_logs() as logs:
        await use(file)
        await use(file)

    assert [(line["event"], line["file"]) for line in logs if line["log_level"] == "error"] == [
        ("state.set_aside", str(file))
    ]
    aside = tmp_path / f"{name}.damaged"
    assert not whole or aside.read_bytes() == whole
    [told] = list_set_aside(tmp_path)
    assert told.startswith(f"{name} was damaged and has been replaced")
    assert str(aside) in told


@pytest.mark.parametrize(
    "damage",
    [
        sql("UPDATE latest SET record = 'no json'"),
        sql("UPDATE latest SET record = '[]'"),
        sql("UPDATE latest SET record = '{}'"),
        sql(f"UPDATE latest SET record = '{'[' * 100_000}'"),
        sql("UPDATE latest SET newest_point = 'yesterday'"),
        sql("UPDATE latest SET record = CAST(x'ff' AS TEXT)"),
        sql("UPDATE starts SET started_at = 'yesterday'"),
        sql("UPDATE starts SET started_at = 1e300"),
        sql("UPDATE begun SET records = '7'"),
        sql("UPDATE begun SET records = '[7]'"),
        sql("DROP TABLE latest"),
        sql("ALTER TABLE starts RENAME started_at TO ended_at"),
    ],
)
async def test_a_history_that_a_start_cannot_read_is_set_aside(
    tmp_path: Path, damage: Damage
) -> None:
    file = tmp_path / "history.db"
    await make_history(file)
    damage(file)

    await use_history(file)

    assert len(list_set_aside(tmp_path)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        sql("DELETE FROM secret"),
        sql("DROP TABLE pages"),
        sql("DROP TABLE maps"),
    ],
)
async def test_maps_that_lack_something_are_usable_again(tmp_path: Path, damage: Damage) -> None:
    file = tmp_path / "maps.db"
    await make_maps(file)
    damage(file)

    await use_maps(file)
    await use_maps(file)


@pytest.mark.parametrize(
    "damage",
    [
        sql("UPDATE secret SET seed = 'not hexadecimal'"),
        sql("UPDATE secret SET seed = CAST(x'ff' AS TEXT)"),
        sql("UPDATE secret SET seed = x'ff'"),
    ],
)
async def test_maps_without_their_seed_are_set_aside(tmp_path: Path, damage: Damage) -> None:
    file = tmp_path / "maps.db"
    await make_maps(file)
    damage(file)

    await use_maps(file)

    assert len(list_set_aside(tmp_path)) == 1


@pytest.mark.parametrize("record_text", ["no json", "[]", '{"outcome": 7}'])
async def test_a_record_that_cannot_be_read_costs_itself(tmp_path: Path, record_text: str) -> None:
    file = tmp_path / "history.db"
    await make_history(file)
    sql(f"UPDATE runs SET record = '{record_text}' WHERE run_id = 'run-7'")(file)

    async with open_store(file, check=check_history) as store:
        found = await History(store).page(limit=1000)

    assert len(found) == 49
    assert list_set_aside(tmp_path) == ()


async def test_a_log_that_belongs_to_nothing_costs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "history.db"
    await make_history(file)
    with_a_foreign_log(file)

    await use_history(file)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", KINDS)
async def test_bytes_that_changed_anywhere_stop_no_daemon(
    tmp_path: Path, name: str, seed: int
) -> None:
    make, use = KINDS[name]
    file = tmp_path / name
    await make(file)
    rng = random.Random(seed)
    size = rng.choice([1, 4, 64, 512, 4096])
    overwritten(rng.randrange(file.stat().st_size), rng.randbytes(size))(file)

    await use(file)
    await use(file)


async def test_a_history_that_is_damaged_while_it_is_used_goes_on_anew(tmp_path: Path) -> None:
    file = tmp_path / "history.db"
    async with open_store(file, check=check_history) as store:
        history = await History.open(store)
        history.add(record(run_id="run-1"))
        assert await history.flush()
        await store.run(lambda connection: connection.execute("DROP TABLE runs"))

        history.add(record(run_id="run-2"))
        assert await history.flush()

        assert [each.run_id for each in await history.page()] == ["run-2"]
    assert len(list_set_aside(tmp_path)) == 1


async def test_maps_that_are_damaged_while_they_are_used_are_made_anew_at_the_next_start(
    tmp_path: Path,
) -> None:
    file = tmp_path / "maps.db"
    async with open_maps(file, LIMIT, clock) as maps:
        assert maps is not None
        with closing(sqlite3.connect(file)) as other:
            other.execute("DROP TABLE pages")
        for _ in range(3):
            with pytest.raises(StateError, match="the next start creates a new one"):
                await _work_with(maps)
        assert not file.exists()

    async with open_maps(file, LIMIT, clock) as maps:
        assert maps is not None
        await _work_with(maps)


@pytest.mark.usefixtures("hasty_store")
async def test_what_sqlite_says_of_its_surroundings_is_no_damage(tmp_path: Path) -> None:
    file = tmp_path / "history.db"
    await make_history(file)

    with closing(sqlite3.connect(file)) as rival:
        rival.execute("BEGIN EXCLUSIVE")
        async with open_store(file) as store:
            history = await History.open(store)
            history.add(record(run_id="run-2"))
            assert not await history.flush()
            assert "database is locked" in history.problem

    assert list_set_aside(tmp_path) == ()


def test_the_first_damaged_files_are_kept_whatever_follows(tmp_path: Path) -> None:
    file = tmp_path / "history.db"
    for number in range(6):
        file.write_text(str(number))
        Path(f"{file}-wal").write_text(str(number))
        set_aside(file, "a test")

    kept = {path.name: path.read_text() for path in tmp_path.iterdir() if "wal" not in path.name}
    assert kept == {
        "history.db.damaged": "0",
        "history.db.damaged2": "1",
        "history.db.damaged3": "5",
    }
    assert len(list_set_aside(tmp_path)) == MOST


async def test_a_map_whose_base_has_become_anothers_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "maps.db"
    await make_maps(file)
    async with open_maps(file, LIMIT, clock) as maps:
        assert maps is not None
        draft = await maps.draw("one", "next", await maps.find("one", "content"))
        await draft.complete()
    sql("UPDATE maps SET base = (SELECT id FROM maps WHERE stream = 'two') WHERE base NOT NULL")(
        file
    )

    async with open_maps(file, LIMIT, clock) as maps:
        assert maps is not None
        assert await maps.find("one", "next") is None
        assert await maps.find("two", "content") is not None


async def test_a_map_that_is_drawn_to_nowhere_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "maps.db"
    await make_maps(file)
    sql("UPDATE maps SET drawn_to = 'nowhere'")(file)

    async with open_maps(file, LIMIT, clock) as maps:
        assert maps is not None
        assert (await maps.draw("one", "content", None, goes_on=True)).drawn_to == 0
