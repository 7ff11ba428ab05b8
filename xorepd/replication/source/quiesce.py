"""Bring a source VM to rest while its snapshot is taken, and start it again in every case.

    hook before ─► clean shutdown ─► [the snapshot] ─► start ─► hook after
                   ╰── only with snapshot = "offline", and only if the VM runs ──╯

With snapshot = "memory" XAPI itself suspends the VM for its snapshot, and resumes it.

A daemon, or a toolstack, that dies in between leaves a VM that is down. The VM carries
`xorepd:restart` from before it goes down until it runs again. It records the state of the VM: a
sweep starts or resumes a VM that is still in that state, and no VM that was started, reverted or
copied since.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace

import structlog

from xorepd.config.choices import SnapshotKind
from xorepd.errors import HookFailed, Refused, XapiError, XapiFailure, XapiUnreachable
from xorepd.ids import Ref
from xorepd.replication.context.assignment import Assignment, Pair
from xorepd.replication.format.inventory import disks_of
from xorepd.replication.format.marks import RESTART
from xorepd.replication.source.hooks import run_hook
from xorepd.tidying import to_the_end
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Vm, parse_time
from xorepd.xapi.vms import update_keys

log = structlog.get_logger(__name__)

SHUTDOWN_S = 1200.0
"""XAPI itself gives a guest 20 minutes."""
START_S = 600.0


@asynccontextmanager
async def at_rest(a: Assignment, vm: Vm) -> AsyncIterator[None]:
    """Keep a source VM at rest as its job says, until the block ends.

    Raises:
        HookFailed: a hook failed; the one after runs all the same.
        Refused: the guest does not shut down.
        XapiError: it could not be started again; the next sweep tries that.
    """
    pair = a.pair
    hooks = a.job.hooks
    facts = {
        "XOREPD_JOB": a.job.name,
        "XOREPD_RUN": pair.run_id,
        "XOREPD_POOL": pair.source.name,
        "XOREPD_VM": vm.uuid,
        "XOREPD_VM_NAME": vm.name_label,
    }
    try:
        if hooks.before:
            await run_hook(hooks.before, facts, hooks.timeout)
        if a.job.snapshot is SnapshotKind.OFFLINE and vm.power_state == "Running":
            async with _shut_down(pair, vm):
                yield
        elif a.job.snapshot is SnapshotKind.MEMORY and vm.power_state == "Running":
            async with _marked_to_run(pair, vm, "Suspended"):
                yield
        else:
            yield
    finally:
        if hooks.after:
            await to_the_end(_run_last(hooks.after, facts, hooks.timeout), 2 * hooks.timeout)


async def _run_last(command: tuple[str, ...], facts: dict[str, str], timeout: float) -> None:
    """Run the hook after the snapshot; if it fails, the snapshot is still good."""
    try:
        await run_hook(command, facts, timeout)
    except HookFailed as error:
        log.error("hook.failed", reason=str(error))  # noqa: TRY400 -- the sentence says all


@asynccontextmanager
async def _marked_to_run(pair: Pair, vm: Vm, down: str) -> AsyncIterator[None]:
    """Have the VM started again after a snapshot that may leave it in the power state `down`."""
    downed = await _look_at(pair.source, pair.run_id, vm, down)
    await update_keys(pair.source, "VM", vm.ref, "other_config", {RESTART: downed.encode()})
    try:
        yield
    except BaseException as error:
        in_flight = _is_unanswered(error)
        await to_the_end(start_again(pair, vm.ref, downed, in_flight=in_flight), START_S)
        raise
    await to_the_end(start_again(pair, vm.ref, downed), START_S)


def _is_unanswered(error: BaseException | None) -> bool:
    """Return whether work ended without an answer from XAPI, which may be doing it still."""
    while error is not None:
        if isinstance(error, asyncio.CancelledError | TimeoutError | XapiUnreachable):
            return True
        error = error.__cause__
    return False


@asynccontextmanager
async def _shut_down(pair: Pair, vm: Vm) -> AsyncIterator[None]:
    async with _marked_to_run(pair, vm, "Halted"):
        try:
            await pair.source.run_task("VM.clean_shutdown", vm.ref, timeout=SHUTDOWN_S)
        except XapiError as error:
            raise Refused(
                f"VM {vm.name_label} did not shut down for its snapshot; {error}; "
                'or set snapshot = "plain" in the job'
            ) from error
        yield


@dataclass(frozen=True, slots=True)
class Downed:
    """The state of a VM when a run took it down."""

    run: str
    self: str
    """Its UUID: copies inherit what is written on it."""
    disks: tuple[str, ...]
    """UUIDs of its disks: a revert gives it others."""
    started_at: str
    """When it had been started last, ISO 8601."""
    down: str = ""
    """The power state in which the run may have left it; empty: the earlier form does not say."""
    ref: str = ""
    """Its reference, which an import under the same UUID does not have; empty as above."""

    def encode(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Downed | None:
        """Return what `encode` wrote; None where it is something else."""
        try:
            plain = json.loads(text)
            later = [plain.get(member, "") for member in ("down", "ref")]
            texts = [plain["run"], plain["self"], plain["started_at"], *later, *plain["disks"]]
            disks = tuple(plain["disks"])
            found = cls(plain["run"], plain["self"], disks, plain["started_at"], *later)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return found if all(isinstance(text, str) for text in texts) else None


async def _look_at(pool: Pool, run: str, vm: Vm, down: str) -> Downed:
    """Return the state of a VM now, for a run that may take it down to a power state."""
    disks = sorted(vdi.uuid for _, vdi in disks_of(pool.cache, vm))
    metrics = await pool.call("VM.get_metrics", vm.ref)
    started = parse_time(await pool.call("VM_metrics.get_start_time", metrics))
    return Downed(run, vm.uuid, tuple(disks), started.isoformat(), down, vm.ref)


async def start_if_left_down(pair: Pair, vm: Vm) -> None:
    """Start or resume a VM that an earlier run took down, if it is still as that run left it."""
    left = Downed.decode(vm.other_config[RESTART])
    if left is not None and left.run == pair.run_id and vm.power_state == "Running":
        return  # a call of this run may still be under way: the next run looks again
    await start_again(pair, vm.ref, left)


async def start_again(pair: Pair, vm: Ref, left: Downed | None, *, in_flight: bool = False) -> None:
    """Start or resume a VM that a run took down, if it is as the run left it, and remove the key.

    This happens even without the lease: the VM must not stay down.

    Args:
        left: what the run wrote down; None where that says nothing.
        in_flight: The run ended amid its calls, and XAPI may still take the VM down. If it runs, it
            keeps the key, and the next run looks at it again.
    """
    pool = pair.source.unguarded()
    state = await pool.call("VM.get_power_state", vm)
    if in_flight and state == "Running":
        return
    if state != "Running" and not await _is_as_left(pool, vm, state, left):
        reason = "it is not as the run that took it down left it"
        log.warning("vm.left_alone", vm=pool.cache.describe("VM", vm), reason=reason)
    elif state == "Halted":
        log.info("vm.starting_again", vm=pool.cache.describe("VM", vm))
        await pool.run_task("VM.start", vm, False, False, timeout=START_S)
    elif state == "Suspended":
        log.info("vm.resuming", vm=pool.cache.describe("VM", vm))
        await _resume(pool, vm)
    await pool.call("VM.remove_from_other_config", vm, RESTART)


async def _is_as_left(pool: Pool, ref: Ref, state: str, left: Downed | None) -> bool:
    """Return whether a VM is the one that a run took down: not reverted, imported or used since.

    A run suspends a VM, or shuts it down. What is in the other state now, people have put there.
    """
    await pool.refresh()
    vm = pool.cache.vms.get(ref)
    if vm is None or left is None or left.ref not in ("", ref):
        return False
    if left.down not in ("", state):
        return False
    return replace(left, ref=ref) == await _look_at(pool, left.run, vm, left.down)


async def _resume(pool: Pool, vm: Ref) -> None:
    """Resume a VM; if its snapshot is not complete yet, XAPI resumes it after that."""
    try:
        await pool.run_task("VM.resume", vm, False, False, timeout=START_S)
    except XapiFailure as failure:
        if failure.code != "VM_BAD_POWER_STATE":
            raise
