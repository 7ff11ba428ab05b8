"""VDI.copy: a disk's data into another VDI, new or there already, on any SR of the pool.

Both are attached to a control domain meanwhile. What the source never had is not written, so that
the copy is as thin as it; with a base only blocks are copied in which the two may differ.

Source: xapi: ocaml/xapi/xapi_vdi.ml (copy), sm_fs_ops.ml (copy_vdi), sparse_dd_wrapper.ml,
message_forwarding.ml.
"""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.dispatch import perform
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.storage.attachments import attached_to_dom0
from xorepd_lab.disks.chain import Disk, DiskError
from xorepd_lab.disks.storage import Repository
from xorepd_lab.disks.vhd import BLOCK, blocks_of
from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.schema import words
from xorepd_lab.rules.storage_rules import check_plugged, check_served, hosts_of
from xorepd_lab.wire.streams import RawExport, batched

COPIED = words(
    "name_label name_description virtual_size type sharable other_config xenstore_data tags"
)
"""What a VDI made for the copy takes over. Locks and parents are in `sm_config`, so not that."""
WHOLE = (0.0, 1.0)
IO_ERROR = ApiError("VDI_COPY_FAILED", 'Failure("sparse_dd")')
"""What is left of any failure of the copying program: xapi: ocaml/xapi/sparse_dd_wrapper.ml."""


@rpc(
    'VDI.copy(vdi: ref VDI, sr: ref SR = "OpaqueRef:NULL", base_vdi: ref VDI = "OpaqueRef:NULL",'
    ' into_vdi: ref VDI = "OpaqueRef:NULL")'
)
async def copy(call: Call, vdi: str, sr: str, base_vdi: str, into_vdi: str) -> str:
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VDI", vdi, "copy")):
        check_served(db, vdi)
        if db.exists("VDI", into_vdi):
            await _copy_into(call, vdi, base_vdi, into_vdi)
            return into_vdi
        new = await _create_like(call, vdi, sr)
        try:
            await _copy_into(call, vdi, base_vdi, new)
        except Exception:  # a toolstack that dies destroys nothing
            if db.exists("VDI", new):
                await perform(call, "VDI.destroy", new)
            raise
        return new


async def _create_like(call: Call, vdi: str, sr: str) -> str:
    db = call.pool.db
    source = db.record("VDI", vdi)
    record = {name: source[name] for name in COPIED}
    new: str = await perform(call, "VDI.create", {**record, "SR": sr, "read_only": False})
    db.set("VDI", new, on_boot=source["on_boot"], allow_caching=source["allow_caching"])
    return new


async def _copy_into(call: Call, vdi: str, base: str, target: str) -> None:
    db = call.pool.db
    source, record = db.record("VDI", vdi), db.record("VDI", target)
    if record["read_only"]:
        raise ApiError("VDI_READONLY", target)
    if record["virtual_size"] < source["virtual_size"]:
        raise ApiError("VDI_TOO_SMALL", target, str(source["virtual_size"]))
    has_base = db.exists("VDI", base)
    repository, _ = call.pool.storage.of_vdi(target)
    sr_config = db.get("SR", record["SR"], "sm_config")
    if has_base and not repository.space.kind.is_prezeroed(sr_config, record["sm_config"]):
        raise ApiError("VDI_NOT_SPARSE", target)
    await copy_data(call, vdi, target, base if has_base else None)


async def copy_data(
    call: Call, vdi: str, target: str, base: str | None, span: tuple[float, float] = WHOLE
) -> None:
    """Write what a VDI holds into another that is at least as large, attaching both.

    Args:
        base: Copy only blocks that this one, or `vdi`, has for itself.
        span: Where in its task the copy begins, and what part of it it is.

    Raises:
        ApiError: VDI_COPY_FAILED, also when it is cancelled, or what stands in the way of attaching
            them.
    """
    pool, db = call.pool, call.pool.db
    host, target_host = _hosts(call, db.get("VDI", vdi, "SR"), db.get("VDI", target, "SR"))
    async with AsyncExitStack() as stack:
        for each in (base, vdi):
            if each is not None:
                await stack.enter_async_context(attached_to_dom0(pool, host, each, "RO"))
        await stack.enter_async_context(attached_to_dom0(pool, target_host, target, "RW"))
        try:
            await move_data(call, vdi, target, base, span)
        except (DiskError, OSError) as error:
            pool.log.info("copy.failed", vdi=vdi, into=target, error=str(error))
            raise IO_ERROR from error
    repository, uuid = pool.storage.of_vdi(target)
    await repository.follow(uuid)


def _hosts(call: Call, source: str, target: str) -> tuple[str, str]:
    """Return who reads and who writes: one host that sees both SRs, rather not the master."""
    db = call.pool.db
    check_plugged(db, source)
    check_plugged(db, target)
    readers, writers = hosts_of(db, source), hosts_of(db, target)
    both = [host for host in readers if host in writers]
    if both:
        host = min(both, key=lambda each: each == call.pool.master)
        return host, host
    return readers[0], writers[0]


async def move_data(
    call: Call, vdi: str, target: str, base: str | None, span: tuple[float, float] = WHOLE
) -> None:
    """Write what a VDI holds into another; see `copy_data`."""
    pool = call.pool
    repository, uuid = pool.storage.of_vdi(vdi)
    into, new = pool.storage.of_vdi(target)
    async with (
        pool.opened_in_thread(partial(into.store.open, new, writable=True)) as writer,
        pool.opened_in_thread(partial(repository.store.open, uuid)) as reader,
    ):
        blocks = await pool.in_thread(_blocks, repository, uuid, _base(call, base))
        done = 0
        for few in batched(blocks):
            _check_cancelled(call)
            await pool.in_thread(_copy_blocks, reader, writer, few, base is not None)
            done += len(few)
            pool.tasks.progress(call.task, span[0] + span[1] * done / len(blocks))
        await pool.in_thread(writer.flush)


def _check_cancelled(call: Call) -> None:
    """Raise what XAPI makes of a cancellation that meets its copying program: a failure."""
    try:
        call.pool.tasks.check_cancelled(call.task)
    except ApiError as error:
        told = f"Server_error({error.code}, [ {'; '.join(error.params)} ])"
        raise ApiError("VDI_COPY_FAILED", told) from error


def _base(call: Call, base: str | None) -> tuple[Repository, str] | None:
    return None if base is None else call.pool.storage.of_vdi(base)


def _blocks(
    repository: Repository, uuid: str, base: tuple[Repository, str] | None
) -> Sequence[int]:
    """Return the 2 MiB blocks to copy, ascending.

    With a base: those in files of only one of the two chains; on different SRs they share none.
    """
    if base is None or base[0] is repository:
        with RawExport(repository.store, uuid, base[1] if base else None) as stream:
            return stream.blocks
    with RawExport(repository.store, uuid) as stream, RawExport(base[0].store, base[1]) as other:
        entries = blocks_of(stream.virtual_size)
        return sorted(index for index in {*stream.blocks, *other.blocks} if index < entries)


def _copy_blocks(reader: Disk, writer: Disk, blocks: Sequence[int], zeroes: bool) -> None:
    """Copy blocks; those all zero only when the target may have something else there."""
    for index in blocks:
        offset = index * BLOCK
        data = reader.read(offset, min(BLOCK, reader.virtual_size - offset))
        if zeroes or any(data):
            writer.write(offset, data)
