"""Settings of PPO, and what contradicts what among them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self

from lmsmith.core.config import refuse_old_keys
from lmsmith.models.adapters import AdapterConfig
from lmsmith.rlhf.objective import Control
from lmsmith.training.optimiser import OptimiserConfig, Schedule

SHORTEST_PROMPT = 8
"""Tokens a prompt must be allowed: room for a turn's control tokens and a few words."""


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO; the defaults are InstructGPT's (Ouyang et al. 2022, appendix C.4).

    Attributes:
        iterations: rollout-and-update rounds.
        rollouts: responses an iteration (the paper's batch).
        minibatch: responses an update.
        ppo_epochs: passes over a batch of rollouts.
        kl_coefficient: β, weight of the per-token penalty −(log π − log π_ref).
        kl_control: ``fixed``, ``adaptive`` or ``band``.
        kl_target, kl_horizon: for ``adaptive``: nats per response, and episodes.
        kl_low, kl_high: for ``band``: nats per response.
        kl_budget: KL in nats per response above which the run is warned of; 0 for none.
        clip_range: ε of the policy's ratio.
        value_clip_range: ε of the value's change.
        gamma: γ.
        gae_lambda: λ of GAE.
        ptx_coefficient: γ_ptx, weight of the pretraining log-likelihood; 0 turns PPO-ptx off.
        ptx_rows: rows of pretraining text per minibatch.
        temperature: of sampling, and of every log-probability.
        max_new_tokens: tokens a response may have.
        max_prompt_tokens: tokens of a prompt; the oldest turns are dropped beyond it.
        prompts_per_conversation, max_prompts: how many prompts the stage takes.
        missing_eos_penalty: taken from the score of a response that did not end by itself.
        whiten_advantages: to zero mean and unit variance over a batch's tokens.
        schedule: of both learning rates.
        value_warmup_iterations: iterations at the start in which only the value model learns: made
            from the reward model, it knows a response's end but not what its middle is worth, and a
            policy that learnt from its first estimates would unlearn to end its responses.
        warmup_iterations: iterations after those over which the policy's learning rate rises.
        adapter: low-rank adapters that policy and value model train instead of their weights.
        optimiser, value_optimiser: of the policy and of the value model.
        snapshots: how many times along the way the policy is kept, for the KL frontier.
        sample_rows: responses written to samples.jsonl an iteration.
    """

    iterations: int = 61
    rollouts: int = 512
    minibatch: int = 64
    ppo_epochs: int = 1
    kl_coefficient: float = 0.02
    kl_control: Control = "fixed"
    kl_target: float = 6.0
    kl_horizon: int = 10_000
    kl_low: float = 1.0
    kl_high: float = 10.0
    kl_budget: float = 20.0
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    gamma: float = 1.0
    gae_lambda: float = 0.95
    ptx_coefficient: float = 27.8
    ptx_rows: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 48
    max_prompt_tokens: int = 160
    prompts_per_conversation: int = 8
    max_prompts: int = 31_000
    missing_eos_penalty: float = 1.0
    whiten_advantages: bool = True
    schedule: Schedule = "constant"
    value_warmup_iterations: int = 0
    warmup_iterations: int = 0
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(
            learning_rate=9.65e-6, weight_decay=0.0, epsilon=1e-5
        )
    )
    value_optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(learning_rate=9e-6, weight_decay=0.0, epsilon=1e-5)
    )
    snapshots: int = 4
    sample_rows: int = 4

    def __new__(cls, *_: object, **given: object) -> Self:
        refuse_old_keys(cls, given)
        return super().__new__(cls)

    def check(self) -> list[tuple[str, object, str, str]]:
        """Values out of range and contradictions, as (key, value, expected, fix)."""
        problems: list[tuple[str, object, str, str]] = []
        positive = (
            "iterations rollouts minibatch ppo_epochs ptx_rows max_new_tokens max_prompt_tokens "
            "prompts_per_conversation max_prompts kl_horizon kl_target temperature clip_range "
            "value_clip_range"
        )
        for key in positive.split():
            if not 0 < getattr(self, key) < math.inf:
                problems.append((key, getattr(self, key), "a positive number", f"raise {key}"))
        for key in [
            "kl_coefficient",
            "ptx_coefficient",
            "missing_eos_penalty",
            "kl_budget",
            "snapshots",
            "sample_rows",
            "value_warmup_iterations",
            "warmup_iterations",
        ]:
            if not 0 <= getattr(self, key) < math.inf:
                problems.append((key, getattr(self, key), "0 or more", f"raise {key}"))
        for key in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, key) <= 1.0:
                problems.append((key, getattr(self, key), "between 0 and 1", f"change {key}"))
        if self.value_warmup_iterations >= self.iterations > 0:
            problems.append(
                (
                    "value_warmup_iterations",
                    self.value_warmup_iterations,
                    f"fewer than iterations ({self.iterations})",
                    "leave the policy some iterations to learn in",
                )
            )
        if 0 < self.max_prompt_tokens < SHORTEST_PROMPT:
            problems.append(
                (
                    "max_prompt_tokens",
                    self.max_prompt_tokens,
                    f"{SHORTEST_PROMPT} or more",
                    "a shorter one holds no turn of a user",
                )
            )
        if self.rollouts > 0 and self.minibatch > 0 and self.rollouts % self.minibatch:
            problems.append(
                (
                    "minibatch",
                    self.minibatch,
                    f"a divisor of rollouts ({self.rollouts})",
                    "choose minibatch so that rollouts / minibatch is whole",
                )
            )
        if self.kl_control == "band" and not 0 <= self.kl_low < self.kl_high < math.inf:
            problems.append(
                ("kl_low", self.kl_low, f"0 <= kl_low < kl_high ({self.kl_high})", "change it")
            )
        if self.kl_control != "fixed" and self.kl_coefficient == 0:
            problems.append(
                (
                    "kl_coefficient",
                    self.kl_coefficient,
                    f"positive where kl_control is {self.kl_control}, which multiplies it",
                    "start it at 0.02",
                )
            )
        return problems
