"""One disk on a connection: what may be sent, what has come, and how it ended. No I/O of its own.

The relay ends its side of a channel with a verdict (DONE, FAILED, REFUSE, DIGESTED), the client its
own with CLOSE. In between, each end sends as much as the other has granted it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol, Self

from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.frames import COUNTED, HEADER, VERDICTS, Header, Kind, WireError
from xorepd.relay.protocol.messages import Message

_LARGEST_CREDIT = 1 << 31


@dataclass(eq=False, slots=True)
class Frame:
    """A message that waits for its turn; its sequence is decided then."""

    channel: int
    kind: Kind
    parts: tuple[bytes | memoryview, ...]
    sent: asyncio.Future[None] | None = field(default=None)

    @classmethod
    def of(cls, channel: int, message: Message) -> Self:
        """Return a message as a frame; the payload of a block is not copied."""
        if isinstance(message, wire.Data):
            return cls(channel, message.kind, (message.head(), memoryview(message.payload)))
        return cls(channel, message.kind, (message.pack(),))

    @property
    def length(self) -> int:
        """Return the bytes of its body."""
        return sum(map(len, self.parts))

    @property
    def cost(self) -> int:
        """Return what it takes from the window of its channel."""
        return HEADER.size + self.length if self.kind in COUNTED else 0


class Line(Protocol):
    """The connection, as its channels see it (`mux.Connection`)."""

    def check(self) -> None: ...
    async def put(self, frame: Frame) -> None: ...
    def post(self, channel: int, message: Message) -> None: ...
    def grant(self, channel: int, credit: int) -> None: ...
    def forget(self, channel: int) -> None: ...


class Over(Exception):
    """The verdict on this channel has been given; at the client, `receive` has it."""


class Channel:
    """One disk. `send` and `receive` may be used at the same time, each by one task.

    Args:
        granted: bytes of frames that the other end may send from the start.
        credit: bytes that this end may send from the start.
    """

    def __init__(self, line: Line, number: int, *, granted: int, credit: int) -> None:
        self._line, self.number = line, number
        self._window = self._granted = granted
        self.credit = credit
        """Bytes of frames that this end may send now."""
        self._owed = self._taken = 0
        self._inbox: deque[tuple[Message, int]] = deque()
        self._seen: set[Kind] = set()
        self._readers: list[asyncio.Future[None]] = []
        self.windows = 0
        """How many WINDOWs have come. A relay sends empty ones while a disk waits for its turn."""
        self.is_over = False
        self.given_up = asyncio.Event()
        """Set when the client wants no more of it, or the connection has broken."""

    # -- both ends ---------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Send a frame; return when the kernel has it, and what it refers to may be used again.

        Cancelled, it leaves a channel that is good for `cancel` and `close` only.

        Raises:
            Over: the verdict has been given; the frame was not sent.
            DataError: the connection broke.
        """
        frame = Frame.of(self.number, message)
        cost = frame.cost
        while not self.is_over and self.credit < cost:
            await self._change()
        self._line.check()
        if self.is_over:
            raise Over
        self.credit -= cost
        await self._line.put(frame)

    async def receive(self) -> Message:
        """Return the next frame. It counts as used up when the one after it is asked for.

        Raises:
            Over: nothing comes any more.
            DataError: the connection broke.
        """
        self._settle()
        while not self._inbox:
            if self.is_over:
                raise Over
            await self._change()
        message, self._taken = self._inbox.popleft()
        return message

    # -- the client --------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Ask the relay to give the disk up; its verdict follows."""
        if not self.is_over:
            self._line.post(self.number, wire.Cancel())

    def close(self) -> None:
        """End the client's side: whatever the relay still does with the disk, it gives it up."""
        self.is_over = True
        self._line.forget(self.number)
        self.wake()

    # -- the relay ---------------------------------------------------------------------------------

    def accept(self, window: int, features: wire.Feature) -> None:
        """Let the client send."""
        self._window = self._granted = window
        self._line.post(self.number, wire.Accept(window, features))

    def hold(self) -> None:
        """Let the client know that its disk waits for its turn."""
        self._line.post(self.number, wire.Window(0))

    def end(self, verdict: wire.Verdict) -> None:
        """Give the verdict. What the client sends before it has read that is thrown away."""
        if not self.is_over:
            self.is_over = True
            self._inbox.clear()
            self._line.post(self.number, verdict)
            self.wake()

    # -- the connection calls these ----------------------------------------------------------------

    def take(self, header: Header, message: Message) -> None:
        """Take a frame that came.

        Raises:
            WireError: it is more than was granted, or came before.
        """
        self._granted -= header.cost
        if self._granted < 0:
            raise WireError(f"{-self._granted} bytes more came than the window allows")
        if header.kind not in COUNTED and header.kind is not Kind.WINDOW:
            if header.kind in self._seen:
                raise WireError(f"a second {header.kind.name} came on one channel")
            self._seen.add(header.kind)
        match message:
            case wire.Window():
                self.windows += 1
                self._add(message.credit)
            case wire.Cancel():
                self.given_up.set()
            case _ if not self.is_over:
                if isinstance(message, wire.Accept):
                    self._add(message.window)
                self.is_over = header.kind in VERDICTS
                self._inbox.append((message, header.cost))
            case _:
                pass  # sent before the verdict was known
        self.wake()

    def give_up(self) -> None:
        """Take note that the client is gone."""
        self.given_up.set()
        self.wake()

    def wake(self) -> None:
        """Wake the task that waits here."""
        for waiter in self._readers:
            if not waiter.done():
                waiter.set_result(None)

    # -- inside ------------------------------------------------------------------------------------

    def _add(self, credit: int) -> None:
        self.credit += credit
        if self.credit > _LARGEST_CREDIT:
            raise WireError(f"a window grew beyond {_LARGEST_CREDIT} bytes")

    def _settle(self) -> None:
        """Grant again what has been used up, a quarter of the window at a time."""
        self._owed, self._taken = self._owed + self._taken, 0
        if self._owed * 4 >= self._window and self._owed and not self.is_over:
            self._granted += self._owed
            self._line.grant(self.number, self._owed)
            self._owed = 0

    async def _change(self) -> None:
        self._line.check()
        waiter = asyncio.get_running_loop().create_future()
        self._readers.append(waiter)
        try:
            await waiter
        finally:
            self._readers.remove(waiter)
        if not self._inbox:  # what came before the connection broke still counts
            self._line.check()
