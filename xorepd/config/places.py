"""The places on this machine that a configuration names: whether they can be used as it means them.

Nothing is made or changed here. What is asked is what the account may do that asks.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from xorepd.config.models import DaemonSettings, Settings
from xorepd.errors import ConfigError

MOST_SOCKET_BYTES = 107
"""Of a path that a socket is bound to: unix(7), `sun_path`, with its last byte of zero."""

STATE_FILES = ("lock", "history.db", "maps.db", "daemon-id")
"""What a state directory holds, as far as it is there."""


def place_problems(
    settings: Settings, running: DaemonSettings | None = None
) -> Iterator[ConfigError]:
    """Return what keeps places from being used: state directory, socket, programs of hooks.

    Args:
        running: of a daemon that runs already: what it uses is not looked at again.
    """
    file, daemon = settings.file, settings.daemon
    if running is None or running.state_dir != daemon.state_dir:
        yield from state_problems(file, "daemon.state_dir", daemon.state_dir)
    is_new = running is None or running.socket != daemon.socket
    if is_new and (reason := _socket_problem(daemon.socket)):
        yield ConfigError(file, "daemon.socket", reason, value=str(daemon.socket))
    for job in settings.jobs.values():
        for name, command in (("before", job.hooks.before), ("after", job.hooks.after)):
            if command and (reason := _program_problem(Path(command[0]))):
                key = f"jobs.{job.name}.hooks.{name}"
                yield ConfigError(file, key, reason, value=command[0])


def state_problems(file: Path, key: str, directory: Path) -> Iterator[ConfigError]:
    """Return what keeps a directory from being one that a daemon keeps its state in."""
    if reason := _directory_problem(directory):
        yield ConfigError(file, key, reason, value=str(directory))
        return
    for name in STATE_FILES:
        if reason := _file_problem(directory / name):
            yield ConfigError(file, key, f"its file {name} {reason}", value=str(directory))


def _directory_problem(directory: Path) -> str:
    """Return why a directory cannot be written, or made."""
    try:
        mode = _mode(directory)
        if mode is None:
            above = next(each for each in directory.parents if _mode(each) is not None)
            reason = _directory_problem(above)
            return f"cannot be made: {above} {reason}" if reason else ""
        if not stat.S_ISDIR(mode):
            return "is no directory"
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            return "cannot be written by this account"
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    return ""


def _file_problem(path: Path) -> str:
    try:
        mode = _mode(path)
        if mode is None:
            return ""
        if not stat.S_ISREG(mode):
            return "is no ordinary file"
        if not os.access(path, os.R_OK | os.W_OK):
            return "cannot be written by this account"
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    return ""


def _socket_problem(path: Path) -> str:
    size = len(os.fsencode(path))
    if size > MOST_SOCKET_BYTES:
        return f"has {size} bytes, and the path of a socket may have {MOST_SOCKET_BYTES}"
    try:
        mode = _mode(path)
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    if mode is not None and not stat.S_ISSOCK(mode):
        return "there is something that is no socket; remove it"
    reason = _directory_problem(path.parent)
    return f"cannot be made: {path.parent} {reason}" if reason else ""


def _program_problem(path: Path) -> str:
    try:
        mode = _mode(path)
    except OSError as error:
        return f"cannot be run ({error.strerror})"
    if mode is None:
        return "there is no such program"
    if not stat.S_ISREG(mode):
        return "is no program"
    return "" if os.access(path, os.X_OK) else "this account may not run it; chmod +x"


def _mode(path: Path) -> int | None:
    """Return the mode of what is at a path; None where nothing is."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
