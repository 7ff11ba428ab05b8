"""A lab with a daemon's replication engine beside it, and the judges that watch both.

The engine talks to the lab through sockets, as it would to any pool. The judges (libvhdi, the
XenAPI SDK) run in threads, because the lab lives in this process's event loop.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import xxhash

from tests.lab.contents import fingerprints
from tests.lab.whole import assert_whole
from xorepd.config.models import JobSettings, PoolSettings
from xorepd.ids import RunId
from xorepd.replication.context.admission import Admission
from xorepd.replication.context.board import Board
from xorepd.replication.context.lease import Leases
from xorepd.replication.format.claims import Owner
from xorepd.replication.run.jobs import Context, run_job
from xorepd.state.records import RunRecord
from xorepd.xapi.pool import Pool
from xorepd_lab.demo.proof import check_equal, disks_of, leftovers, login
from xorepd_lab.lab import Lab
from xorepd_lab.topology import SMALL, Topology

TIME_SCALE = 0.001

DAEMON = Owner("6a1c2d8e-0f0b-4a53-9d0e-7b6f2c1d9a40", "here")
"""The daemon of a world, however often it starts anew."""

NO_RESERVES = {"source_reserve": "0B", "target_reserve": "0B"}
"""The lab's SRs are as full as the disk of the machine that runs the tests."""


def clock() -> datetime:
    return datetime.now(UTC)


@dataclass
class World:
    lab: Lab
    board: Board = field(default_factory=Board)

    def settings(self, pool: str, **changes: Any) -> PoolSettings:
        """Return how a configuration would describe a pool of the lab."""
        known = self.lab.pools[pool]
        plain = {
            "name": pool,
            "url": known.url,
            "username": known.username,
            "password": known.password,
            "ca_file": known.ca_file,
        }
        return PoolSettings.model_validate(plain | changes)

    def job(self, **changes: Any) -> JobSettings:
        """Return a job that replicates web01 from prod to dr, checking everything.

        What is interrupted is removed: tests of faults look for what was left over.
        """
        plain = {
            "name": "web",
            "source": "prod",
            "vms": ("web01",),
            "target": {"pool": "dr", "sr": "dr-storage"},
            "keep": 3,
            "verify": "full",
            "resume": "0s",
            **NO_RESERVES,
        }
        if "targets" in changes:
            del plain["target"]
        return JobSettings.model_validate(plain | changes)

    @asynccontextmanager
    async def daemon(
        self,
        pools: Mapping[str, PoolSettings] | None = None,
        *,
        owner: Owner | None = None,
        lease: float = 120.0,
    ) -> AsyncIterator[Context]:
        """Provide what a daemon that has just started would have: its id, and no other memory.

        Args:
            pools: by name, those that are configured in another way than the lab's are.
        """
        given = pools or {}
        settings = [given.get(name) or self.settings(name) for name in self.lab.pools]

        def opened(pool: PoolSettings) -> Pool:
            return Pool(pool, lambda: pool.password.get_secret_value() if pool.password else "")

        async with AsyncExitStack() as stack:
            yield Context(
                pools={p.name: await stack.enter_async_context(opened(p)) for p in settings},
                board=self.board,
                admission=Admission(4),
                clock=clock,
                leases=Leases(owner or DAEMON, lease),
            )

    async def run(self, context: Context, **changes: Any) -> RunRecord:
        """Run the job once with these changes; its only VM's record."""
        [record] = await run_job(self.job(**changes), new_run(), context)
        return record

    async def replicate(self, **changes: Any) -> RunRecord:
        """Run the job once with a new daemon, which must succeed."""
        async with self.daemon() as context:
            record = await self.run(context, **changes)
        assert record.error is None, record.error
        return record

    # -- judges ------------------------------------------------------------------------------

    def described(self, pool: str) -> dict[str, Any]:
        """Return a pool as the judges take it."""
        known = self.lab.pools[pool]
        return {
            "name": pool,
            "url": known.url,
            "ca_file": str(known.ca_file),
            "username": known.username,
            "password": known.password,
            "srs": [{"uuid": sr.uuid, "directory": str(sr.directory)} for sr in known.srs.values()],
        }

    async def ask(self, pool: str, question: Any) -> Any:
        """Return what a function learns with the SDK, logged in to a pool."""

        def asked() -> Any:
            with login(self.described(pool)) as xenapi:
                return question(xenapi)

        return await asyncio.to_thread(asked)

    async def points(self, pool: str = "dr") -> list[dict[str, Any]]:
        """Return the marks of the restore points on a target, newest first."""
        return await self._marks(pool, "point")

    async def bases(self) -> list[dict[str, Any]]:
        """Return the marks of our snapshots on the source, newest first."""
        return await self._marks("prod", "source")

    async def _marks(self, pool: str, role: str) -> list[dict[str, Any]]:
        def read(xenapi: Any) -> list[dict[str, Any]]:
            marks = []
            for vm in xenapi.VM.get_all_records().values():
                mark = json.loads(vm["other_config"].get("xorepd:mark", "{}"))
                if vm["is_a_snapshot"] and mark.get("role") == role and mark["self"] == vm["uuid"]:
                    marks.append(mark)
            return sorted(marks, key=lambda mark: int(mark.get("order", 0)), reverse=True)

        found: list[dict[str, Any]] = await self.ask(pool, read)
        return found

    async def newest_equals_its_source(self, pool: str = "dr") -> str:
        """Check the newest restore point byte for byte; return its UUID.

        Raises:
            ProofError: a disk differs from the source snapshot.
        """
        await self.lab.settled()  # libvhdi must not read a file that is being coalesced
        point = (await self.points(pool))[0]
        prod, there = self.described("prod"), self.described(pool)

        def compare() -> None:
            with login(prod) as source, login(there) as target:
                theirs = disks_of(prod, source, point["snapshot"])
                ours = disks_of(there, target, point["self"])
                check_equal(theirs, ours, fingerprints)

        await asyncio.to_thread(compare)
        return str(point["self"])

    async def exported_hashes(self, pool: str, vm_uuid: str) -> dict[str, str]:
        """Return the XXH3 of a VM's disks by device, as the pool itself exports them raw."""
        described = self.described(pool)
        disks = await self.ask(pool, lambda xenapi: disks_of(described, xenapi, vm_uuid))
        credentials = f"{described['username']}:{described['password']}".encode()
        auth = {"Authorization": f"Basic {base64.b64encode(credentials).decode()}"}
        tls = ssl.create_default_context(cafile=described["ca_file"])
        found = {}
        async with aiohttp.ClientSession(headers=auth) as http:
            for device, (_, uuid) in disks.items():
                digest = xxhash.xxh3_128()
                url = f"{described['url']}/export_raw_vdi?vdi={uuid}&format=raw"
                async with http.get(url, ssl=tls) as response:
                    async for data in response.content.iter_any():
                        digest.update(data)
                found[device] = digest.hexdigest()
        return found

    async def left_over(self, *, but: Collection[str] = ()) -> list[str]:
        """Return what is on either pool and should not be.

        Args:
            but: UUIDs of what the test itself put there.
        """
        found: list[str] = []
        for pool in self.lab.pools:
            found += await self.ask(pool, lambda x, p=pool: leftovers(self.described(p), x))
        return [line for line in found if not any(put in line for put in but)]

    async def hashes(self, pool: str, vm_uuid: str) -> dict[str, str]:
        """Return fingerprints of a VM's disks by device, as libvhdi reads them."""
        await self.lab.settled()
        described = self.described(pool)

        def read() -> dict[str, str]:
            with login(described) as xenapi:
                disks = disks_of(described, xenapi, vm_uuid)
            devices = sorted(disks)
            return dict(zip(devices, fingerprints([disks[d] for d in devices]), strict=True))

        return await asyncio.to_thread(read)


async def serve_nbd(world: World, pool: str, purpose: str = "nbd") -> None:
    """Give the management network of a pool a purpose, as its administrator would."""

    def add(xenapi: Any) -> None:
        host = xenapi.host.get_all()[0]
        [pif] = [
            ref
            for ref, pif in xenapi.PIF.get_all_records().items()
            if pif["management"] and pif["host"] == host
        ]
        xenapi.network.add_purpose(xenapi.PIF.get_network(pif), purpose)

    await world.ask(pool, add)


def new_run() -> RunId:
    return RunId(str(uuid.uuid4()))


@asynccontextmanager
async def world(
    state: Path,
    topology: Topology = SMALL,
    leaves: Collection[str] = (),
    *,
    checked: bool = True,
) -> AsyncIterator[World]:
    """Provide a new lab with two pools.

    It has no default templates: every daemon and every judge would read them, and none uses them.

    Args:
        leaves: what the test leaves on purpose.
        checked: whether anything else that is left fails the test.
    """
    async with Lab.start(state, topology, seed=1, time_scale=TIME_SCALE) as lab:
        for pool in lab.pools.values():
            for template in list(pool.db.select("VM", is_default_template=True)):
                pool.db.destroy("VM", template)
        yield World(lab)
        if checked:
            await assert_whole(lab, leaves)
