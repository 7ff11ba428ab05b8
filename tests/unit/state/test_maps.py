from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.unit.parts import NOON
from xorepd.errors import StateError
from xorepd.state.maps import FORGOTTEN_AFTER, Maps, open_maps
from xorepd.state.store import open_store

LIMIT = 1 << 30
STREAM = "pool/vm/sr"
A, B, C = (bytes([letter]) * 4096 for letter in b"ABC")


class Clock:
    now = NOON

    def __call__(self) -> datetime:
        return self.now


async def draw(maps: Maps, content: str, base: str, **pages: bytes) -> None:
    """Make the map of a content complete; `_3` is the page 3."""
    draft = await maps.draw(STREAM, content, await maps.find(STREAM, base))
    await draft.write({int(name[1:]): page for name, page in pages.items()}, 1 << 30)
    await draft.complete()


async def read(maps: Maps, content: str) -> dict[int, bytes] | None:
    found = await maps.find(STREAM, content)
    return None if found is None else dict(await found.read(0, 100))


async def test_a_change_has_the_pages_of_its_base_where_it_has_none_itself(tmp_path: Path) -> None:
    async with open_maps(tmp_path / "maps.db", LIMIT, Clock()) as maps:
        assert maps is not None
        await draw(maps, "one", "", _0=A, _7=A)
        await draw(maps, "two", "one", _7=B, _9=b"")

    async with open_maps(tmp_path / "maps.db", LIMIT, Clock()) as maps:
        assert maps is not None
        assert await read(maps, "two") == {0: A, 7: B, 9: b""}
        assert await read(maps, "one") is None


async def test_a_map_that_is_not_complete_is_not_found(tmp_path: Path) -> None:
    async with open_maps(tmp_path / "maps.db", LIMIT, Clock()) as maps:
        assert maps is not None
        await draw(maps, "one", "", _0=A)
        draft = await maps.draw(STREAM, "two", await maps.find(STREAM, "one"))
        await draft.write({0: B}, 1)

        assert await read(maps, "two") is None
        assert await read(maps, "one") == {0: A}


async def test_of_two_changes_of_one_base_the_one_that_is_asked_for_remains(tmp_path: Path) -> None:
    async with open_maps(tmp_path / "maps.db", LIMIT, Clock()) as maps:
        assert maps is not None
        await draw(maps, "one", "", _0=A, _1=A)
        await draw(maps, "two", "one", _0=B)
        await draw(maps, "three", "one", _1=C)

        assert await read(maps, "three") == {0: A, 1: C}
        assert await read(maps, "two") is None


async def test_a_map_of_one_stream_is_none_of_another(tmp_path: Path) -> None:
    async with open_maps(tmp_path / "maps.db", LIMIT, Clock()) as maps:
        assert maps is not None
        await draw(maps, "one", "", _0=A)

        assert await maps.find("pool/vm/elsewhere", "one") is None


async def test_what_is_retained_keeps_its_base(tmp_path: Path) -> None:
    async with open_maps(tmp_path / "maps.db", LIMIT, Clock()) as maps:
        assert maps is not None
        await draw(maps, "old", "", _0=C)
        await draw(maps, "one", "", _0=A)
        await draw(maps, "two", "one", _1=B)

        await maps.retain(STREAM, {"two"})

        assert await read(maps, "old") is None
        assert await read(maps, "two") == {0: A, 1: B}


async def test_a_map_that_was_forgotten_takes_no_more_pages(tmp_path: Path) -> None:
    async with open_maps(tmp_path / "maps.db", LIMIT, Clock()) as maps:
        assert maps is not None
        await draw(maps, "one", "", _0=A)
        draft = await maps.draw(STREAM, "two", await maps.find(STREAM, "one"))
        await maps.forget(STREAM, {"one"})

        with pytest.raises(StateError, match="forgotten"):
            await draft.write({0: B}, 1)
        assert rows(tmp_path / "maps.db", "pages") == 0


async def test_maps_that_nobody_draws_any_more_are_forgotten_at_a_start(tmp_path: Path) -> None:
    clock = Clock()
    async with open_maps(tmp_path / "maps.db", LIMIT, clock) as maps:
        assert maps is not None
        await draw(maps, "one", "", _0=A)
    clock.now = NOON + FORGOTTEN_AFTER + timedelta(seconds=1)

    async with open_maps(tmp_path / "maps.db", LIMIT, clock):
        pass

    assert (rows(tmp_path / "maps.db", "maps"), rows(tmp_path / "maps.db", "pages")) == (0, 0)


async def test_new_maps_leave_room_for_changes_of_those_that_are_there(tmp_path: Path) -> None:
    limit = 256 * 1024
    async with open_maps(tmp_path / "maps.db", limit, Clock()) as maps:
        assert maps is not None
        await draw(maps, "one", "", **{f"_{page}": A for page in range(47)})
        with pytest.raises(StateError, match=r"raise \[daemon\] maps"):
            await draw(maps, "new", "", _0=B)

        await draw(maps, "two", "one", _0=B)

        assert (await read(maps, "two") or {})[0] == B


async def test_the_file_is_its_owners_alone_and_its_seed_stays(tmp_path: Path) -> None:
    file = tmp_path / "maps.db"
    seeds = []
    for _ in range(2):
        async with open_maps(file, LIMIT, Clock()) as maps:
            assert maps is not None
            seeds.append(maps.seed)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert seeds[0] == seeds[1] != 0


async def test_a_database_of_another_kind_gives_way(tmp_path: Path) -> None:
    async with open_store(tmp_path / "maps.db"):
        pass

    async with open_maps(tmp_path / "maps.db", LIMIT, Clock()) as maps:
        assert maps is not None
        await draw(maps, "one", "", _0=A)


async def test_no_room_at_all_removes_the_file(tmp_path: Path) -> None:
    file = tmp_path / "maps.db"
    async with open_maps(file, LIMIT, Clock()) as maps:
        assert maps is not None

    async with open_maps(file, 0, Clock()) as maps:
        assert maps is None
    assert not file.exists()


def rows(file: Path, table: str) -> int:
    with closing(sqlite3.connect(file)) as database:
        found: int = database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return found
