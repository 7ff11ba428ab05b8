"""What a started lab tells: addresses, passwords, and a daemon configuration that works with it."""

from pathlib import Path
from typing import Any

from xorepd_lab.admin import socket_path
from xorepd_lab.lab import Lab
from xorepd_lab.pools import Pool
from xorepd_lab.topology import Topology

_CONFIGURATION = """\
# Written by xorepd-lab for the lab in {state}.

[daemon]
state_dir = "{state}/daemon"
socket = "{state}/xorepd.sock"
{pools}
[jobs.web]
source = "{source}"
vms = ["{vm}"]
schedule = "*/5 * * * *"
timezone = "UTC"
keep = 3
changed_blocks = "enable"
target = {{ pool = "{target}", sr = "{sr}" }}
"""
_POOL = """
[pools.{name}]
url = "{url}"
username = "{username}"
password_file = "{password_file}"
ca_file = "{ca_file}"
"""


def write_files(lab: Lab, topology: Topology) -> Path:
    """Write password files and a configuration for the daemon; return the latter's path."""
    state = lab.directory.resolve()
    sections = ""
    for name, pool in lab.pools.items():
        password_file = state / f"{name}.password"
        _write_private(password_file, pool.password + "\n")
        sections += _POOL.format(
            name=name,
            url=pool.url,
            username=pool.username,
            password_file=password_file,
            ca_file=pool.ca_file.resolve(),
        )
    source, vm, target, sr = topology.job
    path = state / "xorepd.toml"
    text = _CONFIGURATION.format(
        state=state, pools=sections, source=source, vm=vm, target=target, sr=sr
    )
    _write_private(path, text)
    return path


def describe(lab: Lab, config: Path) -> dict[str, Any]:
    """Return everything that somebody needs to use the lab, as JSON."""
    return {
        "pools": [_describe_pool(pool) for pool in lab.pools.values()],
        "config": str(config),
        "admin": str(socket_path(lab.directory)),
    }


def _describe_pool(pool: Pool) -> dict[str, Any]:
    db = pool.db
    hosts = sorted(db.refs("host"), key=lambda ref: ref != pool.master)
    return {
        "name": pool.name,
        "url": pool.url,
        "plain_url": pool.plain_url,
        "username": pool.username,
        "password": pool.password,
        "ca_file": str(pool.ca_file.resolve()),
        "hosts": [
            {
                "uuid": db.get("host", ref, "uuid"),
                "name": db.get("host", ref, "name_label"),
                "address": db.get("host", ref, "address"),
            }
            for ref in hosts
        ],
        "srs": [
            {
                "uuid": sr.uuid,
                "name": sr.name,
                "directory": str(sr.directory.resolve()),
                "shared": sr.shared,
                "type": sr.type,
            }
            for sr in pool.srs.values()
        ],
        "vms": [
            {"uuid": db.get("VM", ref, "uuid"), "name": db.get("VM", ref, "name_label")}
            for ref in db.select("VM", is_control_domain=False, is_a_template=False)
        ],
    }


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
