"""The plan of a VM over any evidence and any policy."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.xapi import raws
from xorepd.config.choices import Fulls
from xorepd.data.blocks import BlockMap
from xorepd.ids import Ref
from xorepd.replication.deciding.bases import AskOffer
from xorepd.replication.deciding.evidence import Evidence, Policy, SourceDisk
from xorepd.replication.deciding.modes import Delta, Full, FullReason, Mode, Resync, ResyncReason
from xorepd.replication.deciding.plan import DiskPlan, VmPlan, plan_vm
from xorepd.replication.deciding.reader_choice import Facts
from xorepd.replication.deciding.resume import Begun
from xorepd.replication.format.evidence import PointDisk, RestorePoint, SourceBase
from xorepd.replication.format.foreign import Copy
from xorepd.replication.format.inventory import Marked
from xorepd.replication.format.marks import Mark, ReplicaKey, Role
from xorepd.replication.format.ownership import Content
from xorepd.xapi.records import Vdi, read_record

SIZE = 1000
DISKS = (SourceDisk("d-0", "0", "root", SIZE), SourceDisk("d-1", "1", "data", SIZE))
UUIDS = st.sampled_from([disk.uuid for disk in DISKS])
FORMER = "d-gone"
SNAPSHOTS = st.sampled_from(["s-1", "s-2", "s-3", "s-4"])
CONTENTS = st.sampled_from(Content)
DEVICES = st.sampled_from([disk.device for disk in DISKS])

POINT_DISKS = st.builds(
    PointDisk,
    uuid=st.uuids().map(str),
    disk=UUIDS | st.just(FORMER),
    snapshot=SNAPSHOTS,
    virtual_size=st.sampled_from([900, SIZE, 1100]),
    is_usable=st.booleans(),
    content=CONTENTS,
    deltas=st.integers(0, 9),
    device=DEVICES,
) | st.builds(
    PointDisk,
    uuid=st.uuids().map(str),
    disk=st.just(""),
    snapshot=st.just(""),
    virtual_size=st.sampled_from([0, SIZE]),
    is_usable=st.booleans(),
    content=st.just(Content.UNKNOWN),
    device=DEVICES,
    is_lost=st.just(True),
)
POINTS = st.lists(
    st.builds(RestorePoint, st.uuids().map(str), st.lists(POINT_DISKS, max_size=3).map(tuple)),
    max_size=5,
).map(tuple)
BASES = st.lists(
    st.builds(SourceBase, uuid=SNAPSHOTS, disk=UUIDS, content=CONTENTS),
    max_size=4,
    unique_by=lambda base: base.uuid,
).map(tuple)


def vdi(uuid: str, kind: str = "user") -> Vdi:
    return read_record(Vdi, Ref(f"ref-{uuid}"), raws.vdi(uuid, type=kind, is_a_snapshot=True))


THEIR_BASES = [None, vdi("their-1"), vdi("their-2"), vdi("their-3", "cbt_metadata")]
COPIES = st.lists(
    st.builds(
        Copy,
        disk=UUIDS,
        onto=st.sampled_from([vdi("copy-1"), vdi("copy-2"), vdi("copy-3")]),
        base=st.sampled_from(THEIR_BASES),
        is_proven=st.booleans(),
    ).map(lambda copy: copy if copy.base else replace(copy, is_proven=False)),
    max_size=3,
    unique_by=lambda copy: copy.onto.uuid,
).map(tuple)

FACTS = st.builds(
    Facts,
    is_delta=st.just(True),
    is_vhd=st.booleans(),
    is_bare=st.booleans(),
    changes=st.none() | st.just(BlockMap(1 << 20, 1 << 16)),
)
OFFERS = st.dictionaries(
    st.tuples(UUIDS, SNAPSHOTS | st.sampled_from(["their-1", "their-2", "their-3"])), FACTS
)
SAMPLES = st.dictionaries(st.sampled_from(["copy-1", "copy-2", "copy-3"]), st.booleans())

MODES: st.SearchStrategy[Mode] = (
    st.builds(Delta, base=SNAPSHOTS, onto=st.just("onto"), number=st.integers(1, 9))
    | st.builds(
        Resync,
        onto=st.just("onto"),
        reason=st.sampled_from(ResyncReason),
        number=st.integers(1, 9),
    )
    | st.builds(Full, st.sampled_from(FullReason))
)
STAGING = Marked(vdi("staging"), Mark(Role.DISK, ReplicaKey("p", "v", "s"), "run-1"))
BEGUN = st.dictionaries(
    UUIDS,
    st.builds(Begun, staging=st.just(STAGING), how=MODES, start=st.just(4096), tries=st.just(0)),
)

EVIDENCE = st.builds(
    Evidence,
    disks=st.just(DISKS),
    points=POINTS,
    bases=BASES,
    present=st.just(frozenset(disk.uuid for disk in DISKS)),
    copies=COPIES,
    begun=st.just({}) | BEGUN,
    offers=OFFERS,
    samples=SAMPLES,
)
POLICIES = st.builds(
    Policy,
    full=st.sampled_from(Fulls),
    full_every=st.none() | st.integers(1, 9),
    resync=st.booleans(),
    believes_copies=st.booleans(),
)


# -- the rules, told once more -------------------------------------------------------------------


def has_base(copy: PointDisk, disk: SourceDisk, evidence: Evidence) -> bool:
    """Return whether both sides prove that a disk of a restore point is a base of a disk."""
    return (
        copy.is_usable
        and copy.content is Content.PROVEN
        and copy.virtual_size <= disk.virtual_size
        and any(
            base.uuid == copy.snapshot
            and base.disk == disk.uuid
            and base.content is not Content.CHANGED
            for base in evidence.bases
        )
    )


def may_be_sent(base: str, disk: SourceDisk, evidence: Evidence, policy: Policy) -> bool:
    """Return whether a delta can be sent against a base, as far as that has been asked."""
    facts = evidence.offers.get((disk.uuid, base))
    if facts is None or facts.changes is not None:
        return True
    if facts.is_bare:
        return False
    return facts.is_vhd or not policy.resync


def deltas(disk: SourceDisk, evidence: Evidence, policy: Policy) -> set[tuple[str, str]]:
    """Return all deltas that are possible for a disk: the base and what it is sent onto."""
    ours = {
        (copy.snapshot, copy.uuid)
        for point in evidence.points
        for copy in point.disks
        if has_base(copy, disk, evidence)
    }
    theirs = {
        (copy.base.uuid, copy.onto.uuid)
        for copy in evidence.copies
        if copy.disk == disk.uuid
        and copy.base is not None
        and copy.is_proven
        and policy.believes_copies
        and evidence.samples.get(copy.onto.uuid, True)
    }
    return {each for each in ours | theirs if may_be_sent(each[0], disk, evidence, policy)}


def anew(plan: VmPlan) -> list[DiskPlan]:
    return [disk for disk in plan.disks if disk.begun is None]


# -- properties ----------------------------------------------------------------------------------


@given(EVIDENCE, POLICIES)
def test_every_disk_has_one_plan_and_every_plan_that_is_no_delta_has_a_reason(
    evidence: Evidence, policy: Policy
) -> None:
    found = plan_vm(evidence, policy)

    assert tuple(plan.disk for plan in found.disks) == evidence.disks
    for plan in anew(found):
        if isinstance(plan.how, Full):
            assert isinstance(plan.how.reason, FullReason)
            assert plan.question is None
        elif isinstance(plan.how, Resync):
            assert isinstance(plan.how.reason, ResyncReason)
            assert plan.question is None


@given(EVIDENCE, POLICIES)
def test_base_of_a_delta_is_proven_on_both_sides(evidence: Evidence, policy: Policy) -> None:
    for plan in anew(plan_vm(evidence, policy)):
        if isinstance(plan.how, Delta):
            possible = deltas(plan.disk, evidence, policy)
            assert (plan.how.base, plan.how.onto) in possible


@given(EVIDENCE, POLICIES)
def test_less_than_a_delta_is_planned_only_where_none_is_possible_or_a_full_is_due(
    evidence: Evidence, policy: Policy
) -> None:
    for plan in anew(plan_vm(evidence, policy)):
        if isinstance(plan.how, Delta):
            continue
        is_due = plan.how == Full(FullReason.DUE)
        assert is_due or not deltas(plan.disk, evidence, policy)


@given(EVIDENCE, POLICIES)
def test_full_is_due_only_where_the_job_wants_one_after_so_many_deltas(
    evidence: Evidence, policy: Policy
) -> None:
    without = plan_vm(evidence, replace(policy, full_every=None))

    for plan, free in zip(plan_vm(evidence, policy).disks, without.disks, strict=True):
        assert free.begun is not None or free.how != Full(FullReason.DUE)
        if plan.begun is not None or isinstance(free.how, Full):
            assert plan == free
        else:
            is_due = policy.full_every is not None and free.how.number > policy.full_every
            assert plan.how == (Full(FullReason.DUE) if is_due else free.how)


@given(EVIDENCE, POLICIES)
def test_full_is_planned_only_where_nothing_can_be_compared_with(
    evidence: Evidence, policy: Policy
) -> None:
    policy = replace(policy, resync=True, full_every=None)

    for plan in anew(plan_vm(evidence, policy)):
        if isinstance(plan.how, Full):
            assert not any(
                copy.disk == plan.disk.uuid and copy.is_usable and copy.virtual_size <= SIZE
                for point in evidence.points
                for copy in point.disks
            )
            assert all(
                copy.is_proven and evidence.samples.get(copy.onto.uuid) is False
                for copy in evidence.copies
                if copy.disk == plan.disk.uuid
            )


@given(EVIDENCE, POLICIES)
def test_comparison_is_planned_only_where_the_job_lets_or_one_was_begun(
    evidence: Evidence, policy: Policy
) -> None:
    for plan in plan_vm(evidence, replace(policy, resync=False)).disks:
        if isinstance(plan.how, Resync):
            assert plan.begun is not None
            assert plan.how == plan.begun.how


@given(EVIDENCE, POLICIES)
def test_comparison_is_with_a_disk_that_can_be_cloned_and_a_proven_one_if_there_is_any(
    evidence: Evidence, policy: Policy
) -> None:
    copies = {copy.uuid: copy for point in evidence.points for copy in point.disks}

    for plan in anew(plan_vm(evidence, policy)):
        onto = copies.get(getattr(plan.how, "onto", ""))
        if not isinstance(plan.how, Resync) or onto is None:
            continue
        assert onto.is_usable
        assert onto.virtual_size <= plan.disk.virtual_size
        assert onto.disk != plan.disk.uuid or plan.how.reason is not ResyncReason.DISK_MOVED
        fitting = (
            copy.content
            for copy in copies.values()
            if copy.disk == plan.disk.uuid and copy.is_usable and copy.virtual_size <= SIZE
        )
        assert onto.content is Content.PROVEN or Content.PROVEN not in set(fitting)


@given(EVIDENCE, POLICIES)
def test_reason_of_a_comparison_is_that_of_the_full_that_it_spares(
    evidence: Evidence, policy: Policy
) -> None:
    evidence = replace(evidence, begun={}, copies=())
    policy = replace(policy, full_every=None)
    compared = plan_vm(evidence, replace(policy, resync=True))
    whole = plan_vm(evidence, replace(policy, resync=False))

    for plan, other in zip(compared.disks, whole.disks, strict=True):
        if isinstance(plan.how, Resync) and isinstance(other.how, Full):
            expected = {other.how.reason.value}
            if other.how.reason is FullReason.NEW_DISK:
                expected = {ResyncReason.DISK_MOVED.value}
            assert plan.how.reason.value in expected


@given(EVIDENCE, POLICIES)
def test_no_newer_point_could_have_been_the_base(evidence: Evidence, policy: Policy) -> None:
    ours = {copy.uuid for point in evidence.points for copy in point.disks}

    for at, plan in enumerate(plan_vm(evidence, policy).disks):
        if plan.begun or not isinstance(plan.how, Delta) or plan.how.onto not in ours:
            continue
        held = [plan.how.onto in {copy.uuid for copy in point.disks} for point in evidence.points]
        newer = evidence.points[: held.index(True)]
        without = plan_vm(replace(evidence, points=newer, copies=()), policy)
        assert not isinstance(without.disks[at].how, Delta)


@given(EVIDENCE, POLICIES)
def test_what_is_passed_over_is_no_base_and_is_named_with_its_reason(
    evidence: Evidence, policy: Policy
) -> None:
    for plan in anew(plan_vm(evidence, replace(policy, full_every=None))):
        passed = {each.onto for each in plan.passed}
        assert not passed & {onto for _, onto in deltas(plan.disk, evidence, policy)}
        if not isinstance(plan.how, Delta):
            copies = {
                copy.uuid
                for point in evidence.points
                for copy in point.disks
                if copy.disk == plan.disk.uuid
            }
            theirs = {c.onto.uuid for c in evidence.copies if c.disk == plan.disk.uuid}
            assert passed >= copies | theirs


@given(EVIDENCE, POLICIES)
def test_no_plan_needs_consent_without_saying_so(evidence: Evidence, policy: Policy) -> None:
    found = plan_vm(evidence, policy)

    fulls = {p.disk.device: p.how.reason for p in anew(found) if isinstance(p.how, Full)}
    let = any(
        isinstance(plan.how, Full) and plan.how.reason is not FullReason.FIRST_RUN
        for plan in found.disks
        if plan.begun is not None
    )
    match policy.full:
        case Fulls.ALLOW:
            assert found.held == {}
        case Fulls.NEVER:
            assert found.held == fulls
        case Fulls.ASK:
            needed = {at: why for at, why in fulls.items() if why is not FullReason.FIRST_RUN}
            assert found.held == ({} if let else needed)


@given(EVIDENCE, POLICIES)
def test_disk_that_was_begun_goes_on_as_it_is_unless_its_base_says_nothing(
    evidence: Evidence, policy: Policy
) -> None:
    for plan in plan_vm(evidence, policy).disks:
        begun = evidence.begun.get(plan.disk.uuid)
        if begun is None:
            assert plan.begun is None
            continue
        how = begun.how
        is_silent = isinstance(how, Delta) and not may_be_sent(
            how.base, plan.disk, evidence, policy
        )
        if not is_silent:
            assert (plan.how, plan.begun) == (how, begun)
        elif isinstance(how, Delta) and policy.resync:
            reason = ResyncReason.CHANGES_UNKNOWN
            assert plan.how == Resync(how.onto, reason, how.number)
            assert plan.begun == begun
        else:
            assert plan.begun is None


@given(EVIDENCE, POLICIES, st.data())
def test_plan_asks_until_nothing_is_taken_for_granted_and_never_gets_better_by_an_answer(
    evidence: Evidence, policy: Policy, data: st.DataObject
) -> None:
    rank = {Delta: 0, Resync: 1, Full: 2}
    evidence, policy = replace(evidence, offers={}, samples={}), replace(policy, full_every=None)
    asked = []
    plan = first = plan_vm(evidence, policy)

    while plan.questions:
        for question in plan.questions:
            asked.append(question)
            if isinstance(question, AskOffer):
                facts = data.draw(FACTS)
                evidence = evidence.with_offer(question.disk, question.base, facts)
            else:
                evidence = evidence.with_sample(question.copy.onto.uuid, data.draw(st.booleans()))
        plan = plan_vm(evidence, policy)

    assert all(asked.count(question) == 1 for question in asked)
    for best, last in zip(first.disks, plan.disks, strict=True):
        assert rank[type(best.how)] <= rank[type(last.how)]
        if isinstance(last.how, Delta):
            assert (last.disk.uuid, last.how.base) in evidence.offers
    assert set(first.held) <= set(plan.held)
