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
from xorepd_lab.front.doors import FORMATS, IO_ERROR, Visit, credentials, find, other_host, task_of
from xorepd_lab.model.failures import ApiError, internal_error
from xorepd_lab.wire import http
from xorepd_lab.wire.streams import ChunkedRawImport, RawImport, StreamError, VhdImport


async def import_raw_vdi(visit: Visit) -> None:
    """Serve one import. Raises ApiError for what becomes a real 500, before any answer."""
    pool, request = visit.pool, visit.request
    async with credentials(visit) as session:
        name = request.parameter("vdi")
        if name is None:
            await _into_new(visit, session)
            return
        vdi = find(pool, "VDI", name)
        try:
            location = other_host(visit, pool.db.get("VDI", vdi, "SR"))
        except ApiError as error:
            await _refuse(visit, error)
            raise
        if location is not None:
            visit.record.outcome = "302"
            await visit.connection.send(http.redirect(location))
            return
        async with task_of(visit, "Importing raw VDI") as task:
            await _serve(visit, vdi, task)


async def _into_new(visit: Visit, session: str) -> None:
    """Import into a disk that is made for it: raw only, as long as the body."""
    pool, request = visit.pool, visit.request
    name = request.parameter("sr_id") or request.parameter("sr_uuid")
    if name is None:
        await _refuse(visit, ApiError("VDI_MISSING"))
        return
    try:
        sr = find(pool, "SR", name)
        location = other_host(visit, sr)
    except ApiError as error:
        await _refuse(visit, error)
        raise
    if location is not None:
        visit.record.outcome = "302"
        await visit.connection.send(http.redirect(location))
        return
    async with task_of(visit, "Importing raw VDI") as task:
        length = request.content_length
        if visit.format != "raw" or length is None:
            await _refuse(visit, ApiError("VDI_MISSING"))
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
        call = Call(pool, visit.host, session, task)
        await _serve(visit, await perform(call, "VDI.create", record), task)


async def _refuse(visit: Visit, error: ApiError) -> None:
    """Answer 400 and fail the client's task."""
    visit.record.outcome = error.code
    async with task_of(visit, "Importing raw VDI") as task:
        visit.pool.tasks.fail(task, error)
    await visit.connection.send(http.bad_request())


async def _serve(visit: Visit, vdi: str, task: str) -> None:
    pool, request = visit.pool, visit.request
    chunked = request.parameter("chunked") is not None
    encoding = request.headers.get("transfer-encoding")
    refusal = None
    if visit.format not in FORMATS:
        refusal = f"Unknown format {visit.format}"
    elif chunked and visit.format != "raw":
        refusal = "Cannot handle chunked VHD"
    elif encoding is not None:
        refusal = f"Cannot handle encoding: {encoding}"
    if refusal is not None:
        visit.record.outcome = "404"
        pool.tasks.fail(task, internal_error(refusal))
        await visit.connection.send(http.missing())
        return
    try:
        await visit.connection.send(http.stream_head(task, FORMATS["raw"]))
        await _work(visit, vdi, chunked)
        if visit.fault is not None:
            await visit.fault.after_work()
    except http.Disconnected:
        visit.record.outcome = "disconnected"
        pool.tasks.fail(task, IO_ERROR)
        raise
    except ApiError as error:
        visit.record.outcome = error.code
        pool.tasks.fail(task, error)
        page = http.internal_error_page(str(error), request.version)
        await visit.connection.send(http.bad_request() + page)
    else:
        pool.tasks.complete(task, result_text(vdi))
        if visit.fault is not None and visit.fault.drop_response:
            visit.connection.cut()


async def _work(visit: Visit, vdi: str, chunked: bool) -> None:
    pool = visit.pool
    if visit.fault is not None:
        await visit.fault.before_work()
    async with attached_to_dom0(pool, visit.host, vdi, "RW"):
        repository, uuid = pool.storage.of_vdi(vdi)
        if visit.format == "vhd" and not _is_prezeroed(pool, vdi):
            pool.log.info("import.failed", vdi=uuid, error="the disk may hold other than zeroes")
            raise IO_ERROR
        try:
            opening = partial(repository.store.open, uuid, writable=True)
            async with pool.opened_in_thread(opening) as disk:
                await _receive(visit, disk, chunked)
        except (StreamError, DiskError, OSError) as error:
            pool.log.info("import.failed", vdi=uuid, error=str(error))
            raise IO_ERROR from error
    await repository.reconcile()


def _is_prezeroed(pool: Pool, vdi: str) -> bool:
    record = pool.db.record("VDI", vdi)
    sr = pool.db.record("SR", record["SR"])
    return kind_of(sr["type"]).is_prezeroed(sr["sm_config"], record["sm_config"])


async def _receive(visit: Visit, disk: Disk, chunked: bool) -> None:
    length = None if chunked else visit.request.content_length
    parser: ChunkedRawImport | RawImport | VhdImport
    if chunked:
        parser = ChunkedRawImport(disk)
    elif visit.format == "vhd":
        parser = VhdImport(disk, length)
    else:
        parser = RawImport(disk, length)
    body = IncomingBody(visit.connection, length, visit.fault)
    try:
        while not parser.done and (piece := await body.take(parser.needed)):
            await visit.pool.in_thread(parser.feed, piece)
    finally:
        visit.record.moved = body.received
    await visit.pool.in_thread(parser.finish)
