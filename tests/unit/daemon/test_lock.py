from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from xorepd.errors import StateError
from xorepd.process.lock import locked

PRECIOUS = "what somebody needs\n"


def test_the_lock_tells_who_holds_it_and_is_free_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "state"):
            assert (tmp_path / "state" / "lock").read_text() == f"{os.getpid()}\n"


def test_a_second_holder_is_refused_with_the_process_of_the_first(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(StateError, match=rf"another xorepd \(process {os.getpid()}\)"),
        locked(tmp_path),
    ):
        raise AssertionError("it was locked twice")


def a_symbolic_link(lock: Path, precious: Path) -> None:
    lock.symlink_to(precious)


def a_link_to_nothing(lock: Path, precious: Path) -> None:
    lock.symlink_to(precious.with_name("nothing"))


def a_link_in_circles(lock: Path, precious: Path) -> None:
    lock.symlink_to(lock)


def a_hard_link(lock: Path, precious: Path) -> None:
    lock.hardlink_to(precious)


def another_file(lock: Path, precious: Path) -> None:
    precious.rename(lock)
    precious.symlink_to(lock)


def a_directory(lock: Path, precious: Path) -> None:
    lock.mkdir()


def a_pipe(lock: Path, precious: Path) -> None:
    os.mkfifo(lock)


def a_long_number(lock: Path, precious: Path) -> None:
    lock.write_text("1" * 10_000)


@pytest.mark.parametrize(
    "put",
    [
        a_symbolic_link,
        a_link_to_nothing,
        a_link_in_circles,
        a_hard_link,
        another_file,
        a_directory,
        a_pipe,
        a_long_number,
    ],
)
def test_what_is_no_lock_is_refused_and_left_as_it_is(
    tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    state, precious = tmp_path / "state", tmp_path / "precious"
    state.mkdir()
    precious.write_text(PRECIOUS)
    put(state / "lock", precious)
    before = os.lstat(state / "lock")

    with pytest.raises(StateError, match="is not a lock file of xorepd"), locked(state):
        raise AssertionError("it was locked")

    after = os.lstat(state / "lock")
    assert (before.st_ino, before.st_size, before.st_mode) == (
        after.st_ino,
        after.st_size,
        after.st_mode,
    )
    assert precious.read_text() == PRECIOUS
    assert not precious.with_name("nothing").exists()


@pytest.mark.parametrize("left", ["", "4194304\n"])
def test_the_lock_of_a_daemon_that_is_gone_is_taken(tmp_path: Path, left: str) -> None:
    (tmp_path / "lock").write_text(left)

    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
