"""Stage: a model from elsewhere, which fine-tuning begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmsmith.catalogue.encoders import is_encoder, read_encoder
from lmsmith.catalogue.reading import read_model
from lmsmith.catalogue.resolve import card_of_sampling, resolve
from lmsmith.core.config import NOT_A_SETTING, Problem
from lmsmith.core.files import beside, is_there
from lmsmith.models.decoder import Decoder
from lmsmith.models.encoder import Encoder
from lmsmith.models.folder import save_model
from lmsmith.runs.stage_folder import StageFolder


@dataclass(frozen=True)
class BaseConfig:
    """Settings of the base model."""

    model: str = "smollm2-135m"
    """A registered name (`lmsmith pull`), a run, or the path of a model folder, a Hugging Face
    folder or a GGUF file."""
    folder: str = field(default="", metadata=NOT_A_SETTING)
    """Relative paths begin at this folder, the recipe's, where they exist."""

    def check(self) -> list[Problem]:
        """No model."""
        fix = "see `lmsmith models ls`"
        return [] if self.model else [Problem("model", "", "a model's name or path", fix)]

    def external_files(self) -> list[str]:
        return [str(resolve(self.place()).path)]

    def place(self) -> str:
        """The path of the model, or the name that `resolve` knows."""
        path = beside(self.folder, self.model)
        return path if is_there(path) else self.model


def run(config: BaseConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Read the model, in whatever format it is, and save ``model/`` in ours.

    Of a model that fills masks the encoder is kept: a classifier is made on it.
    """
    source = resolve(config.place())
    model: Decoder | Encoder
    if is_encoder(source):
        encoding = read_encoder(source)
        model, tokenizer, card = encoding.encoder, encoding.tokenizer, dict[str, Any]()
    else:
        read = read_model(source)
        model, tokenizer, card = read.decoder, read.tokenizer, read.card
    shape = model.config
    metrics = {
        "parameters": float(shape.parameters),
        "vocabulary_size": float(tokenizer.vocabulary_size),
        "context": float(shape.context),
    }
    card = card | card_of_sampling(source)
    card |= {"stage": "base", "model": config.model, "metrics": metrics}
    save_model(out / "model", model, tokenizer, card)
    return metrics
