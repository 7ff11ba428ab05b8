"""Retention: how many of the newest restore points are kept, and one for each day, week, …"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from xorepd.config.fields import Table

MAX_POINTS = 24
"""A chain of VHDs may be 30 deep: 24 points, the replica itself and the clone that a run writes to
leave room for a chain that is not yet coalesced."""

Count = Annotated[int, Field(ge=0, le=MAX_POINTS)]


class Keep(Table):
    """A retention; a file may write `last` alone as a number."""

    last: Annotated[int, Field(ge=1, le=MAX_POINTS)] = 1
    """The newest restore points, whatever their age."""
    daily: Count = 0
    """The newest restore point of each of the last days that have one; the others likewise."""
    weekly: Count = 0
    """Weeks begin on Monday."""
    monthly: Count = 0
    yearly: Count = 0

    @property
    def most(self) -> int:
        """The most restore points that it can keep; one may satisfy several rules."""
        return self.last + self.daily + self.weekly + self.monthly + self.yearly

    def __str__(self) -> str:
        rules = {name: getattr(self, name) for name in type(self).model_fields}
        if rules.pop("last") == self.most:
            return str(self.last)
        return ", ".join([f"last {self.last}"] + [f"{n} {c}" for n, c in rules.items() if c])

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"last": value}
        if not isinstance(value, dict | Keep):
            raise ValueError("write a number, or a table such as { last = 3, daily = 7 }")
        return value

    @model_validator(mode="after")
    def _within_a_chain(self) -> Self:
        if self.most > MAX_POINTS:
            raise ValueError(
                f"keeps up to {self.most} restore points, and a chain of VHDs has room for "
                f"{MAX_POINTS}; lower a count"
            )
        return self
