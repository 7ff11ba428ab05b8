"""The replica's interfaces follow the job's `networks`, and keep what somebody did to them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab import hands
from tests.lab.world import World
from xorepd_lab.faults.faults import Fault

TO_ISOLATED = {"lan": "dr-isolated"}


def interfaces(xenapi: Any) -> list[tuple[str, str, str]]:
    """Return device, MAC and name of the network of each interface of the replica."""
    replica = hands.replica_of(xenapi)
    found = [xenapi.VIF.get_record(vif) for vif in xenapi.VM.get_VIFs(replica)]
    return sorted(
        (vif["device"], vif["MAC"], xenapi.network.get_name_label(vif["network"])) for vif in found
    )


def the_vif(xenapi: Any) -> str:
    [vif] = xenapi.VM.get_VIFs(hands.replica_of(xenapi))
    return str(vif)


async def networks_of(replicated: World) -> list[str]:
    return [name for _, _, name in await replicated.ask("dr", interfaces)]


async def test_a_changed_map_is_applied_with_the_next_restore_point(replicated: World) -> None:
    [(device, mac, before)] = await replicated.ask("dr", interfaces)
    assert before == "lan"
    record = None
    for networks, expected in (
        (TO_ISOLATED, [(device, mac, "dr-isolated")]),
        (TO_ISOLATED, [(device, mac, "dr-isolated")]),
        ({"lan": ""}, []),
        ({}, [(device, mac, "lan")]),
    ):
        record = await replicated.replicate(networks=networks)

        assert await replicated.ask("dr", interfaces) == expected
        assert record.remarks == ()
    assert await replicated.left_over() == []


async def test_a_map_is_applied_on_hosts_that_cannot_move_interfaces(replicated: World) -> None:
    [(device, mac, _)] = await replicated.ask("dr", interfaces)
    unknown = Fault("rpc", "VIF.move", "dr", error=("MESSAGE_METHOD_UNKNOWN", "VIF.move"))
    replicated.lab.faults.add(unknown)

    await replicated.replicate(networks=TO_ISOLATED)

    assert unknown.fired
    assert await replicated.ask("dr", interfaces) == [(device, mac, "dr-isolated")]


async def test_what_else_somebody_set_on_an_interface_stays_when_it_is_moved(
    replicated: World,
) -> None:
    await replicated.ask("dr", lambda x: x.VIF.set_locking_mode(the_vif(x), "disabled"))

    await replicated.replicate(networks=TO_ISOLATED)

    locking = await replicated.ask("dr", lambda x: x.VIF.get_locking_mode(the_vif(x)))
    assert (await networks_of(replicated), locking) == (["dr-isolated"], "disabled")


def move(xenapi: Any) -> None:
    network = xenapi.network.get_by_name_label("dr-isolated")[0]
    xenapi.VIF.move(the_vif(xenapi), network)


def make_anew(xenapi: Any) -> None:
    """Do what Xen Orchestra does to change a network: the keys of the interface are copied."""
    vif = the_vif(xenapi)
    record = xenapi.VIF.get_record(vif)
    xenapi.VIF.destroy(vif)
    network = xenapi.network.get_by_name_label("dr-isolated")[0]
    xenapi.VIF.create(record | {"network": network})


def make_own(xenapi: Any) -> None:
    """Put another interface in its place."""
    vif = the_vif(xenapi)
    record = xenapi.VIF.get_record(vif)
    xenapi.VIF.destroy(vif)
    network = xenapi.network.get_by_name_label("dr-isolated")[0]
    xenapi.VIF.create(record | {"network": network, "other_config": {}})


@pytest.mark.parametrize("deed", [move, make_anew, make_own])
async def test_an_interface_that_somebody_changed_stays_and_the_run_says_so(
    replicated: World, deed: hands.Deed
) -> None:
    await replicated.ask("dr", deed)
    by_hand = await replicated.ask("dr", interfaces)

    for networks in ({}, {"lan": ""}, {"lan": "lan"}):
        record = await replicated.replicate(networks=networks)

        assert await replicated.ask("dr", interfaces) == by_hand
        [remark] = record.remarks
        assert remark.startswith("interface 0 of the replica was ")


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        (
            {"lann": "dr-isolated"},
            "pool prod has no network lann, which the job's networks name; did you mean lan?",
        ),
        ({"lan": "lan", "nowhere": ""}, "pool prod has no network nowhere"),
        ({"storage": "dr-isolatde"}, "pool dr has no network dr-isolatde"),
    ],
)
async def test_a_network_that_is_nowhere_is_said_also_with_a_replica_in_place(
    replicated: World, networks: dict[str, str], words: str
) -> None:
    record = await replicated.replicate(networks=networks)

    assert [remark for remark in record.remarks if remark.startswith(words)]
    assert await networks_of(replicated) == ["lan"]


async def test_the_network_of_an_interface_that_is_nowhere_is_refused(replicated: World) -> None:
    async with replicated.daemon() as context:
        record = await replicated.run(context, networks={"lan": "nowhere"})

    assert "network nowhere, which the job maps lan to, was not found" in (record.error or "")


async def test_a_network_that_was_renamed_on_the_target_changes_nothing(replicated: World) -> None:
    await replicated.replicate(networks=TO_ISOLATED)

    def rename(xenapi: Any) -> str:
        network = xenapi.network.get_by_name_label("dr-isolated")[0]
        xenapi.network.set_name_label(network, "quarantine")
        return str(xenapi.network.get_uuid(network))

    uuid = await replicated.ask("dr", rename)

    record = await replicated.replicate(networks={"lan": uuid})

    assert (await networks_of(replicated), record.remarks) == (["quarantine"], ())


async def test_an_interface_of_an_earlier_xorepd_is_signed_and_then_follows(
    replicated: World,
) -> None:
    def forget(xenapi: Any) -> None:
        xenapi.VIF.remove_from_other_config(the_vif(xenapi), "xorepd:network")

    await replicated.ask("dr", forget)
    record = await replicated.replicate(networks=TO_ISOLATED)
    assert "may have been put there by hand" in record.remarks[0]
    assert await networks_of(replicated) == ["lan"]

    await replicated.replicate()
    await replicated.replicate(networks=TO_ISOLATED)

    assert await networks_of(replicated) == ["dr-isolated"]
