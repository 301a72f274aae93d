"""The loop, and what it says of held-out data."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.training import loop
from lmsmith.training.checkpoint import TENSORS, Checkpoints
from lmsmith.training.loop import (
    BestWeights,
    batch_for_steps,
    few_steps_warning,
    rise_warning,
    run_steps,
)
from lmsmith.training.optimiser import Optimiser, OptimiserConfig

STEPS = 9


class Training:
    """A little network with dropout, so that torch's global generator matters."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4), nn.Linear(8, 1))
        self.optimiser = Optimiser(self.model, OptimiserConfig(learning_rate=0.05))
        self.out = StageFolder(folder, 3, MachineConfig(), QuietProgress())
        self.ran: list[int] = []

    def step(self, index: int) -> Mapping[str, float]:
        self.ran.append(index)
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(index))
        loss = (self.model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        loss.backward()
        return {"loss": loss.item(), "gradient_norm": self.optimiser.step(1.0)}

    def evaluate(self, done: int) -> Mapping[str, float]:
        return {"validation/loss": torch.rand(()).item()}  # draws from the same generator

    def run(self, step: Callable[[int], Mapping[str, float]] | None = None) -> int:
        return run_steps(
            steps=STEPS,
            step=step or self.step,
            state={"model": self.model, "optimiser": self.optimiser},
            out=self.out,
            description="test",
            evaluate=self.evaluate,
            evaluate_every=4,
        )

    def weights(self) -> bytes:
        vector = nn.utils.parameters_to_vector(self.model.parameters())
        return vector.detach().numpy().tobytes()

    def rows(self) -> list[dict[str, float]]:
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in read_metrics(self.out / "metrics.jsonl")
        ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Training:
    training = Training(tmp_path_factory.mktemp("unbroken"))
    assert training.run() == STEPS
    return training


def test_an_unbroken_run(unbroken: Training) -> None:
    assert unbroken.ran == list(range(STEPS))
    rows = unbroken.rows()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "validation/loss" in row] == [4, 8, 9]
    assert Checkpoints(unbroken.out.checkpoints).saved_steps() == [STEPS]
    again = Training(unbroken.out.path)
    assert again.run() == STEPS  # all is done: nothing runs, the end is restored
    assert again.ran == []
    assert again.weights() == unbroken.weights()
    assert again.rows() == rows


@settings(max_examples=12)
@given(stops=st.lists(st.integers(1, STEPS), max_size=3))
def test_stopped_at_any_steps_and_continued(
    unbroken: Training, tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("stopped")
    ran: list[int] = []
    for stop in [*sorted(stops), None]:
        training = Training(folder)
        calls = training.ran

        def requested(calls: list[int] = calls, stop: int | None = stop) -> int | None:
            return 15 if stop is not None and calls and calls[-1] + 1 >= stop else None

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "stop_requested", requested)
            with contextlib.suppress(Interrupted):
                training.run()
        if calls:
            assert Checkpoints(training.out.checkpoints).saved_steps()[-1] == calls[-1] + 1
        ran += calls
        torch.manual_seed(99)  # what happens between two sittings must not matter
    assert ran == list(range(STEPS))  # nothing twice: a signal saves first
    assert training.weights() == unbroken.weights()
    assert training.rows() == unbroken.rows()


class Killed(Exception):
    pass


@settings(max_examples=12)
@given(kill=st.integers(0, STEPS - 1), saves=st.sets(st.integers(1, STEPS), max_size=4))
def test_killed_in_any_step_and_continued_from_whatever_was_saved(
    unbroken: Training,
    tmp_path_factory: pytest.TempPathFactory,
    kill: int,
    saves: set[int],
) -> None:
    folder = tmp_path_factory.mktemp("killed")
    training = Training(folder)

    def clock() -> float:  # an hour passes in each step after which a checkpoint is due
        return 3600.0 * len([save for save in saves if save <= len(training.ran)])

    def killing(index: int) -> Mapping[str, float]:
        row = training.step(index)
        if index == kill:
            raise Killed
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.time, "monotonic", clock)
        with pytest.raises(Killed):
            training.run(killing)
    saved = [save for save in saves if save <= kill]
    torch.manual_seed(99)
    again = Training(folder)
    assert again.run() == STEPS
    assert again.ran == list(range(max(saved, default=0), STEPS))
    assert again.weights() == unbroken.weights()
    assert again.rows() == unbroken.rows()


def test_a_damaged_checkpoint_costs_time_but_no_bits(unbroken: Training, tmp_path: Path) -> None:
    for stop in (3, 6):
        training = Training(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                loop,
                "stop_requested",
                lambda t=training, s=stop: 2 if t.ran[-1] + 1 == s else None,
            )
            with pytest.raises(Interrupted):
                training.run()
    newest = training.out.checkpoints / "step-00000006" / TENSORS
    newest.write_bytes(newest.read_bytes()[:-9])
    again = Training(tmp_path)
    again.run()
    assert again.ran == list(range(3, STEPS))
    assert again.weights() == unbroken.weights()
    assert again.rows() == unbroken.rows()
    progress = again.out.progress
    assert isinstance(progress, QuietProgress)
    assert "step-00000006 is damaged" in progress.said[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_stops_the_run_and_says_where(tmp_path: Path, bad: float) -> None:
    training = Training(tmp_path)

    def step(index: int) -> Mapping[str, float]:
        row = training.step(index)
        return {**row, "loss": bad} if index == 5 else row

    with pytest.MonkeyPatch.context() as patch:
        clock = iter(range(10_000))
        patch.setattr(loop.time, "monotonic", lambda: 20.0 * next(clock))
        with pytest.raises(UserError, match=r"test, step 6: loss is -?(nan|inf)") as raised:
            training.run(step)
    kept = Checkpoints(training.out.checkpoints).saved_steps()
    assert kept
    assert kept[-1] <= 5
    assert f"the checkpoint after step {kept[-1]} is kept" in str(raised.value)
    assert [row["step"] for row in training.rows()] == [1, 2, 3, 4, 5]
    again = Training(tmp_path)
    assert again.run() == STEPS  # the checkpoint is good: without the bad number it goes on


def test_a_bad_number_before_any_checkpoint_or_in_an_evaluation(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.evaluate = lambda done: {"validation/loss": math.nan}  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"test, step 4: validation/loss is nan; no checkpoint"):
        training.run()


def test_an_early_stop_is_remembered(tmp_path: Path) -> None:
    for _ in range(2):
        training = Training(tmp_path)
        done = run_steps(
            steps=STEPS,
            step=training.step,
            state={"model": training.model, "optimiser": training.optimiser},
            out=training.out,
            description="test",
            evaluate=training.evaluate,
            evaluate_every=2,
            stop_early=lambda: True,
        )
        assert done == 2
    assert training.ran == []
    assert len(training.rows()) == 2


def test_a_step_that_fails_while_stopping_ends_the_run_as_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches the C++ compiler too: its death is no error of the run."""
    training = Training(tmp_path)
    signals: list[int] = []
    monkeypatch.setattr(loop, "stop_requested", lambda: signals[0] if signals else None)

    def fails(_: int) -> Mapping[str, float]:
        raise RuntimeError("C++ compile error")

    def stopped(index: int) -> Mapping[str, float]:
        signals.append(signal.SIGINT)
        return fails(index)

    with pytest.raises(RuntimeError, match="compile"):
        training.run(fails)
    with pytest.raises(Interrupted):
        training.run(stopped)


def test_best_weights_survive_a_checkpoint_and_prefer_low_loss_when_equal() -> None:
    model = torch.nn.Linear(1, 1)
    best = BestWeights(model)
    best.restore()  # nothing offered yet: nothing happens
    for value, accuracy, loss in ((1.0, 0.6, 0.7), (2.0, 0.6, 0.6), (3.0, 0.5, 0.1)):
        model.weight.data.fill_(value)
        best.offer((accuracy, -loss), int(value))
    other = BestWeights(model)
    other.load_state_dict(best.state_dict())
    assert (other.figures, other.step, other.looks_since) == ((0.6, -0.6), 2, 1)
    other.restore()
    assert model.weight.tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("items", "batch", "minimum", "expected"),
    [
        (1600, 32, 50, 32),  # enough: nothing changes
        (1599, 32, 50, 31),
        (100, 32, 50, 2),
        (7, 32, 50, 1),
        (7, 32, 0, 32),  # turned off
        (0.5, 4, 50, 1),
    ],
)
def test_the_batch_shrinks_with_little_data(
    items: float, batch: int, minimum: int, expected: int
) -> None:
    assert batch_for_steps(items, batch, minimum) == expected


def test_few_steps_and_a_rise_are_told_of() -> None:
    assert few_steps_warning(50, "more") == ""
    assert few_steps_warning(6, "more") == "6 steps are too few to learn much: more"
    assert rise_warning("loss", [(5, 3.0), (9, 2.0), (12, 2.01)], 9) == ""
    assert rise_warning("loss", [], 0) == ""
    told = rise_warning("loss", [(5, 2.61), (9, 2.7), (12, 2.8)], 5)
    assert "rose from 2.610 after step 5 to 2.800 at the end" in told
    assert "weights of step 5 are kept" in told
