"""Whether a lab is whole: its records agree with each other and with the files of its disks.

    problems = await check(lab)                    a lab that runs
    problems = await check_directory(state)        one that does not, after the recovery of a start
    problems = look(state)                         the same as it lies there, nothing changed

A lab at work has sessions, tasks, current operations and disks attached to dom0. With `idle` these
are problems as well: somebody left them behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from xorepd_lab.disks.fsck import Directory, read_directory
from xorepd_lab.disks.kinds import KINDS
from xorepd_lab.lab import Lab
from xorepd_lab.model.datamodel import RELATIONS
from xorepd_lab.model.failures import NULL
from xorepd_lab.model.persistence import load_registry, lock, read_state
from xorepd_lab.model.registry import Registry
from xorepd_lab.model.schema import Type
from xorepd_lab.topology import SMALL

MAY_DANGLE: Final = {
    ("VM", "snapshot_of"),
    ("VDI", "snapshot_of"),
    ("VM", "parent"),
    ("VM", "suspend_SR"),
    ("VM", "suspend_VDI"),
    *(("pool", f"{what}_SR") for what in ("default", "suspend_image", "crash_dump")),
    *(("host", f"{what}_sr") for what in ("suspend_image", "crash_dump", "local_cache")),
}
"""References that outlive what they name, in XAPI as well."""
TRIES: Final = 20
"""For a lab that changes between the look at its files and the look at its records."""
TIME_SCALE: Final = 0.01
"""Of the start that recovers a lab."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: `reference`, `inverse`, `disk`, `file` or `space`; in an idle lab also `operation`,
            `attachment`, `session`, `task`, or `result` for a completed task.
        pool: Its name.
        object: What is meant, for people: class, UUID and name, or a file.
        text: What is wrong with it.
    """

    kind: str
    pool: str
    object: str
    text: str

    def __str__(self) -> str:
        return f"{self.pool}: {self.object}: {self.text}"


async def check(lab: Lab, idle: bool = False) -> list[Problem]:
    """Check a lab that runs; while it works, changes between two looks are no problems."""
    for _ in range(TRIES):
        before = _generations(lab)
        problems = [
            problem
            for name, pool in list(lab.pools.items())
            for problem in check_pool(
                name,
                pool.db,
                {
                    repository.ref: await repository.change(read_directory, repository.directory)
                    for repository in list(pool.storage.repositories.values())
                },
                idle,
            )
        ]
        if not problems or _generations(lab) == before:
            return problems
        await asyncio.sleep(0)
    return problems


def _generations(lab: Lab) -> list[int]:
    return [pool.db.generation for pool in lab.pools.values()]


async def check_directory(state: Path) -> list[Problem]:
    """Let a lab that does not run recover as a start does, and check it.

    Raises:
        StateError: It runs, or what is there is no lab's state.
        OSError: Nothing is there.
    """
    read_state(state / "lab.json")
    async with Lab.start(state, SMALL, time_scale=TIME_SCALE) as lab:
        await lab.settled()
        return await check(lab, idle=True)


def look(state: Path) -> list[Problem]:
    """Check a lab that does not run as it is, without the recovery that it may need.

    Raises:
        StateError: It runs, or what is there is no lab's state.
        OSError: Nothing is there.
    """
    saved_in = state / "lab.json"
    saved_in.stat()
    with lock(state):
        saved = read_state(saved_in)
        problems = []
        for name, pool in saved["pools"].items():
            db = Registry(Random(0), pool.get("release", "8.3"))
            load_registry(db, pool["registry"])
            places = {sr: state / "srs" / db.get("SR", sr, "uuid") for sr in db.refs("SR")}
            directories = {
                sr: read_directory(place) for sr, place in places.items() if place.is_dir()
            }
            problems += check_pool(name, db, directories, idle=True)
        return problems


def check_pool(
    name: str, db: Registry, directories: dict[str, Directory], idle: bool
) -> list[Problem]:
    """Check the records of one pool against each other and against its directories, by SR."""
    found = [*_references(db), *_inverse_sets(db)]
    if idle:
        found += _leftovers(db)
    for sr, directory in directories.items():
        if db.exists("SR", sr):
            found += _storage(db, sr, directory)
    return [Problem(kind, name, what, text) for kind, what, text in found]


_Finding = tuple[str, str, str]


def _called(db: Registry, cls: str, ref: str) -> str:
    record = db.record(cls, ref)
    label = record.get("name_label", "")
    return f"{cls} {record['uuid']}" + (f" ({label})" if label else "")


# -- records --------------------------------------------------------------------------------------


def _references(db: Registry) -> Iterator[_Finding]:
    for cls, table in db.tables.items():
        fields = db.classes[cls].fields
        for ref, row in list(table.items()):
            for name, value in row.fields.items():
                if (cls, name) in MAY_DANGLE:
                    continue
                for target, other in _named(fields[name].type, value):
                    if other != NULL and target in db.tables and not db.exists(target, other):
                        yield "reference", _called(db, cls, ref), f"{name} names {other}, not there"


def _named(declared: Type, value: Any) -> Iterator[tuple[str, str]]:
    """Yield class and reference of everything that a value refers to."""
    match declared.kind:
        case "ref":
            yield declared.name, value
        case "set" if declared.item is not None:
            for item in value:
                yield from _named(declared.item, item)
        case "map" if declared.item is not None and declared.key is not None:
            for key, item in value.items():
                yield from _named(declared.key, key)
                yield from _named(declared.item, item)


def _inverse_sets(db: Registry) -> Iterator[_Finding]:
    for relation in RELATIONS:
        if relation.cls not in db.tables or relation.target not in db.tables:
            continue
        holders: dict[str, set[str]] = {}
        for ref, row in db.tables[relation.cls].items():
            holders.setdefault(row.fields[relation.field], set()).add(ref)
        for ref, row in list(db.tables[relation.target].items()):
            listed = row.fields[relation.inverse]
            if len(listed) != len(set(listed)) or set(listed) != holders.get(ref, set()):
                what = f"{relation.inverse} is not who names it in {relation.cls}.{relation.field}"
                yield "inverse", _called(db, relation.target, ref), what


def _leftovers(db: Registry) -> Iterator[_Finding]:
    for cls, table in db.tables.items():
        if cls == "task":
            continue
        for ref, row in list(table.items()):
            running = row.fields.get("current_operations")
            if running:
                yield "operation", _called(db, cls, ref), f"still in {', '.join(running.values())}"
    for dom0 in db.select("VM", is_control_domain=True):
        for vbd in db.get("VM", dom0, "VBDs"):
            yield "attachment", _called(db, "VBD", vbd), "still attached to dom0"
    for task in db.refs("task"):
        status = db.get("task", task, "status")
        kind = "task" if status == "pending" else "result"
        yield kind, _called(db, "task", task), f"left behind, {status}"
    for session in db.refs("session"):
        originator = db.get("session", session, "originator")
        yield "session", _called(db, "session", session), f"left behind by {originator!r}"


# -- disks ----------------------------------------------------------------------------------------


def _storage(db: Registry, sr: str, directory: Directory) -> Iterator[_Finding]:
    called = _called(db, "SR", sr)
    for file, text in directory.problems:
        yield "file", f"{called}, {file}", text
    record = db.record("SR", sr)
    if record["physical_utilisation"] > record["physical_size"]:
        sizes = f"{record['physical_utilisation']} of {record['physical_size']} bytes"
        yield "space", called, f"holds {sizes}"
    kind = KINDS[record["type"].lower()]
    vdis = {db.get("VDI", vdi, "uuid"): vdi for vdi in record["VDIs"]}
    for uuid, disk in directory.disks.items():
        if uuid not in vdis and (kind.vhd_backed or not disk.hidden):
            yield "file", f"{called}, {uuid}.vhd", "there is no VDI of it"
    for uuid in directory.logs.keys() - vdis.keys():
        yield "file", f"{called}, {uuid}.cbtlog", "there is no VDI of it"
    for vdi in vdis.values():
        for text in _disk(db.record("VDI", vdi), directory, kind.vhd_backed):
            yield "disk", _called(db, "VDI", vdi), text


def _disk(vdi: dict[str, Any], directory: Directory, vhd_backed: bool) -> Iterator[str]:
    disk = directory.disks.get(vdi["uuid"])
    if vdi["cbt_enabled"] and vdi["uuid"] not in directory.logs:
        yield "is tracked and has no log"
    if vdi["type"] == "cbt_metadata":
        if disk is not None:
            yield "has a file, though its data was destroyed"
        return
    if disk is None:
        yield "has no file"
        return
    if vdi["virtual_size"] != disk.virtual_size:
        yield f"has {vdi['virtual_size']} bytes, its file {disk.virtual_size}"
    if vdi["managed"] == disk.hidden:
        yield "is managed, its file hidden" if disk.hidden else "is a base copy, its file is not"
    parent = disk.parent if vhd_backed else None
    if vdi["sm_config"].get("vhd-parent") != parent:
        yield f"has the parent {vdi['sm_config'].get('vhd-parent')}, its file {parent}"
