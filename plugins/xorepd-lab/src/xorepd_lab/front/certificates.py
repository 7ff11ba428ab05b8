"""Self-signed host certificates, as hosts make them when they are installed."""

import functools
import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from xorepd_lab.model.clock import write_time

VALID = timedelta(days=3650)
KEY_BITS = 2048


def ensure_certificate(directory: Path, name: str, address: str) -> Path:
    """Return the certificate of a host, made now if there is none: PEM beside `<name>.key`."""
    certificate = directory / f"{name}.pem"
    key_file = directory / f"{name}.key"
    if certificate.exists() and key_file.exists():
        return certificate
    directory.mkdir(parents=True, exist_ok=True)
    key = _key_of(name)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName(
        [x509.IPAddress(ipaddress.ip_address(address)), x509.DNSName(name)]
    )
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + VALID)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    return certificate


def describe_certificate(certificate: Path) -> dict[str, Any]:
    """Return what the record of a certificate says of it: fingerprints, and when it is valid."""
    read = x509.load_pem_x509_certificate(certificate.read_bytes())
    sha256, sha1 = (
        ":".join(f"{byte:02X}" for byte in read.fingerprint(algorithm))
        for algorithm in (hashes.SHA256(), hashes.SHA1())
    )
    return {
        "fingerprint": sha256,
        "fingerprint_sha256": sha256,
        "fingerprint_sha1": sha1,
        "not_before": write_time(read.not_valid_before_utc),
        "not_after": write_time(read.not_valid_after_utc),
    }


@functools.cache
def _key_of(name: str) -> rsa.RSAPrivateKey:
    """Return a host's key. A process that starts many labs, as tests do, makes it only once."""
    return rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return context


def nbd_context(certificate: Path) -> ssl.SSLContext:
    """Return what xapi-nbd takes: TLS 1.2 and nothing newer, two ciphers, one curve.

    Source: xapi: ocaml/nbd/src/main.ml, ocaml/xapi-consts/tls_policy.ml.
    """
    context = server_context(certificate)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256")
    context.set_ecdh_curve("secp384r1")
    return context
