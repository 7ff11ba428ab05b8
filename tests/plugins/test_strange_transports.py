"""Plug-ins that misbehave in a run: one sentence that names them, and nothing is committed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.lab.labclient import until
from tests.lab.world import World, new_run
from tests.patience import patience
from xorepd.replication.run.jobs import run_job
from xorepd.state.records import Outcome
from xorepd.transports import guard

MODULE = """
import asyncio
from contextlib import aclosing

begun = asyncio.Event()

class transport:
    api = 3

    @staticmethod
    def open(options, surroundings):
        return transport

    @staticmethod
    async def carry(reader, target):
{carry}
"""
COPY = """
        async with target.open(reader.virtual_size, reader.extents) as writer:
            number = 0
            async with aclosing(reader.pieces()) as pieces:
                async for offset, data in pieces:
                    number += 1
                    {each}
            {end}
"""
STRANGE = {
    "crashes": ("        raise KeyError('lost')\n", "transport odd failed (KeyError: 'lost')"),
    "exits": ("        raise SystemExit(3)\n", "transport odd failed (it called exit)"),
    "crashes-midway": (
        COPY.format(each="await writer.write(offset, data); assert number < 3, 'no'", end="pass"),
        "transport odd failed (AssertionError: no)",
    ),
    "loses": (
        COPY.format(
            each="(await writer.write(offset, data)) if number != 2 else None",
            end="await writer.finish()",
        ),
        "transport odd failed (it passed on ",
    ),
    "hurries": (
        COPY.format(each="await writer.write(offset, data)", end="pass"),
        "transport odd failed (it ended before the target confirmed the data)",
    ),
    "does-nothing": (
        "        pass\n",
        "transport odd failed (it ended before the target confirmed the data)",
    ),
    "pretends": (
        "        target.confirmed(reader.virtual_size)\n",
        " bytes where 0 had been read)",
    ),
}
DEAF = """
        async with target.open(reader.virtual_size, reader.extents) as writer:
            begun.set()
            while True:
                try:
                    await asyncio.sleep(0.05)
                    await writer.write(0, memoryview(bytes(512)))
                except asyncio.CancelledError:
                    continue
"""


def install(path: Path, monkeypatch: pytest.MonkeyPatch, name: str, carry: str) -> None:
    module = "strange_" + name.replace("-", "_")
    (path / f"{module}.py").write_text(MODULE.replace("{carry}", carry))
    info = path / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[xorepd.transports]\nodd = {module}:transport\n")
    monkeypatch.syspath_prepend(path)


@pytest.mark.parametrize("name", STRANGE)
async def test_its_run_fails_with_one_sentence_and_commits_nothing(
    two_pools: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    carry, words = STRANGE[name]
    install(tmp_path, monkeypatch, name, carry)

    async with two_pools.daemon() as context:
        record = await two_pools.run(context, transport="odd", verify="off")
        assert record.outcome is Outcome.FAILED
        assert words in (record.error or "")
        assert await two_pools.points() == []
        again = await two_pools.run(context)

    assert again.error is None
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


async def test_one_that_ignores_its_cancellation_does_not_hold_up_the_run(
    two_pools: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "CANCEL_S", 0.2)
    install(tmp_path, monkeypatch, "deaf", DEAF)

    async with two_pools.daemon() as context:
        job = two_pools.job(transport="odd")
        run = asyncio.get_running_loop().create_task(run_job(job, new_run(), context))
        await until(lambda: "strange_deaf" in sys.modules)
        await sys.modules["strange_deaf"].begun.wait()
        run.cancel()
        await asyncio.wait({run}, timeout=patience())
        assert run.cancelled()
        assert await two_pools.points() == []
        again = await two_pools.run(context)

    assert again.error is None
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []
