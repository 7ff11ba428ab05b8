"""Options that are wrong: each error names the option and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peer import make_files, options

from xorepd.units import MiB
from xorepd_compressed.options import LEVEL, WINDOW, read_options


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("relay")
    make_files(directory)
    return directory


def test_three_files_and_an_address_are_enough(files: Path) -> None:
    read = read_options(options(files))

    assert (read.level, read.window, read.link) == (LEVEL, WINDOW, "paris@localhost:9443")
    assert (read.access.host, read.access.port, read.access.name) == ("localhost", 9443, "paris")


def test_address_may_be_one_of_ipv6(files: Path) -> None:
    read = read_options(options(files) | {"relay": "[2001:db8::7]:9443"})

    assert read.access.host == "2001:db8::7"
    assert read.access.address == "[2001:db8::7]:9443"


def test_level_and_window_are_taken_as_they_are_written(files: Path) -> None:
    read = read_options(options(files, level=19, window="16MiB", link="wan"))

    assert (read.level, read.window, read.link) == (19, 16 * MiB, "wan")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("relay", None, "relay must be a host and a port, such as"),
        ("relay", "localhost", "relay must be a host and a port"),
        ("relay", "localhost:0", "relay must be a host and a port"),
        ("relay", 9443, "relay must be a host and a port"),
        ("relay", "a b:1", "relay must be a host and a port"),
        ("certificate", None, "certificate is missing; `xorepd relay init` makes"),
        ("key", "paris.key", "key must be the whole path of a file"),
        ("ca", 3, "ca must be the whole path of a file"),
        ("ca", "/nowhere/ca.pem", "/nowhere/ca.pem cannot be used as the authority"),
        ("key", "/nowhere/paris.key", "key: /nowhere/paris.key cannot be read"),
        ("level", 0, "level must be .* from 1"),
        ("level", True, "level must be"),
        ("level", "auto", "level must be a number"),
        ("window", "1MiB", "window must be between 2.0 MiB and 1.0 GiB"),
        ("window", 8, "window must be a size, such as 8MiB"),
        ("link", "a b", "link must be a name"),
        ("levle", 3, "no option levle; did you mean level"),
    ],
)
def test_wrong_option_is_named_with_its_remedy(
    files: Path, option: str, value: Any, words: str
) -> None:
    given = options(files) | {option: value}
    if value is None:
        del given[option]

    with pytest.raises(ValueError, match=words):
        read_options(given)


@pytest.mark.parametrize("mode", [0o604, 0o602])
def test_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    make_files(tmp_path)
    key = tmp_path / "paris.key"
    key.chmod(mode)

    with pytest.raises(ValueError, match=f"key: everyone can use {key}; chmod 600"):
        read_options(options(tmp_path))


def test_certificate_and_key_of_two_clients_do_not_fit(files: Path, tmp_path: Path) -> None:
    make_files(tmp_path)

    with pytest.raises(ValueError, match=r"certificate, key, ca: .* cannot be used together"):
        read_options(options(files) | {"key": str(tmp_path / "paris.key")})
