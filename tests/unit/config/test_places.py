"""Places on this machine that a configuration names: found unusable before anything runs."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.unit.parts import JOB, POOLS, settings_of
from xorepd.config.places import MOST_SOCKET_BYTES, place_problems
from xorepd.errors import ConfigError


def problems(directory: Path, daemon: str = "", job: str = "") -> list[ConfigError]:
    """Return what is wrong, with places that are good but for what a test says."""
    table = {"state_dir": '"state"', "socket": '"control.sock"'}
    for line in filter(None, daemon.splitlines()):
        key, _, value = line.partition(" = ")
        table[key] = value
    lines = "".join(f"{key} = {value}\n" for key, value in table.items())
    return list(place_problems(settings_of(directory, f"[daemon]\n{lines}" + POOLS + JOB + job)))


def test_places_that_are_to_be_made_are_good(tmp_path: Path) -> None:
    assert problems(tmp_path, 'state_dir = "a/b/c"\nsocket = "d/e/f.sock"\n') == []
    assert list(tmp_path.iterdir()) == [tmp_path / "xorepd.toml"]


def test_places_of_a_daemon_that_ran_before_are_good(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    for name in ("lock", "history.db", "history.db-wal"):
        (tmp_path / "state" / name).touch()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "control.sock"))

    assert problems(tmp_path) == []


def test_socket_path_may_be_as_long_as_the_kernel_allows(tmp_path: Path) -> None:
    room = MOST_SOCKET_BYTES - len(str(tmp_path)) - 1
    longest, longer = "s" * room, "s" * (room + 1)

    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / longest))
    with socket.socket(socket.AF_UNIX) as bound, pytest.raises(OSError, match="too long"):
        bound.bind(str(tmp_path / longer))

    assert problems(tmp_path, f'socket = "{longest}"') == []
    [problem] = problems(tmp_path, f'socket = "{longer}"')
    assert problem.key == "daemon.socket"
    assert "has 108 bytes, and the path of a socket may have 107" in str(problem)


def test_bytes_of_a_socket_path_count_and_not_its_letters(tmp_path: Path) -> None:
    room = MOST_SOCKET_BYTES - len(str(tmp_path)) - 1

    [problem] = problems(tmp_path, f'socket = "{"é" * (room // 2 + 1)}"')

    assert "bytes" in str(problem)


@pytest.mark.parametrize(
    ("daemon", "key", "words"),
    [
        ('state_dir = "file"', "daemon.state_dir", "is no directory"),
        ('state_dir = "file/below"', "daemon.state_dir", "file is no directory"),
        ('state_dir = "/proc/version/x"', "daemon.state_dir", "cannot be made: /proc/version is"),
        (f'state_dir = "{"x" * 300}"', "daemon.state_dir", "File name too long"),
        ('state_dir = "loop/x"', "daemon.state_dir", "Too many levels of symbolic links"),
        ('state_dir = "odd"', "daemon.state_dir", "its file lock is no ordinary file"),
        ('socket = "file"', "daemon.socket", "there is something that is no socket; remove it"),
        ('socket = "odd"', "daemon.socket", "there is something that is no socket; remove it"),
        ('socket = "file/c.sock"', "daemon.socket", "file is no directory"),
    ],
)
def test_place_that_cannot_be_used_is_named(
    tmp_path: Path, daemon: str, key: str, words: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "odd" / "lock").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")

    [problem] = problems(tmp_path, daemon)

    assert (problem.key, words in str(problem)) == (key, True), problem


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("missing", "there is no such program"),
        ("dir", "is no program"),
        ("plain", "this account may not run it; chmod +x"),
        ("plain/x", "there is no such program"),
    ],
)
def test_program_of_a_hook_that_cannot_be_run_is_named(
    tmp_path: Path, program: str, words: str
) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "plain").touch(mode=0o644)
    (tmp_path / "good").touch(mode=0o755)

    hooks = f'hooks = {{ before = ["{tmp_path}/good", "-x"], after = ["{tmp_path}/{program}"] }}\n'
    [problem] = problems(tmp_path, job=hooks)

    assert problem.key == "jobs.web.hooks.after"
    assert words in str(problem)


def test_reload_does_not_look_at_what_the_daemon_uses_already(tmp_path: Path) -> None:
    text = '[daemon]\nstate_dir = "file"\nsocket = "file"\n' + POOLS + JOB
    (tmp_path / "file").touch()
    settings = settings_of(tmp_path, text)
    moved = settings_of(tmp_path, text.replace('socket = "file"', 'socket = "xorepd.toml"'))

    assert list(place_problems(settings, settings.daemon)) == []
    assert [p.key for p in place_problems(moved, settings.daemon)] == ["daemon.socket"]
