"""Progress of a run: silent, line by line, or a live view in the terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from lmsmith.core.format import format_duration
from lmsmith.core.terminal import visible_console

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Progress:
    """Progress of a stage: one task at a time, and lines that stay. This class shows nothing."""

    def begin(self, description: str, total: int, unit: str, done: int = 0) -> None:
        """Start a task of ``total`` units, ``done`` of which were done before (a resume)."""

    def update(self, done: int, **figures: float) -> None:
        """``done`` units are done by now; ``figures`` are shown beside, e.g. ``loss=2.1``."""

    def end(self) -> None:
        """The task is over."""

    def say(self, text: str) -> None:
        """A warning: a line that stays, and is kept with the run for its report."""

    def note(self, text: str) -> None:
        """A line that stays on the screen, but is no warning and is not kept."""


class RunProgress(Progress):
    """Progress of a run: which stages there are, and which one is running."""

    def plan(self, stages: Sequence[str]) -> None:
        """The stages of this run, in order."""

    def stage_skipped(self, stage: str, seconds: float) -> None:
        """``stage`` was done before, in ``seconds``, and is not run again."""

    def stage_begins(self, stage: str, reason: str) -> None:
        """``stage`` runs from now on, because of ``reason``."""

    def stage_ends(self, stage: str, seconds: float) -> None:
        """``stage`` is done; it took ``seconds``, earlier sittings included."""

    def close(self) -> None:
        """The run is over, well or badly."""


@dataclass
class Task:
    """A task under way, and its pace."""

    description: str
    total: int
    unit: str
    done: int
    first: int
    started: float
    figures: dict[str, float] = field(default_factory=dict)
    first_advance: tuple[int, float] | None = None

    def advance(self, done: int, figures: dict[str, float], now: float) -> None:
        """``done`` units are done at ``now``; ``figures`` are added to those known."""
        self.done = done
        self.figures = {**self.figures, **figures}
        if self.first_advance is None and done > self.first:
            self.first_advance = (done, now)

    def seconds_left(self, now: float) -> float | None:
        """The time left at the pace so far, or None before there is one.

        The first advance counts only while it is the only one, since a first step also compiles.
        """
        since, started = self.first, self.started
        if self.first_advance is not None and self.done > self.first_advance[0]:
            since, started = self.first_advance
        advanced = self.done - since
        if advanced <= 0 or self.total <= 0:
            return None
        return max(0.0, (now - started) / advanced * (self.total - self.done))


def format_figure(name: str, value: float) -> str:
    """``loss 2.134``, ``tokens/s 12,400``, ``share of peak 61 %``."""
    words = name.split("/")[-1].replace("_per_second", "/s").replace("_", " ")
    if name.startswith("validation/"):
        words = f"held-out {words}"
    if name.startswith("share_of"):
        return f"{words} {100 * value:.0f} %"
    if abs(value) >= 1000 or (isinstance(value, int) and not isinstance(value, bool)):
        return f"{words} {value:,.0f}"
    return f"{words} {value:.4g}"


class QuietProgress(RunProgress):
    """Shows nothing; ``said`` keeps the warnings."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class LoggedProgress(QuietProgress):
    """Shows nothing; warnings go to the log ``lmsmith``, which Python prints by default."""

    def say(self, text: str) -> None:
        super().say(text)
        logging.getLogger("lmsmith").warning(text)


class _ShownProgress(RunProgress):
    """Keeps the task under way; ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._task: Task | None = None

    def begin(self, description: str, total: int, unit: str, done: int = 0) -> None:
        self._task = Task(description, total, unit, done, done, self._clock())

    def update(self, done: int, **figures: float) -> None:
        if self._task is not None:
            self._task.advance(done, figures, self._clock())

    def end(self) -> None:
        self._task = None

    def close(self) -> None:
        self._task = None


class LineProgress(_ShownProgress):
    """Prints a line of a task every few ``seconds`` to ``stream`` (standard error)."""

    def __init__(
        self,
        seconds: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(clock)
        self._every = seconds
        self._stream = stream
        self._stage = ""
        self._last = clock()

    def begin(self, description: str, total: int, unit: str, done: int = 0) -> None:
        super().begin(description, total, unit, done)
        self._last = self._clock()

    def update(self, done: int, **figures: float) -> None:
        super().update(done, **figures)
        now = self._clock()
        if self._task is not None and now - self._last >= self._every:
            self._last = now
            self.note(_task_line(self._task, now))

    def end(self) -> None:
        if self._task is not None:
            taken = format_duration(self._clock() - self._task.started)
            self.note(f"{_task_line(self._task, None)}, {taken}")
        super().end()

    def say(self, text: str) -> None:
        self.note(text)

    def note(self, text: str) -> None:
        prefix = f"{self._stage}: " if self._stage and not text.startswith(self._stage) else ""
        print(f"{prefix}{text}", file=self._stream or sys.stderr, flush=True)

    def plan(self, stages: Sequence[str]) -> None:
        self.note("stages: " + ", ".join(stages))

    def stage_skipped(self, stage: str, seconds: float) -> None:
        self.note(f"{stage}: done before ({format_duration(seconds)})")

    def stage_begins(self, stage: str, reason: str) -> None:
        self.note(reason)
        self._stage = stage

    def stage_ends(self, stage: str, seconds: float) -> None:
        self._stage = ""
        self.note(f"{stage}: done in {format_duration(seconds)}")


def _task_line(task: Task, now: float | None) -> str:
    parts = [f"{task.description} {task.done:,}/{task.total:,} {task.unit}".rstrip()]
    parts += [format_figure(name, value) for name, value in task.figures.items()]
    left = task.seconds_left(now) if now is not None else None
    if left is not None:
        parts.append(f"{format_duration(left)} left")
    return ", ".join(parts)


@dataclass
class _StageRow:
    """One line of the live view."""

    state: str = "to come"  # then "running", "done", "done before"
    seconds: float = 0.0
    started: float = 0.0


class LiveProgress(_ShownProgress):
    """The view of ``lmsmith run``: all stages with their times, a bar, figures and time left.

    rich draws at most four frames a second in a thread of its own; other lines stay above the view.
    """

    def __init__(self, title: str = "", console: Console | None = None) -> None:
        from rich.live import Live

        super().__init__()
        self._title = title
        self._rows: dict[str, _StageRow] = {}
        self._console = console or visible_console(sys.stderr)
        self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=4)

    def plan(self, stages: Sequence[str]) -> None:
        self._rows = {name: _StageRow() for name in stages}
        self._live.start()

    def stage_skipped(self, stage: str, seconds: float) -> None:
        self._rows[stage] = _StageRow("done before", seconds)

    def stage_begins(self, stage: str, reason: str) -> None:
        self._rows[stage] = _StageRow("running", started=self._clock())
        self.note(reason)

    def stage_ends(self, stage: str, seconds: float) -> None:
        self._rows[stage] = _StageRow("done", seconds)
        self.end()

    def say(self, text: str) -> None:
        self._print(text, "yellow")

    def note(self, text: str) -> None:
        self._print(text, "dim")

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style))

    def close(self) -> None:
        super().close()
        self._live.stop()

    def render(self) -> RenderableType:
        """The view as it is now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = self._clock()
        table = Table.grid(padding=(0, 1))
        parts: list[RenderableType] = [Text(self._title, style="bold")] if self._title else []
        for name, row in list(self._rows.items()):  # rich draws in another thread
            mark, style, note_style = _LOOKS[row.state]
            taken = format_duration(now - row.started if row.state == "running" else row.seconds)
            note = {"to come": "to come", "done before": f"{taken}, done before"}
            shown = Text(note.get(row.state, taken), style=note_style)
            table.add_row(Text(mark, style=style), Text(name, style=style), shown)
        parts.append(table)
        task = self._task
        if task is not None:
            line = Table.grid(padding=(0, 1))
            share = task.done / task.total if task.total else 0.0
            left = task.seconds_left(now)
            line.add_row(
                Text(f"  {task.description}"),
                ProgressBar(total=max(task.total, 1), completed=task.done, width=28),
                Text(f"{100 * share:3.0f} %"),
                Text(f"{task.done:,}/{task.total:,} {task.unit}", style="dim"),
                Text(f"{format_duration(left)} left" if left is not None else "", style="cyan"),
            )
            parts.append(line)
            if task.figures:
                figures = " · ".join(format_figure(*item) for item in task.figures.items())
                parts.append(Text(f"  {figures}", style="cyan"))
        return Group(*parts)


_LOOKS = {
    "running": ("▶", "bold cyan", "cyan"),
    "done": ("✓", "green", "green"),
    "done before": ("✓", "dim green", "dim"),
    "to come": ("·", "dim", "dim"),
}
"""State of a stage → its mark, the style of mark and name, and the style of its time."""


def choose_progress(title: str, quiet: bool) -> RunProgress:
    """A live view in a terminal, lines elsewhere, nothing if ``quiet``."""
    if quiet:
        return QuietProgress()
    return LiveProgress(title) if sys.stderr.isatty() else LineProgress()
