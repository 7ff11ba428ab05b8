from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.xapi import raws
from xorepd.config.choices import Fulls
from xorepd.data.blocks import BlockMap
from xorepd.ids import Ref
from xorepd.replication.deciding.bases import AskOffer, AskSample
from xorepd.replication.deciding.evidence import Evidence, Policy, SourceDisk
from xorepd.replication.deciding.modes import Delta, Full, FullReason, Mode, Resync, ResyncReason
from xorepd.replication.deciding.plan import DiskPlan, PassedOver, VmPlan, plan_vm
from xorepd.replication.deciding.reader_choice import Facts
from xorepd.replication.deciding.resume import Begun
from xorepd.replication.format.evidence import PointDisk, RestorePoint, SourceBase
from xorepd.replication.format.foreign import Copy
from xorepd.replication.format.inventory import Marked
from xorepd.replication.format.marks import Mark, ReplicaKey, Role
from xorepd.replication.format.ownership import Content
from xorepd.xapi.records import Vdi, read_record

DISK = SourceDisk("d-0", "0", "root", 1000)


def point(
    content: str, *, disk: str = "d-0", size: int = 1000, is_usable: bool = True
) -> RestorePoint:
    """Return a restore point of one disk, which is named after its content."""
    return RestorePoint(
        f"p-{content}", (PointDisk(f"copy-{content}", disk, content, size, is_usable),)
    )


def base(uuid: str, disk: str = "d-0") -> SourceBase:
    return SourceBase(uuid, disk)


def plan_of(evidence: Evidence, **policy: Any) -> DiskPlan:
    """Return the plan of a VM's only disk."""
    [found] = plan_vm(evidence, Policy(**policy)).disks
    return found


def choose(
    points: Sequence[RestorePoint] = (),
    bases: Sequence[SourceBase] = (),
    *,
    others: Sequence[str] = (),
    resync: bool = False,
) -> Mode:
    """Return how the disk is sent with these restore points, newest first."""
    evidence = Evidence((DISK,), tuple(points), tuple(bases), present=("d-0", *others))
    return plan_of(evidence, resync=resync).how


def test_first_run_is_full() -> None:
    assert choose([], [base("s-1")]) == Full(FullReason.FIRST_RUN)


def test_disk_that_no_point_holds_is_sent_whole() -> None:
    found = choose([point("s-1", disk="d-9")], [base("s-1", disk="d-9")])

    assert found == Full(FullReason.NEW_DISK)


def test_disk_that_a_revert_replaced_is_sent_as_a_delta() -> None:
    # XAPI clones the snapshot's disk, and the snapshots of the old disk become those of the clone.
    found = choose([point("s-1", disk="before")], [base("s-1")])

    assert found == Delta(base="s-1", onto="copy-s-1")


def test_lost_base_falls_back_to_full() -> None:
    found = choose([point("s-1")], [base("s-2")])

    assert found == Full(FullReason.BASE_GONE_ON_SOURCE)


def test_base_of_another_disk_is_no_base() -> None:
    found = choose([point("s-1")], [base("s-1", disk="d-9")])

    assert found == Full(FullReason.BASE_GONE_ON_SOURCE)


def test_point_whose_disk_cannot_be_used_falls_back_to_full() -> None:
    found = choose([point("s-1", is_usable=False)], [base("s-1")])

    assert found == Full(FullReason.BASE_GONE_ON_TARGET)


def test_disk_that_shrank_is_sent_whole() -> None:
    found = choose([point("s-1", size=1001)], [base("s-1")])

    assert found == Full(FullReason.DISK_SHRANK)


def test_disk_that_grew_is_sent_as_a_delta() -> None:
    found = choose([point("s-1", size=500)], [base("s-1")])

    assert found == Delta("s-1", "copy-s-1")


def test_newest_common_base_wins() -> None:
    points = [point("s-3"), point("s-2"), point("s-1")]

    assert choose(points, [base("s-1"), base("s-2")]) == Delta("s-2", "copy-s-2")


def test_order_of_the_source_snapshots_does_not_matter() -> None:
    points = [point("s-2"), point("s-1")]

    found = choose(points, [base("s-1"), base("s-2")])

    assert found == choose(points, [base("s-2"), base("s-1")]) == Delta("s-2", "copy-s-2")


def test_older_base_is_taken_where_the_newest_cannot_be_used() -> None:
    points = [point("s-3", is_usable=False), point("s-2", size=2000), point("s-1")]

    found = choose(points, [base("s-1"), base("s-2"), base("s-3")])

    assert found == Delta("s-1", "copy-s-1")


def test_target_that_missed_runs_still_gets_a_delta() -> None:
    found = choose([point("s-1")], [base(f"s-{n}") for n in range(10, 0, -1)])

    assert found == Delta("s-1", "copy-s-1")


def test_disk_missing_in_the_newest_point_is_found_in_an_older_one() -> None:
    points = [point("s-9", disk="d-9"), point("s-1")]

    assert choose(points, [base("s-1")]) == Delta("s-1", "copy-s-1")


@pytest.mark.parametrize("reason", list(FullReason))
def test_reason_can_be_read_by_machines(reason: FullReason) -> None:
    assert reason.value == reason.name.lower().replace("_", "-")


def test_deltas_are_counted_from_the_disk_that_they_build_on() -> None:
    held = point("s-1").disks[0]
    counted = RestorePoint("p", (replace(held, deltas=6),))

    assert choose([counted], [base("s-1")]) == Delta("s-1", held.uuid, number=7)


@pytest.mark.parametrize(("number", "goes_on"), [(1, True), (7, True), (8, False), (9, False)])
def test_full_is_due_after_so_many_deltas(number: int, goes_on: bool) -> None:
    held = replace(point("s-1").disks[0], deltas=number - 1)
    evidence = Evidence((DISK,), (RestorePoint("p", (held,)),), (base("s-1"),))

    found = plan_of(evidence, full_every=7)

    assert found.how == (Delta("s-1", held.uuid, number) if goes_on else Full(FullReason.DUE))
    assert (found.question is None) != goes_on


def test_full_is_due_where_a_comparison_would_be_one_delta_too_many() -> None:
    held = replace(point("s-1").disks[0], deltas=7)

    found = plan_of(Evidence((DISK,), (RestorePoint("p", (held,)),)), full_every=7, resync=True)

    assert found.how == Full(FullReason.DUE)


def test_full_is_never_due_where_no_job_wants_one() -> None:
    held = replace(point("s-1").disks[0], deltas=9_999)

    assert choose([RestorePoint("p", (held,))], [base("s-1")]) == Delta("s-1", held.uuid, 10_000)


def test_disk_that_is_sent_whole_anyway_keeps_its_reason_where_one_is_due() -> None:
    evidence = Evidence((DISK,), (point("s-1", disk="d-9"),))

    assert plan_of(evidence, full_every=1, resync=False).how == Full(FullReason.NEW_DISK)


def copy(snapshot: str, **changes: Any) -> PointDisk:
    plain: dict[str, Any] = {
        "uuid": f"copy-{snapshot}",
        "disk": "d-0",
        "snapshot": snapshot,
        "virtual_size": 1000,
    }
    return PointDisk(**plain | {"is_usable": True, "device": "0"} | changes)


LOST = copy("", uuid="lost", disk="", content=Content.UNKNOWN, is_lost=True)
"""A disk that a restore point names and that carries no mark any more."""


def chosen(
    points: Sequence[PointDisk], bases: Sequence[SourceBase], *, resync: bool = False
) -> Mode:
    """Choose among restore points of one disk each, newest first."""
    return choose([RestorePoint("p", (each,)) for each in points], bases, resync=resync)


def compared(
    points: list[PointDisk], bases: Sequence[SourceBase] = (), others: Sequence[str] = ()
) -> Mode:
    newest_first = [RestorePoint(f"p-{each.snapshot}", (each,)) for each in points]
    return choose(newest_first, bases, others=others, resync=True)


def test_a_lost_base_costs_a_comparison_with_the_newest_copy() -> None:
    found = compared([copy("s-2"), copy("s-1")], [base("s-9")])

    assert found == Resync("copy-s-2", ResyncReason.BASE_GONE_ON_SOURCE)


def test_a_copy_that_cannot_be_read_is_not_compared_with() -> None:
    found = compared([copy("s-2", is_usable=False), copy("s-1")])

    assert found == Resync("copy-s-1", ResyncReason.BASE_GONE_ON_SOURCE)


def test_a_lost_disk_of_a_point_is_made_up_for_by_an_older_one() -> None:
    found = compared([copy("s-2", is_usable=False), copy("s-1")], [base("s-2")])

    assert found == Resync("copy-s-1", ResyncReason.BASE_GONE_ON_TARGET)


def test_a_disk_that_moved_is_compared_with_the_one_that_was_at_its_device() -> None:
    found = compared([copy("s-1", disk="d-gone")])

    assert found == Resync("copy-s-1", ResyncReason.DISK_MOVED)


@pytest.mark.parametrize(
    ("changes", "others"),
    [({"device": "1"}, []), ({"virtual_size": 999}, []), ({}, ["d-gone"])],
    ids=["another-device", "another-size", "still-there"],
)
def test_a_new_disk_is_not_taken_for_one_that_moved(
    changes: dict[str, Any], others: list[str]
) -> None:
    found = compared([copy("s-1", **({"disk": "d-gone"} | changes))], others=others)

    assert found == Full(FullReason.NEW_DISK)


def test_a_disk_that_shrank_is_compared_with_a_copy_that_is_small_enough() -> None:
    larger = copy("s-2", virtual_size=1001)

    assert compared([larger], [base("s-2")]) == Full(FullReason.DISK_SHRANK)
    found = compared([larger, copy("s-1")], [base("s-2")])
    assert found == Resync("copy-s-1", ResyncReason.DISK_SHRANK)


def test_a_proven_base_is_better_than_a_comparison() -> None:
    assert compared([copy("s-2"), copy("s-1")], [base("s-1")]) == Delta("s-1", "copy-s-1")


def test_nothing_is_compared_on_a_first_run() -> None:
    assert compared([]) == Full(FullReason.FIRST_RUN)


# -- what the source offers against a base ---------------------------------------------------------


CHANGES = BlockMap(1 << 20, 1 << 16)
TELLS = Facts(is_delta=True, is_vhd=True, changes=CHANGES)
BARE_AND_SILENT = Facts(is_delta=True, is_vhd=True, is_bare=True, without_changes="it is off")
RAW_AND_SILENT = Facts(is_delta=True, is_vhd=False, without_changes="it is off")
VHD_AND_SILENT = Facts(is_delta=True, is_vhd=True, without_changes="it is off")


def offered(offers: dict[str, Facts], *points: PointDisk) -> Evidence:
    """Return evidence of restore points whose bases stand all, newest first."""
    return Evidence(
        disks=(DISK,),
        points=tuple(RestorePoint(f"p-{each.uuid}", (each,)) for each in points),
        bases=tuple(base(each.snapshot) for each in points),
        offers={("d-0", uuid): facts for uuid, facts in offers.items()},
    )


def test_delta_asks_what_the_source_offers_against_its_base_before_it_is_sent() -> None:
    evidence = offered({}, copy("s-1"))

    found = plan_of(evidence)

    assert (found.how, found.question) == (Delta("s-1", "copy-s-1"), AskOffer("d-0", "s-1"))
    told = plan_of(evidence.with_offer("d-0", "s-1", TELLS))
    assert (told.how, told.question) == (Delta("s-1", "copy-s-1"), None)


@pytest.mark.parametrize(
    ("facts", "resync", "how"),
    [
        (BARE_AND_SILENT, True, Resync("copy-s-1", ResyncReason.CHANGES_UNKNOWN, 4)),
        (BARE_AND_SILENT, False, Full(FullReason.CHANGES_UNKNOWN)),
        (RAW_AND_SILENT, True, Resync("copy-s-1", ResyncReason.CHANGES_UNKNOWN, 4)),
        (RAW_AND_SILENT, False, Delta("s-1", "copy-s-1", 4)),
        (VHD_AND_SILENT, True, Delta("s-1", "copy-s-1", 4)),
        (VHD_AND_SILENT, False, Delta("s-1", "copy-s-1", 4)),
    ],
)
def test_a_base_that_says_nothing_costs_a_comparison_or_a_full(
    facts: Facts, resync: bool, how: Mode
) -> None:
    found = plan_of(offered({"s-1": facts}, copy("s-1", deltas=3)), resync=resync)

    assert (found.how, found.question) == (how, None)


def test_an_older_base_that_tells_what_changed_is_better_than_a_newer_one_that_does_not() -> None:
    evidence = offered({"s-2": BARE_AND_SILENT, "s-1": TELLS}, copy("s-2"), copy("s-1"))

    found = plan_of(evidence)

    assert found.how == Delta("s-1", "copy-s-1")
    assert found.passed == (PassedOver("copy-s-2", FullReason.CHANGES_UNKNOWN),)


def test_what_has_a_base_is_compared_with_the_newest_restore_point() -> None:
    silent = dict.fromkeys(("s-2", "s-1"), BARE_AND_SILENT)

    found = plan_of(offered(silent, copy("s-2"), copy("s-1")))

    assert found.how == Resync("copy-s-2", ResyncReason.CHANGES_UNKNOWN)


# -- what both disks hold ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (Content.CHANGED, FullReason.POINT_CHANGED),
        (Content.UNKNOWN, FullReason.CONTENT_UNKNOWN),
    ],
)
def test_point_that_is_not_proven_is_no_base(content: Content, reason: FullReason) -> None:
    held = copy("s-1", content=content)

    assert chosen([held], [base("s-1")]) == Full(reason)
    compared_with = Resync(held.uuid, ResyncReason(reason.value))
    assert chosen([held], [base("s-1")], resync=True) == compared_with


def test_points_of_which_some_are_changed_and_some_unknown_are_unknown() -> None:
    points = [copy("s-2", content=Content.CHANGED), copy("s-1", content=Content.UNKNOWN)]

    assert chosen(points, [base("s-1"), base("s-2")]) == Full(FullReason.CONTENT_UNKNOWN)


@pytest.mark.parametrize("content", [Content.CHANGED, Content.UNKNOWN])
def test_older_point_that_is_proven_is_taken_instead_of_the_newest(content: Content) -> None:
    points = [copy("s-2", content=content), copy("s-1")]

    found = chosen(points, [base("s-1"), base("s-2")], resync=True)

    assert found == Delta("s-1", "copy-s-1")


def test_source_snapshot_that_was_written_to_is_no_base() -> None:
    changed = SourceBase("s-1", "d-0", Content.CHANGED)

    assert chosen([copy("s-1")], [changed]) == Full(FullReason.BASE_CHANGED)
    found = chosen([copy("s-1")], [changed], resync=True)
    assert found == Resync("copy-s-1", ResyncReason.BASE_CHANGED)


def test_source_snapshot_that_does_not_say_what_it_held_is_a_base() -> None:
    # Nothing that we do not look at writes to it, and there is no other side to compare it with.
    unknown = SourceBase("s-1", "d-0", Content.UNKNOWN)

    assert chosen([copy("s-1")], [unknown]) == Delta("s-1", "copy-s-1")


def test_older_base_that_is_proven_is_taken_instead_of_one_that_was_written_to() -> None:
    bases = [SourceBase("s-2", "d-0", Content.CHANGED), base("s-1")]

    assert chosen([copy("s-2"), copy("s-1")], bases) == Delta("s-1", "copy-s-1")


def test_base_that_was_written_to_counts_before_what_became_of_its_copy() -> None:
    changed = SourceBase("s-1", "d-0", Content.CHANGED)
    held = copy("s-1", content=Content.CHANGED)

    assert chosen([held], [changed]) == Full(FullReason.BASE_CHANGED)


def test_disk_that_shrank_is_told_by_what_is_proven() -> None:
    points = [copy("s-2", content=Content.CHANGED), copy("s-1", virtual_size=1001)]

    assert chosen(points, [base("s-1"), base("s-2")]) == Full(FullReason.DISK_SHRANK)


def test_points_that_have_lost_their_marks_say_so() -> None:
    assert chosen([LOST], [base("s-1")]) == Full(FullReason.MARKS_LOST)


def test_disk_that_has_lost_its_marks_is_compared_with_where_it_is_at_the_device() -> None:
    assert chosen([LOST], [], resync=True) == Resync("lost", ResyncReason.MARKS_LOST)


@pytest.mark.parametrize("changes", [{"is_usable": False}, {"device": "1"}, {"virtual_size": 999}])
def test_disk_that_has_lost_its_marks_and_may_be_another_is_not_compared_with(
    changes: dict[str, Any],
) -> None:
    lost = replace(LOST, **changes)

    assert chosen([lost], [], resync=True) == Full(FullReason.MARKS_LOST)


def test_disk_that_an_older_point_holds_has_not_lost_its_marks() -> None:
    assert chosen([LOST, copy("s-1")], [base("s-1")]) == Delta("s-1", "copy-s-1")


def test_comparison_prefers_a_copy_that_is_proven_to_a_newer_one() -> None:
    points = [
        copy("s-4", content=Content.CHANGED),
        copy("s-3", content=Content.UNKNOWN),
        copy("s-2"),
        copy("s-1"),
    ]

    assert chosen(points, [], resync=True) == Resync("copy-s-2", ResyncReason.BASE_GONE_ON_SOURCE)
    found = chosen(points[:2], [], resync=True)
    assert found == Resync("copy-s-4", ResyncReason.BASE_GONE_ON_SOURCE)


@pytest.mark.parametrize("reason", list(ResyncReason))
def test_reason_of_a_comparison_can_be_read_by_machines(reason: ResyncReason) -> None:
    assert reason.value == reason.name.lower().replace("_", "-")


@pytest.mark.parametrize(
    "reason",
    sorted(set(FullReason) - {FullReason.FIRST_RUN, FullReason.NEW_DISK, FullReason.DUE}),
)
def test_every_full_that_a_comparison_may_spare_has_a_reason_for_that(reason: FullReason) -> None:
    assert ResyncReason(reason.value).name == reason.name


# -- copies of other software ----------------------------------------------------------------------


def vdi(uuid: str, **changes: Any) -> Vdi:
    return read_record(Vdi, Ref(f"ref-{uuid}"), raws.vdi(uuid, **changes))


def theirs(
    onto: str = "their-copy", base: str | None = "their-base", *, is_proven: bool = True, **of: Any
) -> Copy:
    """Return a copy of the disk that other software made."""
    stands = vdi(base, is_a_snapshot=True, **of) if base else None
    return Copy("d-0", vdi(onto), stands, is_proven)


ADOPTED = Delta("their-base", "their-copy")
BARE: dict[str, Any] = {"type": "cbt_metadata"}


def first_run(*copies: Copy, **known: Any) -> Evidence:
    """Return evidence of a VM that other software has copied, and we have not."""
    return Evidence((DISK,), copies=copies, **known)


def test_copy_of_others_spares_the_first_full_once_a_sample_is_equal() -> None:
    evidence = first_run(theirs())

    found = plan_of(evidence)

    assert (found.how, found.question) == (ADOPTED, AskSample(theirs()))
    equal = evidence.with_sample("their-copy", True)
    assert plan_of(equal).question == AskOffer("d-0", "their-base")
    told = plan_of(equal.with_offer("d-0", "their-base", TELLS))
    assert (told.how, told.question) == (ADOPTED, None)


def test_copy_of_others_that_holds_something_else_is_neither_a_base_nor_compared() -> None:
    found = plan_of(first_run(theirs(), samples={"their-copy": False}))

    assert found.how == Full(FullReason.FIRST_RUN)
    assert found.passed == (PassedOver("their-copy", FullReason.POINT_CHANGED),)


def test_the_next_copy_of_others_is_tried_after_one_that_holds_something_else() -> None:
    copies = theirs(), theirs("older-copy", "older-base")

    found = plan_of(first_run(*copies, samples={"their-copy": False}))

    assert (found.how, found.question) == (Delta("older-base", "older-copy"), AskSample(copies[1]))


def test_base_of_others_without_data_is_not_sampled() -> None:
    assert plan_of(first_run(theirs(**BARE))).question == AskOffer("d-0", "their-base")


@pytest.mark.parametrize(
    ("resync", "how"),
    [
        (True, Resync("their-copy", ResyncReason.CHANGES_UNKNOWN)),
        (False, Full(FullReason.CHANGES_UNKNOWN)),
    ],
)
def test_base_of_others_without_data_that_tells_nothing_costs_a_comparison_or_a_full(
    resync: bool, how: Mode
) -> None:
    offers = {("d-0", "their-base"): BARE_AND_SILENT}

    assert plan_of(first_run(theirs(**BARE), offers=offers), resync=resync).how == how


@pytest.mark.parametrize(
    "copy",
    [theirs(base=None, is_proven=False), theirs(is_proven=False)],
    ids=["base-gone", "not-proven"],
)
def test_copy_of_others_that_is_no_base_is_compared_with_where_the_job_lets(copy: Copy) -> None:
    compared_with = Resync("their-copy", ResyncReason.COPY_OF_OTHERS)

    assert plan_of(first_run(copy)).how == compared_with
    assert plan_of(first_run(copy), resync=False).how == Full(FullReason.FIRST_RUN)


def test_copy_of_others_is_no_base_where_the_job_verifies_everything() -> None:
    found = plan_of(first_run(theirs()), believes_copies=False)

    assert found.how == Resync("their-copy", ResyncReason.COPY_OF_OTHERS)


def test_proven_copy_of_others_is_better_than_one_to_compare_with() -> None:
    copies = theirs("newer", is_proven=False), theirs()

    assert plan_of(first_run(*copies)).how == ADOPTED


def test_copy_of_others_of_another_disk_is_none() -> None:
    other = replace(theirs(), disk="d-9")

    assert plan_of(first_run(other)).how == Full(FullReason.FIRST_RUN)


def test_base_of_ours_is_better_than_one_of_others_and_that_than_a_comparison() -> None:
    known = Evidence((DISK,), (point("s-1"),), (base("s-1"),), copies=(theirs(),))
    baseless = replace(known, bases=())

    assert plan_of(known).how == Delta("s-1", "copy-s-1")
    assert plan_of(baseless).how == ADOPTED
    unproven = replace(baseless, copies=(theirs(is_proven=False),))
    assert plan_of(unproven).how == Resync("copy-s-1", ResyncReason.BASE_GONE_ON_SOURCE)


# -- what an interrupted run has begun -------------------------------------------------------------


def begun(how: Mode) -> Begun:
    staging = Marked(vdi("staging"), Mark(Role.DISK, ReplicaKey("p", "v", "s"), "run-1"))
    return Begun(staging, how, start=4096, tries=0)


@pytest.mark.parametrize(
    "how", [Full(FullReason.FIRST_RUN), Resync("old", ResyncReason.DISK_MOVED)]
)
def test_disk_that_was_begun_is_ended_as_it_was_begun(how: Mode) -> None:
    evidence = Evidence(
        (DISK,), (point("s-1"),), (base("s-1"),), copies=(theirs(),), begun={"d-0": begun(how)}
    )

    found = plan_of(evidence, full_every=1)

    assert (found.how, found.begun, found.question) == (how, begun(how), None)


def test_delta_that_was_begun_goes_on_even_where_a_full_is_due() -> None:
    evidence = Evidence((DISK,), begun={"d-0": begun(Delta("s-1", "copy-s-1", 9))})

    found = plan_of(evidence, full_every=7)

    assert (found.how, found.question) == (Delta("s-1", "copy-s-1", 9), AskOffer("d-0", "s-1"))
    told = plan_of(evidence.with_offer("d-0", "s-1", TELLS), full_every=7)
    assert (told.how, told.question) == (Delta("s-1", "copy-s-1", 9), None)
    assert told.begun is not None


@pytest.mark.parametrize("facts", [BARE_AND_SILENT, RAW_AND_SILENT])
def test_delta_that_was_begun_is_compared_as_it_goes_on_if_its_base_says_nothing(
    facts: Facts,
) -> None:
    evidence = Evidence((DISK,), begun={"d-0": begun(Delta("s-1", "copy-s-1", 3))})

    found = plan_of(evidence.with_offer("d-0", "s-1", facts))

    assert found.how == Resync("copy-s-1", ResyncReason.CHANGES_UNKNOWN, 3)
    assert found.begun is not None


def test_delta_that_was_begun_is_planned_anew_where_neither_base_nor_comparison_helps() -> None:
    evidence = offered({"s-1": BARE_AND_SILENT}, copy("s-1"))
    evidence = replace(evidence, begun={"d-0": begun(Delta("s-1", "copy-s-1"))})

    found = plan_of(evidence, resync=False)

    assert (found.how, found.begun) == (Full(FullReason.CHANGES_UNKNOWN), None)


# -- the VM ----------------------------------------------------------------------------------------

SECOND = SourceDisk("d-1", "1", "data", 1000)


def vm_plan(evidence: Evidence, full: str, **policy: Any) -> VmPlan:
    return plan_vm(evidence, Policy(full=Fulls(full), resync=False, **policy))


def test_each_disk_is_planned_by_itself() -> None:
    evidence = Evidence((DISK, SECOND), (point("s-1"),), (base("s-1"),))

    found = vm_plan(evidence, "allow")

    assert [plan.how for plan in found.disks] == [
        Delta("s-1", "copy-s-1"),
        Full(FullReason.NEW_DISK),
    ]
    assert found.questions == (AskOffer("d-0", "s-1"),)
    assert found.has_full


@pytest.mark.parametrize(
    ("full", "held"),
    [("allow", {}), ("ask", {"1": "new-disk"}), ("never", {"1": "new-disk"})],
)
def test_plan_says_which_disks_need_consent(full: str, held: dict[str, str]) -> None:
    evidence = Evidence((DISK, SECOND), (point("s-1"),), (base("s-1"),))

    assert vm_plan(evidence, full).held == held


@pytest.mark.parametrize(("full", "held"), [("ask", []), ("never", ["0", "1"])])
def test_first_copy_needs_no_consent_where_the_job_asks(full: str, held: list[str]) -> None:
    assert list(vm_plan(Evidence((DISK, SECOND)), full).held) == held


@pytest.mark.parametrize(
    ("why", "full", "held"),
    [
        (FullReason.BASE_GONE_ON_SOURCE, "ask", []),
        (FullReason.FIRST_RUN, "ask", ["1"]),
        (FullReason.BASE_GONE_ON_SOURCE, "never", ["1"]),
    ],
)
def test_what_was_begun_with_consent_has_it_for_the_rest(
    why: FullReason, full: str, held: list[str]
) -> None:
    evidence = Evidence((DISK, SECOND), (point("s-1"),), begun={"d-0": begun(Full(why))})

    assert list(vm_plan(evidence, full).held) == held


def test_copy_of_others_spares_the_consent_for_as_long_as_nothing_says_otherwise() -> None:
    evidence = Evidence((DISK,), (point("s-1"),), copies=(theirs(),))

    assert vm_plan(evidence, "ask").held == {}
    differs = evidence.with_sample("their-copy", False)
    assert vm_plan(differs, "ask").held == {"0": FullReason.BASE_GONE_ON_SOURCE}
