"""A lab for clients that block, and the fixture that brings it to other people's tests."""

from pathlib import Path

import pytest
import XenAPI

from xorepd_lab.faults.faults import Fault
from xorepd_lab.model.persistence import StateError
from xorepd_lab.threaded import threaded_lab

pytest_plugins = ("pytester",)
pytestmark = pytest.mark.lab


def test_a_script_that_blocks_uses_a_lab(tmp_path: Path) -> None:
    with threaded_lab(tmp_path / "lab") as lab:
        pool = lab.pools["prod"]
        session = XenAPI.Session(pool.url, ignore_ssl=True)
        session.login_with_password(pool.username, pool.password)

        with (
            lab.fault(Fault("rpc", "VM.get_all", error=("INTERNAL_ERROR", "no"))),
            pytest.raises(XenAPI.Failure, match="INTERNAL_ERROR"),
        ):
            session.xenapi.VM.get_all()
        lab.run(lab.lab.guest_write("web01", 0, files={"/etc/motd": b"changed"}))

        assert lab.run(lab.lab.guest_read("web01", 0, "/etc/motd")) == b"changed"
        assert len(session.xenapi.VM.get_all()) > 2
        assert lab.call(lambda: lab.lab.calls[-1].name) == "VM.get_all"
        session.logout()
        session("close")()


def test_what_keeps_a_lab_from_starting_is_told(tmp_path: Path) -> None:
    with (
        threaded_lab(tmp_path / "lab"),
        pytest.raises(StateError),
        threaded_lab(tmp_path / "lab"),
    ):
        pass


def test_a_failure_in_the_block_still_ends_the_lab(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), threaded_lab(tmp_path / "lab"):
        raise ZeroDivisionError

    with threaded_lab(tmp_path / "lab") as again:
        assert "prod" in again.pools


def test_the_fixture_serves_the_tests_of_another_client(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ("xorepd_lab.pytest_plugin",)')
    pytester.makepyfile(
        """
        import XenAPI

        def test_mine(xapi_lab):
            pool = xapi_lab.pools["dr"]
            session = XenAPI.Session(pool.url, ignore_ssl=True)
            session.login_with_password(pool.username, pool.password)
            (host,) = session.xenapi.host.get_all_records().values()
            assert host["name_label"] == "dr-h1"

        def test_the_same_lab_again(xapi_lab):
            assert set(xapi_lab.pools) == {"prod", "dr"}
        """
    )

    done = pytester.runpytest_subprocess("-p", "no:cacheprovider")

    done.assert_outcomes(passed=2)
