import pytest

from xorepd.state import history, store


@pytest.fixture
def hasty_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the history hardly wait for another program that holds its file."""
    monkeypatch.setattr(store, "BUSY_S", 0.1)
    monkeypatch.setattr(history, "RETRY_S", 0.1)
