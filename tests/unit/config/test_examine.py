"""All that is wrong with a configuration is said at once, and nothing that only follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.parts import JOB, POOLS, write
from xorepd.config.load import examine, load
from xorepd.config.models import Settings
from xorepd.errors import ConfigError, ConfigErrors
from xorepd.ids import JobName

ID = 'id = "0b7f8f7e-5a0c-4f43-9f0e-2d7d5f1c9a11"\n'


def job(name: str, *lines: str, **replaced: str) -> str:
    text = JOB.replace("jobs.web", f"jobs.{name}").replace("web01", f"{name}01")
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return text + "".join(f"{line}\n" for line in lines)


def keys(directory: Path, text: str) -> list[str]:
    _, problems = examine(write(directory, text), environ={})
    return [problem.key for problem in problems]


def test_mistakes_of_every_kind_are_said_together(tmp_path: Path) -> None:
    text = (
        '[daemon]\nmax_vms = 0\nlog_levle = "debug"\n'
        + POOLS.replace("[pools.dr]", 'fingerprint = "x"\n[pools.dr]')
        + job("web", "keep = 25", 'deadline = "soon"', "kep = 3")
        + job("db", **{"*/5": "*/90", '"dr"': '"dx"'})
        + job("mail", ID.strip(), **{"dr-storage": "${SR}"})
        + job("file", ID.strip(), "full_every = 9", 'full = "ask"')
        + job("old", old01="web01", source="sorce")
    )

    assert sorted(keys(tmp_path, text)) == [
        "daemon.log_levle",
        "daemon.max_vms",
        "jobs.db.schedule",
        "jobs.db.target.pool",
        "jobs.file",
        "jobs.mail.target.sr",
        "jobs.old",
        "jobs.old.sorce",
        "jobs.web.deadline",
        "jobs.web.keep",
        "jobs.web.kep",
        "pools.prod.fingerprint",
    ]


def test_several_mistakes_are_one_error_with_a_sentence_in_each_line(tmp_path: Path) -> None:
    text = POOLS + job("web", "keep = 25", 'deadline = "soon"')

    with pytest.raises(ConfigErrors) as caught:
        load(write(tmp_path, text))

    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.errors) == 2
    assert all(line.startswith(f"{tmp_path}/xorepd.toml: jobs.web.") for line in lines)
    assert isinstance(caught.value, ConfigError)
    assert caught.value.key == "jobs.web.keep"


def test_what_can_be_used_is_looked_at_though_something_else_cannot(tmp_path: Path) -> None:
    text = POOLS + job("web", "keep = 25", 'hooks = { before = ["/x"] }') + job("db", "kep = 1")

    settings, problems = examine(write(tmp_path, text))

    assert len(problems) == 2
    assert settings.jobs[JobName("web")].hooks.before == ("/x",)
    assert (
        settings.jobs[JobName("web")].keep
        == Settings.model_validate(settings).jobs[JobName("db")].keep
    )
    assert settings.pools.keys() == {"prod", "dr"}


@pytest.mark.parametrize(
    ("text", "only"),
    [
        # No "needs exactly one of password, …" for the password that is no path.
        (POOLS.replace('password_env = "PROD_PASSWORD"', "password_file = 3"), "password_file"),
        (POOLS + job("web", vms="vmz").replace("[jobs.web]", "[jobs.web]\ntags = 3"), None),
        (POOLS + job("web", vms='vms = 3 # "'), "jobs.web.vms"),
        (POOLS + job("web", 'changed_blocks = "of"', 'base_data = "destroy"'), "changed_blocks"),
        (POOLS + job("web", **{'"dr"': '"${DR}"'}), "jobs.web.target.pool"),
        (POOLS.replace("https://prod.example", "${URL}"), "pools.prod.url"),
        ('["pools"."p d"]\nurl = "https://a"\npassword_env = "P"\n', "pools.p d"),
    ],
)
def test_nothing_is_said_that_only_follows_from_something_else(
    tmp_path: Path, text: str, only: str | None
) -> None:
    if "[jobs." not in text:
        text = "jobs = {}\n" + text

    found = keys(tmp_path, text)

    if only is None:
        assert found == ["jobs.web.vmz", "jobs.web.tags"]
    else:
        assert [key.endswith(only) for key in found] == [True]


@pytest.mark.parametrize("junk", ["jobs = 3", "pools = []", "daemon = 3", "jobs.web = 3", "x = 1"])
def test_table_of_another_shape_hides_nothing_else(tmp_path: Path, junk: str) -> None:
    key = junk.split(" = ")[0]
    rest = "" if key.startswith("jobs") else job("web", "keep = 25")
    pools = "" if key == "pools" else POOLS.replace("https://dr.example", "dr")

    found = keys(tmp_path, f"{junk}\n" + pools + rest)

    expected = {key} | ({"jobs.web.keep"} if rest else set())
    expected |= {"pools.dr.url"} if pools else set()
    assert expected <= set(found)


def test_pool_that_is_written_wrongly_is_no_unknown_pool_to_its_jobs(tmp_path: Path) -> None:
    text = POOLS.replace('url = "https://dr.example"', "") + job("web")

    assert keys(tmp_path, text) == ["pools.dr"]


def test_password_that_others_can_read_is_said_with_the_rest(tmp_path: Path) -> None:
    text = POOLS.replace('password_env = "PROD_PASSWORD"', 'password = "geheim"')
    file = write(tmp_path, text + job("web", "keep = 25"), mode=0o644)

    _, problems = examine(file)

    assert [problem.key for problem in problems] == ["pools.prod.password", "jobs.web.keep"]
    assert "geheim" not in "".join(map(str, problems))


@pytest.mark.parametrize("path", ["state_dir", "socket"])
def test_path_with_a_byte_of_zero_is_no_path(tmp_path: Path, path: str) -> None:
    text = f'jobs = {{}}\n[daemon]\n{path} = "a\\u0000b"\n'

    assert keys(tmp_path, text) == [f"daemon.{path}"]
