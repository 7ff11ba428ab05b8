"""The disks behind a pool's SRs: file work in threads, records kept equal to the files.

Structural changes of one SR's directory run one at a time. After each, `reconcile` makes the
records follow: base copies appear and vanish, `vhd-parent` and sizes change.

While the storage layer does something to a VDI, keys of `sm_config` tell:

    host_<ref>    RW or RO: attached on that host; see `attachments`
    paused        nobody reads or writes for a moment: snapshot, clone, CBT, merge of a leaf
    relinking     a base copy below is being merged; see `garbage`

Source: sm: libs/sm/drivers/FileSR.py, cleanup.py; xapi: ocaml/xapi/storage_smapiv1.ml.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from xorepd_lab.disks.chain import UNAVAILABLE
from xorepd_lab.disks.garbage import GarbageCollector
from xorepd_lab.disks.kinds import kind_of
from xorepd_lab.disks.owners import Pool
from xorepd_lab.disks.space import Space
from xorepd_lab.disks.store import DiskError, DiskStore, Node
from xorepd_lab.model.failures import ApiError, backend_failure

P = ParamSpec("P")
T = TypeVar("T")

ALERT_PRIORITY = 3
FRESH_SIZE = 1 << 40
"""What an SR has room for when nobody says: there is no device behind it to ask."""


class Repository:
    """One SR and its directory."""

    def __init__(self, pool: Pool, ref: str, store: DiskStore, directory: Path) -> None:
        self.ref = ref
        self.store = store
        self.directory = directory
        self._pool = pool
        self._lock = asyncio.Lock()
        self.garbage = GarbageCollector(pool, self)
        self._seen: dict[str, Node] = {}
        self.space = Space(pool.db, ref, store)
        self._whole: tuple[int | None] | None = None
        """The capacity before the SR was made to look full."""

    def shrink_capacity(self, to: int) -> None:
        """Let the SR hold no more than so many bytes, until `restore_capacity`."""
        if self._whole is None:
            self._whole = (self.store.capacity,)
        self.store.capacity = to

    def restore_capacity(self) -> None:
        if self._whole is not None:
            (self.store.capacity,) = self._whole
            self._whole = None

    async def change(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one structural change of the directory in a thread, alone.

        Raises:
            ApiError: SR_BACKEND_FAILURE_n for what the storage refuses.
        """
        async with self._lock:
            try:
                return await self._pool.in_thread(work, *args, **kwargs)
            except DiskError as error:
                raise backend_failure(error.backend, str(error)) from error
            except OSError as error:
                raise backend_failure(200, error.strerror or "") from error

    def check_file(self, vdi: str) -> None:
        """Raise SR_BACKEND_FAILURE_46 for a VDI of which nothing is on the SR, not even a log.

        Source: sm: libs/sm/drivers/FileSR.py (load).
        """
        uuid = self._pool.db.get("VDI", vdi, "uuid")
        if not (self.store.exists(uuid) or self.store.logs.has(uuid)):
            raise backend_failure(UNAVAILABLE, f"VDI {uuid} not found")

    async def follow(self, uuid: str) -> None:
        """Make one VDI's record and the totals follow its file, without a look at the others."""
        node = await self.change(self.store.node, uuid)
        self._seen[uuid] = node
        self._update(self._pool.db.by_uuid("VDI", uuid), node)
        self.update_totals(self._seen)

    def lose_sight(self) -> None:
        """Take nothing for known of the records: the next look compares all of them."""
        self._seen = {}

    async def refresh(self, vdi: str) -> None:
        """Make one VDI's record follow what the driver knows of it."""
        uuid = self._pool.db.get("VDI", vdi, "uuid")
        logs = self.store.logs.sizes()
        if uuid in logs and not self.store.exists(uuid):
            self._update_metadata(vdi, logs[uuid])
        else:
            await self.follow(uuid)
            self._see_log(vdi)

    async def reconcile(self, scan: bool = False) -> None:
        """Make the VDI records follow the files.

        Args:
            scan: Also add records for disks that have none, and drop those of disks that are gone;
                otherwise only base copies come and go.
        """
        nodes = await self.change(self.store.nodes)
        db = self._pool.db
        known = {db.get("VDI", ref, "uuid"): ref for ref in db.select("VDI", SR=self.ref)}
        logs = self.store.logs.sizes()
        for uuid, ref in known.items():
            if uuid in nodes:
                continue
            if uuid in logs:
                if scan:
                    self._update_metadata(ref, logs[uuid])
            elif scan or not db.get("VDI", ref, "managed"):
                for vbd in db.get("VDI", ref, "VBDs"):
                    db.destroy("VBD", vbd)
                db.destroy("VDI", ref)
        shows_base_copies = self.space.kind.vhd_backed
        self.space.keep_only(nodes)
        for uuid, node in nodes.items():
            if uuid in known:
                if scan or self._seen.get(uuid) != node:
                    self._update(known[uuid], node)
                if scan:
                    self._see_log(known[uuid])
            elif shows_base_copies if node.hidden else scan:
                self._introduce(node)
            else:
                self.space.note(node, None)
        if scan:
            for uuid in logs.keys() - nodes.keys() - known.keys():
                self._introduce_metadata(uuid, logs[uuid])
        self._seen = nodes
        self.update_totals(nodes)

    def update_totals(self, nodes: dict[str, Node]) -> None:
        leaves = [node.virtual_size for node in nodes.values() if not node.hidden]
        self._pool.db.set(
            "SR",
            self.ref,
            physical_utilisation=self.space.spent,
            virtual_allocation=sum(leaves),
        )

    @asynccontextmanager
    async def paused(self, vdi: str) -> AsyncIterator[None]:
        """Show that nobody can read or write a VDI while the block runs."""
        db = self._pool.db
        db.put("VDI", vdi, "sm_config", "paused", "true")
        try:
            yield
        finally:
            if db.exists("VDI", vdi):
                db.drop("VDI", vdi, "sm_config", "paused")

    # -- changed-block tracking -----------------------------------------------------------------

    def lose_log(self, vdi: str, name: str, text: str) -> None:
        """Stop tracking a VDI after a failure, and say so in a message.

        Source: sm: libs/sm/VDI.py (_disable_cbt_on_error).
        """
        db = self._pool.db
        uuid = db.get("VDI", vdi, "uuid")
        self.store.logs.remove(uuid)
        db.set("VDI", vdi, cbt_enabled=False)
        db.create(
            "message",
            name=name,
            priority=ALERT_PRIORITY,
            cls="VDI",
            obj_uuid=uuid,
            timestamp=self._pool.clock.now(),
            body=text,
        )
        self._pool.operations.refresh("VDI", vdi)

    def _see_log(self, vdi: str) -> None:
        """Let a record say whether the disk has a log; what has data is no bare metadata."""
        db = self._pool.db
        record = db.record("VDI", vdi)
        db.set("VDI", vdi, cbt_enabled=self.store.logs.has(record["uuid"]))
        if record["type"] == "cbt_metadata" and not record["current_operations"]:
            db.set("VDI", vdi, type="user")

    def _update_metadata(self, vdi: str, size: int) -> None:
        """Make a record follow a log without a disk: for the driver the log's size is all there is.

        Source: sm: libs/sm/drivers/FileSR.py (load), libs/sm/VDI.py (_db_update).
        """
        self._pool.db.set(
            "VDI",
            vdi,
            type="cbt_metadata",
            cbt_enabled=True,
            virtual_size=size,
            physical_utilisation=size,
        )
        self._pool.operations.refresh("VDI", vdi)

    def _introduce_metadata(self, uuid: str, size: int) -> None:
        ref = self._pool.db.create("VDI", uuid=uuid, location=uuid, SR=self.ref, type="user")
        self._update_metadata(ref, size)

    def _update(self, ref: str, node: Node) -> None:
        db = self._pool.db
        sm_config = dict(db.get("VDI", ref, "sm_config"))
        is_vhd = self.space.kind.is_vhd(sm_config)
        sm_config.pop("vhd-parent", None)
        if node.parent is not None and is_vhd:
            sm_config["vhd-parent"] = node.parent
        if self.space.is_lvm:
            sm_config["vdi_type"] = "vhd" if is_vhd else "aio"
        db.set(
            "VDI",
            ref,
            sm_config=sm_config,
            physical_utilisation=self.space.note(node, ref),
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


class Storage:
    """The repositories of one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.repositories: dict[str, Repository] = {}

    async def add(self, sr: str, directory: Path) -> Repository:
        record = self._pool.db.record("SR", sr)
        capacity = record["physical_size"] if record["physical_size"] > 0 else None
        largest = kind_of(record["type"]).max_size
        store = await self._pool.in_thread(DiskStore, directory, capacity, largest)
        found = self.repositories[sr] = Repository(self._pool, sr, store, directory)
        return found

    async def attach(self, sr: str, new: bool = False) -> None:
        """Let an SR that was forgotten come back with all that is on it.

        Args:
            new: Make its directory; otherwise an SR without one has no disks.
        """
        db = self._pool.db
        directory = self._pool.sr_directory(db.get("SR", sr, "uuid"))
        if sr not in self.repositories and (new or directory.is_dir()):
            if db.get("SR", sr, "physical_size") <= 0:
                db.set("SR", sr, physical_size=FRESH_SIZE)
            repository = await self.add(sr, directory)
            await repository.reconcile(scan=True)
            self._pool.operations.refresh("SR", sr)

    async def resync(self) -> None:
        """Follow records of SRs that are of another time than what is known of them."""
        db = self._pool.db
        for sr in [sr for sr in self.repositories if not db.exists("SR", sr)]:
            del self.repositories[sr]
        for repository in self.repositories.values():
            repository.lose_sight()
        for sr in db.refs("SR"):
            await self.attach(sr)

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

    async def unclean_stop(self, vdis: Iterable[str]) -> None:
        """Let VDIs lose the host that wrote to them: nobody can say what was being written.

        Their changed-block logs stay as they are, and whoever writes next finds them inconsistent.
        """
        db = self._pool.db
        for vdi in vdis:
            if not db.exists("VDI", vdi) or db.get("VDI", vdi, "SR") not in self.repositories:
                continue
            repository, uuid = self.of_vdi(vdi)
            await repository.change(repository.store.logs.set_consistent, uuid, False)
            kept = {
                key: value
                for key, value in db.get("VDI", vdi, "sm_config").items()
                if not key.startswith("host_")
            }
            db.set("VDI", vdi, sm_config=kept)
