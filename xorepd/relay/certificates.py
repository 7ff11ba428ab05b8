"""Certificates: a small CA for relay and clients, and TLS 1.3 with certificates at both ends.

    DIR/ca.pem        trusted by both ends
    DIR/ca.key        signs; best kept elsewhere afterwards
    DIR/relay.pem     the relay's, for its host names and addresses; with relay.key
    DIR/NAME.pem      a client's; its name is its identity; with NAME.key

Nothing else is trusted: no public CA can certify a client or a relay. The keys have mode 0600 and
no password, because a daemon must start without one.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import stat
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from xorepd.errors import Refused

CA, RELAY = "ca", "relay"
VALID = timedelta(days=3650)
"""Ten years: an expired certificate stops replication. A lost key requires a new CA."""
_EARLY = timedelta(hours=1)
"""Tolerance for the clocks of two sites."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_name(text: str) -> bool:
    """Whether a client can have this name."""
    return _NAME.fullmatch(text) is not None


def make_authority(directory: Path, now: datetime) -> Path:
    """Make the authority, unless there is one; return its certificate.

    Raises:
        Refused: the directory cannot be written, or holds half of one.
    """
    certificate, key = _files(directory, CA)
    if certificate.exists() and key.exists():
        return certificate
    if certificate.exists():
        raise Refused(f"{certificate} has no {key.name} beside it: put the key back to sign more")
    _make_directory(directory)
    own = ec.generate_private_key(ec.SECP256R1())
    name = _name("xorepd relay CA")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    built = (
        _builder(name, name, own, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(own, hashes.SHA256())
    )
    _write(directory, CA, own, built)
    return certificate


def make_relay(directory: Path, names: Sequence[str], now: datetime) -> Path:
    """Make the relay's certificate for these host names and addresses; return it.

    Raises:
        Refused: there is one already, or a name is none.
    """
    hosts = [_host(name) for name in names]
    return _issue(directory, RELAY, hosts, ExtendedKeyUsageOID.SERVER_AUTH, now)


def make_client(directory: Path, name: str, now: datetime) -> Path:
    """Make a client's certificate; return it.

    Raises:
        Refused: there is one already, or the name is none.
    """
    if not is_name(name) or name in {CA, RELAY}:
        raise Refused(
            f"a client cannot be called {name!r}: up to 64 letters, digits, '.', '_' or '-', "
            f"beginning with a letter or digit, and neither {CA!r} nor {RELAY!r}"
        )
    return _issue(directory, name, [x509.DNSName(name)], ExtendedKeyUsageOID.CLIENT_AUTH, now)


def server_context(certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """Return the relay's end of TLS: 1.3, and only clients that the authority signed.

    Raises:
        Refused: a file is missing, is no certificate or key, or others can read the key.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER, certificate, key, ca)


def client_context(certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """Return the daemon's end of TLS: 1.3, and only a relay of that name that the CA signed.

    Raises:
        Refused: as `server_context`.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, certificate, key, ca)


def identity(der: bytes | None) -> str:
    """Return the name of a client by its certificate, which TLS has verified.

    Raises:
        ValueError: it has none.
    """
    if not der:
        raise ValueError("it has shown no certificate")
    subject = x509.load_der_x509_certificate(der).subject
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or not is_name(str(names[0].value)):
        raise ValueError("its certificate has no name")
    return str(names[0].value)


def _context(protocol: int, certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # Tickets would let a session outlive the certificate it began with; ours last for hours anyway.
    context.options |= ssl.OP_NO_TICKET
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    _check_key(key)
    try:
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise Refused(f"{ca} cannot be used as the authority ({_said(error)})") from error
    try:
        # Asked for a password, OpenSSL would ask the terminal: there is none to be given.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise Refused(
            f"{certificate} and {key} cannot be used together ({_said(error)}); "
            "`xorepd relay init` makes such pairs"
        ) from error
    return context


def _said(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "it is not in PEM form"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _check_key(key: Path) -> None:
    try:
        mode = stat.S_IMODE(key.stat().st_mode)
    except OSError as error:
        raise Refused(f"{key} cannot be read ({error.strerror})") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise Refused(f"everyone can read {key}; chmod 600 {key}")


def _issue(
    directory: Path,
    stem: str,
    names: Sequence[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
    now: datetime,
) -> Path:
    certificate, key_file = _files(directory, stem)
    if certificate.exists() or key_file.exists():
        raise Refused(f"{certificate} is there already; remove it and its key to make it anew")
    ca_file, ca_key_file = _files(directory, CA)
    try:
        ca = x509.load_pem_x509_certificate(ca_file.read_bytes())
        ca_key = serialization.load_pem_private_key(ca_key_file.read_bytes(), password=None)
    except OSError as error:
        raise Refused(f"{error.filename} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise Refused(f"{ca_file} and its key cannot be used ({error})") from error
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise Refused(f"{ca_key_file} is not of the kind that `xorepd relay init` makes")
    key = ec.generate_private_key(ec.SECP256R1())
    built = (
        _builder(_name(stem), ca.subject, key, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    _write(directory, stem, key, built)
    return certificate


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime
) -> x509.CertificateBuilder:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", name) is None:
        raise Refused(f"{name!r} is neither a host name nor an address")
    return x509.DNSName(name)


def _files(directory: Path, stem: str) -> tuple[Path, Path]:
    return directory / f"{stem}.pem", directory / f"{stem}.key"


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{directory} cannot be made ({error.strerror})") from error


def _write(
    directory: Path, stem: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> None:
    certificate_file, key_file = _files(directory, stem)
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        # The key first: a certificate without one would look finished.
        _create(key_file, 0o600, secret)
        _create(certificate_file, 0o644, certificate.public_bytes(serialization.Encoding.PEM))
    except OSError as error:
        raise Refused(f"{error.filename} cannot be written ({error.strerror})") from error


def _create(path: Path, mode: int, content: bytes) -> None:
    """Write a new file that never exists with more rights than it ends with."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
