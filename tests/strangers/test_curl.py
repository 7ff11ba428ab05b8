"""curl at the disk handlers: what a shell script does that has read the page on disk import."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.lab.labclient import Api, vdi_record
from tests.lab.vhd_judges import digest_by_qemu
from tests.strangers.programs import need, run, succeed
from xorepd_lab.demo import judge
from xorepd_lab.lab import Lab
from xorepd_lab.pools import Pool

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.stranger]

MIB = 1 << 20


def curl(pool: Pool, *arguments: str | Path) -> tuple[str | Path, ...]:
    """Return the command that follows redirects and fails when the server says that it failed."""
    program = need("curl", "Debian: curl")
    return (program, "--silent", "--show-error", "--fail", "--cacert", pool.ca_file, *arguments)


async def sha256_of(lab: Lab, api: Api, vdi: str) -> str:
    """Return what libvhdi reads in a VDI's files."""
    record = await api("VDI.get_record", vdi)
    sr = await api("SR.get_name_label", record["SR"])
    await lab.settled()
    directory = lab.pools["prod"].srs[sr].directory
    return await asyncio.to_thread(judge.sha256, directory, record["uuid"])


async def new_vdi(api: Api, like: str) -> str:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    size = int(await api("VDI.get_virtual_size", like))
    return str(await api("VDI.create", vdi_record(sr, size)))


async def test_a_disk_makes_the_round_as_vhd_by_session(lab: Lab, api: Api, tmp_path: Path) -> None:
    pool, file = lab.pools["prod"], tmp_path / "disk.vhd"
    source = await api.disk("web01-root")
    target = await new_vdi(api, source)
    query = f"session_id={api.ref}&format=vhd"

    await succeed(*curl(pool, "-o", file, f"{pool.url}/export_raw_vdi?{query}&vdi={source}"))
    task = await api("task.create", "curl", "")
    await succeed(
        *curl(pool, "-T", file, f"{pool.url}/import_raw_vdi?{query}&vdi={target}&task_id={task}")
    )

    assert (await api.finished(task))["status"] == "success"
    await api("task.destroy", task)
    expected = await sha256_of(lab, api, source)
    assert await sha256_of(lab, api, target) == expected
    need("qemu-img", "Debian: qemu-utils")
    assert await asyncio.to_thread(digest_by_qemu, file, tmp_path) == expected
    with judge.Disk(tmp_path, "disk") as disk:
        assert disk.sha256() == expected


async def test_a_disk_makes_the_round_as_raw_with_a_password(
    lab: Lab, api: Api, tmp_path: Path
) -> None:
    pool, file = lab.pools["prod"], tmp_path / "disk.raw"
    source = await api.disk("web01-data")
    target = await new_vdi(api, source)
    login = ("--user", f"{pool.username}:{pool.password}")

    await succeed(*curl(pool, *login, "-o", file, f"{pool.url}/export_raw_vdi?vdi={source}"))
    await succeed(*curl(pool, *login, "-T", file, f"{pool.url}/import_raw_vdi?vdi={target}"))

    assert hashlib.sha256(file.read_bytes()).hexdigest() == await sha256_of(lab, api, source)
    assert await sha256_of(lab, api, target) == await sha256_of(lab, api, source)


async def test_a_redirect_leads_to_the_host_that_has_the_disk(
    lab: Lab, api: Api, tmp_path: Path
) -> None:
    pool, file = lab.pools["prod"], tmp_path / "disk.vhd"
    source = await api.disk("db01-data")
    query = f"session_id={api.ref}&format=vhd&vdi={source}"

    there = await succeed(
        *curl(pool, "-L", "-o", file, "-w", "%{http_code} %{num_redirects} %{remote_ip}"),
        f"{pool.url}/export_raw_vdi?{query}",
    )

    assert there == f"200 1 {pool.address(pool.host('prod-h2'))}"
    with judge.Disk(tmp_path, "disk") as disk:
        assert disk.sha256() == await sha256_of(lab, api, source)


async def test_a_shell_script_speaks_json(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]

    async def ask(method: str, *params: object) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        header = ("-H", "Content-Type: application/json", "--data", body)
        return json.loads(await succeed(*curl(pool, *header, f"{pool.url}/jsonrpc")))

    session = (await ask("session.login_with_password", pool.username, pool.password))["result"]
    (vm,) = (await ask("VM.get_by_name_label", session, "web01"))["result"]
    failure = await ask("VM.start", session, vm, False, False)
    await ask("session.logout", session)
    late = await ask("VM.get_all", session)

    assert vm == await api.vm("web01")
    assert failure["error"]["message"] == "VM_BAD_POWER_STATE"
    assert failure["error"]["data"] == [vm, "halted", "running"]
    assert late["error"]["message"] == "SESSION_INVALID"


async def test_a_wrong_password_and_a_wrong_disk_are_refused(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    status = ("-o", "/dev/null", "-w", "%{http_code}")

    wrong = await run(*curl(pool, *status, "-u", "root:x", f"{pool.url}/export_raw_vdi?vdi=x"))
    none = await run(
        *curl(pool, *status, f"{pool.url}/export_raw_vdi?session_id={api.ref}&vdi=none")
    )

    assert (wrong.status, wrong.out) == (22, "401")
    assert (none.status, none.out) == (22, "500")
