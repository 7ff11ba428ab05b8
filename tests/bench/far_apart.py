"""Two pools far apart: one on each side of a link, with a daemon here and a relay there.

    near: source pool, daemon ──── link ──── far: target pool, relay

Each pool is a lab in a process and a network namespace of its own. The daemon has one job for each
of the transports that are compared.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.bench.network import FAR, NEAR, Link, Side
from tests.bench.served import ServedLab, pool_table, serve
from xorepd_lab.demo.stage import BIN, READY_S, Notifications, Stage, StageError
from xorepd_lab.lab import Lab
from xorepd_lab.topology import DiskSpec, ImageSpec, PoolSpec, SrSpec, Topology, VmSpec

VM: Final = "web01"
JOBS: Final = ("direct", "compressed")
"""Each is called as its transport, and so is its SR."""
RELAY_PORT: Final = 8455


def main() -> None:
    side, state, image = sys.argv[1:]
    asyncio.run(serve(Path(state), topology(side, Path(image)), obey))


def topology(side: str, image: Path) -> Topology:
    if side == "near":
        disk = DiskSpec("system", "store", image.stat().st_size, ImageSpec(image))
        guest = VmSpec(VM, (disk,), "lan", "02:16:3e:00:00:01", running_on="h1")
        store = SrSpec("store", "ext", ("h1",))
        pool = PoolSpec("near", ("h1",), (store,), ("lan",), (guest,), nbd="nbd", network=NEAR)
    else:
        stores = tuple(SrSpec(name, "ext", ("h2",)) for name in JOBS)
        pool = PoolSpec("far", ("h2",), stores, ("lan",), nbd="nbd", network=FAR)
    return Topology(side, (pool,), job=(side, VM, side, pool.srs[0].name))


async def obey(lab: Lab, request: dict[str, Any]) -> Any:
    match request["command"]:
        case "install":
            files = await asyncio.to_thread(contents, request["files"])
            await lab.guest_write(VM, 0, files=files)
            return sum(map(len, files.values()))
        case "settle":
            return await lab.settled()
        case other:
            raise ValueError(f"no command {other!r}")


def contents(paths: dict[str, str]) -> dict[str, bytes]:
    return {name: Path(path).read_bytes() for name, path in paths.items()}


class FarApart(Stage):
    """The stage of the demo with a pool on each side of a link, and a relay on the far one."""

    near: ServedLab
    relay: subprocess.Popen[str] | None = None

    @property
    def workers(self) -> tuple[subprocess.Popen[str] | None, ...]:
        """The processes whose CPU is counted: the daemon's and the relay's."""
        return self.daemon, self.relay

    def start(self, link: Link, image: Path) -> None:
        with link.far.entered():
            self._start_pool("far", image)
            relay_options = self._start_relay(link.far)
        self.near = self._start_pool("near", image)
        self.environment["XOREPD_SOCKET"] = str(self.directory / "control.sock")
        config = self.directory / "xorepd.toml"
        config.touch(mode=0o600)
        config.write_text(self._configuration(relay_options))
        self.start_daemon(config)

    def _start_pool(self, side: str, image: Path) -> ServedLab:
        arguments = [side, str(self.directory / side), str(image)]
        served = ServedLab("tests.bench.far_apart", *arguments, log=self._log(f"{side}.log"))
        self.others.append(served.process)
        [self.pools[side]] = served.pools
        return served

    def _start_relay(self, far: Side) -> str:
        """Start a relay on the far side; return the options of the transport that finds it."""
        keys, pool = self.directory / "keys", self.pools["far"]
        self.run(
            *(BIN / "xorepd", "relay", "init", keys, "--name", far.address, "--client", "near")
        )
        config = self.directory / "relay.toml"
        config.touch(mode=0o600)
        config.write_text(
            f'[relay]\nlisten = "{far.address}:{RELAY_PORT}"\n'
            f'certificate = "{keys}/relay.pem"\nkey = "{keys}/relay.key"\nca = "{keys}/ca.pem"\n'
            f'[pools.far]\nurl = "{pool["url"]}"\nca_file = "{pool["ca_file"]}"\n'
            f'password_file = "{self.directory}/far/far.password"\n'
        )
        notifications = self.directory / "relay.sock"
        with Notifications(notifications) as heard:
            self.relay = subprocess.Popen(
                [BIN / "xorepd", "relay", "run", "--config", config],
                stdout=self._log("relay.log"),
                stderr=subprocess.STDOUT,
                env=self.environment | {"NOTIFY_SOCKET": str(notifications)},
                text=True,
            )
            self.others.append(self.relay)
            if not heard.ready(self.relay, READY_S):
                raise StageError(f"the relay did not start:\n{self.tail('relay.log')}")
        return (
            f', relay = "{far.address}:{RELAY_PORT}", certificate = "{keys}/near.pem"'
            f', key = "{keys}/near.key", ca = "{keys}/ca.pem"'
        )

    def _configuration(self, relay_options: str) -> str:
        text = f'[daemon]\nstate_dir = "{self.directory}/daemon"\nsocket = "{self.socket}"\n'
        for name, pool in self.pools.items():
            text += pool_table(pool, self.directory / name)
        for name in JOBS:
            options = relay_options if name == "compressed" else ""
            text += (
                f'[jobs.{name}]\nsource = "near"\nvms = ["{VM}"]\n'
                f'target = {{ pool = "far", sr = "{name}" }}\nkeep = 3\nverify = "off"\n'
                f'changed_blocks = "enable"\ntransport = {{ name = "{name}"{options} }}\n'
                'source_reserve = "0B"\ntarget_reserve = "0B"\n'
            )
        return text


if __name__ == "__main__":
    main()
