"""Progress as it is seen: a live view in a terminal, lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lmsmith.core.progress import (
    LineProgress,
    LiveProgress,
    QuietProgress,
    RunProgress,
    format_figure,
)


def act(progress: RunProgress) -> None:
    """A run of four stages: one done before, one done, one running, one to come."""
    progress.plan(["data", "tokenizer", "pretrain", "sft"])
    progress.stage_skipped("data", 3.0)
    progress.stage_begins("tokenizer", "tokenizer: not run yet")
    progress.begin("merging", 10, "merges")
    progress.update(10)
    progress.end()
    progress.stage_ends("tokenizer", 65)
    progress.stage_begins("pretrain", "pretrain: rate changed 1 → 2")
    progress.begin("training", 400, "steps", done=100)
    progress.update(200, loss=2.13456, tokens_per_second=12345.6, share_of_peak=0.61)
    progress.say("a [red]warning[/red]")


def test_live_view_shows_all_stages_bar_figures_and_time_left() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    progress = LiveProgress("quickstart", console)
    act(progress)
    with console.capture() as capture:
        console.print(progress.render())
    shown = capture.get()
    progress.close()
    progress.close()
    assert "✓ data      3.0 s, done before" in shown
    assert "✓ tokenizer 1 min 05 s" in shown
    assert "▶ pretrain" in shown
    assert "· sft       to come" in shown
    assert "50 %" in shown
    assert "200/400 steps" in shown
    assert "left" in shown
    assert "loss 2.135 · tokens/s 12,346 · share of peak 61 %" in shown
    above = stream.getvalue()
    assert "a [red]warning[/red]" in above  # text of others is never taken as markup
    assert "pretrain: rate changed 1 → 2" in above


def test_lines_come_every_few_seconds() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = LineProgress(10, stream, lambda: now[0])
    progress.stage_begins("sft", "sft: not run yet")
    progress.begin("training", 100, "steps", done=40)
    for step in range(41, 101):
        now[0] += 1
        progress.update(step, loss=1.5)
    progress.end()
    progress.stage_ends("sft", 60)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "sft: not run yet"
    assert lines[1] == "sft: training 50/100 steps, loss 1.5, 50 s left"
    assert lines[-2] == "sft: training 100/100 steps, loss 1.5, 1 min 00 s"
    assert lines[-1] == "sft: done in 1 min 00 s"
    assert len(lines) == 9


def test_the_time_left_does_not_count_a_slow_first_step() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = LineProgress(10, stream, lambda: now[0])
    progress.begin("training", 100, "steps")
    for step, seconds in enumerate((60, 10, 10), start=1):  # the first one compiles
        now[0] += seconds
        progress.update(step)
    assert stream.getvalue().splitlines()[-1] == "training 3/100 steps, 16 min 10 s left"


@pytest.mark.parametrize(
    "progress", [QuietProgress(), LineProgress(stream=io.StringIO())], ids=["quiet", "line"]
)
def test_every_view_takes_every_call(progress: RunProgress) -> None:
    progress.update(1)
    progress.end()
    act(progress)
    progress.begin("nothing", 0, "steps")
    progress.update(0)
    progress.end()
    progress.close()
    if isinstance(progress, QuietProgress):
        assert progress.said == ["a [red]warning[/red]"]


def test_numbers_for_people() -> None:
    assert format_figure("validation/bits_per_byte", 1.81234) == "held-out bits per byte 1.812"
    assert format_figure("prompts", 12) == "prompts 12"
    assert format_figure("loss", float("nan")) == "loss nan"
