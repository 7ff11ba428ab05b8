from __future__ import annotations

import pytest

from tests.unit.xapi import raws
from xorepd.errors import Refused
from xorepd.ids import Ref
from xorepd.replication.deciding.networks import Candidate, map_network, networks_of
from xorepd.xapi.cache import EventBatch, PoolCache
from xorepd.xapi.records import Network, Pif, read_record


def network(uuid: str, name: str, vlan: int | None = -1) -> Candidate:
    return Candidate(Ref(f"OpaqueRef:{uuid}"), uuid, name, vlan)


LAN = network("src-lan", "lan", 12)


def mapped(
    *targets: Candidate, source: Candidate = LAN, explicit: dict[str, str] | None = None
) -> Ref | None:
    return map_network(source, targets, explicit or {}, "dr")


def test_same_uuid_wins_over_name_and_vlan() -> None:
    twin, namesake = network("src-lan", "renamed", 99), network("other", "lan", 12)

    assert mapped(namesake, twin) == twin.ref


def test_same_name_and_vlan_match() -> None:
    match = network("dr-lan", "lan", 12)

    assert mapped(network("x", "dmz", 12), match, network("y", "lan", 13)) == match.ref


@pytest.mark.parametrize(("one", "other"), [(None, 12), (12, None), (None, None), (-1, -1)])
def test_network_without_an_interface_fits_any_vlan(one: int | None, other: int | None) -> None:
    source, target = network("s", "lan", one), network("t", "lan", other)

    assert mapped(target, source=source) == target.ref


def test_untagged_network_does_not_fit_a_vlan() -> None:
    with pytest.raises(Refused, match="was not found"):
        mapped(network("t", "lan", 12), source=network("s", "lan", -1))


@pytest.mark.parametrize("key", ["src-lan", "lan"])
@pytest.mark.parametrize("wanted", ["dr-dmz", "dmz"])
def test_map_of_the_job_goes_by_uuid_or_name_on_both_sides(key: str, wanted: str) -> None:
    dmz = network("dr-dmz", "dmz", 44)

    assert mapped(network("src-lan", "lan", 12), dmz, explicit={key: wanted}) == dmz.ref


def test_uuid_in_the_map_wins_over_a_name_in_it() -> None:
    one, two = network("t-1", "one"), network("t-2", "two")

    assert mapped(one, two, explicit={"lan": "one", "src-lan": "two"}) == two.ref


@pytest.mark.parametrize("key", ["src-lan", "lan"])
def test_network_that_is_mapped_to_nothing_is_left_out(key: str) -> None:
    assert mapped(network("src-lan", "lan", 12), explicit={key: ""}) is None


def test_mapping_of_another_network_changes_nothing() -> None:
    match = network("dr-lan", "lan", 12)

    assert mapped(match, explicit={"dmz": ""}) == match.ref


def test_network_that_is_not_there_is_refused_with_object_and_remedy() -> None:
    with pytest.raises(Refused) as caught:
        mapped(network("x", "dmz"))

    message = str(caught.value)
    assert "pool dr" in message
    assert "a network like lan (VLAN 12) was not found" in message
    assert "name its UUID in the job's networks" in message


def test_networks_that_are_alike_are_refused_with_their_number() -> None:
    with pytest.raises(Refused, match=r"like lan \(VLAN 12\) is ambiguous: 2 match; name its UUID"):
        mapped(network("a", "lan", 12), network("b", "lan", None))


def test_mapped_network_that_is_not_there_is_refused_with_both_names() -> None:
    with pytest.raises(Refused, match="network wan, which the job maps lan to, was not found"):
        mapped(network("a", "lan", 12), explicit={"lan": "wan"})


def test_mapped_network_of_which_there_are_two_is_refused() -> None:
    with pytest.raises(Refused, match=r"which the job maps lan to, is ambiguous: 2 match"):
        mapped(network("a", "wan"), network("b", "wan"), explicit={"lan": "wan"})


async def test_networks_of_a_pool_have_the_vlan_of_their_interfaces() -> None:
    refs = {name: Ref(f"OpaqueRef:{name}") for name in ("lan", "internal", "dangling", "pif")}
    records = (
        read_record(Network, refs["lan"], raws.network("u-lan", "lan", refs["pif"])),
        read_record(Network, refs["internal"], raws.network("u-int", "internal")),
        read_record(
            Network, refs["dangling"], raws.network("u-dang", "dangling", "OpaqueRef:gone")
        ),
        read_record(Pif, refs["pif"], raws.pif("u-pif", refs["lan"], 12)),
    )
    cache = PoolCache()
    await cache.apply(EventBatch("1,1", records, (), {}, is_first=True))

    found = networks_of(cache)

    assert [(each.name, each.uuid, each.vlan) for each in found] == [
        ("lan", "u-lan", 12),
        ("internal", "u-int", None),
        ("dangling", "u-dang", None),
    ]
