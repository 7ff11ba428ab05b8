"""Running programs that are not ours, each in a process of its own."""

import asyncio
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.patience import patience

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".strangers"
"""Where `make strangers` puts what comes from PyPI: Ansible and XenGarden."""
NODE = Path(__file__).parent / "node"
PATIENCE_S = patience(100.0)
SBIN = "/usr/sbin:/sbin"
"""Debian keeps fence agents where the PATH of ordinary users does not look."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended."""

    status: int
    out: str
    err: str


def need(name: str, source: str) -> str:
    """Return the path of a program; skip the test when it is not installed."""
    found = shutil.which(name) or shutil.which(name, path=SBIN)
    if found is None:
        pytest.skip(f"{name} is not installed ({source})")
    return found


def need_python_program(name: str) -> str:
    """Return a program of the strangers' own virtual environment."""
    found = VENV / "bin" / name
    if not found.exists():
        pytest.skip(f"{name} is not installed; run `make strangers`")
    return str(found)


def need_node_module(name: str) -> str:
    """Return the path of Node when a module of npm is there for its scripts."""
    node = need("node", "Debian: nodejs")
    if not (NODE / "node_modules" / name).is_dir():
        pytest.skip(f"{name} is not installed; run `make strangers`")
    return node


async def run(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    cwd: Path | None = None,
) -> Done:
    """Run a program to its end. It sees our environment and what `env` adds."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate(stdin)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


async def succeed(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    cwd: Path | None = None,
) -> str:
    """Run a program that must succeed and return what it printed."""
    done = await run(*command, env=env, stdin=stdin, cwd=cwd)
    assert done.status == 0, f"{command[0]} ended with {done.status}\n{done.out}\n{done.err}"
    return done.out
