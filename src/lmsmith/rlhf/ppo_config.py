"""Settings of PPO, and what contradicts what among them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Self

import msgspec

from lmsmith.core.config import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    refuse_old_keys,
)
from lmsmith.models.adapters import AdapterConfig
from lmsmith.rlhf.objective import Control
from lmsmith.training.optimiser import OptimiserConfig, Schedule

SHORTEST_PROMPT = 8
"""Tokens a prompt must be allowed: room for a turn's control tokens and a few words."""


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO; the defaults are InstructGPT's (Ouyang et al. 2022, appendix C.4)."""

    iterations: PositiveInt = 61
    """Rounds of rollouts and updates."""
    rollouts: PositiveInt = 512
    """Responses of an iteration (the paper's batch size)."""
    minibatch: PositiveInt = 64
    """Responses of an update; a divisor of rollouts."""
    ppo_epochs: PositiveInt = 1
    """Passes over the rollouts of an iteration."""
    kl_coefficient: NonNegativeFloat = 0.02
    """β, weight of the per-token penalty −(log π − log π_ref)."""
    kl_control: Control = "fixed"
    """What becomes of β: it stays ``fixed``, or is changed towards kl_target (``adaptive``) or to
    stay between kl_low and kl_high (``band``)."""
    kl_target: PositiveFloat = 6.0
    """``adaptive``: the wanted KL, in nats per response."""
    kl_horizon: PositiveInt = 10_000
    """``adaptive``: over how many episodes β follows."""
    kl_low: float = 1.0
    """``band``: KL in nats per response below which β is lowered."""
    kl_high: float = 10.0
    """``band``: KL in nats per response above which β is raised."""
    kl_budget: NonNegativeFloat = 20.0
    """KL in nats per response above which the run is warned of; 0 never warns."""
    clip_range: PositiveFloat = 0.2
    """ε of the policy's ratio."""
    value_clip_range: PositiveFloat = 0.2
    """ε of the value's change."""
    gamma: Fraction = 1.0
    """γ, the discount of later rewards."""
    gae_lambda: Fraction = 0.95
    """λ of generalised advantage estimation."""
    ptx_coefficient: NonNegativeFloat = 27.8
    """γ_ptx, weight of the pretraining log-likelihood; 0 turns PPO-ptx off."""
    ptx_rows: PositiveInt = 8
    """Rows of pretraining text per minibatch."""
    temperature: PositiveFloat = 1.0
    """Temperature of sampling, and of every log-probability."""
    max_new_tokens: PositiveInt = 48
    """Most tokens of a response."""
    max_prompt_tokens: Annotated[int, msgspec.Meta(ge=SHORTEST_PROMPT)] = 160
    """Most tokens of a prompt; the oldest turns are dropped beyond it."""
    prompts_per_conversation: PositiveInt = 8
    """Most prompts of one conversation."""
    max_prompts: PositiveInt = 31_000
    """Most prompts that the stage takes."""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """Taken from the score of a response that did not end by itself."""
    whiten_advantages: bool = True
    """Bring advantages to zero mean and unit variance over a batch's tokens."""
    schedule: Schedule = "constant"
    """Course of both learning rates after the warm-up."""
    value_warmup_iterations: NonNegativeInt = 0
    """Iterations at the start in which only the value model learns. Made from the reward model, it
    knows a response's end but not what its middle is worth, and a policy that learnt from its first
    estimates would unlearn to end its responses."""
    warmup_iterations: NonNegativeInt = 0
    """Iterations after those over which the policy's learning rate rises."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Low-rank adapters that policy and value model train instead of their weights."""
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(
            learning_rate=9.65e-6, weight_decay=0.0, epsilon=1e-5
        )
    )
    """The policy's optimiser."""
    value_optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(learning_rate=9e-6, weight_decay=0.0, epsilon=1e-5)
    )
    """The value model's optimiser."""
    snapshots: NonNegativeInt = 4
    """How many times along the way the policy is kept, for the curve of reward over KL."""
    sample_rows: NonNegativeInt = 4
    """Responses of an iteration that are written to samples.jsonl."""

    def __new__(cls, *_: object, **given: object) -> Self:
        refuse_old_keys(cls, given)
        return super().__new__(cls)

    def check(self) -> list[Problem]:
        """Contradictions between settings."""
        problems: list[Problem] = []
        if self.value_warmup_iterations >= self.iterations > 0:
            problems.append(
                Problem(
                    "value_warmup_iterations",
                    self.value_warmup_iterations,
                    f"fewer than iterations ({self.iterations})",
                    "leave the policy some iterations to learn in",
                )
            )
        if self.rollouts > 0 and self.minibatch > 0 and self.rollouts % self.minibatch:
            expected = f"a divisor of rollouts ({self.rollouts})"
            fix = "choose minibatch so that rollouts / minibatch is whole"
            problems.append(Problem("minibatch", self.minibatch, expected, fix))
        if self.kl_control == "band" and not 0 <= self.kl_low < self.kl_high < math.inf:
            expected = f"0 <= kl_low < kl_high ({self.kl_high})"
            problems.append(Problem("kl_low", self.kl_low, expected, "change it"))
        if self.kl_control != "fixed" and self.kl_coefficient == 0:
            expected = f"positive where kl_control is {self.kl_control}, which multiplies it"
            problems.append(
                Problem("kl_coefficient", self.kl_coefficient, expected, "start it at 0.02")
            )
        return problems
