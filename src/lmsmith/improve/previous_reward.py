"""Stage `previous_reward` of a round: the newest ancestor's reward model, where training begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lmsmith.core.config import NOT_A_SETTING
from lmsmith.models.folder import load_scalar_model, load_tokenizer, save_model
from lmsmith.runs.stage_folder import StageFolder


@dataclass(frozen=True)
class PreviousRewardConfig:
    """Where the reward model is; there is nothing to choose."""

    model: str = field(default="", metadata=NOT_A_SETTING)
    """Its model folder."""

    def external_files(self) -> list[str]:
        """The model folder."""
        return [self.model]


def run(
    config: PreviousRewardConfig, inputs: Mapping[str, Path], out: StageFolder
) -> dict[str, float]:
    """Copy it to ``model/``, adapters merged."""
    folder = Path(config.model)
    save_model(
        out / "model", load_scalar_model(folder), load_tokenizer(folder), {"stage": out.name}
    )
    return {}
