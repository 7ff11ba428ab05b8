"""Proof by others: libvhdi and e2fsck judge the disks, the XenAPI SDK asks the pools."""

from __future__ import annotations

import ssl
import tempfile
import xmlrpc.client
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import XenAPI

from xorepd_lab.demo import judge

DISK = tuple[Path, str]
"""Directory of an SR, and UUID of a VDI in it."""
Hashes = Callable[[Sequence[DISK]], list[str]]
"""Of what disks hold."""


class ProofError(Exception):
    """Something that was promised does not hold."""


@contextmanager
def login(pool: dict[str, Any]) -> Iterator[Any]:
    """Provide the SDK, logged in to a pool over verified TLS."""
    context = ssl.create_default_context(cafile=pool["ca_file"])
    transport = xmlrpc.client.SafeTransport(context=context)
    session = XenAPI.Session(pool["url"] + "/", transport=transport)
    session.xenapi.login_with_password(pool["username"], pool["password"], "1.0", "demo")
    try:
        yield session.xenapi
    finally:
        session.xenapi.session.logout()
        transport.close()


def hold_files_still(pool: dict[str, Any]) -> None:
    """Switch background coalescing off: it rewrites files that a judge may be reading."""
    with login(pool) as xenapi:
        for sr in xenapi.SR.get_all():
            xenapi.SR.remove_from_other_config(sr, "coalesce")
            xenapi.SR.add_to_other_config(sr, "coalesce", "false")


def disks_of(pool: dict[str, Any], xenapi: Any, vm_uuid: str) -> dict[str, DISK]:
    """Return a VM's hard disks by device."""
    directories = {sr["uuid"]: Path(sr["directory"]) for sr in pool["srs"]}
    disks = {}
    for vbd in xenapi.VM.get_VBDs(xenapi.VM.get_by_uuid(vm_uuid)):
        record = xenapi.VBD.get_record(vbd)
        if record["type"] == "Disk":
            vdi = xenapi.VDI.get_record(record["VDI"])
            sr_uuid = xenapi.SR.get_uuid(vdi["SR"])
            disks[record["userdevice"]] = (directories[sr_uuid], vdi["uuid"])
    return disks


_WORTH_A_PROCESS = 1 << 30


def hashes(disks: Sequence[DISK]) -> list[str]:
    """Return the SHA-256 of disks as libvhdi reads them; large ones two at a time."""
    if all(judge.virtual_size(*disk) < _WORTH_A_PROCESS for disk in disks):
        return [judge.sha256(*disk) for disk in disks]
    with ProcessPoolExecutor(2) as executor:
        return list(executor.map(judge.sha256, *zip(*disks, strict=True)))


def check_equal(
    source: dict[str, DISK], replica: dict[str, DISK], hashes: Hashes = hashes
) -> dict[str, str]:
    """Return the hash per device, which is that of both sides.

    Raises:
        ProofError: a disk differs.
    """
    if source.keys() != replica.keys():
        raise ProofError(f"the source has disks {sorted(source)}, the replica {sorted(replica)}")
    devices = sorted(source)
    found = hashes([disk for device in devices for disk in (source[device], replica[device])])
    for device, ours, theirs in zip(devices, found[::2], found[1::2], strict=True):
        if ours != theirs:
            raise ProofError(f"disk {device} differs: source {ours}, replica {theirs}")
    return dict(zip(devices, found[::2], strict=True))


def check_filesystem(disk: DISK, path: str, expected: bytes) -> str:
    """Return what e2fsck says of the filesystem on a disk.

    Raises:
        ProofError: e2fsck finds something wrong, or the file has another content.
    """
    with tempfile.TemporaryDirectory(prefix="xorepd-proof-") as directory:
        image = Path(directory) / "root.img"
        with judge.Disk(*disk) as vhd:
            vhd.save(image)
        verdict = judge.check_ext4(image)
        found = judge.read_ext4_file(image, path)
    if found != expected:
        raise ProofError(f"{path} contains {found!r}, not {expected!r}")
    return verdict


def leftovers(pool: dict[str, Any], xenapi: Any) -> list[str]:
    """Return what a run may have left on a pool and must not have."""
    vms = xenapi.VM.get_all_records()
    memory = {vm["suspend_VDI"] for vm in vms.values()}
    found = [
        f"a disk attached to the control domain (VBD {vbd['uuid']})"
        for vbd in xenapi.VBD.get_all_records().values()
        if vms[vbd["VM"]]["is_control_domain"]
    ]
    found += [
        f"an unfinished VM {vm['name_label']}"
        for vm in vms.values()
        if vm["name_label"].startswith(("[Importing", "xorepd-unmarked"))
    ]
    found += [
        f"a migration block on {vm['name_label']}"
        for vm in vms.values()
        if any("xorepd" in text for text in vm["blocked_operations"].values())
    ]
    found += [
        f"a disk that belongs to nothing ({vdi['name_label']} {vdi['uuid']})"
        for ref, vdi in xenapi.VDI.get_all_records().items()
        if vdi["managed"] and not vdi["VBDs"] and ref not in memory
    ]
    found += [
        f"a task {task['name_label']}"
        for task in xenapi.task.get_all_records().values()
        if task["status"] == "pending"
        or task["name_label"].startswith("xorepd")
        or "http:xorepd" in task["other_config"]
    ]
    return found
