"""Explain XAPI's errors: for each code a sentence for people, and what to do about it.

    ["VM_HAS_VUSBS", "OpaqueRef:…"]  ──►  VM web01 (3f6c…) has USB devices attached, …; take …

One table: code → its parameters' names, a sentence, advice, and the remedy. Parameters that are
references become names, because people do not know references; texts become one line of bounded
length. A code that is not in the table is shown unchanged.

Sources: xapi: ocaml/idl/datamodel_errors.ml, ocaml/xapi-consts/api_errors.ml, and the code that
raises them for the parameters; sm: libs/sm/core/XE_SR_ERRORCODES.xml.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from xorepd.errors import Remedy
from xorepd.units import format_size

Names = Callable[[str, str], str]
"""Kind of an object and a reference or UUID of it → its name for people, or "" if it is unknown."""

REFERENCE = re.compile(r"(?:Opaque)?Ref(?::|%3[aA])[\w.-]*")
"""A reference, old or new, inside a text of XAPI."""

MOST_TEXT = 300
"""Most characters of a pool's text in a sentence; the log of its master has the rest."""

MASTERS_LOG = "the log of its master (/var/log/xensource.log) says more"
HOSTS_LOGS = "/var/log/SMlog and /var/log/xensource.log of the host say why"


@dataclass(frozen=True, slots=True)
class Known:
    """The explanation of one code."""

    params: str
    """Names of its parameters in their order. `vm`, `vdi` and so on are references; `object` is one
    to an object of the class in `class`, and `gone` one to an object that no longer exists; names
    that end in `bytes` are sizes; others are texts."""
    says: str
    advice: str
    remedy: Remedy = Remedy.OPERATOR


@dataclass(frozen=True, slots=True)
class Said:
    """The explanation of one error."""

    text: str
    """Sentence, code and advice, without the name of the pool or disk."""
    remedy: Remedy


def nameless(kind: str, ref: str) -> str:
    """Return no name, if the objects of the pool are unknown."""
    return ""


def explain(code: str, params: Sequence[str], names: Names = nameless) -> Said:
    """Explain an error."""
    known = ERRORS.get(code) or _of_a_driver(code)
    if known is None:
        told = ", ".join(text for param in params if (text := _one_line(param, names)))
        said = f"XAPI failed with {code}" + (f" ({told})" if told else "")
        return Said(f"{said}; {MASTERS_LOG}", Remedy.OPERATOR)
    given = dict(zip(known.params.split(), params, strict=False))
    values = {name: _value(name, given, names) for name in known.params.split()}
    if not values.get("text"):
        values["text"] = "no reason given"
    return Said(f"{known.says.format_map(values)} ({code}); {known.advice}", known.remedy)


def _of_a_driver(code: str) -> Known | None:
    """Return the explanation of a storage driver's error with an unknown number."""
    return ERRORS["SR_BACKEND_FAILURE"] if code.startswith("SR_BACKEND_FAILURE_") else None


def _value(name: str, given: Mapping[str, str], names: Names) -> str:
    value = given.get(name, "")
    if name.endswith("bytes") and value.isdecimal():
        return format_size(int(value))
    kind = given.get("class") or "object" if name in ("object", "gone") else _KINDS.get(name)
    if kind is None:
        return _one_line(value, names) or ("" if name == "text" else "?")
    kind = _KINDS.get(kind.lower(), kind)
    if known := names(kind, value):
        return known
    if value and not REFERENCE.fullmatch(value):  # a UUID, or a name
        return f"{kind} {_one_line(value, names)}"
    article = "an" if kind[:1] in "aeiou" or kind == "SR" else "a"
    return f"{article} {kind}" + ("" if name == "gone" else " that is gone or just made")


def _one_line(text: str, names: Names) -> str:
    """Return a text of a pool as a part of a sentence: one line, with names for references."""
    text = REFERENCE.sub(lambda ref: names("object", ref[0]) or "an object", " ".join(text.split()))
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


_KINDS = {
    "vm": "VM",
    "vdi": "VDI",
    "vbd": "VBD",
    "vif": "VIF",
    "sr": "SR",
    "pbd": "PBD",
    "pif": "PIF",
    "host": "host",
    "network": "network",
    "task": "task",
}

_WAIT = "the next run tries again"
_HELD = "the next run tries again; if that persists, find out what uses it"
_ROLE = "give the account that xorepd uses there the role vm-power-admin"
_REPORT = "report it, with the release of the pool's hosts"
_UPDATE = "update the hosts of the pool"
_PLAIN = 'set snapshot = "plain" in the job'
_TOOLS = f"see whether its guest tools run, or {_PLAIN}"
_LEAVE_OUT = "leave the VM out of the job"
_ROOM = "make room there, keep fewer restore points, or choose another SR"
_PLUG = "plug one of its PBDs (`xe pbd-plug`); the next run tries again"
_FULL = f"free memory on a host or move VMs away; {_WAIT}"
_LIMITS = "correct the memory limits of the source VM (`xe vm-memory-limits-set`)"
_SEED = "make the seed again, from a snapshot that is whole"
_RAW = "nothing that xorepd does needs it: report it"

ERRORS: dict[str, Known] = {
    # -- sessions, hosts, the pool ---------------------------------------------------------------
    "SESSION_INVALID": Known(
        "session",
        "the session is not known there any more",
        "it is renewed at the next call",
        Remedy.RECONNECT,
    ),
    "SESSION_NOT_REGISTERED": Known(
        "session",
        "the session is not known there any more",
        "it is renewed at the next call",
        Remedy.RECONNECT,
    ),
    "SESSION_AUTHENTICATION_FAILED": Known(
        "user text",
        "login of {user} was refused ({text})",
        "check username and password of this pool in the configuration",
    ),
    "SESSION_AUTHORIZATION_FAILED": Known(
        "user text", "login of {user} was refused, since it has no role there ({text})", _ROLE
    ),
    "HOST_IS_SLAVE": Known(
        "master", "the pool master is now {master}", "the next call goes there", Remedy.RECONNECT
    ),
    "HOST_STILL_BOOTING": Known("", "its toolstack is still starting", _WAIT, Remedy.RETRY),
    "HOST_HAS_NO_MANAGEMENT_IP": Known(
        "",
        "a host has no address on its management network as yet",
        f"{_WAIT}; look at that network if it persists",
        Remedy.RETRY,
    ),
    "HOST_OFFLINE": Known("host", "{host} is offline", f"start it; {_WAIT}", Remedy.RETRY),
    "HOST_DISABLED": Known(
        "host",
        "{host} is disabled, as in maintenance",
        f"enable it when that is over (`xe host-enable`); {_WAIT}",
    ),
    "HOST_NOT_LIVE": Known(
        "",
        "a host that is needed has not been heard of for a while",
        f"bring it back, or `xe host-declare-dead` if it stays away; {_WAIT}",
        Remedy.RETRY,
    ),
    "HOST_EVACUATE_IN_PROGRESS": Known(
        "host", "{host} is being evacuated", f"{_WAIT}", Remedy.RETRY
    ),
    "CANNOT_CONTACT_HOST": Known(
        "host",
        "the pool master does not reach {host}",
        f"see whether it runs, and its management network; {_WAIT}",
        Remedy.RETRY,
    ),
    "TLS_CONNECTION_FAILED": Known(
        "address port",
        "the pool has no TLS connection to {address} port {port}",
        f"see whether that host runs and its certificate is known to the pool; {_WAIT}",
        Remedy.RETRY,
    ),
    "NO_HOSTS_AVAILABLE": Known(
        "",
        "no host can do this: none that is enabled sees the SR, or can run the VM",
        "enable a host, plug the PBD of the SR there, and see that it has memory to spare",
    ),
    "HOST_NOT_ENOUGH_FREE_MEMORY": Known(
        "needed_bytes free_bytes",
        "the VM needs {needed_bytes} of memory where {free_bytes} are free",
        _FULL,
    ),
    "HOST_NOT_ENOUGH_PCPUS": Known(
        "needed there",
        "the VM needs {needed} processors where the host has {there}",
        "start it on a larger host, or with fewer vCPUs",
    ),
    "NOT_SUPPORTED_DURING_UPGRADE": Known(
        "",
        "the pool is being upgraded and does not do this meanwhile",
        f"finish the upgrade of all hosts; {_WAIT}",
        Remedy.RETRY,
    ),
    "TOO_MANY_PENDING_TASKS": Known(
        "",
        "the pool has too many tasks at once",
        f"{_WAIT}; lower max_vms of the pool if that persists",
        Remedy.RETRY,
    ),
    # -- objects and calls -----------------------------------------------------------------------
    "HANDLE_INVALID": Known(
        "class gone",
        "{gone} no longer exists",
        "it was removed meanwhile; the next run checks the pool and continues from there",
        Remedy.RESYNC,
    ),
    "UUID_INVALID": Known(
        "class gone",
        "{gone} no longer exists",
        "it was removed meanwhile; the next run checks the pool and continues from there",
        Remedy.RESYNC,
    ),
    "MAP_DUPLICATE_KEY": Known(
        "class field object key",
        "{object} has the key {key} in its {field} already",
        f"another program writes there at the same time; {_WAIT}",
        Remedy.RETRY,
    ),
    "INVALID_VALUE": Known(
        "field value",
        "XAPI does not take {value} for {field}",
        f"see what the source VM has there; if that is in order, {_REPORT}",
    ),
    "VALUE_NOT_SUPPORTED": Known(
        "field value text",
        "XAPI does not take {value} for {field} ({text})",
        f"see what the source VM has there; if that is in order, {_REPORT}",
    ),
    "FIELD_TYPE_ERROR": Known("field", "XAPI does not take what xorepd gives for {field}", _REPORT),
    "MESSAGE_METHOD_UNKNOWN": Known(
        "method",
        "its release does not know the call {method}",
        f"{_UPDATE}, or switch off in the job what needs that call",
    ),
    "MESSAGE_PARAMETER_COUNT_MISMATCH": Known(
        "method expected received",
        "its release takes {expected} parameters for {method}, and not {received}",
        f"{_UPDATE}; or {_REPORT}",
    ),
    "MESSAGE_REMOVED": Known("", "its release no longer has a call of xorepd's", _REPORT),
    "MESSAGE_DEPRECATED": Known("", "its release no longer has a call of xorepd's", _REPORT),
    "INTERNAL_ERROR": Known(
        "text",
        "XAPI failed by itself ({text})",
        f"{_WAIT}; if it persists, {MASTERS_LOG}",
        Remedy.RETRY,
    ),
    "RBAC_PERMISSION_DENIED": Known(
        "permission text", "the role of xorepd's account does not include {permission}", _ROLE
    ),
    "PERMISSION_DENIED": Known("text", "xorepd's account may not do this ({text})", _ROLE),
    "LICENCE_RESTRICTION": Known(
        "feature",
        "the licence of the pool does not include {feature}",
        "license it, or switch off in the job what needs it",
    ),
    "LICENSE_RESTRICTION": Known(
        "feature",
        "the licence of the pool does not include {feature}",
        "license it, or switch off in the job what needs it",
    ),
    "FEATURE_RESTRICTED": Known(
        "feature",
        "the edition of the pool does not include {feature}",
        "license it, or switch off in the job what needs it",
    ),
    "TASK_CANCELLED": Known(
        "task",
        "{task} was cancelled",
        "a person did that, or the toolstack when it stopped; the next run does it again",
        Remedy.RETRY,
    ),
    "TASK_TIMEOUT": Known(
        "method seconds",
        "{method} has not ended after {seconds}",
        "`xe task-list` shows what the pool is at; the next run looks again",
        Remedy.RESYNC,
    ),
    "TASK_GONE": Known(
        "method",
        "it is unknown how {method} ended: its task is gone",
        "the toolstack restarted, or another client removed it; the next run checks the pool and "
        "continues from there",
        Remedy.RETRY,
    ),
    "OTHER_OPERATION_IN_PROGRESS": Known(
        "class object operation",
        "{object} is in use ({operation})",
        _HELD + " (`xe task-list`)",
        Remedy.RETRY,
    ),
    "OPERATION_NOT_ALLOWED": Known(
        "text", "XAPI does not allow this as things are: {text}", f"change that; {_WAIT}"
    ),
    "OPERATION_BLOCKED": Known(
        "vm text",
        '{vm} is blocked for this by an administrator, with the text "{text}"',
        "ask for that operation to be taken out of its blocked-operations, or leave the VM out of "
        "the job",
    ),
    "OPERATION_PARTIALLY_FAILED": Known(
        "operation",
        "{operation} was done in part only",
        f"the next run looks again and tidies up; {MASTERS_LOG}",
        Remedy.RESYNC,
    ),
    "EVENTS_LOST": Known(
        "",
        "events of the pool were lost",
        "all records are read again by themselves",
        Remedy.RESYNC,
    ),
    "EVENT_FROM_TOKEN_PARSE_FAILURE": Known(
        "token",
        "the pool does not know where its events were left off",
        "all records are read again by themselves",
        Remedy.RESYNC,
    ),
    "EVENT_SUBSCRIPTION_PARSE_FAILURE": Known(
        "text", "the pool does not give the events that xorepd asks for ({text})", _REPORT
    ),
    "XENAPI_PLUGIN_FAILURE": Known(
        "status stdout text",
        "a plug-in of a host failed ({text})",
        f"{_WAIT}; {HOSTS_LOGS}",
        Remedy.RETRY,
    ),
    # -- VMs -------------------------------------------------------------------------------------
    "VM_BAD_POWER_STATE": Known(
        "vm expected actual",
        "{vm} is {actual}, where only {expected} will do",
        "bring it there and leave it so until the run has ended; replicas stay halted, and what "
        "you want to start is a clone",
    ),
    "VM_IS_TEMPLATE": Known(
        "vm operation",
        "{vm} is a template, and XAPI does not do this with templates ({operation})",
        "make it a VM again (`xe template-param-set is-a-template=false uuid=…`), or leave it out "
        "of the job",
    ),
    "VM_IS_SNAPSHOT": Known(
        "vm operation",
        "{vm} is a snapshot, and XAPI does not do this with snapshots ({operation})",
        "name the VM itself; of a snapshot, a clone can be used",
    ),
    "VM_LACKS_FEATURE": Known("vm", "{vm} has no guest tools that could do this", _TOOLS),
    "VM_MISSING_PV_DRIVERS": Known("vm", "{vm} has no guest tools that could do this", _TOOLS),
    "VM_HAS_VUSBS": Known(
        "vm",
        "{vm} has USB devices attached, and XAPI snapshots no VM with these",
        "take them off it (`xe vusb-list`, `xe vusb-destroy`), or leave it out of the job",
    ),
    "VM_HAS_PCI_ATTACHED": Known(
        "vm",
        "{vm} has PCI devices of its host attached, and XAPI suspends no VM with these",
        f"take them off it, or {_PLAIN}",
    ),
    "VM_IS_IMMOBILE": Known(
        "vm",
        "{vm} is bound to its host, by nested virtualisation or its platform:nomigrate, and XAPI "
        "suspends no such VM",
        f"remove that restriction, or {_PLAIN}",
    ),
    "VM_IS_PROTECTED": Known(
        "vm",
        "{vm} is protected by high availability, which stands against this",
        "set its ha-restart-priority to nothing for that time, or leave it out of the job",
    ),
    "VM_CANNOT_DELETE_DEFAULT_TEMPLATE": Known(
        "vm", "{vm} is a default template of the pool", _REPORT
    ),
    "VM_REQUIRES_SR": Known(
        "vm sr", "{vm} needs {sr}, and no host that could run it sees that", _PLUG
    ),
    "VM_REQUIRES_NETWORK": Known(
        "vm network",
        "{vm} needs {network}, and no host that could run it has that",
        "connect such a host to it, or map it to another one in the job's networks",
    ),
    "VM_BIOS_STRINGS_ALREADY_SET": Known(
        "",
        "the BIOS strings of a VM are set already",
        "nothing needs to be done: they stay as they are",
    ),
    "VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED": Known(
        "vm text",
        "{vm} cannot be snapshotted with its file systems at rest",
        "use hooks for that, as docs/jobs.md describes",
    ),
    "VM_TO_IMPORT_IS_NOT_NEWER_VERSION": Known(
        "vm existing new",
        "{vm} is there in version {existing}, and version {new} is not newer",
        "import it as a new VM, without restore",
    ),
    "VM_NO_SUSPEND_SR": Known(
        "vm",
        "there is no SR for the memory of {vm}",
        f"set the pool's suspend-image-SR, or {_PLAIN}",
    ),
    "VM_HAS_NO_SUSPEND_VDI": Known(
        "vm",
        "{vm} is suspended and its memory is gone",
        "shut it down for good (`xe vm-reset-powerstate`), or leave it out of the job",
    ),
    "VM_NON_SUSPENDABLE": Known(
        "vm text", "{vm} cannot be suspended ({text})", f"change that, or {_PLAIN}"
    ),
    "VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT": Known(
        "vm", "{vm} did not take the request to shut down", _TOOLS
    ),
    "VM_FAILED_SUSPEND_ACKNOWLEDGMENT": Known(
        "vm", "{vm} did not take the request to suspend", _TOOLS
    ),
    "VM_SHUTDOWN_TIMEOUT": Known("vm seconds", "{vm} did not shut down within {seconds} s", _TOOLS),
    "VM_SUSPEND_TIMEOUT": Known("vm seconds", "{vm} did not suspend within {seconds} s", _TOOLS),
    "SUSPEND_IMAGE_NOT_ACCESSIBLE": Known(
        "vdi",
        "{vdi}, the memory of a suspended VM, is on an SR that its host does not see",
        _PLUG,
    ),
    "SR_SUSPEND_SPACE_INSUFFICIENT": Known(
        "sr",
        "{sr} has no room for the memory of the VM",
        f"make room there, or {_PLAIN}",
    ),
    "MEMORY_CONSTRAINT_VIOLATION": Known(
        "text", "the memory limits of a VM break a rule ({text})", _LIMITS
    ),
    "MEMORY_CONSTRAINT_VIOLATION_ORDER": Known(
        "",
        "the memory limits of a VM are out of order: static minimum, dynamic minimum, dynamic "
        "maximum, static maximum",
        _LIMITS,
    ),
    "VTPM_MAX_AMOUNT_REACHED": Known(
        "amount",
        "a VM has its {amount} virtual TPM already",
        "remove the one that the replica was given by hand; the next run brings the source's",
    ),
    # -- drives ----------------------------------------------------------------------------------
    "VBD_NOT_UNPLUGGABLE": Known(
        "vbd", "{vbd} cannot be taken off while its VM runs", "shut that VM down"
    ),
    "VBD_IS_EMPTY": Known("vbd", "{vbd} holds nothing", "the next run looks again", Remedy.RESYNC),
    "VBD_NOT_EMPTY": Known(
        "vbd", "{vbd} holds something already", "empty that drive (`xe vbd-eject`)"
    ),
    "VBD_NOT_REMOVABLE_MEDIA": Known(
        "vbd", "{vbd} is a disk drive, whose disk cannot be ejected", _RAW
    ),
    "VBD_CDS_MUST_BE_READONLY": Known("", "a CD drive cannot be writable", _RAW),
    "DISK_VBD_MUST_BE_READWRITE_FOR_HVM": Known(
        "vm",
        "a disk drive is read-only, and the VM is of a kind that cannot have such",
        "make that drive of the source VM writable, or leave the disk out with exclude_disks",
    ),
    "DEVICE_ALREADY_ATTACHED": Known(
        "vbd", "{vbd} is attached already", "the next run looks again", Remedy.RESYNC
    ),
    "DEVICE_ALREADY_DETACHED": Known(
        "vbd", "{vbd} is detached already", "the next run looks again", Remedy.RESYNC
    ),
    "DEVICE_ALREADY_EXISTS": Known(
        "device",
        "a VM has something at device {device} already",
        "if a drive or an interface was added to the replica by hand, give it another device "
        "number; the next run looks again",
        Remedy.RESYNC,
    ),
    "INVALID_DEVICE": Known(
        "device",
        "XAPI has no device {device} for a VM",
        "give that disk or interface of the source VM a lower device number",
    ),
    "DEVICE_DETACH_REJECTED": Known(
        "class object text", "{object} is in use by its guest ({text})", _HELD, Remedy.RETRY
    ),
    "DEVICE_ATTACH_TIMEOUT": Known(
        "class object",
        "{object} was not attached in time",
        f"{_WAIT}; {HOSTS_LOGS}",
        Remedy.RETRY,
    ),
    "DEVICE_DETACH_TIMEOUT": Known(
        "class object", "{object} is in use, and was not detached in time", _HELD, Remedy.RETRY
    ),
    # -- disks -----------------------------------------------------------------------------------
    "VDI_IN_USE": Known("vdi operation", "{vdi} is in use ({operation})", _HELD, Remedy.RETRY),
    "VDI_IS_SHARABLE": Known(
        "vdi",
        "{vdi} is sharable, which XAPI cannot snapshot",
        "detach it from the VM, or leave the VM out of the job",
    ),
    "VDI_NOT_MANAGED": Known(
        "vdi",
        "{vdi} is an inner part of a chain, and no disk of its own",
        "the next run looks again; scan its SR (`xe sr-scan`) if that persists",
        Remedy.RESYNC,
    ),
    "VDI_READONLY": Known(
        "vdi",
        "{vdi} is read-only",
        "make it writable (`xe vdi-param-set read-only=false`), or choose an SR that can be "
        "written to",
    ),
    "VDI_NOT_AVAILABLE": Known(
        "vdi",
        "{vdi} is not available on its storage",
        "see whether its SR is attached, and scan it (`xe sr-scan`)",
    ),
    "VDI_MISSING": Known(
        "sr vdi",
        "{vdi} is missing from {sr}: there is a record and no data",
        "check the storage, and scan the SR (`xe sr-scan`); the next run continues from what it "
        "finds",
        Remedy.RESYNC,
    ),
    "VDI_TOO_SMALL": Known(
        "vdi limit_bytes",
        "{vdi} is too small, where {limit_bytes} are the least",
        "choose another SR for the replica",
    ),
    "VDI_TOO_LARGE": Known(
        "vdi limit_bytes",
        "{vdi} is too large, where {limit_bytes} are the most",
        "choose another SR for the replica, or split the disk",
    ),
    "VDI_NOT_SPARSE": Known("vdi", "{vdi} has no map of what it holds", _RAW),
    "VDI_IO_ERROR": Known(
        "text",
        "XAPI's tool for reading and writing disks failed ({text})",
        "XAPI gives this for every failure of that tool, such as a full SR or a lost connection: "
        f"{HOSTS_LOGS}",
        Remedy.RETRY,
    ),
    "VDI_COPY_FAILED": Known(
        "text", "XAPI could not copy a disk", f"{_WAIT}; {HOSTS_LOGS}", Remedy.RETRY
    ),
    "VDI_INCOMPATIBLE_TYPE": Known(
        "vdi type",
        "{vdi} is of type {type}, with which XAPI does not do this",
        "the next run looks again; leave the disk out with exclude_disks if that persists",
    ),
    "VDI_NO_CBT_METADATA": Known(
        "vdi",
        "{vdi} has no changed-block tracking",
        'set changed_blocks = "enable" in the job; until it tells, deltas are larger',
    ),
    "VDI_CBT_ENABLED": Known(
        "vdi",
        "{vdi} has changed-block tracking, with which XAPI does not do this",
        "switch that off for the time (`xe vdi-disable-cbt`); with changed_blocks = "
        '"enable" the next run switches it on again',
    ),
    "VDI_CBT_METADATA_INCONSISTENT": Known(
        "vdi",
        "the changed-block tracking of {vdi} contradicts itself",
        "switch it off and on (`xe vdi-disable-cbt`, `xe vdi-enable-cbt`); the next delta is "
        "larger",
    ),
    "VDI_CONTENT_ID_MISSING": Known(
        "", "a disk has no id of its content", "the next run reads both sides", Remedy.RESYNC
    ),
    "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION": Known(
        "",
        "a disk is reset at each boot, which XAPI cannot snapshot",
        "set its on-boot to persist, or leave the VM out of the job",
    ),
    "VDI_IS_A_PHYSICAL_DEVICE": Known(
        "vdi",
        "{vdi} is a drive of a host, which XAPI cannot snapshot",
        "detach it from the VM, or leave the VM out of the job",
    ),
    "VDI_HAS_RRDS": Known(
        "vdi", "{vdi} holds the statistics of its pool", "leave it out of the job"
    ),
    # -- storage repositories --------------------------------------------------------------------
    "SR_FULL": Known(
        "needed_bytes free_bytes",
        "an SR is full: {needed_bytes} are needed where {free_bytes} are free",
        _ROOM,
    ),
    "SR_HAS_NO_PBDS": Known("sr", "{sr} is attached to no host", _PLUG),
    "SR_NOT_ATTACHED": Known("sr", "{sr} is not attached to the host that needs it", _PLUG),
    "SR_HAS_PBD": Known("sr", "{sr} is attached to a host, which stands against this", _RAW),
    "SR_UNHEALTHY": Known(
        "sr health text",
        "{sr} is not healthy: {health} ({text})",
        f"see to its storage; {_WAIT}",
        Remedy.RETRY,
    ),
    "SR_OPERATION_NOT_SUPPORTED": Known(
        "sr",
        "the driver of {sr} cannot do this",
        "choose an SR of another type for replicas; on the source, move the disk to an SR that "
        "has snapshots, or leave it out with exclude_disks",
    ),
    "SR_NOT_EMPTY": Known("", "an SR is not empty", _RAW),
    "UNIMPLEMENTED_IN_SM_BACKEND": Known(
        "text",
        "the driver of an SR cannot do this ({text})",
        "choose an SR of another type for replicas; on the source, move the disk to an SR that "
        "has snapshots, or leave it out with exclude_disks",
    ),
    "DEFAULT_SR_NOT_FOUND": Known(
        "sr",
        "the default SR of the pool cannot be used: {sr}",
        "set one (`xe pool-param-set default-SR=…`)",
    ),
    "SR_BACKEND_FAILURE": Known(
        "status text stderr",
        "the driver of an SR failed ({text})",
        f"{_WAIT}; {HOSTS_LOGS}",
        Remedy.RETRY,
    ),
    # -- networks --------------------------------------------------------------------------------
    "NETWORK_INCOMPATIBLE_PURPOSES": Known(
        "new conflicting",
        "a network cannot serve {new} beside {conflicting}",
        "choose one of the two (`xe network-param-remove param-name=purpose`)",
    ),
    "MAC_INVALID": Known(
        "mac",
        "{mac} is no MAC address that XAPI takes",
        "correct it on the interface of the source VM",
    ),
    "DUPLICATE_MAC_SEED": Known(
        "seed",
        "a VM with the same seed of MAC addresses is there already",
        "import it as a new VM, without restore",
    ),
    # -- imports of whole VMs --------------------------------------------------------------------
    "IMPORT_ERROR": Known("text", "the import failed ({text})", _SEED),
    "IMPORT_ERROR_CANNOT_HANDLE_CHUNKED": Known(
        "",
        "the import was sent in an encoding that XAPI does not take",
        "send it with its length (`curl -T FILE`)",
    ),
    "IMPORT_ERROR_PREMATURE_EOF": Known(
        "",
        "the import ended early",
        "send it again; if it ends there again, make it again",
    ),
    "IMPORT_ERROR_SOME_CHECKSUMS_FAILED": Known("", "the import was damaged on its way", _SEED),
    "IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND": Known(
        "", "the import needs disks that are not in the pool", _SEED
    ),
    "IMPORT_ERROR_FAILED_TO_FIND_OBJECT": Known(
        "id", "the import refers to {id}, which is not in it", _SEED
    ),
    "IMPORT_ERROR_UNEXPECTED_FILE": Known(
        "expected found", "the import holds {found} where {expected} belongs", _SEED
    ),
    "IMPORT_INCOMPATIBLE_VERSION": Known(
        "", "the import comes from a newer release than this pool's", _UPDATE
    ),
}
"""By code."""

_DRIVER_FAULTS: dict[int, tuple[str, str, Remedy]] = {
    24: ("a disk is in use", _HELD, Remedy.RETRY),
    38: ("the driver of an SR cannot do this", "choose an SR of another type", Remedy.OPERATOR),
    39: ("an SR is not empty", _RAW, Remedy.OPERATOR),
    40: ("an SR could not be scanned", f"{_WAIT}; {HOSTS_LOGS}", Remedy.RETRY),
    43: (
        "there is a disk of that name on an SR already",
        "scan it (`xe sr-scan`)",
        Remedy.OPERATOR,
    ),
    44: ("an SR is full", _ROOM, Remedy.OPERATOR),
    46: ("a disk is in use, or not available", _HELD, Remedy.RETRY),
    47: (
        "an SR is not available",
        f"see whether its storage can be reached from the hosts; {_WAIT}",
        Remedy.RETRY,
    ),
    64: ("a disk could not be removed", f"{_WAIT}; {HOSTS_LOGS}", Remedy.RETRY),
    65: ("a disk could not be read in", "scan its SR (`xe sr-scan`)", Remedy.OPERATOR),
    66: ("a disk is of a type that its SR cannot have", "choose another SR", Remedy.OPERATOR),
    73: ("an NFS share could not be mounted", f"see to its server; {_WAIT}", Remedy.RETRY),
    78: ("a disk could not be made, on some SRs because they are full", _ROOM, Remedy.OPERATOR),
    79: (
        "a disk is of a size that its SR cannot have",
        "choose another SR for the replica, or resize the disk of the source",
        Remedy.OPERATOR,
    ),
    80: ("a disk could not be hidden", f"{_WAIT}; {HOSTS_LOGS}", Remedy.RETRY),
    81: ("a disk could not be cloned, on some SRs because they are full", _ROOM, Remedy.OPERATOR),
    82: (
        "a disk could not be snapshotted, on some SRs because they are full",
        _ROOM,
        Remedy.OPERATOR,
    ),
    109: (
        "the chain of a disk is as long as XAPI allows",
        "it gets shorter as the storage coalesces: see on the hosts whether that gets on "
        "(/var/log/SMlog), and remove snapshots that are not needed",
        Remedy.OPERATOR,
    ),
    110: ("a disk could not be resized", f"{_ROOM}; {HOSTS_LOGS}", Remedy.OPERATOR),
    111: ("an SMB share could not be mounted", f"see to its server; {_WAIT}", Remedy.RETRY),
    153: (
        "the driver of an SR could not use an object of the pool",
        f"{_WAIT}; {HOSTS_LOGS}",
        Remedy.RETRY,
    ),
    180: ("a volume group is full", _ROOM, Remedy.OPERATOR),
    181: (
        "the volume that describes an SR is damaged or full",
        f"make room there; {HOSTS_LOGS}",
        Remedy.OPERATOR,
    ),
    200: ("the storage failed", f"see to it; {_WAIT}; {HOSTS_LOGS}", Remedy.RETRY),
    201: ("an SR is busy", _HELD, Remedy.RETRY),
    202: ("the driver of an SR failed", f"{_WAIT}; {HOSTS_LOGS}", Remedy.RETRY),
    453: (
        "tapdisk, which carries a disk on its host, failed",
        f"{_WAIT}; {HOSTS_LOGS}",
        Remedy.RETRY,
    ),
    457: (
        "changed-block tracking could not be switched on",
        'set changed_blocks = "off" in the job if that persists; ' + HOSTS_LOGS,
        Remedy.RETRY,
    ),
    458: ("changed-block tracking could not be switched off", HOSTS_LOGS, Remedy.RETRY),
    459: (
        "changed-block tracking contradicts itself",
        "the disk is read in another way; switch tracking off and on if that persists",
        Remedy.RESYNC,
    ),
    460: (
        "changed-block tracking does not connect two snapshots",
        "the disk is read in another way, or compared",
        Remedy.RESYNC,
    ),
    1200: ("the driver of an SR crashed", f"{_WAIT}; {HOSTS_LOGS}", Remedy.RETRY),
}
"""By the number in `SR_BACKEND_FAILURE_<n>`; each comes with a text of its own."""

ERRORS |= {
    f"SR_BACKEND_FAILURE_{number}": Known(
        "status text stderr", f"{says} ({{text}})", advice, remedy
    )
    for number, (says, advice, remedy) in _DRIVER_FAULTS.items()
}
