"""event: what changed. Source: xapi: ocaml/xapi/xapi_event.ml."""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.model.datamodel import NOT_IN_DATABASE
from xorepd_lab.model.events import BATCH_S, Token, parse_subscription, wait_for_events
from xorepd_lab.model.failures import handle_invalid


@rpc("event.from(classes: set string, token: string, timeout: float)", asynchronous=False)
async def event_from(call: Call, classes: list[str], token: str, timeout: float) -> Any:
    wanted = parse_subscription(classes)
    batch_s = call.pool.clock.scaled(BATCH_S)
    return await wait_for_events(call.pool.db, wanted, token, timeout, call.session, batch_s)


@rpc("event.register(classes: set string)")
def register(call: Call, classes: list[str]) -> None:
    call.pool.old_events.register(call.session, classes)


@rpc("event.unregister(classes: set string)")
def unregister(call: Call, classes: list[str]) -> None:
    call.pool.old_events.unregister(call.session, classes)


@rpc("event.next()", asynchronous=False)
async def event_next(call: Call) -> Any:
    return await call.pool.old_events.next(call.session, call.pool.clock.scaled(BATCH_S))


@rpc("event.get_current_id()", asynchronous=False)
def get_current_id(call: Call) -> int:
    """Return the number of the next event for `event.next`; `event.from` does not count so."""
    return call.pool.old_events.next_number


@rpc("event.inject(class: string, ref: string)", asynchronous=False)
def inject(call: Call, cls: str, ref: str) -> str:
    """Touch an object; the token is from just before, so that it yields at least this event.

    The class is written as in the data model: `VM`, not `vm`.
    """
    db = call.pool.db
    if cls not in db.classes or cls in NOT_IN_DATABASE:
        raise handle_invalid(cls, ref)
    db.row(cls, ref)
    token = str(Token(db.generation))
    db.touch(cls, ref)
    return token
