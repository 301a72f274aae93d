"""Settings of a test by votes; apart from the test, since records of versions need no numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from lmsmith.core.config import FractionBelowOne, PositiveFloat, PositiveInt, Problem


@dataclass(frozen=True)
class SequentialTest:
    """Settings of a test by votes, declared before the first vote."""

    alpha: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.05
    """Probability of a decision at most, where people have no preference."""
    prior: PositiveFloat = 5.0
    """a of the mixture Beta(a, a): larger expects a share of votes closer to one half."""
    ties: Literal["half", "drop"] = "half"
    """A tie is half a vote for each, or no vote."""
    worth: FractionBelowOne = 0.55
    """The test is futile once the share of votes is surely below this; 0 never ends it so."""
    max_votes: PositiveInt = 2_000
    """The test is futile after so many votes without a decision."""

    def check(self) -> list[Problem]:
        """A share of votes that is not worth a new version."""
        if self.worth == 0 or self.worth > 0.5:
            return []
        return [Problem("worth", self.worth, "above 0.5, or 0", "0.55 is usual")]
