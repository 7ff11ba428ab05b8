from __future__ import annotations

import pytest

from xorepd.ids import Ref
from xorepd.replication.target.interfaces import (
    VIF_NETWORK,
    VIF_SOURCE,
    Deed,
    Interface,
    decide,
)
from xorepd.xapi.records import Vif

LAN, DMZ, ISOLATED = (Ref(f"OpaqueRef:{name}") for name in ("lan", "dmz", "isolated"))
NETWORKS = {LAN: "u-lan", DMZ: "u-dmz", ISOLATED: "u-isolated"}
MAC, OTHER_MAC = "02:16:3e:00:00:01", "02:16:3e:00:00:02"


def wanted(network: Ref | None = LAN, mac: str = MAC, source: str = "u-src") -> Interface:
    return Interface("0", mac, 1500, source, network)


def there(
    network: Ref = LAN,
    *,
    put_on: str | None = "u-lan",
    made_of: str | None = f"{MAC} u-src",
    mac: str = MAC,
) -> Vif:
    keys = {VIF_SOURCE: made_of, VIF_NETWORK: put_on}
    other = {key: value for key, value in keys.items() if value is not None}
    return Vif(
        ref=Ref("OpaqueRef:vif"),
        uuid="u",
        vm=Ref("OpaqueRef:vm"),
        network=network,
        device="0",
        mac=mac,
        other_config=other,
    )


@pytest.mark.parametrize(
    ("source", "present", "deed"),
    [
        (wanted(), None, Deed.CREATE),
        (wanted(None), None, Deed.LEAVE),
        (None, None, Deed.LEAVE),
        (wanted(), there(), Deed.LEAVE),
        (None, there(), Deed.DESTROY),
        # The source has changed it.
        (wanted(mac=OTHER_MAC), there(), Deed.REPLACE),
        (wanted(source="u-other"), there(ISOLATED), Deed.REPLACE),
        (wanted(None, source="u-other"), there(), Deed.DESTROY),
        # The job means another network.
        (wanted(DMZ), there(), Deed.MOVE),
        (wanted(None), there(), Deed.DESTROY),
        # An earlier xorepd made it, and did not say where it had put it.
        (wanted(), there(put_on=None), Deed.SIGN),
        # It has come where it should be, whoever put it there.
        (wanted(DMZ), there(DMZ), Deed.SIGN),
    ],
)
def test_what_becomes_of_an_interface(
    source: Interface | None, present: Vif | None, deed: Deed
) -> None:
    decision = decide(source, present, NETWORKS)

    assert (decision.deed, decision.remark) == (deed, "")


@pytest.mark.parametrize("network", [LAN, DMZ, None])
@pytest.mark.parametrize(
    ("present", "words"),
    [
        (there(ISOLATED), "changed by hand"),
        (there(mac=OTHER_MAC), "changed by hand"),
        (there(made_of=None, put_on=None), "not made by xorepd"),
        (there(ISOLATED, made_of=None, put_on=None, mac=OTHER_MAC), "not made by xorepd"),
        (there(Ref("OpaqueRef:gone")), "changed by hand"),
    ],
)
def test_what_somebody_did_stays_whatever_the_job_means_and_is_said(
    network: Ref | None, present: Vif, words: str
) -> None:
    decision = decide(wanted(network), present, NETWORKS)

    assert decision.deed is Deed.LEAVE
    assert words in decision.remark


def test_an_interface_of_somebody_else_that_the_source_has_not_needs_no_word() -> None:
    decision = decide(None, there(made_of=None, put_on=None), NETWORKS)

    assert (decision.deed, decision.remark) == (Deed.LEAVE, "")


def test_where_an_earlier_xorepd_put_it_cannot_be_told_and_is_said() -> None:
    decision = decide(wanted(DMZ), there(put_on=None), NETWORKS)

    assert decision.deed is Deed.LEAVE
    assert "if not, destroy it" in decision.remark
