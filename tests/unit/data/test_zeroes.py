from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xorepd.data.zeroes import UNIT, is_zero, without_zeroes


def test_a_single_byte_is_found_wherever_it_is() -> None:
    for place in (0, 1, UNIT // 2, UNIT - 1):
        data = bytearray(UNIT)
        data[place] = 1
        assert not is_zero(memoryview(data))
    assert is_zero(memoryview(bytes(UNIT)))
    assert is_zero(memoryview(bytes(512)))


@given(
    st.integers(0, 5).map(lambda n: n * UNIT // 2),
    st.lists(st.tuples(st.booleans(), st.integers(1, 200)), max_size=12),
)
def test_what_is_left_out_is_zero_and_what_is_left_is_all(
    offset: int, runs: list[tuple[bool, int]]
) -> None:
    data = b"".join((b"x" if full else b"\0") * (512 * sectors) for full, sectors in runs)
    rebuilt = bytearray(len(data))
    end = -1
    for start, part in without_zeroes(offset, memoryview(data)):
        assert start > end, "neighbours were not joined"
        end = start + len(part)
        rebuilt[start - offset : end - offset] = part
        units = range(start // UNIT * UNIT, end, UNIT)
        for unit in units:
            inside = data[max(0, unit - offset) : unit + UNIT - offset]
            assert any(inside), "a unit of zeroes was sent"
    assert rebuilt == data
