"""Compressed passes what every transport passes, with a relay behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from peer import Peer, Relayed, make_files, options

from xorepd.plugin.conformance import TransportConformance, surroundings
from xorepd.transports.base import Transport
from xorepd.transports.registry import open_transport
from xorepd_compressed.transport import CompressedFactory


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("relay")
    make_files(directory)
    return directory


class TestCompressed(TransportConformance):
    factory = CompressedFactory()
    elsewhere = True
    remembers = True

    @pytest.fixture(autouse=True)
    def _peer(self, files: Path) -> Iterator[None]:
        self.peer = Peer(files, remembers=self.remembers)
        self.options = options(files, self.peer.port)
        self.refused = {
            "relay": self.options | {"relay": "nowhere"},
            "certificate": {"relay": "localhost:9443"},
            "key": self.options | {"key": "paris.key"},
            "ca": self.options | {"ca": str(files / "none.pem")},
            "level": self.options | {"level": 20},
            "window": self.options | {"window": "1KiB"},
            "link": self.options | {"link": "a b"},
        }
        yield
        self.peer.close()

    def opened(self) -> Transport:
        return Relayed(self.factory.open(self.options, surroundings()), self.peer)


class TestWithoutOffers(TestCompressed):
    """To a relay that can supply nothing itself."""

    remembers = False


class TestGuardedCompressed(TestCompressed):
    def opened(self) -> Transport:
        return Relayed(open_transport("compressed", self.options, surroundings()), self.peer)
