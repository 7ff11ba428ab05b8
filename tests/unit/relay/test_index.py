from __future__ import annotations

import hashlib
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from xorepd.data.zeroes import UNIT
from xorepd.relay.index import FILE, open_index
from xorepd.units import KiB, MiB


def name(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "big")).digest()[:16]


def units(first: int, count: int) -> list[tuple[int, bytes]]:
    return [(number * UNIT, name(number)) for number in range(first, first + count)]


async def test_what_was_written_is_found_there_after_a_restart(tmp_path: Path) -> None:
    async with open_index(tmp_path, MiB) as index:
        await index.note("stream", "disk", units(0, 10))

    async with open_index(tmp_path, MiB) as index:
        found = await index.places("stream", "disk", [(3 * UNIT, name(3)), (4 * UNIT, name(8))])

        assert found == {3 * UNIT: 3 * UNIT, 4 * UNIT: 8 * UNIT}
        assert await index.places("stream", "disk", [(0, name(77))]) == {}
        assert await index.places("stream", "other disk", units(0, 1)) == {}
        assert await index.places("other stream", "disk", units(0, 1)) == {}


async def test_of_several_places_the_same_one_is_best(tmp_path: Path) -> None:
    async with open_index(tmp_path, MiB) as index:
        await index.note("stream", "disk", [(at * UNIT, name(1)) for at in (0, 5, 9)])

        assert await index.places("stream", "disk", [(5 * UNIT, name(1))]) == {5 * UNIT: 5 * UNIT}


async def test_what_is_written_anew_is_forgotten_as_it_was(tmp_path: Path) -> None:
    async with open_index(tmp_path, MiB) as index:
        await index.note("stream", "disk", units(0, 4))
        await index.note("stream", "disk", [(2 * UNIT, name(99))])

        assert await index.places("stream", "disk", [(0, name(2))]) == {}


async def test_beyond_its_limit_other_disks_are_forgotten_first(tmp_path: Path) -> None:
    async with open_index(tmp_path, 256 * KiB) as index:
        await index.note("stream", "old", units(0, 4000))
        await index.note("stream", "new", units(0, 4000))

        assert await index.places("stream", "old", units(0, 1)) == {}
        assert await index.places("stream", "new", units(0, 1)) == {0: 0}


@pytest.mark.parametrize("junk", [b"no database" * 1000, b"SQLite format 3\0" + bytes(4000)])
async def test_a_damaged_index_is_made_anew(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / FILE).write_bytes(junk)

    async with open_index(tmp_path, MiB) as index:
        await index.note("stream", "disk", units(0, 1))

        assert await index.places("stream", "disk", units(0, 1)) == {0: 0}


@pytest.mark.parametrize("seed", range(20))
async def test_bytes_that_changed_anywhere_stop_no_relay(tmp_path: Path, seed: int) -> None:
    async with open_index(tmp_path, MiB) as index:
        await index.note("stream", "disk", units(0, 500))
    rng = random.Random(seed)
    file = tmp_path / FILE
    with file.open("r+b") as opened:
        opened.seek(rng.randrange(file.stat().st_size))
        opened.write(rng.randbytes(rng.choice([1, 16, 512, 4096])))

    for _ in range(2):
        async with open_index(tmp_path, MiB) as index:
            await index.places("stream", "disk", units(0, 500))
            await index.note("stream", "disk", units(500, 100))


async def test_an_index_whose_schema_is_no_text_is_made_anew(tmp_path: Path) -> None:
    async with open_index(tmp_path, MiB) as index:
        await index.note("stream", "disk", units(0, 5))
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = CAST(x'fffe' AS TEXT), name = x'ff'")
        connection.commit()

    async with open_index(tmp_path, MiB) as index:
        await index.note("stream", "disk", units(0, 5))
        assert await index.places("stream", "disk", units(0, 1)) == {0: 0}


async def test_without_room_or_place_there_is_none_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "there" / FILE).mkdir(parents=True)
    for directory, limit in ((tmp_path, 0), (tmp_path / "there", MiB)):
        async with open_index(directory, limit) as index:
            await index.note("stream", "disk", units(0, 1))

            assert await index.places("stream", "disk", units(0, 1)) == {}


async def test_others_cannot_read_it(tmp_path: Path) -> None:
    async with open_index(tmp_path, MiB):
        assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
