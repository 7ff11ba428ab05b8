"""The deeds of the table: each can be done, and what people make by it is known for theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.mischief.deeds import DEEDS, act
from tests.mischief.plan import Deed, Options, Role, Run
from tests.mischief.play import do_run, open_scene
from tests.mischief.scene import Key, Scene

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

OPTIONS = Options(job={"keep": 2, "verify": "off", "snapshot": "memory"}, disks=2)

ROUNDS = 3
"""Some deeds leave others nothing to do."""

IN_A_RUN = {"unplug_from_dom0"}
"""Deeds that find something only while a run is under way."""


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """A VM with two restore points, beside which people have a clone and a snapshot of theirs."""
    asyncio.get_running_loop().set_debug(False)
    async with open_scene(OPTIONS) as made:
        await replicate(made)
        for name, role in (("clone_vm", Role.POINT), ("snapshot_vm", Role.SOURCE)):
            assert not (await act(made, Deed(name, role, 0))).refused
        await replicate(made)
        yield made


async def replicate(scene: Scene) -> None:
    await do_run(scene, Run(), replaces=True)


async def test_each_deed_can_be_done_and_what_people_make_is_known_for_theirs(
    scene: Scene,
) -> None:
    untried, salt = {name: DEEDS[name].roles for name in DEEDS if name not in IN_A_RUN}, 0
    for _ in range(ROUNDS):
        look = await scene.look()
        known: set[Key] = set(scene.ours(look))
        for name, roles in list(untried.items()):
            uuids = {record["uuid"] for record in look.vdis.values()}
            for role in roles:
                salt += 1
                if not (await act(scene, Deed(name, role, salt))).refused:
                    untried.pop(name, None)

            look = await scene.look()
            fresh = [look.thing(key) for key in scene.ours(look) if key not in known]
            # A disk of ours that was forgotten and found again is ours as before.
            assert [thing for thing in fresh if thing.uuid not in uuids] == [], name
            known |= {thing.key for thing in fresh}
        await replicate(scene)
    assert untried == {}
