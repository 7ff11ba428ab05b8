"""Forgetting a replica: the options, the resulting actions, and the objections. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xorepd.replication.deciding.orphans import Orphan


@dataclass(frozen=True, slots=True)
class Terms:
    """What the operator allows; by default nothing that could lose the work of a person."""

    keep_replica: bool = False
    """It stays, as an ordinary VM, and only its marks and blocks go."""
    even_if_used: bool = False
    """Destroy a replica that was used."""
    even_if_unknown: bool = False
    """Even if this daemon has no run of it, and another daemon may maintain it."""
    leave_source: bool = False
    """Even if the source pool does not answer: what it has for this stream stays there."""


def actions(orphan: Orphan, terms: Terms) -> tuple[str, ...]:
    """Return what forgetting a replica does: one sentence for each action, in order."""
    return tuple(_actions(orphan, terms))


def _actions(orphan: Orphan, terms: Terms) -> Iterator[str]:
    if orphan.points:
        yield f"destroy {_count(orphan.points, 'restore point')}"
    if orphan.memories:
        yield f"destroy {_count(orphan.memories, 'suspended VM')} beside its points"
    if orphan.snapshots and orphan.source:
        snapshots = _count(orphan.snapshots, "snapshot")
        yield f"release {snapshots} of the source VM on pool {orphan.source}"
    if not orphan.source:
        yield "leave what the source pool has of it"
    if orphan.replica and terms.keep_replica:
        yield f"make {orphan.name} an ordinary VM, which may be started"
    elif orphan.replica:
        yield f"destroy the replica {orphan.name} with its disks"
    elif orphan.disks:
        yield f"destroy {_count(orphan.disks, 'disk')} without a VM"


def objections(orphan: Orphan, terms: Terms) -> tuple[str, ...]:
    """Return why a replica cannot be forgotten on these terms, each with its remedy."""
    return tuple(_objections(orphan, terms))


def _objections(orphan: Orphan, terms: Terms) -> Iterator[str]:
    if not orphan.source and orphan.possible_job:
        yield (
            f"job {orphan.possible_job} has this target and its source pool does not answer, so it "
            "may replicate this VM; try again when it answers, or remove the job"
        )
    elif not orphan.source and not terms.leave_source:
        yield (
            "its source pool is not configured, or does not answer, and may have a snapshot for "
            "it; configure the pool, or say --leave-source"
        )
    if not orphan.known and not terms.even_if_unknown:
        yield (
            "this daemon has no run of it, and another daemon may maintain it; make sure, "
            "then say --even-if-unknown"
        )
    if orphan.replica and not terms.keep_replica:
        yield from use_objections(orphan.signs_of_use, orphan.power_state, terms)


def use_objections(used: tuple[str, ...], power_state: str, terms: Terms) -> Iterator[str]:
    """Yield why a replica cannot be destroyed."""
    if power_state != "Halted":
        yield (
            f"its replica is {power_state.lower()}; shut it down first, or say --keep-replica to "
            "keep it as an ordinary VM"
        )
    elif used and not terms.even_if_used:
        yield (
            f"its replica {' and '.join(used)}; say --keep-replica to keep it as an ordinary VM, "
            "or --even-if-used to lose that"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
