"""The loop of every trained stage: steps, checkpoints, metrics, resuming, the best weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lmsmith.core.errors import Interrupted, PeerLost, UserError
from lmsmith.device import choose_device, random_state, set_random_state
from lmsmith.models.adapters import TrainedState
from lmsmith.runs.signals import stop_requested
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.training.checkpoint import Checkpoints
from lmsmith.training.machine import give_back_freed_memory
from lmsmith.training.parallel import from_leader, highest, leave_stage, team
from lmsmith.training.sharding import a_part, divided_as


class Stateful(Protocol):
    """Anything whose state a checkpoint keeps."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def run_steps(
    *,
    steps: int,
    step: Callable[[int], Mapping[str, float]],
    state: Mapping[str, Stateful],
    out: StageFolder,
    description: str,
    shown: tuple[str, ...] = ("loss",),
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    stop_early: Callable[[], bool] | None = None,
    finish: Callable[[], object] = lambda: None,
) -> int:
    """Run ``step(0) … step(steps - 1)``, continuing after the newest checkpoint in ``out``.

    Several processes run it together (`training.parallel`): each calls ``step``, whose metrics are
    those of all; the first alone writes, and goes on alone after.

    ``step(i)`` must depend on nothing but ``i``, ``state`` and torch's global generator, all of
    which a checkpoint keeps; then a run that was killed and continued ends with the same bits as
    one that was not. Checkpoints are saved every ``out.machine.checkpoint_seconds``, on SIGINT
    or SIGTERM, and at the end, so that an evaluation that fails afterwards costs no training.

    Args:
        step: does one step and returns its metrics.
        state: everything that changes from step to step, by name.
        out: the stage's folder; metrics.jsonl gets a row a step.
        description, shown: for the progress view: a title, and which metrics it shows.
        evaluate: called after every ``evaluate_every`` steps and after the last, with the number
            of steps done; its metrics are added to that step's row.
        stop_early: called after each evaluation; true ends the loop.
        finish: called at the end, still by all processes, before the others leave the first alone.

    Returns:
        The number of steps done.

    Raises:
        UserError: a metric became NaN or infinite.
        Interrupted: a signal asked to stop; the state has been saved.
    """

    def present() -> dict[str, dict[str, Any]]:
        return {name: part.state_dict() for name, part in state.items()}

    checkpoints = Checkpoints(out.checkpoints, say=out.progress.say, like=a_part(present()))
    device, leads = choose_device(out.machine.device), team().leads
    metrics, done, stopped = out.metrics_log(), 0, False
    latest = from_leader(checkpoints.latest)
    if (saved := checkpoints.load(latest)) is not None:
        done, content = saved
        for name, part in state.items():
            part.load_state_dict(divided_as(content["parts"][name], part.state_dict()))
        torch.set_rng_state(content["random"])
        set_random_state(device, content.get("device_random"))
        stopped = content["stopped"]
        out.progress.note(f"{description}: continuing after step {done} of {steps}")
    if leads:
        metrics.truncate_after(done)

    def save() -> None:
        random = {"random": torch.get_rng_state(), "device_random": random_state(device)}
        checkpoints.save(done, {"parts": present(), **random, "stopped": stopped})

    out.progress.begin(description, steps, "steps", done)
    interval, last_save = out.machine.checkpoint_seconds, time.monotonic()
    while done < steps and not stopped:
        if team().count > 1:  # else each would draw the same dropout for its own rows
            torch.manual_seed(derive_seed(out.seed, "step", done, team().rank))
        try:
            row = dict(step(done))
        except PeerLost:
            raise
        except Exception as error:
            # Ctrl-C also ends the compiler that a step waits for, and the step fails.
            if (signal_number := stop_requested()) is not None:
                raise Interrupted(signal_number) from error
            raise
        refuse_non_finite(row, description, done + 1, checkpoints)
        give_back_freed_memory()
        done += 1
        due = done == steps or (evaluate_every and done % evaluate_every == 0)
        if evaluate is not None and due:
            row.update(evaluate(done))
            refuse_non_finite(row, description, done, checkpoints)
            stopped = bool(highest(stop_early is not None and stop_early())[0])
        if leads:
            metrics.append(done, row)
        out.progress.update(done, **{name: row[name] for name in shown if name in row})
        waited = leads and time.monotonic() - last_save >= interval
        signal_number, save_due = highest(stop_requested() or 0, waited)
        ending = done == steps or stopped
        if ending or signal_number or save_due:
            save()
            last_save = time.monotonic()
        if signal_number and not ending:
            highest(0)  # the first process has saved; torchrun ends all when one of them ends
            raise Interrupted(signal_number)
    out.progress.end()
    finish()
    leave_stage()
    return done


def refuse_non_finite(
    row: Mapping[str, float], description: str, step: int, checkpoints: Checkpoints
) -> None:
    """Raise a UserError if a metric is NaN or infinite."""
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    if not bad:
        return
    kept = checkpoints.saved_steps()
    last = f"the checkpoint after step {kept[-1]} is kept" if kept else "no checkpoint existed yet"
    raise UserError(
        f"{description}, step {step}: {', '.join(bad)} is {row[bad[0]]}; {last}",
        "lower this stage's learning rate, or look for damaged rows in its data",
    )


FEW_STEPS = 50
"""Fewer updates cannot teach a model much."""

RISE = 0.01
"""Share by which a held-out loss must rise above its best for a warning: less is noise."""


class BestWeights:
    """A copy of the weights that did best on held-out data; part of the loop's state.

    The best ones have the greatest tuple of figures, such as ``(accuracy, -loss)``; the first of
    equal ones is kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = TrainedState(model)
        self.figures: tuple[float, ...] = ()
        self.step = 0
        self.looks_since = 0
        self.weights: dict[str, Tensor] = {}

    def offer(self, figures: tuple[float, ...], step: int) -> None:
        """Keep the present weights if they are better."""
        if not self.weights or figures > self.figures:
            self.figures, self.step, self.looks_since = figures, step, 0
            self.weights = {
                name: value.detach().clone() for name, value in self.model.state_dict().items()
            }
        else:
            self.looks_since += 1

    def restore(self) -> None:
        """Put the best weights back into the model, if any were offered."""
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
        self.figures = tuple(state["figures"])
        self.weights = divided_as(state["weights"], self.model.state_dict())
        self.step, self.looks_since = state["step"], state["looks_since"]


def batch_for_steps(items: float, batch: int, min_steps: int) -> int:
    """The batch size, lowered (to 1 at least) where ``items`` make less than ``min_steps`` batches.

    ``items`` are the rows or prompts of all epochs together.
    """
    if items >= batch * min_steps:
        return batch
    return max(1, min(batch, int(items // max(1, min_steps))))


def few_steps_warning(steps: int, fix: str) -> str:
    """A sentence where the steps are too few to learn much; else empty."""
    if steps >= FEW_STEPS:
        return ""
    count = "1 step is" if steps == 1 else f"{steps} steps are"
    return f"{count} too few to learn much: {fix}"


def rise_warning(name: str, looks: Sequence[tuple[int, float]], kept: int) -> str:
    """A sentence where a held-out loss ends above its best; else empty.

    Args:
        looks: (step, loss) of every measurement, oldest first.
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
        f"model overfits; the weights of step {kept} are kept. Fewer epochs, a "
        "lower learning rate or more data would help"
    )
