"""libnbd and QEMU as clients of the lab's NBD server: how people read disks by hand."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.lab.labclient import Api, exchange, get
from tests.lab.nbdclient import allow_nbd, detached, nbd_info
from tests.strangers.programs import need, run, succeed
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.stranger]

MIB = 1 << 20
SIZE = 32 * MIB
"""Of web01-data."""
LIBNBD = "Debian: libnbd-bin"
QEMU = "Debian: qemu-utils"


@pytest.fixture
async def info(api: Api) -> dict[str, Any]:
    """How to reach web01-data with TLS."""
    await allow_nbd(api, "nbd")
    return await nbd_info(api, await api.disk("web01-data"))


@pytest.fixture
def trusted(info: dict[str, Any], tmp_path: Path) -> Path:
    """A directory with the certificate that XAPI told, as GnuTLS programs want it."""
    directory = tmp_path / "tls"
    directory.mkdir()
    (directory / "ca-cert.pem").write_text(info["cert"])
    return directory


def uri(info: dict[str, Any], trusted: Path | None = None) -> str:
    """Return libnbd's name of an export. The name of the export begins with a slash of its own."""
    where = f"{info['address']}:{info['port']}/{quote(info['exportname'], safe='')}"
    if trusted is None:
        return f"nbd://{where}"
    query = f"tls-certificates={trusted}&tls-hostname={info['subject']}"
    return f"nbds://{where}?{query}"


async def digest(lab: Lab, api: Api, info: dict[str, Any]) -> str:
    """Return the digest of the same disk as the HTTP handler gives it."""
    uuid = info["exportname"].partition("?")[0][1:]
    url = lab.pools["prod"].plain_url
    answer = await exchange(url, get(f"/export_raw_vdi?session_id={api.ref}&vdi={uuid}"))
    return hashlib.sha256(answer.partition(b"\r\n\r\n")[2]).hexdigest()


def digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


async def test_nbdinfo_sees_a_read_only_disk_behind_tls(
    info: dict[str, Any], trusted: Path
) -> None:
    nbdinfo = need("nbdinfo", LIBNBD)

    told = json.loads(await succeed(nbdinfo, "--json", uri(info, trusted)))

    assert (told["protocol"], told["TLS"]) == ("newstyle-fixed", True)
    (export,) = told["exports"]
    assert export["export-name"] == info["exportname"]
    assert export["export-size"] == SIZE
    assert export["is_read_only"] is True
    assert not any(value for name, value in export.items() if name.startswith("can_"))
    assert not export.get("contexts")


async def test_nbdinfo_finds_no_map_and_no_list(info: dict[str, Any], trusted: Path) -> None:
    nbdinfo = need("nbdinfo", LIBNBD)

    mapped = await run(nbdinfo, "--map", uri(info, trusted))
    listed = await run(nbdinfo, "--list", uri(info, trusted))

    assert mapped.status != 0
    assert "base:allocation" in mapped.err
    assert listed.status != 0


async def test_nbdinfo_refuses_another_certificate(
    lab: Lab, info: dict[str, Any], trusted: Path
) -> None:
    nbdinfo = need("nbdinfo", LIBNBD)
    pool = lab.pools["dr"]
    (trusted / "ca-cert.pem").write_text(pool.certificates[pool.master].read_text())

    assert (await run(nbdinfo, "--size", uri(info, trusted))).status != 0


async def test_nbdinfo_without_tls_is_turned_away(info: dict[str, Any]) -> None:
    nbdinfo = need("nbdinfo", LIBNBD)

    done = await run(nbdinfo, "--size", uri(info))

    assert done.status != 0


@pytest.mark.parametrize("connections", [1, 4])
async def test_nbdcopy_takes_the_disk_byte_for_byte(
    lab: Lab, api: Api, info: dict[str, Any], trusted: Path, tmp_path: Path, connections: int
) -> None:
    nbdcopy = need("nbdcopy", LIBNBD)
    file = tmp_path / "disk.raw"

    await succeed(nbdcopy, f"--connections={connections}", uri(info, trusted), file)

    assert await asyncio.to_thread(digest_of, file) == await digest(lab, api, info)


async def test_qemu_cannot_talk_to_xapi_by_itself(info: dict[str, Any], trusted: Path) -> None:
    qemu_img = need("qemu-img", QEMU)
    disk = (
        f"driver=nbd,server.type=inet,server.host={info['address']},server.port={info['port']},"
        f"export={info['exportname']},tls-creds=tls0,tls-hostname={info['subject']}"
    )
    credentials = f"tls-creds-x509,id=tls0,dir={trusted},endpoint=client,verify-peer=yes"

    done = await run(qemu_img, "info", "--object", credentials, "--image-opts", disk)

    # Where GO is unknown it wants the list of exports, which xapi-nbd keeps to itself.
    assert done.status != 0
    assert "Denied by server for option 3 (list)" in done.err


@pytest.mark.parametrize("client", ["nbdcopy", "qemu-img"])
async def test_nbdkit_passes_the_disk_on(
    lab: Lab, api: Api, info: dict[str, Any], trusted: Path, tmp_path: Path, client: str
) -> None:
    nbdkit, program = need("nbdkit", "Debian: nbdkit"), need(client, f"{LIBNBD}, {QEMU}")
    file = tmp_path / "disk.raw"
    copy = f"{program} convert -f raw -O raw" if client == "qemu-img" else program
    source = (
        f"hostname={info['address']}", f"port={info['port']}", f"export={info['exportname']}",
        "tls=require", f"tls-certificates={trusted}",
    )  # fmt: skip

    await succeed(nbdkit, "-U", "-", "-r", "nbd", *source, "--run", f'{copy} "$uri" {file}')

    assert await asyncio.to_thread(digest_of, file) == await digest(lab, api, info)


async def test_programs_leave_nothing_behind(
    lab: Lab, api: Api, info: dict[str, Any], trusted: Path
) -> None:
    nbdinfo = need("nbdinfo", LIBNBD)

    await succeed(nbdinfo, "--size", uri(info, trusted))

    await detached(api, await api.disk("web01-data"))
    assert {call.outcome for call in lab.calls if call.kind == "nbd"} == {"ok"}
