"""The lab: pools that do not exist, in one process, behind real sockets.

    async with Lab.start(directory, SMALL, seed=1, time_scale=0.01) as lab:
        lab.pools["prod"].url, .ca_file, .password ...

Started on a directory with an earlier lab's state it resumes that: same addresses, UUIDs, disks and
passwords.
"""

import asyncio
import contextlib
import random
import socket
import string
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar
from zlib import crc32

import structlog

from xorepd.lab import guests
from xorepd.lab import methods as methods
from xorepd.lab.builder import build_pool
from xorepd.lab.calls import OutsideCall, Recorder
from xorepd.lab.certificates import ensure_certificate, server_context
from xorepd.lab.chain import Disk
from xorepd.lab.clock import Clock
from xorepd.lab.faults import Faults
from xorepd.lab.persistence import dump_registry, load_registry, lock, read_state, write_state
from xorepd.lab.pools import Pool
from xorepd.lab.registry import Registry
from xorepd.lab.server import Front
from xorepd.lab.topology import PoolSpec, Topology

THREADS = 8
SWEEP_S = 30.0
"""Period of XAPI's garbage collection of tasks and sessions; neither it nor the ages are scaled."""
SAVE_AFTER_S = 0.2
PORT_TRIES = 50
PASSWORD_LENGTH = 20

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger("xorepd.lab")


class Lab:
    """All pools of one directory. Make it with `Lab.start`."""

    def __init__(self, state: Path, seed: int, time_scale: float) -> None:
        self.directory = state
        self.seed = seed
        self.clock = Clock(time_scale)
        self.pools: dict[str, Pool] = {}
        self.faults = Faults()
        self.recorder = Recorder()
        self.topology_name = ""
        self._fronts: list[Front] = []
        self._group: asyncio.TaskGroup
        self._running: set[asyncio.Task[None]] = set()
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="lab-disk")
        self._starts = 1
        self._stopping = False
        self._lock: IO[str] | None = None
        self._saved: dict[str, int] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls, state: Path, topology: Topology, seed: int = 1, time_scale: float = 1.0
    ) -> "AsyncIterator[Lab]":
        """Run a lab while the block runs.

        Args:
            state: Directory of its own; made when missing, resumed when it holds a lab.
            topology: What to build; not looked at when resuming.
            seed: Decides UUIDs, contents and passwords of a new lab.
            time_scale: Factor for everything that a real pool would wait for.
        """
        lab = cls(state, seed, time_scale)
        failure: BaseException | None = None
        async with asyncio.TaskGroup() as group:
            lab._group = group
            try:
                await lab._open(topology)
                yield lab
            except BaseException as error:
                failure = error
            finally:
                lab._stop()
        await lab._close()
        if failure is not None:
            raise failure

    async def settled(self) -> None:
        """Wait until no garbage collector has anything to do: no file moves under a reader then."""
        for pool in self.pools.values():
            for repository in pool.storage.repositories.values():
                await repository.settled.wait()

    @property
    def calls(self) -> list[OutsideCall]:
        """Every request from outside so far, in order."""
        return self.recorder.calls

    # -- what guests do -------------------------------------------------------------------------

    async def guest_write(
        self,
        vm: str,
        disk: int,
        *,
        random: int = 0,
        sequential: tuple[int, int] | None = None,
        trim: tuple[int, int] | None = None,
        files: dict[str, bytes] | None = None,
        within: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> list[tuple[int, int]]:
        """Let a running VM write to one of its disks.

        Args:
            vm: Name of the VM.
            disk: Position of the disk (`userdevice`).
            random: How many 4 KiB blocks to write in random places, inside `within` if given.
            sequential: (offset, length) to fill.
            trim: (offset, length) to discard.
            files: Files to put into the disk's ext4 file system.
            seed: Decides the random bytes and places.

        Returns:
            (offset, length) of the random and sequential writes and of the trim.
        """

        def work(opened: Disk) -> list[tuple[int, int]]:
            touched: list[tuple[int, int]] = []
            if random:
                touched += guests.write_random(opened, random, seed, within)
            if sequential:
                guests.write_sequential(opened, *sequential, seed)
                touched.append(sequential)
            if trim:
                guests.trim(opened, *trim)
                touched.append(trim)
            if files:
                guests.write_files(opened, files)
            return touched

        return await self._with_disk(vm, disk, work, writable=True)

    async def guest_read(self, vm: str, disk: int, path: str) -> bytes:
        """Return a file of a VM's disk."""
        return await self._with_disk(
            vm, disk, lambda opened: guests.read_file(opened, path), writable=False
        )

    async def _with_disk(
        self, vm_name: str, position: int, work: Callable[[Disk], T], writable: bool
    ) -> T:
        pool, vm = self.find_vm(vm_name)
        db = pool.db
        if writable and db.get("VM", vm, "power_state") != "Running":
            raise ValueError(f"{vm_name} is not running")
        for vbd in db.get("VM", vm, "VBDs"):
            record = db.record("VBD", vbd)
            if record["userdevice"] == str(position) and not record["empty"]:
                break
        else:
            raise ValueError(f"{vm_name} has no disk {position}")
        repository, uuid = pool.storage.of_vdi(record["VDI"])

        def run() -> T:
            with repository.store.open(uuid, writable=writable) as opened:
                return work(opened)

        return await self.in_thread(run)

    def find_vm(self, name: str) -> tuple[Pool, str]:
        """Return the one real VM of that name; snapshots and templates do not count."""
        found = [
            (pool, vm)
            for pool in self.pools.values()
            for vm in pool.db.select("VM", name_label=name, is_a_template=False)
        ]
        running = [
            (pool, vm) for pool, vm in found if pool.db.get("VM", vm, "power_state") == "Running"
        ]
        for choice in (running, found):
            if len(choice) == 1:
                return choice[0]
        raise ValueError(f"{len(found)} VMs are called {name}")

    # -- running things -------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run something for as long as the lab runs; its failure is logged, nothing more."""
        if self._stopping:
            work.close()
            return
        task = self._group.create_task(self._guarded(work, name), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        # Cancelled before its first step, the inner coroutine would complain of never having run.
        task.add_done_callback(lambda _: work.close())

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work on a disk in a thread; it ends before this does, cancelled or not."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._executor, lambda: work(*args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def _guarded(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await work
        except Exception:
            log.exception("background.failed", name=name)

    # -- opening and closing --------------------------------------------------------------------

    @property
    def _state_file(self) -> Path:
        return self.directory / "lab.json"

    async def _open(self, topology: Topology) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.directory)
        if self._state_file.exists():
            await self._resume(read_state(self._state_file))
        else:
            self.topology_name = topology.name
            for number, spec in enumerate(topology.pools):
                await self._make(spec, number)
        self._save()
        self.spawn(self._keep_saving(), "save")
        self.spawn(self._keep_sweeping(), "sweep")

    async def _make(self, spec: PoolSpec, number: int) -> None:
        rng = random.Random(f"{self.seed}/{spec.name}")
        password = "".join(rng.choices(string.ascii_letters + string.digits, k=PASSWORD_LENGTH))
        network = self._loopback_network(number)
        addresses = {host: f"{network}.{position + 1}" for position, host in enumerate(spec.hosts)}
        pool = Pool(self, spec.name, Registry(rng), password)
        await build_pool(pool, spec, addresses)
        await self._listen(pool)

    def _loopback_network(self, number: int) -> str:
        """Return 127.x.y of a pool: other directories' labs are likely to have others."""
        place = crc32(str(self.directory.resolve()).encode())
        return f"127.{64 + place % 64}.{place // 64 % 250 + number}"

    async def _resume(self, state: dict[str, Any]) -> None:
        self.seed = state["seed"]
        self._starts = state["starts"] + 1
        self.topology_name = state["topology"]
        for name, saved in state["pools"].items():
            # Another sequence at every start: a file made last time may be older than its record.
            db = Registry(random.Random(f"{self.seed}/{name}/{self._starts}"))
            load_registry(db, saved["registry"])
            pool = Pool(self, name, db, saved["password"])
            pool.https_port, pool.http_port = saved["ports"]
            await self._settle(pool)
            await self._listen(pool)

    async def _settle(self, pool: Pool) -> None:
        """Make the records agree with the files, and drop what does not outlive a restart."""
        db = pool.db
        for dom0 in list(db.select("VM", is_control_domain=True)):
            for vbd in db.get("VM", dom0, "VBDs"):
                db.destroy("VBD", vbd)
        for sr in db.refs("SR"):
            directory = pool.sr_directory(db.get("SR", sr, "uuid"))
            if directory.is_dir():
                repository = await pool.storage.add(sr, directory)
                await repository.reconcile(scan=True)
                repository.kick_collector()
        for cls in ("SR", "VM", "VDI", "VBD"):
            for ref in db.refs(cls):
                pool.operations.refresh(cls, ref)

    async def _listen(self, pool: Pool) -> None:
        db = pool.db
        hosts = sorted(db.refs("host"), key=lambda ref: ref != pool.master)
        directory = self.directory / "certificates"
        for host in hosts:
            name = db.get("host", host, "name_label")
            pool.certificates[host] = await self.in_thread(
                ensure_certificate, directory, name, pool.address(host)
            )
        pool.ca_file = self.directory / f"{pool.name}.pem"
        pool.ca_file.write_text("".join(pool.certificates[host].read_text() for host in hosts))
        fronts = [Front(pool, host) for host in hosts]
        if pool.https_port:
            await self._bind(pool, fronts)
        else:
            await self._bind_anywhere(pool, fronts)
        self._fronts += fronts
        self.pools[pool.name] = pool

    async def _bind_anywhere(self, pool: Pool, fronts: list[Front]) -> None:
        addresses = [pool.address(front.host) for front in fronts]
        for attempt in range(PORT_TRIES):
            pool.https_port = free_port(addresses)
            pool.http_port = free_port(addresses, without=pool.https_port)
            try:
                await self._bind(pool, fronts)
            except OSError:
                # Somebody took the port between our two looks at it.
                for front in fronts:
                    front.close()
                if attempt == PORT_TRIES - 1:
                    raise
            else:
                return

    async def _bind(self, pool: Pool, fronts: list[Front]) -> None:
        for front in fronts:
            address = pool.address(front.host)
            context = server_context(pool.certificates[front.host])
            await front.listen(address, pool.https_port, context)
            await front.listen(address, pool.http_port)

    def _stop(self) -> None:
        self._stopping = True
        for front in self._fronts:
            front.close()
        self.faults.clear()
        for task in self._running:
            task.cancel()

    async def _close(self) -> None:
        if self.pools:
            self._save()
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)
        if self._lock is not None:
            self._lock.close()

    # -- saving and sweeping --------------------------------------------------------------------

    def _save(self) -> None:
        now = {name: pool.db.generation for name, pool in self.pools.items()}
        if now == self._saved:
            return
        state = {
            "seed": self.seed,
            "starts": self._starts,
            "topology": self.topology_name,
            "pools": {
                name: {
                    "password": pool.password,
                    "ports": [pool.https_port, pool.http_port],
                    "registry": dump_registry(pool.db),
                }
                for name, pool in self.pools.items()
            },
        }
        write_state(self._state_file, state)
        self._saved = now

    async def _keep_saving(self) -> None:
        while True:
            await asyncio.sleep(SAVE_AFTER_S)
            self._save()

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            for pool in self.pools.values():
                pool.tasks.sweep()
                pool.sessions.sweep()


def free_port(addresses: list[str], without: int = 0) -> int:
    """Return a port that is free on all addresses."""
    for _ in range(PORT_TRIES):
        with contextlib.ExitStack() as stack:
            port = 0
            try:
                for address in addresses:
                    probe = stack.enter_context(socket.socket())
                    probe.bind((address, port))
                    port = probe.getsockname()[1]
            except OSError:
                continue
            if port != without:
                return port
    raise OSError("no port is free on all addresses of the pool")
