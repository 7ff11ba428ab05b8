"""What goes wrong with the relay, where the transport knows more than that it did."""

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


class NotTrusted(DataError):
    """The two ends do not believe each other's certificates: no next run mends that."""

    remedy = Remedy.OPERATOR
