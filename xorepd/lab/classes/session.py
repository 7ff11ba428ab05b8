"""session: log in and out. Source: xapi: ocaml/xapi/xapi_session.ml."""

from xorepd.lab.dispatch import Call, rpc


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


@rpc("session.logout()", asynchronous=False)
def logout(call: Call) -> None:
    call.pool.sessions.logout(call.session)
