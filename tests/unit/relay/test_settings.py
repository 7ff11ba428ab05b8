from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.relay.ends import make_certificates
from xorepd.errors import ConfigError
from xorepd.relay.protocol.frames import SMALLEST_DATA_WINDOW
from xorepd.relay.settings import RelaySettings, RelayTable, load_relay
from xorepd.units import MiB

EXAMPLE = Path(__file__).parents[3] / "config" / "relay.toml"
GOOD = """
[relay]
certificate = "pki/relay.pem"
key = "pki/relay.key"
ca = "pki/ca.pem"
{relay}
[pools.dr]
url = "https://dr.example"
password_env = "DR_PASSWORD"
{more}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("settings")
    make_certificates(made / "pki")
    return made


def loaded(directory: Path, *, relay: str = "", more: str = "", text: str = GOOD) -> RelaySettings:
    file = directory / "relay.toml"
    file.write_text(text.format(relay=relay, more=more))
    return load_relay(file, environ={"DR_PASSWORD": "x"})


def test_the_example_names_every_option_with_its_default() -> None:
    section = EXAMPLE.read_text().split("[relay]\n")[1].split("\n[")[0]
    shown = dict(re.findall(r"^(\w+) = (.+)$", section, re.MULTILINE))

    assert shown.keys() == RelayTable.model_fields.keys()
    required = {"certificate", "key", "ca"}
    plain = {key: value.strip('"') for key, value in shown.items()}
    defaults = RelayTable.model_validate({key: Path(plain[key]) for key in required})
    written = RelayTable.model_validate(
        {key: int(value) if value.isdigit() else value for key, value in plain.items()}
    )
    assert written == defaults


def test_a_good_file_is_read_from_its_own_directory(directory: Path) -> None:
    settings = loaded(directory, more="[clients.paris]\npools = []")

    assert settings.relay.key == directory / "pki" / "relay.key"
    assert settings.relay.place == ("0.0.0.0", 9443)
    assert settings.clients["paris"].pools == ()


def test_memory_becomes_windows_that_a_block_fits_into(directory: Path) -> None:
    assert loaded(directory, relay='memory = "256MiB"').relay.window == 8 * MiB
    small = loaded(directory, relay='memory = "8MiB"\ndisks = 2').relay.window
    assert small == SMALLEST_DATA_WINDOW


@pytest.mark.parametrize(
    ("relay", "more", "sentence"),
    [
        ("disk = 4", "", r"relay\.disk: there is no such key .*did you mean 'disks'"),
        ("disks = 0", "", "relay.disks"),
        ("disks = 256", "", "memory is too small for 256 disks; write at least 1024MiB"),
        ('listen = "relay.example"', "", "write address and port"),
        ('listen = "127.0.0.1:70000"', "", "write address and port"),
        ('key = "pki/paris.key"', "", "relay"),
        ("", "[jobs.web]", "jobs: a relay's configuration has no such table"),
        ("", '[clients."a b"]', "no client can have this name"),
        ("", '[clients.paris]\npools = ["paris"]', "is not a UUID"),
        ("", "[pools.lyon]", "the key 'url' is required"),
    ],
)
def test_bad_files_are_refused_with_a_sentence(
    directory: Path, relay: str, more: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        loaded(directory, relay=relay, more=more)


def test_certificate_and_key_must_belong_together(directory: Path) -> None:
    text = GOOD.replace("pki/relay.key", "pki/paris.key")

    with pytest.raises(ConfigError, match="cannot be used together"):
        loaded(directory, text=text)


def test_a_relay_without_pools_is_refused(directory: Path) -> None:
    text = GOOD.split("[pools.dr]")[0] + "[pools]\n"

    with pytest.raises(ConfigError, match="no pool to write to"):
        loaded(directory, text=text)


def test_a_password_that_others_can_read_is_refused(directory: Path) -> None:
    with pytest.raises(ConfigError, match="chmod 600") as refused:
        loaded(directory, text=GOOD.replace('password_env = "DR_PASSWORD"', 'password = "geheim"'))

    assert "geheim" not in str(refused.value)
