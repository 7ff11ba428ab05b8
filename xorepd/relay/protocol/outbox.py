"""The queue of frames to send on a connection, and their order. No I/O.

answers and credit        in the order in which they came, WINDOWs of one channel added up
blocks and offers         in turn: a channel has one of them here at most
"""

from __future__ import annotations

import asyncio
from collections import deque

from xorepd.errors import DataError
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.channel import Frame
from xorepd.relay.protocol.frames import VERDICTS
from xorepd.relay.protocol.messages import Message


class Outbox:
    """The frames of one connection that have not been sent."""

    def __init__(self) -> None:
        self._waiting: deque[Frame] = deque()
        self._urgent: deque[Frame] = deque()
        self._grants: dict[int, int] = {}
        self._pong: wire.Pong | None = None
        self._current: Frame | None = None
        self._work: asyncio.Future[None] | None = None

    @property
    def size(self) -> int:
        """Return how many bytes of blocks and offers wait, or are being sent."""
        waiting = (*self._waiting, self._current) if self._current else self._waiting
        return sum(frame.length for frame in waiting)

    # -- putting in ------------------------------------------------------------------------------

    def put(self, frame: Frame) -> asyncio.Future[None]:
        """Add a frame behind those that wait; the future is done when it has been sent."""
        frame.sent = asyncio.get_running_loop().create_future()
        self._waiting.append(frame)
        self._stir()
        return frame.sent

    def take_back(self, frame: Frame) -> bool:
        """Remove a frame, unless it has been begun; return whether it is gone."""
        if frame not in self._waiting:
            return False
        self._waiting.remove(frame)
        return True

    def post(self, channel: int, message: Message) -> None:
        """Add a small frame that goes before all blocks."""
        if message.kind in VERDICTS:
            self._grants.pop(channel, None)  # nothing follows a verdict
        self._urgent.append(Frame.of(channel, message))
        self._stir()

    def grant(self, channel: int, credit: int) -> None:
        """Let the other end send more on a channel."""
        self._grants[channel] = self._grants.get(channel, 0) + credit
        self._stir()

    def answer(self, ping: wire.Ping) -> None:
        """Answer the newest PING; earlier ones without an answer yet are dropped."""
        self._pong = wire.Pong(ping.token)
        self._stir()

    def forget(self, channel: int, error: DataError) -> None:
        """Drop the frames of a channel; their senders raise the error."""
        self._grants.pop(channel, None)
        for frame in [frame for frame in self._waiting if frame.channel == channel]:
            self._waiting.remove(frame)
            _fail(frame, error)

    def fail(self, error: DataError, last: wire.Bye | None) -> None:
        """Drop all frames; their senders raise the error. Only `last` is still sent."""
        waiting = [*self._waiting, *([self._current] if self._current else [])]
        self._waiting.clear()
        self._urgent.clear()
        self._grants.clear()
        for frame in waiting:
            _fail(frame, error)
        if last is not None:
            self._urgent.append(Frame.of(0, last))
        self._stir()

    # -- taking out ------------------------------------------------------------------------------

    async def next(self) -> Frame:
        """Wait for what is to be sent next; `sent` follows."""
        while (frame := self._first()) is None:
            self._work = asyncio.get_running_loop().create_future()
            await self._work
        self._current = frame
        return frame

    def sent(self) -> None:
        """Note that the last frame was sent, and wake its sender."""
        frame, self._current = self._current, None
        if frame is not None and frame.sent is not None and not frame.sent.done():
            frame.sent.set_result(None)

    def _first(self) -> Frame | None:
        if self._pong is not None:
            pong, self._pong = self._pong, None
            return Frame.of(0, pong)
        if self._urgent:
            return self._urgent.popleft()
        if self._grants:
            channel = next(iter(self._grants))
            return Frame.of(channel, wire.Window(self._grants.pop(channel)))
        return self._waiting.popleft() if self._waiting else None

    def _stir(self) -> None:
        if self._work is not None and not self._work.done():
            self._work.set_result(None)


def _fail(frame: Frame, error: DataError) -> None:
    if frame.sent is not None and not frame.sent.done():
        frame.sent.set_exception(error)
        frame.sent.exception()  # retrieve it, in case the sender no longer waits
