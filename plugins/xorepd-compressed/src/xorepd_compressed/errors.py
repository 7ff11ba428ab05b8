"""What the relay itself says went wrong."""

from __future__ import annotations

from xorepd.errors import DataError, Remedy
from xorepd.relay.wire import Code


class RelayRefused(DataError):
    """The relay does not do it, or could not; the sentence is its own."""

    def __init__(self, what: str, code: Code, sentence: str) -> None:
        self.what, self.code, self.sentence = what, code, sentence
        if code is Code.NOT_ALLOWED:
            self.remedy = Remedy.OPERATOR
        super().__init__(f"{what}: {sentence or f'it gave up ({code.name})'}")
