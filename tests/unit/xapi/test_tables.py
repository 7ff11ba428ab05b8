"""Records by reference, by what they point to, and what others derive from them."""

from __future__ import annotations

from tests.unit.xapi import raws
from xorepd.ids import Ref
from xorepd.xapi.records import Record, Vdi, Vm, read_record
from xorepd.xapi.tables import Tables


def vm(name: str, **changes: object) -> Vm:
    return read_record(Vm, Ref(f"OpaqueRef:{name}"), raws.vm(name, **changes))


class Seen:
    """An index that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Ref]] = []

    def put(self, record: Record) -> None:
        self.told.append(("put", record.ref))

    def drop(self, record: Record) -> None:
        self.told.append(("drop", record.ref))


def test_index_is_made_once_and_told_of_each_change() -> None:
    tables, web = Tables(), vm("web")
    tables.put(web)

    index = tables.index(Seen)
    tables.put(web)
    tables.drop(Vm, web.ref)
    tables.drop(Vm, web.ref)  # it is gone already

    assert tables.index(Seen) is index
    assert index.told == [("put", web.ref), ("put", web.ref), ("drop", web.ref)]
    assert Tables().index(Seen) is not index


def test_records_are_found_by_what_they_point_to() -> None:
    tables, origin, image = Tables(), Ref("OpaqueRef:web"), Ref("OpaqueRef:image")
    snapshot = vm("snapshot", snapshot_of=origin, suspend_VDI=image)
    tables.put(snapshot)
    tables.put(vm("other", snapshot_of="OpaqueRef:NULL", suspend_VDI=""))

    assert tables.pointing(Vm, "snapshot_of", origin) == [snapshot]
    assert tables.pointing(Vm, "suspend_vdi", image) == [snapshot]
    assert tables.pointing(Vdi, "snapshot_of", origin) == []
    assert tables.pointing(Vm, "snapshot_of", Ref("OpaqueRef:NULL")) == []


def test_record_that_points_elsewhere_or_is_gone_is_not_found_any_more() -> None:
    tables, one, two = Tables(), Ref("OpaqueRef:one"), Ref("OpaqueRef:two")
    for origin in (one, two):
        tables.put(vm("snapshot", snapshot_of=origin))
    assert tables.pointing(Vm, "snapshot_of", one) == []
    assert len(tables.pointing(Vm, "snapshot_of", two)) == 1

    tables.drop(Vm, Ref("OpaqueRef:snapshot"))
    assert tables.pointing(Vm, "snapshot_of", two) == []
