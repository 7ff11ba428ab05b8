"""XAPI's records as typed values, with the fields that replication uses.

Records come from hosts of many versions: an absent field reads as its zero value. Integers
arrive as text, dates as `20260821T10:15:30Z` or a `DateTime` of the SDK. References may dangle.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Self, TypeVar, cast

from xorepd.errors import shortened
from xorepd.ids import PoolUuid, Ref, SrUuid, VdiUuid, VmUuid, is_null

Raw = Mapping[str, Any]
R = TypeVar("R", bound="Record")

LONGEST_NAME = 1000
"""Most characters of a name or description; they go to log and history."""
LONGEST_ERROR = 16
"""Most parameters of a task's error."""
TASK_OWNER = "http:xorepd"
"""Key in `other_config` of our tasks: their owner. XAPI sets it from the header
`x-http-other-config-xorepd` of the call that starts a task."""

OWNER_PREFIX = "xorepd:"

CONTENT_ID = "content_id"
"""Key in `other_config` of disks: see `Vdi.content_id`."""

_STREAMS = ("xorepd import ", "xorepd export ")
_IMPORT = "xorepd import "
"""Prefix of the name of a task that writes a disk (`data.http.imports`); the UUID follows."""

_INTEGER = re.compile(r"-?[0-9]{1,20}")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_VALUE = re.compile(r"<value>(.*)</value>", re.DOTALL)


def parse_time(value: object) -> datetime:
    """Parse a XAPI date into aware UTC; an invalid one gives the epoch, XAPI's "never"."""
    digits = "".join(c for c in str(value) if c.isdigit())
    try:
        return datetime.strptime(digits[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return EPOCH


class BadRecord(ValueError):
    """An invalid record; the text says of which object, and why."""


def read_record(cls: type[R], ref: Ref, raw: object) -> R:
    """Parse a record from a pool.

    Raises:
        BadRecord: it is not a record of its class.
    """
    if not isinstance(raw, Mapping):
        raise BadRecord(f"a {cls.kind} record is no struct")
    try:
        return cast(R, cls.parse(ref, raw))
    except ValueError as error:
        raise BadRecord(f"of {cls.kind} {str(raw.get('uuid'))[:36]!r}, {error}") from error


def _text(raw: Raw, field: str, default: str | None = None) -> str:
    value = raw.get(field, default)
    if not isinstance(value, str):
        raise _wrong(raw, field, "text")
    return value


def _name(raw: Raw, field: str, default: str | None = None) -> str:
    return shortened(_text(raw, field, default), LONGEST_NAME)


def _flag(raw: Raw, field: str, default: bool | None = None) -> bool:
    value = raw.get(field, default)
    if not isinstance(value, bool):
        raise _wrong(raw, field, "boolean")
    return value


def _number(raw: Raw, field: str, default: int | None = None) -> int:
    value = raw.get(field, default)
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(raw, field, "number")
    return value


def _texts(raw: Raw, field: str) -> tuple[str, ...]:
    value = raw.get(field, ())
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise _wrong(raw, field, "list of texts")
    return tuple(value)


def _refs(raw: Raw, field: str) -> tuple[Ref, ...]:
    return tuple(Ref(each) for each in _texts(raw, field) if not is_null(each))


def _ref(raw: Raw, field: str) -> Ref:
    return Ref(_text(raw, field, ""))


def _map(raw: Raw, field: str) -> dict[str, str]:
    value = raw.get(field) or {}
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(each, str) for key, each in value.items()
    ):
        raise _wrong(raw, field, "map of texts")
    return dict(value)


def _wrong(raw: Raw, field: str, wanted: str) -> BadRecord:
    return BadRecord(f"{field} is no {wanted}" if field in raw else f"{field} is missing")


@dataclass(frozen=True, slots=True)
class Vm:
    kind: ClassVar[str] = "VM"
    ref: Ref
    uuid: VmUuid
    name_label: str
    name_description: str
    power_state: str
    is_a_template: bool
    is_a_snapshot: bool
    is_control_domain: bool
    snapshot_of: Ref
    snapshots: tuple[Ref, ...]
    snapshot_time: datetime
    other_config: dict[str, str]
    blocked_operations: dict[str, str]
    current_operations: dict[str, str]
    tags: tuple[str, ...]
    vbds: tuple[Ref, ...]
    vifs: tuple[Ref, ...]
    ha_restart_priority: str
    resident_on: Ref
    """The host that the VM runs on."""
    suspend_vdi: Ref
    """VDI with the memory of a suspended VM, or of a snapshot with memory."""

    @classmethod
    def parse(cls, ref: Ref, raw: Raw) -> Self:
        return cls(
            ref=ref,
            uuid=VmUuid(_text(raw, "uuid")),
            name_label=_name(raw, "name_label"),
            name_description=_name(raw, "name_description", ""),
            power_state=_text(raw, "power_state"),
            is_a_template=_flag(raw, "is_a_template"),
            is_a_snapshot=_flag(raw, "is_a_snapshot"),
            is_control_domain=_flag(raw, "is_control_domain"),
            snapshot_of=_ref(raw, "snapshot_of"),
            snapshots=_refs(raw, "snapshots"),
            snapshot_time=parse_time(raw.get("snapshot_time")),
            other_config=_map(raw, "other_config"),
            blocked_operations=_map(raw, "blocked_operations"),
            current_operations=_map(raw, "current_operations"),
            tags=_texts(raw, "tags"),
            vbds=_refs(raw, "VBDs"),
            vifs=_refs(raw, "VIFs"),
            ha_restart_priority=_text(raw, "ha_restart_priority", ""),
            resident_on=_ref(raw, "resident_on"),
            suspend_vdi=_ref(raw, "suspend_VDI"),
        )

    @property
    def is_ordinary(self) -> bool:
        """Whether it is a VM, and no snapshot, template or control domain."""
        return not (self.is_a_snapshot or self.is_a_template or self.is_control_domain)


@dataclass(frozen=True, slots=True)
class Vdi:
    kind: ClassVar[str] = "VDI"
    ref: Ref
    uuid: VdiUuid
    name_label: str
    name_description: str
    sr: Ref
    virtual_size: int
    physical_utilisation: int
    type: str
    managed: bool
    missing: bool
    sharable: bool
    on_boot: str
    is_a_snapshot: bool
    cbt_enabled: bool
    snapshot_of: Ref
    snapshot_time: datetime
    other_config: dict[str, str]
    sm_config: dict[str, str]
    tags: tuple[str, ...]
    vbds: tuple[Ref, ...]

    @classmethod
    def parse(cls, ref: Ref, raw: Raw) -> Self:
        return cls(
            ref=ref,
            uuid=VdiUuid(_text(raw, "uuid")),
            name_label=_name(raw, "name_label"),
            name_description=_name(raw, "name_description", ""),
            sr=_ref(raw, "SR"),
            virtual_size=_number(raw, "virtual_size"),
            physical_utilisation=_number(raw, "physical_utilisation", 0),
            type=_text(raw, "type", "user"),
            managed=_flag(raw, "managed", True),
            missing=_flag(raw, "missing", False),
            sharable=_flag(raw, "sharable", False),
            on_boot=_text(raw, "on_boot", "persist"),
            cbt_enabled=_flag(raw, "cbt_enabled", False),
            is_a_snapshot=_flag(raw, "is_a_snapshot"),
            snapshot_of=_ref(raw, "snapshot_of"),
            snapshot_time=parse_time(raw.get("snapshot_time")),
            other_config=_map(raw, "other_config"),
            sm_config=_map(raw, "sm_config"),
            tags=_texts(raw, "tags"),
            vbds=_refs(raw, "VBDs"),
        )

    @property
    def content_id(self) -> str:
        """XAPI's id of the content; empty while the disk is attached for writing.

        XAPI removes it when the disk is attached, and sets a new one when it is detached, unless
        one was set meanwhile. Snapshots and clones copy it; exports and reads over NBD keep it.

        Source: xapi: ocaml/xapi/storage_smapiv1.ml (activate, deactivate, snapshot_and_clone).
        """
        return self.other_config.get(CONTENT_ID, "")

    @property
    def has_data(self) -> bool:
        """Whether it is an ordinary disk: visible, present, and not only changed-block metadata."""
        return self.managed and not self.missing and self.type != "cbt_metadata"

    @property
    def is_bare(self) -> bool:
        """Whether it is a snapshot without data, with only its changed-block metadata."""
        is_there = self.managed and not self.missing
        return is_there and self.type == "cbt_metadata" and self.cbt_enabled


@dataclass(frozen=True, slots=True)
class Vbd:
    kind: ClassVar[str] = "VBD"
    ref: Ref
    uuid: str
    vm: Ref
    vdi: Ref
    userdevice: str
    bootable: bool
    mode: str
    type: str
    empty: bool
    currently_attached: bool

    @classmethod
    def parse(cls, ref: Ref, raw: Raw) -> Self:
        return cls(
            ref=ref,
            uuid=_text(raw, "uuid"),
            vm=_ref(raw, "VM"),
            vdi=_ref(raw, "VDI"),
            userdevice=_text(raw, "userdevice", ""),
            bootable=_flag(raw, "bootable", False),
            mode=_text(raw, "mode", "RW"),
            type=_text(raw, "type", "Disk"),
            empty=_flag(raw, "empty", False),
            currently_attached=_flag(raw, "currently_attached", False),
        )


@dataclass(frozen=True, slots=True)
class Vif:
    kind: ClassVar[str] = "VIF"
    ref: Ref
    uuid: str
    vm: Ref
    network: Ref
    device: str
    mac: str
    mtu: int
    other_config: dict[str, str]

    @classmethod
    def parse(cls, ref: Ref, raw: Raw) -> Self:
        return cls(
            ref=ref,
            uuid=_text(raw, "uuid"),
            vm=_ref(raw, "VM"),
            network=_ref(raw, "network"),
            device=_text(raw, "device"),
            mac=_text(raw, "MAC"),
            mtu=_number(raw, "MTU", 1500),
            other_config=_map(raw, "other_config"),
        )


@dataclass(frozen=True, slots=True)
class Sr:
    kind: ClassVar[str] = "SR"
    ref: Ref
    uuid: SrUuid
    name_label: str
    type: str
    content_type: str
    physical_size: int
    physical_utilisation: int
    pbds: tuple[Ref, ...]
    sm_config: dict[str, str]

    @classmethod
    def parse(cls, ref: Ref, raw: Raw) -> Self:
        return cls(
            ref=ref,
            uuid=SrUuid(_text(raw, "uuid")),
            name_label=_name(raw, "name_label"),
            type=_text(raw, "type"),
            content_type=_text(raw, "content_type", ""),
            physical_size=_number(raw, "physical_size", 0),
            physical_utilisation=_number(raw, "physical_utilisation", 0),
            pbds=_refs(raw, "PBDs"),
            sm_config=_map(raw, "sm_config"),
        )

    @property
    def zeroes_new_disks(self) -> bool:
        """Whether the unwritten parts of a new disk read as zeroes
        (xapi: ocaml/xapi/sm_fs_ops.ml, must_write_zeroes_into_new_vdi).
        """
        match self.type:
            case "lvm" | "lvmoiscsi" | "lvmohba":
                return self.sm_config.get("use_vhd") == "true"
            case "equal":
                return self.sm_config.get("allocation") != "thick"
            case kind:
                return kind != "cslg"

    @property
    def free(self) -> int | None:
        """Free bytes; None if the backend does not know its size (0 or -1)."""
        if self.physical_size <= 0:
            return None
        return max(0, self.physical_size - self.physical_utilisation)


@dataclass(frozen=True, slots=True)
class Pbd:
    kind: ClassVar[str] = "PBD"
    ref: Ref
    uuid: str
    host: Ref
    sr: Ref
    currently_attached: bool

    @classmethod
    def parse(cls, ref: Ref, raw: Raw) -> Self:
        return cls(
            ref=ref,
            uuid=_text(raw, "uuid"),
            host=_ref(raw, "host"),
            sr=_ref(raw, "SR"),
            currently_attached=_flag(raw, "currently_attached", False),
        )


@dataclass(frozen=True, slots=True)
class Host:
    kind: ClassVar[str] = "host"
    ref: Ref
    uuid: str
    name_label: str
    address: str
    enabled: bool

    @classmethod
    def parse(cls, ref: Ref, raw: Raw) -> Self:
        return cls(
            ref=ref,
            uuid=_text(raw, "uuid"),
            name_label=_name(raw, "name_label"),
            address=_text(raw, "address"),
            enabled=_flag(raw, "enabled", True),
        )


@dataclass(frozen=True, slots=True)
class Network:
    kind: ClassVar[str] = "network"
    ref: Ref
    uuid: str
    name_label: str
    pifs: tuple[Ref, ...]

    @classmethod
    def parse(cls, ref: Ref, raw: Raw) -> Self:
        return cls(ref, _text(raw, "uuid"), _name(raw, "name_label"), _refs(raw, "PIFs"))


@dataclass(frozen=True, slots=True)
class Pif:
    kind: ClassVar[str] = "PIF"
    ref: Ref
    uuid: str
    network: Ref
    vlan: int

    @classmethod
    def parse(cls, ref: Ref, raw: Raw) -> Self:
        return cls(ref, _text(raw, "uuid"), _ref(raw, "network"), _number(raw, "VLAN", -1))


@dataclass(frozen=True, slots=True)
class PoolRecord:
    kind: ClassVar[str] = "pool"
    ref: Ref
    uuid: PoolUuid
    name_label: str
    master: Ref

    @classmethod
    def parse(cls, ref: Ref, raw: Raw) -> Self:
        return cls(
            ref, PoolUuid(_text(raw, "uuid")), _name(raw, "name_label", ""), _ref(raw, "master")
        )


def _task_owner(raw: Raw) -> str:
    """Return the owner, from the place where the call that created the task could set it.

    The run and the attempt follow it, for people.
    """
    label = _text(raw, "name_description", "")
    if not label.startswith(OWNER_PREFIX):  # an Async call, not task.create
        label = _map(raw, "other_config").get(TASK_OWNER, "")
    return label.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Task:
    kind: ClassVar[str] = "task"
    ref: Ref
    uuid: str
    name_label: str
    status: str
    result: str
    error_info: tuple[str, ...]
    owner: str
    """What we started it for; empty if the task is not ours."""

    @classmethod
    def parse(cls, ref: Ref, raw: Raw) -> Self:
        return cls(
            ref=ref,
            uuid=_text(raw, "uuid"),
            name_label=_name(raw, "name_label", ""),
            status=_text(raw, "status"),
            result=shortened(_text(raw, "result", "")),
            error_info=tuple(map(shortened, _texts(raw, "error_info")[:LONGEST_ERROR])),
            owner=_task_owner(raw),
        )

    @property
    def is_call(self) -> bool:
        """Whether it belongs to a call (`Async.…`), and not to a request on the HTTP side."""
        return self.name_label.startswith("Async.")

    @property
    def is_finished(self) -> bool:
        return self.status in ("success", "failure", "cancelled")

    @property
    def value(self) -> str:
        """The result. XAPI wraps it in XML, `<value>OpaqueRef:…</value>`."""
        found = _VALUE.search(self.result)
        return found[1] if found else self.result

    @property
    def made(self) -> Ref | None:
        """The disk that it created, for a call that creates one."""
        does = self.name_label in ("Async.VDI.create", "Async.VDI.clone")
        return Ref(self.value) if does and self.status == "success" else None

    @property
    def streamed(self) -> VdiUuid | None:
        """The disk that it reads or writes, for a request that has not ended."""
        if self.is_call or self.is_finished or not self.name_label.startswith(_STREAMS):
            return None
        return VdiUuid(self.name_label.rpartition(" ")[2])

    @property
    def wrote(self) -> VdiUuid | None:
        """The disk that it has written to, for a request that writes one."""
        if self.is_call or not self.name_label.startswith(_IMPORT):
            return None
        return VdiUuid(self.name_label.removeprefix(_IMPORT))


Record = Vm | Vdi | Vbd | Vif | Sr | Pbd | Host | Network | Pif | PoolRecord | Task

RECORDS: dict[str, type[Record]] = {
    cls.kind.lower(): cls
    for cls in (Vm, Vdi, Vbd, Vif, Sr, Pbd, Host, Network, Pif, PoolRecord, Task)
}
"""By the lower-case class name that events use."""
