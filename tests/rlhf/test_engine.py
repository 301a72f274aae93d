"""PPO whose responses another engine draws: the weights it gets, the gap, importance weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import GenerationConfig, MachineConfig
from lmsmith.generation.vllm import VLLMModel, open_vllm
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.objective import clipped_policy_loss, truncated_weights
from lmsmith.rlhf.ppo import PPOConfig, PPOTrainer
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine
from lmsmith.training.optimiser import OptimiserConfig
from vllm_double import vllm_double

TOKENIZER = Tokenizer.train([], 261)
FAST = OptimiserConfig(learning_rate=0.01, weight_decay=0.0, epsilon=1e-5)
CONFIG = PPOConfig(
    iterations=5, rollouts=32, minibatch=16, ppo_epochs=2, ptx_coefficient=0.0, max_new_tokens=5,
    missing_eos_penalty=0.1, optimiser=FAST, value_optimiser=FAST,
)  # fmt: skip


def share_of_high(prompts: list[list[int]], responses: list[list[int]]) -> Tensor:
    """The rule: which part of a response are tokens above 130, half of all."""
    return torch.tensor([sum(t > 130 for t in each) / len(each) for each in responses])


def fitted(
    folder: Path, config: PPOConfig = CONFIG, *, forgets: bool = False
) -> list[dict[str, float]]:
    """PPO by a double of vLLM's server, which may keep its first weights."""
    reference = Decoder(ModelConfig(1, 16, 2, 16, TOKENIZER.vocabulary_size))
    reference.initialise(torch.Generator().manual_seed(0))
    value_model = ScalarModel(copy.deepcopy(reference))
    value_model.initialise_head(torch.Generator().manual_seed(0))
    machine = resolve_machine(MachineConfig(precision="fp32"))
    with vllm_double() as server, opened(folder, server.url, reference) as engine:
        if forgets:
            server.load = lambda path: None  # type: ignore[method-assign]
        trainer = PPOTrainer(
            copy.deepcopy(reference), value_model, reference, share_of_high, [[9], [10, 11]],
            stop_token=TOKENIZER.end_of_turn, config=config, machine=machine, engine=engine,
            tokenizer=TOKENIZER,
        )  # fmt: skip
        return trainer.fit()


@contextmanager
def opened(folder: Path, url: str, decoder: Decoder) -> Iterator[VLLMModel]:
    settings = GenerationConfig(engine="vllm", vllm_url=url)
    place, quiet = folder / "weights", QuietProgress()
    with open_vllm(settings, decoder, TOKENIZER, place, dtype="float32", progress=quiet) as model:
        yield model


def test_the_engine_draws_from_every_new_policy(tmp_path: Path) -> None:
    rows = fitted(tmp_path, replace(CONFIG, iterations=10, importance_cap=2.0))
    assert all(row["rollout/logprob_gap_max"] < 1e-4 for row in rows)
    assert all(row["rollout/logprob_gap"] > 0.0 for row in rows)  # it is measured, not copied
    assert rows[-1]["objective/scores"] > rows[0]["objective/scores"] + 0.2
    assert [row["rollout/weights_version"] for row in rows] == list(range(2, 12))


def test_an_engine_that_keeps_old_weights_is_seen_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = fitted(tmp_path, forgets=True)
    assert rows[0]["rollout/logprob_gap"] < 1e-4
    assert rows[-1]["rollout/logprob_gap"] > 0.1
    assert "the engine that draws the responses has other weights" in caplog.text


def test_truncated_weights_make_a_means_of_one_distribution_the_others() -> None:
    """E_μ[min(π/μ, C) f] = Σ min(π, C μ) f, by enumeration; without a cap it is E_π[f]."""
    chance = torch.Generator().manual_seed(1)
    policy_v, drawn_v = torch.randn(2, 50, generator=chance).mul(2).log_softmax(-1)
    value_v = torch.randn(50, generator=chance)
    for cap in (0.5, 2.0, 1e9):
        weights_v = truncated_weights(policy_v, drawn_v, cap)
        mean = (drawn_v.exp() * weights_v * value_v).sum()
        closed = (torch.minimum(policy_v.exp(), cap * drawn_v.exp()) * value_v).sum()
        assert mean == pytest.approx(float(closed), abs=1e-5)
        assert weights_v.max() <= cap
    assert closed == pytest.approx(float((policy_v.exp() * value_v).sum()), abs=1e-5)


def test_a_tokens_weight_multiplies_its_gradient_alone() -> None:
    """At ratio 1 the gradient is −mean(w A ∇log π), written out from the softmax."""
    chance = torch.Generator().manual_seed(2)
    logits_brv = torch.randn(3, 4, 7, generator=chance, requires_grad=True)
    tokens_br = torch.randint(7, (3, 4), generator=chance)
    advantages_br, weights_br = (
        torch.randn(3, 4, generator=chance),
        torch.rand(3, 4, generator=chance),
    )
    mask_br = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    log_probs_br = logits_brv.log_softmax(-1).gather(2, tokens_br[..., None])[..., 0]
    loss = clipped_policy_loss(
        log_probs_br, log_probs_br.detach(), advantages_br, mask_br, 0.2, weights_br
    ).loss
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits_brv.grad is not None
    surprise_brv = F.one_hot(tokens_br, 7) - logits_brv.detach().softmax(-1)
    share_br = weights_br * advantages_br * mask_br / mask_br.sum()
    torch.testing.assert_close(logits_brv.grad, -share_br[..., None] * surprise_brv)
