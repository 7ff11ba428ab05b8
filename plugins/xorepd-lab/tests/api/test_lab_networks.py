"""Networks: making and removing them."""

from typing import Any

import pytest

from tests.lab.labclient import Api, vif_record

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab


def network_record(**fields: Any) -> dict[str, Any]:
    return {"name_label": "made", "other_config": {}, **fields}


async def test_a_network_gets_a_bridge_and_an_mtu(api: Api) -> None:
    first = await api("network.create", network_record(MTU="0"))
    second = await api("network.create", network_record())
    named = await api("network.create", network_record(bridge="br-mine", MTU="9000"))

    bridges = [await api("network.get_bridge", each) for each in (first, second, named)]
    assert bridges == ["xapi0", "xapi1", "br-mine"]
    assert [await api("network.get_MTU", each) for each in (first, named)] == ["1500", "9000"]


@pytest.mark.parametrize("bridge", ["xenbr7", "xapi3", "vif1.0", "tap0", "eth0", "b" * 16])
async def test_clients_may_not_use_the_systems_names_for_bridges(api: Api, bridge: str) -> None:
    error = await api.failure("network.create", network_record(bridge=bridge))

    assert error == ["INVALID_VALUE", "bridge", bridge]


async def test_two_networks_cannot_share_a_bridge(api: Api) -> None:
    await api("network.create", network_record(bridge="mine"))

    error = await api.failure("network.create", network_record(bridge="mine"))

    assert error == ["BRIDGE_NAME_EXISTS", "mine"]


async def test_a_network_in_use_stays(api: Api) -> None:
    (lan,) = await api("network.get_by_name_label", "lan")
    vifs = [
        ref
        for ref, vif in (await api("VIF.get_all_records")).items()
        if vif["network"] == lan and vif["currently_attached"]
    ]

    in_use = await api.failure("network.destroy", lan)
    locked = await api.failure("network.set_default_locking_mode", lan, "disabled")
    await api("VM.hard_shutdown", await api.vm("web01"))
    with_pifs = await api.failure("network.destroy", lan)
    await api("network.set_default_locking_mode", lan, "disabled")

    assert in_use == ["NETWORK_CONTAINS_VIF", *vifs]
    assert locked == ["VIF_IN_USE", lan, vifs[0]]
    assert with_pifs == ["NETWORK_CONTAINS_PIF", *await api("network.get_PIFs", lan)]
    assert await api("network.get_default_locking_mode", lan) == "disabled"


async def test_the_hosts_own_network_stays(api: Api) -> None:
    keys = {"is_host_internal_management_network": "true"}
    network = await api("network.create", network_record(other_config=keys))

    error = await api.failure("network.destroy", network)

    assert error == ["CANNOT_DESTROY_SYSTEM_NETWORK", network]


async def test_a_network_takes_its_unused_vifs_along(api: Api) -> None:
    network = await api("network.create", network_record())
    vif = await api("VIF.create", vif_record(await api.vm("db01"), network))

    await api("network.destroy", network)

    assert await api.failure("VIF.get_uuid", vif) == ["HANDLE_INVALID", "VIF", vif]
