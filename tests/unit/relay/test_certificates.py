from __future__ import annotations

import ssl
import stat
import subprocess
from pathlib import Path

import pytest

from tests.unit.relay.ends import NOW, Ends, ends, make_certificates
from xorepd.errors import DataError, Refused
from xorepd.relay.certificates import (
    client_context,
    identity,
    make_authority,
    make_client,
    make_relay,
    server_context,
)
from xorepd.relay.protocol.mux import Connection


def context(directory: Path, stem: str, *, ca: Path | None = None) -> ssl.SSLContext:
    return client_context(
        directory / f"{stem}.pem", directory / f"{stem}.key", (ca or directory) / "ca.pem"
    )


def test_openssl_finds_the_chain_good(certificates: Path) -> None:
    for stem, purpose in (("relay", "sslserver"), ("paris", "sslclient")):
        said = subprocess.run(
            [
                *("openssl", "verify", "-x509_strict", "-purpose", purpose),
                *("-CAfile", str(certificates / "ca.pem"), str(certificates / f"{stem}.pem")),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert said.returncode == 0, said.stderr


def test_only_their_owner_can_read_the_keys(certificates: Path) -> None:
    keys = sorted(certificates.glob("*.key"))

    assert [key.stem for key in keys] == ["ca", "paris", "relay"]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_a_client_is_known_by_its_name(certificates: Path) -> None:
    der = ssl.PEM_cert_to_DER_cert((certificates / "paris.pem").read_text())

    assert identity(der) == "paris"
    with pytest.raises(ValueError, match="no certificate"):
        identity(None)


def test_more_clients_are_signed_by_the_same_authority(tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "pki")
    before = (made / "ca.pem").read_bytes()

    make_authority(made, NOW)
    make_client(made, "berlin", NOW)

    assert (made / "ca.pem").read_bytes() == before
    assert context(made, "berlin").get_ca_certs()


def test_nothing_that_exists_is_made_again(certificates: Path) -> None:
    with pytest.raises(Refused, match=r"paris\.pem is there already"):
        make_client(certificates, "paris", NOW)
    with pytest.raises(Refused, match=r"relay\.pem is there already"):
        make_relay(certificates, ["localhost"], NOW)


@pytest.mark.parametrize("name", ["", "ca", "relay", "../x", "a b", "x" * 65, "-x"])
def test_names_that_are_none_are_refused(certificates: Path, name: str) -> None:
    with pytest.raises(Refused, match="cannot be called"):
        make_client(certificates, name, NOW)


def test_an_authority_without_its_key_signs_nothing(tmp_path: Path) -> None:
    make_authority(tmp_path, NOW)
    (tmp_path / "ca.key").unlink()

    with pytest.raises(Refused, match="put the key back"):
        make_authority(tmp_path, NOW)
    with pytest.raises(Refused, match=r"ca\.key cannot be read"):
        make_client(tmp_path, "rome", NOW)


def test_a_key_that_everyone_can_read_is_refused(tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "pki")
    (made / "paris.key").chmod(0o644)

    with pytest.raises(Refused, match="chmod 600"):
        context(made, "paris")


def test_files_that_do_not_belong_together_are_refused(certificates: Path) -> None:
    d = certificates
    with pytest.raises(Refused, match="cannot be used together"):
        server_context(d / "relay.pem", d / "paris.key", d / "ca.pem")
    with pytest.raises(Refused, match="cannot be used as the authority"):
        server_context(d / "relay.pem", d / "relay.key", d / "paris.key")
    with pytest.raises(Refused, match="cannot be read"):
        server_context(d / "relay.pem", d / "none.key", d / "ca.pem")


def test_both_ends_speak_tls_1_3_only(certificates: Path) -> None:
    d = certificates
    for made in (
        context(d, "paris"),
        server_context(d / "relay.pem", d / "relay.key", d / "ca.pem"),
    ):
        assert made.minimum_version is ssl.TLSVersion.TLSv1_3
        assert made.verify_mode is ssl.CERT_REQUIRED


async def test_a_client_of_another_authority_is_not_let_in(both: Ends, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other")
    stranger = context(other, "paris", ca=both.directory)

    with pytest.raises(DataError, match="may not trust our certificate"):
        await Connection.dial("127.0.0.1", both.port, stranger, "here")
    assert both.arrived.empty()


async def test_a_relay_of_another_authority_is_not_believed(both: Ends, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other")

    with pytest.raises(DataError, match="certificate is not trusted"):
        await Connection.dial("127.0.0.1", both.port, context(other, "paris"), "here")


async def test_a_clients_certificate_makes_no_relay(both: Ends, tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "pki")
    with pytest.raises(Refused):
        server_context(made / "paris.pem", made / "relay.key", made / "ca.pem")
    d = both.directory
    as_relay = client_context(d / "relay.pem", d / "relay.key", d / "ca.pem")

    with pytest.raises(DataError, match="may not trust our certificate"):
        await Connection.dial("127.0.0.1", both.port, as_relay, "here")


async def test_a_relay_under_another_name_is_not_believed(tmp_path: Path) -> None:
    make_authority(tmp_path, NOW)
    make_relay(tmp_path, ["relay.example", "192.0.2.1"], NOW)
    make_client(tmp_path, "paris", NOW)
    async with ends(tmp_path) as elsewhere:
        with pytest.raises(DataError, match="certificate is not trusted"):
            await Connection.dial("127.0.0.1", elsewhere.port, elsewhere.context(), "here")
