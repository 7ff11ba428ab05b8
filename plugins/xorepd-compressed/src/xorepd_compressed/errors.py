"""What goes wrong with the relay, where the transport knows more than that it did."""

from __future__ import annotations

from xorepd.plugin import DataError, Remedy, format_duration
from xorepd.relay.protocol.messages import Code


class RelayRefused(DataError):
    """The relay does not do it, or could not; the sentence is its own."""

    def __init__(self, what: str, code: Code, sentence: str) -> None:
        self.what, self.code, self.sentence = what, code, sentence
        if code is Code.NOT_ALLOWED:
            self.remedy = Remedy.OPERATOR
        super().__init__(f"{what}: {sentence or f'it gave up ({code.name})'}")


class NoAnswer(DataError):
    """The relay is there, and does not say whether it takes a disk."""

    def __init__(self, what: str, seconds: float) -> None:
        self.what, self.seconds = what, seconds
        super().__init__(
            f"{what}: it is there, and has not said for {format_duration(seconds)} whether it "
            "takes the disk; look into its log for what holds it up, and restart it if that "
            "does not say"
        )


class NotTrusted(DataError):
    """The two ends do not believe each other's certificates: no next run mends that."""

    remedy = Remedy.OPERATOR
