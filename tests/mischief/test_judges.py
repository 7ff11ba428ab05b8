"""The judges see what a daemon could do wrong: here the test does it behind their back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.lab import carried, hands
from tests.mischief.deeds import act
from tests.mischief.judges import Ran, judge_run
from tests.mischief.plan import Deed, Kind, Options, Role, Run
from tests.mischief.play import do_run, open_scene
from tests.mischief.scene import Scene, Thing
from xorepd.state.records import Outcome, RunRecord

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


@dataclass(frozen=True, slots=True)
class Case:
    """A VM that has been replicated; people have a clone of its restore point, and work in it."""

    scene: Scene
    record: RunRecord
    """Of that run."""

    async def only(self, kind: Kind, role: Role) -> Thing:
        return self.scene.things(await self.scene.look(), kind, role)[0]

    async def act(self, name: str, role: Role) -> None:
        assert not (await act(self.scene, Deed(name, role, 0))).refused

    async def see(self, record: RunRecord | None = None, **facts: Any) -> set[str]:
        """Return the kinds of what the judges see after a run; then all is right as it is."""
        ran = Ran(Run(), record, **facts)
        found = {each.kind for each in await judge_run(self.scene, ran)}
        look = await self.scene.look()
        self.scene.note(look)
        self.scene.powers.update({key: vm["power_state"] for key, vm in look.guests.items()})
        return found

    async def after(self, deed: hands.Deed, pool: str = "dr", **facts: Any) -> set[str]:
        """Do something that no one is told of; return what the judges see then."""
        await self.scene.world.ask(pool, deed)
        return await self.see(**facts)


@pytest.fixture
async def case() -> AsyncIterator[Case]:
    asyncio.get_running_loop().set_debug(False)
    async with open_scene(Options(job={"keep": 2, "verify": "off"})) as scene:
        ran = await do_run(scene, Run())
        assert ran.record is not None
        assert await judge_run(scene, ran) == []
        made = Case(scene, ran.record)
        await made.act("clone_vm", Role.POINT)
        await made.act("use_vm", Role.THEIRS)
        yield made


async def test_what_is_peoples_must_stay_as_it_is(case: Case) -> None:
    vm, disk = [await case.only(kind, Role.THEIRS) for kind in (Kind.VM, Kind.VDI)]
    lab = case.scene.world.lab

    assert await case.see() == set()
    assert await case.after(lambda x: x.VM.set_name_label(vm.ref, "other")) == {
        "theirs.changed name_label"
    }
    assert await case.after(lambda x: x.VDI.remove_from_other_config(disk.ref, "xorepd:mark")) == {
        "theirs.changed other_config"
    }
    await lab.guest_write("other", 0, random=1, seed=1)
    assert await case.see() == {"theirs.written"}
    assert await case.after(lambda x: x.VM.hard_shutdown(vm.ref)) == {"power theirs"}
    assert await case.after(lambda x: hands.detach(x, vm.ref, "0")) >= {"theirs.changed users"}
    assert await case.after(lambda x: x.VDI.destroy(disk.ref)) == {
        "theirs.gone VDI",
        "bytes.gone theirs",
    }


async def test_what_people_write_in_what_is_ours_must_be_found_again(case: Case) -> None:
    await case.act("write_to_disk", Role.REPLICA)
    replica = await case.only(Kind.VM, Role.REPLICA)

    assert await case.see() == set()
    assert await case.after(lambda x: hands.destroy_with_disks(x, replica.ref)) == {
        "bytes.gone replica"
    }


async def test_who_may_replace_a_replica_may_destroy_what_was_written_there(case: Case) -> None:
    await case.act("write_to_disk", Role.REPLICA)
    replica = await case.only(Kind.VM, Role.REPLICA)

    assert (
        await case.after(lambda x: hands.destroy_with_disks(x, replica.ref), replaces=True) == set()
    )


async def test_a_restore_point_must_hold_what_the_source_held(case: Case) -> None:
    disk = await case.only(Kind.VDI, Role.POINT)

    assert await case.see(case.record) == set()
    assert await case.see(replace(case.record, restore_point=disk.uuid)) == {"point.none"}
    await carried.overwrite(case.scene.world, "dr", disk.uuid, 0, bytes(4096))
    assert await case.see(case.record) == {
        "point.changed",
        "replica.unequal full",
        "replica.unequal to its point",
    }


async def test_the_newest_restore_point_is_gone_only_for_a_newer_one(case: Case) -> None:
    point = await case.only(Kind.VM, Role.POINT)
    failed = replace(case.record, outcome=Outcome.FAILED, error="the target is full")

    await case.scene.world.ask("dr", lambda x: x.VM.destroy(point.ref))

    assert await case.see(failed) == {"point.gone"}


async def test_a_good_run_leaves_nothing_that_is_ours_or_doubtful(case: Case) -> None:
    def leave(xenapi: Any) -> None:
        for name in ("ours", "doubtful"):
            vdi = hands.create_disk(xenapi, "dr-storage", name, 2 << 20)
            text = json.dumps({"self": xenapi.VDI.get_uuid(vdi) if name == "ours" else ""})
            xenapi.VDI.add_to_other_config(vdi, "xorepd:mark", text)

    def soil(xenapi: Any) -> None:
        vm = case.scene.source[1]
        xenapi.VM.add_to_other_config(vm, "xorepd:snapshotting", "run")
        xenapi.VM.add_to_blocked_operations(vm, "pool_migrate", "xorepd replicates it")
        xenapi.VM.set_name_label(vm, "other")

    assert await case.after(leave, record=case.record) == {"leak", "unlisted"}
    await case.scene.world.ask("prod", soil)
    assert await case.see(case.record) == {
        "leak",
        "unlisted",
        "leak key xorepd:snapshotting",
        "leak block",
        "source.changed name_label",
    }


async def test_what_a_run_says_must_make_sense(case: Case) -> None:
    text = "internal error, KeyError: OpaqueRef:0"
    failed = replace(case.record, outcome=Outcome.FAILED, error=text)

    assert await case.see(failed, was_harmless=True, hangs=True) == {
        "broken",
        "refused",
        "hangs",
    }
