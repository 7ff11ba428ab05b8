from __future__ import annotations

import stat
import uuid
from pathlib import Path

import pytest

from xorepd.errors import StateError
from xorepd.state.identity import read_identity


def test_identity_outlives_the_process(tmp_path: Path) -> None:
    made = read_identity(tmp_path)

    assert str(uuid.UUID(made)) == made
    assert read_identity(tmp_path) == made
    assert stat.S_IMODE((tmp_path / "daemon-id").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"x\n", b"\xff\xfe", b"1234-5678\n"])
def test_damaged_identity_is_replaced_by_a_new_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "daemon-id").write_bytes(content)

    made = read_identity(tmp_path)

    assert read_identity(tmp_path) == made


def test_two_directories_have_two_identities(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()

    assert read_identity(tmp_path / "one") != read_identity(tmp_path / "two")


def test_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="check \\[daemon\\] state_dir"):
        read_identity(tmp_path / "missing")
