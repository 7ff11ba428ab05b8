"""event: what changed. Source: xapi: ocaml/xapi/xapi_event.ml."""

from typing import Any

from xorepd.lab.datamodel import CLASSES
from xorepd.lab.dispatch import Call, rpc
from xorepd.lab.events import BATCH_S, make_token, parse_subscription, wait_for_events
from xorepd.lab.failures import handle_invalid

_BY_NAME = {name.lower(): name for name in CLASSES}


@rpc("event.from(classes: set string, token: string, timeout: float)", asynchronous=False)
async def event_from(call: Call, classes: list[str], token: str, timeout: float) -> Any:
    wanted = parse_subscription(classes)
    batch_s = call.pool.clock.scaled(BATCH_S)
    return await wait_for_events(call.pool.db, wanted, token, timeout, call.session, batch_s)


@rpc("event.get_current_id()", asynchronous=False)
def get_current_id(call: Call) -> int:
    return call.pool.db.generation


@rpc("event.inject(class: string, ref: string)", asynchronous=False)
def inject(call: Call, cls: str, ref: str) -> str:
    """Touch an object; the token is from just before, so that it yields at least this event."""
    name = _BY_NAME.get(cls.lower())
    if name is None:
        raise handle_invalid(cls, ref)
    db = call.pool.db
    db.row(name, ref)
    token = make_token(db.generation)
    db.touch(name, ref)
    return token
