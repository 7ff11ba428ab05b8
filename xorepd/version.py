"""Which xorepd this is: its version, and the commit that it was built from."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    VERSION = version("xorepd")
except PackageNotFoundError:
    VERSION = "0+source"  # run from a source tree without installation

_PACKAGE = Path(__file__).parent
BUILD_FILE = _PACKAGE / "build.txt"
"""In wheels and source distributions; `hatch_build.py` writes it. A checkout has none."""
_GIT = ("git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12")
_GIT_TIMEOUT_S = 5.0


def build_id() -> str:
    """Return the git commit of this build, `-dirty` with changes on top; empty if not known."""
    if BUILD_FILE.exists():
        return BUILD_FILE.read_text().strip()
    if not (_PACKAGE.parent / ".git").exists():
        return ""
    try:
        said = subprocess.run(
            _GIT, cwd=_PACKAGE, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip()


def version_text(program: str) -> str:
    """Return what `--version` prints, such as `xorepd 0.1.0 (build 3de3d9520a1c)`."""
    build = build_id()
    return f"{program} {VERSION} (build {build})" if build else f"{program} {VERSION}"
