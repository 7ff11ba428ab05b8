"""Which readers are open for a disk, from what its pool offers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.xapi import raws
from xorepd.data.blocks import BlockMap
from xorepd.data.nbd.exports import NbdExport
from xorepd.ids import Ref
from xorepd.replication.deciding.reader_choice import (
    Choice,
    Facts,
    ReaderKind,
    choose_readers,
    is_vhd,
)
from xorepd.replication.transfer.readers import MOST_ADDRESSES, find_nbd
from xorepd.units import GiB, KiB
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Sr, Vdi, read_record


def vdi(**changes: Any) -> Vdi:
    return read_record(Vdi, Ref("OpaqueRef:vdi"), raws.vdi("vdi", **changes))


def sr(kind: str = "ext") -> Sr:
    return read_record(Sr, Ref("OpaqueRef:sr"), {"uuid": "sr", "name_label": "disks", "type": kind})


NBD = (NbdExport("10.0.0.1", 10809, "/disk", "PEM", "host"),)
CHANGES = BlockMap(1 << 30, 64 * KiB)
NO_NBD, NO_CHANGES = "no network has the purpose nbd", "tracking is off"


def facts(*, delta: bool, vhd: bool, nbd: bool, changes: bool) -> Facts:
    return Facts(
        is_delta=delta,
        is_vhd=vhd,
        nbd=NBD if nbd else (),
        without_nbd="" if nbd else NO_NBD,
        changes=CHANGES if changes else None,
        without_changes="" if changes or not delta else NO_CHANGES,
    )


@pytest.mark.parametrize(
    ("vhd", "nbd", "changes", "readers"),
    [
        (True, True, True, [ReaderKind.NBD_CHANGES, ReaderKind.EXPORT_CHANGES]),
        (True, False, True, [ReaderKind.EXPORT_CHANGES]),
        (True, True, False, [ReaderKind.EXPORT]),
        (True, False, False, [ReaderKind.EXPORT]),
        (False, True, True, [ReaderKind.NBD_CHANGES]),
        (False, False, True, [ReaderKind.EXPORT_RAW]),
        (False, True, False, [ReaderKind.NBD_EVERYTHING, ReaderKind.EXPORT_RAW]),
        (False, False, False, [ReaderKind.EXPORT_RAW]),
    ],
)
def test_a_delta_takes_the_road_that_sends_least(
    vhd: bool, nbd: bool, changes: bool, readers: list[ReaderKind]
) -> None:
    choices = choose_readers(facts(delta=True, vhd=vhd, nbd=nbd, changes=changes))

    assert [choice.kind for choice in choices] == readers


@pytest.mark.parametrize(
    ("vhd", "nbd", "readers"),
    [
        (True, True, [ReaderKind.NBD_ALLOCATED, ReaderKind.EXPORT]),
        (True, False, [ReaderKind.EXPORT]),
        (False, True, [ReaderKind.NBD_EVERYTHING, ReaderKind.EXPORT_RAW]),
        (False, False, [ReaderKind.EXPORT_RAW]),
    ],
)
def test_a_whole_disk_takes_the_road_that_sends_least(
    vhd: bool, nbd: bool, readers: list[ReaderKind]
) -> None:
    choices = choose_readers(facts(delta=False, vhd=vhd, nbd=nbd, changes=False))

    assert [choice.kind for choice in choices] == readers


def test_the_best_road_needs_no_reason_and_any_other_has_one() -> None:
    best = choose_readers(facts(delta=True, vhd=True, nbd=True, changes=True))
    without_nbd = choose_readers(facts(delta=True, vhd=True, nbd=False, changes=True))
    without_both = choose_readers(facts(delta=True, vhd=False, nbd=False, changes=False))

    assert best[0] == Choice(ReaderKind.NBD_CHANGES, "")
    assert without_nbd[0].reason == NO_NBD
    assert NO_NBD in without_both[0].reason
    assert NO_CHANGES in without_both[0].reason


@pytest.mark.parametrize("nbd", [True, False])
@pytest.mark.parametrize("changes", [True, False])
def test_no_whole_disk_stands_in_for_a_delta_that_can_be_had(nbd: bool, changes: bool) -> None:
    choices = choose_readers(facts(delta=True, vhd=True, nbd=nbd, changes=changes))

    assert not {choice.kind for choice in choices} & {
        ReaderKind.NBD_EVERYTHING,
        ReaderKind.EXPORT_RAW,
    }


@pytest.mark.parametrize(
    ("nbd", "readers"),
    [
        (True, [ReaderKind.NBD_CHANGES, ReaderKind.EXPORT_CHANGES]),
        (False, [ReaderKind.EXPORT_CHANGES]),
    ],
)
def test_without_the_data_of_the_base_the_bitmap_alone_tells_what_to_send(
    nbd: bool, readers: list[ReaderKind]
) -> None:
    known = replace(facts(delta=True, vhd=True, nbd=nbd, changes=True), is_bare=True)

    assert [choice.kind for choice in choose_readers(known)] == readers
    assert not known.can_only_be_compared


@pytest.mark.parametrize("vhd", [True, False])
def test_without_data_and_bitmap_no_vhd_stands_in_for_the_delta(vhd: bool) -> None:
    known = replace(facts(delta=True, vhd=vhd, nbd=True, changes=False), is_bare=True)

    choices = choose_readers(known)

    assert known.can_only_be_compared
    assert [choice.kind for choice in choices] == [
        ReaderKind.NBD_EVERYTHING,
        ReaderKind.EXPORT_RAW,
    ]
    assert "the base has no data" in choices[0].reason


def test_what_xapi_exports_as_a_vhd() -> None:
    assert is_vhd(vdi(), sr())
    assert is_vhd(vdi(), None)
    assert not is_vhd(vdi(virtual_size=2041 * GiB), sr())
    assert not is_vhd(vdi(sm_config={"type": "raw"}), sr())
    assert not is_vhd(vdi(sm_config={"image-format": "qcow2"}), sr())
    assert not is_vhd(vdi(), sr("zfs-vol"))


INFO = {
    "address": "10.0.0.1",
    "port": "10809",
    "exportname": "/uuid?session_id=OpaqueRef:secret",
    "cert": "PEM",
    "subject": "host",
}


class Told:
    """A pool that tells something about NBD."""

    name = "prod"

    def __init__(self, infos: object, *, plaintext: bool = False) -> None:
        self._infos = infos
        self.settings = SimpleNamespace(nbd=True, plaintext=plaintext)

    async def call(self, method: str, disk: Ref) -> object:
        assert (method, disk) == ("VDI.get_nbd_info", "disk")
        return self._infos


async def test_a_disk_is_served_where_its_pool_tells() -> None:
    exports, reason = await find_nbd(cast(Pool, Told([INFO])), Ref("disk"))

    assert [(each.address, each.port, each.subject) for each in exports] == [
        ("10.0.0.1", 10809, "host")
    ]
    assert reason == ""


@pytest.mark.parametrize(
    "infos",
    [
        None,
        7,
        "nbd",
        [None],
        ["10.0.0.1"],
        [{}],
        [{**INFO, "port": "many"}],
        [{**INFO, "port": "0"}],
        [{**INFO, "port": "65536"}],
        [INFO, {**INFO, "port": "-1"}],
        [{**INFO, "port": "9" * 5000}],
        [{**INFO, "port": "１"}],
        [{**INFO, "address": ""}],
        [{**INFO, "address": "[::1"}],
        [{**INFO, "address": "a..b\0"}],
        [{**INFO, "address": "x" * 1_000_000}],
        [{**INFO, "exportname": "/uuid" + "x" * 5000}],
        [{name: value for name, value in INFO.items() if name != "cert"}],
    ],
)
async def test_what_a_pool_tells_about_nbd_may_be_nonsense(infos: object) -> None:
    exports, reason = await find_nbd(cast(Pool, Told(infos)), Ref("disk"))

    assert exports == ()
    assert reason.startswith("NBD is not available (")
    assert "secret" not in reason


@pytest.mark.parametrize("cert", ["", " \n"])
async def test_without_a_certificate_nbd_is_used_where_plaintext_is_wanted_only(cert: str) -> None:
    infos = [{**INFO, "cert": cert}]

    refused, reason = await find_nbd(cast(Pool, Told(infos)), Ref("disk"))
    allowed, _ = await find_nbd(cast(Pool, Told(infos, plaintext=True)), Ref("disk"))

    assert refused == ()
    assert "pool prod tells no certificate of its NBD servers" in reason
    assert [each.certificate for each in allowed] == [""]


async def test_of_several_servers_those_with_a_certificate_are_used() -> None:
    infos = [{**INFO, "cert": ""}, {**INFO, "address": "10.0.0.2"}]

    exports, reason = await find_nbd(cast(Pool, Told(infos)), Ref("disk"))

    assert [each.address for each in exports] == ["10.0.0.2"]
    assert reason == ""


async def test_only_so_many_addresses_are_looked_at() -> None:
    exports, _ = await find_nbd(cast(Pool, Told([INFO] * 100_000)), Ref("disk"))

    assert len(exports) == MOST_ADDRESSES
