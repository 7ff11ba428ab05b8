"""A relay over real TLS beside a pool of the lab: what it writes, spares, and refuses."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.lab.labclient import VM_RECORD
from tests.lab.relayed import (
    SIZE,
    SOURCE_POOL,
    Disk,
    Relayed,
    Staging,
    open_disk,
    refusal,
    relayed,
)
from tests.lab.world import World, serve_nbd
from tests.patience import patience
from xorepd.data.digest import Digest
from xorepd.data.http import chunked
from xorepd.data.zeroes import UNIT
from xorepd.errors import DataError
from xorepd.extents import Extent
from xorepd.relay import disks
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.blocks import hash_of
from xorepd.relay.protocol.channel import Over
from xorepd.relay.protocol.messages import Code
from xorepd.replication.format.marks import Role
from xorepd_lab.faults.faults import Fault

pytestmark = [pytest.mark.lab, pytest.mark.debug]

DATA = random.Random(7).randbytes(SIZE)


@pytest.fixture
async def place(two_pools: World, tmp_path: Path) -> AsyncIterator[Relayed]:
    await serve_nbd(two_pools, "dr")
    async with relayed(two_pools, tmp_path) as made:
        yield made


async def write(place: Relayed, staging: Staging, content: bytes) -> wire.Done:
    disk = await open_disk(await place.dial(), staging.open(place.pool))
    await disk.offer(0, content)
    done = await disk.finish()
    assert isinstance(done, wire.Done), done
    return done


async def test_a_disk_that_is_offered_arrives_whole(place: Relayed) -> None:
    staging = await place.stage()

    done = await write(place, staging, DATA)

    assert done == wire.Done(received=SIZE, cached=0, written=SIZE)
    assert await place.content(staging.uuid) == DATA


async def test_blocks_that_were_not_offered_and_zeroes_arrive_too(place: Relayed) -> None:
    staging = await place.stage()
    disk = await open_disk(await place.dial(), staging.open(place.pool))

    await disk.send(512, DATA[512:1024])
    await disk.channel.send(wire.Zero(UNIT, UNIT))
    await disk.offer(2 * UNIT, DATA[2 * UNIT : 3 * UNIT])
    await disk.send(SIZE - 512, DATA[-512:])
    assert isinstance(await disk.finish(), wire.Done)

    expected = bytearray(SIZE)
    for start, end in ((512, 1024), (2 * UNIT, 3 * UNIT), (SIZE - 512, SIZE)):
        expected[start:end] = DATA[start:end]
    assert await place.content(staging.uuid) == expected


async def test_zeroes_go_over_old_data(place: Relayed) -> None:
    first = await place.stage()
    await write(place, first, DATA)
    second = await place.committed(first)

    await write(place, second, bytes(SIZE))

    assert not any(await place.content(second.uuid))
    assert await place.content(first.uuid) == DATA


async def test_a_unit_that_was_sent_before_is_not_sent_again(place: Relayed) -> None:
    one, other = await place.stage(), await place.stage()
    connection = await place.dial()
    disk = await open_disk(connection, one.open(place.pool))
    await disk.offer(0, DATA[: 8 * UNIT])

    second = await open_disk(connection, other.open(place.pool))
    wanted = await second.offer(0, DATA[: 4 * UNIT] + DATA[8 * UNIT : 9 * UNIT])

    assert wanted == {4}
    done = await second.finish()
    assert isinstance(done, wire.Done)
    assert (done.received, done.cached) == (UNIT, 4 * UNIT)
    await disk.finish()
    assert (await place.content(other.uuid))[: 5 * UNIT] == DATA[: 4 * UNIT] + DATA[
        8 * UNIT : 9 * UNIT
    ]


async def test_of_equal_units_in_one_offer_one_is_sent(place: Relayed) -> None:
    staging = await place.stage()
    disk = await open_disk(await place.dial(), staging.open(place.pool))

    wanted = await disk.offer(0, DATA[:UNIT] * 5)

    assert wanted == {0}
    assert isinstance(await disk.finish(), wire.Done)
    assert (await place.content(staging.uuid))[: 5 * UNIT] == DATA[:UNIT] * 5


async def test_what_another_connection_sent_is_not_given_away(place: Relayed) -> None:
    one, other = await place.stage(), await place.stage()
    disk = await open_disk(await place.dial(), one.open(place.pool))
    await disk.offer(0, DATA[:UNIT])

    second = await open_disk(await place.dial(), other.open(place.pool))

    assert await second.offer(0, DATA[:UNIT]) == {0}
    await second.finish()
    await disk.finish()


async def test_what_is_confirmed_has_no_gap_below_it(
    place: Relayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "SEGMENT_BYTES", 4 * UNIT)
    connection = await place.dial()
    primer = await open_disk(connection, (await place.stage()).open(place.pool))
    await primer.offer(0, DATA[: 8 * UNIT])
    await primer.finish()
    staging = await place.stage()
    disk = await open_disk(connection, staging.open(place.pool))
    content = DATA[8 * UNIT : 16 * UNIT] + DATA[: 8 * UNIT]

    hashes = [hash_of(content[at : at + UNIT]) for at in range(0, 16 * UNIT, UNIT)]
    await disk.channel.send(wire.Offer(0, tuple(hashes[:8])))
    await disk.next()
    await disk.channel.send(wire.Offer(8 * UNIT, tuple(hashes[8:])))
    want = await disk.next()

    assert isinstance(want, wire.Want)
    assert not want.wanted
    assert not any(disk.confirmed)  # segments have ended, and nothing of the front has come
    for at in range(0, 8 * UNIT, UNIT):
        await disk.send(at, content[at : at + UNIT])
    assert isinstance(await disk.finish(), wire.Done)
    assert disk.confirmed == [4 * UNIT]
    assert (await place.content(staging.uuid))[: 16 * UNIT] == content


async def test_a_digest_is_taken_beside_the_pool(place: Relayed) -> None:
    staging = await place.stage()
    await write(place, staging, DATA)
    extents = [Extent(512, 1024), Extent(3 * UNIT, 2 * UNIT), Extent(SIZE - UNIT, UNIT)]
    expected = Digest(extents)
    expected.update(0, memoryview(DATA))

    connection = await place.dial()
    disk = await open_disk(connection, staging.open(place.pool, read_only=True))
    for part in wire.DigestOf.parts_of(extents):
        await disk.channel.send(part)
    answer = await disk.next()

    assert isinstance(answer, wire.Digested)
    assert answer.digest.hex() == expected.hexdigest()
    disk.channel.close()


async def test_a_digest_without_nbd_is_read_from_an_export(
    two_pools: World, tmp_path: Path
) -> None:
    async with relayed(two_pools, tmp_path) as place:
        staging = await place.stage()
        await write(place, staging, DATA)
        extents = [Extent(3 * UNIT, 2 * UNIT)]
        expected = Digest(extents)
        expected.update(0, memoryview(DATA))

        asked = staging.open(place.pool, read_only=True)
        disk = await open_disk(await place.dial(), asked)
        for part in wire.DigestOf.parts_of(extents):
            await disk.channel.send(part)
        answer = await disk.next()

        assert isinstance(answer, wire.Digested)
        assert answer.digest.hex() == expected.hexdigest()
        disk.channel.close()


# -- what is not allowed ---------------------------------------------------------------------------


async def test_a_disk_without_the_right_mark_is_refused(place: Relayed) -> None:
    connection = await place.dial()
    for changes, sentence in (
        ({"role": Role.POINT}, "no staging disk"),
        ({"self": "00000000-0000-0000-0000-000000000009"}, "no staging disk"),
        ({"self": ""}, "no staging disk"),
        ({"run": "another"}, "is of run another"),
    ):
        staging = await place.stage(**changes)

        refused = await refusal(connection, staging.open(place.pool))

        assert refused.code is Code.NOT_ALLOWED
        assert sentence in refused.sentence
        assert staging.uuid in refused.sentence


async def test_a_disk_of_somebody_else_is_refused(place: Relayed) -> None:
    staging = await place.stage(other={})

    assert (
        "no staging disk" in (await refusal(await place.dial(), staging.open(place.pool))).sentence
    )


async def test_a_disk_of_another_stream_is_refused(place: Relayed) -> None:
    staging = await place.stage()
    asked = staging.open(place.pool, stream=f"{SOURCE_POOL}/other/{staging.stream.sr}")

    assert "another stream" in (await refusal(await place.dial(), asked)).sentence


async def test_a_disk_on_another_sr_than_its_stream_is_refused(place: Relayed) -> None:
    staging = await place.stage()
    elsewhere = replace(staging.stream, sr="00000000-0000-0000-0000-000000000004")
    moved = await place.stage(stream=elsewhere)
    asked = moved.open(place.pool, stream=str(elsewhere))

    assert "does not lie on" in (await refusal(await place.dial(), asked)).sentence


async def test_a_disk_that_a_vm_has_is_refused(place: Relayed) -> None:
    staging = await place.stage()

    def attach(xenapi: Any) -> None:
        xenapi.VBD.create(
            {
                "VM": xenapi.VM.create(VM_RECORD | {"name_label": "thief"}),
                "VDI": staging.ref,
                "userdevice": "7",
                "bootable": False,
                "mode": "RW",
                "type": "Disk",
                "empty": False,
                "other_config": {},
                "qos_algorithm_type": "",
                "qos_algorithm_params": {},
            }
        )

    await place.world.ask("dr", attach)

    refused = await refusal(await place.dial(), staging.open(place.pool))

    assert "belongs to a VM" in refused.sentence


async def test_disks_and_pools_that_are_none_are_refused_by_name(place: Relayed) -> None:
    staging = await place.stage()
    connection = await place.dial()

    assert (
        "no disk 'nowhere'"
        in (await refusal(connection, staging.open(place.pool, vdi="nowhere"))).sentence
    )
    assert "no pool 'elsewhere'" in (await refusal(connection, staging.open("elsewhere"))).sentence
    assert (
        f"has {SIZE} bytes"
        in (await refusal(connection, staging.open(place.pool, virtual_size=2 * SIZE))).sentence
    )


async def test_a_client_is_held_to_its_source_pools(two_pools: World, tmp_path: Path) -> None:
    other = "00000000-0000-0000-0000-00000000000f"
    async with relayed(two_pools, tmp_path, clients={"paris": {"pools": [other]}}) as place:
        staging = await place.stage()
        refused = await refusal(await place.dial(), staging.open(place.pool))

        assert f"client paris may not write replicas of pool {SOURCE_POOL}" in refused.sentence

    mine = {"paris": {"pools": [SOURCE_POOL]}}
    async with relayed(two_pools, tmp_path, clients=mine) as place:
        await write(place, staging, DATA)


async def test_two_writers_of_one_disk_are_one_too_many(place: Relayed) -> None:
    staging = await place.stage()
    disk = await open_disk(await place.dial(), staging.open(place.pool))

    refused = await refusal(await place.dial(), staging.open(place.pool))

    assert "being written already" in refused.sentence
    assert isinstance(await disk.finish(), wire.Done)


# -- what is broken --------------------------------------------------------------------------------


async def broken(place: Relayed, staging: Staging, *messages: wire.Message) -> str:
    """Send what breaks a rule; return the sentence with which the connection ends."""
    connection = await place.dial()
    disk = await open_disk(connection, staging.open(place.pool))
    for message in messages:
        await disk.channel.send(message)
    await connection.ended.wait()
    with pytest.raises(DataError) as caught:
        connection.check()
    return str(caught.value)


def bomb(length: int, announced: int) -> wire.Data:
    packed = zstandard.ZstdCompressor().compress(bytes(length))
    return wire.Data(0, announced, wire.Encoding.ZSTD, 0, packed)


HASH = b"h" * 16


BROKEN_RULES: list[tuple[list[wire.Message], str]] = [
    ([bomb(1 << 26, 1 << 20)], "becomes 67108864 bytes where 1048576 were announced"),
    ([bomb(512, 1024)], "becomes 512 bytes where 1024 were announced"),
    ([wire.Data(0, 1024, wire.Encoding.ZSTD, 0, b"no zstd")], "cannot be read"),
    ([wire.Data(0, 512, wire.Encoding.RAW, 1, bytes(512))], "checksum"),
    ([wire.Zero(0, SIZE + 512)], "beyond the end of the disk"),
    ([wire.Offer(SIZE, (HASH,))], "beyond the end of the disk"),
    ([wire.Zero(UNIT, UNIT), wire.Zero(0, UNIT)], "announced before"),
    ([wire.Zero(0, UNIT), wire.Offer(0, (HASH,))], "announced before"),
    ([wire.Offer(0, (HASH,)), wire.Finish()], "without sending what was wanted"),
    ([wire.DigestOf(array("Q"), is_last=True)], "does not belong"),
]


async def test_broken_rules_end_the_connection_with_a_sentence(place: Relayed) -> None:
    innocent = await open_disk(await place.dial(), (await place.stage()).open(place.pool))
    for messages, sentence in BROKEN_RULES:
        assert sentence in await broken(place, await place.stage(), *messages)

    await innocent.offer(0, DATA)
    assert isinstance(await innocent.finish(), wire.Done)


async def test_a_unit_must_be_what_was_offered(place: Relayed) -> None:
    staging = await place.stage()
    connection = await place.dial()
    disk = await open_disk(connection, staging.open(place.pool))
    await disk.channel.send(wire.Offer(0, (HASH, HASH[::-1])))
    await disk.next()

    await disk.send(0, DATA[:UNIT])

    await connection.ended.wait()
    with pytest.raises(DataError, match="not what was offered"):
        connection.check()


async def test_units_must_come_in_the_order_in_which_they_were_wanted(place: Relayed) -> None:
    staging = await place.stage()
    connection = await place.dial()
    disk = await open_disk(connection, staging.open(place.pool))
    await disk.channel.send(wire.Offer(0, (HASH, b"i" * 16)))
    await disk.next()

    await disk.send(UNIT, DATA[:UNIT])

    await connection.ended.wait()
    with pytest.raises(DataError, match="not what is wanted next"):
        connection.check()


@pytest.mark.parametrize("fault", ["error", "cut"])
async def test_a_pool_that_fails_fails_the_disk_and_not_the_connection(
    place: Relayed, fault: str
) -> None:
    one, other = await place.stage(), await place.stage()
    connection = await place.dial()
    changes: dict[str, Any] = {"error": ("VDI_IO_ERROR", "x")} if fault == "error" else {}
    if fault == "cut":
        changes["cut_at"] = SIZE // 2
    place.world.lab.faults.add(Fault("import", pool="dr", object=one.uuid, **changes))
    disk = await open_disk(connection, one.open(place.pool))
    survivor = await open_disk(connection, other.open(place.pool))

    with suppress(Over):
        await disk.offer(0, DATA)
        await disk.channel.send(wire.Finish())
    failed = await disk.next()
    disk.channel.close()

    assert isinstance(failed, wire.Failed)
    assert failed.code is Code.POOL
    assert "disk 0 of VM web01" in failed.sentence
    await survivor.offer(0, DATA)
    assert isinstance(await survivor.finish(), wire.Done)
    assert await place.content(other.uuid) == DATA


async def test_a_pool_that_hangs_holds_one_disk_until_it_is_cancelled(place: Relayed) -> None:
    one, other = await place.stage(), await place.stage()
    connection = await place.dial()
    fault = place.world.lab.faults.add(
        Fault("import", pool="dr", object=one.uuid, stall=True, stall_at=UNIT)
    )
    disk = await open_disk(connection, one.open(place.pool))
    survivor = await open_disk(connection, other.open(place.pool))
    filling = asyncio.get_running_loop().create_task(fill(disk))

    await survivor.offer(0, DATA)
    assert isinstance(await survivor.finish(), wire.Done)
    disk.channel.cancel()
    verdict = await filling

    assert isinstance(verdict, wire.Failed)
    assert verdict.code is Code.CANCELLED
    fault.release()


async def fill(disk: Disk) -> wire.Message:
    """Send blocks until the verdict comes, and return that."""
    with suppress(Over):
        for offset in range(0, SIZE, UNIT):
            await disk.send(offset, DATA[offset : offset + UNIT])
        await disk.channel.send(wire.Finish())
    verdict = await disk.next()
    disk.channel.close()
    return verdict


async def test_a_disk_that_is_cancelled_ends_and_can_be_written_again(place: Relayed) -> None:
    staging = await place.stage()
    connection = await place.dial()
    disk = await open_disk(connection, staging.open(place.pool))
    await disk.offer(0, DATA[: 4 * UNIT])

    disk.channel.cancel()
    verdict = await disk.next()
    disk.channel.close()

    assert isinstance(verdict, wire.Failed)
    assert verdict.code is Code.CANCELLED
    await place.world.ask(
        "dr", lambda x: x.VDI.set_other_config(staging.ref, x.VDI.get_other_config(staging.ref))
    )
    again = await open_disk(connection, staging.open(place.pool))
    await again.offer(0, DATA)
    assert isinstance(await again.finish(), wire.Done)
    assert await place.content(staging.uuid) == DATA


async def test_a_disk_that_waits_for_its_turn_is_told_so(
    two_pools: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "HOLD_S", 0.02)
    async with relayed(two_pools, tmp_path, disks=1) as place:
        one, other, third = [await place.stage() for _ in range(3)]
        connection = await place.dial()
        first = await open_disk(connection, one.open(place.pool))
        waiting = connection.open(other.open(place.pool))
        gone = connection.open(third.open(place.pool))
        async with asyncio.timeout(patience()):
            while waiting.windows < 2 or gone.windows < 2:  # noqa: ASYNC110 -- two of them
                await asyncio.sleep(0.01)
        gone.close()

        assert isinstance(await first.finish(), wire.Done)

        assert isinstance(await waiting.receive(), wire.Accept)
        await Disk(waiting).finish()
        again = await open_disk(connection, third.open(place.pool))  # its place was not kept
        assert isinstance(await again.finish(), wire.Done)


async def test_a_client_that_vanishes_leaves_no_task_and_no_writer(place: Relayed) -> None:
    staging = await place.stage()
    connection = await place.dial()
    disk = await open_disk(connection, staging.open(place.pool))
    await disk.offer(0, DATA[: 4 * UNIT])

    await connection.close()
    await place.relay.drain(10)

    def tasks(xenapi: Any) -> list[str]:
        names = [task["name_label"] for task in xenapi.task.get_all_records().values()]
        return [name for name in names if staging.uuid in name]

    assert await place.world.ask("dr", tasks) == []
    assert place.relay.disks == 0


async def test_a_relay_that_stops_says_so_and_leaves_nothing(place: Relayed) -> None:
    staging = await place.stage()
    connection = await place.dial()
    await open_disk(connection, staging.open(place.pool))

    await place.relay.drain(0.01)

    refused = await refusal(connection, staging.open(place.pool))
    assert (refused.code, refused.sentence) == (Code.BUSY, "the relay is being stopped")
