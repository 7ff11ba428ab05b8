"""What goes to the relay and what does not, and what becomes of a run when the relay misbehaves."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peer import Disk, Peer, make_files, options

from tests.patience import patience
from xorepd.data.digest import Digest
from xorepd.data.writer import Writer
from xorepd.errors import DataError, Remedy
from xorepd.extents import Extent
from xorepd.plugin.conformance import ScriptedReader, ScriptedTarget, surroundings
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.channel import Channel
from xorepd.transports.base import Surroundings, Verifier
from xorepd.units import KiB, MiB
from xorepd_compressed import link as links
from xorepd_compressed import transport as transports
from xorepd_compressed.errors import NoAnswer, NotTrusted, RelayRefused
from xorepd_compressed.transport import Compressed, CompressedFactory

UNIT = 64 * KiB
TEXT = b"".join(b"%08d xorepd replicates virtual machines\n" % n for n in range(60_000))[: 2 * MiB]
NOISE = random.Random(1).randbytes(2 * MiB)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("relay")
    make_files(directory)
    return directory


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PAUSES_S", (0.05, 0.05))
    monkeypatch.setattr(links, "LINGER_S", 0.1)


@asynccontextmanager
async def serving(files: Path, kind: type[Peer] = Peer, **how: Any) -> AsyncIterator[Peer]:
    peer = kind(files, **how)
    try:
        async with peer.serving():
            yield peer
    finally:
        peer.close()


def opened(files: Path, peer: Peer, where: Surroundings | None = None, **more: Any) -> Compressed:
    return CompressedFactory().open(options(files, peer.port, **more), where or surroundings())


def disk(
    peer: Peer, content: dict[int, bytes], *, base: str = "", size: int = 8 * MiB, **script: Any
) -> tuple[ScriptedReader, ScriptedTarget, Disk]:
    """Return a disk with this content by offset, and where it goes."""
    extents = [Extent(offset, len(data)) for offset, data in content.items()]
    reader = ScriptedReader(size, extents)
    reader.content = dict(zip(extents, content.values(), strict=True))
    target = ScriptedTarget(reader, **script)
    target.disk = replace(target.disk, base=base)
    return reader, target, peer.expect(reader, target)


def came(there: Disk, kind: str) -> list[tuple[int, int]]:
    return [(offset, length) for what, offset, length in there.log if what == kind]


# -- what is sent ----------------------------------------------------------------------------------


async def test_data_is_compressed_and_noise_is_not(files: Path) -> None:
    async with serving(files) as peer:
        transport = opened(files, peer)
        reader, target, text = disk(peer, {0: TEXT})
        await transport.carry(reader, target)
        reader, target, noise = disk(peer, {0: NOISE})
        await transport.carry(reader, target)

    assert text.wire_bytes < len(TEXT) / 4
    assert noise.wire_bytes == len(NOISE)
    assert target.content() == reader.content


async def test_higher_level_is_smaller(files: Path) -> None:
    sizes = []
    async with serving(files, remembers=False) as peer:
        for level in (1, 19):
            reader, target, there = disk(peer, {0: TEXT})
            await opened(files, peer, level=level).carry(reader, target)
            sizes.append(there.wire_bytes)

    assert sizes[1] < sizes[0] * 0.9


async def test_what_the_relay_has_seen_is_not_sent_again(files: Path) -> None:
    async with serving(files) as peer:
        transport = opened(files, peer)
        reader, target, first = disk(peer, {0: NOISE})
        await transport.carry(reader, target)
        changed = bytearray(NOISE)
        changed[5 * UNIT] ^= 1
        reader, target, again = disk(peer, {4 * MiB: bytes(changed)})
        await transport.carry(reader, target)

    assert first.wire_bytes == len(NOISE)
    assert came(again, "data") == [(4 * MiB + 5 * UNIT, UNIT)]
    assert target.content() == reader.content
    assert target.left_bytes < UNIT + 2000


async def test_zeroes_are_not_mentioned_to_a_fresh_disk_and_named_over_old_data(
    files: Path,
) -> None:
    content = {0: bytes(UNIT) + b"a" * UNIT + bytes(3 * MiB), 5 * MiB: b"b" * 512}
    async with serving(files) as peer:
        transport = opened(files, peer)
        reader, target, fresh = disk(peer, content)
        await transport.carry(reader, target)
        reader, target, clone = disk(peer, content, base="the-base")
        await transport.carry(reader, target)

    assert came(fresh, "zero") == []
    assert came(clone, "zero")[0] == (0, UNIT)
    assert sum(length for _, length in came(clone, "zero")) == 3 * MiB + UNIT
    assert clone.opened is not None
    assert clone.opened.base == "the-base"
    assert target.content() == reader.content


async def test_relay_that_has_nothing_is_not_asked(files: Path) -> None:
    async with serving(files, remembers=False) as peer:
        reader, target, there = disk(peer, {0: NOISE})
        await opened(files, peer).carry(reader, target)

    assert came(there, "offer") == []
    assert target.content() == reader.content


async def test_relay_learns_which_disk_it_is(files: Path) -> None:
    async with serving(files) as peer:
        reader, target, there = disk(peer, {0: TEXT})
        await opened(files, peer).carry(reader, target)

    told, known = there.opened, target.disk
    assert told is not None
    assert (told.virtual_size, told.pool, told.vdi) == (8 * MiB, known.pool, known.vdi)
    assert (told.stream, told.run, told.what) == (known.stream, known.run, known.what)


async def test_what_left_was_paid_for_and_is_what_the_link_shows(files: Path) -> None:
    where = surroundings()
    async with serving(files) as peer:
        reader, target, there = disk(peer, {0: TEXT})
        await opened(files, peer, where).carry(reader, target)
        [state] = where.links.states().values()

    assert target.paid == target.left_bytes == state.sent_bytes
    assert 0 < target.left_bytes - there.wire_bytes < 4000
    assert target.faults == []


async def test_disk_is_read_back_at_the_relay(files: Path) -> None:
    async with serving(files) as peer:
        transport = opened(files, peer)
        reader, target, _ = disk(peer, {0: NOISE, 6 * MiB: TEXT[:MiB]})
        await transport.carry(reader, target)
        sample = [Extent(UNIT, MiB), Extent(6 * MiB, 512)]
        found = await transport.digest(target, sample)

    expected = Digest(sample)
    expected.update(0, memoryview(NOISE))
    expected.update(6 * MiB, memoryview(TEXT[:MiB]))
    assert isinstance(transport, Verifier)
    assert found == expected.hexdigest()


# -- one connection --------------------------------------------------------------------------------


async def test_all_disks_of_all_jobs_share_a_connection_and_it_ends_when_nobody_uses_it(
    files: Path,
) -> None:
    where = surroundings()
    async with serving(files) as peer:
        async with asyncio.TaskGroup() as group:
            for job in ("web", "db"):
                transport = opened(files, peer, replace(where, job=job))
                for _ in range(3):
                    reader, target, _ = disk(peer, {0: TEXT})
                    group.create_task(transport.carry(reader, target))
        [connection] = peer.connections
        assert not connection.ended.is_set()
        async with asyncio.timeout(patience()):
            await connection.ended.wait()


async def test_disks_wait_for_a_place_at_the_relay(files: Path) -> None:
    async with serving(files, channels=2) as peer:
        transport = opened(files, peer)
        pairs = [disk(peer, {0: TEXT}) for _ in range(7)]
        async with asyncio.TaskGroup() as group:
            for reader, target, _ in pairs:
                group.create_task(transport.carry(reader, target))

    assert all(target.content() == reader.content for reader, target, _ in pairs)


async def test_connection_that_breaks_fails_each_disk_in_one_sentence_and_the_next_is_new(
    files: Path,
) -> None:
    async with serving(files) as peer:
        transport = opened(files, peer)
        pairs = [disk(peer, {0: NOISE}, hangs_at="write") for _ in range(3)]
        loop = asyncio.get_running_loop()
        carries = [loop.create_task(transport.carry(r, t)) for r, t, _ in pairs]
        for _, target, _ in pairs:
            await target.hangs.wait()
        await peer.connections[0].close()
        await asyncio.wait(carries)
        reader, target, _ = disk(peer, {0: TEXT})
        await transport.carry(reader, target)

    for carry in carries:
        error = carry.exception()
        assert isinstance(error, DataError)
        assert str(error).startswith(f"relay localhost:{peer.port}: ")
    assert target.content() == reader.content
    assert len(peer.connections) == 2


async def test_relay_that_is_not_there_is_one_sentence_for_all_who_wait(files: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    peer = Peer(files)
    peer.close()
    peer.port = port
    transport = opened(files, peer)
    pairs = [disk(peer, {0: TEXT}) for _ in range(3)]

    results = await asyncio.gather(
        *(transport.carry(r, t) for r, t, _ in pairs), return_exceptions=True
    )

    for result in results:
        assert isinstance(result, DataError)
        assert "cannot be reached" in str(result)
        assert "check its address, and that xorepd relay runs" in str(result)
    assert not any(reader.given for reader, _, _ in pairs)


async def test_relay_that_comes_back_in_time_is_waited_for(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "PAUSES_S", (0.2,) * 20)
    peer = Peer(files)
    address = peer.listener.getsockname()
    peer.close()
    transport = opened(files, peer)
    reader, target, _ = disk(peer, {0: TEXT})
    carry = asyncio.get_running_loop().create_task(transport.carry(reader, target))
    await asyncio.sleep(0.3)
    assert not carry.done()

    peer.listener = socket.create_server(address)
    async with peer.serving():
        await carry
    peer.close()

    assert target.content() == reader.content


async def test_relay_of_another_authority_is_not_trusted(files: Path, tmp_path: Path) -> None:
    make_files(tmp_path)
    async with serving(tmp_path) as peer:
        reader, target, _ = disk(peer, {0: TEXT})
        with pytest.raises(NotTrusted, match=r"its certificate is not trusted .*; check ca") as e:
            await opened(files, peer).carry(reader, target)

    assert e.value.remedy is Remedy.OPERATOR
    assert target.virtual_size == -1


def test_link_shows_itself_and_takes_no_rate(files: Path) -> None:
    where = surroundings()
    CompressedFactory().open(options(files), where)

    assert list(where.links.states()) == ["paris@localhost:9443"]
    with pytest.raises(ValueError, match="wrap compressed in throttled"):
        where.links.set_rate("paris@localhost:9443", 1e6)


def test_one_link_cannot_lead_to_two_relays(files: Path) -> None:
    where = surroundings()
    CompressedFactory().open(options(files, 9443, link="wan"), where)

    with pytest.raises(ValueError, match="wan is set up differently in another job"):
        CompressedFactory().open(options(files, 8445, link="wan"), where)


async def test_disks_that_begin_after_a_reload_use_the_new_terms(files: Path) -> None:
    daemon, reloaded = surroundings(strict=False), surroundings()
    async with serving(files) as old, serving(files) as new:
        before = opened(files, old, daemon, link="wan")
        reader, target, _ = disk(old, {0: TEXT}, hangs_at="finish")
        carry = asyncio.get_running_loop().create_task(before.carry(reader, target))
        await target.hangs.wait()
        opened(files, new, reloaded, link="wan")
        daemon.links.adopt(reloaded.links)

        reader, target, _ = disk(new, {0: TEXT})
        await opened(files, new, daemon, link="wan").carry(reader, target)
        assert not carry.done()
        carry.cancel()
        await asyncio.wait({carry})

    assert target.content() == reader.content
    assert (len(old.connections), len(new.connections)) == (1, 1)


# -- a relay that misbehaves -----------------------------------------------------------------------


class Scripted(Peer):
    """A relay that answers the first frame with something else."""

    answer: wire.Message

    async def _take_all(self, channel: Channel, disk: Disk, writer: Writer) -> None:
        await channel.receive()
        await channel.send(self.answer)
        await channel.given_up.wait()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (wire.Confirmed(1 << 40), "it confirmed 1099511627776 bytes where"),
        (wire.Want(1 << 20, 1, frozenset({0})), "it answered another offer than the oldest"),
        (wire.Want(0, 16, frozenset()), "it answered another offer than the oldest"),
        (wire.Done(), "it sent DONE out of place"),
        (wire.Digested(bytes(16)), "it sent DIGESTED out of place"),
        (wire.Failed(wire.Code.POOL, "the SR is full"), "relay localhost:.*: the SR is full"),
    ],
    ids=["confirms", "answers-other", "answers-wrong-count", "done", "digests", "fails"],
)
async def test_answer_out_of_place_fails_the_disk_and_nothing_is_confirmed(
    files: Path, answer: wire.Message, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "answer", answer, raising=False)
    monkeypatch.setattr(transports, "GIVE_UP_S", 0.5)
    async with serving(files, Scripted) as peer:
        reader, target, _ = disk(peer, {0: NOISE[: 4 * UNIT]})
        with pytest.raises(DataError, match=words) as caught:
            await opened(files, peer).carry(reader, target)

    assert str(caught.value).startswith("disk web01 (0), relay localhost:")
    assert target.confirmed_to == 0


async def test_refusal_on_principle_is_for_the_operator(files: Path) -> None:
    class Strict(Peer):
        async def write_disk(self, channel: Channel, opened: wire.Open) -> None:
            channel.end(wire.Refuse(wire.Code.NOT_ALLOWED, "paris may not write to this pool"))

    async with serving(files, Strict) as peer:
        reader, target, _ = disk(peer, {0: TEXT})
        with pytest.raises(RelayRefused, match="paris may not write to this pool") as caught:
            await opened(files, peer).carry(reader, target)

    assert caught.value.remedy is Remedy.OPERATOR
    assert reader.given == 0


class Deaf(Peer):
    """A relay that answers PINGs and nothing else."""

    async def serve_disk(self, channel: Channel, opened: wire.Open) -> None:
        await channel.given_up.wait()


async def test_relay_that_does_not_answer_a_disk_is_given_up(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "ANSWER_S", 0.2)
    monkeypatch.setattr(transports, "GIVE_UP_S", 0.1)
    async with serving(files, Deaf) as peer:
        reader, target, _ = disk(peer, {0: TEXT})
        with pytest.raises(NoAnswer, match="whether it takes the disk; look into its log") as e:
            await opened(files, peer).carry(reader, target)

    assert str(e.value).startswith("disk web01 (0), relay localhost:")
    assert e.value.remedy is Remedy.RETRY
    assert reader.given == 0


async def test_disk_whose_turn_comes_late_is_waited_for(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy(Peer):
        async def write_disk(self, channel: Channel, opened: wire.Open) -> None:
            for _ in range(25):
                await asyncio.sleep(0.1)
                channel.hold()
            await super().write_disk(channel, opened)

    monkeypatch.setattr(transports, "ANSWER_S", 1.0)
    async with serving(files, Busy) as peer:
        reader, target, _ = disk(peer, {0: TEXT})
        await opened(files, peer).carry(reader, target)

    assert target.content() == reader.content


async def test_relay_that_does_not_let_go_holds_a_cancellation_up_for_a_moment_only(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stubborn(Peer):
        async def serve_disk(self, channel: Channel, opened: wire.Open) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(transports, "GIVE_UP_S", 0.1)
    async with serving(files, Stubborn) as peer:
        reader, target, _ = disk(peer, {0: TEXT})
        transport = opened(files, peer)
        carry = asyncio.get_running_loop().create_task(transport.carry(reader, target))
        while not peer.connections:  # noqa: ASYNC110 -- it connects in a moment
            await asyncio.sleep(0.01)
        carry.cancel()
        await asyncio.wait({carry}, timeout=patience())

    assert carry.cancelled()
