"""Rollouts and the numbers of sequences."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.vocabulary import Vocabulary, vocabulary_of
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf import rollout as rollout_module
from lmsmith.rlhf.rollout import (
    Rollout,
    pad_batch,
    response_log_likelihoods,
    response_log_probs,
    score_rollout,
    score_sequences,
)
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine


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
    monkeypatch.setattr(rollout_module, "TOKENS_AT_ONCE", tokens_at_once)
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


MACHINE = resolve_machine(MachineConfig(precision="fp32"))
STOP = 2
EVERYTHING = Vocabulary(None, 31)


def scalar(seed: int) -> ScalarModel:
    model = ScalarModel(random_decoder(seed))
    model.initialise_head(torch.Generator().manual_seed(seed))
    return model


SOURCE = random.Random(0)
PROMPTS = [[SOURCE.randrange(31) for _ in range(SOURCE.randint(1, 12))] for _ in range(9)]
RESPONSES = [[3 + SOURCE.randrange(28) for _ in range(SOURCE.randint(1, 8))] for _ in range(9)]
for number in range(0, 9, 2):
    RESPONSES[number].append(STOP)
POLICY, REFERENCE, VALUE = random_decoder(1), random_decoder(2), scalar(3)


def lengths_as_rewards(prompts: list[list[int]], responses: list[list[int]]) -> torch.Tensor:
    assert prompts == PROMPTS
    assert responses == RESPONSES
    return torch.tensor([len(response) for response in responses])


def scored(policy: Decoder = POLICY, temperature: float = 0.7) -> Rollout:
    return score_rollout(
        policy,
        REFERENCE,
        VALUE,
        lengths_as_rewards,
        PROMPTS,
        RESPONSES,
        stop_token=STOP,
        missing_eos_penalty=1.5,
        temperature=temperature,
        machine=MACHINE,
        vocabulary=EVERYTHING,
    )


def test_every_row_is_as_alone_with_dropout_off(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scored()
    monkeypatch.setattr(rollout_module, "ROWS_AT_ONCE", 4)
    for rollout in (whole, scored()):
        assert POLICY.training
        assert VALUE.training
        policy, reference, value = (
            copy.deepcopy(model).eval() for model in (POLICY, REFERENCE, VALUE)
        )
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            batch, length = pad_batch([prompt], [response]), len(response)
            with torch.no_grad():
                log_probs, entropy = response_log_probs(policy, batch, 0.7)
                reference_log_probs, _ = response_log_probs(reference, batch, 0.7)
                values = value(torch.tensor([prompt + response]))[0, len(prompt) - 1 :]
            for found, expected in (
                (rollout.log_probs_br, log_probs[0]),
                (rollout.reference_log_probs_br, reference_log_probs[0]),
                (rollout.entropy_br, entropy[0]),
            ):
                torch.testing.assert_close(found[row, :length], expected, rtol=1e-4, atol=1e-4)
                assert (found[row, length:] == 0).all()
            # One state more than tokens: after the last one too.
            torch.testing.assert_close(
                rollout.values_bs[row, : length + 1], values, rtol=1e-4, atol=1e-4
            )
        assert not rollout.log_probs_br.requires_grad


def test_a_missing_end_is_penalised() -> None:
    rollout = scored()
    ended = [response[-1] == STOP for response in RESPONSES]
    assert rollout.ended_b.tolist() == ended
    expected = [len(r) - (0.0 if end else 1.5) for r, end in zip(RESPONSES, ended, strict=True)]
    assert rollout.scores_b.tolist() == expected
    assert rollout.scores_b.dtype == torch.float32


def test_a_stop_token_inside_is_no_end() -> None:
    def nothing(prompts: list[list[int]], responses: list[list[int]]) -> torch.Tensor:
        return torch.zeros(len(responses))

    rollout = score_rollout(
        POLICY, REFERENCE, VALUE, nothing, [[4], [4]], [[STOP, 5], [5, STOP]],
        stop_token=STOP, missing_eos_penalty=1.0, temperature=1.0, machine=MACHINE,
        vocabulary=EVERYTHING,
    )  # fmt: skip
    assert rollout.scores_b.tolist() == [-1.0, 0.0]


def test_a_copy_of_the_reference_has_no_divergence() -> None:
    for temperature in (1.0, 0.5):
        rollout = scored(copy.deepcopy(REFERENCE), temperature)
        assert torch.equal(rollout.log_probs_br, rollout.reference_log_probs_br)
