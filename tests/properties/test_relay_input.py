"""Whatever a peer of the relay sends: a sentence, no crash, and no memory beyond the bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.relay.ends import OPEN, Boor, Ends, ends, make_certificates
from xorepd.data.zeroes import UNIT
from xorepd.extents import Extent
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.blocks import hash_of, pack_block, unpack_block
from xorepd.relay.protocol.frames import HEADER, LARGEST_BODY, LIMITS, Kind, WireError, parse_header
from xorepd.relay.protocol.ledger import Ledger

U32, U64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
SIZE = 8 * UNIT + 512


@given(st.binary(min_size=HEADER.size, max_size=HEADER.size))
def test_any_header_is_parsed_or_refused_within_the_bounds(head: bytes) -> None:
    try:
        header = parse_header(head)
    except WireError:
        return

    assert header.length <= LARGEST_BODY
    assert header.pack() == head


@given(st.sampled_from(Kind), st.data())
def test_any_body_is_understood_or_refused(kind: Kind, data: st.DataObject) -> None:
    least, most = LIMITS[kind]
    body = data.draw(st.binary(min_size=least, max_size=min(most, least + 300)))
    try:
        message = wire.parse(kind, 0, body)
    except WireError:
        return

    assert message.kind is kind
    again = wire.parse(kind, 0, message.pack())
    assert again == message or kind in {Kind.DATA, Kind.BYE, Kind.REFUSE, Kind.FAILED}


TEXT = st.text(max_size=60)
HASHES = st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=200)
SECTORS = st.integers(0, 1 << 40).map(lambda n: n * 512)
MESSAGES = st.one_of(
    st.builds(
        wire.Hello,
        st.binary(min_size=16, max_size=16),
        st.binary(min_size=16, max_size=16),
        U32,
        st.integers(100, 1 << 31),
        TEXT,
        TEXT,
    ),
    st.builds(wire.Failed, st.sampled_from(wire.Code), TEXT),
    st.builds(wire.Open, st.just(SIZE), st.just(1 << 16), *(TEXT for _ in range(6)), st.booleans()),
    st.builds(wire.Accept, st.integers(1 << 21, 1 << 31), st.sampled_from(wire.Feature)),
    st.builds(wire.Offer, st.integers(0, 1000).map(lambda n: n * UNIT), HASHES.map(tuple)),
    st.integers(1, 300).flatmap(
        lambda count: st.builds(
            wire.Want, U32, st.just(count), st.frozensets(st.integers(0, count - 1))
        )
    ),
    st.builds(wire.Zero, SECTORS, SECTORS.filter(bool)),
    st.builds(wire.Done, U64, U64, U64),
    st.builds(wire.Digested, st.binary(min_size=16, max_size=16)),
)


@given(MESSAGES)
def test_what_is_packed_is_parsed_again(message: wire.Message) -> None:
    body = message.pack()
    least, most = LIMITS[message.kind]

    assert least <= len(body) <= most
    assert wire.parse(message.kind, 0, body) == message


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=9000))
@settings(max_examples=20, deadline=None)
def test_a_list_of_extents_comes_back_in_frames(steps: list[tuple[int, int]]) -> None:
    extents, end = [], 0
    for gap, length in steps:
        extents.append(Extent(end + gap, length))
        end += gap + length

    back: list[Extent] = []
    parts = list(wire.DigestOf.parts_of(extents))
    for part in parts:
        again = wire.parse(Kind.DIGEST, 0, part.pack())
        assert isinstance(again, wire.DigestOf)
        back += map(Extent, again.bounds[::2], again.bounds[1::2])

    assert back == extents
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]


@given(st.integers(1, 1 << 20), U64, st.binary(max_size=200))
def test_no_payload_grows_beyond_what_was_announced(
    length: int, checksum: int, payload: bytes
) -> None:
    try:
        unpacked = unpack_block(wire.Data(0, length, wire.Encoding.ZSTD, checksum, payload))
    except WireError:
        return

    assert len(unpacked) == length


@given(st.binary(min_size=512, max_size=4096), st.integers(1, 19))
def test_blocks_survive_compression(content: bytes, level: int) -> None:
    import zstandard

    block = content[: len(content) // 512 * 512]
    packed = pack_block(512, memoryview(block), zstandard.ZstdCompressor(level=level))

    again = wire.parse(Kind.DATA, 0, packed.pack())

    assert isinstance(again, wire.Data)
    assert unpack_block(again) == block


# -- the books of a disk ---------------------------------------------------------------------------

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.integers(0, 9), st.integers(1, 4)),
        st.tuples(st.just("data"), st.integers(0, 140), st.integers(1, 256)),
        st.tuples(st.just("zero"), st.integers(0, 140), st.integers(1, 256)),
        st.tuples(st.just("pay"), st.just(0), st.integers(1, 3)),
    ),
    max_size=30,
)


@given(EVENTS, st.sets(st.integers(0, 8)))
def test_the_floor_never_passes_what_is_owed(
    events: list[tuple[str, int, int]], lacking: set[int]
) -> None:
    ledger = Ledger(SIZE)
    owed: list[tuple[int, int]] = []
    reached = floor = 0
    for what, where, much in events:
        try:
            match what:
                case "offer":
                    names = tuple(bytes([where + i]) * 16 for i in range(much))
                    for unit in ledger.units_of(wire.Offer(where * UNIT, names)):
                        assert unit.offset >= reached
                        assert 0 < unit.length <= UNIT
                        if unit.offset // UNIT in lacking and ledger.want(unit):
                            owed.append((unit.offset, unit.length))
                        reached = unit.offset + unit.length
                    ledger.handled()
                case "zero":
                    ledger.skip(wire.Zero(where * 512, much * 512))
                    assert where * 512 >= reached
                    reached = (where + much) * 512
                    ledger.handled()
                case _:
                    offset, length = where * 512, much * 512
                    if what == "pay" and owed:
                        offset, length = owed[0][0], sum(size for _, size in owed[:much])
                    paid = ledger.take(wire.Data(offset, length, wire.Encoding.RAW, 0, b""))
                    assert [(unit.offset, unit.length) for unit in paid] == owed[: len(paid)]
                    if paid:
                        assert sum(unit.length for unit in paid) == length
                        del owed[: len(paid)]
                    else:
                        assert offset >= reached
                        reached = offset + length
                    ledger.handled(len(paid))
        except WireError:
            return  # the connection ends here
        assert ledger.owes == bool(owed)
        assert floor <= ledger.floor == (owed[0][0] if owed else reached) <= SIZE
        floor = ledger.floor


# -- real connections ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("relay") / "pki")


def with_relay(certificates: Path, body: Callable[[Ends], Awaitable[object]]) -> None:
    async def run() -> None:
        async with ends(certificates) as made:
            await body(made)

    asyncio.run(asyncio.wait_for(run(), 20))


async def end_of(boor: Boor) -> None:
    """Read until the relay ends the connection, which it must."""
    while (await boor.next())[0].kind is not Kind.BYE:
        pass


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(junk=st.binary(min_size=16, max_size=2000), greeted=st.booleans())
def test_bytes_from_anywhere_end_one_connection_and_no_other(
    certificates: Path, junk: bytes, greeted: bool
) -> None:
    async def body(relay: Ends) -> None:
        async with relay.connected() as (client, server):
            async with relay.boor() as boor:
                if greeted:
                    await boor.greet()
                # What cannot be the next frame by its sequence is refused, however it looks.
                await boor.raw(junk[:8] + b"\xff\xff\xff\xfe" + junk[12:])
                await end_of(boor)

            near = client.open(OPEN)
            far, _ = await server.opened()
            far.accept(1 << 21, wire.Feature.REFERENCES)
            assert isinstance(await near.receive(), wire.Accept)
            await near.send(wire.Offer(0, (hash_of(b"x"),)))
            assert isinstance(await far.receive(), wire.Offer)

    with_relay(certificates, body)
