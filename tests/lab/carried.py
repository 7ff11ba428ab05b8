"""Copies of a VM that others brought to the target pool, labelled as their makers label them."""

from __future__ import annotations

import asyncio
import base64
import http.client
import ssl
import struct
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from tests.lab import hands
from tests.lab.labclient import VM_RECORD, vbd_record, vdi_record
from tests.lab.world import World

JOB, SCHEDULE = "2f1d2a0e-7a0b-4c55-9d0e-4b8d43c1a001", "2f1d2a0e-7a0b-4c55-9d0e-4b8d43c1a002"
BLOCK = "Start operation for this vm is blocked, clone it if you want to use it."
WHEN = "20260301T02:00:00Z"


async def snapshot(world: World, name: str = "carried away") -> str:
    """Snapshot web01 by hand; return the snapshot's reference."""
    ref: str = await world.ask("prod", lambda x: x.VM.snapshot(hands.vm_of(x, "web01"), name))
    return ref


async def carry(world: World, taken: str) -> str:
    """Copy a snapshot's disks into a new VM of the pool `dr`; return the VM's reference."""

    def describe(xenapi: Any) -> dict[str, tuple[str, str]]:
        disks = hands.disks_of(xenapi, taken)
        return {
            device: (xenapi.VDI.get_uuid(vdi), xenapi.VDI.get_virtual_size(vdi))
            for device, vdi in disks.items()
        }

    sources = await world.ask("prod", describe)

    def make(xenapi: Any) -> tuple[str, dict[str, str]]:
        [sr] = xenapi.SR.get_by_name_label("dr-storage")
        vm = str(xenapi.VM.create({**VM_RECORD, "name_label": "carried"}))
        made = {}
        for device, (_, size) in sources.items():
            vdi = xenapi.VDI.create(vdi_record(sr, int(size)))
            xenapi.VBD.create(vbd_record(vm, vdi, userdevice=device))
            made[device] = str(xenapi.VDI.get_uuid(vdi))
        return vm, made

    vm, made = await world.ask("dr", make)
    for device, (uuid, size) in sources.items():
        await asyncio.to_thread(_copy, world, uuid, made[device], int(size))
    return str(vm)


def _copy(world: World, source: str, target: str, size: int) -> None:
    """ReplicaKey a disk from pool to pool; the import answers before it has seen the body."""
    out, into = _connection(world, "prod"), _connection(world, "dr")
    with closing(out), closing(into):
        out.request("GET", f"/export_raw_vdi?vdi={source}&format=raw", headers=_auth(world, "prod"))
        given = out.getresponse()
        assert given.status == 200
        headers = _auth(world, "dr") | {"Content-Length": str(size)}
        into.request("PUT", f"/import_raw_vdi?vdi={target}&format=raw", b"", headers)
        while data := given.read(1 << 20):
            into.send(data)
        taken = into.getresponse()
        assert taken.status == 200
        taken.read()  # it ends when all of it has been taken


async def overwrite(world: World, pool: str, vdi: str, offset: int, data: bytes) -> None:
    """Write into a disk, past everybody who thinks that he knows what is on it."""
    chunk = struct.pack("<QI", offset, len(data)) + data + bytes(12)

    def put() -> None:
        with closing(_connection(world, pool)) as into:
            path = f"/import_raw_vdi?vdi={vdi}&format=raw&chunked=true"
            into.request("PUT", path, chunk, _auth(world, pool))
            response = into.getresponse()
            assert response.status == 200
            response.read()  # it ends when all of it has been taken

    await asyncio.to_thread(put)


def _connection(world: World, pool: str) -> http.client.HTTPSConnection:
    described = world.described(pool)
    place = urlsplit(described["url"])
    tls = ssl.create_default_context(cafile=described["ca_file"])
    return http.client.HTTPSConnection(place.hostname or "", place.port, context=tls)


def _auth(world: World, pool: str) -> dict[str, str]:
    described = world.described(pool)
    credentials = f"{described['username']}:{described['password']}".encode()
    return {"Authorization": f"Basic {base64.b64encode(credentials).decode()}"}


async def label_source(world: World, taken: str, *, era: str) -> dict[str, tuple[str, str]]:
    """Write Xen Orchestra's keys on a source snapshot; return device → (UUID of disk, content)."""

    def deed(xenapi: Any) -> dict[str, tuple[str, str]]:
        source = xenapi.VM.get_uuid(xenapi.VM.get_snapshot_of(taken))
        keys = {
            "xo:backup:job": JOB,
            "xo:backup:schedule": SCHEDULE,
            "xo:backup:vm": source,
            "xo:backup:datetime": WHEN,
            "xo:backup:exported": "true",
        }
        for key, value in keys.items():
            xenapi.VM.add_to_other_config(taken, key, value)
        found = {}
        for device, vdi in hands.disks_of(xenapi, taken).items():
            uuid = xenapi.VDI.get_uuid(vdi)
            for key, value in keys.items():
                xenapi.VDI.add_to_other_config(vdi, key, value)
            if era == "6.5":
                xenapi.VDI.add_to_other_config(vdi, "xo:backup:contentKey", uuid)
            found[device] = (str(uuid), str(uuid))
        return found

    found: dict[str, tuple[str, str]] = await world.ask("prod", deed)
    return found


async def label_copy(
    world: World, vm: str, taken: str, contents: dict[str, tuple[str, str]], *, era: str
) -> None:
    """Make of a carried VM what Xen Orchestra of an era leaves: `6.2`, `6.3` or `6.5`."""
    source = await world.ask("prod", lambda x: x.VM.get_uuid(x.VM.get_snapshot_of(taken)))
    origin = await world.ask("prod", lambda x: x.VM.get_uuid(taken))

    def deed(xenapi: Any) -> None:
        keys = {
            "xo:backup:job": JOB,
            "xo:backup:schedule": SCHEDULE,
            "xo:backup:vm": source,
            "xo:backup:datetime": WHEN,
        }
        for key, value in (keys | {"xo:copy_of": origin}).items():
            xenapi.VM.add_to_other_config(vm, key, value)
        for operation in ("start", "start_on"):
            xenapi.VM.add_to_blocked_operations(vm, operation, BLOCK)
        xenapi.VM.add_tags(vm, "Continuous Replication")
        disks = hands.disks_of(xenapi, vm)
        for device, vdi in disks.items():
            uuid, content = contents[device]
            for key, value in (keys | {"xo:copy_of": uuid}).items():
                xenapi.VDI.add_to_other_config(vdi, key, value)
            if era == "6.5":
                xenapi.VDI.add_to_other_config(vdi, "xo:backup:contentKey", content)
        if era == "6.2":
            return
        xenapi.VM.snapshot(vm, "web01 - nightly / daily 20260301T020000Z")
        for key in (*keys, "xo:copy_of"):
            xenapi.VM.remove_from_other_config(vm, key)
        for vdi in disks.values():
            for key in (*keys, "xo:copy_of", "xo:backup:contentKey"):
                xenapi.VDI.remove_from_other_config(vdi, key)

    await world.ask("dr", deed)
