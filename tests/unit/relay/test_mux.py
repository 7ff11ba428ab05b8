from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.unit.relay.ends import CHANNELS, OPEN, Ends, ends
from xorepd.errors import DataError
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.blocks import pack_block
from xorepd.relay.protocol.channel import Channel, Over
from xorepd.relay.protocol.frames import HEADER, LARGEST_BLOCK, SMALLEST_DATA_WINDOW, Kind
from xorepd.relay.protocol.mux import Connection

BLOCK = memoryview(bytes(range(256)) * 4096)
WINDOW = SMALLEST_DATA_WINDOW


def block(number: int) -> wire.Data:
    return pack_block(number * LARGEST_BLOCK, BLOCK, None)


async def open_disk(client: Connection, relay: Connection) -> tuple[Channel, Channel]:
    """Return the two ends of a channel that is open."""
    near = client.open(OPEN)
    far, asked = await relay.opened()
    assert asked == OPEN
    far.accept(WINDOW, wire.Feature(0))
    assert await near.receive() == wire.Accept(WINDOW, wire.Feature(0))
    return near, far


async def test_both_ends_know_each_other(both: Ends) -> None:
    async with both.connected() as (client, relay):
        assert (client.peer.name, relay.peer.name) == ("relay", "here")
        assert client.peer.channels == CHANNELS


async def test_blocks_arrive_in_order_and_whole(both: Ends) -> None:
    async with both.connected() as (client, relay):
        near, far = await open_disk(client, relay)

        async def send() -> None:
            for number in range(10):
                await near.send(block(number))
            await near.send(wire.Finish())

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            for number in range(10):
                came = await far.receive()
                assert isinstance(came, wire.Data)
                assert came.offset == number * LARGEST_BLOCK
                assert came.payload == BLOCK
            assert await far.receive() == wire.Finish()


async def test_a_sender_waits_when_nothing_is_taken(both: Ends) -> None:
    async with both.connected() as (client, relay):
        near, far = await open_disk(client, relay)
        await near.send(block(0))

        second = asyncio.get_running_loop().create_task(near.send(block(1)))
        third = near.credit  # one block of the window is left, less a header
        assert third < LARGEST_BLOCK + HEADER.size
        # An answer from the other end has passed everything that could have come before it.
        await far.send(wire.Confirmed(1))
        assert await near.receive() == wire.Confirmed(1)
        assert not second.done()

        await far.receive()
        granting = asyncio.get_running_loop().create_task(far.receive())
        await second
        assert isinstance(await granting, wire.Data)


async def test_a_slow_disk_does_not_stop_another(both: Ends) -> None:
    async with both.connected() as (client, relay):
        slow, _ = await open_disk(client, relay)
        quick, far = await open_disk(client, relay)
        await slow.send(block(0))
        stuck = asyncio.get_running_loop().create_task(slow.send(block(1)))

        async def take() -> None:
            for _ in range(8):
                await far.receive()

        async with asyncio.TaskGroup() as group:
            group.create_task(take())
            for number in range(8):
                await quick.send(block(number))

        assert not stuck.done()
        stuck.cancel()


async def test_a_cancelled_sender_leaves_the_connection_whole(both: Ends) -> None:
    async with both.connected() as (client, relay):
        one, _ = await open_disk(client, relay)
        other, far = await open_disk(client, relay)
        for _ in range(20):
            sending = asyncio.get_running_loop().create_task(one.send(wire.Zero(0, 512)))
            await asyncio.sleep(0)
            sending.cancel()
        one.close()

        await other.send(block(3))

        came = await far.receive()
        assert isinstance(came, wire.Data)
        assert came.payload == BLOCK


async def test_a_verdict_ends_a_channel_for_both(both: Ends) -> None:
    async with both.connected() as (client, relay):
        near, far = await open_disk(client, relay)
        await near.send(block(0))
        waiting = asyncio.get_running_loop().create_task(near.send(block(1)))
        verdict = wire.Failed(wire.Code.POOL, "the disk is full")

        far.end(verdict)

        assert await near.receive() == verdict
        with pytest.raises(Over):
            await waiting
        with pytest.raises(Over):
            await near.receive()
        with pytest.raises(Over):
            await far.receive()


async def test_nothing_follows_a_verdict(both: Ends) -> None:
    async with both.boor() as boor:
        await boor.greet()
        await boor.say(1, OPEN)
        channel, _ = await (await both.arrived.get()).opened()
        channel.accept(WINDOW, wire.Feature(0))
        await boor.say(1, block(0))
        await boor.say(1, wire.Finish())
        assert isinstance(await channel.receive(), wire.Data)
        assert isinstance(await channel.receive(), wire.Finish)  # and credit is due

        channel.end(wire.Done(0, 0, 0))

        await boor.wait_for(Kind.DONE)
        await boor.say(0, wire.Ping(7))
        header, _ = await boor.next()
        assert header.kind is Kind.PONG


async def test_a_channel_that_was_closed_makes_room_for_another(both: Ends) -> None:
    async with both.connected() as (client, relay):
        for _ in range(2 * CHANNELS):
            near, far = await open_disk(client, relay)
            far.end(wire.Done(0, 0, 0))
            await near.receive()
            near.close()
            await far.given_up.wait()


async def test_cancelling_is_seen_before_what_was_sent_has_been_taken(both: Ends) -> None:
    async with both.connected() as (client, relay):
        near, far = await open_disk(client, relay)
        await near.send(block(0))

        near.cancel()

        await far.given_up.wait()
        far.end(wire.Failed(wire.Code.CANCELLED, "as you wish"))
        assert isinstance(await near.receive(), wire.Failed)


async def test_the_end_of_a_connection_reaches_everybody_who_waits(both: Ends) -> None:
    client, relay = await both.connect()
    near, far = await open_disk(client, relay)
    loop = asyncio.get_running_loop()
    waiting = [loop.create_task(near.receive()), loop.create_task(relay.opened())]
    await near.send(block(0))
    sending = loop.create_task(near.send(block(1)))
    await far.receive()

    await relay.close(wire.Bye(wire.Code.NORMAL, "the relay is being stopped"))

    for task in (*waiting, sending):
        with pytest.raises(DataError, match="stopped"):
            await task
    await client.ended.wait()
    with pytest.raises(DataError, match="stopped"):
        client.open(OPEN)
    await client.close()


async def test_an_end_that_falls_silent_is_given_up(certificates: Path) -> None:
    async with ends(certificates, silence=0.3) as short, short.boor() as boor:
        await boor.greet()
        relay = await short.arrived.get()

        await relay.ended.wait()

        with pytest.raises(DataError, match="silent"):
            relay.check()


async def test_a_quiet_connection_is_kept_by_pings(certificates: Path) -> None:
    async with ends(certificates, silence=0.3) as short:
        client, relay = await short.connect(silence=0.3)
        with pytest.raises(TimeoutError):  # a silence three times as long as what is allowed
            await asyncio.wait_for(client.ended.wait(), 0.9)

        client.check()
        relay.check()
        assert client.round_trip_s > 0
        await client.close()


# -- without manners -------------------------------------------------------------------------------


async def test_garbage_is_refused_and_others_live_on(both: Ends) -> None:
    async with both.connected() as (client, relay):
        async with both.boor() as boor:
            await boor.raw(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n")
            assert "no frame of kind 71" in await boor.refused()

        near, far = await open_disk(client, relay)
        await near.send(block(0))
        assert isinstance(await far.receive(), wire.Data)


async def test_what_was_recorded_cannot_be_replayed(both: Ends) -> None:
    async with both.boor() as first:
        nonce = first.hello.nonce
    async with both.boor() as boor:
        await boor.greet(answer=nonce)

        assert "of another connection" in await boor.refused()


async def test_a_frame_sent_twice_is_refused(both: Ends) -> None:
    async with both.boor() as boor:
        await boor.greet()
        boor.sequence = 0
        await boor.say(0, wire.Ping(1))

        assert "frame 0 came where 1 is next" in await boor.refused()


async def test_another_version_is_told_so(both: Ends) -> None:
    async with both.boor() as boor:
        hello = wire.Hello(b"n" * 16, boor.hello.nonce, 0, 60_000, "boor", "none", version=9)
        await boor.say(0, hello)

        assert "version 9" in await boor.refused()


async def test_a_second_hello_is_refused(both: Ends) -> None:
    async with both.boor() as boor:
        await boor.greet()
        await boor.greet()

        assert "second HELLO" in await boor.refused()


async def test_more_than_the_window_is_refused(both: Ends) -> None:
    async with both.boor() as boor:
        await boor.greet()
        await boor.say(1, OPEN)
        channel, _ = await (await both.arrived.get()).opened()
        channel.accept(WINDOW, wire.Feature(0))
        for number in range(3):
            await boor.say(1, block(number))

        assert "more came than the window allows" in await boor.refused()


async def test_nothing_may_be_sent_before_a_disk_is_accepted(both: Ends) -> None:
    async with both.boor() as boor:
        await boor.greet()
        await boor.say(1, OPEN)
        await boor.say(1, wire.Zero(0, 512))

        assert "window" in await boor.refused()


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (wire.Zero(0, 512), "no channel 7"),
        (wire.Close(), "no channel 7"),
        (wire.Window(1), "no channel 7"),
        (wire.Done(0, 0, 0), "not for this end"),
    ],
)
async def test_frames_for_no_disk_are_refused(
    both: Ends, message: wire.Message, sentence: str
) -> None:
    async with both.boor() as boor:
        await boor.greet()
        await boor.say(7, message)

        assert sentence in await boor.refused()


async def test_more_disks_than_allowed_are_refused(both: Ends) -> None:
    async with both.boor() as boor:
        await boor.greet()
        for number in range(CHANNELS + 1):
            await boor.say(number + 1, OPEN)

        assert f"more than {CHANNELS} disks" in await boor.refused()


async def test_a_channel_cannot_be_opened_twice(both: Ends) -> None:
    async with both.boor() as boor:
        await boor.greet()
        await boor.say(2, OPEN)
        await boor.say(1, OPEN)

        assert "channel 1 was opened before" in await boor.refused()


async def test_what_a_channel_says_once_it_may_not_say_twice(both: Ends) -> None:
    async with both.boor() as boor:
        await boor.greet()
        await boor.say(1, OPEN)
        for _ in range(2):
            await boor.say(1, wire.Finish())

        assert "second FINISH" in await boor.refused()


async def test_an_announced_length_is_refused_before_it_comes(both: Ends) -> None:
    async with both.boor() as boor:
        await boor.raw(HEADER.pack(Kind.DATA, 0, 0, 1, 0, 0xFFFFFFFF))

        assert "cannot have a body of 4294967295 bytes" in await boor.refused()


async def test_where_no_relay_runs_its_address_is_named(both: Ends) -> None:
    with pytest.raises(DataError, match=r"relay 127\.0\.0\.1:1: it cannot be reached"):
        await Connection.dial("127.0.0.1", 1, both.context(), "here")
