"""Two daemons with the same job: one replicates, the other says who does, and takes over in time.

A lease that a test lets end is good for some seconds, where the configuration asks for at least 5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab.world import World, new_run, world
from tests.patience import patience
from xorepd.errors import LeaseHeld
from xorepd.ids import PoolName
from xorepd.replication.context import lease
from xorepd.replication.context.lease import Leases
from xorepd.replication.format.claims import PREFIX, Owner, encode, key_of
from xorepd.replication.format.marks import ReplicaKey
from xorepd.replication.run.jobs import Context, run_job
from xorepd.state.records import Outcome, RunRecord
from xorepd.xapi.records import Sr, parse_time
from xorepd.xapi.rpc import session
from xorepd_lab.faults.faults import Fault
from xorepd_lab.topology import SMALL, AccountSpec

OTHER = Owner("0b9d6b0e-52c3-4c0d-8f0a-6a8c5d0f7e11", "standby")
MiB = 1 << 20
HARMLESS = ("get_", "inject", "from", "login_with_password", "logout")


async def claims(on: World) -> dict[str, str]:
    """Return every claim on the target SR."""

    def read(xenapi: Any) -> dict[str, str]:
        (sr,) = xenapi.SR.get_by_name_label("dr-storage")
        other = xenapi.SR.get_other_config(sr).items()
        return {key: value for key, value in other if key.startswith(PREFIX)}

    found: dict[str, str] = await on.ask("dr", read)
    return found


async def until(look: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again until it is so."""
    while not await look():  # noqa: ASYNC110 -- a pool has to be asked
        await asyncio.sleep(0.05)


async def is_renewed(on: World, times: int) -> bool:
    return any(key.endswith(f".{times}") for key in await claims(on))


async def is_alone(on: World) -> bool:
    """Return whether the loser of two has taken its claim away."""
    return len(await claims(on)) == 1


def start(on: World, context: Context) -> asyncio.Task[list[RunRecord]]:
    work = run_job(on.job(verify="off"), new_run(), context)
    return asyncio.get_running_loop().create_task(work, name="run")


async def stalled_import(on: World) -> Fault:
    """Let the next transfer stop in its middle."""
    await on.lab.guest_write("web01", 1, sequential=(8 * MiB, 4 * MiB), seed=1)
    return on.lab.faults.add(Fault("import", pool="dr", times=None, stall=True, stall_at=MiB))


async def take_over(on: World) -> None:
    """Write a claim of a higher epoch, as a daemon does that found ours ended."""
    (key,) = await claims(on)
    pool, vm, numbers = key.removeprefix(PREFIX).split("/")

    def write(xenapi: Any) -> None:
        (sr,) = xenapi.SR.get_by_name_label("dr-storage")
        now = parse_time(xenapi.host.get_servertime(xenapi.host.get_all()[0]))
        epoch = int(numbers.partition(".")[0]) + 1
        claim = key_of(ReplicaKey(pool=pool, vm=vm, sr=""), epoch, 0)
        xenapi.SR.add_to_other_config(sr, claim, encode(OTHER, "run", now, 60.0))

    await on.ask("dr", write)


async def forget_claims(on: World) -> None:
    def remove(xenapi: Any) -> None:
        (sr,) = xenapi.SR.get_by_name_label("dr-storage")
        for key in xenapi.SR.get_other_config(sr):
            if key.startswith(PREFIX):
                xenapi.SR.remove_from_other_config(sr, key)

    await on.ask("dr", remove)


def changes_since(on: World, number: int, by: Context | None = None) -> Iterator[str]:
    """Yield the calls that changed more than tasks and claims of the caller's own.

    Args:
        by: only those of this daemon.
    """
    sessions = {pool.session.session_ref for pool in by.pools.values()} if by else None
    for call in on.lab.calls[number:]:
        if sessions is not None and call.session not in sessions:
            continue
        method = call.name.removeprefix("Async.")
        own = method.startswith("task.") or method == "SR.remove_from_other_config"
        if call.kind == "rpc" and not own:
            if not method.rpartition(".")[2].startswith(HARMLESS):
                yield f"{call.pool} {call.name}"
        elif call.kind == "import":
            yield f"{call.pool} {call.kind}"


async def test_of_two_daemons_one_replicates_and_the_other_says_who_does(
    two_pools: World,
) -> None:
    async with two_pools.daemon() as one, two_pools.daemon(owner=OTHER) as two:
        records = [(await run)[0] for run in (start(two_pools, one), start(two_pools, two))]

    outcomes = sorted(record.outcome for record in records)
    assert outcomes in ([Outcome.FULL, Outcome.LEASE_HELD], [Outcome.DELTA, Outcome.FULL])
    for record in records:
        if record.outcome is Outcome.LEASE_HELD:
            host = "standby" if record is records[0] else "here"
            assert f"is held by the xorepd on {host} until 20" in (record.error or "")
            assert record.remedy == "retry"
    assert await claims(two_pools) == {}
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


async def test_a_run_that_is_held_off_has_changed_nothing(replicated: World) -> None:
    fault = await stalled_import(replicated)
    async with replicated.daemon() as one, replicated.daemon(owner=OTHER) as two:
        run = start(replicated, one)
        await fault.stalled.wait()
        before = len(replicated.lab.calls)

        record = await replicated.run(two)

        assert record.outcome is Outcome.LEASE_HELD
        assert "held by the xorepd on here until" in (record.error or "")
        assert list(changes_since(replicated, before, by=two)) == []
        fault.release()
        [record] = await run
    assert record.outcome is Outcome.DELTA, record.error
    await replicated.newest_equals_its_source()


async def test_a_failed_run_lets_go(replicated: World) -> None:
    replicated.lab.faults.add(Fault("rpc", "VM.snapshot", "prod", error=("INTERNAL_ERROR", "x")))

    async with replicated.daemon() as context:
        assert (await replicated.run(context)).outcome is Outcome.FAILED

    assert await claims(replicated) == {}


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a lease be renewed every half second that is good for a minute."""
    monkeypatch.setattr(lease, "RENEWALS", 120)


@pytest.mark.usefixtures("often")
async def test_a_long_run_renews_its_lease_and_keeps_one_claim(replicated: World) -> None:
    fault = await stalled_import(replicated)
    async with replicated.daemon(lease=60.0) as context:
        run = start(replicated, context)
        await fault.stalled.wait()
        (first,) = await claims(replicated)
        await until(lambda: is_renewed(replicated, 3))

        # A renewal may be between its two calls.
        assert first not in await claims(replicated)
        assert len(await claims(replicated)) <= 2
        fault.release()
        [record] = await run
    assert record.outcome is Outcome.DELTA, record.error
    assert await claims(replicated) == {}


@pytest.mark.usefixtures("often")
async def test_a_run_that_ends_within_a_renewal_takes_both_claims_away(
    replicated: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SETTLE_S", 0.1)
    fault = await stalled_import(replicated)
    async with replicated.daemon(lease=60.0) as context:
        run = start(replicated, context)
        await fault.stalled.wait()
        # It is written, and the daemon does not know that yet.
        renewal = replicated.lab.faults.add(
            Fault("rpc", "SR.add_to_other_config", "dr", stall=True, stall_at=1)
        )
        await renewal.stalled.wait()
        assert len(await claims(replicated)) == 2

        fault.release()
        [record] = await run

        renewal.release()
    assert record.outcome is Outcome.DELTA, record.error
    assert await claims(replicated) == {}


async def test_a_run_that_is_cancelled_as_it_claims_takes_its_claim_away(two_pools: World) -> None:
    claim = two_pools.lab.faults.add(
        Fault("rpc", "SR.add_to_other_config", "dr", stall=True, stall_at=1)
    )
    async with two_pools.daemon() as context:
        run = start(two_pools, context)
        await claim.stalled.wait()
        assert len(await claims(two_pools)) == 1

        run.cancel()
        claim.release()
        await asyncio.wait({run})

    assert run.cancelled()
    assert await claims(two_pools) == {}
    assert await two_pools.left_over() == []


async def die_in_a_run(on: World, good_for: float) -> None:
    """Let a daemon die in its transfer: it leaves its claim and everything else."""
    fault = await stalled_import(on)
    async with on.daemon(lease=good_for) as context:
        run = start(on, context)
        await fault.stalled.wait()
        for where in ("rpc", "export", "import"):
            on.lab.faults.add(Fault(where, times=None, reset=True))
        run.cancel()
        fault.release()
        await asyncio.wait({run})
    on.lab.faults.clear()


@pytest.mark.leaves("session")
async def test_a_daemon_that_crashed_takes_its_own_lease_back_at_once(replicated: World) -> None:
    await die_in_a_run(replicated, good_for=3600.0)
    assert len(await claims(replicated)) == 1

    record = await replicated.replicate(verify="off")

    assert record.outcome is Outcome.DELTA
    assert await claims(replicated) == {}
    assert await replicated.left_over() == []


@pytest.mark.leaves("session")
async def test_another_daemon_takes_over_when_the_lease_has_ended(replicated: World) -> None:
    await die_in_a_run(replicated, good_for=patience(4.0))

    async with replicated.daemon(owner=OTHER, lease=patience(4.0)) as standby:
        records = []

        async def runs() -> bool:
            records.append(await replicated.run(standby, verify="off"))
            return records[-1].outcome is not Outcome.LEASE_HELD

        await until(runs)
        record = records[-1]

    assert record.outcome is Outcome.DELTA, record.error
    await replicated.newest_equals_its_source()
    assert await claims(replicated) == {}
    assert await replicated.left_over() == []


async def test_a_clock_of_the_pool_that_jumps_costs_no_run(replicated: World) -> None:
    fault = await stalled_import(replicated)
    async with (
        replicated.daemon(lease=patience(4.0)) as one,
        replicated.daemon(owner=OTHER, lease=patience(4.0)) as two,
    ):
        run = start(replicated, one)
        await fault.stalled.wait()
        for seconds in (7200, -14400):
            replicated.lab.pools["dr"].clock.jump(seconds)

            assert (await replicated.run(two)).outcome is Outcome.LEASE_HELD

        fault.release()
        [record] = await run
    assert record.outcome is Outcome.DELTA, record.error
    await replicated.newest_equals_its_source()


async def test_a_run_whose_lease_somebody_took_stops_before_its_next_change(
    replicated: World,
) -> None:
    fault = await stalled_import(replicated)
    async with replicated.daemon(lease=patience(4.0)) as context:
        run = start(replicated, context)
        await fault.stalled.wait()

        await take_over(replicated)
        [record] = await run

        assert (record.outcome, record.remedy) == (Outcome.FAILED, "retry")
        assert "the xorepd on standby has taken over" in (record.error or "")
        before = len(replicated.lab.calls)
        fault.release()
        await forget_claims(replicated)
        done = [c for c in changes_since(replicated, before) if "remove_from" not in c]
        assert done == []
        assert (await replicated.run(context)).outcome is Outcome.DELTA
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


async def test_nothing_is_changed_after_the_lease_was_lost(replicated: World) -> None:
    """The run is in its commit, between two calls, when somebody else has taken over."""
    fault = replicated.lab.faults.add(Fault("rpc", "VBD.destroy", "dr", stall=True))
    last = (await replicated.points())[0]["self"]
    async with replicated.daemon(lease=patience(4.0)) as context:
        run = start(replicated, context)
        await fault.stalled.wait()
        await take_over(replicated)
        await until(lambda: is_alone(replicated))
        before = len(replicated.lab.calls)

        fault.release()
        [record] = await run

        assert "the xorepd on standby has taken over" in (record.error or "")
        assert list(changes_since(replicated, before)) == []
        assert (await replicated.points())[0]["self"] == last
        await forget_claims(replicated)
        assert (await replicated.run(context, verify="off")).outcome is Outcome.DELTA
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


@pytest.mark.leaves("session")
async def test_a_run_that_cannot_renew_in_time_ends(replicated: World) -> None:
    fault = await stalled_import(replicated)
    async with replicated.daemon(lease=patience(4.0)) as context:
        run = start(replicated, context)
        await fault.stalled.wait()
        silence = Fault("rpc", "SR.add_to_other_config", "dr", times=None, reset=True)
        replicated.lab.faults.add(silence)

        [record] = await run

        assert record.outcome is Outcome.FAILED
        assert "it could not be renewed in time" in (record.error or "")
        replicated.lab.faults.clear()
        fault.release()
        assert (await replicated.run(context, verify="off")).outcome is Outcome.DELTA
    assert await claims(replicated) == {}
    assert await replicated.left_over() == []


@pytest.mark.leaves("session")
@pytest.mark.usefixtures("often")
async def test_a_renewal_whose_answer_got_lost_is_made_again(replicated: World) -> None:
    fault = await stalled_import(replicated)
    async with replicated.daemon(lease=60.0) as context:
        run = start(replicated, context)
        await fault.stalled.wait()
        lost = replicated.lab.faults.add(
            Fault("rpc", "SR.add_to_other_config", "dr", drop_response=True)
        )
        await until(lambda: is_renewed(replicated, 3))
        fault.release()
        [record] = await run
    assert lost.fired == 1
    assert record.outcome is Outcome.DELTA, record.error
    assert await claims(replicated) == {}


async def test_daemons_that_begin_in_the_same_instant_never_both_hold_a_lease(
    two_pools: World,
) -> None:
    holding: set[int] = set()
    most = wins = 0

    async def contend(context: Context, number: int) -> None:
        nonlocal most, wins
        pool = context.pools[PoolName("dr")]
        await pool.refresh()
        (sr,) = [sr for sr in pool.cache.table(Sr).values() if sr.name_label == "dr-storage"]
        leases = Leases(Owner(f"daemon-{number}", f"host-{number}"), 60.0)
        stream = ReplicaKey(pool="p", vm="v", sr=sr.uuid)
        for _ in range(8):
            try:
                async with leases.hold(pool, sr, stream, new_run(), "the VM"):
                    holding.add(number)
                    most, wins = max(most, len(holding)), wins + 1
                    await asyncio.sleep(0.01)
                    holding.discard(number)
            except LeaseHeld:
                await asyncio.sleep(0.02)

    async with two_pools.daemon() as one, two_pools.daemon() as two, asyncio.TaskGroup() as group:
        for number, context in enumerate((one, two, one, two)):
            group.create_task(contend(context, number))

    assert most == 1
    assert wins >= 4
    assert await claims(two_pools) == {}


async def test_a_run_and_its_lease_need_no_more_than_the_role_vm_power_admin(
    tmp_path: Path,
) -> None:
    account = AccountSpec("replicator", "vm-power-admin")
    pools = tuple(replace(pool, accounts=(account,)) for pool in SMALL.pools)
    # The lab keeps its roles where its fsck does not look.
    leaves = ("reference",)
    async with world(tmp_path / "lab", replace(SMALL, pools=pools), leaves) as on:
        settings = {
            name: on.settings(name, username=account.name, password=pool.accounts[account.name])
            for name, pool in on.lab.pools.items()
        }
        async with on.daemon(settings) as context:
            for outcome in (Outcome.FULL, Outcome.DELTA):
                record = await on.run(context, verify="off")
                assert record.outcome is outcome, record.error

        assert await claims(on) == {}
        assert await on.left_over() == []
