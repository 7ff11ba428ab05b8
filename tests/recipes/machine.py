"""A machine for the recipes that is only a directory: they run as anybody and change nothing.

The absolute paths of the pages lie below it. What needs root, systemd or a host of a pool is done
by `stand_ins`, each a program in front of the PATH; everything else is what is really installed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.recipes.pages import ROOT
from tests.recipes.stand_ins import STAND_INS

BIN = Path(sys.executable).parent

OURS = (
    *("/opt/xorepd", "/etc/xorepd-relay", "/etc/xorepd", "/etc/systemd", "/usr/bin"),
    *("/var/lib/xorepd", "/run/xorepd", "/tmp/lab"),
)
"""What of the file system is the machine's own."""

_PATH = re.compile(rf"(?<![\w./~-])(?:{'|'.join(map(re.escape, OURS))})(?![\w-])")

STOP_S = 60.0

PLACES = """
[daemon]
state_dir = "/var/lib/xorepd"
socket = "/run/xorepd/control.sock"
"""
"""The defaults, for a machine that is a directory."""


@dataclass
class Machine:
    """Use it as a context: what was started on it ends with it."""

    root: Path
    words: dict[str, str] = field(default_factory=dict)
    """What stands on the pages for what there is here, such as the name of a host."""
    environment: dict[str, str] = field(default_factory=dict)
    installed: bool = True
    """Whether xorepd is there already."""
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Self:
        for path in OURS:
            (self.root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        for path in ("usr/bin", "etc/systemd/system", "run"):
            (self.root / path).mkdir(parents=True, exist_ok=True)
        (self.root / "typed").mkdir()
        programs = self.root / "stand-ins"
        programs.mkdir()
        for name in STAND_INS:
            _program(
                programs / name, f'exec {sys.executable} -m tests.recipes.stand_ins {name} "$@"'
            )
        if self.installed:
            for name in ("xorepd", "xorepctl", "xorepd-lab"):
                (self.root / "usr/bin" / name).symlink_to(BIN / name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._started:
            process.kill()
            process.wait()
        for file in (self.root / "run").glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)

    # -- texts of the pages ----------------------------------------------------------------------

    def here(self, text: str) -> str:
        """Return a text of the pages as it is meant on this machine."""
        for there, here in self.words.items():
            text = text.replace(there, here)
        return _PATH.sub(lambda path: f"{self.root}{path[0]}", text)

    def there(self, text: str) -> str:
        """Return what was printed here as a page would show it."""
        text = text.replace(str(self.root), "")
        for there, here in self.words.items():
            text = text.replace(here, there)
        return text

    def path(self, there: str) -> Path:
        return self.root / there.removeprefix("/")

    def write(self, there: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file of the pages."""
        path = self.path(there)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.here(text))
        path.chmod(mode)

    def type(self, name: str, text: str) -> None:
        """Say what a person types where a program asks for it."""
        (self.root / "typed" / name).write_text(self.here(text))

    # -- programs --------------------------------------------------------------------------------

    def environ(self) -> dict[str, str]:
        """Return the environment of everything that runs here."""
        path = [
            self.root / "usr/bin",
            self.root / "stand-ins",
            "/usr/local/bin",
            "/usr/bin",
            "/bin",
        ]
        return {
            "PATH": os.pathsep.join(map(str, [*path, "/usr/sbin", "/sbin"])),
            "HOME": str(self.root),
            "USER": "operator",
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "COLUMNS": "80",
            "MACHINE": str(self.root),
            "BIN": str(BIN),
            "PYTHONPATH": str(ROOT),
            **self.environment,
        }

    def run(
        self,
        commands: str,
        *,
        status: int = 0,
        cwd: Path = ROOT,
        more: Mapping[str, str] | None = None,
    ) -> str:
        """Run commands of the pages in a shell; return what they print.

        Raises:
            AssertionError: they end with another status.
        """
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.here(commands)],
            cwd=cwd,
            env=self.environ() | dict(more or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        said = self.there(done.stdout)
        assert done.returncode == status, f"{commands}\nended with {done.returncode}:\n{said}"
        return said

    def start(self, command: str, log: str) -> subprocess.Popen[bytes]:
        """Start a command of the pages that does not end by itself."""
        with (self.root / log).open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self.here(command)}"],
                cwd=ROOT,
                env=self.environ(),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._started.append(process)
        return process

    def wait_for(self, words: str, log: str, process: subprocess.Popen[bytes]) -> str:
        """Wait until a program has written these words; return all that it has written.

        Raises:
            AssertionError: it ended without them.
        """
        while True:
            ended = process.poll() is not None
            text = (self.root / log).read_text()
            if words in text:
                return text
            assert not ended, text
            pause()


def pause() -> None:
    """Leave the processor to the programs that are waited for."""
    threading.Event().wait(0.05)


def _program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
