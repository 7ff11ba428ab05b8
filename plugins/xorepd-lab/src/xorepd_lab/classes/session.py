"""session: log in and out. Source: xapi: ocaml/xapi/xapi_session.ml."""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.sessions import ROOT
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.model.failures import ApiError


@rpc(
    'session.login_with_password(uname: string, pwd: string, version: string = "1.1",'
    ' originator: string = "")',
    asynchronous=False,
    session=False,
)
async def login_with_password(
    call: Call, uname: str, pwd: str, version: str, originator: str
) -> str:
    return await call.pool.sessions.login(call.host, uname, pwd, originator)


@rpc(
    "session.slave_local_login_with_password(uname: string, pwd: string)",
    asynchronous=False,
    session=False,
)
async def slave_local_login_with_password(call: Call, uname: str, pwd: str) -> str:
    """Log root in to one member, for calls that it answers without its master."""
    return await call.pool.sessions.open_local(call.host, uname, pwd)


@rpc("session.slave_login(host: ref host, psecret: string)", asynchronous=False, session=False)
def slave_login(call: Call, host: str, psecret: str) -> None:
    """Refuse: a lab has no pool secret, so that no guess can be right."""
    raise ApiError("SESSION_AUTHENTICATION_FAILED", host, "Pool credentials invalid")


@rpc("session.slave_local_login(psecret: string)", asynchronous=False, session=False)
def slave_local_login(call: Call, psecret: str) -> None:
    """Refuse as `session.slave_login` does."""
    slave_login(call, "localhost", psecret)


@rpc("session.logout()", asynchronous=False)
def logout(call: Call) -> None:
    call.pool.sessions.logout(call.session)


@rpc("session.local_logout()", asynchronous=False)
def local_logout(call: Call) -> None:
    call.pool.sessions.close_local(call.session)


@rpc("session.change_password(old_pwd: string, new_pwd: string)", asynchronous=False)
def change_password(call: Call, old_pwd: str, new_pwd: str) -> None:
    """Change root's password everywhere in the pool; the old one is not looked at."""
    pool = call.pool
    if not pool.db.get("session", call.session, "is_local_superuser"):
        text = f"Failed to change password for user {ROOT}"
        raise ApiError("USER_IS_NOT_LOCAL_SUPERUSER", text)
    pool.password = pool.sessions.passwords[ROOT] = new_pwd


@rpc("session.get_all_subject_identifiers()")
def get_all_subject_identifiers(call: Call) -> list[str]:
    """Return the identifiers of all users of the directory service that are logged in."""
    db = call.pool.db
    sessions = [db.record("session", ref) for ref in db.refs("session")]
    return sorted({s["auth_user_sid"] for s in sessions if not s["is_local_superuser"]})


@rpc("session.logout_subject_identifier(subject_identifier: string)")
def logout_subject_identifier(call: Call, subject_identifier: str) -> None:
    call.pool.sessions.logout_subject(subject_identifier, keep=call.session)


@rpc("session.get_tasks(self: ref session)", asynchronous=False)
def get_tasks(call: Call, session: str) -> list[str]:
    call.pool.db.row("session", session)
    return call.pool.tasks.of_session(session)


@rpc("session.get_record(self: ref session)", asynchronous=False)
def get_record(call: Call, session: str) -> dict[str, Any]:
    return {**call.pool.db.record("session", session), "tasks": get_tasks(call, session)}
