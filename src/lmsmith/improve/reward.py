"""Stages `reward` and `judge` of a round: reward models of two sides of the judgements.

Both read the rankings of ``data/NAME``. The reward model begins with the last version's, where
there is one; the judge begins with the model that people judged, and sees other judgements.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages import reward
from lmsmith.stages.reward import RewardConfig

__all__ = ["RewardConfig", "run"]


def run(config: RewardConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Train on the rankings and thumbs of the stage's own side."""
    return reward.run(config, {**inputs, "rankings": inputs["data"] / out.name}, out)
