"""GET /export_raw_vdi: a disk as a stream, answered with 200 before anything is tried.

    header ► 200 ► attach ► blocks until the end ► detach ► task
                     └─ failure: a whole HTTP 500 response inside the body, task failed

Source: xapi: ocaml/xapi/export_raw_vdi.ml, vhd_tool_wrapper.ml.
"""

from contextlib import AsyncExitStack

from xorepd.lab import http
from xorepd.lab.attachments import attached_to_dom0
from xorepd.lab.bodies import EndedEarly, OutgoingBody
from xorepd.lab.chain import DiskError
from xorepd.lab.doors import FORMATS, IO_ERROR, Visit, credentials, find, other_host, task_of
from xorepd.lab.failures import ApiError, internal_error
from xorepd.lab.streams import RawExport, StreamError, VhdExport


async def export_raw_vdi(visit: Visit) -> None:
    """Serve one export. Raises ApiError for what becomes a real 500, before any answer."""
    pool, request = visit.pool, visit.request
    async with credentials(visit):
        name = request.parameter("vdi")
        if name is None:
            raise ApiError("VDI_MISSING")
        vdi = find(pool, "VDI", name)
        location = other_host(visit, pool.db.get("VDI", vdi, "SR"))
        if location is not None:
            visit.record.outcome = "302"
            await visit.connection.send(http.redirect(location))
            return
        async with task_of(visit, "Exporting raw VDI") as task:
            await _serve(visit, vdi, task)


async def _serve(visit: Visit, vdi: str, task: str) -> None:
    pool = visit.pool
    if visit.format not in FORMATS:
        visit.record.outcome = "404"
        pool.tasks.fail(task, internal_error(f"Unknown format {visit.format}"))
        await visit.connection.send(http.missing())
        return
    uuid = pool.db.get("VDI", vdi, "uuid")
    extension = "raw" if visit.format == "raw" else visit.format
    disposition = f'content-disposition: attachment; filename="{uuid}.{extension}"'
    body = OutgoingBody(visit.connection, visit.fault)
    try:
        await visit.connection.send(http.stream_head(task, FORMATS[visit.format], disposition))
        await _work(visit, vdi, task, body)
    except EndedEarly:
        visit.record.outcome = IO_ERROR.code
        pool.tasks.fail(task, IO_ERROR)
    except http.Disconnected:
        visit.record.outcome = "disconnected"
        pool.tasks.fail(task, IO_ERROR)
        raise
    except ApiError as error:
        visit.record.outcome = error.code
        pool.tasks.fail(task, error)
        await visit.connection.send(http.internal_error_page(str(error)))
    else:
        pool.tasks.complete(task, "")
        if visit.fault is not None and visit.fault.drop_response:
            visit.connection.cut()


async def _work(visit: Visit, vdi: str, task: str, body: OutgoingBody) -> None:
    pool = visit.pool
    async with AsyncExitStack() as stack:
        if visit.fault is not None:
            await visit.fault.before_work()
        await stack.enter_async_context(attached_to_dom0(pool, visit.host, vdi, "RO"))
        repository, uuid = pool.storage.of_vdi(vdi)
        base_uuid = None
        base_name = visit.request.parameter("base")
        if base_name is not None:
            base = find(pool, "VDI", base_name)
            await stack.enter_async_context(attached_to_dom0(pool, visit.host, base, "RO"))
            base_repository, base_uuid = pool.storage.of_vdi(base)
            if base_repository is not repository:
                raise IO_ERROR
        kind: type[VhdExport | RawExport] = VhdExport if visit.format == "vhd" else RawExport
        try:
            export: VhdExport | RawExport = await pool.lab.in_thread(
                kind, repository.store, uuid, base_uuid
            )
            try:
                await _send(visit, export, task, body)
            finally:
                await pool.lab.in_thread(export.close)
        except (StreamError, DiskError, OSError) as error:
            pool.log.info("export.failed", vdi=uuid, error=str(error))
            raise IO_ERROR from error


async def _send(visit: Visit, export: VhdExport | RawExport, task: str, body: OutgoingBody) -> None:
    pieces = export.pieces()
    percent = 0
    while piece := await visit.pool.lab.in_thread(next, pieces, b""):
        await body.send(piece)
        reached = min(99, body.sent * 100 // max(1, export.length))
        if reached > percent:
            percent = reached
            visit.pool.tasks.progress(task, percent / 100)
    await body.finish()
