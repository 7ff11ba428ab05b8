"""The NBD server of one host: xapi-nbd, which lets a client read any VDI that the host can attach.

    connection ─► room? ─► purpose? ─► greeting, TLS, EXPORT_NAME ─► session, VDI, RBAC
       ─► VBD on dom0 ─► READ, READ … DISC ─► VBD gone ─► close

What it does not like it says by closing. The VBD goes only some time after the client did, and the
connection counts until then.

asyncio serves the connections, threads only read the disks. A thread for each connection would send
3.5 GB/s per core in clear where asyncio sends 2.2, and no more than its 1.3 with TLS (measured with
pieces of 512 KiB from the page cache); neither is what a client waits for, and faults act in the
event loop.

Source: xapi: ocaml/nbd/src/main.ml, cleanup.ml, ocaml/nbd/lib/consts.ml; xapi-project/nbd:
lib/server.ml, unix/nbd_unix.ml.
"""

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from xorepd_lab.calls.call import Pool, State
from xorepd_lab.calls.recorder import OutsideCall
from xorepd_lab.classes.storage.attachments import attached_to_dom0
from xorepd_lab.disks.chain import Disk, DiskError
from xorepd_lab.disks.vhd import BLOCK
from xorepd_lab.faults.bodies import EndedEarly, OutgoingBody
from xorepd_lab.faults.faults import Fault, Faults
from xorepd_lab.front.certificates import nbd_context
from xorepd_lab.model.failures import ApiError, incompatible_type
from xorepd_lab.model.registry import Registry
from xorepd_lab.wire.http import READ_SIZE, Connection, Disconnected
from xorepd_lab.wire.nbd_protocol import (
    CLIENT_FLAGS,
    FIXED_NEWSTYLE,
    GREETING,
    OPTION,
    PIECE,
    REQUEST,
    SIGNED_LIMIT,
    Command,
    Next,
    Option,
    ProtocolError,
    Request,
    answer_option,
    pack_export,
    pack_option_reply,
    pack_reply,
    parse_export_name,
    parse_option,
    parse_request,
    refusal,
)

CONNECTION_LIMIT = 16
"""For all clients of a host together."""
TOOLSTACK_RETRY_S = 4.0
TOOLSTACK_TRIES = 75
"""A connection that comes while there is no toolstack waits for one, for 300 s in all."""
READ_AHEAD = 1 << 16
"""How much asyncio reads of what a client sends before it is its turn; twice that is held."""
CLOSE_S = 2.0
"""How long a client may take to read what was sent last, before the connection is cut."""
ZEROES = bytes(PIECE)
LOST = "disconnected"
NO_NBD = "not NBD"


class NbdConnection(Connection):
    """One client's connection, in clear at first."""

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Do the server's part of the TLS handshake.

        Raises:
            Disconnected: It failed, or the client said something in clear before its end.
        """
        if self._reader._buffer:  # type: ignore[attr-defined]
            raise Disconnected
        try:
            await self._writer.start_tls(context)
        except OSError as error:
            raise Disconnected from error

    async def skip(self, length: int) -> None:
        """Read so many bytes and forget them."""
        while length:
            piece = await self.read(min(length, READ_SIZE))
            if not piece:
                raise Disconnected
            length -= len(piece)

    async def gone(self) -> None:
        """Wait until the client closes its side; requests that it sent ahead stay where they are.

        One that sent more than there is room for is not seen to go.
        """
        while len(self._buffer) < READ_AHEAD:
            piece = await self._receive(READ_AHEAD)
            if not piece:
                return
            self._buffer += piece
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Close in good order, unless the client does not read what was sent."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await super().close()
        except TimeoutError:
            self.cut()


class NbdFront:
    """What listens for NBD on one host's addresses."""

    def __init__(self, pool: Pool, host: str, faults: Faults) -> None:
        self.pool = pool
        self.faults = faults
        self.host = host
        self._servers: list[asyncio.Server] = []
        self._connections: dict[NbdConnection, asyncio.Task[None]] = {}
        self.context: ssl.SSLContext | None = None

    @property
    def listening(self) -> bool:
        return bool(self._servers)

    async def listen(self, address: str, port: int) -> int:
        """Listen, whatever networks have a purpose: that is looked at for each connection."""
        self.context = nbd_context(self.pool.certificates[self.host])
        server = await asyncio.start_server(
            self._accept, address, port, limit=READ_AHEAD, reuse_address=True
        )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Stop listening, cut all connections and give up what they asked for."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for connection, serving in list(self._connections.items()):
            connection.cut()
            serving.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = NbdConnection(reader, writer)
        serving = self.pool.spawn(self._serve(connection), "nbd connection")
        if serving is not None:
            self._connections[connection] = serving
            serving.add_done_callback(lambda _: self._connections.pop(connection, None))

    async def _serve(self, connection: NbdConnection) -> None:
        try:
            if len(self._connections) <= CONNECTION_LIMIT:
                await self._converse(connection)
            else:
                self._note().outcome = "too many connections"
            await connection.close()
        except Disconnected:
            connection.cut()
        except BaseException:
            connection.cut()
            raise

    async def _converse(self, connection: NbdConnection) -> None:
        if not await self._greets(connection) or not await self._toolstack_is_up():
            return
        purposes = purposes_of(self.pool.db)
        if len(purposes) != 1:
            self._note().outcome = "no purpose" if not purposes else "two purposes"
            return
        with suppress(ProtocolError):
            name = await negotiate(connection, self.context if "nbd" in purposes else None)
            if name is not None:
                uuid, session = parse_export_name(name)
                await _Visit(self, connection, uuid, session).run()

    async def _greets(self, connection: NbdConnection) -> bool:
        """Let a fault meet the connection; say whether it is served all the same."""
        pool = self.pool
        host_name = pool.db.get("host", self.host, "name_label")
        fault = self.faults.pick("greeting", "nbd", pool.name, host_name)
        if fault is None:
            return True
        try:
            await fault.arrive(connection)
            await fault.before_work()
        except ApiError:
            return False
        return True

    async def _toolstack_is_up(self) -> bool:
        """Wait until there is a toolstack to ask, for some time."""
        for _ in range(TOOLSTACK_TRIES):
            if self.pool.life.state(self.host) is State.UP:
                return True
            await self.pool.clock.nap(TOOLSTACK_RETRY_S)
        return False

    def _note(self) -> OutsideCall:
        host_name = self.pool.db.get("host", self.host, "name_label")
        return self.pool.recorder.note(self.pool.name, host_name, "nbd", "connect", ())


def purposes_of(db: Registry) -> set[str]:
    """Return all purposes that networks of a pool have."""
    return {each for ref in db.refs("network") for each in db.get("network", ref, "purpose")}


async def negotiate(connection: NbdConnection, context: ssl.SSLContext | None) -> bytes | None:
    """Return the export's name that a client settles on, None when it does not get that far.

    Args:
        context: With one, TLS comes before anything else.

    Raises:
        ProtocolError: It speaks another language.
        Disconnected: It is gone.
    """
    await connection.send(GREETING)
    (flags,) = CLIENT_FLAGS.unpack(await connection.read_exactly(CLIENT_FLAGS.size))
    if context is not None and not flags & FIXED_NEWSTYLE:
        return None
    plain = True
    while True:
        option, length = parse_option(await connection.read_exactly(OPTION.size))
        if option == Option.EXPORT_NAME:
            name = await connection.read_exactly(length)
        else:
            await connection.skip(length)
        reply, following = answer_option(option, plain=plain, tls=context is not None)
        if reply is not None:
            await connection.send(pack_option_reply(option, reply))
        match following:
            case Next.ANOTHER:
                pass
            case Next.ENCRYPT:
                assert context is not None
                await connection.start_tls(context)
                plain = False
            case Next.SERVE:
                return name
            case Next.CLOSE:
                return None


class _Visit:
    """A client that named an export, until its VBD is gone."""

    def __init__(
        self, front: NbdFront, connection: NbdConnection, uuid: str, session: str | None
    ) -> None:
        self._pool = pool = front.pool
        self._faults = front.faults
        self._host = front.host
        self._host_name = pool.db.get("host", front.host, "name_label")
        self._connection = connection
        self._uuid = uuid
        self._session = session
        self._caller = pool.caller(session)
        self._fault: Fault | None = None
        self._body: OutgoingBody
        """All data that goes out, on its way through the fault that met the connection."""

    async def run(self) -> None:
        """Serve the VDI to the session if it may; tell nothing of why not."""
        record, fault = self._announce("connect")
        self._fault, self._body = fault, OutgoingBody(self._connection, fault)
        try:
            if fault is not None:
                await fault.arrive(self._connection)
            vdi = authorise(self._pool, self._uuid, self._session)
            if fault is not None:
                await fault.before_work()
            record.outcome = await self._attach(vdi)
        except ApiError as error:
            record.outcome = error.code
        finally:
            record.moved = self._body.sent
            record.outcome = record.outcome or (fault and fault.outcome) or LOST

    def _announce(self, name: str, *arguments: int) -> tuple[OutsideCall, Fault | None]:
        """Write down what the client does, and return the fault that meets it."""
        pool = self._pool
        told = (self._uuid, *arguments)
        record = pool.recorder.note(pool.name, self._host_name, "nbd", name, told, self._caller)
        return record, self._faults.pick("nbd", name, pool.name, self._host_name, told)

    async def _attach(self, vdi: str) -> str:
        """Serve the disk through a VBD on dom0, and return how it ended."""
        dom0 = attached_to_dom0(self._pool, self._host, vdi, "RO", by_toolstack=False)
        async with dom0:
            if self._fault is not None:
                await self._fault.after_work()
            try:
                return await self._serve(vdi)
            except (Disconnected, EndedEarly):
                return LOST
            except ProtocolError:
                return NO_NBD
            except DiskError as error:
                return f"SR_BACKEND_FAILURE_{error.backend}"

    async def _serve(self, vdi: str) -> str:
        repository, uuid = self._pool.storage.of_vdi(vdi)
        opening = partial(repository.store.open, uuid)
        async with self._pool.opened_in_thread(opening) as disk:
            if self._fault is not None and self._fault.drop_response:
                self._connection.cut()
                raise Disconnected
            await self._connection.send(pack_export(disk.virtual_size))
            return await self._transmit(disk)

    async def _transmit(self, disk: Disk) -> str:
        """Answer requests, one after another, until one ends it; return how."""
        connection = self._connection
        while True:
            request = parse_request(await connection.read_exactly(REQUEST.size))
            if request.command == Command.DISCONNECT:
                return "ok"
            error = refusal(request)
            if error is not None:
                await connection.send(pack_reply(request.handle, error))
                return error.name
            await self._read(disk, request)

    async def _read(self, disk: Disk, request: Request) -> None:
        """Answer one READ. The header that says all is well goes out before anything is read."""
        record, fault = self._announce("read", request.offset, request.length)
        body = self._body
        if fault is not None and not (fault.armed and self._fault is not None):
            body = OutgoingBody(self._connection, fault)
        try:
            if fault is not None:
                await self._meet(fault)
            await self._connection.send(pack_reply(request.handle))
            if request.length >= SIGNED_LIMIT:
                raise EndedEarly
            for offset, size in pieces(request, disk.virtual_size):
                await body.send(await self._data(disk, offset, size))
                record.moved += size
            if body is not self._body:
                await body.finish()
            record.outcome = "ok"
        except ApiError as error:
            record.outcome = error.code
            raise EndedEarly from error
        finally:
            record.outcome = record.outcome or (fault and fault.outcome) or LOST
            if body is not self._body:
                self._body.sent += record.moved

    async def _meet(self, fault: Fault) -> None:
        """Let a fault act before a READ is answered."""
        await fault.arrive(self._connection)
        await fault.before_work()
        await fault.after_work()
        if fault.drop_response:
            self._connection.cut()
            raise Disconnected

    async def _data(self, disk: Disk, offset: int, size: int) -> bytes:
        blocks = range(offset // BLOCK, (offset + size - 1) // BLOCK + 1)
        if not any(disk.holds(index) for index in blocks):
            return ZEROES if size == PIECE else bytes(size)
        return await self._pool.in_thread(disk.read, offset, size)


def authorise(pool: Pool, uuid: str, session: str | None) -> str:
    """Return the VDI of that UUID if the session may read it.

    Raises:
        ApiError: SESSION_INVALID, UUID_INVALID, RBAC_PERMISSION_DENIED, VDI_INCOMPATIBLE_TYPE.
    """
    if session is None:
        raise ApiError("SESSION_INVALID", "")
    pool.sessions.check(session)
    vdi = pool.db.by_uuid("VDI", uuid)
    pool.sessions.demand(session, "VBD.create")
    vdi_type = pool.db.get("VDI", vdi, "type")
    if vdi_type == "cbt_metadata":
        raise incompatible_type(vdi, vdi_type)
    return vdi


def pieces(request: Request, virtual_size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the pieces in which a READ is answered.

    Raises:
        EndedEarly: In place of the piece that would pass the disk's end.
    """
    offset, end = request.offset, request.offset + request.length
    while offset < end:
        size = min(PIECE, end - offset)
        if offset + size > virtual_size:
            raise EndedEarly
        yield offset, size
        offset += size
