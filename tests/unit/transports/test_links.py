from __future__ import annotations

import math
from functools import partial

import pytest

from xorepd.transports.links import Links, LinkState


class Gauge:
    def __init__(self, terms: int | None) -> None:
        self.terms = terms
        self.rate: float | None = None

    def renew(self, terms: int | None) -> None:
        self.terms, self.rate = terms, None

    def set_rate(self, rate: float | None) -> None:
        self.rate = rate

    def state(self) -> LinkState:
        rate = self.rate if self.rate is not None else float(self.terms or math.inf)
        return LinkState(rate, "test", 0, 0)


class Other(Gauge):
    pass


def links(*terms: int | None, strict: bool = True) -> Links:
    made = Links(strict=strict)
    for one in terms:
        made.share("wan", partial(Gauge, one))
    return made


def rate(of: Links, name: str = "wan") -> float:
    return of.states()[name].rate_bytes_per_s


def test_those_who_name_one_link_share_it() -> None:
    made = Links()

    assert made.share("wan", lambda: Gauge(1)) is made.share("wan", lambda: Gauge(1))


@pytest.mark.parametrize("terms", [(5, None), (None, 5), (None, 5, None, 5)])
def test_who_says_nothing_of_a_link_takes_it_as_it_is(terms: tuple[int | None, ...]) -> None:
    assert rate(links(*terms)) == 5


def test_two_terms_for_one_link_are_refused_in_a_configuration() -> None:
    with pytest.raises(ValueError, match="wan is set up differently in another job"):
        links(5, 6)


def test_run_of_an_older_configuration_does_not_bring_its_terms_back() -> None:
    assert rate(links(5, 6, strict=False)) == 5


def test_link_of_another_kind_is_refused() -> None:
    made = Links()
    made.share("wan", lambda: Gauge(1))

    with pytest.raises(ValueError, match="belongs to another transport"):
        made.share("wan", lambda: Other(1))


def test_what_was_set_rules_until_the_next_configuration() -> None:
    made = links(5)
    link = made.share("wan", lambda: Gauge(5))

    made.set_rate("wan", 1)
    assert rate(made) == 1
    made.adopt(links(7))

    assert rate(made) == 7
    assert made.share("wan", lambda: Gauge(7)) is link


def test_link_that_a_configuration_names_no_more_is_gone() -> None:
    made = links(5)

    made.adopt(Links())

    assert made.states() == {}
    with pytest.raises(KeyError):
        made.set_rate("wan", 1)
