"""Several models on the same tasks and instructions, and the difference between two of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec

from lmsmith.catalogue.remote import find_remote, is_address
from lmsmith.catalogue.resolve import WRITING_STAGES, resolve
from lmsmith.comparison.instructions import (
    Instruction,
    Replies,
    read_instructions,
    reply_spec,
    write_replies,
)
from lmsmith.comparison.judges import load_judge
from lmsmith.comparison.win_rate import Versus, judge_replies
from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.files import write_jsonl
from lmsmith.core.progress import choose_progress
from lmsmith.evaluation.measures import measure_of, paired_difference, value_of
from lmsmith.evaluation.rows import ItemRow
from lmsmith.evaluation.run import (
    ModelEvaluation,
    Plan,
    TaskResult,
    folder_name,
    model_to_evaluate,
    run_plan,
    stage,
    write_results,
)
from lmsmith.evaluation.tasks.data import search_path
from lmsmith.options import CompareOptions
from lmsmith.runs.locking import locked
from lmsmith.runs.signals import StopSignal
from lmsmith.statistics.intervals import Interval
from lmsmith.training.machine import ResolvedMachine

PEOPLE = "people"
"""The judge that is no model: the labelers of a database."""


@dataclass(frozen=True)
class EvaluatedReplies(ModelEvaluation):
    """A model's results, and its replies to instructions if it was given any."""

    replies: Replies | None = None


@dataclass(frozen=True)
class TaskComparison:
    """Two models, a and b, on the items of a task that both answered.

    Attributes:
        task: its name, with shots.
        difference: b less a, items resampled for both together.
        items: how many.
        gained: ids of items that b has right and a has not.
        lost: the other way round.
    """

    task: str
    measure: str
    value_a: float
    value_b: float
    difference: Interval
    items: int
    gained: tuple[str, ...]
    lost: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``unclear`` where the interval holds 0 or is unknown."""
        if not (self.difference.low > 0 or self.difference.high < 0):
            return "unclear"
        higher = self.difference.value > 0
        return "better" if higher == measure_of(self.measure).higher_is_better else "worse"

    @property
    def is_unchanged(self) -> bool:
        """Whether every item counts the same in both."""
        alike = not self.gained and not self.lost
        return measure_of(self.measure).is_share and alike and self.difference.value == 0

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return asdict(self) | {"verdict": self.verdict}


@dataclass(frozen=True)
class ModelPair:
    """Two models, by name, on the same items and instructions: the second against the first.

    Attributes:
        comparisons: one a task and measure.
        versus: whose replies are better, if that was judged.
    """

    before: str
    after: str
    comparisons: Sequence[TaskComparison]
    versus: Versus | None = None


def read_win_rate(options: CompareOptions) -> list[Instruction]:
    """Read the instructions and find the judge, before hours are spent; none without a file.

    Raises:
        UserError: there are no instructions, or there is no judge.
    """
    if options.win_rate is None:
        return []
    if not options.judge:
        problem = f"--win-rate {options.win_rate}: needs a judge"
        raise UserError(problem, "name one: --judge MODEL")
    instructions = read_instructions(options.win_rate, options.limit, options.seed)
    if is_address(options.judge):
        find_remote(options.judge)
    elif options.judge != PEOPLE:
        resolve(options.judge)
    return instructions


def models_to_compare(
    models: Sequence[str], *, stages: bool = False
) -> tuple[list[str], list[tuple[int, int]]]:
    """The models in order, the first named last, and which pairs are compared: (before, after).

    Args:
        stages: compare a run's stages, each with the one before it.

    Raises:
        UserError: there are not two models, one is named twice, or the run has no two stages.
    """
    if stages and len(models) != 1:
        raise UserError("--stages: takes one run", "name its folder, such as runs/quickstart")
    words = stages_of(models[0]) if stages else [*models[1:], *models[:1]]
    if len(words) < 2:
        problem = f"{' '.join(words) or 'compare'}: compared with nothing"
        raise UserError(problem, "name two models or more: lmsmith compare MODEL OTHER")
    names = [folder_name(word) for word in words]
    twice = next((word for word in words if names.count(folder_name(word)) > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: the same model twice", "name another")
    last = len(words) - 1
    return words, [(n, n + 1 if stages else last) for n in range(last)]


def stages_of(run: str) -> list[str]:
    """The folders of a run's stages that made a model which writes, the first one first.

    Raises:
        UserError: there are not two of them.
    """
    found = [
        str(Path(run) / stage)
        for stage in reversed(WRITING_STAGES)
        if (Path(run) / stage / "model" / "config.json").is_file()
    ]
    if len(found) < 2:
        problem = f"{run}: no run with two stages that write"
        raise UserError(problem, "name a run's folder, such as runs/quickstart --stages")
    return found


def compare_models(
    words: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    plan: Plan,
    options: CompareOptions,
    machine: ResolvedMachine,
    instructions: Sequence[Instruction] = (),
) -> tuple[list[EvaluatedReplies], list[ModelPair]]:
    """Evaluate every model on the plan, let it reply to the instructions, and compare the pairs.

    The last model's results go to ``options.folder``, the others' beside it.

    Args:
        words, pairs: of `models_to_compare`.
        instructions: of `read_win_rate`.

    Raises:
        UserError: there is no such model, or a task cannot be asked.
        Interrupted: after Ctrl-C, with all answers kept.
    """
    path, folder = search_path(options.data), options.folder
    folders = [Path("evals") / folder_name(word) for word in words]
    if folder is not None:
        beside = [folder.with_name(f"{folder.name}-{folder_name(word)}") for word in words[:-1]]
        folders = [*beside, folder]
    measured = []
    for word, place in zip(words, folders, strict=True):
        progress = choose_progress(f"eval {word}", options.quiet)
        stages = [each.label for each in plan] + ["replies"] * bool(instructions)
        with model_to_evaluate(word, place, stages, progress, machine, options) as model:
            results = run_plan(model, plan, path, place, progress, skip_missing=bool(options.suite))
            replies = None
            if instructions and options.win_rate is not None:
                with stage(progress, "replies"):
                    spec = reply_spec(model, options.reply_tokens, greedy=options.greedy)
                    replies = write_replies(
                        model, instructions, options.win_rate, place, spec, options.seed, progress
                    )
            found = write_results(word, model, results, place)
            measured.append(EvaluatedReplies(**vars(found), replies=replies))
    paired = [(measured[before], measured[after]) for before, after in pairs]
    versus: Sequence[Versus | None] = [None] * len(paired)
    if instructions and options.judge == PEOPLE:
        versus = _judged_by_people(instructions, paired, options)
    elif instructions:
        versus = _judged_by_model(instructions, paired, options, machine)
    return measured, [
        ModelPair(before.name, after.name, compare_results(before.results, after.results), judged)
        for (before, after), judged in zip(paired, versus, strict=True)
    ]


def compare_results(
    before: Sequence[TaskResult], after: Sequence[TaskResult]
) -> list[TaskComparison]:
    """Each task of the second model against the first, by the headline and by perplexity."""
    rows = {result.name: result.rows for result in before}
    return [
        compare_rows(each.name, measure, rows[each.name], each.rows, each.setting.seed)
        for each in after
        for measure in _compared_measures(each)
    ]


def compare_rows(
    task: str, measure: str, rows_a: Sequence[ItemRow], rows_b: Sequence[ItemRow], seed: int = 0
) -> TaskComparison:
    """Compare by a measure on the items that both have; raises ValueError if there are none."""
    by_id = {row.id: row for row in rows_b}
    pairs = [(row, by_id[row.id]) for row in rows_a if row.id in by_id]
    if not pairs:
        raise ValueError(f"{task}: no item that both have answered")
    first, second = [list(each) for each in zip(*pairs, strict=True)]
    difference = paired_difference(first, second, measure, seed=seed)
    values = [value_of(rows, measure) for rows in (first, second)]
    gained: list[str] = []
    lost: list[str] = []
    if measure_of(measure).is_share:
        for a, b in pairs:
            before, after = a.value(measure), b.value(measure)
            if before != after:
                better = (after > before) == measure_of(measure).higher_is_better
                (gained if better else lost).append(a.id)
    return TaskComparison(
        task, measure, values[0], values[1], difference, len(pairs), tuple(gained), tuple(lost)
    )


def _compared_measures(result: TaskResult) -> list[str]:
    """The headline, and the perplexity of whole words: it moves where none is right."""
    others = {"perplexity"} & set(result.measures) - {result.task.measure}
    return [result.task.measure, *others]


def summary(comparisons: Sequence[TaskComparison]) -> str:
    """Several in words: "better on 2 of 9, worse on 1; no item changed in 3: …", of tasks.

    A task counts as better, or as worse, if it is by any of its measures.
    """
    tasks: dict[str, list[TaskComparison]] = {}
    for each in comparisons:
        tasks.setdefault(each.task, []).append(each)

    def count(verdict: str) -> int:
        return sum(any(each.verdict == verdict for each in of) for of in tasks.values())

    said = f"better on {count('better')} of {len(tasks)}, worse on {count('worse')}"
    same = [task for task, of in tasks.items() if all(each.is_unchanged for each in of)]
    return f"{said}; no item changed in {len(same)}: {_listed(same)}" if same else said


def _listed(tasks: Sequence[str]) -> str:
    """Names, each with its numbers of shots: "lambada, triviaqa (0, 1, 16-shot)"."""
    found: dict[str, list[str]] = {}
    for each in tasks:
        name, _, shots = each.partition(", ")
        found.setdefault(name, []).append(shots.removesuffix("-shot") or "0")
    return ", ".join(
        name if shots == ["0"] else f"{name} ({', '.join(shots)}-shot)"
        for name, shots in found.items()
    )


Paired = Sequence[tuple[EvaluatedReplies, EvaluatedReplies]]


def _replies(before: EvaluatedReplies, after: EvaluatedReplies) -> tuple[Replies, Replies]:
    assert after.replies is not None
    assert before.replies is not None
    return after.replies, before.replies


def _judged_by_model(
    instructions: Sequence[Instruction],
    pairs: Paired,
    options: CompareOptions,
    machine: ResolvedMachine,
) -> list[Versus]:
    """Judgements are kept in the second model's folder, in ``win-rate-FIRST.jsonl``."""
    progress = choose_progress(f"win rate by {options.judge}", options.quiet)
    labels = [f"win rate against {before.name}" for before, _ in pairs]
    found = []
    progress.plan(labels)
    with contextlib.closing(progress):
        judge = load_judge(options.judge, machine)
        for label, (before, after) in zip(labels, pairs, strict=True):
            log = after.folder / f"win-rate-{folder_name(before.word)}.jsonl"
            with stage(progress, label), StopSignal(), locked(after.folder, progress):
                a, b = _replies(before, after)
                found.append(judge_replies(judge, instructions, a, b, log, progress, options.seed))
    return found


def _judged_by_people(
    instructions: Sequence[Instruction], pairs: Paired, options: CompareOptions
) -> list[Versus]:
    with needs_extra("serve"):
        from lmsmith.comparison.people import people_judge
        from lmsmith.feedback.store import open_store
    found = []
    with open_store(options.database, new=True) as store:
        for before, after in pairs:
            a, b = _replies(before, after)
            versus = people_judge(store, instructions, a, b, options.labelers, options.seed)
            log = after.folder / f"win-rate-{folder_name(before.word)}-people.jsonl"
            write_jsonl(log, [msgspec.to_builtins(row) for row in versus.rows])
            found.append(replace(versus, log=log.name))
    return found
