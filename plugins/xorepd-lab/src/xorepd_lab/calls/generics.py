"""The calls that every class has: records, lookups, getters, setters, members of sets and maps.

Source: xapi: ocaml/idl/datamodel_utils.ml (new_messages_of_field, messages of objects).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.signatures import METHODS, Handler, Method, Parameter, register
from xorepd_lab.model.datamodel import CLASSES, NEWER_CLASSES
from xorepd_lab.model.failures import ApiError, internal_error
from xorepd_lab.model.schema import ClassSpec, Field, Type, coerce, words
from xorepd_lab.wire.filters import parse_filter

WITHOUT_LISTS = {"session", "user", "LVHD"}
WITHOUT_NAMES = {"pool"}
"""Classes whose objects have a name by which they cannot be looked up."""
WITHOUT_GETTERS = {"message"}
"""Classes of which only whole records can be asked for."""
REMOVED = words(
    "VMPP.* VIF_metrics.get_all VIF_metrics.get_all_records VIF_metrics.get_by_uuid"
    " VIF_metrics.get_record VIF_metrics.get_all_records_where VIF_metrics.get_all_where"
    " VIF_metrics.get_io_read_kbs VIF_metrics.get_io_write_kbs"
    " VBD_metrics.* PIF_metrics.get_io_read_kbs PIF_metrics.get_io_write_kbs VIF.get_metrics"
    " VBD.get_metrics host_metrics.get_memory_free VM_metrics.get_VCPUs_utilisation"
    " VM_guest_metrics.get_disks VM_guest_metrics.get_memory VM.get_is_snapshot_from_vmpp"
    " Repository.get_up_to_date"
)
"""Implicit calls that XAPI knows only to refuse; the fields are still in records."""
REMOVED_CALLS = words(
    "VM.set_protection_policy VM.snapshot_with_quiesce VDI.resize_online"
    " host.apply_recommended_guidances host.reset_cpu_features host.set_cpu_features"
    " host.license_apply pool.enable_ssl_legacy VMPP.archive_now VMPP.protect_now VMPP.create"
    " VMPP.destroy VMPP.create_alert VMPP.get_alerts VMPP.set_is_backup_running"
    " VMPP.set_is_archive_running VMPP.set_is_alarm_enabled VMPP.set_backup_frequency"
    " VMPP.set_backup_schedule VMPP.add_to_backup_schedule VMPP.remove_from_backup_schedule"
    " VMPP.set_backup_last_run_time VMPP.set_backup_retention_value VMPP.set_archive_frequency"
    " VMPP.set_archive_schedule VMPP.add_to_archive_schedule VMPP.remove_from_archive_schedule"
    " VMPP.set_archive_last_run_time VMPP.set_archive_target_type VMPP.set_archive_target_config"
    " VMPP.add_to_archive_target_config VMPP.remove_from_archive_target_config"
    " VMPP.set_alarm_config VMPP.add_to_alarm_config VMPP.remove_from_alarm_config"
)
"""The same of others."""
STRING = Type("string")
_IN_DATABASE = {
    "VCPUs_params": "VCPUs__params",
    "HVM_boot_params": "HVM__boot_params",
    "qos_algorithm_params": "qos__algorithm_params",
}
"""Maps that the database calls by another name, and with it those errors that come from there."""


def create_arguments(cls: str, record: dict[str, Any]) -> dict[str, Any]:
    """Check the struct of a `create` call and return its fields, defaults filled in.

    Unknown members are ignored. Raises INTERNAL_ERROR for a missing required one, as the real
    dispatcher does.
    """
    found: dict[str, Any] = {}
    for name, field in (CLASSES.get(cls) or NEWER_CLASSES[cls]).fields.items():
        if not field.required and not field.optional:
            continue
        if name in record:
            found[name] = coerce(field.type, record[name])
        elif field.required:
            raise internal_error(f'Server_helpers.Dispatcher_FieldNotFound("{name}")')
        else:
            found[name] = field.fresh()
    return found


def add_to_map(call: Call, cls: str, ref: str, field: str, key: str, value: Any) -> None:
    """Add one key; MAP_DUPLICATE_KEY when it is there."""
    db = call.pool.db
    if key in db.get(cls, ref, field):
        raise ApiError("MAP_DUPLICATE_KEY", cls, _IN_DATABASE.get(field, field), ref, key)
    db.put(cls, ref, field, key, value)


def register_generics() -> None:
    """Declare the implicit messages of all classes, and what is left of the removed ones."""
    for spec in NEWER_CLASSES.values():
        newer = spec.name not in CLASSES
        for method in _of_class(spec):
            here = replace(method, newer=newer or method.newer)
            register(_unless_removed(here), replace=False)
        for field in spec.fields.values():
            for method in _of_field(spec, field):
                implicit = replace(method, newer=newer or field.newer)
                register(_unless_removed(implicit), replace=False)
    anything = (Parameter("ignored", Type("void"), mandatory=False),)
    for name in REMOVED_CALLS:
        if name not in METHODS:
            register(Method(name, anything, _removed))


def _removed(call: Call, *ignored: Any) -> None:
    raise ApiError("MESSAGE_REMOVED")


def _unless_removed(method: Method) -> Method:
    cls = method.name.partition(".")[0]
    if method.name in REMOVED or f"{cls}.*" in REMOVED:
        return replace(method, handler=_removed)
    return method


def _method(name: str, parameters: list[Parameter], handler: Handler) -> Method:
    return Method(name, tuple(parameters), handler, asynchronous=False, tracked=False)


def _self(spec: ClassSpec) -> Parameter:
    return Parameter("self", Type("ref", spec.name), mandatory=True)


def _string(name: str) -> Parameter:
    return Parameter(name, STRING, mandatory=True)


def _of_class(spec: ClassSpec) -> Iterator[Method]:
    cls = spec.name

    def get_record(call: Call, ref: str) -> dict[str, Any]:
        return call.pool.db.record(cls, ref)

    def get_by_uuid(call: Call, uuid: str) -> str:
        return call.pool.db.by_uuid(cls, uuid)

    def get_by_name_label(call: Call, label: str) -> list[str]:
        return list(call.pool.db.select(cls, name_label=label))

    def get_all(call: Call) -> list[str]:
        return call.pool.db.refs(cls)

    def get_all_records(call: Call) -> dict[str, Any]:
        return {ref: call.pool.db.record(cls, ref) for ref in call.pool.db.refs(cls)}

    def get_all_records_where(call: Call, expr: str) -> dict[str, Any]:
        matches = parse_filter(expr)
        return {ref: record for ref, record in get_all_records(call).items() if matches(record)}

    def get_all_where(call: Call, expr: str) -> list[str]:
        return list(get_all_records_where(call, expr))

    yield _method(f"{cls}.get_record", [_self(spec)], get_record)
    yield _method(f"{cls}.get_by_uuid", [_string("uuid")], get_by_uuid)
    if "name_label" in spec.fields and cls not in WITHOUT_NAMES:
        yield _method(f"{cls}.get_by_name_label", [_string("label")], get_by_name_label)
    if cls not in WITHOUT_LISTS:
        yield _method(f"{cls}.get_all", [], get_all)
        yield _method(f"{cls}.get_all_records", [], get_all_records)
        yield _method(f"{cls}.get_all_records_where", [_string("expr")], get_all_records_where)
        if cls not in WITHOUT_GETTERS:
            where = _method(f"{cls}.get_all_where", [_string("expr")], get_all_where)
            yield replace(where, newer=True)


def _of_field(spec: ClassSpec, field: Field) -> Iterator[Method]:
    cls, name = spec.name, field.name

    def getter(call: Call, ref: str) -> Any:
        return call.pool.db.get(cls, ref, name)

    def setter(call: Call, ref: str, value: Any) -> None:
        call.pool.db.set(cls, ref, **{name: value})

    def add_key(call: Call, ref: str, key: str, value: Any) -> None:
        add_to_map(call, cls, ref, name, key, value)

    def remove_key(call: Call, ref: str, key: str) -> None:
        call.pool.db.drop(cls, ref, name, key)

    def add_member(call: Call, ref: str, value: str) -> None:
        present = call.pool.db.get(cls, ref, name)
        if value not in present:
            call.pool.db.set(cls, ref, **{name: [*present, value]})

    def remove_member(call: Call, ref: str, value: str) -> None:
        present = call.pool.db.get(cls, ref, name)
        call.pool.db.set(cls, ref, **{name: [v for v in present if v != value]})

    own = _self(spec)
    if cls not in WITHOUT_GETTERS:
        yield _method(f"{cls}.get_{name}", [own], getter)
    if not field.writable:
        return
    value = Parameter(name, field.type, mandatory=True)
    yield _method(f"{cls}.set_{name}", [own, value], setter)
    if field.type.kind == "map" and field.type.key and field.type.item:
        key = Parameter("key", field.type.key, mandatory=True)
        item = Parameter("value", field.type.item, mandatory=True)
        yield _method(f"{cls}.add_to_{name}", [own, key, item], add_key)
        yield _method(f"{cls}.remove_from_{name}", [own, key], remove_key)
    elif field.type.kind == "set" and field.type.item == STRING:
        yield _method(f"{cls}.add_{name}", [own, _string("value")], add_member)
        yield _method(f"{cls}.remove_{name}", [own, _string("value")], remove_member)
