"""A pool whose clock is wrong: everything that tells a time tells its own."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.lab.labclient import Api, get, logged_in, post, wire
from xorepd_lab.faults.faults import Fault
from xorepd_lab.faults.incidents import Incident
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.leaves("result", "session")]

YEARS = 30 * 365 * 86400


def away(time: Any) -> float:
    """Return by how many seconds a time that XAPI told is after ours."""
    told = datetime.strptime(str(time), "%Y%m%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return (told - datetime.now(UTC)).total_seconds()


def jump(seconds: float, pool: str = "prod") -> Incident:
    return Incident("clock-jump", pool=pool, seconds=seconds)


@pytest.mark.parametrize("seconds", [3 * 86400, YEARS, -YEARS], ids=["days", "ahead", "behind"])
async def test_all_that_a_pool_tells_is_by_its_own_clock(lab: Lab, api: Api, seconds: int) -> None:
    await lab.happen(jump(seconds))
    async with logged_in(lab) as later:
        task = await later.finished(await later("Async.VM.snapshot", await later.vm("web01"), "s"))
        (point,) = await later("VM.get_by_name_label", "s")
        (copy, *_) = await later("VDI.get_snapshots", await later.disk("web01-data"))
        (message,) = (await later("message.get_all_records")).values()
        session = await later("session.get_record", later.ref)
        host = await later("session.get_this_host", later.ref)

        times = {
            "host.get_servertime": await later("host.get_servertime", host),
            "host.get_server_localtime": await later("host.get_server_localtime", host),
            "VM.snapshot_time": await later("VM.get_snapshot_time", point),
            "VDI.snapshot_time": await later("VDI.get_snapshot_time", copy),
            "task.created": task["created"],
            "task.finished": task["finished"],
            "message.timestamp": message["timestamp"],
            "session.last_active": session["last_active"],
        }

    told = {name: away(time) for name, time in times.items()}
    assert {name: time for name, time in told.items() if abs(time - seconds) > 60} == {}


async def test_the_other_pool_is_right(lab: Lab, api: Api) -> None:
    await lab.happen(jump(86400))

    async with logged_in(lab, "dr") as there:
        (host,) = await there("host.get_all")
        assert abs(away(await there("host.get_servertime", host))) < 60


async def test_a_clock_may_jump_between_two_disks_of_a_snapshot(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")
    lab.faults.add(Fault("inner", "VDI.snapshot", skip=1, incident=jump(-7200)))

    point = await api("VM.snapshot", vm, "s")

    vbds = [await api("VBD.get_record", vbd) for vbd in await api("VM.get_VBDs", point)]
    times = {
        vbd["userdevice"]: away(await api("VDI.get_snapshot_time", vbd["VDI"]))
        for vbd in vbds
        if vbd["type"] == "Disk"
    }
    assert abs(times["0"]) < 60
    assert abs(times["1"] + 7200) < 60
    assert abs(away(await api("VM.get_snapshot_time", point)) + 7200) < 60


async def test_sessions_that_a_jump_makes_old_are_gone_at_the_next_pass(lab: Lab, api: Api) -> None:
    await lab.happen(jump(timedelta(hours=25).total_seconds()))
    lab.pools["prod"].sessions.sweep()

    assert not lab.pools["prod"].db.exists("session", api.ref)


async def test_no_answer_tells_the_time_in_its_header(lab: Lab, api: Api) -> None:
    body = (
        "<methodCall><methodName>pool.get_all</methodName><params><param>"
        f"<value>{api.ref}</value></param></params></methodCall>"
    ).encode()
    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(post(body))
        head, _ = await connection.response()
    async with wire(lab.pools["prod"].plain_url) as connection:
        vdi = await api.disk("web01-data")
        await connection.send(get(f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}"))
        stream = await connection.head()

    assert "\ndate:" not in (head + stream).lower()


async def test_a_clock_cannot_leave_the_calendar(lab: Lab) -> None:
    for seconds in (1e12, -1e12, 1e300):
        with pytest.raises(ValueError, match="no clock can be set so far"):
            await lab.happen(jump(seconds))

    assert abs((lab.pools["prod"].clock.time() - datetime.now(UTC)).total_seconds()) < 1
