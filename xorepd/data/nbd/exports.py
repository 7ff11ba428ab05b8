"""Where a pool serves a disk over NBD."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NbdExport:
    """Where one host serves one disk (an element of `VDI.get_nbd_info`)."""

    address: str
    port: int
    name: str = field(repr=False)
    """It holds the session: a credential, never to be logged."""
    certificate: str
    """PEM of the host's certificate, which the server must show; empty where the network's purpose
    is `insecure_nbd`."""
    subject: str

    @property
    def place(self) -> tuple[str, int]:
        return self.address, self.port
