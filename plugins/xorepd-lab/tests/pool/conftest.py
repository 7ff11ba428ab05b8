"""One pool for all tests here, and a bench of its own for each."""

from collections.abc import Iterator

import pytest

from pool.target import Bench, Target, bench_on
from tests.lab.whole import OF_CLIENTS, assert_whole
from xorepd_lab.threaded import threaded_lab


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The pool that the environment names, else one of a lab."""
    real = Target.from_environment()
    if real is not None:
        yield real
        return
    with threaded_lab(tmp_path_factory.mktemp("lab")) as lab:
        pool = lab.pools["prod"]
        found = Target(pool.url, pool.username, pool.password, sr="prod-shared", network="lan")
        with bench_on(found) as made:
            made.api.network.add_purpose(made.network, "nbd")
        yield found
        lab.run(assert_whole(lab.lab, OF_CLIENTS))


@pytest.fixture
def bench(target: Target) -> Iterator[Bench]:
    with bench_on(target) as made:
        yield made
