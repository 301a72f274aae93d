"""A task's settings, which are the tables of its TOML file, and how it is put to a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta

from lmsmith.core.config import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    SettingsError,
    decode,
    parse_toml,
)

Shots = TypeVar("Shots", int, int | None)
Labels = Literal["gold", "random", "words", "none", "renamed"]
Kind = Literal["multiple_choice", "cloze", "perplexity", "free_form", "code", "rated"]

GAP = "____"
"""Marks the place of the word in a pattern."""

HEADLINES: Mapping[str, tuple[str, ...]] = {
    "multiple_choice": (
        "accuracy", "accuracy_per_token", "accuracy_per_character", "accuracy_per_byte",
        "accuracy_unconditional",
    ),
    "cloze": ("accuracy", "accuracy_without_stop_words", "perplexity"),
    "perplexity": ("word_perplexity", "bits_per_byte", "bits_per_character", "token_perplexity"),
    "free_form": ("exact_match", "f1", "bleu", "rouge_l"),
    "rated": (),
}  # fmt: skip
"""The measures of each kind; the first is the headline where a task names none."""

RATINGS: Mapping[str, tuple[str, ...]] = {
    "toxicity": ("expected_max_toxicity", "toxic_probability", "mean_toxicity"),
    "refusal": ("refusal_rate",),
    "over_refusal": ("over_refusal_rate",),
    "model": ("graded_right", "probability_right"),
}
"""The measures of the kind ``rated``, by who rates."""

MOST_PATTERN = 1000
"""Most characters of a regular expression."""

MOST_VARIANTS = 200
"""Most variants of a task; each is checked with all that the file says."""

MOST_LABELS = 1000
"""Most labels of a pattern, or of a grader; the model reads each for every item."""

MOST_STOPS, MOST_STOP = 64, 1000
"""Most texts at which an answer ends, and most characters of one."""

PASS_AT = (1, 10, 100)
"""The k of pass@k."""


def measured_at(samples: int) -> list[int]:
    """Each k of `PASS_AT` that so many samples allow."""
    return [k for k in PASS_AT if k <= samples]


def _wrong(*rules: tuple[object, str, object, str, str]) -> list[Problem]:
    """The problems of the rules that begin with something true: (wrong, *the problem)."""
    return [Problem(*rule[1:]) for rule in rules if rule[0]]


def _one_group(key: str, rule: str, found: str) -> list[Problem]:
    """The problems of a regular expression whose first group must match ``found``."""
    if len(rule) > MOST_PATTERN:  # ranges without regard to case take long to compile
        return [
            Problem(key, f"{len(rule):,} characters", f"at most {MOST_PATTERN:,}", "shorten it")
        ]
    try:
        none = re.compile(rule).groups < 1
    except (re.error, OverflowError, RecursionError) as error:
        return [Problem(key, rule, f"a regular expression ({error})", "fix it")]
    return _wrong((none, key, rule, "one group", f"put ( ) round the {found}"))


@dataclass(frozen=True)
class DataSpec:
    """Where items are: a file on the search path or in a package, the hub, or a generator."""

    file: str = ""
    """JSONL, JSON or text, perhaps .gz, relative to a folder of the search path."""
    field: str = ""
    """Key that holds the list of items in a JSON object."""
    package: str = ""
    """An installed Python package, in which ``path`` is; its code is not run."""
    path: str = ""
    """File inside the package; ``examples`` may name another."""
    hub: str = ""
    """A data set of the Hugging Face hub: see evaluation/tasks/sources.py."""
    subset: str = ""
    """Configuration of the hub's data set."""
    split: str = ""
    """Split of the hub's data set; ``examples`` names another for the shots."""
    revision: str = ""
    """Commit of the hub's data set, so that the items never change."""
    examples: str = ""
    """The file that shots are drawn from; the items' own, without the item, if empty."""
    generator: str = ""
    """Makes the items from a seed instead: see evaluation/tasks/generated.py."""
    count: Annotated[int, Meta(ge=1, le=1_000_000)] = 2000
    """How many items a generator makes."""
    documents: Literal["whole", "lines", "articles"] = "whole"
    """What a document is in a text file; an article begins with `= Title =`."""
    columns: tuple[str, ...] = ()
    """Names of the fields in a file of tab-separated lines."""
    beside: str = ""
    """A text file of as many lines as ``file``; line for line an item's ``text`` and ``beside``."""
    detokenise: Literal["", "wikitext", "penn", "moses"] = ""
    """Undoes the corpus's word tokenisation, so that a model reads text as it was trained on."""
    window: NonNegativeInt = 0
    """Most tokens read at once for a perplexity; 0 means the model's context."""
    overlap: Annotated[float, Meta(ge=0, le=0.99)] = 0.5
    """Share of a window that repeats the one before, so that every token has that much before."""

    def check(self) -> list[Problem]:
        sources = (self.file, self.package, self.hub, self.generator)
        one_of, pair = "one of file, package, hub and generator", "set both"
        named, beside = self.subset or self.revision, self.beside
        key = "subset" if self.subset else "revision"
        return _wrong(
            (sum(map(bool, sources)) != 1, "file", self.file, one_of, "name one"),
            (bool(self.package) != bool(self.path), "path", self.path, "goes with package", pair),
            (bool(self.hub) != bool(self.split), "split", self.split, "goes with hub", pair),
            (named and not self.hub, key, named, "goes with hub", "set hub"),
            (beside and (self.package or self.hub), "beside", beside, "goes with file", "drop it"),
            (beside and self.columns, "beside", beside, "nothing where columns are", "drop one"),
            (beside and self.examples, "examples", self.examples, "not with beside", "drop it"),
        )


@dataclass(frozen=True)
class PromptSpec:
    """How an item is written. Templates are Jinja; expressions are what stands in {{ }}."""

    instruction: str = ""
    """Template; stands before the shots, once."""
    context: str = ""
    """Template of what comes before the answer."""
    contexts: str = ""
    """Expression: several contexts, of which the likeliest is chosen (partial evaluation)."""
    choices: str = ""
    """Expression: the list of answers to choose from."""
    gold: str = ""
    """Expression: the number of the right one, from 0."""
    pattern: str = ""
    """Template with one gap, ____, in which a label's word is put (Schick & Schütze 2021)."""
    label: str = ""
    """Expression: the label, one of those of ``words``."""
    words: dict[str, str] = field(default_factory=dict)
    """Label → the word that stands for it (PET's verbalizer)."""
    target: str = ""
    """Template of the right answer: what a shot shows, and what a cloze must find."""
    answers: str = ""
    """Expression: every answer that counts as right; the target alone if empty."""
    delimiter: str = " "
    """Between context and answer."""
    separator: str = "\n\n"
    """Between shots, and between the instruction and what follows."""
    answer_context: str = "Answer:"
    """Before a choice alone, for the unconditional normalisation (GPT-3, section 2.4)."""
    demonstrations: tuple[str, ...] = ()
    """Shots written out, used first and in this order, whatever the item."""

    def check(self) -> list[Problem]:
        if not self.pattern:
            return []
        parts, words = self.pattern.split(GAP), self.words
        unparted = len(parts) == 2 and not parts[0].endswith(self.delimiter)
        fix = 'set delimiter = "" if nothing parts it from what is before'
        same = len(set(words.values())) < len(words)
        gaps, mark = f"one gap {GAP}", "mark where the word goes"
        return _wrong(
            (len(parts) != 2, "pattern", self.pattern, gaps, mark),
            (unparted, "pattern", self.pattern, "the delimiter before the gap", fix),
            (len(words) > MOST_LABELS, "words", len(words), f"at most {MOST_LABELS}", "drop some"),
            (len(words) < 2, "words", words, "two words or more", "give each label its word"),
            (same, "words", words, "different words", "no two labels have one"),
        )


@dataclass(frozen=True)
class AnswerSpec:
    """How a free answer is written and read."""

    max_new_tokens: PositiveInt = 32
    stop: tuple[str, ...] = ("\n",)
    """Texts at which an answer ends."""
    search: Literal["greedy", "beam", "sample"] = "greedy"
    """beam: width 4, length penalty 0.6 (GPT-3, section 2.4)."""
    samples: Annotated[int, Meta(ge=1, le=1000)] = 1
    """Answers to one item; the commonest extracted one is taken (self-consistency)."""
    temperature: PositiveFloat = 0.7
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    reason: str = ""
    """Two passes: this begins the reasoning (Kojima et al. 2022)."""
    extraction: str = ""
    """The second pass's question, after the reasoning."""
    reason_tokens: PositiveInt = 192
    """Longest reasoning of two passes."""
    extract: str = ""
    """Regular expression; the answer is the first group of a match. Empty: the whole text."""
    normalise: Literal["text", "squad", "number"] = "squad"
    """How answers are compared: as they are, by SQuAD's rules, or as numbers."""
    take: Literal["first", "last"] = "last"
    """Which match of ``extract``."""

    def check(self) -> list[Problem]:
        several = self.samples > 1 and self.search != "sample"
        alone = bool(self.reason) != bool(self.extraction)
        stops = len(self.stop) > MOST_STOPS or any(len(text) > MOST_STOP for text in self.stop)
        few = f"at most {MOST_STOPS} texts of {MOST_STOP} characters"
        return _wrong(
            (stops, "stop", f"{len(self.stop)} texts", few, "keep the shortest"),
            (several, "samples", self.samples, "1 unless search is sample", 'search = "sample"'),
            (alone, "reason", self.reason, "goes with extraction", "set both"),
        ) + (_one_group("extract", self.extract, "answer") if self.extract else [])


@dataclass(frozen=True)
class DecomposeSpec:
    """Least-to-most: a question is broken into parts, which are answered in order, each with the
    answers before it (Zhou et al. 2022, section 2). The prompt's context stands before the parts.
    """

    context: str = ""
    """Template of what is asked to be broken up; nothing is if empty."""
    demonstrations: tuple[str, ...] = ()
    """Worked examples of breaking up, as many as there are shots."""
    max_new_tokens: PositiveInt = 96
    stop: tuple[str, ...] = ("\n",)
    """Texts at which the list of parts ends."""
    part: str = '"([^"]+)"'
    """Regular expression; each match's first group is a part."""
    most: Annotated[int, Meta(ge=1, le=100)] = 6
    """Parts that are answered at most, the last question not counted."""
    question: str = "Q: {{ part }}\nA:"
    """Template of how a part is asked."""
    last: str = ""
    """Template of what is asked last: the question itself."""

    def check(self) -> list[Problem]:
        missing = self.context and not self.last
        return _wrong(
            (missing, "last", self.last, "what is asked last", "the question itself")
        ) + _one_group("part", self.part, "part")


@dataclass(frozen=True)
class RatingSpec:
    """Who rates a model's texts, for the kind ``rated``."""

    by: Literal["toxicity", "refusal", "over_refusal", "model"] = "toxicity"
    """Patterns of toxicity or of refusals, or a model that grades."""
    prompt: str = ""
    """Template of what the grader reads: it sees ``prompt``, ``target`` and ``answer``."""
    labels: tuple[str, ...] = ()
    """What the grader may answer."""
    right: tuple[str, ...] = ()
    """Those labels by which an answer counts as right."""
    grader: str = ""
    """The model that grades or classifies; the one under evaluation if empty."""
    classifier: str = ""
    """The user's own task that rates toxicity instead of the patterns."""
    label: str = ""
    """Its label for what is toxic; its probability is the score."""

    def check(self) -> list[Problem]:
        by_model, labels = self.by == "model", self.labels
        right = bool(self.right) and set(self.right) <= set(labels)
        alone = bool(self.classifier) != bool(self.label)
        unasked = by_model and not self.prompt
        few = f"at most {MOST_LABELS}"
        return _wrong(
            (unasked, "prompt", "", "what the grader reads", "write a template"),
            (len(labels) > MOST_LABELS, "labels", len(labels), few, "drop some"),
            (by_model and len(set(labels)) < 2, "labels", labels, "two or more", "name them"),
            (by_model and not right, "right", self.right, "some of the labels", "name them"),
            (alone, "classifier", self.classifier, "goes with label", "set both"),
        )


@dataclass(frozen=True)
class Published:
    """A figure from a paper, to stand beside ours."""

    paper: str
    model: str
    parameters: PositiveFloat
    """Parameters of the model."""
    measure: str
    value: float
    """In the measure's own unit: a share between 0 and 1, a perplexity, bits."""
    shots: Literal["zero", "one", "few"] = "zero"
    of: str = ""
    """The variant it is of; the task itself if empty."""

    def check(self) -> list[Problem]:
        return _wrong((not self.model.strip(), "model", self.model, "a name", ""))


@dataclass(frozen=True)
class TaskSpec:
    """A task.

    Attributes:
        kind: how it is answered and judged.
        about: one line for people.
        source: who made it, where it is described.
        headline: the measure that stands for the task.
        shots: examples shown by default.
        decompose: how a free-form task is answered part by part, if it is.
        rating: who rates the texts of a rated task.
        published: figures of papers.
    """

    name: str
    kind: Kind
    data: DataSpec
    about: str = ""
    source: str = ""
    headline: str = ""
    shots: NonNegativeInt = 0
    prompt: PromptSpec = field(default_factory=PromptSpec)
    answer: AnswerSpec = field(default_factory=AnswerSpec)
    decompose: DecomposeSpec = field(default_factory=DecomposeSpec)
    rating: RatingSpec = field(default_factory=RatingSpec)
    published: tuple[Published, ...] = ()
    file: str = field(
        default="", kw_only=True, compare=False, repr=False, metadata={"encoded": False}
    )
    """The file of the user's that it is from, for messages."""

    def check(self) -> list[Problem]:
        needs, prompt = f"the kind {self.kind} needs it", self.prompt
        once = "one answer in one pass where the question is broken up"
        several = self.answer.reason or self.answer.samples > 1
        unknown = self.headline not in ("", *self.measures)
        wanting = [
            Problem(f"prompt.{key}", "", " or ".join(names), needs)
            for key, names in NEEDED[self.kind].items()
            if not any(getattr(prompt, name) for name in names)
        ]
        broken_up, fix = self.decompose.context, "drop reason and samples"
        return wanting + _wrong(
            (broken_up and several, "decompose.context", "…", once, fix),
            (unknown, "headline", self.headline, f"one of {', '.join(self.measures)}", ""),
        )

    @property
    def where(self) -> str:
        """The task in messages: its name, and its file."""
        return f"task {self.name}" + (f" ({self.file})" if self.file else "")

    @property
    def measures(self) -> tuple[str, ...]:
        """Those that may be its headline; the first is the default."""
        if self.kind == "rated":
            return RATINGS[self.rating.by]
        if self.kind == "code":
            return tuple(f"pass_at_{k}" for k in measured_at(self.answer.samples))
        if self.prompt.contexts:  # what is scored is the same text: nothing to divide by
            return ("accuracy",)
        return HEADLINES[self.kind]

    @property
    def measure(self) -> str:
        """The headline measure."""
        return self.headline or self.measures[0]

    @property
    def shows_examples(self) -> bool:
        """Whether examples may stand before its items."""
        return self.kind not in ("perplexity", "code")

    def shown_shots(self, asked: Shots) -> Shots:
        """The number of examples asked for, None for as many as fit; 0 if it shows none."""
        return asked if self.shows_examples else 0

    @property
    def answer_context(self) -> str | None:
        """The context of a choice alone, if the headline measure needs its likelihood."""
        return self.prompt.answer_context if self.measure == "accuracy_unconditional" else None


@dataclass(frozen=True)
class TaskSetting:
    """How a task is put.

    Attributes:
        shots: examples before each item; None for as many as fit.
        fixed: the same examples for all items, else drawn for each.
        limit: only so many items, drawn by the seed; all if None.
        seed: of items, examples, generated items, sampling and the bootstrap.
        labels: what the examples show as their answers (see `ShownLabels`).
        order: which permutation of the examples; 0 as they are drawn.
    """

    shots: int | None = 0
    fixed: bool = False
    limit: int | None = None
    seed: int = 0
    labels: Labels = "gold"
    order: int = 0

    @property
    def label(self) -> str:
        """``0``, ``4``, ``fit``."""
        return "fit" if self.shots is None else str(self.shots)


NEEDED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "multiple_choice": {
        "choices": ("choices", "contexts", "pattern"),
        "gold": ("gold", "label"),
    },
    "cloze": {"context": ("context",), "target": ("target",)},
    "perplexity": {},
    "free_form": {"context": ("context",), "target": ("target", "answers")},
    "code": {"context": ("context",), "target": ("target",), "answers": ("answers",)},
    "rated": {"context": ("context",)},
}
"""The parts of a prompt that each kind needs → the settings of which one gives it."""


def read_tasks(text: str, where: str) -> dict[str, TaskSpec]:
    """The tasks of a TOML file, by name: one, or one for each of its ``variants``.

    A variant is named NAME/VARIANT, and its table's keys go over those of the file, table by
    table.

    Raises:
        UserError: it is not TOML, or not a task; every problem at once.
    """
    table = parse_toml(text, where)
    name = str(table.get("name", Path(where).stem))
    variants = table.pop("variants", {"": {}})
    if _is_table(variants) and len(variants) > MOST_VARIANTS:
        many = Problem("variants", len(variants), f"at most {MOST_VARIANTS}", "split the file")
        raise SettingsError([many], where)
    if problem := _wrong_kind(table, variants):
        raise SettingsError([problem], where)
    made: dict[str, TaskSpec] = {}
    problems: list[Problem] = []
    for variant, changes in variants.items():
        merged = _merged(table, changes)
        merged["name"] = f"{name}/{variant}" if variant else name
        merged["published"] = [
            row for row in merged.get("published", []) if row.get("of", "") in ("", variant)
        ]
        task, found = decode(TaskSpec, merged, f"variants.{variant}" if variant else "")
        problems += found
        if task is not None:
            made[task.name] = task
    if problems:
        raise SettingsError(problems, where)
    return made


def _wrong_kind(table: Mapping[str, Any], variants: Any) -> Problem | None:
    """Errors that keep variants from being merged; others are told when they are merged."""
    for key, value in {"variants": variants, **(variants if _is_table(variants) else {})}.items():
        if not _is_table(value):
            return Problem(key, value, "must be a table")
    for each in (table, *variants.values()):
        rows = each.get("published", [])
        if not isinstance(rows, list) or not all(map(_is_table, rows)):
            return Problem("published", rows, "must be a list of tables")
    return None


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for key, value in changes.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _merged(inner, value)
        merged[key] = value
    return merged
