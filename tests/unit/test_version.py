from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from xorepd import version


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of its own, as if it had been installed there."""
    made = tmp_path / "xorepd"
    made.mkdir()
    monkeypatch.setattr(version, "_PACKAGE", made)
    monkeypatch.setattr(version, "BUILD_FILE", made / "build.txt")
    return made


def test_a_wheel_knows_the_commit_that_it_was_built_from(package: Path) -> None:
    (package / "build.txt").write_text("3de3d9520a1c\n")

    assert version.version_text("xorepd") == f"xorepd {version.VERSION} (build 3de3d9520a1c)"


def test_a_checkout_asks_git(package: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=package, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "--quiet", "..")
    git("commit", "--quiet", "--allow-empty", "--message", "one")
    commit = git("rev-parse", "HEAD")

    assert commit.startswith(version.build_id())
    assert len(version.build_id()) >= 12


def test_what_is_neither_has_no_build(package: Path) -> None:
    assert version.version_text("xorepctl") == f"xorepctl {version.VERSION}"


def test_a_checkout_that_git_cannot_read_has_none(package: Path) -> None:
    (package.parent / ".git").mkdir()

    assert version.build_id() == ""
