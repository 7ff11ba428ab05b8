import pytest

from xorepd.data.zeroes import UNIT
from xorepd.relay.protocol import ledger
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.frames import WireError
from xorepd.relay.protocol.ledger import Ledger, Unit


def data(offset: int, length: int) -> wire.Data:
    return wire.Data(offset, length, wire.Encoding.RAW, 0, b"")


def test_the_last_unit_of_a_disk_is_as_long_as_what_is_left() -> None:
    books = Ledger(UNIT + 512)

    units = books.units_of(wire.Offer(0, (b"a" * 16, b"b" * 16)))

    assert [(unit.offset, unit.length) for unit in units] == [(0, UNIT), (UNIT, 512)]


def test_neighbours_that_were_wanted_may_come_in_one_block() -> None:
    books = Ledger(8 * UNIT)
    for unit in books.units_of(wire.Offer(0, tuple(bytes([n]) * 16 for n in range(1, 5)))):
        if unit.offset != UNIT:
            books.want(unit)
    books.handled()

    assert len(books.take(data(0, UNIT))) == 1
    books.handled(1)
    assert books.floor == 2 * UNIT
    assert len(books.take(data(2 * UNIT, 2 * UNIT))) == 2
    books.handled(2)
    assert (books.floor, books.owes) == (4 * UNIT, False)


def test_a_block_across_a_unit_that_was_not_wanted_is_refused() -> None:
    books = Ledger(8 * UNIT)
    for unit in books.units_of(wire.Offer(0, tuple(bytes([n]) * 16 for n in range(1, 4)))):
        if unit.offset != UNIT:
            books.want(unit)
    books.handled()

    with pytest.raises(WireError, match="not what is wanted next"):
        books.take(data(0, 3 * UNIT))


def test_what_is_being_written_is_not_below_the_floor() -> None:
    books = Ledger(8 * UNIT)

    books.take(data(UNIT, UNIT))
    assert books.floor == UNIT

    books.handled()
    assert books.floor == 2 * UNIT


@pytest.mark.parametrize("same", [False, True])
def test_nobody_may_owe_without_end(same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MOST_OWED", 10)
    books = Ledger(1 << 40)
    units = [Unit(n * UNIT, UNIT, b"a" if same else str(n).encode()) for n in range(11)]
    for unit in units[:10]:
        books.want(unit)

    with pytest.raises(WireError, match="do not come"):
        books.want(units[10])


def test_who_pays_may_be_lent_to_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MOST_OWED", 2)
    books = Ledger(1 << 40)
    for number in range(0, 20, 2):
        hashes = (str(number).encode() * 4,) * 2
        one, copy = books.units_of(wire.Offer(number * UNIT, hashes))
        assert books.want(one)
        assert not books.want(copy)
        books.handled()

        assert books.take(data(number * UNIT, UNIT)) == [one]
        assert books.copies_of(one) == [copy]
        books.handled(1)
