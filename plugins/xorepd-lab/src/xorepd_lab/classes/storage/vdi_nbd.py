"""VDI.get_nbd_info: where and how a disk can be read with NBD.

Source: xapi: ocaml/xapi/xapi_vdi.ml (_get_nbd_info).
"""

from typing import Any

from cryptography import x509

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.model.failures import incompatible_type
from xorepd_lab.model.registry import Registry
from xorepd_lab.rules.storage_rules import hosts_of


@rpc("VDI.get_nbd_info(self: ref VDI)", asynchronous=False)
def get_nbd_info(call: Call, vdi: str) -> list[dict[str, Any]]:
    """Return one struct per host that sees the SR and per address it has on a network for NBD.

    Nothing is tried: whether the disk can be attached shows when somebody connects.
    """
    pool, db = call.pool, call.pool.db
    record = db.record("VDI", vdi)
    if record["type"] == "cbt_metadata":
        raise incompatible_type(vdi, record["type"])
    found = []
    for host in hosts_of(db, record["SR"]):
        addresses = _addresses(db, host)
        if not addresses:
            continue
        certificate = pool.certificates[host].read_text()
        found += [
            {
                "exportname": f"/{record['uuid']}?session_id={call.session}",
                "address": address,
                "port": pool.nbd_port,
                "cert": certificate,
                "subject": _subject(certificate) or db.get("host", host, "hostname"),
            }
            for address in addresses
        ]
    return found


def _addresses(db: Registry, host: str) -> list[str]:
    """Return a host's addresses on the networks over which disks may be read."""
    found: list[str] = []
    for pif in db.select("PIF", host=host, currently_attached=True):
        record = db.record("PIF", pif)
        if db.get("network", record["network"], "purpose"):
            found += [each for each in (record["IP"], *record["IPv6"]) if each]
    return found


def _subject(certificate: str) -> str | None:
    """Return a host name that a certificate is for, a wildcard only when it has no other."""
    try:
        names = (
            x509.load_pem_x509_certificate(certificate.encode())
            .extensions.get_extension_for_class(x509.SubjectAlternativeName)
            .value.get_values_for_type(x509.DNSName)
        )
    except x509.ExtensionNotFound:
        return None
    return min(names, key=lambda name: (name.startswith("*."), name), default=None)
