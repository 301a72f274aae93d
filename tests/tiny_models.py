"""Tiny models with random weights that tests of several parts use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lmsmith.catalogue.reading import ReadModel
from lmsmith.catalogue.resolve import Source
from lmsmith.core.recipe import MachineConfig
from lmsmith.evaluation.model import EvaluatedModel, make_evaluated_model
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine

TEXTS = [
    "The dog ran to the river and the cat sat on the mat.",
    "Question: what is the colour of the sky? Answer: blue",
    "Once there was a little house by the sea, and in it lived three sisters.",
] * 3


def random_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    """Weights large enough that every token's distribution depends on all before it."""
    decoder = Decoder(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            spread = 0.5 if "embedding" in name else 0.3
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(centre, spread, generator=generator)
    return decoder


def tiny_subject(
    folder: Path, tokenizer: Tokenizer, seed: int = 0, context: int = 256, begins: bool = True
) -> EvaluatedModel:
    """A model to evaluate; two of the same seed are the same model."""
    config = ModelConfig(2, 32, 2, context, tokenizer.vocabulary_size)
    decoder = Decoder(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(mean, 0.25, generator=generator)
    save_model(folder, decoder, tokenizer, {})
    machine = replace(resolve_machine(MachineConfig(threads=1)), precision="fp32")
    read = ReadModel(decoder, tokenizer, Source("lmsmith", folder, f"tiny-{seed}"), {})
    return make_evaluated_model(read, machine, begins=begins)
