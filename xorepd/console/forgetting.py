"""`xorepctl forget`: which streams an operator means, and what giving them up comes to."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from contextlib import aclosing
from typing import Annotated

import typer
from rich.console import Group, RenderableType

from xorepd.console.asking import EXIT_REFUSED, AsJson, Config, Socket, ask, console
from xorepd.control.client import Client, typed
from xorepd.control.protocol import ForgetPlanReply, OrphanReply, OrphansReply, StatusReply
from xorepd.errors import ControlError
from xorepd.screen import Words, say_json


def select_orphans(
    reply: OrphansReply, status: StatusReply, wanted: Iterable[str], target: str | None
) -> list[OrphanReply]:
    """Return the streams that an operator means.

    Args:
        wanted: names or UUIDs of replicas or of source VMs, or streams.
        target: `pool/SR`, where only that one is meant.

    Raises:
        ControlError: one of them means nothing that can be forgotten, and why.
    """
    chosen: dict[str, OrphanReply] = {}
    for text in map(typed, wanted):
        found = [orphan for orphan in reply.orphans if _is_meant(orphan, text, target)]
        if not found:
            raise ControlError(_not_found(reply, status, text, target))
        chosen |= {orphan.stream: orphan for orphan in found}
    return list(chosen.values())


def _is_meant(orphan: OrphanReply, text: str, target: str | None) -> bool:
    if target is not None and target != f"{orphan.pool}/{orphan.sr}":
        return False
    return text in {
        orphan.stream,
        orphan.replica,
        orphan.vm,
        orphan.name,
        orphan.name.removeprefix(f"[XO Backup {orphan.job}] "),
    }


def _not_found(reply: OrphansReply, status: StatusReply, text: str, target: str | None) -> str:
    where = f" on {target}" if target else ""
    for job in status.jobs:
        for vm in job.vms:
            names = {vm.vm, vm.name, f"[XO Backup {job.name}] {vm.name}"}
            if text in names and target in (None, f"{vm.pool}/{vm.sr}"):
                return (
                    f"job {job.name} keeps {text} up; take the VM out of that job and "
                    "`xorepctl reload`, then forget it"
                )
    silent = "".join(f"; {pool} was not asked: {why}" for pool, why in reply.not_asked.items())
    return f"there is nothing to forget of {text}{where}; `xorepctl orphans` lists what is{silent}"


def plans_view(plans: Collection[ForgetPlanReply]) -> RenderableType:
    """Show what is going to be done, and what forbids it."""
    lines = []
    for plan in plans:
        orphan = plan.orphan
        lines.append(Words(f"{orphan.name} on {orphan.pool}/{orphan.sr}:"))
        if plan.objections:
            lines += [Words(f"  not like this: {why}", style="red") for why in plan.objections]
        else:
            lines += [Words(f"  {deed}") for deed in plan.deeds]
    return Group(*lines)


def forget(
    what: Annotated[
        list[str], typer.Argument(help="Names or UUIDs of replicas or their source VMs.")
    ],
    target: Annotated[
        str | None, typer.Option("--target", "-t", metavar="POOL/SR", help="Only there.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    keep_replica: Annotated[
        bool, typer.Option("--keep-replica", help="Make the replica an ordinary VM.")
    ] = False,
    even_if_used: Annotated[
        bool, typer.Option("--even-if-used", help="Destroy a replica that somebody worked on.")
    ] = False,
    even_if_unknown: Annotated[
        bool, typer.Option("--even-if-unknown", help="Though this daemon remembers no run of it.")
    ] = False,
    leave_source: Annotated[
        bool, typer.Option("--leave-source", help="Though the source pool cannot be asked.")
    ] = False,
    as_json: AsJson = False,
    socket: Socket = None,
    config: Config = None,
) -> None:
    """Destroy what is left of replicas that no job keeps up any more, on both pools."""
    given = {
        "keep_replica": keep_replica,
        "even_if_used": even_if_used,
        "even_if_unknown": even_if_unknown,
        "leave_source": leave_source,
    }
    terms = [term for term, is_given in given.items() if is_given]

    async def plan(client: Client) -> list[ForgetPlanReply]:
        found = select_orphans(await client.orphans(), await client.status(), what, target)
        return [await client.forget_plan(orphan.stream, terms) for orphan in found]

    if as_json and not (yes or dry_run):
        raise typer.BadParameter("with --json, say --yes or --dry-run: nobody can be asked")
    plans = ask(socket, config, plan)
    is_allowed = not any(each.objections for each in plans)
    if as_json and (dry_run or not is_allowed):
        say_json(json.dumps([each.model_dump(mode="json") for each in plans], indent=2))
    elif not as_json:
        console.print(plans_view(plans))
    if not is_allowed:
        sys.exit(EXIT_REFUSED)
    if dry_run:
        return
    if not yes:
        typer.confirm("Do that?", abort=True)
    ask(socket, config, lambda client: _forget_all(client, plans, terms, as_json=as_json))


async def _forget_all(
    client: Client, plans: Sequence[ForgetPlanReply], terms: Sequence[str], *, as_json: bool
) -> None:
    """Give up streams one after the other, telling of each step.

    Raises:
        ControlError: one could not be; those before it are.
    """
    for plan in plans:
        orphan = plan.orphan
        async with aclosing(client.forget(orphan.stream, terms)) as steps:
            async for told in steps:
                if as_json:
                    line = {"stream": orphan.stream, **told.model_dump(mode="json")}
                    say_json(json.dumps(line))
                elif told.step:
                    console.print(f"{orphan.name}: {told.step}")
                elif told.done:
                    console.print(f"{orphan.name}: forgotten")
                if told.error is not None:
                    raise ControlError(told.error)
