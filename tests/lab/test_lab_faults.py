"""Faults: what a test or a person makes go wrong."""

import http.client

import pytest

from tests.lab.labclient import NULL, Api, exchange, get
from xorepd.lab.faults import Fault, Faults
from xorepd.lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab


def test_a_rule_skips_then_fires_then_is_spent() -> None:
    faults = Faults()
    rule = faults.add(Fault("rpc", "VDI.*", skip=1, times=2))

    met = [faults.pick("rpc", "VDI.create", "prod", "h1") is rule for _ in range(4)]

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


async def test_clearing_lets_stalled_calls_go_on(lab: Lab, api: Api) -> None:
    fault = lab.faults.add(Fault("rpc", "VM.snapshot", stall=True))
    task = await api("Async.VM.snapshot", await api.vm("db01"), "s")
    await fault.stalled.wait()

    lab.faults.clear()

    assert (await api.finished(task))["result"] != f"<value>{NULL}</value>"


async def test_faults_can_be_for_one_host(lab: Lab, api: Api) -> None:
    lab.faults.add(Fault("rpc", "VM.get_all", host="prod-h2", error=("HOST_OFFLINE", "x")))

    assert await api("VM.get_all")
