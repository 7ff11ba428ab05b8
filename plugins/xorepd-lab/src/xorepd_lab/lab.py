"""The lab: pools that do not exist, in one process, behind real sockets.

    async with Lab.start(directory, SMALL, seed=1, time_scale=0.01) as lab:
        lab.pools["prod"].url, .ca_file, .password ...

Started on a directory with an earlier lab's state it resumes that: same addresses, UUIDs, disks and
passwords.
"""

import asyncio
import contextlib
import random
import shutil
import socket
import string
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar
from zlib import crc32

import structlog

from xorepd_lab import methods as methods
from xorepd_lab.builder import build_pool
from xorepd_lab.calls.recorder import OutsideCall, Recorder
from xorepd_lab.classes.storage.attachments import release_all
from xorepd_lab.classes.vm.domain import settle as settle_guests
from xorepd_lab.disks.chain import Disk
from xorepd_lab.faults.faults import Faults
from xorepd_lab.faults.incidents import INCIDENTS, Incident
from xorepd_lab.front.certificates import describe_certificate, ensure_certificate
from xorepd_lab.front.frontage import Frontage
from xorepd_lab.guests import workload as guests
from xorepd_lab.model.clock import Clock
from xorepd_lab.model.persistence import (
    StateError,
    StateFile,
    load_registry,
    lock,
    read_state,
)
from xorepd_lab.model.registry import Registry
from xorepd_lab.pools import NBD_PORT, Pool
from xorepd_lab.topology import PoolSpec, Topology

THREADS = 8
SWEEP_S = 30.0
"""Period of XAPI's garbage collection of tasks and sessions; neither it nor the ages are scaled."""
SAVE_AFTER_S = 0.2
PORT_TRIES = 50
PASSWORD_LENGTH = 20

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger("xorepd_lab")


class Lab:
    """All pools of one directory. Make it with `Lab.start`."""

    def __init__(self, state: Path, seed: int, time_scale: float) -> None:
        self.directory = state
        self.seed = seed
        self.clock = Clock(time_scale)
        self.pools: dict[str, Pool] = {}
        self.faults = Faults(self)
        self.recorder = Recorder()
        self.topology_name = ""
        self._group: asyncio.TaskGroup
        self._running: set[asyncio.Task[None]] = set()
        self._still: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Held by who reads or writes as a guest, by its VM, and by who must not be disturbed."""
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="lab-disk")
        self._starts = 1
        self._stopping = False
        self._complete = False
        """Whether all pools are there; half a lab must not be saved, or it would be resumed."""
        self._lock: IO[str] | None = None
        self._state_file = StateFile(state / "lab.json")

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
                await repository.garbage.settled.wait()

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

        Raises:
            ValueError: the VM does not run, or has no such disk or place that it may write to.
        """

        def work(opened: Disk) -> list[tuple[int, int]]:
            touched: list[tuple[int, int]] = []
            for offset, length in filter(None, (sequential, trim, within)):
                if offset < 0 or length < 0 or offset + length > opened.virtual_size:
                    raise ValueError(
                        f"disk {disk} of {vm} has {opened.virtual_size} bytes, and none at "
                        f"{offset} + {length}"
                    )
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
        async with self.guest_still(vm):
            if writable and not pool.life.runs(vm):
                raise ValueError(f"{vm_name} is not running")
            db = pool.db
            for vbd in db.get("VM", vm, "VBDs"):
                record = db.record("VBD", vbd)
                if record["userdevice"] == str(position) and not record["empty"]:
                    break
            else:
                raise ValueError(f"{vm_name} has no disk {position}")
            if writable and record["mode"] == "RO":
                raise ValueError(f"{vm_name} may only read disk {position}")
            repository, uuid = pool.storage.of_vdi(record["VDI"])

            def run() -> T:
                with repository.store.open(uuid, writable=writable) as opened:
                    return work(opened)

            return await self.in_thread(run)

    @contextlib.asynccontextmanager
    async def guest_still(self, vm: str) -> AsyncIterator[None]:
        """Let a guest read and write nothing while the block runs."""
        async with self._still[vm]:
            yield

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

    # -- what happens to pools ------------------------------------------------------------------

    async def happen(self, incident: Incident) -> None:
        """Let an incident happen, to its end: a host that restarts serves again.

        It goes on when the caller is cancelled, who may be a request that it kills.

        Raises:
            LookupError: It is not clear where.
        """
        pool = self._place(incident)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Exception | None] = loop.create_future()

        async def run() -> None:
            failure: Exception | None = None
            try:
                await INCIDENTS[incident.kind].happen(pool, incident)
            except (LookupError, ValueError, OSError) as error:
                failure = error
                pool.log.warning("incident.failed", kind=incident.kind, error=str(error))
            finally:
                if not ended.done():
                    ended.set_result(failure)

        pool.log.info("incident", **incident.to_json())
        if self.spawn(run(), f"incident {incident.kind}") is None:
            return
        failure = await asyncio.shield(ended)
        if failure is not None:
            raise failure

    def _place(self, incident: Incident) -> Pool:
        """Return the pool where an incident happens."""

        def has(pool: Pool, cls: str, name: str | None) -> bool:
            return name is None or any(pool.db.select(cls, name_label=name))

        found = [
            pool
            for pool in self.pools.values()
            if incident.pool in (None, pool.name)
            and has(pool, "host", incident.host)
            and has(pool, "SR", incident.sr)
        ]
        if len(found) != 1:
            raise LookupError(
                f"{incident.kind}: {len(found)} pools are meant; give pool, host and sr by name"
            )
        return found[0]

    # -- running things -------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None] | None":
        """Run something for as long as the lab runs; its failure is logged, nothing more.

        Returns:
            The task, for who wants to cancel it; None when the lab stops.
        """
        if self._stopping:
            work.close()
            return None
        task = self._group.create_task(self._guarded(work, name), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        # Cancelled before its first step, the inner coroutine would complain of never having run.
        task.add_done_callback(lambda _: work.close())
        return task

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work on a disk in a thread; it ends before this does, cancelled or not."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._executor, lambda: work(*args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    @contextlib.asynccontextmanager
    async def opened_in_thread(
        self, opening: Callable[[], contextlib.AbstractContextManager[T]]
    ) -> AsyncIterator[T]:
        """Hold something open that is opened and closed in a thread.

        It is entered there as well: when this is cancelled meanwhile, it is closed all the same.
        """
        with contextlib.ExitStack() as stack:
            try:
                yield await self.in_thread(lambda: stack.enter_context(opening()))
            finally:
                await self.in_thread(stack.close)

    async def _guarded(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await work
        except Exception:
            log.exception("background.failed", name=name)

    # -- opening and closing --------------------------------------------------------------------

    async def _open(self, topology: Topology) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.directory)
            exists = self._state_file.path.exists()
            if not exists:
                self._clear_site()
        except OSError as error:
            raise StateError(f"{self.directory} cannot be used: {error.strerror}") from error
        if exists:
            await self._resume(read_state(self._state_file.path))
        else:
            self.topology_name = topology.name
            for number, spec in enumerate(topology.pools):
                await self._make(spec, number)
        self._complete = True
        self._save()
        self._building.unlink(missing_ok=True)
        self.spawn(self._keep_saving(), "save")
        self.spawn(self._keep_sweeping(), "sweep")

    @property
    def _building(self) -> Path:
        """The file whose presence says: what is here is a lab that was never finished."""
        return self.directory / "lab.building"

    def _clear_site(self) -> None:
        """Remove what an interrupted start has left, and nothing that is not ours."""
        disks = self.directory / "srs"
        if self._building.exists():
            shutil.rmtree(disks, ignore_errors=True)
        elif disks.exists():
            raise StateError(f"{disks} is there, but no lab that it belongs to")
        self._building.touch()

    async def _make(self, spec: PoolSpec, number: int) -> None:
        rng = random.Random(f"{self.seed}/{spec.name}")
        password = make_password(rng)
        network = spec.network or self._loopback_network(number)
        addresses = {host: f"{network}.{position + 1}" for position, host in enumerate(spec.hosts)}
        accounts = {account.name: make_password(rng) for account in spec.accounts}
        pool = Pool(self, spec.name, Registry(rng, spec.release), password, accounts)
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
            rng = random.Random(f"{self.seed}/{name}/{self._starts}")
            db = Registry(rng, saved.get("release", "8.3"))
            load_registry(db, saved["registry"])
            pool = Pool(self, name, db, saved["password"], saved.get("accounts"))
            pool.https_port, pool.http_port = saved["ports"]
            pool.nbd_port = saved.get("nbd_port", NBD_PORT)
            pool.clock.jump(saved.get("clock_offset_s", 0.0))
            await self._settle(pool)
            await self._listen(pool)

    async def _settle(self, pool: Pool) -> None:
        """Make the records agree with the files, and drop what does not outlive a restart."""
        db = pool.db
        for dom0 in list(db.select("VM", is_control_domain=True)):
            for vbd in db.get("VM", dom0, "VBDs"):
                db.destroy("VBD", vbd)
        pool.life.all_up()
        for sr in db.refs("SR"):
            directory = pool.sr_directory(db.get("SR", sr, "uuid"))
            if directory.is_dir():
                repository = await pool.storage.add(sr, directory)
                await repository.reconcile(scan=True)
                repository.garbage.kick()
        release_all(pool)
        for cls in ("SR", "VM", "VDI", "VBD"):
            for ref in db.refs(cls):
                pool.operations.refresh(cls, ref)
        settle_guests(pool.internal_call())

    async def _listen(self, pool: Pool) -> None:
        db = pool.db
        hosts = sorted(db.refs("host"), key=lambda ref: ref != pool.master)
        directory = self.directory / "certificates"
        for host in hosts:
            name = db.get("host", host, "name_label")
            pool.certificates[host] = await self.in_thread(
                ensure_certificate, directory, name, pool.address(host)
            )
            if not db.get("host", host, "certificates"):
                told = describe_certificate(pool.certificates[host]).items()
                known = {key: fact for key, fact in told if key in db.classes["Certificate"].fields}
                db.create("Certificate", type="host", host=host, **known)
        pool.ca_file = self.directory / f"{pool.name}.pem"
        pool.ca_file.write_text("".join(pool.certificates[host].read_text() for host in hosts))
        pool.frontages = {host: Frontage(pool, host, self.faults) for host in hosts}
        # Known before it listens: whatever happens from here on, `_stop` closes what is open.
        self.pools[pool.name] = pool
        if pool.https_port:
            try:
                await self._bind(pool)
            except OSError as error:
                ports = f"{pool.https_port}, {pool.http_port} and {pool.nbd_port}"
                raise StateError(
                    f"pool {pool.name} cannot have its ports {ports} back: {error.strerror}"
                ) from error
        else:
            await self._bind_anywhere(pool)

    async def _bind_anywhere(self, pool: Pool) -> None:
        addresses = [pool.address(host) for host in pool.frontages]
        for attempt in range(PORT_TRIES):
            pool.https_port = free_port(addresses)
            pool.http_port = free_port(addresses, without=pool.https_port)
            pool.nbd_port = free_port(addresses, wanted=NBD_PORT)
            try:
                await self._bind(pool)
            except OSError:
                # Somebody took the port between our two looks at it.
                for frontage in pool.frontages.values():
                    frontage.close()
                    frontage.cut(streams=True)
                if attempt == PORT_TRIES - 1:
                    raise
            else:
                return

    async def _bind(self, pool: Pool) -> None:
        for frontage in pool.frontages.values():
            await frontage.open()

    def _stop(self) -> None:
        self._stopping = True
        for pool in self.pools.values():
            for frontage in pool.frontages.values():
                frontage.close()
                frontage.cut(streams=True)
        self.faults.clear()
        for task in self._running:
            task.cancel()

    async def _close(self) -> None:
        if self._complete:
            self._save()
        self._state_file.close()
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)
        if self._lock is not None:
            self._lock.close()

    # -- saving and sweeping --------------------------------------------------------------------

    def _save(self) -> None:
        head = {
            "seed": self.seed,
            "starts": self._starts,
            "topology": self.topology_name,
            "pools": {
                name: {
                    "password": pool.password,
                    "accounts": pool.accounts,
                    "release": pool.db.release,
                    "ports": [pool.https_port, pool.http_port],
                    "nbd_port": pool.nbd_port,
                    "clock_offset_s": pool.clock.offset.total_seconds(),
                }
                for name, pool in self.pools.items()
            },
        }
        self._state_file.save(head, {name: pool.db for name, pool in self.pools.items()})

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


def make_password(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_letters + string.digits, k=PASSWORD_LENGTH))


def free_port(addresses: list[str], without: int = 0, wanted: int = 0) -> int:
    """Return a port that is free on all addresses: the one that is wanted, else any."""
    for _ in range(PORT_TRIES):
        with contextlib.ExitStack() as stack:
            port, wanted = wanted, 0
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
