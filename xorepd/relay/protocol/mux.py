"""Many disks on one connection: channels that take turns. Both ends use it.

    channel.send ─► credit ─► outbox ─► one writer task ─► ByteStream ─► one reader task ─► inboxes
                                                                                  channel.receive ─┘

A frame is sent when its channel has credit and all earlier frames are sent. A channel has at most
one frame in the outbox, so channels take turns. The reader never waits: the window that this end
has granted bounds what a channel has not taken yet. A slow disk stops itself and no other.

If the peer violates the protocol, this end sends one sentence (BYE) and closes the connection. It
also closes a connection that is silent for too long. All pending calls then raise the same error.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from contextlib import suppress
from typing import Self

import structlog

from xorepd.errors import ProtocolViolation
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.channel import Channel, Frame
from xorepd.relay.protocol.frames import (
    FROM_CLIENT,
    FROM_RELAY,
    HEADER,
    OF_CONNECTION,
    Header,
    Kind,
    WireError,
    parse_header,
)
from xorepd.relay.protocol.messages import Code, Message
from xorepd.relay.protocol.outbox import Outbox
from xorepd.stream import ByteStream, Ended, Stalled
from xorepd.tidying import settled
from xorepd.units import MiB
from xorepd.version import VERSION

log = structlog.get_logger(__name__)

HELLO_S = 15.0
"""Longest wait for the other end's HELLO."""
SILENCE_S = 60.0
"""Silence after which a connection is closed."""
PING_S = 20.0
"""Longest interval between PINGs: firewalls drop a connection that is silent for minutes."""
FAREWELL_S = 5.0
"""Time for the other end to read why it was refused."""
WINDOW = 4 * MiB
"""Default window of a disk in bytes: 400 Mbit/s at 80 ms."""


class Connection:
    """One end of a connection; made by `dial` or `start`, ended by `close`."""

    def __init__(self, stream: ByteStream, what: str, channels: int) -> None:
        self.what = what
        self.peer: wire.Hello
        """The HELLO of the other end."""
        self.round_trip_s = 0.0
        """Round trip of the last PING in seconds; 0 before the first."""
        self.ended = asyncio.Event()
        """Set when the connection is lost or closed; `check` says why."""
        self._stream = stream
        self._most = channels
        self._loop = asyncio.get_running_loop()
        self._channels: dict[int, Channel] = {}
        self._highest = 0
        self._opened: asyncio.Queue[tuple[Channel, wire.Open] | None] = asyncio.Queue()
        self._outbox = Outbox()
        self._sequence = self._expected = 0
        self._pings = 0
        self._pinged_at = 0.0
        self._reason: str | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ending: asyncio.Task[None] | None = None

    # -- beginning and end -------------------------------------------------------------------------

    @classmethod
    async def dial(
        cls,
        host: str,
        port: int,
        context: ssl.SSLContext,
        name: str,
        *,
        silence: float = SILENCE_S,
    ) -> Self:
        """Connect to a relay and greet it.

        Args:
            context: as `certificates.client_context` gives it.
            name: of this end, for the relay's people.

        Raises:
            DataError: there is none, it is not the one, or it does not want us.
        """
        what = f"relay {host}:{port}"
        try:
            stream = await ByteStream.connect(host, port, stall=silence, tls=context)
        except (OSError, ValueError) as error:
            raise ProtocolViolation(what, _connecting(error)) from error
        return await cls.start(stream, what, name, silence=silence)

    @classmethod
    async def start(
        cls,
        stream: ByteStream,
        what: str,
        name: str,
        *,
        channels: int = 0,
        silence: float = SILENCE_S,
    ) -> Self:
        """Greet the other end over a stream, and keep the connection going from then on.

        Args:
            stream: secured already, and giving up after `silence`; it is the connection's now.
            what: the other end, for messages.
            channels: how many disks the other end may have open; 0 makes this end the client.

        Raises:
            DataError: the other end does not greet in time, or not as it should.
        """
        made = cls(stream, what, channels)
        nonce = secrets.token_bytes(wire.NONCE)

        def hello(answer: bytes) -> wire.Hello:
            silence_ms = round(silence * 1000)
            return wire.Hello(nonce, answer, channels, silence_ms, name, f"xorepd/{VERSION}")

        try:
            async with asyncio.timeout(HELLO_S):
                if channels:
                    await made._write(Frame.of(0, hello(bytes(wire.NONCE))))
                    made.peer = await made._read_hello(nonce)
                else:
                    made.peer = await made._read_hello(bytes(wire.NONCE))
                    await made._write(Frame.of(0, hello(made.peer.nonce)))
        except WireError as error:
            made._fail(str(error), wire.Bye(Code.VIOLATION, str(error)))
            await made.close()
        except (OSError, EOFError) as error:
            # A refused certificate ends TLS 1.3 after our side of the handshake, without a word.
            hint = "" if channels else "; it may not trust our certificate, its log says more"
            made._fail(_broken(error) + hint)
            await made.close()
        except BaseException:
            stream.abort()
            raise
        made.check()
        for work, what_for in (
            (made._keep_reading(), "reader"),
            (made._keep_writing(), "writer"),
            (made._keep_pinging(min(PING_S, made.peer.silence_ms / 3000)), "ping"),
        ):
            made._tasks.append(made._loop.create_task(work, name=f"{what_for} of {what}"))
        return made

    async def close(self, bye: wire.Bye | None = None) -> None:
        """Close the connection; pending calls fail. Any task may call it, several times."""
        bye = bye or wire.Bye(Code.NORMAL)
        self._fail(bye.sentence or "the connection was closed", bye)
        assert self._ending is not None, "a failed connection is ending"
        await asyncio.shield(self._ending)

    async def refuse(self, error: WireError) -> None:
        """Close the connection after a protocol violation, and tell the other end which."""
        await self.close(wire.Bye(Code.VIOLATION, str(error)))

    def check(self) -> None:
        """Check that the connection is open.

        Raises:
            DataError: why it is not.
        """
        if self._reason is not None:
            raise ProtocolViolation(self.what, self._reason)

    @property
    def queued(self) -> int:
        """Return how many bytes of frames wait to be sent: how full the link is."""
        return self._outbox.size

    # -- disks -------------------------------------------------------------------------------------

    def open(self, message: wire.Open) -> Channel:
        """Ask the relay for a disk; the first frame of the channel says whether it is given.

        Raises:
            DataError: the connection broke.
        """
        self.check()
        self._highest += 1
        channel = Channel(self, self._highest, granted=message.window, credit=0)
        self._channels[channel.number] = channel
        self.post(channel.number, message)
        return channel

    async def opened(self) -> tuple[Channel, wire.Open]:
        """Wait for the next disk that the client asks for.

        Raises:
            DataError: the connection broke, or was closed.
        """
        found = await self._opened.get()
        if found is None:
            self._opened.put_nowait(None)
            self.check()
        assert found is not None, "only a failure puts nothing there"
        return found

    # -- the channels call these (`channel.Line`) --------------------------------------------------

    async def put(self, frame: Frame) -> None:
        """Wait for a frame's turn, and until it has been sent.

        After a cancellation, withdraw the frame if its sending has not begun. Else wait for its
        end: the kernel must have its bytes before the caller changes them.
        """
        self.check()
        sent = self._outbox.put(frame)
        try:
            await asyncio.shield(sent)
        except asyncio.CancelledError:
            if not self._outbox.take_back(frame):
                await settled(sent, SILENCE_S)
            raise

    def post(self, channel: int, message: Message) -> None:
        """Send a small frame before all others, without waiting for it."""
        if self._reason is None:
            self._outbox.post(channel, message)

    def grant(self, channel: int, credit: int) -> None:
        """Let the other end send more on a channel."""
        self._outbox.grant(channel, credit)

    def forget(self, channel: int) -> None:
        """End a channel for the client; nothing of it follows the CLOSE."""
        if self._channels.pop(channel, None) is not None:
            gone = ProtocolViolation(self.what, "the disk was closed meanwhile")
            self._outbox.forget(channel, gone)
            self.post(channel, wire.Close())

    # -- writing -----------------------------------------------------------------------------------

    async def _keep_writing(self) -> None:
        try:
            while True:
                frame = await self._outbox.next()
                await self._write(frame)
                self._outbox.sent()
                if frame.kind is Kind.BYE:
                    return
        except OSError as error:
            # The other end may have said why before it closed: the reader comes to that.
            await asyncio.wait(self._tasks[:1], timeout=FAREWELL_S)
            self._fail(_broken(error))
        except Exception as error:
            log.exception("connection.internal_error", what=self.what)
            self._fail(f"an error of our own, {type(error).__name__}")

    async def _write(self, frame: Frame) -> None:
        head = Header(frame.kind, 0, frame.channel, self._sequence, frame.length).pack()
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        small = b"".join((head, *frame.parts[:1]))
        await self._stream.write(small, *frame.parts[1:])

    async def _keep_pinging(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            self._pings += 1
            self._pinged_at = self._loop.time()
            self.post(0, wire.Ping(self._pings))

    # -- reading -----------------------------------------------------------------------------------

    async def _keep_reading(self) -> None:
        try:
            while self._reason is None:
                header, body = await self._read_frame()
                message = wire.parse(header.kind, header.flags, body)
                self._dispatch(header, message)
        except WireError as error:
            self._fail(f"it broke the protocol ({error})", wire.Bye(Code.VIOLATION, str(error)))
        except (OSError, EOFError) as error:
            self._fail(_broken(error))
        except Exception as error:
            log.exception("connection.internal_error", what=self.what)
            self._fail(f"an error of our own, {type(error).__name__}")

    async def _read_frame(self) -> tuple[Header, bytearray]:
        head = bytearray(HEADER.size)
        await self._stream.read_into(memoryview(head))
        header = parse_header(head)
        if header.sequence != self._expected:
            raise WireError(f"frame {header.sequence} came where {self._expected} is next")
        self._expected = (self._expected + 1) & 0xFFFFFFFF
        body = bytearray(header.length)
        await self._stream.read_into(memoryview(body))
        return header, body

    async def _read_hello(self, answer: bytes) -> wire.Hello:
        header, body = await self._read_frame()
        message = wire.parse(header.kind, header.flags, body)
        match message:
            case wire.Hello() if message.answer != answer:
                raise WireError("its HELLO does not answer ours: it is of another connection")
            case wire.Hello():
                if bool(message.channels) == bool(self._most):
                    raise WireError("both ends want to be the relay, or neither")
                return message
            case wire.Bye():
                raise ConnectionResetError(f"it was refused: {message.sentence}")
            case _:
                raise WireError(f"it began with {header.kind.name} in place of HELLO")

    def _dispatch(self, header: Header, message: Message) -> None:
        allowed = FROM_CLIENT if self._most else FROM_RELAY
        if header.kind not in OF_CONNECTION and header.kind not in allowed:
            raise WireError(f"{header.kind.name} is not for this end to receive")
        match message:
            case wire.Hello():
                raise WireError("a second HELLO came")
            case wire.Bye():
                said = message.sentence or "no reason given"
                ended = (
                    "closed the connection" if message.code is Code.NORMAL else "refused to go on"
                )
                self._fail(f"the other end {ended} ({said})")
            case wire.Pong():
                if message.token == self._pings:
                    self.round_trip_s = self._loop.time() - self._pinged_at
            case wire.Ping():
                self._outbox.answer(message)
            case wire.Open():
                self._open(header.channel, message)
            case wire.Close():
                channel = self._of(header.channel)
                if channel is not None:
                    del self._channels[header.channel]
                    channel.give_up()
            case _:
                channel = self._of(header.channel)
                if channel is not None:
                    channel.take(header, message)

    def _open(self, number: int, message: wire.Open) -> None:
        if number <= self._highest:
            raise WireError(f"channel {number} was opened before")
        if len(self._channels) >= self._most:
            raise WireError(f"more than {self._most} disks are open")
        self._highest = number
        channel = Channel(self, number, granted=0, credit=message.window)
        self._channels[number] = channel
        self._opened.put_nowait((channel, message))

    def _of(self, number: int) -> Channel | None:
        """Return a channel; none when this end has closed it and the other does not know yet.

        Raises:
            WireError: there is no such channel.
        """
        channel = self._channels.get(number)
        if channel is None and (self._most or number > self._highest):
            raise WireError(f"there is no channel {number}")
        return channel

    # -- the end -----------------------------------------------------------------------------------

    def _fail(self, reason: str, bye: wire.Bye | None = None) -> None:
        """End the connection once; all pending calls raise the reason."""
        if self._reason is not None:
            return
        self._reason = reason
        self.ended.set()
        self._outbox.fail(ProtocolViolation(self.what, reason), bye)
        for channel in self._channels.values():
            channel.give_up()
        self._opened.put_nowait(None)
        self._ending = self._loop.create_task(self._end(bye), name=f"end of {self.what}")

    async def _end(self, bye: wire.Bye | None) -> None:
        """Say goodbye if there is a reason to, and cut the connection."""
        with suppress(OSError, EOFError, TimeoutError):
            if bye is not None:
                async with asyncio.timeout(FAREWELL_S):
                    if self._tasks:
                        await asyncio.wait(self._tasks[1:2])
                    else:
                        await self._write(Frame.of(0, bye))
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if bye is not None and bye.sentence:
            with suppress(OSError, EOFError, TimeoutError):
                # Unread bytes would turn our closing into a reset, which eats the sentence.
                async with asyncio.timeout(FAREWELL_S):
                    scratch = memoryview(bytearray(64 * 1024))
                    while await self._stream.read_some(scratch):
                        pass
        await self._stream.close()


def _broken(error: BaseException) -> str:
    match error:
        case Stalled():
            return "the connection broke (the other end is silent)"
        case Ended():
            return "the connection ended without a word"
        case ssl.SSLError():
            return f"TLS failed ({error.reason})"
        case TimeoutError():
            return "the connection broke (the other end does not greet)"
        case _:
            said = (error.strerror if isinstance(error, OSError) else None) or str(error)
            return f"the connection broke ({said or type(error).__name__})"


def _connecting(error: OSError | ValueError) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted ({error.verify_message}); check ca and the name"
        case ssl.SSLError():
            return f"TLS failed ({error.reason}); check certificate and key"
        case TimeoutError():
            return "it does not answer; check its address, and that xorepd relay runs there"
        case _:
            said = (error.strerror if isinstance(error, OSError) else None) or str(error)
            return f"it cannot be reached ({said}); check its address, and that xorepd relay runs"
