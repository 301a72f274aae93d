"""Stage: what instruction tuning gives on tasks never learnt, and what it costs.

The answers are ranked by their likelihood, as in FLAN (Wei et al. 2022, section 2.3), by the model
before tuning and by the tuned one, on the same items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lmsmith.catalogue.reading import read_model
from lmsmith.core.config import NonNegativeInt
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_jsonl, write_json
from lmsmith.evaluation.model import make_evaluated_model
from lmsmith.evaluation.rows import ChoiceRow
from lmsmith.evaluation.run import evaluate_task
from lmsmith.evaluation.tasks.inferred import infer_task
from lmsmith.evaluation.tasks.spec import TaskSetting
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.stages.flan import IN_CONTEXT, OTHER_PHRASING, SEEN, UNSEEN
from lmsmith.statistics.intervals import Interval, bootstrap_ratio
from lmsmith.training.machine import ResolvedMachine, resolve_machine

WAYS: Mapping[str, str] = {
    UNSEEN: "clusters not learnt",
    SEEN: "tasks learnt, in templates learnt",
    OTHER_PHRASING: "tasks learnt, in templates not learnt",
    IN_CONTEXT: "clusters not learnt, with examples shown",
}
"""What is measured → its words."""


@dataclass(frozen=True)
class ZeroShotConfig:
    """Settings of the measurement of unseen tasks."""

    shots: NonNegativeInt = 4
    """Examples shown to see what tuning costs in-context learning; 0 does not measure it."""
    learnt_tasks: bool = True
    """Measure tasks that were learnt too, in both phrasings; they are most of the items."""
    limit: NonNegativeInt = 0
    """Items of each task, drawn by the seed; 0 takes all that the stage flan wrote."""
    base_form: Literal["auto", "chat", "text"] = "auto"
    """How the model before tuning is asked: by its chat template or in plain text; auto: as a chat
    where it came with a chat template. The tuned model is asked as a chat."""


@dataclass(frozen=True)
class Asked:
    """A task and how it is measured; of ``way`` see `WAYS`."""

    way: str
    task: str
    cluster: str
    file: Path


@dataclass(frozen=True)
class Compared:
    """Accuracy before and after tuning on the same items, each with its interval.

    Attributes:
        name: the task, the cluster or the way.
        gain: after − before, item by item.
        chance: accuracy of guessing.
        commonest: accuracy of each task's commonest answer; that of its place in the options.
    """

    name: str
    items: int
    before: Interval
    after: Interval
    gain: Interval
    chance: float
    commonest: float

    def named(self) -> dict[str, float]:
        """Metrics whose names begin with `name`."""
        found = {f"{self.name}_items": float(self.items)}
        for part in ("before", "after", "gain"):
            interval: Interval = getattr(self, part)
            found |= interval.named(f"{self.name}_{part}")
        return found | {
            f"{self.name}_chance": self.chance,
            f"{self.name}_commonest": self.commonest,
        }


def run(config: ZeroShotConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Measure base and policy on all that ``flan`` wrote; write ``results.json``."""
    machine = resolve_machine(out.machine)
    asked = measured_files(inputs["tasks"] / "measured", config)
    rows = {
        role: rank_options(config, role, inputs[role], asked, machine, out)
        for role in ("base", "policy")
    }
    tables: list[dict[str, object]] = []
    metrics: dict[str, float] = {}
    for way in dict.fromkeys(each.way for each in asked):
        of_way = [each for each in asked if each.way == way]
        pairs = {each: (rows["base"][each], rows["policy"][each]) for each in of_way}
        whole = compare(way, list(pairs.values()))
        metrics |= whole.named()
        for level in ("cluster", "task"):
            for name in dict.fromkeys(getattr(each, level) for each in of_way):
                part = [pair for each, pair in pairs.items() if getattr(each, level) == name]
                tables.append({"way": way, "level": level, **_plain(compare(name, part))})
        tables.append({"way": way, "level": "all", **_plain(whole)})
    write_json(out / "results.json", {"shots": config.shots, "results": tables})
    return metrics


def measured_files(folder: Path, config: ZeroShotConfig) -> list[Asked]:
    """The files of the stage flan, in the order of `WAYS`.

    Raises:
        UserError: there is none.
    """
    found = []
    ways = [UNSEEN, *((SEEN, OTHER_PHRASING) if config.learnt_tasks else ())]
    for way in [*ways, *((IN_CONTEXT,) if config.shots else ())]:
        for file in sorted((folder / way).glob("*.jsonl")):
            cluster = str(next(row["cluster"] for _, row in read_jsonl(file)))
            found.append(Asked(way, file.stem, cluster, file))
    if not found:
        raise UserError(
            f"{folder}: no task is measured", "hold out a cluster whose tasks have options"
        )
    return found


def rank_options(
    config: ZeroShotConfig,
    role: str,
    folder: Path,
    asked: Sequence[Asked],
    machine: ResolvedMachine,
    out: StageFolder,
) -> dict[Asked, list[ChoiceRow]]:
    """The rows of a model; items that were answered before an interruption are kept.

    With examples shown, and where its template is none, the model reads plain text.
    """
    read = read_model(folder / "model")
    chat = role == "policy" or config.base_form == "chat"
    if role == "base" and config.base_form == "auto":
        chat = not read.tokenizer.is_own
    plain = make_evaluated_model(read, machine)
    model = make_evaluated_model(read, machine, chat=True) if chat else plain
    seed = derive_seed(out.seed, "zero_shot") % (1 << 32)
    found: dict[Asked, list[ChoiceRow]] = {}
    for each in asked:
        shown = each.way == IN_CONTEXT
        task = replace(infer_task(each.file), name=each.task)
        there = sum(1 for _ in read_jsonl(each.file))
        shots = min(config.shots, there - 1) if shown else 0
        setting = TaskSetting(shots=shots, limit=config.limit or None, seed=seed)
        result = evaluate_task(
            plain if shown else model,
            task,
            setting,
            [each.file.parent],
            out / "items" / role / each.way,
            out.progress,
        )
        found[each] = [row for row in result.rows if isinstance(row, ChoiceRow)]
        if result.truncated:
            out.warn(f"{role}, {each.task}: {result.truncated} prompts do not fit the context")
    return found


def compare(name: str, parts: Sequence[tuple[list[ChoiceRow], list[ChoiceRow]]]) -> Compared:
    """Both models' accuracy over the items of some tasks, pooled.

    Args:
        parts: (rows before, rows after) of each task, item by item the same.
    """
    before = [row.value("accuracy") for rows, _ in parts for row in rows]
    after = [row.value("accuracy") for _, rows in parts for row in rows]
    items = len(before)
    choices = [len(row.choices) for rows, _ in parts for row in rows]
    commonest = sum(max(Counter(row.gold for row in rows).values()) for rows, _ in parts)
    gains = [right - left for left, right in zip(before, after, strict=True)]
    return Compared(
        name,
        items,
        bootstrap_ratio(before),
        bootstrap_ratio(after),
        bootstrap_ratio(gains),
        sum(1 / count for count in choices) / items,
        commonest / items,
    )


def _plain(found: Compared) -> dict[str, object]:
    """For results.json."""
    intervals = {part: vars(getattr(found, part)) for part in ("before", "after", "gain")}
    rest = {"items": found.items, "chance": found.chance, "commonest": found.commonest}
    return {"name": found.name, **rest, **intervals}
