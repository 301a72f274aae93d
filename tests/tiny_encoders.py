"""A tiny encoder with random weights, and a WordPiece tokenizer, for tests of several parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lmsmith.models.folder import save_model
from lmsmith.models.masked_lm import MaskedLM, MaskedLMConfig
from lmsmith.models.presets import bert
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.word_piece import train_word_piece

TEXTS = [
    "The dog ran to the river and the cat sat on the mat.",
    "Question: what is the colour of the sky? Answer: blue",
    "Once there was a little house by the sea, and in it lived three sisters.",
] * 3


def tiny_tokenizer() -> Tokenizer:
    return train_word_piece(TEXTS, 120)


def tiny_masked_lm(
    vocabulary_size: int, seed: int = 0, *, next_sentence: bool = True, context: int = 48
) -> MaskedLM:
    """Weights large enough that every part of the model matters."""
    shape = replace(bert(2, 24, 3, context, vocabulary_size), pooler=next_sentence)
    model = MaskedLM(MaskedLMConfig(shape, next_sentence)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.3, generator=generator)
    return model


def tiny_folder(folder: Path, *, next_sentence: bool = True) -> Path:
    """A model folder of ours."""
    tokenizer = tiny_tokenizer()
    model = tiny_masked_lm(tokenizer.vocabulary_size, next_sentence=next_sentence)
    save_model(folder, model, tokenizer, {})
    return folder
