"""Objects that can be made and removed, and of which nothing else follows here.

Source: xapi: ocaml/idl/datamodel.ml, ocaml/xapi/xapi_blob.ml, xapi_secret.ml.
"""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.generics import create_arguments
from xorepd_lab.calls.signatures import Method, Parameter, register, rpc
from xorepd_lab.model.bystanders import NEWER_TABLES
from xorepd_lab.model.schema import Type, words

MADE_AND_REMOVED = words("secret user VM_appliance VMSS Observer PVS_cache_storage VM_group")
REMOVED_ONLY = words("crashdump host_crashdump pool_patch")


def _declare(cls: str, made: bool) -> None:
    def create(call: Call, record: dict[str, Any]) -> str:
        return call.pool.db.create(cls, **create_arguments(cls, record))

    def destroy(call: Call, ref: str) -> None:
        call.pool.db.destroy(cls, ref)

    newer = cls in NEWER_TABLES
    record = Parameter("args", Type("record", cls), mandatory=True)
    own = Parameter("self", Type("ref", cls), mandatory=True)
    if made:
        register(Method(f"{cls}.create", (record,), create, newer=newer))
    register(Method(f"{cls}.destroy", (own,), destroy, newer=newer))


for _cls in MADE_AND_REMOVED:
    _declare(_cls, made=True)
for _cls in REMOVED_ONLY:
    _declare(_cls, made=False)


@rpc("blob.create(mime_type: string, public: bool = false)", asynchronous=False)
def create_blob(call: Call, mime_type: str, public: bool) -> str:
    return call.pool.db.create(
        "blob",
        mime_type=mime_type or "application/octet-stream",
        public=public,
        last_updated=call.pool.clock.now(),
    )


@rpc("blob.destroy(self: ref blob)", asynchronous=False)
def destroy_blob(call: Call, blob: str) -> None:
    call.pool.db.destroy("blob", blob)
