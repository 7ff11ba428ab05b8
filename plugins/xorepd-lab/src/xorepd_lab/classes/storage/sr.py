"""SR: storage.

Source: xapi: ocaml/xapi/xapi_sr.ml, message_forwarding.ml (module SR), ocaml/idl/datamodel.ml;
sm: libs/sm/drivers/*.py.
"""

import shutil
from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.storage.pbd import set_plugged
from xorepd_lab.disks.kinds import kind_of
from xorepd_lab.model.failures import ApiError, backend_failure
from xorepd_lab.rules.storage_rules import attached_pbds, check_plugged

NEEDED_OF_A_HOST = {
    "ext": (("device", 90),),
    "lvm": (("device", 90),),
    "nfs": (("server", 102), ("serverpath", 101)),
    "smb": (("server", 102),),
    "file": (("location", 94),),
    "iso": (("location", 94),),
}
"""Keys of `device_config` that drivers insist on, and the failure when one is missing."""
UNKNOWN_SIZE = -1


@rpc("SR.scan(sr: ref SR)")
async def scan(call: Call, sr: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("SR", sr, "scan")):
        check_plugged(call.pool.db, sr)
        repository = call.pool.storage.of(sr)
        await repository.reconcile(scan=True)
        call.pool.db.drop("SR", sr, "other_config", "dirty")
    repository.garbage.kick()


@rpc("SR.update(sr: ref SR)")
async def update(call: Call, sr: str) -> None:
    """Refresh the SR's own numbers. It waits for nobody."""
    check_plugged(call.pool.db, sr)
    repository = call.pool.storage.of(sr)
    repository.update_totals(await repository.change(repository.store.nodes))


@rpc("SR.get_supported_types()", asynchronous=False)
def get_supported_types(call: Call) -> list[str]:
    db = call.pool.db
    return sorted(db.get("SM", driver, "type") for driver in db.refs("SM"))


_CREATE = (
    "SR.create(host: ref host, device_config: map string string, physical_size: int,"
    " name_label: string, name_description: string, type: string, content_type: string,"
    " shared: bool, sm_config: map string string = {})"
)
_INTRODUCE = (
    "SR.introduce(uuid: string, name_label: string, name_description: string, type: string,"
    " content_type: string, shared: bool, sm_config: map string string = {})"
)


@rpc(_CREATE)
async def create(
    call: Call,
    host: str,
    device_config: dict[str, str],
    physical_size: int,
    name_label: str,
    name_description: str,
    kind: str,
    content_type: str,
    shared: bool,
    sm_config: dict[str, str],
) -> str:
    """Make an SR, empty, and plug it in on the hosts that are to see it."""
    pool, db = call.pool, call.pool.db
    db.row("host", host)
    sr = _introduce(
        call, "", name_label, name_description, kind, content_type, shared, dict(sm_config)
    )
    try:
        _check_driver(call, kind, device_config)
        for each in db.refs("host") if shared else [host]:
            db.create("PBD", SR=sr, host=each, device_config=device_config)
        made = {**kind_of(kind).sm_config, **sm_config}
        db.set("SR", sr, physical_size=physical_size, sm_config=made)
        await pool.storage.attach(sr, new=True)
    except ApiError:
        _forget(call, sr)
        raise
    for pbd in db.get("SR", sr, "PBDs"):
        set_plugged(call, pbd, plugged=True)
    return sr


def _check_driver(call: Call, kind: str, device_config: dict[str, str]) -> None:
    if not any(call.pool.db.select("SM", type=kind.lower())):
        raise ApiError("SR_UNKNOWN_DRIVER", kind.lower())
    for key, failure in NEEDED_OF_A_HOST.get(kind.lower(), ()):
        if not device_config.get(key):
            raise backend_failure(failure)


@rpc(_INTRODUCE)
def introduce(
    call: Call,
    uuid: str,
    name_label: str,
    name_description: str,
    kind: str,
    content_type: str,
    shared: bool,
    sm_config: dict[str, str],
) -> str:
    """Make only the record. Plugging a PBD of it finds what the SR holds."""
    return _introduce(
        call, uuid, name_label, name_description, kind, content_type, shared, sm_config
    )


def _introduce(
    call: Call,
    uuid: str,
    name_label: str,
    name_description: str,
    kind: str,
    content_type: str,
    shared: bool,
    sm_config: dict[str, str],
) -> str:
    db = call.pool.db
    if uuid and any(db.select("SR", uuid=uuid)):
        raise ApiError("SR_UUID_EXISTS", uuid)
    sr = db.create(
        "SR",
        uuid=uuid,
        name_label=name_label,
        name_description=name_description,
        type=kind.lower(),
        content_type=content_type,
        shared=shared,
        sm_config=sm_config,
        physical_size=UNKNOWN_SIZE,
        physical_utilisation=UNKNOWN_SIZE,
    )
    call.pool.operations.refresh("SR", sr)
    return sr


@rpc("SR.forget(sr: ref SR)")
async def forget(call: Call, sr: str) -> None:
    """Drop all records; what stands on the SR stays there."""
    async with call.pool.operations.hold(call.task, Claim("SR", sr, "forget")):
        _forget(call, sr)


@rpc("SR.destroy(sr: ref SR)")
async def destroy(call: Call, sr: str) -> None:
    pool, db = call.pool, call.pool.db
    async with pool.operations.hold(call.task, Claim("SR", sr, "destroy")):
        if db.get("SR", sr, "other_config").get("indestructible") == "true":
            raise ApiError("SR_INDESTRUCTIBLE", sr)
        for host in db.select("host", local_cache_sr=sr):
            raise ApiError("SR_IS_CACHE_SR", host)
        directory = pool.sr_directory(db.get("SR", sr, "uuid"))
        await pool.in_thread(shutil.rmtree, directory, ignore_errors=True)
        _forget(call, sr)


def _forget(call: Call, sr: str) -> None:
    db = call.pool.db
    call.pool.storage.repositories.pop(sr, None)
    for pbd in db.get("SR", sr, "PBDs"):
        db.destroy("PBD", pbd)
    for vdi in db.get("SR", sr, "VDIs"):
        for vbd in db.get("VDI", vdi, "VBDs"):
            db.destroy("VBD", vbd)
        db.destroy("VDI", vdi)
    db.destroy("SR", sr)


@rpc(
    "SR.make(host: ref host, device_config: map string string, physical_size: int,"
    " name_label: string, name_description: string, type: string, content_type: string,"
    " sm_config: map string string = {})"
)
def make(call: Call, *_: Any) -> str:
    raise ApiError("MESSAGE_DEPRECATED")


@rpc("SR.set_name_label(sr: ref SR, value: string)")
def set_name_label(call: Call, sr: str, value: str) -> None:
    check_plugged(call.pool.db, sr)
    call.pool.db.set("SR", sr, name_label=value)


@rpc("SR.set_name_description(sr: ref SR, value: string)")
def set_name_description(call: Call, sr: str, value: str) -> None:
    check_plugged(call.pool.db, sr)
    call.pool.db.set("SR", sr, name_description=value)


@rpc("SR.set_shared(sr: ref SR, value: bool)")
def set_shared(call: Call, sr: str, value: bool) -> None:
    pbds = call.pool.db.get("SR", sr, "PBDs")
    if not value and len(pbds) > 1:
        raise ApiError("SR_HAS_MULTIPLE_PBDS", *pbds)
    call.pool.db.set("SR", sr, shared=value)


@rpc("SR.get_live_hosts(sr: ref SR)")
def get_live_hosts(call: Call, sr: str) -> list[str]:
    db = call.pool.db
    db.row("SR", sr)
    hosts = [db.get("PBD", pbd, "host") for pbd in attached_pbds(db, sr)]
    return [host for host in hosts if db.get("host", host, "enabled")]
