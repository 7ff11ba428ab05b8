"""One thread waits in `event.from` and feeds the cache; nothing polls.

A busy pool has news all the time. While no caller waits for them, the feed lets them gather for a
moment, so that a thousand small changes do not cost the pool a thousand answers.

A lost connection, a lost session or a new master ends a wait. The next wait begins with the empty
token, which brings all objects again. After each failure the feed pauses a little longer.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import structlog

from xorepd.errors import XapiUnreachable, XorepdError
from xorepd.ids import Ref
from xorepd.xapi.cache import EventBatch, PoolCache, generation
from xorepd.xapi.records import RECORDS, PoolRecord, read_record
from xorepd.xapi.rpc.session import Session

log = structlog.get_logger(__name__)

POLL_S = 30.0
"""Longest wait of the server for an event: below the idle limits of proxies on the way."""

_MARGIN_S = 30.0
"""Delay of an answer, after that wait, at which the connection counts as dead."""

COLLECTED_S = 0.05
"""How long news may gather while no caller needs them at once."""

_BACKOFF_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)


class EventFeed:
    """Keeps one cache up to date until it is stopped."""

    def __init__(self, session: Session, cache: PoolCache) -> None:
        self._session, self._cache = session, cache
        self._executor = ThreadPoolExecutor(1, f"events-{session.pool}")
        self._stop = threading.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Feed the cache until the session is closed, or until cancelled."""
        loop, token, failures = asyncio.get_running_loop(), "", 0
        try:
            while not self._stop.is_set():
                self._hurry.clear()  # the next answer serves all callers up to now
                try:
                    batch = await loop.run_in_executor(self._executor, self._poll, token)
                    await self._take(batch)
                except XorepdError as error:
                    if self._stop.is_set():
                        return
                    # After the next login the database may be another one, or lack our tasks.
                    token, failures = "", failures + 1
                    await self._cache.fail(error)
                    log.warning("events.interrupted", pool=self._session.pool, error=str(error))
                    longest = _BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1]
                    await self._rest(
                        longest * random.uniform(0.7, 1.3)
                    )  # spread the load of many daemons
                    continue
                failures, token = 0, batch.token
                await self._rest(COLLECTED_S)
        finally:
            self._stop.set()

    def hurry(self) -> None:
        """Fetch events now: a caller waits for what has happened until this moment."""
        self._hurry.set()

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    async def stop(self) -> None:
        """Release the thread. Close the session first, which ends the thread's wait."""
        self._stop.set()
        await asyncio.to_thread(self._executor.shutdown, wait=True)

    def _poll(self, token: str) -> EventBatch:
        answer = self._session.call_blocking(
            "event.from", (list(RECORDS), token, POLL_S), POLL_S + _MARGIN_S, renew=False
        )
        with self._understood():
            batch = parse_batch(answer, is_first=token == "")
            if batch.is_first and not any(isinstance(each, PoolRecord) for each in batch.changed):
                raise ValueError("the pool itself is not among them")
            return batch

    async def _take(self, batch: EventBatch) -> None:
        """Pass an answer to the cache, and read the classes of which events were lost."""
        for kind in await self._cache.apply(batch):
            cls = RECORDS[kind]
            raws: Mapping[str, Any] = await self._session.call(f"{cls.kind}.get_all_records")
            with self._understood():
                records = [read_record(cls, Ref(ref), raw) for ref, raw in raws.items()]
            log.info("events.refetched", pool=self._session.pool, kind=cls.kind, count=len(raws))
            await self._cache.replace(cls, records)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            reason = f"its events are not understood: {error}"
            raise XapiUnreachable(self._session.pool, self._session.url, reason) from error


def parse_batch(answer: Mapping[str, Any], *, is_first: bool) -> EventBatch:
    """Parse one answer of `event.from`; called in the feed's thread, because it may be long.

    Raises:
        ValueError: it is not an answer of `event.from`.
    """
    changed, deleted = [], []
    try:
        for event in answer["events"]:
            kind, ref = event["class"].lower(), Ref(event["ref"])
            if not isinstance(ref, str):
                raise ValueError("a reference is no text")
            cls = RECORDS.get(kind)
            if cls is None:
                continue
            snapshot = event.get("snapshot")
            if event["operation"] == "del" or snapshot is None:
                deleted.append((kind, ref))
            else:
                changed.append(read_record(cls, ref, snapshot))
        token, counts = str(answer["token"]), answer.get("valid_ref_counts", {})
        generation(token)  # or it is none
        return EventBatch(
            token=token,
            changed=tuple(changed),
            deleted=tuple(deleted),
            counts={kind.lower(): int(count) for kind, count in counts.items()},
            is_first=is_first,
        )
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from error
