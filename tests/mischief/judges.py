"""What must hold after each run. No judge knows anything of the daemon's code.

They read the records and the files of both pools, and of what the daemon writes there only what
`docs/on-pool-format.md` promises to strangers: a mark tells in `self` on what it was written.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.world import DAEMON, clock
from tests.mischief.deeds import DEEDS, Done
from tests.mischief.plan import End, Kind, Role, Run
from tests.mischief.scene import Key, Known, Look, Scene, Violation, facts
from xorepd.config.models import Settings
from xorepd.daemon.engine import Engine, open_engine
from xorepd.replication.format.marks import BLOCK_TEXT, DISPLACED, SNAPSHOTTING
from xorepd.state.records import Outcome, RunRecord

STARTING = {"start", "resume"}

MARK = "xorepd:mark"

LASTING = {"xorepd:cbt", "xorepd:current"}
"""Keys that stay on a source VM and its disks."""

Contents = Mapping[str, str | None]
"""What the disks of a VM hold, by device; None: it has no such disk."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run that is over."""

    run: Run
    record: RunRecord | None = None
    """Nothing where the daemon died."""
    reached: bool = False
    """It came to its moment."""
    hangs: bool = False
    done: tuple[Done, ...] = ()
    """What people did meanwhile."""
    seen: tuple[Violation, ...] = ()
    """What was seen meanwhile."""
    replaces: bool = False
    """A replica that people worked in may be replaced."""
    had: int = 1
    """How many states of the source VM there were when it began."""
    was_harmless: bool = False
    """Nothing that had been done gave it a reason to refuse."""

    def __str__(self) -> str:
        outcome = "killed" if self.record is None else self.record.error or self.record.outcome
        return f"{self.run if self.reached else 'run'}: {outcome}"

    @property
    def is_over(self) -> bool:
        """Return whether the daemon had the time to clean up."""
        return not (self.reached and self.run.end is End.KILLED)

    @property
    def has_succeeded(self) -> bool:
        return self.record is not None and self.record.outcome in (Outcome.FULL, Outcome.DELTA)


async def judge_run(scene: Scene, ran: Ran) -> list[Violation]:
    """Return all that is wrong after a run."""
    look = await scene.look()
    scene.remember(look)
    scene.held.update(_in_points(scene, look))
    found = list(ran.seen)
    if ran.hangs:
        found.append(Violation("hangs", f"{ran.run} does not end"))
    found += judge_theirs(scene, look, replaces=ran.replaces, amid=ran.reached)
    found += judge_pages(scene, look, ran)
    found += judge_powers(scene, look, ran)
    found += judge_points(scene, look, ran)
    if ran.record is not None:
        found += judge_record(ran, ran.record)
    if ran.is_over:
        found += judge_source(scene, look)
    if ran.record is not None and ran.has_succeeded:
        found += judge_success(scene, look, ran, ran.record)
        if not ran.reached:
            found += await judge_leavings(scene, look)
    return found


# -- what is people's ------------------------------------------------------------------------------


def judge_theirs(
    scene: Scene, look: Look, *, replaces: bool = False, amid: bool = False
) -> Iterator[Violation]:
    """Yield what people made and that is gone, or is not as they left it.

    Args:
        replaces: the job may put its disks in the place of others.
        amid: people were at work during the run. It cannot tell what they put into the replica
            between its look and its next call.
    """
    for key, known in scene.theirs.items():
        if known is None:
            continue
        if key not in look:
            yield Violation(f"theirs.gone {known.thing.kind}", f"{known.thing} is gone")
            continue
        if known.content and (content := look.content(key)) != known.content:
            text = f"{known.thing} holds something else: {content}, not {known.content}"
            yield Violation("theirs.written", text)
        if key == scene.source:
            continue  # a run may have to do with it for a while: see `judge_source`
        now, was = facts(look, key), dict(known.facts)
        if scene.role(look, key) is Role.SOURCE:  # a run may note there what it is doing
            for each in (now, was):
                each["other_config"] = _keys_of_others(each["other_config"])
        made_room = replaces or key in scene.displaced or _is_spare(scene, known)
        made_room |= amid and _stood_in_the_replica(scene, look, was)
        if now.get("users") != was.get("users") and made_room:
            was.pop("users")  # it made room in the replica
            scene.displaced.add(key)
            if not now["users"] and DISPLACED in now["other_config"]:
                scene.detached.add(key)
            elif not now["users"] and not amid:
                yield Violation("unlisted", f"{known.thing} was taken out, and does not say so")
        if key in scene.displaced:
            now["other_config"] = _but(DISPLACED, now["other_config"], was["other_config"])
        # A run takes back what one noted on a disk that people took out of the source VM since, or
        # on one that it puts back into the replica.
        for noted in (SNAPSHOTTING, DISPLACED):
            was["other_config"] = _but(noted, was["other_config"], now["other_config"])
        was.pop("power_state", None)  # see `judge_powers`
        for name, value in was.items():
            if now[name] != value:
                text = f"{known.thing}: {_difference(name, value, now[name])}"
                yield Violation(f"theirs.changed {name}", text)


def _in_points(scene: Scene, look: Look) -> Iterator[str]:
    """Yield what restore points hold that nobody has touched, those of interrupted runs too."""
    for key in look.vms:
        is_point = scene.role(look, key) is Role.POINT and _is_signed(look, key)
        if is_point and not _is_touched(scene, look, key):
            yield from look.content_of(key).values()


def _but(key: str, keys: dict[str, str], others: dict[str, str]) -> dict[str, str]:
    """Return the keys, without one of ours that the others do not have."""
    return {name: value for name, value in keys.items() if name != key or name in others}


def _stood_in_the_replica(scene: Scene, look: Look, was: dict[str, Any]) -> bool:
    """Return whether a disk of people's was in the replica alone."""
    users = was.get("users", ())
    return bool(users) and all(
        user in look.vms and scene.role(look, user) is Role.REPLICA for user in users
    )


def _is_spare(scene: Scene, known: Known) -> bool:
    """Return whether a disk holds what a restore point has held as well: nothing was done in it."""
    return known.content in scene.held


def judge_pages(scene: Scene, look: Look, ran: Ran) -> Iterator[Violation]:
    """Yield what people wrote and that is nowhere any more."""
    for page in scene.written:
        if scene.is_found(look, page):
            continue
        if ran.replaces and page.role is Role.REPLICA:
            continue  # that is what the operator has said
        yield Violation(f"bytes.gone {page.role}", f"{page} are gone")


def judge_powers(scene: Scene, look: Look, ran: Ran) -> Iterator[Violation]:
    """Yield VMs that a run has started or stopped."""
    for key, state in scene.powers.items():
        if key not in look.vms or (key == scene.source and not ran.is_over):
            continue
        is_noted = "xorepd:restart" in look.vms[key]["other_config"]
        if is_noted and ran.reached and ran.run.end is End.CANCELLED:
            continue  # it may have come no farther than its lease: the next run starts the VM
        if is_noted and look.vms[key]["blocked_operations"].keys() & STARTING:
            continue  # people forbade it; the next run tries again
        if (now := look.vms[key]["power_state"]) != state:
            role = scene.role(look, key)
            yield Violation(f"power {role}", f"{look.thing(key)} was {state}, is {now}")


def judge_source(scene: Scene, look: Look) -> Iterator[Violation]:
    """Yield what of a run is still to be seen on the source VM."""
    known = scene.theirs.get(scene.source)
    if known is None or scene.source not in look.vms:
        return
    now, was = facts(look, scene.source), dict(known.facts)
    for each in (now, was):
        del each["power_state"]
        each["other_config"] = _keys_of_others(each["other_config"])
        each["blocked_operations"] = {
            k: v for k, v in each["blocked_operations"].items() if "xorepd" not in v
        }
    for name, value in was.items():
        if now[name] != value:
            text = f"{known.thing}: {_difference(name, value, now[name])}"
            yield Violation(f"source.changed {name}", text)


def _difference(name: str, was: Any, now: Any) -> str:
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [key for key in was.keys() | now.keys() if was.get(key) != now.get(key)]
        was, now = ({key: each.get(key) for key in keys} for each in (was, now))
    return f"{name} was {was!r}, is {now!r}"


def _keys_of_others(keys: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in keys.items() if not name.startswith("xorepd:")}


# -- what the run says -----------------------------------------------------------------------------


def judge_record(ran: Ran, record: RunRecord) -> Iterator[Violation]:
    """Yield what is wrong about what a run says."""
    error = record.error or ""
    if "internal error" in error:
        yield Violation("broken", error)
    if "OpaqueRef:" in error:
        yield Violation("sentence", error)
    if not ran.reached and ran.was_harmless and not ran.has_succeeded:
        yield Violation("refused", f"nothing is in its way, and it says: {error}")


def judge_success(scene: Scene, look: Look, ran: Ran, record: RunRecord) -> Iterator[Violation]:
    """Yield how the newest restore point differs from what the source VM held."""
    found = [
        key
        for key, vm in look.vms.items()
        if vm["uuid"] == record.restore_point and key not in scene.theirs
    ]
    if not found:
        if not ran.done:
            yield Violation("point.none", f"there is no restore point {record.restore_point}")
        return
    [key] = found
    if ran.done and _is_touched(scene, look, key):
        return
    holds = look.content_of(key)
    origin = look.vms[key]["other_config"].get("xo:copy_of", "")
    numbers = scene.snapshots.get(origin) or set(range(ran.had - 1, len(scene.states)))
    allowed: Sequence[Contents] = [scene.states[number] for number in sorted(numbers)]
    compared: Contents = holds
    if any(not DEEDS[done.deed.name].is_harmless for done in ran.done):
        # They may have taken a disk off, or given one.
        common = [device for device in holds if any(device in state for state in allowed)]
        compared = {device: holds.get(device) for device in common}
        allowed = [{device: state.get(device) for device in common} for state in allowed]
    if compared not in allowed:
        text = f"{look.thing(key)} holds {holds}, the source VM held {allowed}"
        yield Violation(f"replica.unequal {record.outcome}", text)
    replica = key[0], look.vms[key]["snapshot_of"]
    if not ran.reached and replica in look.vms:
        live = look.content_of(replica)
        if {device: live.get(device) for device in holds} != holds:
            text = f"{look.thing(replica)} holds {live}, its restore point {holds}"
            yield Violation("replica.unequal to its point", text)
    scene.points[key] = holds
    scene.held.update(holds.values())


def _is_touched(scene: Scene, look: Look, point: Key) -> bool:
    """Return whether people wrote to one of its disks, or put another one in its place."""
    disks = set(look.disks(point).values())
    return bool(disks & scene.theirs.keys()) or any(p.home.key in disks for p in scene.written)


def judge_points(scene: Scene, look: Look, ran: Ran) -> Iterator[Violation]:
    """Yield restore points that have changed; and the newest, if it is gone without a newer one."""
    for key, holds in list(scene.points.items()):
        newest = key == list(scene.points)[-1]
        if key in look.vms:
            if (now := look.content_of(key)) != holds:
                yield Violation("point.changed", f"{look.thing(key)} held {holds}, holds {now}")
                scene.points[key] = now
        else:
            if newest and not ran.has_succeeded and not _is_followed(scene, look, key):
                yield Violation("point.gone", f"the newest restore point {key} is gone")
            del scene.points[key]


def _is_followed(scene: Scene, look: Look, gone: Key) -> bool:
    """Return whether a run that ended early has made a newer restore point in place of one."""
    return any(
        key[0] == gone[0] and key not in scene.points and _is_signed(look, key)
        for key in look.vms
        if scene.role(look, key) is Role.POINT
    )


# -- what is left ---------------------------------------------------------------------------------


async def judge_forgotten(scene: Scene, *, refused: bool, keeps_replica: bool) -> list[Violation]:
    """Return all that is wrong after a stream has been given up."""
    look = await scene.look()
    ran = Ran(Run())
    found = [*judge_theirs(scene, look), *judge_pages(scene, look, ran)]
    found += [*judge_powers(scene, look, ran), *judge_source(scene, look)]
    if not refused:
        for key in scene.ours(look):
            kept = keeps_replica and scene.role(look, key) is Role.REPLICA
            if key in look.vms and not kept and _is_signed(look, key):
                found.append(Violation("forgotten", f"{look.thing(key)} is ours, and stays"))
        found += await judge_leavings(scene, look, but=Role.REPLICA if keeps_replica else None)
    return found


async def judge_leavings(scene: Scene, look: Look, but: Role | None = None) -> list[Violation]:
    """Return what of ours is left after an undisturbed run that succeeded, and should not be.

    Args:
        but: VMs that stand in this role are people's from now on.
    """
    proven = {key for key in scene.ours(look) if _is_signed(look, key)}
    bases = _contents(look)
    doubtful = [
        key
        for key in scene.detached
        if key in look.vdis
        and key not in look.users
        and DISPLACED in look.vdis[key]["other_config"]  # else people wiped it
    ]
    found = []
    for key in scene.ours(look):
        if key in look.vms:
            is_ours = scene.role(look, key) is not but
            if is_ours and key not in proven and _is_known_by_sight(look, key):
                doubtful.append(key)
            continue
        users = look.users.get(key, ())
        if users:
            continue  # it stands and falls with them
        if key in proven and (key in scene.opened or _is_changed(look.vdis[key])):
            doubtful.append(key)  # who knows what people did there
        elif key in proven:
            record = look.vdis[key]
            if not (record["type"] == "cbt_metadata" and record["uuid"] in bases):
                found.append(Violation("leak", f"{look.thing(key)} is ours, in no VM, and stays"))
        elif _is_known_by_sight(look, key):
            doubtful.append(key)
    if doubtful:
        listed = await list_orphans(scene)
        found += [
            Violation("unlisted", f"{look.thing(key)} is doubtful, and nothing lists it")
            for key in doubtful
            if look.table(Kind.VM if key in look.vms else Kind.VDI)[key]["uuid"] not in listed
        ]
    found += _leavings_of_runs(scene, look)
    return found


def _leavings_of_runs(scene: Scene, look: Look) -> Iterator[Violation]:
    for vbd in look.vbds:
        record = look.vbds[vbd]
        owner = look.vms.get((vbd[0], record["VM"]))
        if owner is not None and owner["is_control_domain"]:
            vdi = (vbd[0], record["VDI"])
            if any(user in scene.theirs for user in look.users.get(vdi, ())):
                continue  # people use a disk that a dead toolstack has left attached
            what = look.thing(vdi) if vdi in look else "a disk"
            yield Violation("leak dom0", f"{what} is attached to the control domain")
    for name, pool in scene.world.lab.pools.items():
        for task in pool.db.refs("task"):
            yield Violation("leak task", f"{pool.db.get('task', task, 'name_label')} of {name}")
    source = look.vms.get(scene.source)
    if source is not None:
        for key in (scene.source, *look.parts(scene.source)):
            record = look.vms[key] if key in look.vms else look.vdis[key]
            known = scene.theirs.get(key)
            theirs = known.facts["other_config"] if known else {}
            names = {name for name in record["other_config"] if name.startswith("xorepd:")}
            for name in sorted(names - theirs.keys() - {"xorepd:cbt", "xorepd:current"}):
                yield Violation(f"leak key {name}", f"{name} stays on {look.thing(key)}")
        for operation, text in source["blocked_operations"].items():
            if "xorepd" in text:
                yield Violation("leak block", f"the source VM's {operation} stays blocked: {text}")


def _is_signed(look: Look, key: Key) -> bool:
    record = look.vms[key] if key in look.vms else look.vdis[key]
    try:
        mark = json.loads(record["other_config"].get(MARK, "{}"))
    except ValueError:
        return False
    is_it = isinstance(mark, dict) and mark.get("self") == record["uuid"]
    return is_it and mark.get("ref") in (None, "", key[1])


def _is_changed(vdi: dict[str, Any]) -> bool:
    """Return whether a disk of ours has another content id than its mark says.

    A toolstack that is restarted while it writes a disk forgets the task that would tell whose
    writing that was.
    """
    if vdi["type"] == "cbt_metadata":
        return False  # there is nothing to write to
    content = json.loads(vdi["other_config"][MARK]).get("content", "")
    return content not in ("", vdi["other_config"].get("content_id", ""))


def _contents(look: Look) -> set[str]:
    """Return the UUIDs of the source's disks that some mark tells of."""
    found = set()
    for vdi in look.vdis.values():
        try:
            mark = json.loads(vdi["other_config"].get(MARK, "{}"))
        except ValueError:
            continue
        if isinstance(mark, dict):
            found.add(str(mark.get("snapshot")))
    return found


def _is_known_by_sight(look: Look, key: Key) -> bool:
    """Return whether an object still tells that it has to do with us, if proven or not.

    Names tell nothing, but for that of an unfinished VM: Xen Orchestra gives the same.
    """
    if key not in look.vms:
        return _has_key_of_ours(look.vdis[key])
    record = look.vms[key]
    disks = look.disks(key).values() if record["is_a_snapshot"] else ()
    if record["is_a_snapshot"] and not disks and _has_keys_of_origin(look, key):
        return False  # people's own snapshot of the replica looks the same
    is_unfinished = record["name_label"].startswith("xorepd-unmarked")
    is_blocked = record["blocked_operations"].get("resume") == BLOCK_TEXT
    owned = [vdi for vdi in look.disks(key).values() if _is_signed(look, vdi)]
    if MARK in record["other_config"] and not (record["is_a_snapshot"] or owned):
        return bool(is_unfinished or is_blocked)  # people's own clone of it looks the same
    has_key = any(map(_has_key_of_ours, [record, *(look.vdis[each] for each in disks)]))
    return is_unfinished or is_blocked or has_key


def _has_keys_of_origin(look: Look, key: Key) -> bool:
    """Return whether the mark on a snapshot is that of the VM that it was taken of."""
    origin = look.vms.get((key[0], look.vms[key]["snapshot_of"]))
    if origin is None or not _is_signed(look, (key[0], look.vms[key]["snapshot_of"])):
        return False
    marks = [json.loads(each["other_config"].get(MARK, "{}")) for each in (look.vms[key], origin)]
    return bool(marks[0].get("self") == marks[1].get("self"))


def _has_key_of_ours(record: dict[str, Any]) -> bool:
    """Return whether a record bears a key that a source VM, and what people make of it, has not."""
    return any(name.startswith("xorepd:") for name in record["other_config"].keys() - LASTING)


async def list_orphans(scene: Scene) -> str:
    """Return all that a daemon lists of what no job keeps up, or of what it is not sure."""
    async with serving(scene) as engine:
        reply = await engine.orphans.find_orphans()
    return reply.model_dump_json()


@asynccontextmanager
async def serving(scene: Scene, *, jobs: bool = True) -> AsyncIterator[Engine]:
    """Provide a daemon that has just started, with its job, or without."""
    world = scene.world
    plain = {
        "pools": {name: world.settings(name) for name in world.lab.pools},
        "jobs": {"web": world.job(**scene.job())} if jobs else {},
        "file": Path("/xorepd.toml"),
    }
    async with open_engine(Settings.model_validate(plain), clock, DAEMON.id) as engine:
        yield engine
