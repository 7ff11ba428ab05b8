"""What people have beside ours while a sweep strikes: one of each kind that looks like ours."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from tests.lab import hands
from tests.lab.world import World
from tests.mischief.deeds import record
from tests.mischief.judges import judge_theirs
from tests.mischief.people import People
from tests.mischief.plan import Options, Role
from tests.mischief.scene import Scene, Thing

SOURCE, TARGET = "prod", "dr"


class Beside:
    """Objects of people's that came of ours, as they were when they were made."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    @property
    def uuids(self) -> list[str]:
        return [known.thing.uuid for known in self._scene.theirs.values() if known]

    async def touched(self) -> list[str]:
        """Return what has become of them and must not have."""
        return [str(each) for each in judge_theirs(self._scene, await self._scene.look())]


async def stand_beside(lab: World, vm: str) -> Beside:
    """Let people copy, in every way, what there is of a VM that has been replicated."""
    source = SOURCE, await lab.ask(SOURCE, lambda x: hands.vm_of(x, vm))
    scene = Scene(lab, Options(), source, {source})
    look = await scene.look()
    people = People(scene, look, Role.THEIRS, Random(0))
    uuid = look.vms[source]["uuid"]
    try:
        await asyncio.to_thread(_copy, people, uuid)
    finally:
        await asyncio.to_thread(people.close)
    await record(scene, people)
    return Beside(scene)


def _copy(people: People, vm: str) -> None:
    x, look = people.x(TARGET), people.look
    [point] = [
        look.thing(key)
        for key, guest in look.guests.items()
        if key[0] == TARGET and guest["is_a_snapshot"] and _is_of(guest, vm)
    ]
    replica = x.VM.get_snapshot_of(point.ref)
    disks = hands.disks_of(x, point.ref)
    people.made_vm(TARGET, x.VM.clone(point.ref, "clone of a restore point"))
    people.made_vm(TARGET, x.VM.snapshot(replica, "snapshot of the replica"))
    for vdi in disks.values():
        people.made_disk(TARGET, x.VDI.clone(vdi))
        people.made_disk(TARGET, x.VDI.snapshot(vdi))
    _carry(people, point)
    by_hand = people.create_disk(TARGET, x.VDI.get_SR(disks["0"]))
    x.VDI.set_other_config(by_hand, x.VDI.get_other_config(disks["0"]))
    for _, live in look.disks(people.scene.source).values():
        people.made_disk(SOURCE, people.x(SOURCE).VDI.snapshot(live))


def _carry(people: People, point: Thing) -> None:
    archive = people.export(point)
    people.import_vm(archive, TARGET, people.storage(TARGET), restore=False)


def _is_of(guest: dict[str, Any], vm: str) -> bool:
    """Return whether a VM says that it is a copy of another one, as ours and XO's do."""
    return bool(guest["other_config"].get("xo:backup:vm") == vm)


def give_up(xenapi: Any) -> None:
    """Delete all that is ours on a pool: replicas, restore points, source snapshots, disks."""
    for ref, vm in xenapi.VM.get_all_records().items():
        if _is_signed(vm):
            hands.destroy_with_disks(xenapi, ref)
    for ref, vdi in xenapi.VDI.get_all_records().items():
        if _is_signed(vdi):
            xenapi.VDI.destroy(ref)


def _is_signed(thing: dict[str, Any]) -> bool:
    return f'"self":"{thing["uuid"]}"' in thing["other_config"].get("xorepd:mark", "")
