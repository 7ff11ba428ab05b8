"""Check the type and size of the value of each call, because a pool may answer anything.

This covers only what callers rely on without a check of their own. `records` checks the fields of
records, and `data.nbd.changed_blocks` the bitmaps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xorepd.ids import Ref
from xorepd.xapi.records import BadRecord, Vm, read_record
from xorepd.xapi.rpc.answers import LARGEST, LARGEST_BITMAP, LARGEST_FEED, NotUnderstood

_VM_NUMBERS = (
    "memory_static_max",
    "memory_dynamic_max",
    "memory_dynamic_min",
    "memory_static_min",
    "VCPUs_max",
    "VCPUs_at_startup",
)
_VM_MAPS = ("VCPUs_params", "HVM_boot_params", "platform")
"""Fields that the record of a replica requires."""
_VM_LATER_MAPS = ("xenstore_data", "NVRAM", "bios_strings", "last_boot_CPU_flags")
_VM_LATER_LISTS = ("VTPMs", "VUSBs", "VGPUs", "attached_PCIs")
"""Fields that old hosts do not have."""


def most_of(method: str) -> int:
    """Return the largest size of the answer to a call, in bytes."""
    match method.rpartition(".")[2]:
        case "from" | "get_all_records":
            return LARGEST_FEED
        case "list_changed_blocks":
            return LARGEST_BITMAP
        case _:
            return LARGEST


def check_shape(method: str, value: object) -> None:
    """Check the value of a call.

    Raises:
        NotUnderstood: the value has the wrong type.
    """
    fits = _is_text if method.startswith("Async.") else _SHAPES.get(method)
    fits = fits or _SHAPES.get(method.rpartition(".")[2])
    if fits is not None and not fits(value):
        raise NotUnderstood(f"what came is no answer to {method}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdigit()


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_struct(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value))


def _is_map(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, [*value, *value.values()]))


def _is_vm(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    try:
        read_record(Vm, Ref(""), value)
    except BadRecord:
        return False
    return (
        all(_is_number(value.get(field)) for field in _VM_NUMBERS)
        and isinstance(value.get("HVM_shadow_multiplier", 1.0), float)
        and all(_is_map(value.get(field)) for field in _VM_MAPS)
        and all(_is_map(value.get(field, {})) for field in _VM_LATER_MAPS)
        and all(_is_list_of_texts(value.get(field, [])) for field in _VM_LATER_LISTS)
        and all(map(_is_plain, value.values()))
    )


def _is_plain(value: Any) -> bool:
    """Return whether a field of a record is a text, a number, or a collection of texts."""
    match value:
        case list():
            return _is_list_of_texts(value)
        case dict():
            return _is_map(value)
        case _:
            return value is not None


def _is_list_of_structs(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_struct, value))


def _is_struct_of_structs(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_struct, value.values())) and _is_struct(value)


_SHAPES: dict[str, Callable[[object], bool]] = {
    "create": _is_text,
    "inject": _is_text,
    "list_changed_blocks": _is_text,
    "get_contents": _is_text,
    "get_master": _is_text,
    "get_power_state": _is_text,
    "get_uuid": _is_text,
    "get_virtual_size": _is_number,
    "get_all": _is_list_of_texts,
    "get_VIFs": _is_list_of_texts,
    "get_blocked_operations": _is_map,
    "get_other_config": _is_map,
    "get_record": _is_struct,
    "VM.get_record": _is_vm,
    "get_all_records": _is_struct_of_structs,
    "get_nbd_info": _is_list_of_structs,
    "from": _is_struct,
}
"""By the name of the method, or by its last part."""
