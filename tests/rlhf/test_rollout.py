"""What is known of a rollout is what each model says of each response alone."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.vocabulary import Vocabulary
from lmsmith.models.batching import pad_batch, response_log_probs
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf import rollout as rollout_module
from lmsmith.rlhf.rollout import Rollout, score_rollout
from lmsmith.training.machine import resolve_machine

MACHINE = resolve_machine(MachineConfig(precision="fp32"))
STOP = 2
EVERYTHING = Vocabulary(None, 31)


def random_decoder(seed: int) -> Decoder:
    decoder = Decoder(ModelConfig(2, 24, 3, 40, 31, dropout=0.5))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.3, generator=generator)
    return decoder


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
