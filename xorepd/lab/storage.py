"""The disks behind a pool's SRs: file work in threads, records kept equal to the files.

Structural changes of one SR's directory run one at a time. After each, `reconcile` makes the
records follow: base copies appear and vanish, `vhd-parent` and sizes change.

Source: sm: libs/sm/drivers/FileSR.py, cleanup.py; xapi: ocaml/xapi/storage_smapiv1.ml.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from xorepd.lab.disks import DiskError, DiskStore, Node
from xorepd.lab.failures import ApiError, backend_failure

if TYPE_CHECKING:
    from xorepd.lab.pools import Pool

GC_QUIET_S = 20.0
"""How long the garbage collector waits before it starts. XAPI's waits 5 minutes; nobody would watch
the lab that long, and a client cannot tell the difference from a collector kicked earlier."""

P = ParamSpec("P")
T = TypeVar("T")


class Repository:
    """One SR and its directory."""

    def __init__(self, pool: "Pool", ref: str, store: DiskStore, directory: Path) -> None:
        self.ref = ref
        self.store = store
        self.directory = directory
        self._pool = pool
        self._lock = asyncio.Lock()
        self._collecting = False
        self._collectors = 0
        self.settled = asyncio.Event()
        """Set while no garbage collection waits or runs: the files hold still between changes."""
        self.settled.set()

    async def change(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one structural change of the directory in a thread, alone.

        Raises:
            ApiError: SR_BACKEND_FAILURE_n for what the storage refuses.
        """
        async with self._lock:
            try:
                return await self._pool.lab.in_thread(work, *args, **kwargs)
            except DiskError as error:
                raise backend_failure(error.backend, str(error)) from error
            except OSError as error:
                raise backend_failure(200, error.strerror or "") from error

    async def reconcile(self, scan: bool = False) -> None:
        """Make the VDI records follow the files.

        Args:
            scan: Also add records for disks that have none, and drop those of disks that are gone;
                otherwise only base copies come and go.
        """
        nodes = await self.change(self.store.nodes)
        db = self._pool.db
        known = {db.get("VDI", ref, "uuid"): ref for ref in db.select("VDI", SR=self.ref)}
        for uuid, ref in known.items():
            if uuid not in nodes and (scan or not db.get("VDI", ref, "managed")):
                for vbd in db.get("VDI", ref, "VBDs"):
                    db.destroy("VBD", vbd)
                db.destroy("VDI", ref)
        for uuid, node in nodes.items():
            if uuid in known:
                self._update(known[uuid], node)
            elif node.hidden or scan:
                self._introduce(node)
        self.update_totals(nodes)

    def update_totals(self, nodes: dict[str, Node]) -> None:
        leaves = [node.virtual_size for node in nodes.values() if not node.hidden]
        self._pool.db.set(
            "SR",
            self.ref,
            physical_utilisation=sum(node.physical_size for node in nodes.values()),
            virtual_allocation=sum(leaves),
        )

    def kick_collector(self) -> None:
        """Start the garbage collector, unless it waits or runs already."""
        if not self._collecting:
            self._collecting = True
            self.settled.clear()
            self._pool.spawn(self._collect(), f"gc {self.ref}")

    async def _collect(self) -> None:
        self._collectors += 1
        self.settled.clear()
        try:
            await self._collect_all()
        finally:
            self._collectors -= 1
            if not self._collectors:
                self.settled.set()

    async def _collect_all(self) -> None:
        db, clock = self._pool.db, self._pool.clock
        again = True
        while again:
            try:
                self._collecting = True
                await clock.nap(GC_QUIET_S)
            finally:
                self._collecting = False
            if db.get("SR", self.ref, "other_config").get("coalesce") == "false":
                return
            try:
                await self.change(self.store.collect)
                await self.reconcile()
                # What somebody had open stays for the next round.
                again = has_garbage(await self.change(self.store.nodes))
            except ApiError as error:
                self._pool.log.warning("gc.failed", sr=self.ref, error=str(error))
                return
            again = again and not self._collecting

    def _update(self, ref: str, node: Node) -> None:
        db = self._pool.db
        sm_config = dict(db.get("VDI", ref, "sm_config"))
        sm_config.pop("vhd-parent", None)
        if node.parent is not None:
            sm_config["vhd-parent"] = node.parent
        db.set(
            "VDI",
            ref,
            sm_config=sm_config,
            physical_utilisation=node.physical_size,
            virtual_size=node.virtual_size,
            managed=not node.hidden,
        )
        self._pool.operations.refresh("VDI", ref)

    def _introduce(self, node: Node) -> None:
        ref = self._pool.db.create(
            "VDI",
            uuid=node.uuid,
            location=node.uuid,
            SR=self.ref,
            name_label="base copy" if node.hidden else "",
            type="user",
            virtual_size=node.virtual_size,
            read_only=node.hidden,
            managed=not node.hidden,
        )
        self._update(ref, node)


def has_garbage(nodes: dict[str, Node]) -> bool:
    """Say whether a collector would find something: a hidden node without children, or one that is
    the only child of its parent.
    """
    children = Counter(node.parent for node in nodes.values())
    return any(
        node.hidden and (children[node.uuid] == 0 or (node.parent and children[node.parent] == 1))
        for node in nodes.values()
    )


class Storage:
    """The repositories of one pool."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self.repositories: dict[str, Repository] = {}

    async def add(self, sr: str, directory: Path) -> Repository:
        store = await self._pool.lab.in_thread(DiskStore, directory)
        found = self.repositories[sr] = Repository(self._pool, sr, store, directory)
        return found

    def of(self, sr: str) -> Repository:
        """Return an SR's repository; SR_OPERATION_NOT_SUPPORTED when it keeps no disks."""
        if sr not in self.repositories:
            self._pool.db.row("SR", sr)
            raise ApiError("SR_OPERATION_NOT_SUPPORTED", sr)
        return self.repositories[sr]

    def of_vdi(self, vdi: str) -> tuple[Repository, str]:
        """Return where a VDI's file is, and its UUID."""
        record = self._pool.db.record("VDI", vdi)
        return self.of(record["SR"]), record["uuid"]
