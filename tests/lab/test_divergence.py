"""A replica that somebody worked on: a state that is said, kept, and ended by a decision."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab import hands
from tests.lab.world import World
from xorepd.state.records import Outcome, RunRecord

pytestmark = pytest.mark.lab


async def start_and_stop(world: World) -> None:
    """Start the replica as a determined person does, and shut it down again."""

    def deed(xenapi: Any) -> None:
        replica = hands.replica_of(xenapi)
        xenapi.VM.set_blocked_operations(replica, {})
        xenapi.VM.start(replica, False, False)
        xenapi.VM.hard_shutdown(replica)

    await world.ask("dr", deed)


async def run(world: World, **changes: Any) -> RunRecord:
    async with world.daemon() as context:
        return await world.run(context, **changes)


async def disks(world: World) -> dict[str, str]:
    found: dict[str, str] = await world.ask("dr", lambda x: hands.disks_of(x, hands.replica_of(x)))
    return found


async def test_a_replica_that_was_started_is_kept_and_named(replicated: World) -> None:
    before = await disks(replicated)
    await start_and_stop(replicated)

    record = await run(replicated)

    assert record.outcome is Outcome.FAILED
    assert "has changed since its last run: disk web01-root was written to" in (record.error or "")
    assert 'diverged = "replace" in job web' in (record.error or "")
    assert await disks(replicated) == before
    assert len(await replicated.points()) == 1
    assert await replicated.left_over() == []


async def test_a_diverged_replica_is_replaced_where_the_job_says_so(replicated: World) -> None:
    before = await disks(replicated)
    await start_and_stop(replicated)

    record = await run(replicated, diverged="replace")

    assert record.outcome is Outcome.DELTA, record.error
    after = await disks(replicated)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    await replicated.newest_equals_its_source()
    assert (await run(replicated)).outcome is Outcome.DELTA
    assert len(await replicated.ask("dr", hands.replicas_of)) == 1


async def test_reading_copying_and_snapshotting_a_replica_is_no_divergence(
    replicated: World,
) -> None:
    def deeds(xenapi: Any) -> None:
        replica = hands.replica_of(xenapi)
        snapshot = xenapi.VM.snapshot(replica, "by hand")
        xenapi.VM.clone(snapshot, "drill")
        xenapi.VM.set_name_description(replica, "seen")
        host = xenapi.host.get_all()[0]
        for vdi in hands.disks_of(xenapi, replica).values():
            dom0 = xenapi.host.get_control_domain(host)
            vbd = xenapi.VBD.create(
                {
                    "VM": dom0,
                    "VDI": vdi,
                    "userdevice": "autodetect",
                    "bootable": False,
                    "mode": "RO",
                    "type": "Disk",
                    "empty": False,
                    "other_config": {},
                    "qos_algorithm_type": "",
                    "qos_algorithm_params": {},
                }
            )
            xenapi.VBD.plug(vbd)
            xenapi.VBD.unplug(vbd)
            xenapi.VBD.destroy(vbd)

    await replicated.ask("dr", deeds)

    assert (await run(replicated)).outcome is Outcome.DELTA
