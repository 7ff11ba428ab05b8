from __future__ import annotations

from pathlib import Path

from tests.unit.parts import JOB, POOLS, settings_of
from xorepd.config.diff import Changes, Difference, compare

NOTHING = Changes(Difference(), Difference(), (), ())


def changes(directory: Path, old: str, new: str) -> Changes:
    return compare(settings_of(directory, old), settings_of(directory, new))


def test_same_file_changes_nothing(tmp_path: Path) -> None:
    text = POOLS + JOB + 'timezone = "Europe/Paris"\nnetworks = { a = "b" }\n'

    assert changes(tmp_path, text, text + "# a comment\n") == NOTHING
    assert not NOTHING


def test_jobs_and_pools_are_told_apart(tmp_path: Path) -> None:
    db = JOB.replace("jobs.web", "jobs.db").replace("web01", "db01")
    third = '[pools.third]\nurl = "https://third"\npassword_env = "P"\n'

    found = changes(
        tmp_path,
        POOLS + JOB + "keep = 3\n",
        POOLS.replace("dr.example", "dr2.example") + third + JOB + "keep = 4\n" + db,
    )

    assert found.jobs == Difference(added=("db",), changed=("web",))
    assert found.pools == Difference(added=("third",), changed=("dr",))
    assert changes(tmp_path, POOLS + JOB + db, POOLS + JOB).jobs == Difference(removed=("db",))


def test_what_needs_a_restart_is_said(tmp_path: Path) -> None:
    found = changes(
        tmp_path,
        POOLS + JOB,
        '[daemon]\nsocket = "x"\nlog_level = "debug"\nmax_vms = 8\n' + POOLS + JOB,
    )

    assert (found.daemon, found.needs_restart) == (("max_vms", "log_level"), ("socket",))
