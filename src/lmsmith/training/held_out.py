"""Whether a training can have learnt: enough steps, and the weights that did best held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lmsmith.models.adapters import TrainedState

FEW_STEPS = 50
"""Updates below which a training cannot be expected to have learnt much."""

RISE = 0.01
"""Share by which a held-out loss rises above its best before it is told of: less is noise."""


class BestWeights:
    """A copy of the weights that did best on held-out data; part of the loop's state.

    What does best is the greatest tuple of figures: of an accuracy and a loss, ``(accuracy,
    -loss)``. Of equal ones the first is kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = TrainedState(model)
        self.figures: tuple[float, ...] = ()
        self.step = 0
        self.looks_since = 0
        self.weights: dict[str, Tensor] = {}

    def offer(self, figures: tuple[float, ...], step: int) -> None:
        """Keep the weights as they are now if they are better."""
        if not self.weights or figures > self.figures:
            self.figures, self.step, self.looks_since = figures, step, 0
            self.weights = {
                name: value.detach().clone() for name, value in self.model.state_dict().items()
            }
        else:
            self.looks_since += 1

    def restore(self) -> None:
        """Put the best weights back into the model; it stays as it is if there were no looks."""
        if self.weights:
            self.model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {
            "figures": list(self.figures),
            "step": self.step,
            "looks_since": self.looks_since,
            "weights": self.weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.figures, self.weights = tuple(state["figures"]), state["weights"]
        self.step, self.looks_since = state["step"], state["looks_since"]


def batch_for_steps(items: float, batch: int, min_steps: int) -> int:
    """The batch, lowered to 1 or more where ``items`` give less than ``min_steps`` of it.

    Args:
        items: rows or prompts in all epochs together.
        batch: of them in an update.
        min_steps: how many updates are wanted.
    """
    if items >= batch * min_steps:
        return batch
    return max(1, min(batch, int(items // max(1, min_steps))))


def few_steps_warning(steps: int, fix: str) -> str:
    """A sentence where there are too few steps to learn much; else empty."""
    if steps >= FEW_STEPS:
        return ""
    count = "1 step is" if steps == 1 else f"{steps} steps are"
    return f"{count} too few to learn much: {fix}"


def rise_warning(name: str, looks: Sequence[tuple[int, float]], kept: int) -> str:
    """A sentence where a held-out loss ends above its best; else empty.

    Args:
        name: what the loss is called.
        looks: (step, loss) of every look at held-out data, oldest first.
        kept: the step whose weights are kept.
    """
    if not looks:
        return ""
    step, best = min(looks, key=lambda look: look[1])
    last = looks[-1][1]
    if last <= best * (1 + RISE):
        return ""
    return (
        f"held-out {name} rose from {best:.3f} after step {step} to {last:.3f} at the end, so the "
        f"training data is learnt by heart; the weights of step {kept} are kept. Fewer epochs, a "
        "lower learning rate or more data would help"
    )
