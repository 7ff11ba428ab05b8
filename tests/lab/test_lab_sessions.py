"""Logging in and out."""

import asyncio
import xmlrpc.client

import pytest
import XenAPI

from tests.lab.labclient import Api, logged_in, post, wire
from xorepd.lab.faults import Fault
from xorepd.lab.lab import Lab
from xorepd.lab.sessions import MAX_PER_ORIGINATOR

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab


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
        other.session._session = dead

        lab_session = lab.pools["prod"].sessions
        with pytest.raises(Exception, match="SESSION_INVALID"):
            lab_session.check(dead)


async def test_a_session_describes_its_user(api: Api) -> None:
    assert await api("session.get_auth_user_name", api.ref) == "root"
    assert await api("session.get_is_local_superuser", api.ref) is True
    assert await api("session.get_originator", api.ref) == "tests"


async def test_logout_ends_a_wait_for_events(lab: Lab, api: Api) -> None:
    token = (await api("event.from", ["pool"], "", 0.0))["token"]
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


async def test_an_originator_may_hold_so_many_sessions(lab: Lab) -> None:
    pool = lab.pools["prod"]

    async def login(originator: str) -> str:
        return await pool.sessions.login(pool.master, "root", pool.password, originator)

    other = await login("other")
    first = await login("mine")
    for _ in range(MAX_PER_ORIGINATOR):
        await login("mine")

    mine = list(pool.db.select("session", originator="mine"))
    assert len(mine) == MAX_PER_ORIGINATOR
    assert first not in mine
    assert pool.db.exists("session", other)


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
