"""`xorepd`: run the daemon, or check its configuration."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from xorepd.config.models import JobSettings
from xorepd.daemon.calendar import next_fire
from xorepd.errors import ConfigError, XorepdError
from xorepd.relay.cli import app as relay
from xorepd.screen import complain, run_program, say
from xorepd.version import version_text

DEFAULT_CONFIG = Path("/etc/xorepd/xorepd.toml")

EXIT_FAILED = 1
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h. The unit does not restart after it: the file would be the same."""

app = typer.Typer(
    name="xorepd",
    help="Replicate virtual machines between XCP-ng and XenServer pools.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(relay, name="relay")

Config = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration, in TOML.",
        readable=False,  # an unreadable file is a bad configuration, not wrong usage
    ),
]


def main() -> None:
    """Entry point of the command."""
    run_program(app, "xorepd")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(version_text("xorepd"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print version and build.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Accept options before the command."""


@app.command()
def run(config: Config = DEFAULT_CONFIG) -> None:
    """Run the daemon in the foreground, for systemd."""
    # Imported here, because `--help` and `--version` need none of it.
    import uvloop

    from xorepd.daemon.app import run_daemon, utc_now
    from xorepd.daemon.checking import load_checked
    from xorepd.process.logs import configure

    try:
        checked = load_checked(config, utc_now)
        daemon = checked.settings.daemon
        configure(level=daemon.log_level, style=daemon.log_format)
        uvloop.run(run_daemon(checked))
    except XorepdError as error:
        _refuse(error)


@app.command()
def check(config: Config = DEFAULT_CONFIG) -> None:
    """Check a configuration, and show what the daemon would do with it."""
    from xorepd.daemon.app import utc_now
    from xorepd.daemon.checking import load_checked

    try:
        settings = load_checked(config, utc_now).settings
    except XorepdError as error:
        _refuse(error)
    now = datetime.now(UTC)
    for job in settings.jobs.values():
        when = "by hand"
        if job.schedule is not None:
            due_at = next_fire(job.schedule, job.timezone, now).astimezone(job.timezone)
            when = f"next {due_at:%Y-%m-%d %H:%M %Z}" if job.enabled else "disabled"
        for target in job.targets:
            say(
                f"{job.name}: {_vms(job)} {job.source} -> {target.pool}/{target.sr}, "
                f"keep {job.keep_on(target)}, {when}"
            )
    say(f"{config}: good (pools: {len(settings.pools)}, jobs: {len(settings.jobs)})")


def _vms(job: JobSettings) -> str:
    named = [f"{len(job.named)} VM(s)"] if job.named else []
    return " and ".join(named + ([f"({job.found_by})"] if job.found_by else []))


def _refuse(error: XorepdError) -> NoReturn:
    for sentence in str(error).splitlines():
        complain(f"xorepd: {sentence}")
    sys.exit(EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED)
