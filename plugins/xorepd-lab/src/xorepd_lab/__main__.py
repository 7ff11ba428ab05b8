"""Command line of the lab: start one, let its guests write, make things fail."""

import asyncio
import json
import logging
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import structlog
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xorepd_lab import fsck
from xorepd_lab.admin import Admin, AdminError, NotRunning, ask
from xorepd_lab.demo.needs import missing
from xorepd_lab.faults.effects import EFFECTS
from xorepd_lab.faults.faults import Where
from xorepd_lab.faults.incidents import INCIDENTS
from xorepd_lab.handover import describe, write_files
from xorepd_lab.lab import Lab
from xorepd_lab.model.persistence import StateError
from xorepd_lab.topology import TOPOLOGIES, Topology

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
    except (StateError, OSError, Interrupted) as error:
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
    """List the latest requests that reached the lab, and who sent them."""
    for pool, host, kind, name, outcome, originator in _ask(state, "calls", last=last)["calls"]:
        line = f"{pool:8} {host:10} {kind:7} {name:40} {outcome:20} {originator}"
        typer.echo(line.rstrip())


@app.command("fsck")
def check(
    state: State,
    read_only: Annotated[
        bool, typer.Option("--read-only", "-n", help="Do not recover a stopped lab first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
) -> None:
    """Check records and disks of a lab, of one that runs as well; exit 1 when something is wrong.

    A lab that does not run first recovers as it does at a start, as file systems replay a journal.
    """
    try:
        answer = ask(state, "fsck")
        problems = [fsck.Problem(**problem) for problem in answer["problems"]]
    except NotRunning:
        _log_to_stderr()
        try:
            problems = fsck.look(state) if read_only else asyncio.run(fsck.check_directory(state))
        except (StateError, OSError) as error:
            _fail(str(error))
    except AdminError as error:
        _fail(str(error))
    if as_json:
        typer.echo(json.dumps([asdict(problem) for problem in problems]))
    else:
        for problem in problems:
            typer.echo(str(problem))
    if problems:
        raise typer.Exit(1)


@app.command()
def incident(
    state: State,
    kind: Annotated[str | None, typer.Argument(help="What; without it: list them.")] = None,
    pool: Annotated[str | None, typer.Option(help="Name of the pool.")] = None,
    host: Annotated[str | None, typer.Option(help="Name of the host; else the master.")] = None,
    sr: Annotated[str | None, typer.Option(help="Name of the SR; else all of the pool.")] = None,
    seconds: Annotated[float, typer.Option(help="By how much a clock jumps.")] = 0.0,
    size: Annotated[int, typer.Option("--bytes", help="How much an SR still takes.")] = 0,
    originator: Annotated[str | None, typer.Option(help="Whose sessions end.")] = None,
) -> None:
    """Let something happen to a pool, and wait until it has."""
    if kind is None:
        for name, each in INCIDENTS.items():
            typer.echo(f"{name:20} {each.tells}")
        return
    what = {
        "kind": kind,
        "pool": pool,
        "host": host,
        "sr": sr,
        "seconds": seconds,
        "bytes": size,
        "originator": originator,
    }
    _ask(state, "incident", **what)


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running at the end.")
    ] = False,
) -> None:
    """Show what xorepd does between two pools, with a proof of each step; exit 1 if one fails."""
    if lacking := missing():
        _fail(lacking)
    from xorepd_lab.demo.story import perform  # imports what may be missing

    if not perform(keep):
        raise typer.Exit(1)


@fault_app.command("add")
def fault_add(
    state: State,
    where: Annotated[str, typer.Argument(help=f"One of {', '.join(get_args(Where))}.")],
    match: Annotated[str, typer.Option(help="Glob over method names or formats.")] = "*",
    pool: Annotated[str | None, typer.Option(help="Of this pool only.")] = None,
    host: Annotated[str | None, typer.Option(help="At this host only.")] = None,
    about: Annotated[
        str | None, typer.Option("--object", help="Only if it names this reference, UUID or name.")
    ] = None,
    sr: Annotated[str | None, typer.Option(help="Only if it is about this SR.")] = None,
    skip: Annotated[int, typer.Option(help="Let so many pass first.")] = 0,
    times: Annotated[int, typer.Option(help="Meet so many; 0: all.")] = 1,
    probability: Annotated[float, typer.Option(help="Meet each with this likelihood.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Decides which; else drawn and shown.")] = None,
    chunk: Annotated[int, typer.Option(help="Count so many bytes of a stream as one.")] = 0,
    error: Annotated[list[str] | None, typer.Option(help="Code, then parameters.")] = None,
    error_at: Annotated[int | None, typer.Option(help="Fail an export there.")] = None,
    error_pad: Annotated[int, typer.Option(help="Bytes to add to the error's text.")] = 0,
    after: Annotated[bool, typer.Option(help="Error, page or incident after the work.")] = False,
    reset: Annotated[bool, typer.Option(help="Cut the connection at once.")] = False,
    http_status: Annotated[int | None, typer.Option(help="Answer so at once.")] = None,
    rewrite: Annotated[
        tuple[str, str] | None, typer.Option(help="Pattern and replacement in an answer.")
    ] = None,
    drop_response: Annotated[bool, typer.Option(help="Do it, then cut.")] = False,
    delay: Annotated[float, typer.Option(help="Seconds to wait before.")] = 0.0,
    stall: Annotated[bool, typer.Option(help="Wait until `fault release`.")] = False,
    stall_at: Annotated[int, typer.Option(help="Where in the body to stall.")] = 0,
    endless: Annotated[bool, typer.Option(help="Leave its task pending for ever.")] = False,
    no_end: Annotated[bool, typer.Option(help="Never end what we send.")] = False,
    cut_at: Annotated[int | None, typer.Option(help="Cut after so many bytes.")] = None,
    end_at: Annotated[int | None, typer.Option(help="End what we send there.")] = None,
    flip_at: Annotated[int | None, typer.Option(help="Invert this byte of what we send.")] = None,
    append: Annotated[int, typer.Option(help="Zero bytes to add to what we send.")] = 0,
    length_off: Annotated[int, typer.Option(help="Bytes by which Content-Length is off.")] = 0,
    rate: Annotated[float | None, typer.Option(help="Bytes per second.")] = None,
    happen: Annotated[
        str | None, typer.Option("--incident", help="Kind of incident, where the request went.")
    ] = None,
    incident_at: Annotated[int | None, typer.Option(help="Where in the body.")] = None,
) -> None:
    """Add a rule."""
    rule = {
        "match": match,
        "pool": pool,
        "host": host,
        "object": about,
        "sr": sr,
        "skip": skip,
        "times": times or None,
        "probability": probability,
        "seed": seed,
        "chunk": chunk,
        "error": error or [],
        "error_at": error_at,
        "error_pad": error_pad,
        "moment": "after" if after else "before",
        "reset": reset,
        "http_status": http_status,
        "rewrite": rewrite,
        "drop_response": drop_response,
        "delay_s": delay,
        "stall": stall,
        "stall_at": stall_at,
        "task_never_ends": endless,
        "endless": no_end,
        "cut_at": cut_at,
        "end_at": end_at,
        "flip_at": flip_at,
        "append": append,
        "length_off": length_off,
        "bytes_per_s": rate,
        "incident": None if happen is None else {"kind": happen},
        "incident_at": incident_at,
    }
    added = _ask(state, "fault-add", where=where, **rule)["fault"]
    if "seed" in added:
        typer.echo(f"seed {added['seed']}")


@fault_app.command("load")
def fault_load(
    state: State,
    path: Annotated[Path, typer.Argument(help="JSON: a list of rules, as `fault list` shows.")],
) -> None:
    """Add the rules of a file."""
    try:
        rules = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        _fail(f"{path} cannot be read: {error}")
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        _fail(f"{path} is not a JSON list of objects")
    for rule in rules:
        counts = {"seen", "fired"}
        _ask(state, "fault-add", **{k: v for k, v in rule.items() if k not in counts})


@fault_app.command("kinds")
def fault_kinds() -> None:
    """List what a rule can do, by the names that files of rules use."""
    for name, each in EFFECTS.items():
        typer.echo(f"{name:16} {each.tells}")


@fault_app.command("list")
def fault_list(state: State) -> None:
    """Show the rules and how often they were met."""
    for fault in _ask(state, "fault-list")["faults"]:
        typer.echo(json.dumps(fault))


@fault_app.command("clear")
def fault_clear(state: State) -> None:
    """Remove all rules."""
    _ask(state, "fault-clear")


@fault_app.command("release")
def fault_release(state: State) -> None:
    """Let everything that stalls go on."""
    _ask(state, "fault-release")


class Interrupted(Exception):
    """A signal came before the lab had started."""


async def _run(
    state: Path, topology: Topology, seed: int, time_scale: float, as_json: bool
) -> None:
    """Run a lab until a signal; one that comes while it starts ends the start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    main_task = asyncio.current_task()
    assert main_task is not None

    def on_signal(starting: bool) -> None:
        stop.set()
        if starting:
            main_task.cancel()

    def listen(starting: bool) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, starting)

    listen(starting=True)
    try:
        async with Lab.start(state, topology, seed=seed, time_scale=time_scale) as lab:
            config = write_files(lab, topology)
            admin = Admin(lab)
            server = await admin.serve()
            listen(starting=False)
            try:
                told = describe(lab, config)
                if as_json:
                    print(json.dumps(told), flush=True)  # noqa: T201 - callers wait for the line
                else:
                    _show(told, state)
                await stop.wait()
            finally:
                server.close()
                admin.path.unlink(missing_ok=True)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        raise Interrupted("a signal came before the lab had started") from None


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
