"""GET /export_raw_vdi: a disk as a stream, answered with 200 before anything is tried.

    header ► 200 ► attach ► blocks until the end ► detach ► task
                     └─ failure: a whole HTTP 500 response inside the body, task failed

Source: xapi: ocaml/xapi/export_raw_vdi.ml, vhd_tool_wrapper.ml.
"""

from collections import deque
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from xorepd_lab.calls.call import Pool
from xorepd_lab.classes.storage.attachments import attached_to_dom0
from xorepd_lab.disks.chain import DiskError
from xorepd_lab.disks.kinds import MAX_VHD, kind_of
from xorepd_lab.disks.vhd_file import FileRange
from xorepd_lab.faults.bodies import EndedEarly, OutgoingBody
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
from xorepd_lab.wire.streams import Export, Part, RawExport, StreamError, TarExport, VhdExport

CONTENT_TYPES: Final = FORMATS | {"tar": "application/x-tar"}


async def export_raw_vdi(exchange: Exchange) -> None:
    """Serve one export. Raises ApiError for what becomes a real 500, before any answer."""
    pool, request = exchange.pool, exchange.request
    async with credentials(exchange):
        name = request.parameter("vdi")
        if name is None:
            raise ApiError("VDI_MISSING")
        vdi = find(pool, "VDI", name)
        location = other_host(exchange, pool.db.get("VDI", vdi, "SR"))
        if location is not None:
            exchange.record.outcome = "302"
            await exchange.connection.send(http.redirect(location))
            return
        async with task_of(exchange, "Exporting raw VDI") as task:
            await _serve(exchange, vdi, task)


async def _serve(exchange: Exchange, vdi: str, task: str) -> None:
    pool = exchange.pool
    if exchange.format not in CONTENT_TYPES:
        exchange.record.outcome = "404"
        pool.tasks.fail(task, internal_error(f"Unknown format {exchange.format}"))
        await exchange.connection.send(http.missing())
        return
    uuid = pool.db.get("VDI", vdi, "uuid")
    extension = "raw" if exchange.format == "raw" else exchange.format
    disposition = f'content-disposition: attachment; filename="{uuid}.{extension}"'
    body = OutgoingBody(exchange.connection, exchange.fault)
    try:
        await exchange.connection.send(
            http.stream_head(task, CONTENT_TYPES[exchange.format], disposition)
        )
        await _work(exchange, vdi, task, body)
        if exchange.fault is not None:
            await exchange.fault.after_work()
    except EndedEarly:
        exchange.record.outcome = IO_ERROR.code
        pool.tasks.fail(task, IO_ERROR)
    except http.Disconnected:
        exchange.record.outcome = "disconnected"
        pool.tasks.fail(task, IO_ERROR)
        raise
    except ApiError as error:
        exchange.record.outcome = error.code
        pool.tasks.fail(task, error)
        await exchange.connection.send(
            http.internal_error_page(str(error), exchange.request.version)
        )
    else:
        pool.tasks.complete(task, "")
        if exchange.fault is not None and exchange.fault.drop_response:
            exchange.connection.cut()
    finally:
        exchange.record.moved = body.sent


async def _work(exchange: Exchange, vdi: str, task: str, body: OutgoingBody) -> None:
    pool, db = exchange.pool, exchange.pool.db
    if exchange.format == "vhd" and db.get("VDI", vdi, "virtual_size") > MAX_VHD:
        raise ApiError("VDI_TOO_LARGE", vdi, str(MAX_VHD))
    async with AsyncExitStack() as stack:
        if exchange.fault is not None:
            await exchange.fault.before_work()
        await stack.enter_async_context(attached_to_dom0(pool, exchange.host, vdi, "RO"))
        repository, uuid = pool.storage.of_vdi(vdi)
        is_vhd = _is_vhd(pool, vdi)
        base_uuid = None
        base_name = exchange.request.parameter("base")
        if base_name is not None:
            base = find(pool, "VDI", base_name)
            await stack.enter_async_context(attached_to_dom0(pool, exchange.host, base, "RO"))
            if not is_vhd:
                raise _failure("Cannot compute differences on non-VHD images")
            if not _is_vhd(pool, base):
                raise _failure("base VDI is not a vhd; cannot compute differences")
            base_repository, base_uuid = pool.storage.of_vdi(base)
            if base_repository is not repository:
                raise IO_ERROR
        make: dict[str, type[Export]] = {"vhd": VhdExport, "raw": RawExport, "tar": TarExport}
        try:
            opening = partial(
                make[exchange.format], repository.store, uuid, base_uuid, scanned=not is_vhd
            )
            async with pool.opened_in_thread(opening) as export:
                await _send(exchange, export, task, body)
        except (StreamError, DiskError, OSError) as error:
            pool.log.info("export.failed", vdi=uuid, error=str(error))
            raise IO_ERROR from error


def _is_vhd(pool: Pool, vdi: str) -> bool:
    record = pool.db.record("VDI", vdi)
    kind = kind_of(pool.db.get("SR", record["SR"], "type"))
    return kind.is_vhd(record["sm_config"])


def _failure(text: str) -> ApiError:
    """Return what OCaml's `failwith` becomes."""
    return internal_error(f'Failure("{text}")')


async def _send(exchange: Exchange, export: Export, task: str, body: OutgoingBody) -> None:
    lists = export.parts(body.takes_files)
    waiting: deque[Part] = deque()  # what was opened and not sent yet, however this ends

    def prepare() -> bool:
        waiting.extend(next(lists, ()))
        return bool(waiting)

    percent = 0
    try:
        while await exchange.pool.in_thread(prepare):
            while waiting:
                await _send_part(waiting[0], body)
                _let_go(waiting.popleft())
            reached = min(99, body.sent * 100 // max(1, export.length))
            if reached > percent:
                percent = reached
                exchange.pool.tasks.progress(task, percent / 100)
    finally:
        for part in waiting:
            _let_go(part)
    await body.finish()


async def _send_part(part: Part, body: OutgoingBody) -> None:
    if isinstance(part, bytes):
        await body.send(part)
    else:
        await body.send_file(part)


def _let_go(part: Part) -> None:
    if isinstance(part, FileRange):
        part.close()
