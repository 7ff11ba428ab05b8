"""A password file that goes bad while the daemon runs: it is named, and needs no restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.world import World, clock, new_run
from xorepd.config.models import Settings
from xorepd.daemon.engine import open_engine
from xorepd.state.records import Outcome
from xorepd_lab.faults.faults import Fault


def missing(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_text("")


def readable_by_all(file: Path) -> None:
    file.chmod(0o644)


def no_text(file: Path) -> None:
    file.write_bytes(b"geheim\xff")


def a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("pool", "spoil", "words"),
    [
        ("prod", missing, "cannot be read (No such file or directory)"),
        ("dr", missing, "cannot be read (No such file or directory)"),
        ("prod", empty, "is empty"),
        ("dr", readable_by_all, "everyone can read it; chmod 600"),
        ("prod", no_text, "is not UTF-8 text"),
        ("dr", a_directory, "cannot be read (Is a directory)"),
    ],
)
async def test_password_file_that_cannot_be_used_when_a_session_is_renewed_is_named(
    two_pools: World,
    tmp_path: Path,
    pool: str,
    spoil: Callable[[Path], None],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xorepd.xapi.pool.TASK_LOOK_S", 0.5)
    with_files = Passwords(two_pools, tmp_path)
    with_files.write()
    job = two_pools.job(verify="off")
    async with open_engine(with_files.settings(), clock) as engine:
        held = two_pools.lab.faults.add(Fault("rpc", "VM.snapshot", "prod", stall=True))
        run = asyncio.get_running_loop().create_task(engine.run(job, new_run()), name="run")
        await held.stalled.wait()
        spoil(with_files.files[pool])
        two_pools.lab.pools[pool].db.forget("session")
        held.release()
        [met_in_its_middle] = await run
        [met_at_its_begin] = await engine.run(job, new_run())

        for spoiled in (met_in_its_middle, met_at_its_begin):
            said = spoiled.error or ""
            assert (spoiled.outcome, spoiled.remedy) == (Outcome.FAILED, "operator"), said
            assert words in said
            assert f"pools.{pool}.password_file" in said
            assert "network" not in said
            assert "geheim" not in said
        assert "pool.lost" not in capsys.readouterr().out

        with_files.write()
        [again] = await engine.run(job, new_run())
        assert again.outcome is Outcome.FULL, again.error
    assert await two_pools.left_over() == []


class Passwords:
    """A file for each pool, as a configuration names them."""

    def __init__(self, world: World, directory: Path) -> None:
        self._world = world
        self.files = {name: directory / f"{name}.password" for name in ("prod", "dr")}

    def write(self) -> None:
        """Make the files good, whatever they were."""
        for name, file in self.files.items():
            if file.is_dir():
                file.rmdir()
            file.touch(mode=0o600)
            file.chmod(0o600)
            file.write_text(self._world.lab.pools[name].password + "\n")

    def settings(self) -> Settings:
        pools = {
            name: self._world.settings(name, password=None, password_file=file)
            for name, file in self.files.items()
        }
        return Settings.model_validate({"pools": pools, "file": Path("/etc/xorepd/xorepd.toml")})
