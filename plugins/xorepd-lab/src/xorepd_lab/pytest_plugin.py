"""Fixtures for the tests of any XAPI client. In the `conftest.py` at the root of your tests::

    pytest_plugins = ("xorepd_lab.pytest_plugin",)

and in a test::

    def test_mine(xapi_lab):
        pool = xapi_lab.pools["prod"]
        my_client.connect(pool.url, pool.username, pool.password, ca_file=pool.ca_file)

Another fixture of your own named `xapi_topology` decides what the lab consists of.
"""

from collections.abc import Iterator

import pytest

from xorepd_lab.threaded import ThreadedLab, threaded_lab
from xorepd_lab.topology import SMALL, Topology


@pytest.fixture(scope="session")
def xapi_topology() -> Topology:
    """The two pools of the topology `small`."""
    return SMALL


@pytest.fixture(scope="session")
def xapi_lab(
    tmp_path_factory: pytest.TempPathFactory, xapi_topology: Topology
) -> Iterator[ThreadedLab]:
    """One running lab for all tests of the session."""
    with threaded_lab(tmp_path_factory.mktemp("xapi-lab"), xapi_topology) as lab:
        yield lab
