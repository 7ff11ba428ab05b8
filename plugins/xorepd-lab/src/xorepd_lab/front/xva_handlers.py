"""GET /export and PUT /import: whole VMs as XVA; and their records alone, without the disks.

export   lock ► 200 ► ova.xml ► disk after disk, each attached while it is read ► task
import   200 ► ova.xml ► all objects ► disk after disk ► task, whose result are the VMs
                            └─ failure from here on: what was made is destroyed

Unlike the handlers of disks, an export that cannot begin says so with a real 500. Whether it will
end well is told by the task alone, after which a second response may stand in the body.

Source: xapi: ocaml/xapi/export.ml, import.ml, stream_vdi.ml, xapi_http.ml.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from xorepd_lab.calls.call import Call, Pool
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.tasks import result_text
from xorepd_lab.classes.storage.attachments import attached_to_dom0
from xorepd_lab.disks.chain import Disk, DiskError
from xorepd_lab.disks.vhd import BLOCK as DISK_BLOCK
from xorepd_lab.disks.vhd import SECTOR
from xorepd_lab.faults.bodies import EndedEarly, IncomingBody, OutgoingBody
from xorepd_lab.front.handlers import IO_ERROR, Exchange, credentials, other_host, task_of
from xorepd_lab.front.xva_manifest import DEVICES, Table, xapi_version
from xorepd_lab.front.xva_records import Options, Records, check_version
from xorepd_lab.model.failures import NULL, ApiError, internal_error
from xorepd_lab.wire import http
from xorepd_lab.wire.xva import (
    CHUNK,
    END,
    OVA_XML,
    Archive,
    Disks,
    Manifest,
    Receive,
    chunk,
    compressor,
    import_error,
    member,
    premature_end,
)

CANCEL_POLL_S: Final = 10.0
LOCK_PATIENCE_S: Final = 120.0
MOST_DRAINED: Final = 64 << 10
"""What may stand behind the last disk and is read so that the client sees an orderly end."""
CONTENT_TYPE: Final = "application/octet-stream"
_COMPRESSIONS = {"true": "gzip", "gzip": "gzip", "zstd": "zstd"}
_ZERO_CHUNK = bytes(CHUNK)
_GONE = ApiError("CLIENT_ERROR", 'INTERNAL_ERROR: [ Unix.Unix_error(Unix.EPIPE, "write", "") ]')


# -- export ---------------------------------------------------------------------------------------


async def export(exchange: Exchange) -> None:
    """Serve one export. Raises ApiError for what becomes a real 500, before any answer."""
    pool, db = exchange.pool, exchange.pool.db
    async with credentials(exchange):
        vm = _vm_of(exchange)
        try:
            db.row("VM", vm)
            srs = {db.get("VDI", vdi, "SR") for vdi in _vdis_of(pool, vm)}
            location = other_host(exchange, *srs)
        except ApiError as error:
            # Nobody can serve it: the task is told, the client sees the connection close.
            exchange.record.outcome = error.code
            pool.tasks.fail(exchange.request.parameter("task_id") or NULL, error)
            return
        if location is not None:
            exchange.record.outcome = "302"
            await exchange.connection.send(http.redirect(location))
            return
        async with task_of(exchange, "VM.export") as task:
            async with _ended(exchange, task), _locked(pool, task, "export", vm):
                await _export(exchange, vm, task)
            pool.tasks.complete(task, "")
            if exchange.fault is not None and exchange.fault.drop_response:
                exchange.connection.cut()


def _vm_of(exchange: Exchange) -> str:
    query = exchange.request.query
    if "ref" in query:
        return query["ref"]
    if "uuid" not in query:
        raise internal_error("Not_found")
    return exchange.pool.db.by_uuid("VM", query["uuid"])


def _vdis_of(pool: Pool, vm: str) -> list[str]:
    vbds = [pool.db.record("VBD", vbd) for vbd in pool.db.get("VM", vm, "VBDs")]
    return [vbd["VDI"] for vbd in vbds if not vbd["empty"] and pool.db.exists("VDI", vbd["VDI"])]


@asynccontextmanager
async def _locked(pool: Pool, task: str, operation: str, *vms: str) -> AsyncIterator[None]:
    """Hold VMs; who is in the way for two minutes is told to the client."""
    claims = [Claim("VM", vm, operation) for vm in vms]
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(pool.clock.scaled(LOCK_PATIENCE_S)):
                await stack.enter_async_context(pool.operations.hold(task, *claims))
        except TimeoutError:
            raise ApiError("OTHER_OPERATION_IN_PROGRESS", "VM", vms[0]) from None
        yield


@asynccontextmanager
async def _ended(exchange: Exchange, task: str) -> AsyncIterator[None]:
    """Fail the task with whatever the block fails with; the caller answers 500."""
    try:
        yield
    except EndedEarly:
        exchange.record.outcome = IO_ERROR.code
        exchange.pool.tasks.fail(task, IO_ERROR)
    except http.Disconnected:
        exchange.record.outcome = "disconnected"
        exchange.pool.tasks.fail(task, _GONE)
        raise
    except ApiError as error:
        exchange.pool.tasks.fail(task, error)
        raise


def _head(exchange: Exchange, task: str, *extra: str) -> bytes:
    major, minor = xapi_version(exchange.pool.db, exchange.host)
    lines = [
        "HTTP/1.0 200 OK",
        "Connection: close",
        "Cache-Control: no-cache, no-store",
        f"task-id: {task}",
        f"Server: xapi/{major}.{minor}",
        f"content-type: {CONTENT_TYPE}",
        *extra,
        'Content-Disposition: attachment; filename="export.xva"',
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _export(exchange: Exchange, vm: str, task: str) -> None:
    pool, db = exchange.pool, exchange.pool.db
    keep_power_state = exchange.request.parameter("preserve_power_state") == "true"
    body = OutgoingBody(exchange.connection, exchange.fault)
    pack = compressor(_COMPRESSIONS.get(exchange.request.query.get("use_compression", "")))

    async def send(data: bytes) -> None:
        packed = await pool.in_thread(pack.compress, data)
        if packed:
            await body.send(packed)

    await exchange.connection.send(_head(exchange, task))
    if exchange.fault is not None:
        await exchange.fault.before_work()
    table = Table(db, snapshots=False, power_state=keep_power_state)
    table.add_vm(vm)
    manifest = table.describe(exchange.host).encode()
    await send(member(OVA_XML, manifest, time=int(pool.clock.time().timestamp())))
    disks = _streamed(pool, vm, table, keep_power_state)
    watch = _Watch(pool, task, sum(db.get("VDI", vdi, "virtual_size") for vdi in disks.values()))
    for identifier, vdi in sorted(disks.items()):
        async with attached_to_dom0(pool, exchange.host, vdi, "RO"):
            await _send_disk(pool, identifier, vdi, send, watch)
    await send(END)
    await body.send(await pool.in_thread(pack.flush))
    await body.finish()
    if exchange.fault is not None:
        await exchange.fault.after_work()


def _streamed(pool: Pool, vm: str, table: Table, suspended: bool) -> dict[str, str]:
    """Return the disks that go along with their contents, by identifier: all but CDs."""
    db = pool.db
    vbds = [db.record("VBD", vbd) for vbd in db.get("VM", vm, "VBDs")]
    vdis = [vbd["VDI"] for vbd in vbds if vbd["type"] != "CD"]
    if suspended and db.get("VM", vm, "power_state") == "Suspended":
        vdis.append(db.get("VM", vm, "suspend_VDI"))
    return {
        table.ids[vdi]: vdi
        for vdi in vdis
        if vdi in table.ids and db.get("SR", db.get("VDI", vdi, "SR"), "content_type") != "iso"
    }


class _Watch:
    """Progress of a task over all disks, and its cancellation, looked at now and then."""

    def __init__(self, pool: Pool, task: str, total: int) -> None:
        self._pool = pool
        self._task = task
        self._total = max(1, total)
        self._done = 0
        self._next = 0.0
        if pool.tasks.is_pending(task):
            pool.db.set("task", task, allowed_operations=["cancel"])

    async def passed(self, size: int) -> None:
        """Count bytes of disks; TASK_CANCELLED when somebody wants it."""
        self._done += size
        now = asyncio.get_running_loop().time()
        if now >= self._next:
            self._next = now + self._pool.clock.scaled(CANCEL_POLL_S)
            self._pool.tasks.progress(self._task, self._done / self._total)
            self._pool.tasks.check_cancelled(self._task)

    def end(self) -> None:
        """Look a last time: what follows cannot be cancelled."""
        self._pool.tasks.check_cancelled(self._task)
        if self._pool.tasks.is_pending(self._task):
            self._pool.db.set("task", self._task, allowed_operations=[])


async def _send_disk(
    pool: Pool,
    identifier: str,
    vdi: str,
    send: Callable[[bytes], Awaitable[None]],
    watch: _Watch,
) -> None:
    repository, uuid = pool.storage.of_vdi(vdi)
    try:
        async with pool.opened_in_thread(partial(repository.store.open, uuid)) as disk:
            parts = _chunks(disk, identifier)
            while part := await pool.in_thread(next, parts, None):
                data, size = part
                if data:
                    await send(data)
                await watch.passed(size)
    except (DiskError, OSError) as error:
        pool.log.info("export.failed", vdi=uuid, error=str(error))
        raise IO_ERROR from error


def _chunks(disk: Disk, identifier: str) -> Iterator[tuple[bytes, int]]:
    """Yield members of the archive, each with the bytes of the disk it goes further."""
    size = disk.virtual_size
    last = max(0, -(-size // CHUNK) - 1)
    for start in range(0, size, DISK_BLOCK):
        held = disk.holds(start // DISK_BLOCK)
        for offset in range(start, min(start + DISK_BLOCK, size), CHUNK):
            number, length = offset // CHUNK, min(CHUNK, size - offset)
            data = disk.read(offset, length) if held else _ZERO_CHUNK[:length]
            if number in (0, last) or data != _ZERO_CHUNK[:length]:
                yield chunk(identifier, number, data), length
            else:
                yield b"", length


async def export_metadata(exchange: Exchange) -> None:
    """Serve the records of one VM, or of all, in an archive without disks."""
    pool, query = exchange.pool, exchange.request.query
    async with credentials(exchange), task_of(exchange, "VM.export_metadata") as task:
        async with _ended(exchange, task):
            excluded = [name for name in query.get("excluded_device_types", "").split(",") if name]
            for name in excluded:
                if name.lower() not in DEVICES:
                    raise internal_error(f"Failure(\"Type '{name}' not one of {DEVICES}\")")
            snapshots = query.get("export_snapshots", "true") == "true"
            vms = _all_vms(exchange) if query.get("all") == "true" else [_vm_of(exchange)]
            table = Table(
                pool.db,
                snapshots=snapshots,
                power_state=True,
                vhd_parents=query.get("include_vhd_parents") == "true",
                excluded=[name.lower() for name in excluded],
            )
            async with _locked(pool, task, "metadata_export", *vms):
                for vm in vms:
                    table.add_vm(vm)
                manifest = table.describe(exchange.host).encode()
            content = member(OVA_XML, manifest, time=int(pool.clock.time().timestamp())) + END
            await exchange.connection.send(_head(exchange, task, f"Content-Length: {len(content)}"))
            body = OutgoingBody(exchange.connection, exchange.fault)
            if exchange.fault is not None:
                await exchange.fault.before_work()
            await body.send(content)
            await body.finish()
        pool.tasks.complete(task, "")


def _all_vms(exchange: Exchange) -> list[str]:
    db = exchange.pool.db
    dom0 = exchange.request.query.get("include_dom0", "true") == "true"
    return [
        vm
        for vm in db.refs("VM")
        if not db.get("VM", vm, "is_default_template")
        and (dom0 or not db.get("VM", vm, "is_control_domain"))
    ]


# -- import ---------------------------------------------------------------------------------------


async def import_(exchange: Exchange) -> None:
    """Serve one import. Raises ApiError for what becomes a 500, before or after an answer."""
    pool, request = exchange.pool, exchange.request
    async with credentials(exchange):
        sr = _sr_of(exchange)
        location = other_host(exchange, sr)
        if location is not None:
            exchange.record.outcome = "302"
            await exchange.connection.send(http.redirect(location))
            return
        async with task_of(exchange, "VM.import") as task, _ended(exchange, task):
            pool.tasks.progress(task, 0.0)
            if pool.db.get("SR", sr, "content_type") == "iso":
                await exchange.connection.send(http.bad_request())
                raise ApiError("SR_OPERATION_NOT_SUPPORTED")
            if "transfer-encoding" in request.headers:
                await exchange.connection.send(http.forbidden())
                raise ApiError("IMPORT_ERROR_CANNOT_HANDLE_CHUNKED")
            options = Options(sr, _flag(exchange, "restore"), _flag(exchange, "force"))
            await _answer_import(exchange, task, options)


async def import_metadata(exchange: Exchange) -> None:
    """Serve the records of VMs whose disks are in the pool already."""
    async with credentials(exchange), task_of(exchange, "VM.metadata_import") as task:
        options = Options(
            None,
            _flag(exchange, "restore"),
            _flag(exchange, "force"),
            _flag(exchange, "dry_run"),
            _flag(exchange, "live"),
            {
                name.removeprefix("vdi:"): value
                for name, value in exchange.request.query.items()
                if name.startswith("vdi:") and name != "vdi:"
            },
        )
        async with _ended(exchange, task):
            await _answer_import(exchange, task, options)


async def _answer_import(exchange: Exchange, task: str, options: Options) -> None:
    await exchange.connection.send(http.stream_head(task, CONTENT_TYPE))
    if exchange.fault is not None:
        await exchange.fault.before_work()
    length = exchange.request.content_length
    body = IncomingBody(exchange.connection, length, exchange.fault)
    call = Call(exchange.pool, exchange.host, task=task)
    vms = await stream_import(call, body.read, options)
    if options.sr is None or (length is not None and length - body.received <= MOST_DRAINED):
        while await body.read():
            pass
    if exchange.fault is not None:
        await exchange.fault.after_work()
    exchange.pool.tasks.complete(task, result_text(vms))
    if exchange.fault is not None and exchange.fault.drop_response:
        exchange.connection.cut()


def _flag(exchange: Exchange, name: str) -> bool:
    return exchange.request.query.get(name) == "true"


def _sr_of(exchange: Exchange) -> str:
    """Return the SR for the disks: of the cookie, of the query, or the pool's own."""
    request, db = exchange.request, exchange.pool.db
    given = request.query | request.cookies
    if "sr_id" in given:
        return given["sr_id"]
    if "sr_uuid" in given:
        return db.by_uuid("SR", given["sr_uuid"])
    default = str(db.get("pool", next(db.select("pool")), "default_SR"))
    if not db.exists("SR", default):
        raise ApiError("DEFAULT_SR_NOT_FOUND", default)
    return default


async def stream_import(call: Call, receive: Receive, options: Options) -> list[str]:
    """Make VMs of an archive as it arrives and return them.

    Args:
        call: In whose task it is done.
        receive: Gives the next bytes of the archive, b"" at its end.
        options: What to make of it.

    Raises:
        ApiError: It cannot be done, and all that was begun is undone unless `options.force`.
    """
    archive = Archive(receive, call.pool.in_thread)
    manifest = await archive.manifest()
    check_version(call, manifest)
    records = Records(call, manifest, options)
    if options.full_restore:
        records.check_seeds()
    try:
        await records.make()
        if options.sr is not None:
            await _receive_disks(call, records, manifest, archive)
    except ApiError:
        await records.undo()
        raise
    except http.Disconnected:
        await records.undo()
        raise premature_end() from None
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        call.pool.log.exception("import.crashed")
        await records.undo()
        raise import_error(repr(error)) from error
    return records.complete()


async def _receive_disks(
    call: Call, records: Records, manifest: Manifest, archive: Archive
) -> None:
    pool, sizes = call.pool, records.disks()
    pool.db.put("task", call.task, "other_config", "object_creation", "complete")
    version = manifest.number("export_vsn")
    disks = Disks(archive, inline=version > 0, force=records.options.force)
    watch = _Watch(pool, call.task, sum(sizes.values()))
    for identifier, size in sizes.items():
        vdi = records.found[identifier]
        async with attached_to_dom0(pool, call.host, vdi, "RW"):
            repository, uuid = pool.storage.of_vdi(vdi)
            try:
                opening = partial(repository.store.open, uuid, writable=True)
                async with pool.opened_in_thread(opening) as disk:
                    await disks.receive(
                        identifier, size, disk.virtual_size, _writer(pool, disk), watch.passed
                    )
                    await pool.in_thread(disk.flush)
            except (DiskError, OSError) as error:
                pool.log.info("import.failed", vdi=uuid, error=str(error))
                raise ApiError("VDI_IO_ERROR", "Device I/O error") from error
        await repository.reconcile()
    watch.end()
    if version < 2:
        await disks.check_table()


def _writer(pool: Pool, disk: Disk) -> Callable[[int, bytes], Awaitable[None]]:
    async def write(offset: int, data: bytes) -> None:
        await pool.in_thread(write_bytes, disk, offset, data)

    return write


def write_bytes(disk: Disk, offset: int, data: bytes) -> None:
    """Write any number of bytes anywhere; the rest of the sectors keeps what it holds."""
    before, after = offset % SECTOR, -(offset + len(data)) % SECTOR
    if before:
        data = disk.read(offset - before, SECTOR)[:before] + data
        offset -= before
    if after:
        data += disk.read(offset + len(data) + after - SECTOR, SECTOR)[SECTOR - after :]
    disk.write(offset, data)
