"""XAPI's records as typed values, with the fields that replication uses.

Records come from hosts of many versions: an absent field reads as its zero value. Integers
arrive as text, dates as `20260821T10:15:30Z` or a `DateTime` of the SDK. References may dangle.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    StrictBool,
    TypeAdapter,
    ValidationError,
)

from xorepd.errors import shortened
from xorepd.ids import PoolUuid, Ref, SrUuid, VdiUuid, VmUuid, is_null

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

KEPT = "xorepd:kept"
"""Key in `other_config` of a disk that a request of ours writes or wrote: the reference of its
task, since the content id is set again. That task proves nothing about the disk any more."""

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


def _as_number(value: object) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError
    return value


def _without_null(refs: tuple[Ref, ...]) -> tuple[Ref, ...]:
    return tuple(ref for ref in refs if not is_null(ref))


def _first_errors(errors: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(shortened, errors[:LONGEST_ERROR]))


NO_REF = Ref("")

Name = Annotated[str, AfterValidator(lambda text: shortened(text, LONGEST_NAME))]
Number = Annotated[int, BeforeValidator(_as_number)]
Time = Annotated[datetime, PlainValidator(parse_time)]
Refs = Annotated[tuple[Ref, ...], AfterValidator(_without_null)]
Texts = tuple[str, ...]
Map = Annotated[dict[str, str], BeforeValidator(lambda value: value or {})]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    kind: ClassVar[str] = "VM"
    ref: Ref
    uuid: VmUuid
    name_label: Name
    name_description: Name = ""
    power_state: str
    is_a_template: StrictBool
    is_a_snapshot: StrictBool
    is_control_domain: StrictBool
    snapshot_of: Ref = NO_REF
    snapshots: Refs = ()
    snapshot_time: Time = EPOCH
    other_config: Map = field(default_factory=dict)
    blocked_operations: Map = field(default_factory=dict)
    current_operations: Map = field(default_factory=dict)
    tags: Texts = ()
    vbds: Annotated[Refs, Field(alias="VBDs")] = ()
    vifs: Annotated[Refs, Field(alias="VIFs")] = ()
    ha_restart_priority: str = ""
    resident_on: Ref = NO_REF
    """The host that the VM runs on."""
    suspend_vdi: Annotated[Ref, Field(alias="suspend_VDI")] = NO_REF
    """VDI with the memory of a suspended VM, or of a snapshot with memory."""

    @property
    def is_ordinary(self) -> bool:
        """Whether it is a VM, and no snapshot, template or control domain."""
        return not (self.is_a_snapshot or self.is_a_template or self.is_control_domain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vdi:
    kind: ClassVar[str] = "VDI"
    ref: Ref
    uuid: VdiUuid
    name_label: Name
    name_description: Name = ""
    sr: Annotated[Ref, Field(alias="SR")] = NO_REF
    virtual_size: Number
    physical_utilisation: Number = 0
    type: str = "user"
    managed: StrictBool = True
    missing: StrictBool = False
    sharable: StrictBool = False
    on_boot: str = "persist"
    is_a_snapshot: StrictBool
    cbt_enabled: StrictBool = False
    snapshot_of: Ref = NO_REF
    snapshot_time: Time = EPOCH
    other_config: Map = field(default_factory=dict)
    sm_config: Map = field(default_factory=dict)
    tags: Texts = ()
    vbds: Annotated[Refs, Field(alias="VBDs")] = ()

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Vbd:
    kind: ClassVar[str] = "VBD"
    ref: Ref
    uuid: str
    vm: Annotated[Ref, Field(alias="VM")] = NO_REF
    vdi: Annotated[Ref, Field(alias="VDI")] = NO_REF
    userdevice: str = ""
    bootable: StrictBool = False
    mode: str = "RW"
    type: str = "Disk"
    empty: StrictBool = False
    currently_attached: StrictBool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Vif:
    kind: ClassVar[str] = "VIF"
    ref: Ref
    uuid: str
    vm: Annotated[Ref, Field(alias="VM")] = NO_REF
    network: Ref = NO_REF
    device: str
    mac: Annotated[str, Field(alias="MAC")]
    mtu: Annotated[Number, Field(alias="MTU")] = 1500
    other_config: Map = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sr:
    kind: ClassVar[str] = "SR"
    ref: Ref
    uuid: SrUuid
    name_label: Name
    type: str
    content_type: str = ""
    physical_size: Number = 0
    physical_utilisation: Number = 0
    pbds: Annotated[Refs, Field(alias="PBDs")] = ()
    sm_config: Map = field(default_factory=dict)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pbd:
    kind: ClassVar[str] = "PBD"
    ref: Ref
    uuid: str
    host: Ref = NO_REF
    sr: Annotated[Ref, Field(alias="SR")] = NO_REF
    currently_attached: StrictBool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    kind: ClassVar[str] = "host"
    ref: Ref
    uuid: str
    name_label: Name
    address: str
    enabled: StrictBool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    kind: ClassVar[str] = "network"
    ref: Ref
    uuid: str
    name_label: Name
    pifs: Annotated[Refs, Field(alias="PIFs")] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pif:
    kind: ClassVar[str] = "PIF"
    ref: Ref
    uuid: str
    network: Ref = NO_REF
    vlan: Annotated[Number, Field(alias="VLAN")] = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRecord:
    kind: ClassVar[str] = "pool"
    ref: Ref
    uuid: PoolUuid
    name_label: Name = ""
    master: Ref = NO_REF


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    kind: ClassVar[str] = "task"
    ref: Ref
    uuid: str
    name_label: Name = ""
    name_description: str = ""
    status: str
    result: Annotated[str, AfterValidator(shortened)] = ""
    error_info: Annotated[Texts, AfterValidator(_first_errors)] = ()
    other_config: Map = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """What we started it for; empty if the task is not ours.

        The call that created the task could set it in one of two places. The run and the attempt
        follow it, for people.
        """
        label = self.name_description
        if not label.startswith(OWNER_PREFIX):  # an Async call, not task.create
            label = self.other_config.get(TASK_OWNER, "")
        return label.partition(" ")[0]

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

_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {cls: TypeAdapter(cls) for cls in RECORDS.values()}

_WANTED = {"string": "text", "bool": "boolean", "tuple": "list of texts", "dict": "map of texts"}
"""What a field should be, by the beginning of pydantic's kind of error."""


def read_record(cls: type[R], ref: Ref, raw: object) -> R:
    """Parse a record from a pool.

    Raises:
        BadRecord: it is not a record of its class.
    """
    if not isinstance(raw, Mapping):
        raise BadRecord(f"a {cls.kind} record is no struct")
    try:
        record: R = _ADAPTERS[cls].validate_python({**raw, "ref": ref})
    except ValidationError as error:
        reason = _reason(error)
        raise BadRecord(f"of {cls.kind} {str(raw.get('uuid'))[:36]!r}, {reason}") from None
    return record


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name, *inside = first["loc"]
    if first["type"] == "missing":
        return f"{name} is missing"
    wanted = _WANTED.get(first["type"].partition("_")[0], "number")
    if inside:
        wanted = "list of texts" if isinstance(inside[0], int) else "map of texts"
    return f"{name} is no {wanted}"
