"""A lab in a process of its own, that does what a bench tells it, one JSON object a line.

The process is the bench's own module, called with an option that makes it `serve` instead.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TextIO

import structlog

from xorepd_lab.demo.stage import StageError
from xorepd_lab.handover import describe, write_files
from xorepd_lab.lab import Lab
from xorepd_lab.topology import Topology

FAST = 0.01
"""Time scale: what a pool would wait for is not what is measured."""


async def serve(
    state: Path, plan: Topology, obey: Callable[[Lab, dict[str, Any]], Awaitable[Any]]
) -> None:
    """Run a lab, and answer what standard input asks until it closes."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    async with Lab.start(state, plan, time_scale=FAST) as lab:
        print(json.dumps(describe(lab, write_files(lab, plan))), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await obey(lab, json.loads(line))), flush=True)


def pool_table(pool: dict[str, Any], state: Path) -> str:
    """Return the table of a pool in a daemon's configuration.

    Args:
        state: directory of the lab that serves it.
    """
    name = pool["name"]
    return (
        f'[pools.{name}]\nurl = "{pool["url"]}"\nca_file = "{pool["ca_file"]}"\n'
        f'password_file = "{state}/{name}.password"\n'
    )


class ServedLab:
    """The process, as the bench sees it.

    Raises:
        StageError: it does not start; later, it has ended.
    """

    def __init__(self, module: str, *arguments: str, log: TextIO) -> None:
        self._log = Path(log.name)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            self.pools: list[dict[str, Any]] = self._answer()["pools"]
        except BaseException:  # nobody knows of the process yet who would end it
            self.process.kill()
            self.process.wait()
            raise

    def ask(self, command: str, **request: Any) -> Any:
        """Have the lab do something, and return its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"command": command, **request}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            said = self._log.read_text(errors="replace").splitlines()[-15:]
            raise StageError("\n".join(["the lab has ended:", *said]))
        return json.loads(line)
