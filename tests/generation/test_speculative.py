"""Guessing ahead changes how fast tokens come, not which, nor how likely they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from lmsmith.generation.engine import stream
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.speculative import (
    Draft,
    Drafter,
    DraftModel,
    PromptLookup,
    keep_or_draw,
    speculate,
)
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder


def make_decoder(seed: int, vocabulary: int, spread: float = 0.3) -> Decoder:
    config = ModelConfig(1, 16, 2, context=60, vocabulary_size=vocabulary)
    decoder = Decoder(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(centre, spread, generator=generator)
    return decoder


def speculated(*args: Any, **options: Any) -> list[int]:
    return [event.token for event in speculate(*args, **options)]


def drafter(kind: str, decoder: Decoder, settings: SamplingSettings) -> Drafter:
    return PromptLookup() if kind == "lookup" else DraftModel(decoder, settings)


@pytest.mark.parametrize("kind", ["lookup", "draft"])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_text_is_the_models_own(kind: str, penalty: float) -> None:
    target, draft = make_decoder(0, 7), make_decoder(1, 7)
    settings = SamplingSettings(40, temperature=0, repetition_penalty=penalty, stop_tokens=(6,))
    for prompt in ([1], [1, 2, 3, 1, 2], [4] * 30, [5, 0, 5, 0, 5]):
        expected = list(stream(target, prompt, settings))
        guesser = drafter(kind, draft, settings)
        assert speculated(target, prompt, settings, guesser, guesses=3) == expected


def test_the_model_as_its_own_draft_is_always_right() -> None:
    target = make_decoder(3, 9)
    asked = []

    class Counting(DraftModel):
        def guess(self, *args: object) -> Draft:  # type: ignore[override]
            asked.append(1)
            return super().guess(*args)  # type: ignore[arg-type]

    settings = SamplingSettings(20, seed=1)
    assert len(speculated(target, [1], settings, Counting(target, settings), guesses=4)) == 20
    assert len(asked) == 4


@pytest.mark.parametrize("kind", ["lookup", "draft"])
def test_sampled_tokens_have_the_models_distribution(kind: str) -> None:
    """The joint distribution of three tokens, by a chi-square test, against the exact one."""
    vocabulary, count = 4, 1000
    target, draft = make_decoder(5, vocabulary, 0.5), make_decoder(6, vocabulary, 0.5)
    prompt = [1, 2, 1]
    model, small = InferenceDecoder(target), InferenceDecoder(draft)
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(count):
        settings = SamplingSettings(3, temperature=0.9, seed=seed)
        guesser = PromptLookup() if kind == "lookup" else DraftModel(small, settings)
        seen[tuple(speculated(model, prompt, settings, guesser, guesses=2))] += 1
    replies = torch.cartesian_prod(*[torch.arange(vocabulary)] * 3)
    texts = torch.cat([torch.tensor([prompt]).expand(len(replies), -1), replies], dim=1)
    with torch.no_grad():
        log_probs = (target.logits(target(texts))[:, 2:-1] / 0.9).log_softmax(-1)
    exact = log_probs.gather(2, replies[..., None]).sum(dim=(1, 2)).exp().double().numpy()
    observed = np.array([seen[tuple(reply)] for reply in replies.tolist()], dtype=float)
    rare = exact * count < 5
    expected = np.append(exact[~rare], exact[rare].sum()) * count
    observed = np.append(observed[~rare], observed[rare].sum())
    statistic = float(((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum())
    degrees = len(expected) - 1
    assert degrees > 8
    assert (statistic - degrees) / (2 * degrees) ** 0.5 < 5


def test_keeping_and_drawing_give_the_target() -> None:
    chance = np.random.default_rng(7)
    target = torch.tensor([0.1, 0.6, 0.0, 0.3], dtype=torch.float64)
    guessed = torch.tensor([0.5, 0.1, 0.3, 0.1], dtype=torch.float64)
    drawn = Counter()
    for _ in range(4000):
        guess = int(chance.choice(4, p=guessed.numpy()))
        drawn[keep_or_draw(target, guessed, guess, chance)[0]] += 1
    for token, probability in enumerate(target.tolist()):
        spread = (4000 * probability * (1 - probability)) ** 0.5
        assert abs(drawn[token] - 4000 * probability) <= 5 * spread


def test_lookup_finds_what_followed_last() -> None:
    chance = np.random.default_rng(0)
    assert PromptLookup().guess([1, 2, 3, 9, 1, 2, 4, 1, 2], 2, chance).tokens == [4, 1]
    assert PromptLookup().guess([1, 2, 3], 4, chance).tokens == []
    assert PromptLookup(shortest=2).guess([1, 5, 1], 4, chance).tokens == []
