"""The recorder: every request from outside, in order, and who sent it."""

import asyncio
import base64

import pytest

from tests.lab.labclient import Api, exchange, get, logged_in, put, vdi_record
from xorepd_lab.calls.recorder import Caller, Recorder
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab


async def test_two_clients_can_be_told_apart(lab: Lab, api: Api) -> None:
    async with logged_in(lab, originator="other tool") as other:
        for _ in range(3):
            await asyncio.gather(api("VM.get_all"), other("VM.get_all"))
        refs = {"tests": api.ref, "other tool": other.ref}

    calls = [call for call in lab.calls if call.name == "VM.get_all"]
    assert sorted(call.originator for call in calls) == ["other tool"] * 3 + ["tests"] * 3
    assert all(call.session == refs[call.originator] for call in calls)


async def test_no_password_is_kept(lab: Lab, api: Api) -> None:
    password = lab.pools["prod"].password
    await api("session.change_password", password, password)

    assert [call.name for call in lab.calls][-1] == "session.change_password"
    assert password not in repr(lab.calls)


async def test_streams_are_listed_with_their_callers_and_their_bytes(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    vdi = await api("VDI.create", vdi_record(pool.srs["prod-shared"].ref))
    login = base64.b64encode(f"root:{pool.password}".encode()).decode()
    path = f"/export_raw_vdi?vdi={vdi}"
    before = len(lab.calls)

    await exchange(pool.plain_url, get(f"{path}&session_id={api.ref}"))
    await exchange(pool.plain_url, get(path, extra=f"Authorization: Basic {login}\r\n"))
    await exchange(pool.plain_url, get(path))
    await exchange(
        pool.plain_url, put(f"/import_raw_vdi?session_id={api.ref}&vdi={vdi}", bytes(1 << 20))
    )

    size = 4 << 20
    told = [(c.kind, c.outcome, c.originator, c.moved) for c in lab.recorder.since(before)]
    assert told == [
        ("export", "ok", "tests", size),
        ("export", "ok", "", size),
        ("export", "401", "", 0),
        ("import", "ok", "tests", 1 << 20),
    ]
    assert lab.calls[before].arguments == (("vdi", vdi),)


def test_the_list_forgets_its_older_half_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xorepd_lab.calls.recorder.MOST", 10)
    recorder = Recorder()

    for number in range(11):
        recorder.note("prod", "h1", "rpc", f"VM.{number}", (), Caller("ref", "me"))

    assert [call.name for call in recorder.calls] == [f"VM.{number}" for number in range(5, 11)]
    assert [call.number for call in recorder.since(9)] == [9, 10]
