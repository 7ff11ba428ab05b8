from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.parts import JOB, POOLS, settings_of
from xorepd.config.models import PoolSettings
from xorepd.config.secrets import read_password, secret_problems
from xorepd.errors import ConfigError

PASSWORDS = {"PROD_PASSWORD": "x", "DR_PASSWORD": "x"}


def pool(**source: object) -> PoolSettings:
    return PoolSettings.model_validate({"name": "prod", "url": "https://prod.example"} | source)


def test_password_file_is_read_without_its_newline(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(" geheim \n")
    file.chmod(0o600)

    assert read_password(pool(password_file=file)) == " geheim "


def test_changed_password_file_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_text("old")
    account = pool(password_file=file)
    assert read_password(account) == "old"

    file.write_text("new")

    assert read_password(account) == "new"


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"geheim", 0o604, "everyone can read it; chmod 600"),
        (b"\n", 0o600, "is empty"),
        (b"geheim\xff", 0o600, "is not UTF-8"),
        (b"x" * 5000, 0o600, "is longer than 4096"),
    ],
)
def test_unfit_password_file_is_refused(
    tmp_path: Path, content: bytes, mode: int, words: str
) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    file.chmod(mode)

    with pytest.raises(ConfigError, match=words) as caught:
        read_password(pool(password_file=file))

    assert caught.value.key == "pools.prod.password_file"
    assert "geheim" not in str(caught.value)


def test_missing_password_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_password(pool(password_file=tmp_path / "nope"))


def test_password_comes_from_the_environment() -> None:
    assert read_password(pool(password_env="P"), environ={"P": "geheim"}) == "geheim"
    with pytest.raises(ConfigError, match="is not set"):
        read_password(pool(password_env="P"), environ={})


def test_password_comes_from_a_systemd_credential(tmp_path: Path) -> None:
    (tmp_path / "prod").write_text("geheim\n")
    account = pool(password_credential="prod")

    assert read_password(account, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "geheim"
    with pytest.raises(ConfigError, match="LoadCredential=prod:PATH"):
        read_password(account, environ={})


def test_every_secret_is_checked(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, POOLS + JOB)

    assert [p.key for p in secret_problems(settings, environ={})] == [
        "pools.prod.password_env",
        "pools.dr.password_env",
    ]
    assert list(secret_problems(settings, environ=PASSWORDS)) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("-----BEGIN PRIVATE KEY-----", "holds no certificate in PEM form"),
        (
            "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n",
            "holds no certificate that can be used",
        ),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_certificate_file_without_a_certificate_is_refused(
    tmp_path: Path, content: str | None, words: str
) -> None:
    settings = settings_of(tmp_path, POOLS + 'ca_file = "dr.pem"\n' + JOB)
    if content is not None:
        (tmp_path / "dr.pem").write_text(content)

    [problem] = secret_problems(settings, environ=PASSWORDS)

    assert problem.key == "pools.dr.ca_file"
    assert words in str(problem)


def pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def directory(path: Path) -> None:
    path.mkdir(mode=0o700)


@pytest.mark.parametrize("make", [pipe, endless, directory])
def test_what_is_no_file_is_neither_a_password_nor_a_certificate(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    settings = settings_of(tmp_path, POOLS + 'ca_file = "made"\n' + JOB)
    make(tmp_path / "made")

    [problem] = secret_problems(settings, environ=PASSWORDS)

    assert "cannot be read" in str(problem)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_password(pool(password_file=tmp_path / "made"))


def test_a_file_of_certificates_that_is_too_long_is_some_other_file(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, POOLS + 'ca_file = "dr.pem"\n' + JOB)
    (tmp_path / "dr.pem").write_text("-----BEGIN CERTIFICATE-----\n" * 50_000)

    [problem] = secret_problems(settings, environ=PASSWORDS)

    assert "is longer than 1048576 bytes" in str(problem)
