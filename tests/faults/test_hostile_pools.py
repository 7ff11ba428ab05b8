"""A pool, or what stands before it, answers nonsense: that costs a sentence, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from xmlrpc.client import dumps

import pytest
from structlog.testing import capture_logs

from tests.faults.impostor import PAGE, Impostor, http, impostor
from tests.lab.world import World
from xorepd.config.models import PoolSettings
from xorepd.errors import Remedy, XapiUnreachable
from xorepd.ids import PoolName, Ref
from xorepd.state.records import Outcome
from xorepd_lab.faults.faults import Fault, Where


def value(given: object) -> bytes:
    answer = dumps(({"Status": "Success", "Value": given},), methodresponse=True, allow_none=True)
    return http(answer.encode())


@pytest.fixture
async def before_prod(two_pools: World) -> AsyncIterator[Impostor]:
    async with impostor(two_pools.lab.pools["prod"].plain_url) as made:
        yield made


def through(two_pools: World, made: Impostor) -> PoolSettings:
    """Return the settings of a daemon that reaches prod through an impostor."""
    return two_pools.settings("prod", url=made.url, plaintext=True, ca_file=None)


VM = {"class": "vm", "ref": "OpaqueRef:1", "operation": "add"}
EVENTS = {
    "no events": {"token": "1,1"},
    "events of another kind": {"events": "none", "token": "1,1"},
    "an event of another kind": {"events": ["none"], "token": "1,1"},
    "an event without a class": {"events": [{"ref": "OpaqueRef:1"}], "token": "1,1"},
    "an empty record": {"events": [VM | {"snapshot": {}}], "token": "1,1"},
    "a record of another kind": {"events": [VM | {"snapshot": "none"}], "token": "1,1"},
    "a uuid of another kind": {"events": [VM | {"snapshot": {"uuid": ["u"]}}], "token": "1,1"},
    "a reference of another kind": {"events": [VM | {"ref": ["r"]}], "token": "1,1"},
    "no token": {"events": []},
    "a token that is none": {"events": [], "token": "now"},
    "a count that is none": {"events": [], "token": "1,1", "valid_ref_counts": {"vm": "many"}},
    "a count of infinity": {"events": [], "token": "1,1", "valid_ref_counts": {"vm": 1e999}},
}


@pytest.mark.parametrize(
    "answer",
    [http(PAGE), http(b""), *map(value, EVENTS.values())],
    ids=["page", "nothing", *EVENTS],
)
async def test_nonsense_among_the_events_costs_a_sentence_and_no_feed(
    two_pools: World, before_prod: Impostor, answer: bytes
) -> None:
    with capture_logs() as logs:
        async with two_pools.daemon({"prod": through(two_pools, before_prod)}) as context:
            prod = context.pools[PoolName("prod")]
            await prod.refresh()
            told = before_prod.lie("event.from", answer).told
            await told.wait()
            await prod.refresh()
            assert prod.cache.vms

    said = [line["error"] for line in logs if line["event"] == "events.interrupted"]
    assert len(said) == 1
    assert said[0].startswith("pool prod: no answer from ")
    assert len(said[0]) < 500
    assert "\n" not in said[0]


async def test_a_record_of_nonsense_when_a_class_is_read_again_ends_no_feed(
    two_pools: World, before_prod: Impostor
) -> None:
    miscounted = value({"events": [], "token": "1,1", "valid_ref_counts": {"vm": 999}})

    async with two_pools.daemon({"prod": through(two_pools, before_prod)}) as context:
        prod = context.pools[PoolName("prod")]
        await prod.refresh()
        before_prod.lie("VM.get_all_records", value({"OpaqueRef:1": {"uuid": []}}))
        told = before_prod.lie("event.from", miscounted).told
        await told.wait()
        await prod.refresh()
        assert prod.cache.vms


async def test_pages_in_place_of_answers_end_no_transfer_that_is_under_way(
    two_pools: World, before_prod: Impostor
) -> None:
    held = two_pools.lab.faults.add(Fault("export", stall=True, stall_at=1 << 20))

    with capture_logs() as logs:
        async with (
            two_pools.daemon({"prod": through(two_pools, before_prod)}) as context,
            asyncio.TaskGroup() as group,
        ):
            running = group.create_task(two_pools.run(context))
            await held.stalled.wait()
            lies = [before_prod.lie(each, http(PAGE)) for each in ("event.from", "*.get_*")]
            held.release()
            record = await running
            await lies[0].told.wait()

    assert record.error is None, record.error
    assert [line["event"] for line in logs if "exc_info" in line] == []
    await two_pools.newest_equals_its_source()


@pytest.mark.parametrize("method", ["Async.VM.snapshot", "VM.add_to_other_config", "task.create"])
async def test_a_page_where_something_was_to_be_changed_fails_the_run_with_a_sentence(
    two_pools: World, before_prod: Impostor, method: str
) -> None:
    before_prod.lie(method, http(PAGE))

    async with two_pools.daemon({"prod": through(two_pools, before_prod)}) as context:
        failed = await two_pools.run(context)
        following = await two_pools.run(context)

    assert failed.outcome is Outcome.FAILED
    assert (failed.error or "").startswith("pool prod: no answer from ")
    assert "a web page, not XML-RPC" in (failed.error or "")
    assert failed.remedy == Remedy.RECONNECT.value
    assert following.error is None, following.error
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


@pytest.mark.parametrize(
    "record",
    [
        {"uuid": "u"},
        {"uuid": "u", "status": 1},
        {"uuid": "u", "status": "failure", "error_info": "none"},
        {"uuid": "u", "status": "failure", "error_info": [{}]},
    ],
)
async def test_a_task_of_nonsense_fails_the_run_with_a_sentence(
    two_pools: World,
    before_prod: Impostor,
    record: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xorepd.xapi.pool.TASK_LOOK_S", 0.5)
    async with two_pools.daemon({"prod": through(two_pools, before_prod)}) as context:
        prod = context.pools[PoolName("prod")]
        await prod.refresh()
        before_prod.lie("task.get_record", value(record))
        with pytest.raises(XapiUnreachable, match="of task 'u'"):
            await prod.finished_task(Ref("OpaqueRef:gone"), 60)


async def test_a_hundred_thousand_records_are_taken_in(
    two_pools: World, before_prod: Impostor
) -> None:
    async with two_pools.daemon({"prod": through(two_pools, before_prod)}) as context:
        prod = context.pools[PoolName("prod")]
        await prod.refresh()
        many = [
            {"class": "task", "ref": f"OpaqueRef:{n}", "operation": "add",
             "snapshot": {"uuid": f"u-{n}", "status": "success"}}
            for n in range(100_000)
        ]  # fmt: skip
        before_prod.lie("event.from", value({"events": many, "token": "99999999,1"}))
        assert await prod.cache.wait_for(lambda: len(prod.cache.tasks) >= 100_000, 90)
        await prod.refresh()


@pytest.mark.parametrize("where", ["rpc", "inner"])
async def test_twenty_megabytes_of_error_text_come_to_one_sentence(
    two_pools: World, where: Where
) -> None:
    text = "x" * 20_000_000
    two_pools.lab.faults.add(Fault(where, "*.snapshot", error=("INTERNAL_ERROR", text)))

    with capture_logs() as logs:
        async with two_pools.daemon() as context:
            failed = await two_pools.run(context)

    assert failed.outcome is Outcome.FAILED
    assert failed.error is not None
    assert len(json.dumps(failed.to_json())) < 10_000
    assert max(len(str(line)) for line in logs) < 30_000
