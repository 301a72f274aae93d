"""A tiny model with random weights, as a subject of evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmsmith.catalogue.reading import ReadModel
from lmsmith.catalogue.resolving import Source
from lmsmith.core.recipe import MachineConfig
from lmsmith.evaluation.methods.subject import Subject, make_subject
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


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 330)


@pytest.fixture(scope="session")
def make_tiny(
    tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Subject]:
    """Makes a subject; two of the same seed are the same model."""

    def make(seed: int = 0, context: int = 256, begins: bool = True) -> Subject:
        config = ModelConfig(2, 32, 2, context, tiny_tokenizer.vocabulary_size)
        decoder = Decoder(config).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                mean = 1.0 if name.endswith("norm.weight") else 0.0
                parameter.normal_(mean, 0.25, generator=generator)
        folder: Path = tmp_path_factory.mktemp("model") / f"tiny-{seed}"
        save_model(folder, decoder, tiny_tokenizer, {})
        machine = replace(resolve_machine(MachineConfig(threads=1)), precision="fp32")
        read = ReadModel(decoder, tiny_tokenizer, Source("lmsmith", folder, f"tiny-{seed}"), {})
        return make_subject(read, machine, begins=begins)

    return make


@pytest.fixture(scope="session")
def tiny(make_tiny: Callable[..., Subject]) -> Subject:
    return make_tiny()
