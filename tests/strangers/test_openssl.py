"""openssl as an operator uses it to see which certificate a host shows."""

import hashlib
import ssl

import pytest

from tests.strangers.programs import need, succeed
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.stranger]


async def test_every_host_shows_its_own_certificate(lab: Lab) -> None:
    openssl = need("openssl", "Debian: openssl")
    pool = lab.pools["prod"]

    seen = {}
    for name in ("prod-h1", "prod-h2"):
        host = f"{pool.address(pool.host(name))}:{pool.https_port}"
        shown = await succeed(
            *(openssl, "s_client", "-connect", host, "-CAfile", pool.ca_file),
            *("-verify_return_error", "-verify_ip", host.split(":")[0]),
        )
        told = await succeed(
            *(openssl, "x509", "-noout", "-fingerprint", "-sha256"), stdin=shown.encode()
        )
        seen[name] = told.strip().split("=")[1].replace(":", "").lower()

    expected = {
        name: hashlib.sha256(
            ssl.PEM_cert_to_DER_cert(pool.certificates[pool.host(name)].read_text())
        ).hexdigest()
        for name in seen
    }
    assert seen == expected
    assert len(set(seen.values())) == 2
