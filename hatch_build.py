"""Writes the build id into wheels and source distributions, for `xorepd --version`.

A checkout needs none: there git is asked. A wheel that is built from a source distribution takes
over the file that is in it.
"""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BuildIdHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    _directory: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file to what is built, unless that is an editable installation."""
        known = runpy.run_path(str(Path(self.root) / "xorepd" / "version.py"))
        if version == "editable" or known["BUILD_FILE"].exists():
            return
        if build := known["build_id"]():
            self._directory = tempfile.TemporaryDirectory()
            file = Path(self._directory.name) / "build.txt"
            file.write_text(f"{build}\n")
            build_data["force_include"][str(file)] = "xorepd/build.txt"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was only needed meanwhile."""
        if self._directory is not None:
            self._directory.cleanup()
