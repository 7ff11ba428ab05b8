"""Faults: what a test or a person makes go wrong."""

import asyncio
import http.client
import json
import xmlrpc.client
from typing import Any

import pytest
import XenAPI

from tests.lab.labclient import NULL, Api, exchange, get, logged_in, post, put, until, vdi_record
from xorepd_lab.faults.faults import BadFault, Fault, Faults
from xorepd_lab.faults.incidents import Incident
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab


def test_a_rule_skips_then_fires_then_is_spent() -> None:
    faults = Faults()
    rule = faults.add(Fault("rpc", "VDI.*", skip=1, times=2))

    met = [faults.pick("rpc", "VDI.create", "prod", "h1") is not None for _ in range(4)]

    assert met == [False, True, True, False]
    assert faults.pick("rpc", "VM.create", "prod", "h1") is None
    assert (rule.seen, rule.fired) == (4, 2)


async def test_a_call_fails_with_any_error(lab: Lab, api: Api) -> None:
    vm = await api.vm("db01")
    lab.faults.add(
        Fault("rpc", "VM.snapshot", skip=1, error=("SR_BACKEND_FAILURE_81", "", "x", ""))
    )

    await api("VM.snapshot", vm, "one")
    task = await api.finished(await api("Async.VM.snapshot", vm, "two"))
    await api("VM.snapshot", vm, "three")

    assert task["error_info"] == ["SR_BACKEND_FAILURE_81", "", "x", ""]


@pytest.mark.parametrize(
    ("fault", "done"),
    [
        (Fault("rpc", "VM.snapshot", reset=True, times=2), 0),
        (Fault("rpc", "VM.snapshot", drop_response=True, times=2), 2),
    ],
    ids=["reset", "drop_response"],
)
async def test_a_cut_connection_does_not_say_whether_it_was_done(
    lab: Lab, api: Api, fault: Fault, done: int
) -> None:
    vm = await api.vm("db01")
    lab.faults.add(fault)

    # Python's xmlrpc.client sends a call once more, whatever it is, when the connection breaks.
    with pytest.raises((OSError, http.client.HTTPException)):
        await api("VM.snapshot", vm, "s")

    assert len(await api("VM.get_snapshots", vm)) == done


@pytest.mark.parametrize(
    ("fault", "length", "status"),
    [
        (Fault("export", cut_at=1000), 1000, "failure"),
        (Fault("export", end_at=1000), 1000, "failure"),
        (Fault("export", append=7), (32 << 20) + 7, "success"),
        (Fault("export", flip_at=1000), 32 << 20, "success"),
    ],
    ids=["cut", "ended", "longer", "flipped"],
)
async def test_bodies_are_spoilt_as_told(
    lab: Lab, api: Api, fault: Fault, length: int, status: str
) -> None:
    vdi = await api("VDI.snapshot", await api.disk("web01-data"))
    url = lab.pools["prod"].plain_url
    task = await api("task.create", "t", "")
    good = await exchange(url, get(f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}"))
    lab.faults.add(fault)

    bad = await exchange(url, get(f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}"))

    good, bad = (answer.partition(b"\r\n\r\n")[2] for answer in (good, bad))
    assert (await api.finished(task))["status"] == status
    if fault.cut_at:
        assert len(bad) <= length
    else:
        assert len(bad) == length
    if fault.flip_at:
        assert bad[1000] == good[1000] ^ 0xFF
        assert bad[:1000] + bad[1001:] == good[:1000] + good[1001:]


async def test_call_may_be_held_when_its_work_is_done_and_nobody_was_told(
    lab: Lab, api: Api
) -> None:
    held = lab.faults.add(Fault("rpc", "VM.snapshot", stall=True, moment="after"))
    vm = await api.vm("web01")
    task = await api("Async.VM.snapshot", vm, "held")
    await held.stalled.wait()
    db = lab.pools["prod"].db

    [snapshot] = db.get("VM", vm, "snapshots")
    assert db.get("task", task, "status") == "pending"

    held.release()
    assert snapshot in (await api.finished(task))["result"]


async def test_clearing_lets_stalled_calls_go_on(lab: Lab, api: Api) -> None:
    fault = lab.faults.add(Fault("rpc", "VM.snapshot", stall=True))
    task = await api("Async.VM.snapshot", await api.vm("db01"), "s")
    await fault.stalled.wait()

    lab.faults.clear()

    assert (await api.finished(task))["result"] != f"<value>{NULL}</value>"


async def test_faults_can_be_for_one_host(lab: Lab, api: Api) -> None:
    lab.faults.add(Fault("rpc", "VM.get_all", host="prod-h2", error=("HOST_OFFLINE", "x")))

    assert await api("VM.get_all")


# -- rules as data ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        {"where": "rpc", "match": "VM.*", "error": ["HOST_OFFLINE", "x"], "moment": "after"},
        {"where": "export", "cut_at": 0, "pool": "prod", "host": "prod-h1", "times": None},
        {"where": "any", "reset": True, "skip": 3, "chunk": 1 << 20},
        {"where": "nbd", "match": "read", "bytes_per_s": 1000.0, "object": "web01-root"},
        {"where": "import", "incident": {"kind": "sr-full", "bytes": 5}, "incident_at": 4096},
        {"where": "inner", "delay_s": 0.5, "probability": 0.5, "seed": 7, "sr": "prod-shared"},
        {"where": "rpc", "task_never_ends": True, "error": ["X"]},
        {"where": "rpc", "error": ["X", "y"], "error_pad": 1 << 20},
        {"where": "greeting", "stall": True, "times": None},
        {"where": "rpc", "endless": True, "rewrite": ["<name>cert</name>", ""]},
    ],
    ids=lambda rule: rule["where"],
)
def test_a_rule_survives_json(rule: dict[str, Any]) -> None:
    assert Fault.from_json(json.loads(json.dumps(rule))).to_json() == rule


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ([], "fault: it must be a JSON object"),
        ({}, "fault: where: Field required"),
        ({"where": "rpc"}, "the fault does nothing; give one of reset, http_status"),
        ({"where": "door", "reset": True}, "fault: where: Input should be 'rpc', 'inner'"),
        ({"where": "rpc", "rest": True}, "fault: rest: Unexpected keyword argument"),
        ({"where": "rpc", "stall": True, "seen": 1}, "fault: seen: Unexpected keyword argument"),
        ({"where": "rpc", "delay_s": "long"}, "fault: delay_s: Input should be a valid number"),
        ({"where": "rpc", "error": "X"}, "fault: error: Input should be a valid tuple"),
        ({"where": "rpc", "reset": True, "times": 0}, "times 1 or more"),
        ({"where": "rpc", "reset": True, "probability": 0.0}, "probability must be above 0"),
        ({"where": "export", "cut_at": 1, "error_at": 1}, "error_at needs error"),
        ({"where": "rpc", "cut_at": -1}, "cut_at must be 0 or more"),
        ({"where": "rpc", "http_status": 100}, "http_status must be that of an answer"),
        ({"where": "rpc", "reset": True, "error_pad": 5}, "error_pad needs error"),
        ({"where": "rpc", "rewrite": ["(", ""]}, "rewrite is no pattern and replacement: missing"),
        ({"where": "rpc", "rewrite": ["a", "\\1"]}, "rewrite is no pattern and replacement: inv"),
        ({"where": "rpc", "rewrite": ["a"]}, "fault: rewrite"),
        (
            {"where": "rpc", "incident": {"kind": "flood"}},
            "fault: incident: no incident 'flood'; choose one of toolstack-restart, host-crash",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_rule_is_refused_in_one_sentence(rule: Any, complaint: str) -> None:
    with pytest.raises(BadFault) as refused:
        Fault.from_json(rule)

    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


# -- which requests -----------------------------------------------------------------------------


def test_chance_is_decided_by_its_seed() -> None:
    def met(seed: int | None) -> list[bool]:
        faults = Faults()
        faults.add(Fault("rpc", reset=True, times=None, probability=0.5, seed=seed))
        return [faults.pick("rpc", "VM.start", "prod", "h1") is not None for _ in range(64)]

    assert met(1) == met(1)
    assert met(1) != met(2)
    assert 0 < sum(met(3)) < 64


@pytest.mark.parametrize(
    ("where", "name", "meets"),
    [
        ("rpc", "VM.start", True),
        ("rpc", "VM.get_record", False),
        ("rpc", "event.from", False),
        ("rpc", "VDI.forget", True),
        ("import", "raw", True),
        ("export", "vhd", True),  # it attaches the disk
        ("nbd", "connect", True),
        ("nbd", "read", False),
    ],
)
def test_a_rule_can_be_for_what_changes_something(where: str, name: str, meets: bool) -> None:
    faults = Faults()
    faults.add(Fault("any", reset=True, changing=True))

    assert (faults.pick(where, name, "prod", "h1") is not None) is meets


def test_a_seed_that_was_drawn_is_told() -> None:
    rule = Fault("rpc", reset=True, probability=0.5)

    again = Fault.from_json(rule.to_json())

    assert again.seed == rule.seed is not None


@pytest.mark.parametrize("by", ["ref", "uuid", "name"])
async def test_a_rule_can_be_for_one_object(faults: Faults, api: Api, by: str) -> None:
    vm = await api.vm("db01")
    name = {"ref": vm, "uuid": await api("VM.get_uuid", vm), "name": "db01"}[by]
    faults.add(Fault("rpc", object=name, times=None, error=("HOST_OFFLINE", "x")))

    assert await api("VM.get_uuid", await api.vm("web01"))
    assert await api.failure("VM.get_power_state", vm) == ["HOST_OFFLINE", "x"]


async def test_a_rule_can_be_for_one_sr(lab: Lab, faults: Faults, api: Api) -> None:
    shared, local = await api.disk("web01-data"), await api.disk("db01-data")
    uuid = await api("VDI.get_uuid", local)
    faults.add(Fault("any", sr="prod-local", times=None, error=("HOST_OFFLINE", "x")))
    url = lab.pools["prod"].plain_url

    there, elsewhere = addresses(lab, "prod-h1", "prod-h2")

    def request(vdi: str) -> bytes:
        return get(f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}&format=vhd")

    assert await api.failure("VDI.snapshot", local) == ["HOST_OFFLINE", "x"]
    snapshot = await api("VDI.snapshot", shared)
    assert b"HOST_OFFLINE" not in await exchange(url, request(snapshot))
    assert b"HOST_OFFLINE" in await exchange(url.replace(there, elsewhere), request(uuid))


def addresses(lab: Lab, *hosts: str) -> list[str]:
    pool = lab.pools["prod"]
    return [pool.address(pool.host(host)) for host in hosts]


async def test_the_nth_request_is_counted_over_all_kinds(
    lab: Lab, faults: Faults, api: Api
) -> None:
    vdi = await api("VDI.snapshot", await api.disk("web01-root"))
    url = lab.pools["prod"].plain_url

    async def work() -> str:
        try:
            await api("VDI.get_uuid", vdi)
            body = await exchange(url, get(f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}"))
            if b"MADE" in body:
                return "export"
            await api("VDI.get_record", vdi)
        except XenAPI.Failure:
            return "call"
        return "done"

    seen = []
    for number in range(1, 6):
        rule = faults.fail_nth(number, error=("MADE",))
        seen.append((await work(), rule.seen, rule.fired))
        faults.clear()

    assert seen == [
        ("call", 1, 1),
        ("export", 2, 1),
        ("call", 3, 1),
        ("done", 3, 0),
        ("done", 3, 0),
    ]


async def test_pieces_of_a_stream_count_as_well(lab: Lab, faults: Faults, api: Api) -> None:
    vdi = await api("VDI.snapshot", await api.disk("web01-data"))
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}"
    whole = 32 << 20
    lengths = []

    for number in (2, 3, 9, 10):
        rule = faults.fail_nth(number, chunk=4 << 20, error=("MADE",))
        answer = await exchange(lab.pools["prod"].plain_url, get(path))
        body, failed, _ = answer.partition(b"\r\n\r\n")[2].partition(b"HTTP/1.1 500")
        lengths.append((len(body), bool(failed), rule.seen))
        faults.clear()

    assert lengths == [(4 << 20, True, 2), (8 << 20, True, 3), (whole, False, 8), (whole, False, 8)]


# -- what happens ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "said", "got"),
    [
        ({"cut_at": 10}, 0, 10),
        ({"end_at": 10}, 0, 10),
        ({"append": 7}, 0, 7),
        ({"length_off": 5}, 5, 0),
        ({"length_off": -5}, -5, 0),
        ({"flip_at": 3}, 0, 0),
    ],
    ids=["cut", "ended", "longer", "says-more", "says-less", "flipped"],
)
async def test_answers_to_calls_are_spoilt_as_told(
    lab: Lab, faults: Faults, api: Api, what: dict[str, Any], said: int, got: int
) -> None:
    body = xmlrpc.client.dumps((api.ref,), "VM.get_all").encode()
    good = await exchange(lab.pools["prod"].plain_url, post(body, version="1.0"))
    good_body = good.partition(b"\r\n\r\n")[2]
    faults.add(Fault("rpc", "VM.get_all", **what))

    bad = await exchange(lab.pools["prod"].plain_url, post(body, version="1.0"))

    head, _, bad_body = bad.partition(b"\r\n\r\n")
    assert f"content-length: {len(good_body) + said}" in head.decode().lower()
    if "flip_at" in what:
        assert bad_body[3] == good_body[3] ^ 0xFF
        assert bad_body[4:] == good_body[4:]
    elif "append" in what:
        assert bad_body == good_body + bytes(got)
    elif got:
        assert bad_body == good_body[:got]
    else:
        assert bad_body == good_body


@pytest.mark.parametrize("status", [500, 503])
async def test_a_request_is_answered_with_an_http_error(
    lab: Lab, faults: Faults, api: Api, status: int
) -> None:
    vm = await api.vm("db01")
    faults.add(Fault("rpc", "VM.snapshot", http_status=status, times=2))

    with pytest.raises(xmlrpc.client.ProtocolError) as failed:
        await api("VM.snapshot", vm, "s")

    assert failed.value.errcode == status
    assert await api("VM.get_snapshots", vm) == []
    assert lab.calls[-2].outcome == str(status)


async def test_a_call_can_fail_after_its_work(faults: Faults, api: Api) -> None:
    vm = await api.vm("db01")
    faults.add(Fault("rpc", "VM.snapshot", error=("INTERNAL_ERROR", "late"), moment="after"))

    assert await api.failure("VM.snapshot", vm, "s") == ["INTERNAL_ERROR", "late"]

    assert len(await api("VM.get_snapshots", vm)) == 1


@pytest.mark.leaves("task")
@pytest.mark.parametrize(("error", "done"), [((), 1), (("X",), 0)], ids=["done", "undone"])
async def test_a_task_can_stay_pending_for_ever(
    lab: Lab, faults: Faults, api: Api, error: tuple[str, ...], done: int
) -> None:
    vm = await api.vm("db01")
    db = lab.pools["prod"].db
    faults.add(Fault("rpc", "VM.snapshot", task_never_ends=True, error=error))

    task = await api("Async.VM.snapshot", vm, "s")

    await until(lambda: not snapshots_run())
    assert len(await api("VM.get_snapshots", vm)) == done
    assert db.get("task", task, "status") == "pending"


def snapshots_run() -> bool:
    return any(each.get_name() == "task Async.VM.snapshot" for each in asyncio.all_tasks())


@pytest.mark.leaves("task")
async def test_a_stream_can_leave_its_task_pending(lab: Lab, faults: Faults, api: Api) -> None:
    vdi = await api("VDI.snapshot", await api.disk("web01-root"))
    task = await api("task.create", "t", "")
    faults.add(Fault("export", task_never_ends=True))
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}"

    body = (await exchange(lab.pools["prod"].plain_url, get(path))).partition(b"\r\n\r\n")[2]

    assert len(body) == 64 << 20
    assert await api("task.get_status", task) == "pending"


async def test_an_export_fails_in_the_middle_of_its_body(
    lab: Lab, faults: Faults, api: Api
) -> None:
    vdi = await api("VDI.snapshot", await api.disk("web01-data"))
    task = await api("task.create", "t", "")
    faults.add(Fault("export", error=("SR_BACKEND_FAILURE_46", "", "gone", ""), error_at=5000))
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}"

    answer = await exchange(lab.pools["prod"].plain_url, get(path))

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert body[5000:].startswith(b"HTTP/1.1 500 Internal Error")
    assert b"SR_BACKEND_FAILURE_46: [ ; gone;  ]" in body
    assert (await api.finished(task))["error_info"][0] == "SR_BACKEND_FAILURE_46"


async def test_an_incident_comes_before_or_after_a_call(lab: Lab, faults: Faults, api: Api) -> None:
    vm = await api.vm("db01")
    for moment in ("before", "after"):
        faults.add(
            Fault(
                "rpc",
                "VM.add_tags",
                moment=moment,
                incident=Incident("session-loss", originator="other"),
            )
        )
    async with logged_in(lab, originator="other") as other:
        lost = other.ref

        await api("VM.add_tags", vm, "x")

        assert not lab.pools["prod"].db.exists("session", lost)
        assert await api("VM.get_tags", vm) == ["x"]


async def test_a_toolstack_dies_in_the_middle_of_a_call(lab: Lab, faults: Faults, api: Api) -> None:
    vm = await api.vm("db01")
    session = api.ref
    restart = Incident("toolstack-restart")
    faults.add(Fault("inner", "VDI.snapshot", incident=restart, moment="after"))
    url = lab.pools["prod"].plain_url
    body = xmlrpc.client.dumps((session, vm, "s"), "VM.snapshot").encode()

    assert await exchange(url, post(body)) == b""

    assert not lab.pools["prod"].db.exists("session", session)
    await until(lambda: lab.pools["prod"].life.serves())
    async with logged_in(lab) as again:
        snapshots = await again("VDI.get_snapshots", await again.disk("db01-data"))
        assert len(snapshots) == 1, "the disk's snapshot was made before the toolstack died"


async def test_an_sr_fills_up_in_the_middle_of_an_import(
    lab: Lab, faults: Faults, api: Api
) -> None:
    sr = lab.pools["prod"].srs["prod-shared"].ref
    vdi = await api("VDI.create", vdi_record(sr, 32 << 20))
    task = await api("task.create", "t", "")
    faults.add(Fault("import", incident=Incident("sr-full", sr="prod-shared"), incident_at=8 << 20))
    path = f"/import_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}"

    await exchange(lab.pools["prod"].plain_url, put(path, b"x" * (32 << 20)))

    assert (await api.finished(task))["error_info"][0] == "VDI_IO_ERROR"


async def test_a_stream_can_be_cut_at_each_of_its_pieces(
    lab: Lab, faults: Faults, api: Api
) -> None:
    sr = lab.pools["prod"].srs["prod-shared"].ref
    vdi = await api("VDI.create", vdi_record(sr, 4 << 20))
    path = f"/import_raw_vdi?session_id={api.ref}&vdi={vdi}"
    seen = []

    for number in range(1, 7):
        rule = faults.fail_nth(number, chunk=1 << 20, drop_response=True)
        answer = await exchange(lab.pools["prod"].plain_url, put(path, b"x" * (4 << 20)))
        seen.append((rule.seen, rule.fired, lab.calls[-1].moved >> 20, answer != b""))
        faults.clear()

    assert seen[0][:2] == (1, 1)
    assert [each[:3] for each in seen[1:4]] == [(2, 1, 1), (3, 1, 2), (4, 1, 3)]
    assert seen[5] == (seen[5][0], 0, 4, True)
