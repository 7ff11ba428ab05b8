"""PUT /import_raw_vdi: a stream into a disk, answered with 200 before the body is read.

    header ► 200 ► attach ► body ► flush ► detach ► task, and only it tells how it went
                     └─ failure: task failed, two more responses (400, 500) behind the first, close

Source: xapi: ocaml/xapi/import_raw_vdi.ml, importexport.ml; vhd-tool: impl.ml.
"""

from functools import partial

from xorepd_lab.calls.call import Call, Pool
from xorepd_lab.calls.dispatch import perform
from xorepd_lab.calls.tasks import result_text
from xorepd_lab.classes.storage.attachments import attached_to_dom0
from xorepd_lab.disks.chain import Disk, DiskError
from xorepd_lab.disks.kinds import kind_of
from xorepd_lab.faults.bodies import IncomingBody
from xorepd_lab.front.handlers import (
    FORMATS,
    IO_ERROR,
    Exchange,
    credentials,
    find,
    other_host,
    task_of,
)
from xorepd_lab.model.failures import ApiError, internal_error
from xorepd_lab.wire import http
from xorepd_lab.wire.streams import ChunkedRawImport, RawImport, StreamError, VhdImport


async def import_raw_vdi(exchange: Exchange) -> None:
    """Serve one import. Raises ApiError for what becomes a real 500, before any answer."""
    pool, request = exchange.pool, exchange.request
    async with credentials(exchange) as session:
        name = request.parameter("vdi")
        if name is None:
            await _into_new(exchange, session)
            return
        vdi = find(pool, "VDI", name)
        try:
            location = other_host(exchange, pool.db.get("VDI", vdi, "SR"))
        except ApiError as error:
            await _refuse(exchange, error)
            raise
        if location is not None:
            exchange.record.outcome = "302"
            await exchange.connection.send(http.redirect(location))
            return
        async with task_of(exchange, "Importing raw VDI") as task:
            await _serve(exchange, vdi, task)


async def _into_new(exchange: Exchange, session: str) -> None:
    """Import into a disk that is made for it: raw only, as long as the body."""
    pool, request = exchange.pool, exchange.request
    name = request.parameter("sr_id") or request.parameter("sr_uuid")
    if name is None:
        await _refuse(exchange, ApiError("VDI_MISSING"))
        return
    try:
        sr = find(pool, "SR", name)
        location = other_host(exchange, sr)
    except ApiError as error:
        await _refuse(exchange, error)
        raise
    if location is not None:
        exchange.record.outcome = "302"
        await exchange.connection.send(http.redirect(location))
        return
    async with task_of(exchange, "Importing raw VDI") as task:
        length = request.content_length
        if exchange.format != "raw" or length is None:
            await _refuse(exchange, ApiError("VDI_MISSING"))
            return
        record = {
            "SR": sr,
            "name_label": "Imported VDI",
            "virtual_size": length,
            "type": "user",
            "sharable": False,
            "read_only": False,
            "other_config": {},
        }
        call = Call(pool, exchange.host, session, task)
        await _serve(exchange, await perform(call, "VDI.create", record), task)


async def _refuse(exchange: Exchange, error: ApiError) -> None:
    """Answer 400 and fail the client's task."""
    exchange.record.outcome = error.code
    async with task_of(exchange, "Importing raw VDI") as task:
        exchange.pool.tasks.fail(task, error)
    await exchange.connection.send(http.bad_request())


async def _serve(exchange: Exchange, vdi: str, task: str) -> None:
    pool, request = exchange.pool, exchange.request
    chunked = request.parameter("chunked") is not None
    encoding = request.headers.get("transfer-encoding")
    refusal = None
    if exchange.format not in FORMATS:
        refusal = f"Unknown format {exchange.format}"
    elif chunked and exchange.format != "raw":
        refusal = "Cannot handle chunked VHD"
    elif encoding is not None:
        refusal = f"Cannot handle encoding: {encoding}"
    if refusal is not None:
        exchange.record.outcome = "404"
        pool.tasks.fail(task, internal_error(refusal))
        await exchange.connection.send(http.missing())
        return
    try:
        await exchange.connection.send(http.stream_head(task, FORMATS["raw"]))
        await _work(exchange, vdi, chunked)
        if exchange.fault is not None:
            await exchange.fault.after_work()
    except http.Disconnected:
        exchange.record.outcome = "disconnected"
        pool.tasks.fail(task, IO_ERROR)
        raise
    except ApiError as error:
        exchange.record.outcome = error.code
        pool.tasks.fail(task, error)
        page = http.internal_error_page(str(error), request.version)
        await exchange.connection.send(http.bad_request() + page)
    else:
        pool.tasks.complete(task, result_text(vdi))
        if exchange.fault is not None and exchange.fault.drop_response:
            exchange.connection.cut()


async def _work(exchange: Exchange, vdi: str, chunked: bool) -> None:
    pool = exchange.pool
    if exchange.fault is not None:
        await exchange.fault.before_work()
    async with attached_to_dom0(pool, exchange.host, vdi, "RW"):
        repository, uuid = pool.storage.of_vdi(vdi)
        if exchange.format == "vhd" and not _is_prezeroed(pool, vdi):
            pool.log.info("import.failed", vdi=uuid, error="the disk may hold other than zeroes")
            raise IO_ERROR
        try:
            opening = partial(repository.store.open, uuid, writable=True)
            async with pool.opened_in_thread(opening) as disk:
                await _receive(exchange, disk, chunked)
        except (StreamError, DiskError, OSError) as error:
            pool.log.info("import.failed", vdi=uuid, error=str(error))
            raise IO_ERROR from error
    await repository.reconcile()


def _is_prezeroed(pool: Pool, vdi: str) -> bool:
    record = pool.db.record("VDI", vdi)
    sr = pool.db.record("SR", record["SR"])
    return kind_of(sr["type"]).is_prezeroed(sr["sm_config"], record["sm_config"])


async def _receive(exchange: Exchange, disk: Disk, chunked: bool) -> None:
    length = None if chunked else exchange.request.content_length
    parser: ChunkedRawImport | RawImport | VhdImport
    if chunked:
        parser = ChunkedRawImport(disk)
    elif exchange.format == "vhd":
        parser = VhdImport(disk, length)
    else:
        parser = RawImport(disk, length)
    body = IncomingBody(exchange.connection, length, exchange.fault)
    try:
        while not parser.done and (piece := await body.take(parser.needed)):
            await exchange.pool.in_thread(parser.feed, piece)
    finally:
        exchange.record.moved = body.received
    await exchange.pool.in_thread(parser.finish)
