"""What an ova.xml tells of a pool: the records of VMs and of all that belongs to them.

Objects get identifiers in the order in which they are met: the VM is `Ref:0`, then for each
interface it and its network, for each drive it, its disk and the disk's SR, at last metrics and
hosts. References among them are rewritten, those that lead out of the archive are cut; a few
fields are forgotten and keep what they hold, as in the real thing.

A quirk kept: metrics and hosts get an identifier even where the VM has none, and then every
reference to nothing is written as that identifier.

Source: xapi: ocaml/xapi/export.ml.
"""

from collections.abc import Collection, Mapping
from typing import Any

from xorepd_lab.classes.devices.vtpm import contents_of
from xorepd_lab.model.failures import NULL
from xorepd_lab.model.registry import Registry
from xorepd_lab.model.schema import EPOCH, words
from xorepd_lab.wire.xva import EXPORT_VERSION, Described, Manifest

ORDER = words(
    "host VM VM_metrics VM_guest_metrics VBD VIF network VDI SR VGPU_type VGPU GPU_group"
    " PVS_proxy PVS_site VTPM"
)
BLANKED = {
    "host": words(
        "PIFs PBDs PGPUs PCIs host_CPUs license_params blobs external_auth_type"
        " external_auth_service_name external_auth_configuration metrics patches crashdumps logging"
        " supported_bootloaders cpu_configuration other_config capabilities software_version"
        " sched_policy ha_statefiles ha_network_peers tags"
    ),
    "VM": words(
        "current_operations allowed_operations crash_dumps consoles protection_policy blobs"
    ),
    "VIF": words("metrics current_operations allowed_operations"),
    "VBD": words("metrics current_operations allowed_operations"),
    "network": words("PIFs current_operations allowed_operations"),
    "VDI": words("crash_dumps current_operations allowed_operations"),
    "SR": words("PBDs current_operations allowed_operations"),
    "GPU_group": words("PGPUs"),
    "PVS_proxy": words("currently_attached"),
    "PVS_site": words("cache_storage servers"),
}
REWRITTEN = {
    "host": words("crash_dump_sr suspend_image_sr resident_VMs"),
    "VM": words("VIFs VBDs VGPUs VTPMs resident_on affinity metrics guest_metrics"),
    "VIF": words("network VM"),
    "VBD": words("VDI VM"),
    "network": words("VIFs"),
    "VDI": words("VBDs SR"),
    "SR": words("VDIs"),
    "VGPU": words("GPU_group type VM"),
    "GPU_group": words("VGPUs"),
    "PVS_proxy": words("site VIF"),
    "PVS_site": words("proxies"),
}
SNAPSHOT_FIELDS = {
    "is_a_snapshot": False,
    "snapshot_of": NULL,
    "snapshots": [],
    "snapshot_time": EPOCH,
    "transportable_snapshot_id": "",
    "parent": NULL,
}
"""What an export of disks blanks: it has no room for other VMs."""
DEVICES = ("vif", "vbd", "vgpu", "vtpm")


class Table:
    """Identifiers of the objects that go along, by reference."""

    def __init__(
        self,
        db: Registry,
        snapshots: bool,
        power_state: bool,
        vhd_parents: bool = False,
        excluded: Collection[str] = (),
    ) -> None:
        self._db = db
        self._snapshots = snapshots
        self._power_state = power_state
        self._vhd_parents = vhd_parents
        self._excluded = excluded
        self.ids: dict[str, str] = {}

    def add_vm(self, vm: str, snapshots: bool | None = None) -> None:
        """Take a VM and what belongs to it, and its snapshots if they are wanted."""
        db = self._db
        if snapshots is None:
            snapshots = self._snapshots
        if not db.exists("VM", vm) or vm in self.ids:
            return
        self._add(vm)
        record = db.record("VM", vm)
        self._add_devices(vm, record)
        if snapshots:
            for snapshot in record["snapshots"]:
                self.add_vm(snapshot, snapshots=False)
        suspended = self._power_state and record["power_state"] == "Suspended"
        if suspended and db.exists("VDI", record["suspend_VDI"]):
            self._add_vdi(record["suspend_VDI"])
        for field in ("metrics", "guest_metrics", "resident_on", "affinity"):
            self._add(record[field])
        if snapshots:
            self.add_vm(record["parent"], snapshots=False)

    def _add(self, ref: str) -> None:
        self.ids.setdefault(ref, f"Ref:{len(self.ids)}")

    def _add_devices(self, vm: str, record: Mapping[str, Any]) -> None:
        db = self._db
        if "vif" not in self._excluded:
            for vif in record["VIFs"]:
                self._add(vif)
                self._add(db.get("VIF", vif, "network"))
        if "vbd" not in self._excluded:
            for vbd in record["VBDs"]:
                self._add(vbd)
                if not db.get("VBD", vbd, "empty"):
                    self._add_vdi(db.get("VBD", vbd, "VDI"))
        if "vgpu" not in self._excluded:
            for vgpu in record["VGPUs"]:
                self._add(vgpu)
                self._add(db.get("VGPU", vgpu, "type"))
                self._add(db.get("VGPU", vgpu, "GPU_group"))
        for proxy in db.refs("PVS_proxy"):
            if db.get("PVS_proxy", proxy, "VIF") in record["VIFs"]:
                self._add(proxy)
                self._add(db.get("PVS_proxy", proxy, "site"))
        if "vtpm" not in self._excluded:
            for vtpm in record["VTPMs"]:
                self._add(vtpm)

    def _add_vdi(self, vdi: str) -> None:
        db = self._db
        while True:
            self._add(vdi)
            self._add(db.get("VDI", vdi, "SR"))
            parent = db.get("VDI", vdi, "sm_config").get("vhd-parent")
            found = next(db.select("VDI", uuid=parent), None) if parent else None
            if not self._vhd_parents or found is None or found in self.ids:
                return
            vdi = found

    def describe(self, host: str) -> Manifest:
        """Return the manifest of all that was taken, as that host writes it."""
        db = self._db
        objects = [
            Described(cls, self.ids[ref], self._snapshot(cls, ref))
            for cls in ORDER
            if cls in db.tables
            for ref in db.refs(cls)
            if ref in self.ids
        ]
        return Manifest(version_of(db, host), tuple(objects))

    def _snapshot(self, cls: str, ref: str) -> dict[str, Any]:
        db = self._db
        record = db.record(cls, ref)
        if cls == "VTPM":
            return self._vtpm(ref, record)
        fields = db.classes[cls].fields
        for name in BLANKED.get(cls, ()):
            if name in record:
                record[name] = fields[name].type.zero()
        rewritten = list(REWRITTEN.get(cls, ()))
        if cls == "VM":
            if self._snapshots:
                rewritten += ["snapshot_of", "parent"]
            else:
                record |= SNAPSHOT_FIELDS
            if self._power_state:
                rewritten.append("suspend_VDI")
            else:
                record |= {"power_state": "Halted", "suspend_VDI": NULL}
        elif cls in ("VBD", "VIF", "VGPU") and not self._power_state:
            record["currently_attached"] = False
        for name in rewritten:
            if isinstance(record.get(name), list):
                record[name] = [self.ids[each] for each in record[name] if each in self.ids]
            elif name in record:
                record[name] = self.ids.get(record[name], NULL)
        return record

    def _vtpm(self, ref: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return a VTPM with its contents, which no record has."""
        return {
            "vTPM'_VM": self.ids.get(record["VM"], NULL),
            "vTPM'_uuid": record["uuid"],
            "vTPM'_is_unique": record["is_unique"],
            "vTPM'_is_protected": record["is_protected"],
            "vTPM'_content": contents_of(self._db, ref),
        }


def version_of(db: Registry, host: str) -> dict[str, Any]:
    """Return what a host says of itself in the archives it writes."""
    software = db.get("host", host, "software_version")
    major, minor = xapi_version(db, host)
    named = ("hostname", "date", "product_version", "product_brand", "build_number")
    return {
        **{name: software.get(name, "") for name in named},
        "xapi_major": major,
        "xapi_minor": minor,
        "export_vsn": EXPORT_VERSION,
    }


def xapi_version(db: Registry, host: str) -> tuple[int, int]:
    """Return major and minor number of a host's xapi."""
    major, _, minor = db.get("host", host, "software_version").get("xapi", "0.0").partition(".")
    return int(major), int(minor.partition(".")[0] or 0)
