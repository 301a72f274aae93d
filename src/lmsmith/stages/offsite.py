"""Stage: tune the adapters of an emulator on one's own data, which stays here (Xiao et al. 2023).

What is learnt is the text of the answers, as a language model, so that the full model with the
adapters is asked as it was before. The stage keeps the adapters alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.catalogue.resolve import Source, card_of_sampling, resolve
from lmsmith.core.config import (
    NOT_A_SETTING,
    FractionBelowOne,
    NonNegativeInt,
    PositiveInt,
    Problem,
    encode,
)
from lmsmith.core.errors import UserError
from lmsmith.core.files import beside, is_there, write_json
from lmsmith.corpus.sources import TALKS, files_of
from lmsmith.evaluation.model import make_evaluated_model
from lmsmith.evaluation.run import evaluate_task
from lmsmith.evaluation.tasks.data import search_path
from lmsmith.evaluation.tasks.inferred import infer_task
from lmsmith.evaluation.tasks.spec import TaskSetting
from lmsmith.models.folder import save_model
from lmsmith.models.offsite import read_emulated, save_offsite_adapters, train_only_adapters
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.data import DataConfig, Splits
from lmsmith.stages.data import run as run_data
from lmsmith.stages.instruction_rows import is_task_file, locate_instructions, write_rows
from lmsmith.stages.sft import SFTConfig, learn_demonstrations
from lmsmith.statistics.intervals import bootstrap_ratio
from lmsmith.training.machine import ResolvedMachine, resolve_machine

SCORES = "scores.json"
"""1 for each test item that was answered rightly, else 0: before and after tuning."""


@dataclass(frozen=True)
class OffsiteConfig:
    """Settings of offsite-tuning."""

    model: str = ""
    """The emulator; empty takes the recipe's stage emulator. With part = "all" any model."""
    task: str = "sst2"
    """A task (arc_easy, boolq, cb, cola, copa, mrpc, openbook_qa, rte, sst2, stsb, winograd), a
    .toml file of a task, or conversations to learn from (.jsonl, .json or a folder)."""
    data: str = ""
    """Folder of the task's files; also LMSMITH_DATA, the task file's folder, here, and ./data."""
    template: NonNegativeInt = 0
    """Number of the task's template that every example is written in, from 0."""
    options: bool = False
    """Append the answers to choose from."""
    examples: NonNegativeInt = 0
    """Learn from so many examples, drawn by the seed; 0 takes all."""
    validation_share: FractionBelowOne = 0.1
    """Share of the conversations that are held out; a task has a part of its own."""
    test_examples: PositiveInt = 500
    """Most test examples that are measured."""
    part: Literal["adapters", "all"] = "adapters"
    """``adapters`` are all that learns and all that is kept; ``all`` fine-tunes a whole model, to
    compare with."""
    base_form: Literal["auto", "chat", "text"] = "auto"
    """How the model before tuning is asked: by its chat template or in plain text; auto: as a chat
    where it came with a chat template. The tuned one is asked as a chat."""
    sft: SFTConfig = field(default_factory=SFTConfig)
    """How it learns: the settings of the stage sft."""
    folder: str = field(default="", metadata=NOT_A_SETTING)
    """Relative paths begin at this folder, the recipe's, where they exist."""

    def check(self) -> list[Problem]:
        """No task, and low-rank adapters in place of the two that are layers."""
        problems = [] if self.task else [Problem("task", "", "a task or a file")]
        if self.sft.adapter.rank:
            fix = "leave it out: the first and the last layers are the adapters"
            problems.append(Problem("sft.adapter.rank", self.sft.adapter.rank, "0", fix))
        return problems

    def external_files(self) -> list[str]:
        model = [str(resolve(self.place(self.model)).path)] if self.model else []
        if not self.is_task:
            return [*model, *map(str, files_of(self.place(self.task), TALKS))]
        return [*model, *map(str, locate_instructions(self.place(self.task), self.folders()).files)]

    @property
    def is_task(self) -> bool:
        """Whether there is something to measure; conversations are learnt only."""
        return is_task_file(self.place(self.task))

    def folders(self) -> list[Path]:
        """Folders in which the task's data is looked for."""
        return search_path([Path(self.place(self.data))] if self.data else [])

    def place(self, word: str) -> str:
        """The path that a word means beside the recipe, or the word."""
        path = beside(self.folder, word)
        return path if is_there(path) else word


def run(config: OffsiteConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Write the examples out, tune, measure before and after; save ``adapters/`` or ``model/``.

    Raises:
        UserError: the model is no emulator, or there is nothing to learn from.
    """
    read = read_model(_word(config, inputs))
    path = read.source.path
    about = read_emulated(path) if config.part == "adapters" else None
    machine = resolve_machine(out.machine)
    data = out.checkpoints / "data"
    counts = write_data(config, data, out)
    test = data / "test.jsonl"
    found: dict[str, list[float]] = {}
    if test.is_file():
        form = config.base_form
        chat = form == "chat" or (form == "auto" and not read.tokenizer.is_own)
        found["before"] = answers(read, test, out.checkpoints / "before", machine, out, chat=chat)
    read.decoder.requires_grad_(True)
    if about is not None:
        train_only_adapters(read.decoder, about.adapter_layers)
    key = f"{out.name}.sft"
    metrics = counts | learn_demonstrations(
        config.sft, read.decoder, read.tokenizer, data, machine, out, key
    )
    metrics["trained_parameters"] = float(
        sum(each.numel() for each in read.decoder.parameters() if each.requires_grad)
    )
    read.decoder.requires_grad_(False).eval()
    if found:
        found["after"] = answers(read, test, out.checkpoints / "after", machine, out, chat=True)
        metrics |= compared(found)
        write_json(out / SCORES, found)
    settings = replace(config, model=Path(config.model).name, task=Path(config.task).name, data="")
    card: dict[str, Any] = {"stage": out.name, "settings": encode(settings), "metrics": metrics}
    if about is not None:
        save_offsite_adapters(out / "adapters", read.decoder, about, card)
    else:
        card |= {"parents": [read.source.name], **card_of_sampling(read.source)}
        save_model(out / "model", read.decoder, read.tokenizer, card)
    return metrics


def _word(config: OffsiteConfig, inputs: Mapping[str, Path]) -> str | Source:
    if config.model:
        return config.place(config.model)
    if "emulator" not in inputs:
        raise UserError(
            "the recipe has no emulator", "set offsite.model, or add the stage [emulator]"
        )
    return Source("lmsmith", inputs["emulator"] / "model", "emulator")


def write_data(config: OffsiteConfig, data: Path, out: StageFolder) -> dict[str, float]:
    """Write ``demonstrations.jsonl``, ``validation.jsonl`` and, of a task, ``test.jsonl``."""
    data.mkdir(parents=True, exist_ok=True)
    if config.is_task:
        located = locate_instructions(config.place(config.task), config.folders())
        return write_rows(
            located, data, out.seed, template=config.template, options=config.options,
            examples=config.examples, test_examples=config.test_examples,
        )  # fmt: skip
    share = config.validation_share
    splits = Splits(1 - share, 0, 0, 0, 0, share)
    talks = DataConfig(conversations=(config.place(config.task),), splits=splits)
    counts = run_data(talks, {}, replace(out, path=data))
    return {"train_examples": counts["splits.demonstrations"]}


def answers(
    read: ReadModel,
    test: Path,
    folder: Path,
    machine: ResolvedMachine,
    out: StageFolder,
    *,
    chat: bool,
) -> list[float]:
    """1 for each test item whose right answer is the likeliest, else 0.

    Args:
        test: rows of ``query``, ``choices`` and ``gold``.
        folder: keeps the items' rows, so that an interruption costs none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = make_evaluated_model(read, machine, chat=chat)
    task = replace(infer_task(test), name=folder.name)
    result = evaluate_task(model, task, TaskSetting(), [test.parent], folder, out.progress)
    if result.truncated:
        out.warn(f"{result.truncated} prompts do not fit the context and lose their beginning")
    return [row.value("accuracy") for row in result.rows]


def compared(found: Mapping[str, list[float]]) -> dict[str, float]:
    """Accuracy before and after tuning, and the gain item by item, with 95 % intervals."""
    before, after = found["before"], found["after"]
    gains = [right - left for left, right in zip(before, after, strict=True)]
    metrics = {"test_items": float(len(after))}
    for name, values in (("before", before), ("after", after), ("gain", gains)):
        metrics |= bootstrap_ratio(values).named(f"{name}_accuracy")
    return metrics
