from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.parts import JOB, POOLS, settings_of, write
from xorepd.config.keep import Keep
from xorepd.config.load import load
from xorepd.config.models import Verify
from xorepd.errors import LONGEST, ConfigError
from xorepd.ids import JobName, PoolName
from xorepd.units import GiB, MiB


def refused(directory: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        settings_of(directory, text)
    assert caught.value.file == directory / "xorepd.toml"
    return caught.value


def test_job_that_says_little_gets_the_defaults(tmp_path: Path) -> None:
    job = settings_of(tmp_path).jobs[JobName("web")]

    assert (job.max_vms, job.verify, job.enabled) == (2, Verify.SAMPLE, True)
    assert job.keep == Keep(last=3)
    assert (job.source_reserve, job.target_reserve, job.deadline) == (GiB, GiB, 86400.0)
    assert (job.timezone.key, job.transport.name, dict(job.networks)) == ("UTC", "direct", {})


def test_job_keeps_its_id_as_long_as_its_name(tmp_path: Path) -> None:
    # Restore points out there carry it: this value may never change.
    assert settings_of(tmp_path).jobs[JobName("web")].id == "a35084bd-8772-5fa1-b1e0-f69c0eaa6e13"


def test_values_are_typed_inside(tmp_path: Path) -> None:
    text = POOLS + JOB + 'source_reserve = "64MiB"\ndeadline = "1h30m"\nverify = "full"\n'

    job = settings_of(tmp_path, text).jobs[JobName("web")]

    assert (job.source_reserve, job.deadline, job.verify) == (64 * MiB, 5400.0, Verify.FULL)


@pytest.mark.parametrize("size", ['"15MiB"', '"65GiB"', '"0B"'])
def test_memory_outside_its_bounds_is_refused_with_the_bounds(tmp_path: Path, size: str) -> None:
    error = refused(tmp_path, f"[daemon]\nmemory = {size}\n" + POOLS + JOB)

    assert error.key == "daemon.memory"
    assert 'must be between "16MiB" and "64GiB"' in str(error)


def test_transport_table_keeps_its_options_raw(tmp_path: Path) -> None:
    text = POOLS + JOB + 'transport = { name = "throttled", rate = "10MiB", burst = 2 }\n'

    transport = settings_of(tmp_path, text).jobs[JobName("web")].transport

    assert (transport.name, dict(transport.options)) == ("throttled", {"rate": "10MiB", "burst": 2})


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    text = 'jobs = {}\n[daemon]\nsocket = "run/c.sock"\nstate_dir = "/srv/x"\n'

    daemon = settings_of(tmp_path, text).daemon

    assert (daemon.socket, daemon.state_dir) == (tmp_path / "run/c.sock", Path("/srv/x"))


def test_fingerprint_is_taken_as_openssl_prints_it(tmp_path: Path) -> None:
    printed = ":".join(["AB"] * 32)
    text = POOLS.replace("[pools.dr]", f'fingerprint = "sha256:{printed}"\n[pools.dr]') + JOB

    assert settings_of(tmp_path, text).pools[PoolName("prod")].fingerprint == ("ab" * 32,)


def test_each_host_of_a_pool_may_have_a_fingerprint(tmp_path: Path) -> None:
    both = ", ".join(f'"sha256:{digits * 32}"' for digits in ("ab", "cd"))
    text = POOLS.replace("[pools.dr]", f"fingerprint = [{both}]\n[pools.dr]") + JOB

    settings = settings_of(tmp_path, text)

    assert settings.pools[PoolName("prod")].fingerprint == ("ab" * 32, "cd" * 32)


def test_variables_are_replaced_in_every_string(tmp_path: Path) -> None:
    text = POOLS + JOB.replace('"web01"', '"${VM}-${VM}", "a$$b", "$plain"')

    assert settings_of(tmp_path, text, VM="x").jobs[JobName("web")].vms == ("x-x", "a$b", "$plain")


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)

    with pytest.raises(TypeError):
        settings.jobs[JobName("other")] = settings.jobs[JobName("web")]  # type: ignore[index]  # that is the point


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("vms =", "vmz =", "jobs.web.vmz", "did you mean 'vms'?"),
        ("[jobs.web]", "[jobz.web]", "jobz", "did you mean 'jobs'?"),
        ("sr =", "srr =", "jobs.web.target.srr", "did you mean 'sr'?"),
        ("target =", "targt =", "jobs.web.targt", "did you mean 'target'?"),
        ("target =", "targets =", "jobs.web.targets", "must be a list"),
        ("target =", "targets = []\ntarget =", "jobs.web", "both target and targets"),
        ('target = { pool = "dr", sr = "dr-storage" }', "", "jobs.web", "'target' or 'targets'"),
        ('target = { pool = "dr", sr = "dr-storage" }', "targets = []", "jobs.web.targets", "one"),
        ('"dr-storage" }', '"x", keep = 25 }', "jobs.web.target.keep", "equal to 24"),
        ("schedule", 'name = "x"\nschedule', "jobs.web.name", "no such key"),
        ('source = "prod"', 'source = "prd"', "jobs.web.source", "did you mean 'prod'?"),
        ('pool = "dr"', 'pool = "x"', "jobs.web.target.pool", "add a table [pools.x]"),
        ('source = "prod"\n', "", "jobs.web", "'source' is required"),
        ('"web01"', '"a", "a"', "jobs.web.vms", "'a' is listed twice"),
        ('"web01"', "", "jobs.web.vms", "at least one"),
        ('vms = ["web01"]\n', "", "jobs.web", "names no VM; write vms or tags"),
        ("schedule", 'exclude = ["web01"]\nschedule', "jobs.web", "'web01' in vms and in exclude"),
        ("schedule", 'power_states = ["on"]\nschedule', "jobs.web.power_states[0]", "'running'"),
        ("schedule", 'empty = "ignore"\nschedule', "jobs.web.empty", "'warn' or 'fail'"),
        ("schedule", 'full = "no"\nschedule', "jobs.web.full", "'allow', 'ask' or 'never'"),
        ("schedule", 'full = "ask"\nfull_every = 9\nschedule', "jobs.web", "remove one of the two"),
        (
            "schedule",
            'changed_blocks = "off"\nbase_data = "destroy"\nschedule',
            "jobs.web",
            "remove one of the two",
        ),
        ("schedule", 'base_data = "drop"\nschedule', "jobs.web.base_data", "'keep' or 'destroy'"),
        ("schedule", "full_every = 0\nschedule", "jobs.web.full_every", "equal to 1"),
        ("schedule", 'exclude_disks = ["1"]\nschedule', "jobs.web.exclude_disks", "a table"),
        ("schedule", "exclude_disks = { a = [] }\nschedule", "jobs.web.exclude_disks.a", "one"),
        ('["web01"]', '"web01"', "jobs.web.vms", "must be a list"),
        ('{ pool = "dr", sr = "dr-storage" }', '"dr"', "jobs.web.target", "must be a table"),
        ('"web01"', "1", "jobs.web.vms[0]", "valid string"),
        ('"web01"', '"${NOPE}"', "jobs.web.vms[0]", "no variable NOPE"),
        ('"web01"', '"${NOPE"', "jobs.web.vms[0]", "${NAME}"),
        ("schedule", "keep = 25\nschedule", "jobs.web.keep", "less than or equal to 24"),
        ("schedule", "keep = 0\nschedule", "jobs.web.keep", "greater than or equal to 1"),
        ("schedule", 'keep = "3"\nschedule', "jobs.web.keep", "write a number, or a table"),
        ("schedule", "keep = true\nschedule", "jobs.web.keep", "write a number, or a table"),
        ("schedule", "keep = { daly = 3 }\nschedule", "jobs.web.keep.daly", "mean 'daily'?"),
        ("schedule", "keep = { last = 0 }\nschedule", "jobs.web.keep.last", "equal to 1"),
        ("schedule", "keep = { daily = -1 }\nschedule", "jobs.web.keep.daily", "equal to 0"),
        (
            "schedule",
            "keep = { last = 3, daily = 7, weekly = 4, monthly = 12 }\nschedule",
            "jobs.web.keep",
            "up to 26 restore points",
        ),
        ("schedule", 'verify = "all"\nschedule', "jobs.web.verify", "'sample', 'full' or 'off'"),
        ("schedule", "deadline = 5\nschedule", "jobs.web.deadline", "with its unit"),
        ("schedule", 'deadline = "0s"\nschedule', "jobs.web.deadline", "longer than 0s"),
        ("schedule", 'source_reserve = "1GB"\nschedule', "jobs.web.source_reserve", "1.5GiB"),
        ("schedule", 'timezone = "Europe/Pariss"\nschedule', "jobs.web.timezone", "Europe/Paris"),
        ("schedule", 'id = "1"\nschedule', "jobs.web.id", "not a UUID"),
        ('"*/5 * * * *"', '"*/5 * * *"', "jobs.web.schedule", "has 4"),
        ('"*/5 * * * *"', '"0 0 30 2 *"', "jobs.web.schedule", "is ever due"),
        ('"*/5 * * * *"', '"61 * * * *"', "jobs.web.schedule", "is ever due"),
        *(
            ('"*/5 * * * *"', f'"{expression}"', "jobs.web.schedule", words)
            for expression, words in (
                ("*/90 * * * *", "'*/90', whose step of 90 is larger"),
                ("*/60 * * * *", "it only means 0"),
                ("0,5/70 * * * *", "it only means 5"),
                ("10-20/15 * * * *", "it only means 10"),
                ("0 */24 * * *", "'*/24', whose step"),
                ("0 22-3/6 * * *", "it only means 22"),
                ("0 0 */31 * *", "it only means 1"),
                ("0 0 1 */12 *", "it only means 1"),
                ("0 0 * * */7", "it only means 0"),
                ("0 0 * * mon-FRI/5", "it only means 1"),
                ("0 0 * jan-mar/3 *", "it only means 1"),
                ("R * * * *", "change with each start"),
                ("0 h * * *", "change with each start"),
                ("*/0 * * * *", "is ever due"),
            )
        ),
        ("https://prod.example", "http://prod.example", "pools.prod", "plaintext = true"),
        (
            "https://prod.example",
            "https://u:geheim@prod.example",
            "pools.prod.url",
            "password_file",
        ),
        ("https://prod.example", "prod.example", "pools.prod.url", "https://host"),
        ('password_env = "PROD_PASSWORD"', "", "pools.prod", "exactly one of"),
        ("[pools.dr]", 'password_file = "x"\n[pools.dr]', "pools.prod", "password_file and"),
        ("[pools.dr]", 'fingerprint = "sha1:aa"\n[pools.dr]', "pools.prod.fingerprint", "sha256:"),
        ("[pools.dr]", "connections = 17\n[pools.dr]", "pools.prod.connections", "equal to 16"),
        ("[pools.dr]", '["pools"."d r"]', "pools.d r", "a name is"),
    ],
)
def test_mistake_is_named(tmp_path: Path, old: str, new: str, key: str, words: str) -> None:
    text = POOLS + JOB
    assert old in text

    error = refused(tmp_path, text.replace(old, new, 1))

    assert error.key == key
    assert words in str(error)
    assert "geheim" not in str(error)


@pytest.mark.parametrize(
    "expression",
    [
        "*/59 * * * *",
        "5-59/54 * * * *",
        "0 */23 * * *",
        "0 22-3/5 * * *",
        "0 0 */30 * *",
        "0 0 1 jan-DEC/11 *",
        "0 0 * * mon-fri/4",
        "0 0 * * */6",
        "0 0 L * *",
        "@daily",
    ],
)
def test_schedule_that_comes_due_more_than_once_is_taken(tmp_path: Path, expression: str) -> None:
    text = POOLS + JOB.replace("*/5 * * * *", expression)

    assert settings_of(tmp_path, text).jobs[JobName("web")].schedule == expression


TWO = JOB.replace(
    'target = { pool = "dr", sr = "dr-storage" }',
    'targets = [{ pool = "dr", sr = "a" },\n'
    '{ pool = "prod", sr = "b", keep = 7, transport = "x" }]',
)


def test_target_without_retention_and_transport_has_those_of_its_job(tmp_path: Path) -> None:
    job = settings_of(tmp_path, POOLS + TWO + "keep = 5\n").jobs[JobName("web")]

    assert [(t.pool, t.sr, job.keep_on(t), job.transport_to(t).name) for t in job.targets] == [
        ("dr", "a", Keep(last=5), "direct"),
        ("prod", "b", Keep(last=7), "x"),
    ]


def test_job_by_tags_needs_no_names(tmp_path: Path) -> None:
    text = POOLS + JOB.replace('vms = ["web01"]', 'tags = ["gold"]')

    job = settings_of(tmp_path, text).jobs[JobName("web")]

    assert (job.vms, job.found_by, job.wanted) == ((), "tag gold", ("tag gold",))


def test_names_and_patterns_are_told_apart(tmp_path: Path) -> None:
    text = POOLS + JOB.replace('"web01"', '"db [old]", "web*"')

    job = settings_of(tmp_path, text).jobs[JobName("web")]

    assert (job.named, job.found_by) == (("db [old]",), "web*")
    assert settings_of(tmp_path).jobs[JobName("web")].wanted == ("web01",)


def test_retention_by_days_and_weeks_is_said_as_it_is_written(tmp_path: Path) -> None:
    text = POOLS + JOB + "keep = { last = 3, daily = 7, yearly = 1 }\n"

    keep = settings_of(tmp_path, text).jobs[JobName("web")].keep

    assert keep == Keep(last=3, daily=7, yearly=1)
    assert (str(keep), keep.most, str(Keep(last=4))) == ("last 3, daily 7, yearly 1", 11, "4")


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ('pool = "prod"', 'pool = "prd"', "jobs.web.targets[1].pool", "did you mean 'prod'?"),
        ("keep = 7", "keeps = 7", "jobs.web.targets[1].keeps", "did you mean 'keep'?"),
        ('pool = "prod", sr = "b"', 'pool = "dr", sr = "a"', "jobs.web.targets", "'a' of pool"),
    ],
)
def test_mistake_in_one_of_several_targets_is_named(
    tmp_path: Path, old: str, new: str, key: str, words: str
) -> None:
    assert old in TWO

    error = refused(tmp_path, POOLS + TWO.replace(old, new))

    assert error.key == key
    assert words in str(error)


def test_mistake_in_a_table_of_a_target_is_shown_by_its_line(tmp_path: Path) -> None:
    head = POOLS + JOB.replace('target = { pool = "dr", sr = "dr-storage" }\n', "")
    first = '[[jobs.web.targets]]\npool = "dr"\nsr = "a"\n'
    text = head + first + '[[jobs.web.targets]]\npool = "dr"\nsr = 1\n'

    error = refused(tmp_path, text)

    assert error.key == "jobs.web.targets[1].sr"
    assert f"(line {len(text.splitlines())})" in str(error)


def test_error_names_the_line(tmp_path: Path) -> None:
    text = POOLS + JOB + "keep = 99\n"

    assert f"(line {len(text.splitlines())})" in str(refused(tmp_path, text))


def test_misspelt_key_is_reported_before_the_key_that_it_replaced(tmp_path: Path) -> None:
    error = refused(tmp_path, POOLS + JOB.replace("source =", "sorce ="))

    assert error.key == "jobs.web.sorce"


def test_two_jobs_with_one_replica_are_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, POOLS + JOB + JOB.replace("jobs.web", "jobs.again"))

    assert error.key == "jobs.again.vms"
    assert "job web replicates 'web01'" in str(error)


def test_two_jobs_with_one_of_their_targets_in_common_are_refused(tmp_path: Path) -> None:
    again = JOB.replace("jobs.web", "jobs.again").replace("dr-storage", "b").replace("dr", "prod")

    assert "job web replicates" in str(refused(tmp_path, POOLS + TWO + again))


def test_two_jobs_with_one_id_are_refused(tmp_path: Path) -> None:
    same = 'id = "0b7f8f7e-5a0c-4f43-9f0e-2d7d5f1c9a11"\n'
    other = JOB.replace("jobs.web", "jobs.db").replace("web01", "db01")

    assert refused(tmp_path, POOLS + JOB + same + other + same).key == "jobs.db.id"


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_readable_file_with_a_password_is_refused(tmp_path: Path, mode: int) -> None:
    text = POOLS.replace('password_env = "PROD_PASSWORD"', 'password = "geheim"')
    file = write(tmp_path, text, mode=mode)

    with pytest.raises(ConfigError, match="chmod 600") as caught:
        load(file)

    assert "geheim" not in str(caught.value)


def test_readable_file_without_a_password_is_taken(tmp_path: Path) -> None:
    text = POOLS.replace('password_env = "PROD_PASSWORD"', 'password = "${P}"') + JOB

    settings = load(write(tmp_path, text, mode=0o644), environ={"P": "geheim"})

    assert "geheim" not in repr(settings)


def test_password_of_the_wrong_type_is_not_quoted(tmp_path: Path) -> None:
    text = POOLS.replace('password_env = "PROD_PASSWORD"', "password = 123456")

    assert "123456" not in str(refused(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[daemon", "is not TOML"),
        (b'x = "\xff"', "is not UTF-8"),
        (b"#" * (4 * 1024 * 1024 + 1), "is larger than"),
        (b"jobs = 3", "must be a table, such as .jobs.NAME."),
        (b"daemon = 3", "must be a table, such as .daemon."),
        (b"[jobs]\nweb = 3", "must be a table"),
        (b'file = "x"', "no such key"),
    ],
)
def test_file_that_is_no_configuration_is_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "xorepd.toml"
    file.write_bytes(content)

    with pytest.raises(ConfigError, match=words):
        load(file)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "nope.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 100_000, "is nested too deeply"),
        ("a = " + "{a=" * 100_000, "is nested too deeply"),
        (".".join(["a"] * 100_000) + " = 1", "has a key of more than 100 parts"),
        ("[" + " . ".join(["a"] * 1_000) + "]", "has a key of more than 100 parts"),
        ("a = {" + ".".join(['"a"'] * 1_000) + " = 1}", "has a key of more than 100 parts"),
        ("a = " + "9" * 5_000, "is not TOML"),
        ("a = " + "x" * 3_000_000, "is not TOML"),
        ("\0" * 100, "is not TOML"),
    ],
)
def test_a_file_that_would_cost_too_much_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "xorepd.toml").write_text(text)

    with pytest.raises(ConfigError, match=said) as caught:
        load(tmp_path / "xorepd.toml")

    assert len(str(caught.value)) < LONGEST + 100
