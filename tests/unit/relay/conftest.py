from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.relay.ends import Ends, ends, make_certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("relay") / "pki")


@pytest.fixture
async def both(certificates: Path) -> AsyncIterator[Ends]:
    async with ends(certificates) as made:
        yield made
