"""Source and replica say who is current: at odds, nothing is overwritten."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lab import hands
from tests.lab.test_ownership import everything
from tests.lab.world import World
from xorepd.replication.format.current import KEY
from xorepd.state.records import Outcome

pytestmark = pytest.mark.lab


def said(world: World, pool: str) -> Any:
    """Return what the source VM, or the replica, takes itself for."""

    def look(xenapi: Any) -> dict[str, Any]:
        vm = hands.vm_of(xenapi, "web01") if pool == "prod" else hands.replica_of(xenapi)
        text = xenapi.VM.get_other_config(vm).get(KEY, "null")
        found: dict[str, Any] = json.loads(text)
        return found

    return world.ask(pool, look)


def say(pool: str, **changes: Any) -> hands.Deed:
    """Return a deed that changes what one side takes itself for; None removes it."""

    def deed(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01") if pool == "prod" else hands.replica_of(xenapi)
        present = json.loads(xenapi.VM.get_other_config(vm)[KEY])
        xenapi.VM.remove_from_other_config(vm, KEY)
        if changes:
            xenapi.VM.add_to_other_config(vm, KEY, json.dumps(present | changes))

    return deed


async def test_both_sides_say_who_they_are_and_forgetting_takes_it_back(replicated: World) -> None:
    source, replica = await said(replicated, "prod"), await said(replicated, "dr")

    assert (source["state"], replica["state"]) == ("active", "standby")
    assert source["lineage"] == replica["lineage"]
    assert source["epoch"] == replica["epoch"] == 1
    assert replica["peer"] == source["self"]
    assert (await replicated.replicate(verify="off")).outcome is Outcome.DELTA
    assert await said(replicated, "prod") == source


@pytest.mark.parametrize(
    ("pool", "changes"),
    [
        ("dr", {"epoch": 2}),
        ("dr", {"epoch": 2, "state": "active"}),
        ("dr", {"state": "active"}),
        ("dr", {"lineage": "another/one"}),
        ("prod", {"epoch": 2}),
        ("prod", {"state": "fenced"}),
    ],
)
async def test_sides_at_odds_freeze(replicated: World, pool: str, changes: dict[str, Any]) -> None:
    await replicated.ask(pool, say(pool, **changes))
    before = await replicated.ask("dr", everything)

    async with replicated.daemon() as context:
        record = await replicated.run(context)

    assert record.outcome is Outcome.FROZEN
    assert "VM web01: nothing is copied to its replica on pool dr" in str(record.error)
    assert await replicated.ask("dr", everything) == before
    assert await replicated.left_over() == []


async def test_a_source_that_lost_its_word_freezes_only_after_roles_have_changed(
    replicated: World,
) -> None:
    await replicated.ask("prod", say("prod"))
    assert (await replicated.replicate(verify="off")).outcome is Outcome.DELTA

    await replicated.ask("prod", say("prod"))
    await replicated.ask("dr", say("dr", epoch=2))
    async with replicated.daemon() as context:
        assert (await replicated.run(context)).outcome is Outcome.FROZEN
