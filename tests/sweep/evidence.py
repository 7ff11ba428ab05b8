"""What strangers see of both pools: the SDK finds the restore points, libvhdi reads them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.lab.contents import fingerprint
from tests.lab.world import World
from xorepd_lab.demo.proof import DISK, leftovers, login

SOURCE = "prod"

Place = tuple[str, str]
"""UUIDs of a source VM and of a target SR."""

Disks = dict[str, str]
"""Fingerprints of what disks hold, by device."""


@dataclass(frozen=True, slots=True)
class RestorePoint:
    pool: str
    uuid: str
    holds: Disks
    source: Disks
    """What the source VM's disks hold now; nothing when that was not asked for."""


@dataclass(frozen=True, slots=True)
class Evidence:
    points: dict[Place, RestorePoint]
    """The newest restore point of every VM on every target."""
    leftovers: list[str]

    def unequal(self) -> Iterator[str]:
        """Yield which restore points differ from their source VM: nobody writes meanwhile."""
        for point in self.points.values():
            if point.holds != point.source:
                yield f"{_named(point)} has {point.holds}, its source {point.source}"

    def broken_since(self, before: Evidence) -> Iterator[str]:
        """Yield which restore points are not what they were, with nothing newer in their place."""
        for place, point in before.points.items():
            present = self.points.get(place)
            if present is None:
                yield f"{_named(point)} is gone"
            elif present.uuid == point.uuid and present.holds != point.holds:
                yield f"{_named(point)} holds something else"


def _named(point: RestorePoint) -> str:
    return f"restore point {point.uuid} of pool {point.pool}"


async def look(lab: World, others: Collection[str] = (), *, with_sources: bool = False) -> Evidence:
    """Return what both pools hold now.

    Args:
        others: UUIDs of what is not ours: it is no leftover.
    """
    await lab.lab.settled()  # libvhdi must not read a file that is being coalesced
    pools = [lab.described(name) for name in lab.lab.pools]
    found = await asyncio.to_thread(_look, pools, with_sources)
    leftovers = [line for line in found.leftovers if not any(uuid in line for uuid in others)]
    return replace(found, leftovers=leftovers)


def _look(pools: list[dict[str, Any]], with_sources: bool) -> Evidence:
    with ExitStack() as stack:
        records = {pool["name"]: _Records(pool, stack.enter_context(login(pool))) for pool in pools}
        source = records[SOURCE]
        points: dict[Place, RestorePoint] = {}
        for pool, there in records.items():
            for vm, mark in there.points():
                place = (mark["stream"]["vm"], mark["stream"]["sr"])
                if place in points:
                    continue
                content = source.content(source.by_uuid[place[0]]) if with_sources else {}
                points[place] = RestorePoint(pool, mark["self"], there.content(vm), content)
        bases = {base for there in records.values() for base in there.based_on()}
        found = [line for each in records.values() for line in each.leftovers(bases)]
    return Evidence(points, found)


class _Once:
    """A pool whose classes are asked for all their records once: nothing changes meanwhile."""

    def __init__(self, xenapi: Any) -> None:
        self._xenapi = xenapi

    def __getattr__(self, kind: str) -> Any:
        asked = SimpleNamespace(get_all_records=cache(getattr(self._xenapi, kind).get_all_records))
        setattr(self, kind, asked)
        return asked


class _Records:
    """What a pool answers, asked for once."""

    def __init__(self, pool: dict[str, Any], xenapi: Any) -> None:
        self._pool, self._xenapi = pool, _Once(xenapi)
        xenapi = self._xenapi
        self._vms = xenapi.VM.get_all_records()
        self._vbds = xenapi.VBD.get_all_records()
        self._vdis = xenapi.VDI.get_all_records()
        self._srs = xenapi.SR.get_all_records()
        self._read: dict[str, Disks] = {}
        self.by_uuid = {vm["uuid"]: ref for ref, vm in self._vms.items()}

    def points(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the restore points and their marks, newest first."""
        found = []
        for ref, vm in self._vms.items():
            mark = json.loads(vm["other_config"].get("xorepd:mark", "{}"))
            is_ours = mark.get("role") == "point" and mark.get("self") == vm["uuid"]
            if vm["is_a_snapshot"] and is_ours:
                found.append((ref, mark))
        return sorted(found, key=lambda each: int(each[1]["order"]), reverse=True)

    def content(self, vm: str) -> Disks:
        """Return what the disks of a VM hold."""
        if vm not in self._read:
            self._read[vm] = {device: fingerprint(*disk) for device, disk in self._disks(vm)}
        return self._read[vm]

    def based_on(self) -> Iterator[str]:
        """Yield the UUIDs of the disks on the source whose content our disks here have."""
        for vdi in self._vdis.values():
            mark = json.loads(vdi["other_config"].get("xorepd:mark", "{}"))
            if mark.get("role") == "disk" and mark.get("self") == vdi["uuid"]:
                yield mark["snapshot"]

    def leftovers(self, bases: Collection[str]) -> Iterator[str]:
        """Yield what should not be there; a base may have lost its data, and with it its VM."""
        bare = {
            vdi["uuid"]
            for vdi in self._vdis.values()
            if vdi["type"] == "cbt_metadata" and vdi["uuid"] in bases
        }
        for line in leftovers(self._pool, self._xenapi):
            if not any(uuid in line for uuid in bare):
                yield line

    def _disks(self, vm: str) -> Iterator[tuple[str, DISK]]:
        directories = {sr["uuid"]: Path(sr["directory"]) for sr in self._pool["srs"]}
        for vbd in self._vms[vm]["VBDs"]:
            record = self._vbds[vbd]
            if record["type"] == "Disk":
                vdi = self._vdis[record["VDI"]]
                sr = self._srs[vdi["SR"]]["uuid"]
                yield record["userdevice"], (directories[sr], vdi["uuid"])
