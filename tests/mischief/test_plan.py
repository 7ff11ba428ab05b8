"""Plans are made of nothing but a seed, and become shorter without becoming others."""

from __future__ import annotations

from tests.mischief.deeds import DEEDS, table
from tests.mischief.plan import Deed, End, Plan, Role, Run, make_plan, shorter

PLANS = [make_plan(1, number, table()) for number in range(300)]


def size(plan: Plan) -> int:
    """Return how much there is to do, and to set, in a plan."""
    runs = [step for step in plan.steps if isinstance(step, Run)]
    moments = sum((run.moment is not None) + len(run.during) for run in runs)
    return len(plan.steps) + moments


def test_a_seed_gives_the_same_plans_again() -> None:
    assert [make_plan(1, number, table()) for number in range(300)] == PLANS
    assert make_plan(2, 0, table()) != PLANS[0]


def test_each_plan_ends_with_a_run_that_is_left_alone() -> None:
    for plan in PLANS:
        runs = [step for step in plan.steps if isinstance(step, Run)]
        assert runs[-1] == Run()
        assert len(runs) >= 3


def test_plans_use_all_deeds_roles_and_ends_of_runs() -> None:
    deeds, ends = list[Deed](), set[End]()
    for plan in PLANS:
        for step in plan.steps:
            if isinstance(step, Run):
                ends.add(step.end)
                deeds += step.during
            elif isinstance(step, Deed):
                deeds.append(step)

    assert {deed.name for deed in deeds} == {*DEEDS}
    assert {deed.role for deed in deeds} == {*Role}
    assert ends == {*End}


def test_what_is_shorter_is_made_of_the_same_steps() -> None:
    for plan in PLANS[:50]:
        known = {step for step in plan.steps if isinstance(step, Deed)}
        for other in shorter(plan):
            assert other != plan
            assert size(other) < size(plan) or other.options != plan.options
            assert {step for step in other.steps if isinstance(step, Deed)} <= known
