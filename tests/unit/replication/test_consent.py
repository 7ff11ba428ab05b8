from __future__ import annotations

import pytest

from tests.unit.parts import job
from xorepd.config.choices import Fulls
from xorepd.errors import ConsentMissing, Refused
from xorepd.replication.deciding.consent import fulls_held, refuse_held
from xorepd.replication.deciding.modes import FullReason

FIRST, GONE = FullReason.FIRST_RUN, FullReason.BASE_GONE_ON_SOURCE


@pytest.mark.parametrize(
    ("full", "fulls"),
    [
        ("allow", {"0": GONE, "1": FIRST}),
        ("ask", {}),
        ("ask", {"0": FIRST, "1": FIRST}),
        ("never", {}),
    ],
)
def test_full_copy_that_the_job_allows_goes_on(full: str, fulls: dict[str, FullReason]) -> None:
    held = fulls_held(Fulls(full), fulls)

    assert not held
    refuse_held(job(full=full), "web01", held)


def test_full_copy_that_was_not_asked_for_is_held_with_its_reason_and_what_lets_it() -> None:
    held = fulls_held(Fulls.ASK, {"0": FIRST, "2": GONE})

    with pytest.raises(Refused) as caught:
        refuse_held(job(full="ask"), "web01", held)

    assert str(caught.value) == (
        'VM web01: disk 2 (base-gone-on-source) would be sent whole, and job web has full = "ask"; '
        "let it once with `xorepctl run web --allow-full`"
    )


@pytest.mark.parametrize(
    ("full", "begun", "is_let"),
    [("ask", GONE, True), ("ask", FIRST, False), ("never", GONE, False)],
)
def test_consent_to_what_an_interrupted_run_began_holds_for_the_rest_of_it(
    full: str, begun: FullReason, is_let: bool
) -> None:
    held = fulls_held(Fulls(full), {"2": GONE}, [begun])

    assert held == ({} if is_let else {"2": GONE})


def test_first_copy_is_held_where_nothing_may_be_sent_whole() -> None:
    held = fulls_held(Fulls.NEVER, {"0": FIRST, "1": FIRST})

    expected = r"disks 0 \(first-run\), 1 \(first-run\) would .* if it may"
    with pytest.raises(ConsentMissing, match=expected):
        refuse_held(job(full="never"), "web01", held)
