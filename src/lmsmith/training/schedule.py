"""Learning-rate schedules: a factor between 0 and 1 for every step."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "warmup_stable_decay", "linear", "constant"]


def learning_rate_factor(
    schedule: Schedule,
    step: int,
    steps: int,
    warmup_steps: int = 0,
    final_lr_fraction: float = 0.0,
    decay_fraction: float = 0.3,
) -> float:
    """Factor of the peak learning rate at a step, counted from 0.

    Linear warm-up over ``warmup_steps`` steps (its last step has factor 1), then

    * ``cosine``: half a cosine from 1 to ``final_lr_fraction`` at the last step
      (Radford et al. 2018);
    * ``warmup_stable_decay``: 1, then a straight line to ``final_lr_fraction`` over the last
      ``decay_fraction`` of all steps (Hu et al. 2024);
    * ``linear``: a straight line to ``final_lr_fraction``;
    * ``constant``: 1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    final = final_lr_fraction
    remaining = steps - 1 - warmup_steps
    progress = 1.0 if remaining <= 0 else min(1.0, (step - warmup_steps) / remaining)
    if schedule == "cosine":
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule == "linear":
        return final + (1.0 - final) * (1.0 - progress)
    decay_steps = max(1, round(steps * decay_fraction))
    into_decay = step - (steps - 1 - decay_steps)
    return final + (1.0 - final) * min(1.0, max(0.0, 1.0 - into_decay / decay_steps))
