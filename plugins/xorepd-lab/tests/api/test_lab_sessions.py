"""Logging in and out."""

import asyncio
import xmlrpc.client
from datetime import timedelta

import pytest
import XenAPI

from tests.lab.labclient import Api, logged_in, post, wire
from xorepd_lab.calls.sessions import MAX_ANONYMOUS, MAX_PER_GROUP
from xorepd_lab.faults.faults import Fault
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.leaves("task", "session")]


async def test_a_wrong_password_is_refused(lab: Lab) -> None:
    api = Api(lab.pools["prod"])
    try:
        with pytest.raises(XenAPI.Failure) as refused:
            await asyncio.to_thread(api.session.login_with_password, "root", "wrong")
    finally:
        api.close()

    assert refused.value.details[:2] == ["SESSION_AUTHENTICATION_FAILED", "root"]


async def test_a_dead_session_is_invalid(lab: Lab, api: Api) -> None:
    async with logged_in(lab) as other:
        dead = other.ref
        await other("session.logout")
        other.session.adopt(dead)

        lab_session = lab.pools["prod"].sessions
        with pytest.raises(Exception, match="SESSION_INVALID"):
            lab_session.check(dead)


async def test_a_session_describes_its_user(api: Api) -> None:
    assert await api("session.get_auth_user_name", api.ref) == "root"
    assert await api("session.get_is_local_superuser", api.ref) is True
    assert await api("session.get_originator", api.ref) == "tests"


async def test_logout_ends_a_wait_for_events(lab: Lab, api: Api) -> None:
    token = (await api("event.from", ["*"], "", 0.0))["token"]
    params = (api.ref, ["pool"], token, 30.0)
    body = xmlrpc.client.dumps(params, "event.from").encode()

    async with wire(lab.pools["prod"].plain_url) as connection:
        fault = lab.faults.add(Fault("rpc", "event.from", stall=True))
        await connection.send(post(body))
        await fault.stalled.wait()
        fault.release()
        await api("session.logout")
        _, answer = await connection.response()

    assert b"<value>SESSION_INVALID</value>" in answer


@pytest.mark.parametrize(("originator", "limit"), [("mine", MAX_PER_GROUP), ("", MAX_ANONYMOUS)])
async def test_an_originator_may_keep_so_many_sessions(
    lab: Lab, originator: str, limit: int
) -> None:
    pool = lab.pools["prod"]

    async def login(name: str, last_active: str) -> str:
        ref = await pool.sessions.login(pool.master, "root", pool.password, name)
        pool.db.set("session", ref, last_active=last_active)
        return ref

    now = pool.clock.now()
    before = (pool.clock.time() - timedelta(seconds=100)).strftime("%Y%m%dT%H:%M:%SZ")
    other = await login("other", before)
    first, busy = await login(originator, before), await login(originator, before)
    pool.tasks.create("work", session=busy)
    for _ in range(limit):
        await login(originator, now)

    pool.sessions.sweep()

    mine = list(pool.db.select("session", originator=originator))
    assert len(mine) == limit + 1
    assert busy in mine
    assert first not in mine
    assert pool.db.exists("session", other)


async def test_who_is_idle_for_a_day_is_logged_out(lab: Lab) -> None:
    pool = lab.pools["prod"]
    login = (pool.master, "root", pool.password, "mine")
    _idle, active = [await pool.sessions.login(*login) for _ in range(2)]
    pool.clock.offset += timedelta(seconds=86000)
    pool.sessions.check(active)
    pool.clock.offset += timedelta(seconds=500)

    pool.sessions.sweep()

    assert list(pool.db.select("session", originator="mine")) == [active]


async def test_use_is_noted_only_now_and_then(lab: Lab) -> None:
    pool = lab.pools["prod"]
    session = await pool.sessions.login(pool.master, "root", pool.password, "mine")
    began = pool.db.get("session", session, "last_active")

    pool.clock.offset += timedelta(seconds=500)
    pool.sessions.check(session)
    assert pool.db.get("session", session, "last_active") == began

    pool.clock.offset += timedelta(seconds=200)
    pool.sessions.check(session)
    assert pool.db.get("session", session, "last_active") > began


async def test_roots_password_can_be_changed(lab: Lab, api: Api) -> None:
    await api("session.change_password", "whatever it was", "new")

    assert lab.pools["prod"].password == "new"
    async with logged_in(lab) as again:
        assert await again("pool.get_all")


async def test_a_session_knows_its_tasks(api: Api) -> None:
    task = await api("task.create", "t", "")

    assert await api("session.get_tasks", api.ref) == [task]
    assert (await api("session.get_record", api.ref))["tasks"] == [task]


async def test_members_ask_their_master_about_sessions(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    member = f"http://{pool.address(pool.host('prod-h2'))}:{pool.http_port}"

    async def ask(method: str, *params: str) -> bytes:
        body = xmlrpc.client.dumps(params, method).encode()
        async with wire(member) as connection:
            await connection.send(post(body))
            return (await connection.response())[1]

    assert b"<value>SESSION_INVALID</value>" in await ask("VM.get_all", "OpaqueRef:dead")
    assert b"<value>HOST_IS_SLAVE</value>" in await ask("VM.get_all", api.ref)
    internal = pool.sessions.open_internal(pool.master)
    assert b"<value>Success</value>" in await ask("pool.get_all", internal)
    local = await ask("session.slave_local_login_with_password", "root", pool.password)
    assert b"<value>Success</value>" in local


async def test_a_restarted_toolstack_knows_nobody(lab: Lab, api: Api) -> None:
    task = await api("task.create", "t", "")
    params = (api.ref, ["pool"], "", 30.0)

    lab.pools["prod"].restart_toolstack()

    body = xmlrpc.client.dumps(params, "event.from").encode()
    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(post(body))
        _, answer = await connection.response()
    assert b"<value>SESSION_INVALID</value>" in answer
    # The SDK logs in again by itself.
    assert (await api.failure("task.get_status", task))[0] == "HANDLE_INVALID"
