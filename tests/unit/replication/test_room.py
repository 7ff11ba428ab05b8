from __future__ import annotations

import pytest

from xorepd.errors import Refused
from xorepd.ids import Ref
from xorepd.replication.context.reservations import Reservations
from xorepd.units import GiB
from xorepd.xapi.records import Sr, read_record


def sr(size: int, used: int = 0, uuid: str = "sr-1") -> Sr:
    raw = {"uuid": uuid, "name_label": "dr-storage", "type": "nfs"}
    sizes = {"physical_size": str(size), "physical_utilisation": str(used)}
    return read_record(Sr, Ref("OpaqueRef:sr"), raw | sizes)


def test_room_that_is_there_is_enough() -> None:
    Reservations().check(sr(10 * GiB, 4 * GiB), "dr", 5 * GiB, 1 * GiB, "disk 0")


def test_one_byte_too_few_is_refused() -> None:
    with pytest.raises(Refused):
        Reservations().check(sr(10 * GiB, 4 * GiB), "dr", 5 * GiB + 1, 1 * GiB, "disk 0")


def test_refusal_names_pool_sr_purpose_and_remedy() -> None:
    with pytest.raises(Refused) as caught:
        Reservations().check(sr(10 * GiB, 8 * GiB), "dr", 3 * GiB, 1 * GiB, "disk root of VM web01")

    message = str(caught.value)
    assert "pool dr: disk root of VM web01 needs 3.0 GiB where SR dr-storage" in message
    assert "2.0 GiB free, of which 1.0 GiB must stay free" in message
    assert "make room there, or choose another SR" in message


@pytest.mark.parametrize("size", [0, -1])
def test_sr_that_does_not_know_its_size_is_believed_to_have_room(size: int) -> None:
    Reservations().check(sr(size), "dr", 100 * GiB, GiB, "disk 0")


def test_promised_room_is_not_promised_again() -> None:
    room = Reservations()

    with (
        room.reserve(sr(10 * GiB), "dr", 6 * GiB, 0, "disk 0"),
        pytest.raises(Refused, match=r"4\.0 GiB free"),
    ):
        room.check(sr(10 * GiB), "dr", 5 * GiB, 0, "disk 1")


def test_promise_on_one_sr_leaves_another_alone() -> None:
    room = Reservations()

    with room.reserve(sr(10 * GiB), "dr", 6 * GiB, 0, "disk 0"):
        room.check(sr(10 * GiB, uuid="sr-2"), "dr", 10 * GiB, 0, "disk 1")


def test_promise_ends_with_its_transfer() -> None:
    room = Reservations()

    with room.reserve(sr(10 * GiB), "dr", 6 * GiB, 0, "disk 0"):
        pass

    room.check(sr(10 * GiB), "dr", 10 * GiB, 0, "disk 1")


def test_promise_ends_with_a_transfer_that_failed() -> None:
    room = Reservations()

    with (
        pytest.raises(OSError, match="cut"),
        room.reserve(sr(10 * GiB), "dr", 6 * GiB, 0, "disk 0"),
    ):
        raise OSError("cut")

    room.check(sr(10 * GiB), "dr", 10 * GiB, 0, "disk 1")


def test_promise_that_was_refused_holds_nothing() -> None:
    room = Reservations()

    with (
        pytest.raises(Refused),
        room.reserve(sr(10 * GiB), "dr", 11 * GiB, 0, "disk 0"),
    ):
        pass

    room.check(sr(10 * GiB), "dr", 10 * GiB, 0, "disk 1")


def test_room_is_never_said_to_be_negative() -> None:
    room = Reservations()

    with (
        room.reserve(sr(10 * GiB), "dr", 6 * GiB, 0, "disk 0"),
        pytest.raises(Refused, match="0 B free"),
    ):
        room.check(sr(10 * GiB, 8 * GiB), "dr", 1, 0, "disk 1")
