"""`xorepctl`: query and control a running daemon.

Exit status: 0 done; 1 refused, or a run that did not succeed; 2 wrong usage; 3 no daemon answers;
130 interrupted; 141 its output was closed before it was complete.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated

import typer

from xorepd.console.asking import (
    EXIT_REFUSED,
    SOCKET_VARIABLE,
    AsJson,
    Config,
    Socket,
    ask,
    console,
    find_socket,
    show_reply,
)
from xorepd.console.forgetting import forget
from xorepd.console.progress import displayed
from xorepd.console.status import status_view
from xorepd.console.tables import (
    finished_view,
    history_table,
    jobs_table,
    links_table,
    orphans_view,
    run_view,
)
from xorepd.control.client import Client
from xorepd.control.protocol import (
    MAX_HISTORY,
    Finished,
    LinksReply,
    Names,
    ReloadReply,
    RunAccepted,
    RunReply,
)
from xorepd.errors import ControlError, XorepdError
from xorepd.screen import complain, run_program, say, say_json
from xorepd.state.records import Outcome, RunRecord
from xorepd.version import version_text

SUCCEEDED = frozenset({Outcome.FULL, Outcome.DELTA, Outcome.NO_VMS})

Job = Annotated[str, typer.Argument(help="Name of a job.", show_default=False)]

app = typer.Typer(
    name="xorepctl",
    help="Query and control a running xorepd.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the command."""
    run_program(app, "xorepctl")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(version_text("xorepctl"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print version and build.", callback=_print_version, is_eager=True
        ),
    ] = False,
    socket: Socket = None,
    config: Config = None,
) -> None:
    """Accept the options before the command as well as after it."""
    if socket is not None or config is not None:
        try:
            os.environ[SOCKET_VARIABLE] = str(find_socket(socket, config))
        except XorepdError as error:
            complain(f"xorepctl: {error}")
            sys.exit(EXIT_REFUSED)


@app.command()
def status(as_json: AsJson = False, socket: Socket = None, config: Config = None) -> None:
    """Show the age of every replica, the current runs, and what has failed."""
    reply = ask(socket, config, lambda client: client.status())
    show_reply(reply, status_view(reply, datetime.now(UTC)), as_json=as_json)


@app.command()
def jobs(as_json: AsJson = False, socket: Socket = None, config: Config = None) -> None:
    """List the configured jobs."""
    reply = ask(socket, config, lambda client: client.jobs())
    show_reply(reply, jobs_table(reply, datetime.now(UTC)), as_json=as_json)


@app.command()
def run(
    job: Job,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Show progress, and fail if the run fails.")
    ] = False,
    allow_full: Annotated[
        bool,
        typer.Option("--allow-full", help='Send whole disks despite full = "ask".'),
    ] = False,
    as_json: AsJson = False,
    socket: Socket = None,
    config: Config = None,
) -> None:
    """Run a job now."""

    async def start(client: Client) -> RunAccepted:
        return await client.start_run(job, allow_full=allow_full)

    if not wait:
        reply = ask(socket, config, start)
        text = f"job {job}: run {reply.run_id} has started{_without(reply)}"
        show_reply(reply, text, as_json=as_json)
        return
    records = ask(socket, config, lambda client: _run_and_watch(client, start, as_json=as_json))
    if not as_json:
        console.print(finished_view(records))
    if not records or any(record.outcome not in SUCCEEDED for record in records):
        sys.exit(EXIT_REFUSED)


@app.command()
def cancel(job: Job, as_json: AsJson = False, socket: Socket = None, config: Config = None) -> None:
    """Cancel the current run of a job. The next run continues its transfers."""
    reply = ask(socket, config, lambda client: client.cancel_run(job))
    left = "it keeps what the next run can continue and removes the rest from both pools"
    if not reply.resumable:
        left = "it removes everything that it has created on both pools"
    text = f"job {job}: run {reply.run_id} is being cancelled; {left}"
    show_reply(reply, text, as_json=as_json)


@app.command()
def history(
    job: Annotated[str | None, typer.Option("--job", "-j", help="Only of this job.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=MAX_HISTORY, help="Number of records.")
    ] = 20,
    as_json: AsJson = False,
    socket: Socket = None,
    config: Config = None,
) -> None:
    """Show finished runs, the newest first."""
    reply = ask(socket, config, lambda client: client.history(job, limit))
    show_reply(reply, history_table(reply, datetime.now(UTC)), as_json=as_json)


@app.command()
def show(
    run_id: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Id of the run; default: the newest.")
    ] = None,
    as_json: AsJson = False,
    socket: Socket = None,
    config: Config = None,
) -> None:
    """Show one run in full: for each disk its reader, its writer and the bytes."""

    async def find(client: Client) -> RunReply:
        if run_id is not None:
            return await client.run(run_id)
        newest = (await client.history(None, 1)).records
        if not newest:
            raise ControlError("no run has finished yet; start one with `xorepctl run JOB`")
        return await client.run(newest[0].run_id)

    reply = ask(socket, config, find)
    show_reply(reply, run_view(reply.records), as_json=as_json)


@app.command()
def orphans(as_json: AsJson = False, socket: Socket = None, config: Config = None) -> None:
    """List replicas without a job. A new job for the same VM and target adopts its replica."""
    reply = ask(socket, config, lambda client: client.orphans())
    show_reply(reply, orphans_view(reply, datetime.now(UTC)), as_json=as_json)


app.command()(forget)


@app.command()
def throttle(
    link: Annotated[
        str | None, typer.Argument(metavar="LINK", help="Name of a link; default: all.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Argument(
            metavar="RATE",
            help="Such as 20Mbit/s; unlimited; or auto, which restores the configured rate.",
        ),
    ] = None,
    as_json: AsJson = False,
    socket: Socket = None,
    config: Config = None,
) -> None:
    """Show the rate limits, or set one until the next reload or restart."""

    async def look(client: Client) -> LinksReply:
        if link is not None and rate is not None:
            return LinksReply(links=(await client.set_rate(link, rate),))
        links = (await client.links()).links
        found = tuple(one for one in links if link in (None, one.name))
        if link is not None and not found:
            raise ControlError(f"there is no link {link!r}; `xorepctl throttle` lists them")
        return LinksReply(links=found)

    reply = ask(socket, config, look)
    show_reply(reply, links_table(reply), as_json=as_json)


@app.command()
def reload(as_json: AsJson = False, socket: Socket = None, config: Config = None) -> None:
    """Load the configuration again; a bad file changes nothing."""
    reply = ask(socket, config, lambda client: client.reload())
    show_reply(reply, _reload_text(reply), as_json=as_json)


async def _run_and_watch(
    client: Client, start: Callable[[Client], Awaitable[RunAccepted]], *, as_json: bool
) -> Sequence[RunRecord]:
    accepted = await start(client)
    run_id = accepted.run_id
    if accepted.busy_targets and not as_json:
        console.print(f"run {run_id} has started{_without(accepted)}")
    with displayed(console) as display:
        async with aclosing(client.watch_run(run_id)) as events:
            async for event in events:
                if as_json:
                    say_json(json.dumps(event.to_json()))
                if isinstance(event, Finished):
                    return event.records
                if not as_json:
                    display.show(event)
    raise ControlError(f"the daemon stopped before run {run_id} ended; see `xorepctl history`")


def _without(reply: RunAccepted) -> str:
    if not reply.busy_targets:
        return ""
    return f", without {', '.join(reply.busy_targets)}: an earlier run is still busy there"


def _reload_text(reply: ReloadReply) -> str:
    parts = [
        f"{what} {kind} {', '.join(names)}"
        for kind, difference in (("job", reply.jobs), ("pool", reply.pools))
        for what, names in _by_kind(difference)
        if names
    ]
    parts += [f"set daemon.{key}" for key in reply.daemon]
    parts += [f"daemon.{key} takes effect at the next start" for key in reply.needs_restart]
    return "reloaded: " + ("; ".join(parts) or "nothing has changed")


def _by_kind(names: Names) -> tuple[tuple[str, Sequence[str]], ...]:
    return (("added", names.added), ("removed", names.removed), ("changed", names.changed))
