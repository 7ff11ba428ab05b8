"""Programs of the operator that run before and after a source snapshot, on the daemon's machine.

Administrators have such programs for "put the database into backup mode". xorepd starts them
without a shell, passes facts in the environment, and kills a program that takes too long.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress

import structlog

from xorepd.errors import HookFailed
from xorepd.tidying import settled
from xorepd.units import KiB

log = structlog.get_logger(__name__)

MOST_OUTPUT = 64 * KiB
"""Bytes of its output that are kept, to say why a hook failed; the rest is read and dropped."""

_KEPT = ("PATH", "LANG", "LC_ALL", "HOME", "TZ")
"""Of the daemon's own environment: it may hold passwords."""

_END_S = 5.0


async def run_hook(command: Sequence[str], facts: Mapping[str, str], timeout: float) -> None:
    """Run a hook to its end.

    Args:
        command: absolute path of a program, and its arguments.
        facts: added to its environment.
        timeout: seconds after which it is killed with everything that it started.

    Raises:
        HookFailed: it could not be started, failed, or took too long.
    """
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment | dict(facts),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise HookFailed(command[0], f"it could not be started ({error})") from error
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout):
            output = await _read(process.stdout)
            status = await process.wait()
    except TimeoutError:
        raise HookFailed(command[0], f"it did not end within {timeout:.0f} s") from None
    finally:
        await _end(process)
    if status != 0:
        lines = output.decode("utf-8", "replace").strip().splitlines()
        said = f": {lines[-1][:500]}" if lines else ""
        raise HookFailed(command[0], f"it ended with status {status}{said}")
    log.info("hook.done", hook=command[0])


async def _read(stream: asyncio.StreamReader) -> bytes:
    output = b""
    while data := await stream.read(MOST_OUTPUT):
        output = (output + data)[-MOST_OUTPUT:]
    return output


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill a process with all its children; a process that has ended may have left some."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        ending = asyncio.get_running_loop().create_task(process.wait(), name="hook's end")
        await settled(ending, _END_S)
