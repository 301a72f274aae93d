"""Penalties and biases change the logits that their formulas say, and no others."""

from __future__ import annotations

import math
import random

import torch

from lmsmith.generation.sampling import History, adjust
from lmsmith.generation.settings import SamplingSettings


def test_every_penalty_and_the_bias_by_hand() -> None:
    chance = random.Random(3)
    logits = [chance.gauss(0, 3) for _ in range(12)]
    prompt, reply = [1, 2, 2, 3], [3, 5, 5, 5, 7]
    settings = SamplingSettings(
        repetition_penalty=1.3,
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        logit_bias={5: 2.0, 9: -math.inf},
    )
    history = History(prompt)
    for token in reply:
        history.add(token)
    expected = []
    for token, logit in enumerate(logits):
        logit += settings.logit_bias.get(token, 0.0)
        if token in prompt or token in reply:
            logit = logit / 1.3 if logit > 0 else logit * 1.3
        count = reply.count(token)
        expected.append(logit - 0.5 * (count > 0) + 0.25 * count)
    given = torch.tensor(logits)
    found = adjust(given, settings, history)
    torch.testing.assert_close(found, torch.tensor(expected))
    assert torch.equal(given, torch.tensor(logits))


def test_nothing_asked_nothing_changed() -> None:
    logits = torch.randn(9)
    assert adjust(logits, SamplingSettings(), History([1])) is logits
