"""From the records of an ova.xml to objects of a pool, and back to nothing when that fails.

Class by class, because later ones refer to earlier ones:

    host SR VDI VM_guest_metrics VM_metrics VM network VBD VIF VTPM

Each object is found in the pool or made through the calls a client would use; where it went is
noted under its identifier. What was made is noted too, so that a failure can be undone.

Source: xapi: ocaml/xapi/import.ml (the handlers).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.dispatch import perform
from xorepd_lab.front.xva_manifest import xapi_version
from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.model.schema import coerce
from xorepd_lab.wire.snapshot_text import load_record
from xorepd_lab.wire.xva import Manifest, import_error

IMPORT_TASK = "import_task"
MAC_SEED = "mac_seed"
VTPM_FIELD = "vTPM'_"
DEFAULT_TEMPLATE = "default_template"
SYNCED_KEYS = ("config-drive",)
"""What a disk that was found takes over from the record."""
IN_ARCHIVE = "Ref:"
"""How references begin that mean an object of the archive."""
OLD_RESTART_PRIORITIES = ("0", "1", "2", "3")


@dataclass(frozen=True, slots=True)
class Options:
    """What the client asked for.

    Attributes:
        sr: Where new disks go; None when only records are imported, whose disks must be there.
        full_restore: Keep UUIDs and addresses, replace an older VM.
        force: Go on where it is possible, and leave behind what was made.
        dry_run: Only look whether it would work.
        vdi_map: UUIDs of disks to use for those with other UUIDs.
    """

    sr: str | None
    full_restore: bool = False
    force: bool = False
    dry_run: bool = False
    live: bool = False
    vdi_map: dict[str, str] = field(default_factory=dict)


def check_version(call: Call, manifest: Manifest) -> None:
    """Raise IMPORT_INCOMPATIBLE_VERSION for what a newer XAPI wrote."""
    theirs = manifest.number("xapi_major"), manifest.number("xapi_minor")
    if xapi_version(call.pool.db, call.host) < theirs:
        raise ApiError("IMPORT_INCOMPATIBLE_VERSION")


class Records:
    """The objects of one archive on their way into a pool."""

    def __init__(self, call: Call, manifest: Manifest, options: Options) -> None:
        self._call = call
        self._db = call.pool.db
        self.options = options
        self._records: dict[str, tuple[str, dict[str, Any]]] = {}
        for each in manifest.objects:
            if each.cls == "VTPM":
                self._records.setdefault(each.id, (each.cls, each.snapshot))
            elif each.cls in self._db.classes:
                fields = self._fields(each.cls, each.snapshot)
                self._records.setdefault(each.id, (each.cls, fields))
        self.found: dict[str, str] = {}
        """References in this pool, by identifier."""
        self.vms: list[str] = []
        self._undo: list[Callable[[Call], Awaitable[Any]]] = []

    # -- what is asked of them --------------------------------------------------------------------

    def check_seeds(self) -> None:
        """Raise DUPLICATE_MAC_SEED when a VM of the pool would have the same addresses."""
        existing = [self._db.record("VM", ref) for ref in self._db.refs("VM")]
        for vm in self._of("VM").values():
            seed = vm["other_config"].get(MAC_SEED)
            for other in existing:
                same = seed is not None and other["other_config"].get(MAC_SEED) == seed
                if same and not self._related(vm, other):
                    raise ApiError("DUPLICATE_MAC_SEED", seed)

    async def make(self) -> None:
        """Find or make everything.

        Raises:
            ApiError: What stands in the way; what was made until then is there.
        """
        steps: dict[str, Callable[[str, dict[str, Any]], Awaitable[None]]] = {
            "host": self._host,
            "SR": self._sr,
            "VDI": self._vdi,
            "VM_guest_metrics": self._metrics,
            "VM_metrics": self._metrics,
            "VM": self._vm,
            "network": self._network,
            "VBD": self._vbd,
            "VIF": self._vif,
            "VTPM": self._vtpm,
        }
        for cls, step in steps.items():
            for identifier, record in self._of(cls).items():
                await step(identifier, record)
        if not self.options.dry_run:
            self._link_snapshots()

    def disks(self) -> dict[str, int]:
        """Return the disks that come as streams: virtual sizes by identifier, in their order."""
        vdis = self._of("VDI")
        wanted = {i for i, vdi in vdis.items() if vdi["type"] == "suspend"}
        for vbd in self._of("VBD").values():
            if vbd["type"] == "CD":
                continue
            vdi = self._record("VDI", vbd["VDI"])
            if self._record("SR", vdi["SR"])["content_type"] != "iso":
                wanted.add(vbd["VDI"])
        return {i: vdis[i]["virtual_size"] for i in sorted(wanted) if i in self.found}

    def complete(self) -> list[str]:
        """Open the VMs for other operations; return those that a client wants to know of."""
        for vm in self.vms:
            self._db.drop("VM", vm, "current_operations", self._call.task)
            self._call.pool.operations.refresh("VM", vm)
        whole = [vm for vm in self.vms if not self._db.get("VM", vm, "is_a_snapshot")]
        return whole or self.vms

    async def undo(self) -> None:
        """Destroy what was made, the latest first, unless the client wants to keep it."""
        if self.options.force:
            return
        pool = self._call.pool
        with pool.tasks.temporary("VM.import (cleanup)") as task:
            call = Call(pool, self._call.host, task=task)
            for action in reversed(self._undo):
                try:
                    await action(call)
                except ApiError as error:
                    pool.log.info("import.cleanup", error=str(error))
        self._undo.clear()

    # -- records ----------------------------------------------------------------------------------

    def _fields(self, cls: str, snapshot: dict[str, Any]) -> dict[str, Any]:
        """Give a record the types of the pool's own; what older releases lack has its default."""
        fields = self._db.classes[cls].blank()
        for name, declared in self._db.classes[cls].fields.items():
            if name in snapshot:
                try:
                    fields[name] = coerce(declared.type, snapshot[name])
                except ApiError as error:
                    raise import_error(error.params[0]) from error
        if cls == "VM" and fields["domain_type"] == "unspecified":
            fields["domain_type"] = "hvm" if fields["HVM_boot_policy"] else "pv"
        if cls == "VM" and "has_vendor_device" not in snapshot:
            fields["has_vendor_device"] = False
        return fields

    def _of(self, cls: str) -> dict[str, dict[str, Any]]:
        return {i: record for i, (own, record) in self._records.items() if own == cls}

    def _record(self, cls: str, identifier: str) -> dict[str, Any]:
        own, record = self._records.get(identifier, ("", {}))
        if own != cls:
            raise ApiError("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", identifier)
        return record

    def _ref(self, identifier: str) -> str:
        """Return where an object went."""
        if identifier not in self.found:
            raise ApiError("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", identifier)
        return self.found[identifier]

    async def _perform(self, name: str, *arguments: Any) -> str:
        return str(await perform(self._call, name, *arguments))

    def _undo_with(self, name: str, ref: str) -> None:
        self._undo.append(lambda call: perform(call, name, ref))

    def _dummy(self, identifier: str) -> None:
        """Note something that is not made in a dry run."""
        self.found[identifier] = self._db.new_ref()

    # -- one class after another ------------------------------------------------------------------

    async def _host(self, identifier: str, record: dict[str, Any]) -> None:
        self.found[identifier] = next(self._db.select("host", uuid=record["uuid"]), NULL)

    async def _sr(self, identifier: str, record: dict[str, Any]) -> None:
        if self.options.sr is None:
            existing = next(self._db.select("SR", uuid=record["uuid"]), None)
            if existing is not None:
                self.found[identifier] = existing
        elif record["content_type"] != "iso":
            self.found[identifier] = self.options.sr

    async def _vdi(self, identifier: str, record: dict[str, Any]) -> None:
        if self._record("SR", record["SR"])["content_type"] == "iso":
            iso = self._iso(record["location"])
            if iso is not None:
                self.found[identifier] = iso
        elif self.options.sr is None:
            self._existing_vdi(identifier, record)
        else:
            sm_config = {**record["sm_config"], IMPORT_TASK: self._call.task}
            made = {**record, "SR": self._ref(record["SR"]), "sm_config": sm_config}
            vdi = await self._perform("VDI.create", made)
            self._undo_with("VDI.destroy", vdi)
            self.found[identifier] = vdi

    def _iso(self, location: str) -> str | None:
        db = self._db
        for vdi in db.refs("VDI"):
            sr = db.record("SR", db.get("VDI", vdi, "SR"))
            library = sr["content_type"] == "iso" and sr["type"] != "udev"
            if library and db.get("VDI", vdi, "location") == location:
                return vdi
        return None

    def _existing_vdi(self, identifier: str, record: dict[str, Any]) -> None:
        """Find the disk of a VM that comes without its disks."""
        db = self._db
        mapped = self.options.vdi_map.get(record["uuid"])
        vdi = next(db.select("VDI", uuid=mapped), None) if mapped else None
        sr = self.found.get(record["SR"])
        if vdi is None and sr is not None:
            vdi = next(db.select("VDI", SR=sr, location=record["location"]), None)
        if vdi is not None:
            self.found[identifier] = vdi
            if not self.options.dry_run:
                self._sync_keys(vdi, record)
        elif self.options.force:
            return
        elif self.options.dry_run and self.options.live:
            self._dummy(identifier)
        elif sr is not None:
            raise ApiError("VDI_LOCATION_MISSING", sr, record["location"])
        else:
            raise ApiError("VDI_CONTENT_ID_MISSING")

    def _sync_keys(self, vdi: str, record: dict[str, Any]) -> None:
        for key in SYNCED_KEYS:
            self._db.drop("VDI", vdi, "other_config", key)
            if key in record["other_config"]:
                self._db.put("VDI", vdi, "other_config", key, record["other_config"][key])

    async def _metrics(self, identifier: str, record: dict[str, Any]) -> None:
        if self.options.dry_run:
            self._dummy(identifier)
            return
        cls = self._records[identifier][0]
        ref = self._db.create(cls, **{**record, "uuid": ""})
        self.found[identifier] = ref

        async def forget(call: Call) -> None:
            if self._db.exists(cls, ref):
                self._db.destroy(cls, ref)

        self._undo.append(forget)

    async def _network(self, identifier: str, record: dict[str, Any]) -> None:
        db = self._db
        for wanted in ({"name_label": record["name_label"]}, {"bridge": record["bridge"]}):
            found = next(db.select("network", **wanted), None)
            if found is not None:
                self.found[identifier] = found
                return
        if self.options.dry_run:
            self._dummy(identifier)
            return
        network = await self._perform("network.create", record)
        db.put("network", network, "other_config", IMPORT_TASK, self._call.task)
        self._undo_with("network.destroy", network)
        self.found[identifier] = network

    # -- VMs --------------------------------------------------------------------------------------

    async def _vm(self, identifier: str, record: dict[str, Any]) -> None:
        db, options = self._db, self.options
        template = _is_default_template(record)
        if template:
            existing = next(db.select("VM", name_label=record["name_label"]), None)
            if existing is not None:
                self.found[identifier] = existing
                self.vms.append(existing)
                return
        existing = None
        if options.full_restore:
            existing = next(db.select("VM", uuid=record["uuid"]), None)
            if existing is not None and not self._may_replace(existing, record):
                return
        if options.dry_run:
            self._dummy(identifier)
            return
        if existing is not None:
            await self._destroy_vm(existing)
        await self._make_vm(identifier, record, replaces=existing is not None)

    def _may_replace(self, vm: str, record: dict[str, Any]) -> bool:
        """Say whether a VM of the same UUID gives way; False means to leave the new one out."""
        options = self.options
        state = self._db.get("VM", vm, "power_state")
        if state != "Halted":
            if options.force:
                return False
            raise ApiError("VM_BAD_POWER_STATE", vm, "Halted", state)
        version = self._db.get("VM", vm, "version")
        if version >= record["version"] and not options.force:
            raise ApiError(
                "VM_TO_IMPORT_IS_NOT_NEWER_VERSION", vm, str(version), str(record["version"])
            )
        return True

    async def _destroy_vm(self, vm: str) -> None:
        for vif in self._db.get("VM", vm, "VIFs"):
            await self._perform("VIF.destroy", vif)
        for vbd in self._db.get("VM", vm, "VBDs"):
            await self._perform("VBD.destroy", vbd)
        await self._perform("VM.destroy", vm)

    async def _make_vm(self, identifier: str, record: dict[str, Any], replaces: bool) -> None:
        db, options = self._db, self.options
        created = self._prepared(record, replaces)
        vm = await self._perform("VM.create", created)
        self._undo.append(lambda call: self._unmake_vm(call, vm))
        # Only the database can do what no client may.
        kept = ("is_control_domain", "is_a_snapshot", "snapshot_info", "snapshot_time",
                "transportable_snapshot_id", "bios_strings", "last_booted_record",
                "last_boot_CPU_flags", "snapshot_of", "parent")  # fmt: skip
        fields = {name: record[name] for name in kept}
        if options.full_restore:
            fields["uuid"] = record["uuid"]
        fields["resident_on"] = self.found.get(record["resident_on"], NULL)
        fields["affinity"] = self.found.get(record["affinity"], NULL)
        if record["guest_metrics"] in self.found:
            fields["guest_metrics"] = self._ref(record["guest_metrics"])
        if record["metrics"] in self.found:
            fields["metrics"] = self._ref(record["metrics"])
            replaced = db.get("VM", vm, "metrics")
            if db.exists("VM_metrics", replaced):
                db.destroy("VM_metrics", replaced)
        if not db.exists("SR", record["suspend_SR"]):
            fields["suspend_SR"] = NULL
        fields.update(self._suspension(record))
        db.set("VM", vm, **fields)
        db.put("VM", vm, "other_config", IMPORT_TASK, self._call.task)
        if not options.force:
            # A forced import that fails must not leave its VM locked.
            db.put("VM", vm, "current_operations", self._call.task, "import")
        self._call.pool.operations.refresh("VM", vm)
        self.found[identifier] = vm
        self.vms.append(vm)

    def _prepared(self, record: dict[str, Any], replaces: bool) -> dict[str, Any]:
        """Return the record with which the VM is made, in place of another one or not."""
        db, options = self._db, self.options
        other_config = dict(record["other_config"])
        other_config.pop("grant_api_access", None)
        if not (options.force or replaces):
            other_config.pop(DEFAULT_TEMPLATE, None)
        if not options.full_restore:
            other_config[MAC_SEED] = db.new_uuid()
        created = {
            **record,
            "other_config": other_config,
            "protection_policy": NULL,
            "appliance": NULL,
            "suspend_VDI": NULL,
            "power_state": "Halted",
            "version": record["version"] + 1 if options.full_restore else 0,
        }
        if not options.live and not record["is_a_template"] and record["generation_id"]:
            created["generation_id"] = f"{db.rng.getrandbits(63)}:{db.rng.getrandbits(63)}"
        if record["ha_restart_priority"] in OLD_RESTART_PRIORITIES:
            created["order"] = int(record["ha_restart_priority"])
            created["ha_restart_priority"] = "restart"
        return created

    def _suspension(self, record: dict[str, Any]) -> dict[str, Any]:
        if record["power_state"] != "Suspended":
            return {}
        if record["suspend_VDI"] not in self.found and self.options.force:
            return {}
        return {"power_state": "Suspended", "suspend_VDI": self._ref(record["suspend_VDI"])}

    async def _unmake_vm(self, call: Call, vm: str) -> None:
        db = self._db
        db.drop("VM", vm, "current_operations", self._call.task)
        db.set("VM", vm, power_state="Halted", is_a_snapshot=False)
        self._call.pool.operations.refresh("VM", vm)
        await perform(call, "VM.destroy", vm)

    def _link_snapshots(self) -> None:
        """Point snapshots at the VMs that came with them."""
        db = self._db
        for vm in self.vms:
            of = db.get("VM", vm, "snapshot_of")
            if db.get("VM", vm, "is_a_snapshot") and of != NULL:
                db.set("VM", vm, snapshot_of=self._ref(of))
            parent = db.get("VM", vm, "parent")
            if parent in self.found:
                db.set("VM", vm, parent=self.found[parent])

    # -- devices ----------------------------------------------------------------------------------

    def _same_device(self, cls: str, identifier: str, record: dict[str, Any]) -> bool:
        """Say whether the pool has the device already, which counts when UUIDs are kept."""
        if not self.options.full_restore:
            return False
        existing = next(self._db.select(cls, uuid=record["uuid"]), None)
        if existing is None:
            return False
        self.found[identifier] = existing
        return True

    async def _vbd(self, identifier: str, record: dict[str, Any]) -> None:
        if self._same_device("VBD", identifier, record):
            return
        vm = self._ref(record["VM"])
        original = self._record("VM", record["VM"])
        present = record["VDI"] in self.found
        hvm = original["domain_type"] == "hvm"
        if record["currently_attached"] and not present and not (record["type"] == "CD" and hvm):
            raise ApiError("IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND")
        if not present and record["type"] == "Disk":
            return
        if self.options.dry_run:
            self._dummy(identifier)
            return
        vdi = self.found.get(record["VDI"], NULL)
        made = {
            **record,
            "VM": vm,
            "VDI": vdi,
            "empty": record["empty"] if present else True,
            "device": "",
            "currently_attached": False,
        }
        vbd = await self._perform("VBD.create", made)
        self._undo_with("VBD.destroy", vbd)
        self._restore("VBD", vbd, record)
        self._db.set("VBD", vbd, currently_attached=record["currently_attached"])
        self.found[identifier] = vbd

    async def _vif(self, identifier: str, record: dict[str, Any]) -> None:
        if self._same_device("VIF", identifier, record):
            return
        vm = self._ref(record["VM"])
        network = self._ref(record["network"])
        if self.options.dry_run:
            self._dummy(identifier)
            return
        made = {**record, "VM": vm, "network": network, "currently_attached": False}
        if not self.options.full_restore:
            made["MAC"] = ""
        vif = await self._perform("VIF.create", made)
        self._undo_with("VIF.destroy", vif)
        self._restore("VIF", vif, record)
        if self._db.get("VM", vm, "power_state") != "Halted":
            self._db.set("VIF", vif, currently_attached=record["currently_attached"])
        self.found[identifier] = vif

    async def _vtpm(self, identifier: str, record: dict[str, Any]) -> None:
        db = self._db
        try:
            vm, uuid, contents = (
                str(record[f"{VTPM_FIELD}{name}"]) for name in ("VM", "uuid", "content")
            )
            unique, is_protected = (
                record[f"{VTPM_FIELD}{name}"] is True for name in ("is_unique", "is_protected")
            )
        except KeyError as error:
            raise import_error(f"Failure({error})") from error
        if not self.options.full_restore:
            uuid = ""
        elif any(db.select("VTPM", uuid=uuid)):
            raise ApiError("IMPORT_ERROR", f"A VTPM with UUID {uuid} already exists")
        if self.options.dry_run:
            self._dummy(identifier)
            return
        vm = self._ref(vm)
        # It goes with its VM when all is undone.
        vtpm = db.create("VTPM", VM=vm, uuid=uuid, is_unique=unique, is_protected=is_protected)
        await self._perform("VTPM.set_contents", vtpm, contents)
        self._call.pool.operations.refresh("VM", vm)
        self.found[identifier] = vtpm

    def _restore(self, cls: str, ref: str, record: dict[str, Any]) -> None:
        if self.options.full_restore:
            self._db.set(cls, ref, uuid=record["uuid"])

    # -- families ---------------------------------------------------------------------------------

    def _related(self, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
        """Say whether two VMs with one seed are the same, or snapshots of the same."""
        return self._origin(ours) == self._origin(theirs) and self._origin(ours) is not None

    def _origin(self, vm: dict[str, Any]) -> str | None:
        """Return the UUID of a VM, or of that which a snapshot was taken of.

        A snapshot whose VM is neither in the pool nor in the archive still tells.
        """
        if not vm["is_a_snapshot"]:
            return str(vm["uuid"])
        of = vm["snapshot_of"]
        if of.startswith(IN_ARCHIVE):
            return str(self._record("VM", of)["uuid"]) if of in self._records else None
        if self._db.exists("VM", of):
            return str(self._db.get("VM", of, "uuid"))
        try:
            was = load_record(vm["snapshot_metadata"], self._db.classes["VM"])
        except ApiError:
            return None
        return was.get("uuid")


def _is_default_template(record: dict[str, Any]) -> bool:
    marked = record["other_config"].get(DEFAULT_TEMPLATE) == "true"
    return bool(record["is_default_template"] or (record["is_a_template"] and marked))
