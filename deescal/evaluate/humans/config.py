"""What is rated, how much of it, and by whom."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from deescal.config import Config
from deescal.evaluate.humans.criteria import Form

# A rater's name is part of file names, on file systems of all kinds.
RaterName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]


class PackConfig(Config):
    """One pack: one form, one protocol; ratings of different packs are never pooled."""

    form: Form = "likert"
    protocol: Literal["teacher_forced", "rollout", "interactive"] = "teacher_forced"
    n_items: int = Field(default=60, ge=1)  # replies, or pairs of them, in all; attention checks not counted
    raters: tuple[RaterName, ...] = Field(default=("r1", "r2", "r3"), min_length=2)  # or how many: 3
    raters_per_item: int = Field(default=2, ge=2)
    include_reference: bool = True  # the real reply among those rated
    attention_share: float = Field(default=1 / 12, ge=0, le=0.5)  # checks for each item of a rater, rounded up
    min_attention: float = Field(default=0.75, ge=0, le=1)  # share of checks that a rater must pass to be counted
    shown_messages: int = Field(default=8, ge=1)  # of a conversation at first sight; the page unfolds the others
    seed: int = 0

    @field_validator("raters", mode="before")
    @classmethod
    def _named(cls, raters: Any) -> Any:
        return tuple(f"r{i + 1}" for i in range(raters)) if type(raters) is int else raters

    @field_validator("raters")
    @classmethod
    def _distinct(cls, raters: tuple[str, ...]) -> tuple[str, ...]:
        if len({name.lower() for name in raters}) < len(raters):
            raise ValueError("two raters have the same name")
        return raters

    @model_validator(mode="after")
    def _fits(self) -> PackConfig:
        if self.raters_per_item > len(self.raters):
            raise ValueError(f"raters_per_item={self.raters_per_item}, but there are {len(self.raters)} raters")
        # Elsewhere each system has a history of its own, which another's reply, or the real one, does not fit.
        if self.protocol != "teacher_forced" and self.form == "pairwise":
            raise ValueError(f"protocol={self.protocol}: form=pairwise needs teacher_forced")
        if self.protocol != "teacher_forced" and self.include_reference:
            raise ValueError(f"protocol={self.protocol}: include_reference=true needs teacher_forced")
        return self
