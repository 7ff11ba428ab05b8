"""`xorepctl forget`: which streams an operator means, and what giving them up comes to."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Annotated

import typer
from rich.console import Group, RenderableType

from xorepd.config.names import as_uuid
from xorepd.console.asking import EXIT_REFUSED, AsJson, Config, Socket, ask, console
from xorepd.control.client import Client, typed
from xorepd.control.protocol import (
    ForgetPlanReply,
    OrphanReply,
    OrphansReply,
    StatusReply,
    VmStatus,
)
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
        ControlError: one of them means nothing that can be forgotten, or more than one VM.
    """
    chosen: dict[str, OrphanReply] = {}
    for text in map(typed, wanted):
        there = [orphan for orphan in reply.orphans if _is_on(orphan, target)]
        others: list[str] = []
        found = [each for each in there if text in {each.stream, each.replica, each.vm}]
        if not found:
            found = [orphan for orphan in there if text in _names(orphan)]
            others = list(_namesakes(found, status, text, target))
        if not found:
            raise ControlError(_not_found(reply, status, text, target))
        _check_is_one(text, found, others)
        chosen |= {orphan.stream: orphan for orphan in found}
    return list(chosen.values())


def _is_on(orphan: OrphanReply, target: str | None) -> bool:
    return target in (None, f"{orphan.pool}/{orphan.sr}")


def _names(orphan: OrphanReply) -> set[str]:
    return {orphan.name, orphan.name.removeprefix(f"[XO Backup {orphan.job}] ")}


def _check_is_one(text: str, found: Sequence[OrphanReply], others: Sequence[str]) -> None:
    """Refuse what several VMs have or had for a name: somebody may mean either.

    Args:
        others: VMs beside those that were found.

    Raises:
        ControlError: it is one, with what to say instead.
    """
    by_vm: dict[str, list[OrphanReply]] = {}
    for orphan in found:
        by_vm.setdefault(orphan.stream.rpartition("/")[0], []).append(orphan)
    uuids = [orphans[0].vm for orphans in by_vm.values()]
    things = []
    for (first, *rest), uuid in zip(by_vm.values(), uuids, strict=True):
        word = uuid if uuids.count(uuid) == 1 else first.stream  # one VM that was moved
        gone = "" if first.source_vm_exists else "gone, "
        places = " and ".join(f"{orphan.pool}/{orphan.sr}" for orphan in (first, *rest))
        things.append(f"{word} ({gone}replicated to {places})")
    things += others
    if len(things) > 1:
        raise ControlError(
            f"{text} means {len(things)} VMs; say which one by its UUID: {', '.join(things)}"
        )


def _namesakes(
    found: Sequence[OrphanReply], status: StatusReply, text: str, target: str | None
) -> Iterator[str]:
    """Return the VMs that jobs keep up under a name of VMs without a job."""
    for job, vm in _kept_up(status, text, target):
        if _is_another(vm, found):
            yield f"{_uuid(vm) or 'the one'} that job {job} keeps up"


def _kept_up(status: StatusReply, text: str, target: str | None) -> Iterator[tuple[str, VmStatus]]:
    """Return the VMs of jobs that have a name or UUID."""
    for job in status.jobs:
        for vm in job.vms:
            names = {vm.vm, vm.name, f"[XO Backup {job.name}] {vm.name}", _uuid(vm)}
            if text in names and target in (None, f"{vm.pool}/{vm.sr}"):
                yield job.name, vm


def _is_another(vm: VmStatus, found: Sequence[OrphanReply]) -> bool:
    """Return whether a job's VM is none of those without a job that have its name.

    What a job means by name is not what no job means at the same place, whatever was replicated
    under that name before.
    """
    uuid, srs = _uuid(vm), {vm.sr, vm.last.sr if vm.last else vm.sr}
    if vm.vm != uuid and any(each.pool == vm.pool and each.sr in srs for each in found):
        return True
    if uuid:
        return uuid not in {orphan.vm for orphan in found}
    return not all(orphan.source_vm_exists for orphan in found)


def _uuid(vm: VmStatus) -> str:
    return as_uuid(vm.vm) or (vm.last.vm_uuid if vm.last else "")


def _not_found(reply: OrphansReply, status: StatusReply, text: str, target: str | None) -> str:
    where = f" on {target}" if target else ""
    for job, _ in _kept_up(status, text, target):
        return (
            f"job {job} keeps {text} up; take the VM out of that job and `xorepctl reload`, then "
            "forget it"
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
            lines += [Words(f"  {action}") for action in plan.actions]
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
