"""Numbers for many sequences at once are those of each alone, in the order asked."""

from __future__ import annotations

import random

import pytest
import torch

from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.vocabulary import vocabulary_of
from lmsmith.models.batching import pad_batch, response_log_probs
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf import scoring
from lmsmith.rlhf.scoring import response_log_likelihoods, score_sequences
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine

MACHINE = resolve_machine(MachineConfig(precision="fp32"))


def random_decoder(seed: int = 0) -> Decoder:
    decoder = Decoder(ModelConfig(2, 24, 3, 40, 31, dropout=0.5))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.3, generator=generator)
    return decoder


def random_lists(count: int, seed: int) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(31) for _ in range(source.randint(1, 20))] for _ in range(count)]


@pytest.mark.parametrize("tokens_at_once", [1, 60, 10_000])
def test_scores_are_read_at_each_sequences_last_token(
    monkeypatch: pytest.MonkeyPatch, tokens_at_once: int
) -> None:
    monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", tokens_at_once)
    model = ScalarModel(random_decoder())
    model.initialise_head(torch.Generator().manual_seed(1))
    model.shift.fill_(0.4)
    sequences = random_lists(11, 2)
    scores = score_sequences(model, sequences, MACHINE)
    assert model.training  # restored; dropout was off for the scores
    model.eval()
    with torch.no_grad():
        expected = [float(model(torch.tensor([each]))[0, -1]) for each in sequences]
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert score_sequences(model, [], MACHINE).shape == (0,)


def test_likelihoods_are_sums_of_log_probs() -> None:
    decoder = random_decoder(3)
    prompts, responses = random_lists(9, 4), random_lists(9, 5)
    totals = response_log_likelihoods(decoder, prompts, responses, MACHINE, 0.7)
    decoder.eval()
    for prompt, response, total in zip(prompts, responses, totals.tolist(), strict=True):
        with torch.no_grad():
            alone, _ = response_log_probs(decoder, pad_batch([prompt], [response]), 0.7)
        assert total == pytest.approx(float(alone.sum()), rel=1e-4, abs=1e-3)


def test_likelihoods_are_of_the_distribution_that_is_drawn_from() -> None:
    """Bytes that cannot follow have no share in it, so that a KL of replies compares the same."""
    tokenizer = Tokenizer.train(["where are you? 我在这里。"] * 4, 290)
    decoder = Decoder(ModelConfig(1, 16, 2, 40, tokenizer.vocabulary_size + 3))
    decoder.initialise(torch.Generator().manual_seed(1))
    prompts = [tokenizer.encode("where are"), tokenizer.encode("我在")]
    responses = [tokenizer.encode("you? 你好"), tokenizer.encode("这里。")]
    drawn, raw = (
        response_log_likelihoods(decoder, prompts, responses, MACHINE, 0.7, given)
        for given in (tokenizer, None)
    )
    table, vocabulary = tokenizer.utf8, vocabulary_of(tokenizer, decoder.config.vocabulary_size)
    decoder.eval()
    for prompt, response, total in zip(prompts, responses, drawn.tolist(), strict=True):
        text, expected = list(prompt), 0.0
        for token in response:
            with torch.no_grad():
                logits_v = decoder.logits(decoder(torch.tensor([text]))[0, -1]) / 0.7
            may_v = torch.from_numpy(table.allowed_sv[vocabulary.state_after(text)])
            expected += float(logits_v[token] - logits_v[: len(may_v)][may_v].logsumexp(0))
            text.append(token)
        assert total == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert bool((drawn > raw + 0.1).all())
