"""The optimiser of every stage, AdamW or Muon beside it, and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lmsmith.core.config import FractionBelowOne, NonNegativeFloat, PositiveFloat
from lmsmith.device import product_dtype
from lmsmith.training.muon import Muon
from lmsmith.training.parallel import add_gradients
from lmsmith.training.sharding import divided_like, whole


@dataclass(frozen=True)
class OptimiserConfig:
    """Settings of the optimiser."""

    name: Literal["adamw", "muon"] = "adamw"
    """``adamw`` for everything, or ``muon`` for the blocks' matrices with AdamW for embeddings,
    norms, biases and heads."""
    learning_rate: PositiveFloat = 3e-4
    """AdamW's peak learning rate."""
    matrix_learning_rate: PositiveFloat = 0.02
    """Muon's peak learning rate."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay, on matrices only; embeddings, norms and biases have none."""
    beta1: FractionBelowOne = 0.9
    """AdamW's decay rate of the gradient's running mean."""
    beta2: FractionBelowOne = 0.95
    """AdamW's decay rate of the squared gradient's running mean."""
    epsilon: PositiveFloat = 1e-8
    """AdamW's term in the denominator."""
    momentum: FractionBelowOne = 0.95
    """Muon's momentum."""
    gradient_clip: NonNegativeFloat = 1.0
    """Largest norm of the whole gradient; 0 sets no limit."""


class Optimiser:
    """One or two torch optimisers stepped as one, with gradient clipping.

    Args:
        model: parameters that do not require gradients are left out.
        matrices: the modules whose matrices Muon takes (``name = "muon"``), e.g. the blocks.
        dtype: of the model's products. Muon's are float32 too if these are; else of the type that
            the device multiplies fastest.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimiserConfig,
        matrices: Iterable[nn.Module] = (),
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.config = config
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        muon_ids: set[int] = set()
        if config.name == "muon":
            muon_ids = {id(p) for m in matrices for p in m.parameters() if p.ndim == 2}
        linear_weights = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
        by_muon = [p for p in self.parameters if id(p) in muon_ids]
        rest = [p for p in self.parameters if id(p) not in muon_ids]
        decayed = [p for p in rest if id(p) in linear_weights]
        plain = [p for p in rest if id(p) not in linear_weights]
        self.parts: list[torch.optim.Optimizer] = []
        self.peaks: list[float] = []
        decays = ((decayed, config.weight_decay), (plain, 0.0))
        if groups := [{"params": some, "weight_decay": decay} for some, decay in decays if some]:
            betas = config.beta1, config.beta2
            rate, epsilon = config.learning_rate, config.epsilon
            adamw = torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=True)
            self.parts.append(adamw)
            self.peaks.append(rate)
        if by_muon:
            rate, decay = config.matrix_learning_rate, config.weight_decay
            if dtype != torch.float32:
                dtype = product_dtype(by_muon[0].device)
            self.parts.append(
                Muon(by_muon, lr=rate, weight_decay=decay, momentum=config.momentum, dtype=dtype)
            )
            self.peaks.append(rate)

    def step(self, factor: float) -> float:
        """Clip, update at ``factor`` × the peak learning rates, clear the gradients.

        The gradients of several processes are added up first.

        Returns:
            The gradient's norm before clipping. If it is not finite nothing is updated.
        """
        add_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = float(whole(nn.utils.get_total_norm(gradients)))
        limit = self.config.gradient_clip
        if math.isfinite(norm):
            if limit and norm > limit:
                for gradient in gradients:
                    gradient.mul_(limit / (norm + 1e-6))
            for part, peak in zip(self.parts, self.peaks, strict=True):
                for group in part.param_groups:
                    group["lr"] = peak * factor
                part.step()
        for part in self.parts:
            part.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
            for parameter, kept in part.state.items():
                for name, value in kept.items():
                    if isinstance(value, Tensor):
                        kept[name] = divided_like(value, parameter)


Schedule = Literal["cosine", "warmup_stable_decay", "linear", "constant", "inverse_sqrt"]


DECAY_FRACTION = 0.3
"""Part of the steps in which `warmup_stable_decay` decays, where a stage has no setting for it."""


class Scheduled(Protocol):
    """Settings of a stage whose learning rate has a schedule; some have ``decay_fraction`` too."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def final_lr_fraction(self) -> float: ...


def learning_rate_factors(config: Scheduled, steps: int) -> Callable[[int], float]:
    """`learning_rate_factor` of a step by a stage's settings, as a function of the step."""
    decay = getattr(config, "decay_fraction", DECAY_FRACTION)
    return lambda step: learning_rate_factor(
        config.schedule, step, steps, config.warmup_steps, config.final_lr_fraction, decay
    )


def learning_rate_factor(
    schedule: Schedule,
    step: int,
    steps: int,
    warmup_steps: int = 0,
    final_lr_fraction: float = 0.0,
    decay_fraction: float = DECAY_FRACTION,
) -> float:
    """Factor of the peak learning rate at a step, counted from 0.

    Linear warm-up over ``warmup_steps`` steps (its last step has factor 1), then

    * ``cosine``: half a cosine from 1 to ``final_lr_fraction`` at the last step
      (Radford et al. 2018);
    * ``warmup_stable_decay``: 1, then a straight line to ``final_lr_fraction`` over the last
      ``decay_fraction`` of all steps (Hu et al. 2024);
    * ``linear``: a straight line to ``final_lr_fraction``;
    * ``constant``: 1;
    * ``inverse_sqrt``: √(warmup_steps / (step + 1)) (Vaswani et al. 2017, section 5.3, where the
      peak learning rate is 1/√(width · warmup_steps)).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule == "inverse_sqrt":
        return math.sqrt(max(1, warmup_steps) / (step + 1))
    final = final_lr_fraction
    remaining = steps - 1 - warmup_steps
    if remaining <= 0:  # the only step after the warm-up: at 0 it would teach nothing
        return 1.0
    progress = min(1.0, (step - warmup_steps) / remaining)
    if schedule == "cosine":
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule == "linear":
        return final + (1.0 - final) * (1.0 - progress)
    decay_steps = max(1, round(steps * decay_fraction))
    into_decay = step - (steps - 1 - decay_steps)
    return final + (1.0 - final) * min(1.0, max(0.0, 1.0 - into_decay / decay_steps))
