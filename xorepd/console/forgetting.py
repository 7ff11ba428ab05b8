"""`xorepctl forget`: find the replicas that an operator names, show the plan, forget them."""

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
    """Return the replicas that an operator names.

    Args:
        wanted: Names or UUIDs of replicas or of source VMs, or keys of replicas.
        target: `pool/SR`, to select replicas on one target only.

    Raises:
        ControlError: one of them matches no replica without a job, or more than one VM.
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
    """Refuse a name that several VMs have or had.

    Args:
        others: VMs of jobs that have the same name.

    Raises:
        ControlError: the name is ambiguous; the message lists what to write instead.
    """
    by_vm: dict[str, list[OrphanReply]] = {}
    for orphan in found:
        by_vm.setdefault(orphan.stream.rpartition("/")[0], []).append(orphan)
    uuids = [orphans[0].vm for orphans in by_vm.values()]
    things = []
    for (first, *rest), uuid in zip(by_vm.values(), uuids, strict=True):
        word = uuid if uuids.count(uuid) == 1 else first.stream  # a VM that has moved between pools
        gone = "" if first.source_vm_exists else "gone, "
        places = " and ".join(f"{orphan.pool}/{orphan.sr}" for orphan in (first, *rest))
        things.append(f"{word} ({gone}replicated to {places})")
    things += others
    if len(things) > 1:
        raise ControlError(
            f"{text} matches {len(things)} VMs; name one by its UUID: {', '.join(things)}"
        )


def _namesakes(
    found: Sequence[OrphanReply], status: StatusReply, text: str, target: str | None
) -> Iterator[str]:
    """Return the VMs of jobs that have the same name as VMs without a job."""
    for job, vm in _kept_up(status, text, target):
        if _is_another(vm, found):
            yield f"{_uuid(vm) or 'the one'} that job {job} replicates"


def _kept_up(status: StatusReply, text: str, target: str | None) -> Iterator[tuple[str, VmStatus]]:
    """Return the VMs of jobs that match a name or UUID, each with its job."""
    for job in status.jobs:
        for vm in job.vms:
            names = {vm.vm, vm.name, f"[XO Backup {job.name}] {vm.name}", _uuid(vm)}
            if text in names and target in (None, f"{vm.pool}/{vm.sr}"):
                yield job.name, vm


def _is_another(vm: VmStatus, found: Sequence[OrphanReply]) -> bool:
    """Return whether a VM of a job differs from all VMs without a job that have its name.

    A VM that a job names is not the VM without a job on the same target, even if both had that
    name.
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
            f"job {job} replicates {text}; remove the VM from that job and `xorepctl reload`, then "
            "forget it"
        )
    silent = "".join(f"; {pool} did not answer: {why}" for pool, why in reply.not_asked.items())
    return f"there is nothing to forget of {text}{where}; see `xorepctl orphans`{silent}"


def plans_view(plans: Collection[ForgetPlanReply]) -> RenderableType:
    """Show what will be done, or what forbids it."""
    lines = []
    for plan in plans:
        orphan = plan.orphan
        lines.append(Words(f"{orphan.name} on {orphan.pool}/{orphan.sr}:"))
        if plan.objections:
            lines += [Words(f"  refused: {why}", style="red") for why in plan.objections]
        else:
            lines += [Words(f"  {action}") for action in plan.actions]
    return Group(*lines)


def forget(
    what: Annotated[
        list[str], typer.Argument(help="Names or UUIDs of replicas or their source VMs.")
    ],
    target: Annotated[
        str | None, typer.Option("--target", "-t", metavar="POOL/SR", help="Only on this target.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    keep_replica: Annotated[
        bool, typer.Option("--keep-replica", help="Make the replica an ordinary VM.")
    ] = False,
    even_if_used: Annotated[
        bool, typer.Option("--even-if-used", help="Destroy a replica that was used.")
    ] = False,
    even_if_unknown: Annotated[
        bool,
        typer.Option("--even-if-unknown", help="Even if this daemon has no run of it."),
    ] = False,
    leave_source: Annotated[
        bool,
        typer.Option("--leave-source", help="Even if its source pool does not answer."),
    ] = False,
    as_json: AsJson = False,
    socket: Socket = None,
    config: Config = None,
) -> None:
    """Destroy replicas that no job maintains any more, and their remains on both pools."""
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
        raise typer.BadParameter("--json needs --yes or --dry-run: it cannot ask for confirmation")
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
        typer.confirm("Continue?", abort=True)
    ask(socket, config, lambda client: _forget_all(client, plans, terms, as_json=as_json))


async def _forget_all(
    client: Client, plans: Sequence[ForgetPlanReply], terms: Sequence[str], *, as_json: bool
) -> None:
    """Forget replicas one after the other, and print each step.

    Raises:
        ControlError: one could not be forgotten; the ones before it are.
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
