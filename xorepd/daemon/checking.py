"""Check that a configuration can run, and collect all problems.

`xorepd run`, `xorepd check` and a reload make the same checks. None of them contacts a pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from xorepd.config.load import examine
from xorepd.config.models import DaemonSettings, Settings
from xorepd.config.places import place_problems
from xorepd.config.secrets import secret_problems
from xorepd.daemon.engine import open_transports
from xorepd.errors import ConfigError, refuse
from xorepd.state.store import database_problem
from xorepd.transports.links import Links


@dataclass(frozen=True, slots=True)
class Checked:
    """A configuration without problems."""

    settings: Settings
    links: Links
    """The rate limits that its transports share."""


def load_checked(
    file: Path, clock: Callable[[], datetime], running: DaemonSettings | None = None
) -> Checked:
    """Load a configuration and check it; blocking.

    Args:
        running: Settings of the daemon that reloads. Paths that it already uses are not checked.

    Raises:
        ConfigError: all problems.
    """
    settings, problems = examine(file)
    links, unopened = open_transports(settings, clock)
    problems += secret_problems(settings)
    problems += unopened
    problems += place_problems(settings, running)
    state_dir = settings.daemon.state_dir
    is_new = running is None or running.state_dir != state_dir
    if is_new and (reason := database_problem(state_dir / "history.db")):
        problems.append(ConfigError(settings.file, "daemon.state_dir", reason))
    refuse(problems)
    return Checked(settings, links)
