"""Who is current: the source VM, or a replica that was started in its place. Pure.

Source and replica each say in `xorepd:current` what they take themselves for:

    lineage    `<pool>/<VM>`, UUIDs, where all of this began; it never changes
    epoch      how often source and replica have changed their roles, from 1
    state      active | standby | fenced | test

A run copies only from what is active to what is standby, of one lineage and one epoch. Where both
sides are at odds nothing is overwritten: the run is *frozen* until a person says who is current.
The key is copied by snapshots and clones, so it names the VM that it was written on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic_core import from_json

from xorepd.xapi.records import Vm

KEY = "xorepd:current"
_VERSION = 1


class State(StrEnum):
    ACTIVE = "active"
    STANDBY = "standby"
    FENCED = "fenced"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Current:
    """What `xorepd:current` says."""

    __pydantic_config__ = ConfigDict(strict=True, extra="ignore")

    lineage: str
    epoch: Annotated[int, Field(gt=0, lt=2**53)]
    state: State
    self: str
    """UUID of the VM that it was written on."""
    peer: str = ""
    """UUID of the VM on the other side."""
    since: str = ""
    """ISO 8601, by the clock of the daemon that wrote it."""
    by: str = ""
    """The run, or the person, that wrote it."""

    def encode(self) -> str:
        plain = {key: value for key, value in asdict(self).items() if value}
        return json.dumps({"v": _VERSION, **plain}, separators=(",", ":"))


def own_current(vm: Vm) -> Current | None:
    """Return what a VM takes itself for; None where it does not say, or says it of another VM."""
    found = _decode(vm.other_config)
    return found if found is not None and found.self == vm.uuid else None


_CURRENT = TypeAdapter(Current)


def _decode(other_config: Mapping[str, str]) -> Current | None:
    text = other_config.get(KEY, "")
    if not text.startswith("{"):
        return None
    try:
        return _CURRENT.validate_json(text) if from_json(text).get("v") == _VERSION else None
    except ValueError:
        return None


def source_of(vm: Vm, pool: str) -> Current:
    """Return what a source VM takes itself for; one that does not say is where a lineage begins.

    Args:
        pool: UUID of its pool.
    """
    return own_current(vm) or Current(f"{pool}/{vm.uuid}", 1, State.ACTIVE, vm.uuid)


def at_odds(source: Current, is_said: bool, replica: Vm | None) -> str:
    """Return why nothing may be copied from a source to a replica; empty where it may.

    Args:
        is_said: whether the source VM itself says what it is.
    """
    if source.state is not State.ACTIVE:
        return f"the source is {source.state.value} since epoch {source.epoch}"
    there = own_current(replica) if replica is not None else None
    if there is None:
        return ""
    if not is_said and there.epoch == 1 and there.state is State.STANDBY:
        return ""  # it has lost its key, or never had one, and the roles have not changed yet
    if there.lineage != source.lineage:
        return f"the replica is of the lineage {there.lineage}, the source of {source.lineage}"
    if there.epoch != source.epoch:
        return f"the source is at epoch {source.epoch} and the replica at epoch {there.epoch}"
    if there.state is not State.STANDBY:
        return f"the replica is {there.state.value}"
    return ""
