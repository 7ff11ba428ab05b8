"""What people and other programs do to anything: the table of deeds.

Each is a function of the hands that do it and of the thing that it is done to. `NotNow` says that
the thing is not as the deed wants it; an error of XAPI, that the pool does not let people.

A *harmless* deed gives no run a reason to refuse: who makes copies is in nobody's way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tests.lab import carried, hands
from tests.mischief.people import REFUSALS, NotNow, People, choose
from tests.mischief.plan import Deed, Kind, Role
from tests.mischief.scene import NULL, POOLS, Look, Record, Scene, Thing, Violation

Do = Callable[[People, Thing], None]

OURS = (Role.BASE, Role.REPLICA, Role.POINT, Role.MEMORY)
"""VMs that runs make."""
VMS = (Role.SOURCE, *OURS, Role.THEIRS)
DISKS = (*VMS, Role.STAGING)


@dataclass(frozen=True, slots=True)
class Entry:
    do: Do
    kind: Kind
    roles: Sequence[Role]
    weight: int
    is_harmless: bool


DEEDS: dict[str, Entry] = {}


def deed(kind: Kind, *roles: Role, weight: int = 2, harmless: bool = False) -> Callable[[Do], Do]:
    """Enter a function into the table: for things of a kind that stand in one of the roles."""

    def enter(do: Do) -> Do:
        DEEDS[do.__name__] = Entry(do, kind, roles, weight, harmless)
        return do

    return enter


def table() -> dict[str, tuple[int, Sequence[Role]]]:
    """Return the weights and roles by which plans are made."""
    return {name: (entry.weight, entry.roles) for name, entry in DEEDS.items()}


# -- copies ---------------------------------------------------------------------------------------


@deed(Kind.VM, *VMS, weight=4, harmless=True)
def clone_vm(people: People, it: Thing) -> None:
    ref = people.x(it.pool).VM.clone(it.ref, people.name("clone"))
    people.made_vm(it.pool, ref)


@deed(Kind.VM, Role.SOURCE, Role.REPLICA, Role.THEIRS, weight=4, harmless=True)
def snapshot_vm(people: People, it: Thing) -> None:
    ref = people.x(it.pool).VM.snapshot(it.ref, people.name("snapshot"))
    people.made_vm(it.pool, ref)


@deed(Kind.VM, Role.SOURCE, Role.THEIRS, weight=1, harmless=True)
def checkpoint_vm(people: People, it: Thing) -> None:
    ref = people.x(it.pool).VM.checkpoint(it.ref, people.name("checkpoint"))
    people.made_vm(it.pool, ref)


@deed(Kind.VM, *VMS, weight=2, harmless=True)
def copy_vm(people: People, it: Thing) -> None:
    sr = people.rng.choice((NULL, people.storage(it.pool)))
    ref = people.x(it.pool).VM.copy(it.ref, people.name("copy"), sr)
    people.made_vm(it.pool, ref)


@deed(Kind.VDI, *DISKS, weight=5, harmless=True)
def clone_disk(people: People, it: Thing) -> None:
    people.made_disk(it.pool, people.x(it.pool).VDI.clone(it.ref))


@deed(Kind.VDI, *DISKS, weight=4, harmless=True)
def snapshot_disk(people: People, it: Thing) -> None:
    people.made_disk(it.pool, people.x(it.pool).VDI.snapshot(it.ref))


@deed(Kind.VDI, *DISKS, weight=2, harmless=True)
def copy_disk(people: People, it: Thing) -> None:
    people.made_disk(it.pool, people.x(it.pool).VDI.copy(it.ref, people.storage(it.pool)))


@deed(Kind.VM, *VMS, weight=3, harmless=True)
def carry_vm(people: People, it: Thing) -> None:
    """Export a VM, and import it beside itself or into the other pool, as a new one."""
    archive = people.export(it)
    pool = people.rng.choice(POOLS)
    people.import_vm(archive, pool, people.storage(pool), restore=False)


@deed(Kind.VM, *VMS, weight=3)
def restore_vm(people: People, it: Thing) -> None:
    """Export a VM, perhaps delete it, and import it under its own UUID."""
    people.halt(it.pool, it.ref)
    archive = people.export(it)
    pool = people.rng.choice((it.pool, it.pool, *POOLS))
    if pool == it.pool and people.rng.random() < 0.7:
        people.destroy_vm(it.pool, it.ref, with_disks=people.rng.random() < 0.7)
    before = Look(people.scene.world)
    try:
        people.import_vm(archive, pool, people.storage(pool), restore=True)
    except NotNow:
        people.scene.is_harmless = False  # it may be deleted by now
        raise
    after = Look(people.scene.world)
    people.removed += [key for key in before.vms if key not in after.vms]  # gave way to it
    if it.key == people.scene.source:
        _find_source(people, it.uuid)


@deed(Kind.VM, Role.BASE, Role.POINT, Role.THEIRS, weight=3)
def revert(people: People, it: Thing) -> None:
    x = people.x(it.pool)
    was = it.pool, x.VM.get_snapshot_of(it.ref)
    before = people.look.parts(was) if was in people.look else []
    try:
        x.VM.revert(it.ref)
    finally:
        people.touched_power |= was in people.scene.sources
        vm = it.pool, x.VM.get_snapshot_of(it.ref)
        after = Look(people.scene.world)
        people.removed += [key for key in before if key not in after]
        if vm in after:
            fresh = [key for key in after.parts(vm) if key not in people.look]
            people.made += [(Kind.VDI, key) for key in fresh]
        if vm != was:  # of a VM that was gone XAPI makes a new one, under its UUID
            people.made.append((Kind.VM, vm))
            people.removed.append(was)
            if was in people.scene.sources:
                people.scene.source = vm
                people.scene.sources.add(vm)


@deed(Kind.VM, Role.SOURCE, Role.REPLICA, Role.THEIRS, weight=3)
def move_disks(people: People, it: Thing) -> None:
    """Bring the disks of a VM to another SR, where they are new VDIs with all keys of the old."""
    x = people.x(it.pool)
    was_running = x.VM.get_power_state(it.ref) == "Running"
    people.halt(it.pool, it.ref)
    keep = people.rng.random() < 0.3
    try:
        for device, vdi in hands.disks_of(x, it.ref).items():
            sr = people.storage(it.pool, but=x.VDI.get_SR(vdi))
            new = people.made_disk(it.pool, x.VDI.copy(vdi, sr))
            hands.detach(x, it.ref, device)
            people.attach(it.pool, it.ref, new, device)
            if not keep:
                people.destroy_disk(it.pool, vdi)
    finally:
        if was_running:
            x.VM.start(it.ref, False, False)


@deed(Kind.VDI, Role.SOURCE, Role.REPLICA, Role.THEIRS, weight=2)
def migrate_disk(people: People, it: Thing) -> None:
    """Move a disk and its snapshots to another SR: they are new VDIs, and have lost their keys."""
    x = people.x(it.pool)
    sr = people.storage(it.pool, but=x.VDI.get_SR(it.ref))
    before = Look(people.scene.world)
    x.VDI.pool_migrate(it.ref, sr, {})
    after = Look(people.scene.world)
    people.removed += [key for key in before.vdis if key not in after.vdis]
    for vm in before.guests:
        # What is a disk of our snapshots now is nobody's, as far as its keys tell.
        is_ours = vm not in people.scene.theirs and before.vms[vm]["is_a_snapshot"]
        if vm in after.vms and not is_ours:
            fresh = [key for key in after.parts(vm) if key not in before]
            people.made += [(Kind.VDI, key) for key in fresh]


# -- work -----------------------------------------------------------------------------------------


@deed(Kind.VM, Role.SOURCE, Role.THEIRS, weight=6, harmless=True)
def guest_writes(people: People, it: Thing) -> None:
    x = people.x(it.pool)
    if x.VM.get_power_state(it.ref) != "Running":
        raise NotNow("it does not run")
    people.write(it.pool, it.ref, people.rng.choice(sorted(hands.disks_of(x, it.ref))))


@deed(Kind.VDI, *DISKS, weight=7)
def write_to_disk(people: People, it: Thing) -> None:
    """Attach a disk to another VM, write, detach."""
    if people.look.is_attached(it.key) or people.look.place(it.key) is None:
        raise NotNow("it is in use, or has no data")
    if people.look.vdis[it.key]["type"] == "suspend":
        raise NotNow("it is the memory of a VM, and nobody edits that")
    people.write_to(it.pool, it.ref)


@deed(Kind.VM, Role.REPLICA, Role.MEMORY, Role.THEIRS, weight=6)
def use_vm(people: People, it: Thing) -> None:
    """Start a VM by force, work in it, and perhaps shut it down."""
    x = people.x(it.pool)
    if x.VM.get_is_a_snapshot(it.ref):
        raise NotNow("it is a snapshot")
    disks = sorted(hands.disks_of(x, it.ref))
    x.VM.set_blocked_operations(it.ref, {})
    if x.VM.get_is_a_template(it.ref):
        x.VM.set_is_a_template(it.ref, False)
    state = x.VM.get_power_state(it.ref)
    if state == "Suspended":
        image = x.VM.get_suspend_VDI(it.ref)
        x.VM.resume(it.ref, False, False)
        people.removed.append((it.pool, image))
    elif state == "Halted":
        x.VM.start(it.ref, False, False)
    if disks and people.rng.random() < 0.8:
        people.write(it.pool, it.ref, people.rng.choice(disks))
    if people.rng.random() < 0.7:
        people.halt(it.pool, it.ref)


@deed(Kind.VM, Role.SOURCE, weight=2, harmless=True)
def switch(people: People, it: Thing) -> None:
    """Start a VM that is down, or shut one down that runs."""
    x = people.x(it.pool)
    state, image = x.VM.get_power_state(it.ref), x.VM.get_suspend_VDI(it.ref)
    if state == "Halted":
        x.VM.start(it.ref, False, False)
    else:
        x.VM.hard_shutdown(it.ref)
    if state == "Suspended":
        people.removed.append((it.pool, image))
    people.touched_power = True


# -- names and keys -------------------------------------------------------------------------------


@deed(Kind.VM, *VMS, weight=1)
def rename_vm(people: People, it: Thing) -> None:
    people.x(it.pool).VM.set_name_label(it.ref, people.name("renamed"))


@deed(Kind.VDI, *DISKS, weight=1)
def rename_disk(people: People, it: Thing) -> None:
    people.x(it.pool).VDI.set_name_label(it.ref, people.name("renamed"))


@deed(Kind.VM, *VMS, weight=1, harmless=True)
def tag(people: People, it: Thing) -> None:
    people.x(it.pool).VM.add_tags(it.ref, people.name("tag"))


@deed(Kind.VM, *VMS, weight=1, harmless=True)
def add_key(people: People, it: Thing) -> None:
    people.x(it.pool).VM.add_to_other_config(it.ref, people.name("key"), "4711")


@deed(Kind.VM, *VMS, weight=1)
def untag(people: People, it: Thing) -> None:
    people.x(it.pool).VM.set_tags(it.ref, [])


@deed(Kind.VM, *VMS, weight=3)
def wipe_vm(people: People, it: Thing) -> None:
    """Take keys off a VM; and off its disks as well, or not."""
    prefix = people.rng.choice(("", "", "xorepd:", "xo:", "xorepd:mark"))
    _wipe(people, Kind.VM, it.pool, it.ref, prefix)
    if people.rng.random() < 0.5:
        for vdi in people.look.disks(it.key).values():
            _wipe(people, Kind.VDI, *vdi, prefix)


@deed(Kind.VDI, *DISKS, weight=3)
def wipe_disk(people: People, it: Thing) -> None:
    prefix = people.rng.choice(("", "", "xorepd:", "xo:", "xorepd:mark"))
    _wipe(people, Kind.VDI, it.pool, it.ref, prefix)


@deed(Kind.VM, *VMS, weight=3)
def copy_keys_to_vm(people: People, it: Thing) -> None:
    """Give a VM the keys of another one, as who repairs by hand does."""
    _copy_keys(people, it)


@deed(Kind.VDI, *DISKS, weight=3)
def copy_keys_to_disk(people: People, it: Thing) -> None:
    _copy_keys(people, it)


def _wipe(people: People, kind: Kind, pool: str, ref: str, prefix: str) -> None:
    cls = getattr(people.x(pool), kind.value)
    people.look_at_keys((pool, ref))
    for key in cls.get_other_config(ref):
        if key.startswith(prefix):
            cls.remove_from_other_config(ref, key)


def _copy_keys(people: People, it: Thing) -> None:
    look, rng = people.look, people.rng
    everything = look.guests if it.kind is Kind.VM else look.vdis
    marked = [
        look.thing(key)
        for key, record in everything.items()
        if any(name.startswith("xorepd:") for name in record["other_config"]) and key != it.key
    ]
    given = choose(rng, marked)
    people.look_at_keys(it.key)
    getattr(people.x(it.pool), it.kind.value).set_other_config(
        it.ref, everything[given.key]["other_config"]
    )


# -- what goes away -------------------------------------------------------------------------------


@deed(Kind.VM, *OURS, Role.THEIRS, weight=4)
def delete_vm(people: People, it: Thing) -> None:
    people.destroy_vm(it.pool, it.ref, with_disks=True)


@deed(Kind.VM, *OURS, Role.THEIRS, weight=2)
def delete_record(people: People, it: Thing) -> None:
    """Delete a VM or a snapshot, and leave its disks."""
    people.destroy_vm(it.pool, it.ref, with_disks=False)


@deed(Kind.VDI, *DISKS[1:], weight=2)
def delete_disk(people: People, it: Thing) -> None:
    _unplug(people, it)
    people.destroy_disk(it.pool, it.ref)


@deed(Kind.VDI, *DISKS[1:], weight=2)
def detach_disk(people: People, it: Thing) -> None:
    _unplug(people, it)


@deed(Kind.VDI, *DISKS[1:], weight=1)
def forget_disk(people: People, it: Thing) -> None:
    """Forget a disk and scan its SR: it comes back without a name and without a key."""
    x = people.x(it.pool)
    sr = x.VDI.get_SR(it.ref)
    x.VDI.forget(it.ref)
    people.removed.append(it.key)
    x.SR.scan(sr)
    if it.key in people.scene.theirs:
        people.made_disk(it.pool, x.VDI.get_by_uuid(it.uuid))


@deed(Kind.VDI, Role.STAGING, Role.BASE, Role.SOURCE, weight=1)
def unplug_from_dom0(people: People, it: Thing) -> None:
    """Take a disk from the control domain while something reads or writes it there."""
    x = people.x(it.pool)
    vbds = [vbd for vbd in x.VDI.get_VBDs(it.ref) if x.VBD.get_currently_attached(vbd)]
    vbds = [vbd for vbd in vbds if x.VM.get_is_control_domain(x.VBD.get_VM(vbd))]
    if not vbds:
        raise NotNow("it is not attached there")
    x.VBD.unplug(vbds[0])


def _unplug(people: People, it: Thing) -> None:
    x = people.x(it.pool)
    for vbd in x.VDI.get_VBDs(it.ref):
        if x.VBD.get_currently_attached(vbd):
            x.VBD.unplug(vbd)
        x.VBD.destroy(vbd)


# -- drives ---------------------------------------------------------------------------------------


@deed(Kind.VM, Role.REPLICA, Role.THEIRS, weight=2)
def give_disk(people: People, it: Thing) -> None:
    """Give a VM one more disk, in a place that the source has not."""
    vdi = people.create_disk(it.pool, people.storage(it.pool))
    people.attach(it.pool, it.ref, vdi, "7")


@deed(Kind.VM, Role.REPLICA, weight=3)
def exchange_disks(people: People, it: Thing) -> None:
    """Put a copy in the place of a disk, or another disk of the VM."""
    x = people.x(it.pool)
    disks = hands.disks_of(x, it.ref)
    if len(disks) > 1 and people.rng.random() < 0.5:
        first, second = sorted(disks)[:2]
        taken = {device: hands.detach(x, it.ref, device) for device in (first, second)}
        people.attach(it.pool, it.ref, taken[second], first)
        people.attach(it.pool, it.ref, taken[first], second)
        return
    device = people.rng.choice(sorted(disks) or [""])
    if not device:
        raise NotNow("it has no disks")
    new = people.made_disk(it.pool, x.VDI.clone(disks[device]))
    hands.detach(x, it.ref, device)
    people.attach(it.pool, it.ref, new, device)


@deed(Kind.VDI, *OURS, Role.STAGING, weight=2)
def borrow_disk(people: People, it: Thing) -> None:
    """Attach a disk to a VM that nobody starts."""
    vm = people.create_vm(it.pool, "borrower")
    people.attach(it.pool, vm, it.ref, "0", people.rng.choice(("RW", "RO")))


# -- permissions, and what happens to pools -------------------------------------------------------


@deed(Kind.VM, *VMS, weight=1)
def block(people: People, it: Thing) -> None:
    """Forbid something, as an administrator does."""
    operation = people.rng.choice(("destroy", "snapshot", "start", "pool_migrate", "clone"))
    people.x(it.pool).VM.add_to_blocked_operations(it.ref, operation, "ask me first")


@deed(Kind.VM, Role.SOURCE, Role.REPLICA, Role.MEMORY, weight=1)
def lift_blocks(people: People, it: Thing) -> None:
    people.x(it.pool).VM.set_blocked_operations(it.ref, {})


@deed(Kind.POOL, Role.THEIRS, weight=3, harmless=True)
def restart_toolstack(people: People, it: Thing) -> None:
    """Sessions and tasks are lost; what the toolstack was doing ends."""
    lab = people.scene.world.lab

    async def restart() -> None:
        pool = lab.pools[it.pool]
        await pool.life.restart_toolstack(pool.master)

    people.wait(restart())


def _find_source(people: People, uuid: str) -> None:
    """Know the source VM again that has been imported under its UUID."""
    look = Look(people.scene.world)
    for key, vm in look.vms.items():
        if vm["uuid"] == uuid and key[0] == people.scene.source[0] and not vm["is_a_snapshot"]:
            people.scene.source = key
            people.scene.sources.add(key)


# -- doing them -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a deed."""

    deed: Deed
    to: Thing | None
    refused: str
    """Why it was not done, or not to its end; empty where it was."""
    violations: list[Violation]

    def __str__(self) -> str:
        to = f" {self.to}" if self.to else ""
        return f"{self.deed}{to}" + (f": not done, {self.refused}" if self.refused else "")


async def act(scene: Scene, deed: Deed) -> Done:
    """Let people do something, and take note of all that is theirs."""
    entry, rng = DEEDS[deed.name], Random(deed.salt)
    look = await scene.look()
    if entry.kind is Kind.POOL:
        pool = rng.choice(POOLS)
        things = [Thing(Kind.POOL, pool, "", "", pool)]
    else:
        things = scene.things(look, entry.kind, deed.role)
    if not things:
        return Done(deed, None, "there is none", [])
    it = rng.choice(things)
    people = People(scene, look, deed.role, rng)
    refused = ""
    try:
        await asyncio.to_thread(entry.do, people, it)
        scene.is_harmless &= entry.is_harmless
    except NotNow as refusal:
        refused = str(refusal)
    except REFUSALS as refusal:
        refused = str(refusal) or type(refusal).__name__
        scene.is_harmless &= entry.is_harmless  # who knows how far it came
    finally:
        await asyncio.to_thread(people.close)
    return Done(deed, it, refused, await record(scene, people))


async def record(scene: Scene, people: People) -> list[Violation]:
    """Enter what people made, removed and wrote."""
    scene.theirs.update({key: None for _, key in people.made})
    for key in people.removed:
        scene.theirs.pop(key, None)
    scene.written += people.wrote
    look = await scene.look()
    scene.opened |= {
        key
        for key, vdi in people.look.vdis.items()
        if key in look.vdis and _content_id(vdi) != _content_id(look.vdis[key])
    }
    scene.theirs = {k: v for k, v in scene.theirs.items() if v is not None or k in look}
    for key, vm in look.guests.items():
        if people.touched_power or key != scene.source or key not in scene.powers:
            scene.powers[key] = vm["power_state"]
    if people.hid_power:
        scene.powers.pop(scene.source, None)
    return scene.note(look)


def _content_id(vdi: Record) -> str:
    """Return what XAPI takes off a disk that is attached for writing, and gives anew afterwards."""
    return str(vdi["other_config"].get("content_id", ""))


async def seed_like_xen_orchestra(scene: Scene, era: str) -> None:
    """Let Xen Orchestra have replicated the VM, and go away."""
    world = scene.world
    taken = await carried.snapshot(world)
    vm = await carried.carry(world, taken)
    kept = await carried.label_source(world, taken, era=era)
    await carried.label_copy(world, vm, taken, kept, era=era)
    look = await scene.look()
    scene.theirs.update(
        {key: None for key in (*look.guests, *look.vdis) if key not in scene.theirs}
    )
    scene.note(look)
