"""Which network of the target pool an interface of the replica belongs to. Pure, never a guess."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from xorepd.errors import Refused
from xorepd.ids import Ref
from xorepd.xapi.records import Pif
from xorepd.xapi.tables import Tables


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network of some pool; `vlan` is -1 for untagged, None where it has no interface."""

    ref: Ref
    uuid: str
    name: str
    vlan: int | None


def networks_of(cache: Tables) -> list[Candidate]:
    """Return all networks of a pool."""
    return [
        Candidate(
            ref=network.ref,
            uuid=network.uuid,
            name=network.name_label,
            vlan=next((pif.vlan for pif in cache.present(Pif, network.pifs)), None),
        )
        for network in cache.networks.values()
    ]


def map_network(
    source: Candidate, targets: Collection[Candidate], explicit: Mapping[str, str], target_pool: str
) -> Ref | None:
    """Return the target network for one source network; None when the map leaves it out.

    By the job's map (UUID or name → UUID, name, or "" for none), then the same UUID, then the same
    name and VLAN where exactly one network has them.

    Raises:
        Refused: nothing matches, or several do.
    """
    for key in (source.uuid, source.name):
        if key in explicit:
            wanted = explicit[key]
            if not wanted:
                return None
            return _the_one(
                [t for t in targets if wanted in (t.uuid, t.name)],
                f"network {wanted}, which the job maps {source.name} to,",
                target_pool,
            )
    same = [t for t in targets if t.uuid == source.uuid] or [
        t for t in targets if t.name == source.name and _vlan_fits(source.vlan, t.vlan)
    ]
    return _the_one(same, f"a network like {source.name} (VLAN {source.vlan})", target_pool)


def strangers(names: Iterable[str], networks: Collection[Candidate], pool: str) -> list[str]:
    """Return what to say of names and UUIDs in a job's `networks` that no network of a pool has."""
    known = {text for network in networks for text in (network.name, network.uuid)}
    said = []
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            said.append(f"pool {pool} has no network {name}, which the job's networks name{hint}")
    return said


def _vlan_fits(one: int | None, other: int | None) -> bool:
    return one is None or other is None or one == other


def _the_one(found: Collection[Candidate], what: str, target_pool: str) -> Ref:
    match list(found):
        case [only]:
            return only.ref
        case []:
            problem = "was not found"
        case several:
            problem = f"is ambiguous: {len(several)} match"
    raise Refused(
        f"pool {target_pool}: {what} {problem}; name its UUID in the job's networks, or map it to "
        'nothing with ""'
    )
