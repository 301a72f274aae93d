"""Stage: labelled tasks in templates become demonstrations, and held-out clusters become tests.

Instruction tuning as FLAN did it (Wei et al. 2022, "Finetuned Language Models Are Zero-Shot
Learners"). What it writes is what the stage ``data`` writes for ``sft``, which trains on it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from lmsmith.core.config import NOT_A_SETTING, NonNegativeInt, PositiveInt, Problem
from lmsmith.core.errors import UserError
from lmsmith.core.files import beside, is_there, write_json, write_jsonl
from lmsmith.corpus.instructions.mixture import left_out_clusters, mixing_counts, word_runs
from lmsmith.corpus.instructions.prompted import read_prompted
from lmsmith.corpus.instructions.task import (
    InstructionTask,
    TaskTexts,
    find_task,
    found_file,
    read_task_texts,
    shipped_instruction_tasks,
    task_files,
)
from lmsmith.corpus.instructions.template import Instruction, LabelledExample, Template, fill
from lmsmith.corpus.rows import Conversation
from lmsmith.corpus.words import normal_words
from lmsmith.evaluation.contamination import SHORTEST
from lmsmith.evaluation.tasks.data import search_path
from lmsmith.runs.stage_folder import StageFolder, derive_seed

SEEN, OTHER_PHRASING, UNSEEN, IN_CONTEXT = "seen", "other_phrasing", "unseen", "in_context"
"""What is measured: trained tasks in trained templates, in others; held-out clusters; and these in
one template each, whose items may be shown as examples."""


@dataclass(frozen=True)
class FlanConfig:
    """Settings of instruction tuning's data."""

    tasks: tuple[str, ...] = ()
    """Shipped tasks or .toml files: see docs/systems/flan.md. Empty: all shipped ones whose data is
    here."""
    files: tuple[str, ...] = ()
    """JSONL files of instructions that are written out: prompt, completion, and template, task and
    cluster where known; such as T0's."""
    data: str = ""
    """Folder of the tasks' files; also LMSMITH_DATA, here, and ./data."""
    held_out: tuple[str, ...] = ("nli",)
    """Clusters that are measured and not learnt."""
    related: bool = True
    """Nor are clusters learnt that tell much of a held-out one, as paraphrase does of nli."""
    clusters: NonNegativeInt = 0
    """Learn so many clusters, drawn by the seed; 0 takes all. More are those and others."""
    templates: NonNegativeInt = 0
    """Learn so many templates of each task; 0 takes all but those kept back."""
    kept_back: NonNegativeInt = 2
    """Templates of each task that are not learnt, to measure other phrasings."""
    most_examples: PositiveInt = 30_000
    """Most examples of a task that are drawn from."""
    mixing_limit: PositiveInt = 3_000
    """A task counts as having so many examples at most (examples-proportional mixing)."""
    examples: NonNegativeInt = 0
    """Demonstrations in all; 0 takes what mixing_limit allows of each task."""
    options: bool = True
    """Append the answers to choose from, where there are such."""
    validation_examples: NonNegativeInt = 10
    """Held-out examples of each trained task that say when tuning overfits."""
    test_examples: PositiveInt = 100
    """Examples of each task that are measured, in each way."""
    folder: str = field(default="", metadata=NOT_A_SETTING)
    """Relative paths begin at this folder, the recipe's, where they exist."""

    def check(self) -> list[Problem]:
        """A cluster that no task has, with shipped tasks alone."""
        known = {task.cluster for task in shipped_instruction_tasks().values()}
        if any(word.lower().endswith(".toml") for word in self.tasks):
            return []
        return [
            Problem("held_out", name, f"one of {', '.join(sorted(known))}", "or name its tasks")
            for name in self.held_out
            if name not in known
        ]

    def external_files(self) -> list[str]:
        path = self.search_path()
        files = [file for task, places in self.located() for file in task_files(task, places)]
        files += [self._file(name, path) for name in self.files]
        own = [Path(self._place(word)) for word in self.tasks if word.lower().endswith(".toml")]
        return [str(file) for file in dict.fromkeys([*own, *files])]

    def search_path(self) -> list[Path]:
        """Folders in which data is looked for."""
        return search_path([Path(self._place(self.data))] if self.data else [])

    def located(self) -> list[tuple[InstructionTask, list[Path]]]:
        """The tasks and the folders of their files; of shipped ones those whose data is here."""
        path, found = self.search_path(), []
        for word in self.tasks:
            task, own = find_task(self._place(word) if word.endswith(".toml") else word)
            found.append((task, [*([own] if own else []), *path]))
        for task in shipped_instruction_tasks().values() if not self.tasks else ():
            try:
                task_files(task, path)
            except UserError:
                continue
            found.append((task, path))
        return found

    def prompted_files(self) -> list[Path]:
        """The files of written instructions."""
        path = self.search_path()
        return [self._file(name, path) for name in self.files]

    def _file(self, name: str, path: Sequence[Path]) -> Path:
        return found_file(name, [Path(self.folder or "."), *path])

    def _place(self, name: str) -> str:
        path = beside(self.folder, name)
        return path if is_there(path) else name


Written = tuple[str, Instruction]
"""The name of a template, and an example in it."""


@dataclass(frozen=True)
class Learnt:
    """An example that may be learnt.

    Attributes:
        text: all that it says, without the words of templates.
        ways: writes it out in each template that fits.
    """

    text: str
    ways: Callable[[], list[Written]]


@dataclass(frozen=True)
class Source:
    """A task that is learnt.

    Attributes:
        templates: names of the ways to put it; a demonstration takes one by chance.
    """

    name: str
    cluster: str
    templates: list[str]
    train: list[Learnt]
    validation: list[Learnt]


def run(config: FlanConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Write demonstrations, validation, and the tasks that are measured.

    ``demonstrations.jsonl`` and ``validation.jsonl`` are conversations of a prompt and its answer;
    ``measured/WAY/TASK.jsonl`` has rows that ``lmsmith eval`` reads, ``mixture.json`` the tasks.

    Raises:
        UserError: data is missing or damaged, or nothing is learnt or measured.
    """
    chance = random.Random(derive_seed(out.seed, "flan"))
    read = [read_task_texts(task, places) for task, places in config.located()]
    forbidden = left_out_clusters(config.held_out, related=config.related)
    measured = [texts for texts in read if texts.task.cluster in config.held_out]
    if not measured:
        raise UserError(
            f"flan: no task of the held-out clusters {', '.join(config.held_out)} is here",
            "name the folder of the data: flan.data, or LMSMITH_DATA",
        )
    learnt = {t.task.name: t for t in read if t.task.cluster not in forbidden}
    sources = [_of_task(texts, config, out.seed) for texts in learnt.values()]
    counts = Counter[str]()
    sources += _of_files(config, read, forbidden, counts, out)
    sources = drawn_clusters(sources, config.clusters, out.seed)
    if not sources:
        raise UserError("flan: no task is left to learn", "hold out fewer clusters, or name tasks")
    held = [text for texts in measured for each in texts.test for text in each.fields.values()]
    sources = without_overlap(sources, held, counts)

    rows = list(demonstrations(sources, config, chance))
    write_jsonl(out / "demonstrations.jsonl", (row.row() for row in rows))
    validation = [
        as_conversation(source.name, number, chance.choice(example.ways()))
        for source in sources
        for number, example in enumerate(source.validation)
    ]
    write_jsonl(out / "validation.jsonl", (row.row() for row in validation))
    kept = {source.name for source in sources}
    trained = [texts for name, texts in learnt.items() if name in kept]
    counts |= _write_measured(config, trained, measured, out)
    if not counts[f"measured {UNSEEN}"]:
        names = ", ".join(texts.task.name for texts in measured)
        raise UserError(
            f"flan: nothing to measure: no test example of {names} has answers to choose from",
            "hold out a cluster of tasks with options, or give these test examples",
        )
    used = Counter(row.id.split("/")[0] for row in rows)
    write_json(
        out / "mixture.json",
        {
            "held_out": sorted(config.held_out),
            "left_out": sorted(forbidden),
            "tasks": {
                s.name: {
                    "cluster": s.cluster,
                    "demonstrations": used[s.name],
                    "templates": s.templates,
                }
                for s in sources
            },
        },
    )
    if overlaps := counts["overlapping"]:
        out.warn(f"{overlaps:,} examples are left out: they share text with held-out ones")
    if empty := counts["without prompt or completion"]:
        out.warn(f"{empty:,} rows of files are left out: they have no prompt or no completion")
    return {
        "demonstrations": float(len(rows)),
        "validation": float(len(validation)),
        "tasks": float(len(sources)),
        "clusters": float(len({source.cluster for source in sources})),
        "templates": float(sum(len(source.templates) for source in sources)),
        "held_out_tasks": float(len(measured)),
        **{name.replace(" ", "_"): float(count) for name, count in counts.items()},
    }


def divided_templates(
    task: InstructionTask, kept_back: int, most: int, seed: int
) -> tuple[list[int], list[int]]:
    """(numbers of the templates that are learnt, of those kept back), by the seed.

    Those kept back ask for the answer, so that their options can be ranked; one such is learnt.
    A lower ``most`` takes the first of those that a higher one takes.
    """
    chance = random.Random(derive_seed(seed, "templates", task.name))
    straight = [n for n, template in enumerate(task.templates) if not template.turned]
    chance.shuffle(straight)
    back = straight[: min(kept_back, max(0, len(straight) - 1))]
    rest = [n for n in range(len(task.templates)) if n not in back]
    first = next((n for n in straight if n not in back), None)
    chance.shuffle(rest)
    if first is not None:
        rest.remove(first)
        rest.insert(0, first)
    return rest[:most] if most else rest, sorted(back)


def _of_task(texts: TaskTexts, config: FlanConfig, seed: int) -> Source:
    """A labelled task in the templates that are learnt."""
    task = texts.task
    learnt, _ = divided_templates(task, config.kept_back, config.templates, seed)

    templates = [(number, task.templates[number]) for number in learnt]

    def ways(example: LabelledExample) -> list[Written]:
        return [
            (f"template {n}", fill(each, example, texts.labels, options=config.options))
            for n, each in templates
            if each.fits(example)
        ]

    def usable(examples: Sequence[LabelledExample], most: int) -> list[Learnt]:
        fitting = [e for e in examples if any(each.fits(e) for _, each in templates)]
        chance = random.Random(derive_seed(seed, "examples", task.name))
        return [
            Learnt("\n".join((*e.fields.values(), *e.options, e.answer)), partial(ways, e))
            for e in chance.sample(fitting, min(len(fitting), most))
        ]

    return Source(
        task.name,
        task.cluster,
        [f"template {number}" for number in learnt],
        usable(texts.train, config.most_examples),
        usable(texts.validation, config.validation_examples),
    )


def _of_files(
    config: FlanConfig,
    read: Sequence[TaskTexts],
    forbidden: Collection[str],
    counts: Counter[str],
    out: StageFolder,
) -> Iterator[Source]:
    """The data sets of files of written instructions, without those of clusters left out."""
    clusters = {texts.task.name: texts.task.cluster for texts in read}
    found: dict[str, tuple[str, dict[str, list[Instruction]]]] = {}
    for path in config.prompted_files():
        for each in read_prompted(path, counts):
            if {each.cluster, clusters.get(each.task)} & set(forbidden):
                counts["of clusters left out"] += 1
                continue
            if each.task in clusters:
                raise UserError(
                    f"{path}: the data set {each.task} has the name of a task",
                    "call it otherwise (task in its rows), or leave the task out: flan.tasks",
                )
            _, templates = found.setdefault(each.task, (each.cluster, {}))
            templates.setdefault(each.template, []).append(each.instruction)
    for name, (cluster, templates) in found.items():
        chance = random.Random(derive_seed(out.seed, "examples", name))
        names = sorted(templates)
        chance.shuffle(names)
        names = names[: config.templates or len(names)]
        pairs = [(template, each) for template in names for each in templates[template]]
        chance.shuffle(pairs)
        examples = [
            Learnt(f"{pair[1].prompt}\n{pair[1].completion}", partial(list, [pair]))
            for pair in pairs[: config.most_examples]
        ]
        held = min(config.validation_examples, len(examples) // 10)
        yield Source(name, cluster, names, examples[held:], examples[:held])


def drawn_clusters(sources: list[Source], count: int, seed: int) -> list[Source]:
    """The sources of so many clusters, drawn by the seed; a higher count adds to a lower one's."""
    names = sorted({source.cluster for source in sources})
    random.Random(derive_seed(seed, "clusters")).shuffle(names)
    return [source for source in sources if source.cluster in names[: count or len(names)]]


def without_overlap(
    sources: Sequence[Source], held: Sequence[str], counts: Counter[str]
) -> list[Source]:
    """The sources without examples that share `SHORTEST` words in a row with a held-out text.

    Args:
        held: the texts of held-out examples; of a shorter one, all its words are looked for if it
            has half as many.
    """
    runs: set[tuple[str, ...]] = set()
    for text in held:
        words = normal_words(text)
        if len(words) >= SHORTEST // 2:
            runs.update(word_runs(words, SHORTEST))
    lengths = sorted({len(run) for run in runs})

    def overlaps(example: Learnt) -> bool:
        words = normal_words(example.text)
        return any(run in runs for length in lengths for run in word_runs(words, length))

    clean: list[Source] = []
    for source in sources:
        train = [each for each in source.train if not overlaps(each)]
        validation = [each for each in source.validation if not overlaps(each)]
        counts["overlapping"] += len(source.train) - len(train)
        if train:
            clean.append(replace(source, train=train, validation=validation))
    return clean


def demonstrations(
    sources: Sequence[Source], config: FlanConfig, chance: random.Random
) -> Iterator[Conversation]:
    """Demonstrations of the mixture in random order, each in a random template of its task.

    A task of which more are wanted than it has is gone through again, in other templates.
    """
    sizes = {source.name: len(source.train) for source in sources}
    wanted = mixing_counts(sizes, config.mixing_limit, config.examples)
    found: list[Conversation] = []
    for source in sources:
        for number in range(wanted.get(source.name, 0)):
            ways = source.train[number % len(source.train)].ways()
            found.append(as_conversation(source.name, number, chance.choice(ways)))
    chance.shuffle(found)
    yield from found


def as_conversation(task: str, number: int, written: Written) -> Conversation:
    """The demonstration of an example that is written out."""
    template, instruction = written
    messages = [
        {"role": "user", "content": instruction.prompt},
        {"role": "assistant", "content": instruction.completion},
    ]
    return Conversation(f"{task}/{template}/{number}", messages)


def _write_measured(
    config: FlanConfig,
    trained: Sequence[TaskTexts],
    held_out: Sequence[TaskTexts],
    out: StageFolder,
) -> Counter[str]:
    """Files of what is measured; returns how many items of each way."""
    counts = Counter[str]()

    def write(way: str, texts: TaskTexts, numbers: Sequence[int]) -> None:
        templates = [(n, texts.task.templates[n]) for n in numbers]
        usable = [(n, each) for n, each in templates if not each.turned]
        rows = list(measured_rows(texts, usable, config, out.seed))
        if rows:
            write_jsonl(out / "measured" / way / f"{texts.task.name}.jsonl", rows)
            counts[f"measured {way}"] += len(rows)

    for texts in trained:
        learnt, back = divided_templates(texts.task, config.kept_back, config.templates, out.seed)
        write(SEEN, texts, learnt)
        write(OTHER_PHRASING, texts, back)
    for texts in held_out:
        every = range(len(texts.task.templates))
        write(UNSEEN, texts, every)
        write(IN_CONTEXT, texts, [n for n in every if not texts.task.templates[n].turned][:1])
    return counts


def measured_rows(
    texts: TaskTexts,
    templates: Sequence[tuple[int, Template]],
    config: FlanConfig,
    seed: int,
) -> Iterator[dict[str, object]]:
    """Test examples with options, drawn by the seed, the templates in turn."""
    choosable = [example for example in texts.test if example.options]
    if not templates or not choosable:
        return
    chance = random.Random(derive_seed(seed, "measured", texts.task.name))
    drawn = chance.sample(choosable, min(len(choosable), config.test_examples))
    for place, example in enumerate(drawn):
        number, template = templates[place % len(templates)]
        instruction = fill(template, example, texts.labels, options=config.options)
        yield {
            "query": instruction.prompt,
            "choices": list(instruction.options),
            "gold": instruction.gold,
            "template": number,
            "cluster": texts.task.cluster,
        }
