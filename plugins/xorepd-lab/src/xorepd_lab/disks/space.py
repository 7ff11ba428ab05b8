"""The space of one SR: what each VDI costs, and what a call needs before it may begin.

On SRs of files a VDI costs what its file does, and whoever writes finds out that the SR is full. On
thick SRs of volumes a VDI costs its full size from the beginning: `VDI.create`, `snapshot`, `clone`
and `resize` fail with SR_BACKEND_FAILURE_44, and writing never does.

Sources: sm: libs/sm/drivers/LVHDSR.py (_ensureSpaceAvailable, create, resize, _snapshot),
libs/sm/drivers/FileSR.py.
"""

from collections.abc import Mapping
from typing import Any

from xorepd_lab.disks import volumes
from xorepd_lab.disks.kinds import SrKind, kind_of
from xorepd_lab.disks.store import DiskStore, Node
from xorepd_lab.model.failures import ApiError, backend_failure
from xorepd_lab.model.registry import Registry

_OF_ONE_VDI = {"type", "vdi_type", "vhd-parent", "paused", "relinking", "activating"}
"""Keys of `sm_config` that a leaf on LVM does not take over from its source, and `host_…`."""


class Space:
    """Costs in bytes, by the UUID of the node; those of one SR."""

    def __init__(self, db: "Registry", sr: str, store: DiskStore) -> None:
        self._db = db
        self._sr = sr
        self._store = store
        self._costs: dict[str, int] = {}
        store.preallocated = self.is_thick

    @property
    def kind(self) -> SrKind:
        return kind_of(self._db.get("SR", self._sr, "type"))

    @property
    def is_lvm(self) -> bool:
        """Whether VHDs lie in volumes."""
        return self.kind.volumes and self.kind.vhd_backed

    @property
    def is_thick(self) -> bool:
        return self.kind.is_thick(self._db.get("SR", self._sr, "sm_config"))

    @property
    def spent(self) -> int:
        logs = self._store.logs.sizes()
        of_logs = len(logs) * volumes.EXTENT if self.is_lvm else sum(logs.values())
        return sum(self._costs.values()) + of_logs

    def note(self, node: Node, vdi: str | None) -> int:
        """Take down what a node costs now, and return it.

        Args:
            vdi: Its record; None for a base copy that clients do not see.
        """
        self._costs[node.uuid] = cost = self._cost(node, vdi)
        return cost

    def keep_only(self, uuids: Mapping[str, Node]) -> None:
        """Forget the nodes that are gone."""
        for uuid in self._costs.keys() - uuids.keys():
            del self._costs[uuid]

    def _cost(self, node: Node, vdi: str | None) -> int:
        if self.kind.read_only or self.kind.images:
            return node.virtual_size
        if vdi is None or not self.kind.vhd_backed:
            return node.physical_size
        record = self._db.record("VDI", vdi)
        if not self.kind.is_vhd(record["sm_config"]):
            return node.virtual_size
        if not self.is_lvm:
            return node.physical_size
        if node.hidden:
            return volumes.in_extents(node.physical_size)
        if self.is_thick and not record["is_a_snapshot"]:
            return volumes.thick(node.virtual_size)
        return volumes.thin(node.physical_size)

    # -- before a call begins -----------------------------------------------------------------

    def check_new(self, fields: dict[str, Any]) -> None:
        """Check, and complete, what VDI.create was given: raw volumes are whole extents."""
        size = fields["virtual_size"]
        if not self.is_lvm or not 0 <= size <= self.kind.max_size:
            return  # a wrong size is refused before space is looked at
        self._check_type(fields["sm_config"].get("type", "vhd"))
        if not self.kind.is_vhd(fields["sm_config"]):
            fields["virtual_size"] = size = volumes.in_extents(size)
            self._must_have(size)
        else:
            self._must_have(volumes.thick(size) if self.is_thick else volumes.THIN)

    def check_split(self, vdi: str, operation: str) -> None:
        """Check that a snapshot or a clone can be taken."""
        record = self._db.record("VDI", vdi)
        if self.kind.vhd_backed and not self.kind.is_vhd(record["sm_config"]):
            if self.is_lvm:
                raise ApiError("UNIMPLEMENTED_IN_SM_BACKEND", self._sr)
            raise backend_failure(46, "failed to get VHD depth")
        if not self.is_lvm:
            return
        node = self._store.node(record["uuid"])
        needed = volumes.needed_for_split(
            node.virtual_size,
            present=self._costs.get(node.uuid, 0),
            file_size=node.physical_size,
            grown=self.is_thick and not record["is_a_snapshot"],
            clone_grown=self.is_thick and operation == "clone",
        )
        self._must_have(needed)

    def check_growth(self, vdi: str, size: int) -> None:
        """Check that a VDI can be made so large."""
        if not self.is_thick:
            return
        record = self._db.record("VDI", vdi)
        raw = not self.kind.is_vhd(record["sm_config"])
        wanted = volumes.in_extents(size) if raw else volumes.thick(size)
        self._must_have(wanted - self._costs.get(record["uuid"], 0))

    def check_log(self) -> None:
        """Check that a changed-block log can be made; one in a volume takes an extent.

        Snapshots need not ask: the journals, gone when a log is made, took more.
        """
        if self.is_lvm:
            self._must_have(volumes.EXTENT)

    def carried(self, sm_config: Mapping[str, str]) -> dict[str, str]:
        """Return the `sm_config` that a snapshot or clone takes over; on file SRs nothing."""
        if not self.is_lvm:
            return {}
        return {
            key: value
            for key, value in sm_config.items()
            if key not in _OF_ONE_VDI and not key.startswith("host_")
        }

    def _check_type(self, declared: str) -> None:
        if declared not in ("raw", "vhd"):
            raise backend_failure(78, "bad type")
        legacy = self._db.get("SR", self._sr, "sm_config").get("use_vhd") != "true"
        if legacy and declared == "vhd":
            raise backend_failure(78, "Cannot create VHD type disk in legacy mode")

    def _must_have(self, needed: int) -> None:
        if self._store.capacity is not None and self.spent + needed > self._store.capacity:
            raise backend_failure(44)
