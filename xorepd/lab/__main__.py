"""Command line of the lab: start one, let its guests write, make things fail."""

import asyncio
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import structlog
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xorepd.lab.admin import Admin, AdminError, ask
from xorepd.lab.faults import Where
from xorepd.lab.handover import describe, write_files
from xorepd.lab.lab import Lab
from xorepd.lab.persistence import StateError
from xorepd.lab.topology import TOPOLOGIES, Topology

app = typer.Typer(
    help="Two XCP-ng pools that do not exist, to try xorepd on.", no_args_is_help=True
)
fault_app = typer.Typer(help="Make things fail.", no_args_is_help=True)
app.add_typer(fault_app, name="fault")

State = Annotated[Path, typer.Option("--state", help="The lab's own directory.")]


def main() -> None:
    app()


@app.command()
def up(
    state: State,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
    seed: Annotated[int, typer.Option(help="Decides UUIDs and contents of a new lab.")] = 1,
    topology: Annotated[str, typer.Option(help="demo or small.")] = "demo",
    time_scale: Annotated[
        float, typer.Option(help="Factor for what a real pool would wait for.")
    ] = 1.0,
) -> None:
    """Start the pools, or resume those of an earlier start, and run until a signal."""
    _log_to_stderr()
    if topology not in TOPOLOGIES:
        raise typer.BadParameter(f"choose one of {', '.join(TOPOLOGIES)}", param_hint="--topology")
    try:
        asyncio.run(_run(state, TOPOLOGIES[topology], seed, time_scale, as_json))
    except (StateError, OSError) as error:
        _fail(str(error))


@app.command()
def write(
    state: State,
    vm: Annotated[str, typer.Option(help="Name of a running VM.")],
    disk: Annotated[int, typer.Option(help="Position of its disk.")] = 0,
    random: Annotated[int, typer.Option(help="4 KiB blocks to write in random places.")] = 0,
    sequential: Annotated[
        tuple[int, int] | None, typer.Option(help="Offset and length to fill.")
    ] = None,
    trim: Annotated[tuple[int, int] | None, typer.Option(help="Offset and length.")] = None,
    file: Annotated[list[str] | None, typer.Option(help="PATH=TEXT, may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Decides places and bytes.")] = 0,
) -> None:
    """Let a running VM change its disk."""
    files = {}
    for assignment in file or []:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise typer.BadParameter("must be PATH=TEXT", param_hint="--file")
        files[path] = text
    answer = _ask(
        state,
        "write",
        vm=vm,
        disk=disk,
        random=random,
        sequential=sequential,
        trim=trim,
        files=files,
        seed=seed,
    )
    written = sum(length for _, length in answer["written"])
    names = f", {len(files)} files" if files else ""
    typer.echo(f"{vm} disk {disk}: {written} bytes{names}")


@app.command()
def read(
    state: State,
    vm: Annotated[str, typer.Option(help="Name of a VM.")],
    path: Annotated[str, typer.Argument(help="File in the ext4 file system of the disk.")],
    disk: Annotated[int, typer.Option(help="Position of its disk.")] = 0,
) -> None:
    """Print a file of a VM's disk."""
    typer.echo(_ask(state, "read", vm=vm, disk=disk, path=path)["content"], nl=False)


@app.command()
def calls(state: State, last: Annotated[int, typer.Option(help="How many to show.")] = 50) -> None:
    """List the latest requests that reached the lab."""
    for pool, host, kind, name, outcome in _ask(state, "calls", last=last)["calls"]:
        typer.echo(f"{pool:8} {host:10} {kind:7} {name:40} {outcome}")


@fault_app.command("add")
def fault_add(
    state: State,
    where: Annotated[str, typer.Argument(help="rpc, inner, export or import.")],
    match: Annotated[str, typer.Option(help="Glob over method names or formats.")] = "*",
    pool: Annotated[str | None, typer.Option(help="Of this pool only.")] = None,
    host: Annotated[str | None, typer.Option(help="At this host only.")] = None,
    skip: Annotated[int, typer.Option(help="Let so many pass first.")] = 0,
    times: Annotated[int, typer.Option(help="Meet so many; 0: all.")] = 1,
    error: Annotated[list[str] | None, typer.Option(help="Code, then parameters.")] = None,
    reset: Annotated[bool, typer.Option(help="Cut the connection at once.")] = False,
    drop_response: Annotated[bool, typer.Option(help="Do it, then cut.")] = False,
    delay: Annotated[float, typer.Option(help="Seconds to wait before.")] = 0.0,
    stall: Annotated[bool, typer.Option(help="Wait until `fault release`.")] = False,
    stall_at: Annotated[int, typer.Option(help="Where in the body to stall.")] = 0,
    cut_at: Annotated[int | None, typer.Option(help="Cut after so many bytes.")] = None,
    end_at: Annotated[int | None, typer.Option(help="End an export there.")] = None,
    flip_at: Annotated[int | None, typer.Option(help="Invert this byte of an export.")] = None,
    append: Annotated[int, typer.Option(help="Zero bytes to add to an export.")] = 0,
    rate: Annotated[float | None, typer.Option(help="Bytes per second.")] = None,
) -> None:
    """Add a rule."""
    if where not in get_args(Where):
        raise typer.BadParameter(f"choose one of {get_args(Where)}", param_hint="WHERE")
    _ask(
        state,
        "fault-add",
        where=where,
        match=match,
        pool=pool,
        host=host,
        skip=skip,
        times=times or None,
        error=error or [],
        reset=reset,
        drop_response=drop_response,
        delay_s=delay,
        stall=stall,
        stall_at=stall_at,
        cut_at=cut_at,
        end_at=end_at,
        flip_at=flip_at,
        append=append,
        bytes_per_s=rate,
    )


@fault_app.command("list")
def fault_list(state: State) -> None:
    """Show the rules and how often they were met."""
    for fault in _ask(state, "fault-list")["faults"]:
        shown = {k: v for k, v in fault.items() if v not in (None, False, 0, 0.0, [], "*")}
        typer.echo(json.dumps(shown))


@fault_app.command("clear")
def fault_clear(state: State) -> None:
    """Remove all rules."""
    _ask(state, "fault-clear")


@fault_app.command("release")
def fault_release(state: State) -> None:
    """Let everything that stalls go on."""
    _ask(state, "fault-release")


async def _run(
    state: Path, topology: Topology, seed: int, time_scale: float, as_json: bool
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Lab.start(state, topology, seed=seed, time_scale=time_scale) as lab:
        config = write_files(lab, topology)
        admin = Admin(lab)
        server = await admin.serve()
        try:
            told = describe(lab, config)
            if as_json:
                print(json.dumps(told), flush=True)  # noqa: T201 - the line that callers wait for
            else:
                _show(told, state)
            await stop.wait()
        finally:
            server.close()
            admin.path.unlink(missing_ok=True)


def _show(told: dict[str, Any], state: Path) -> None:
    console = Console()
    for pool in told["pools"]:
        login = f"{pool['username']} / {pool['password']}"
        hosts = ", ".join(f"{host['name']} {host['address']}" for host in pool["hosts"])
        srs = ", ".join(f"{sr['name']} ({sr['type']})" for sr in pool["srs"])
        table = Table(
            "", "", title=f"pool {pool['name']}", title_justify="left", show_header=False, box=None
        )
        for name, value in (
            ("url", pool["url"]),
            ("login", login),
            ("CA file", pool["ca_file"]),
            ("hosts", hosts),
            ("storage", srs),
            ("VMs", ", ".join(vm["name"] for vm in pool["vms"]) or "none"),
        ):
            table.add_row(f"  {name}", Text(value, overflow="fold"))
        console.print(table)
    console.print(f"configuration for the daemon: {told['config']}", soft_wrap=True)
    console.print("next, in another terminal:")
    console.print(f"  xorepd run --config {told['config']}", soft_wrap=True)
    console.print(f"  xorepd-lab write --state {state} --vm web01 --random 1000", soft_wrap=True)
    console.print(f"  xorepd-lab calls --state {state}", soft_wrap=True)
    console.print("Ctrl-C stops the lab; the same command resumes it.")


def _ask(state: Path, command: str, **request: Any) -> dict[str, Any]:
    try:
        return ask(state, command, **request)
    except AdminError as error:
        _fail(str(error))


def _fail(text: str) -> NoReturn:
    typer.echo(f"xorepd-lab: {text}", err=True)
    raise typer.Exit(1)


def _log_to_stderr() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    main()
