"""An item as the text a model reads: its context, its answers, and the shots before it."""

from __future__ import annotations

import html
import itertools
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lmsmith.core.errors import UserError
from lmsmith.evaluation.methods.answers import NORMALISERS
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.item_texts import (
    evaluated,
    flat,
    listed,
    refused,
    rendered,
    sources,
    template_sources,
)
from lmsmith.evaluation.tasks.python_task import PythonTask
from lmsmith.evaluation.tasks.spec import GAP, TaskSetting, TaskSpec
from lmsmith.evaluation.tasks.templates import evaluate_all, write
from lmsmith.evaluation.tasks.text_worker import no_text

if TYPE_CHECKING:
    from lmsmith.evaluation.model import EvaluatedModel

SHOWN_TEXT = 400
"""Characters of a document that its row shows."""

MOST_COMPARED = 50_000
"""Most characters of an answer that ROUGE-L is computed with: its time is their square."""

MOST_PROMPT, MOST_PROMPTS = 1 << 23, 1 << 32
"""Most characters of a question with its shots, and of all questions of a task."""

MOST_SHOTS = 128
"""Shots tried where as many as fit are asked for."""

STREAM = 0x6C61
"""Separates draws of orders and labels from the draw of shots, which has the same seed."""


@dataclass(frozen=True)
class Question:
    """An item written out.

    Attributes:
        contexts: the text before the answer; one, or one for each choice (partial evaluation).
        choices: the answers to choose from, or the target alone; one for each context if there
            are several.
        gold: the number of the right choice.
        answers: every answer that counts as right.
        shots: ids of the items shown before it.
        plain: the context without instruction and shots.
        delimiter: between context and answer.
        decompose: the prompt that asks for its parts; empty if it is answered whole.
        last: the prompt after its parts.
    """

    id: str
    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int
    answers: tuple[str, ...]
    shots: tuple[str, ...] = ()
    plain: str = ""
    delimiter: str = " "
    decompose: str = ""
    last: str = ""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(context, continuation) of each choice."""
        contexts = self.contexts * (len(self.choices) if len(self.contexts) == 1 else 1)
        return [
            (context, self.delimiter + choice)
            for context, choice in zip(contexts, self.choices, strict=True)
        ]

    @property
    def to_continue(self) -> str:
        """The text to continue: a written answer brings its own space."""
        return self.contexts[0] + self.delimiter.rstrip(" ")


def prepare(
    task: TaskSpec, setting: TaskSetting, items: Sequence[Item], pool: Sequence[Item]
) -> None:
    """Evaluate the task's templates for items and the examples they draw, many at once.

    Nothing is raised here: an item's error is raised where it is written.
    """
    if isinstance(task, PythonTask):
        return
    count = MOST_SHOTS if setting.shots is None else setting.shots
    drawn: dict[int, Item] = {}
    for item in items if count else ():
        for place in itertools.islice(
            _places(pool, item, count, setting.seed, setting.fixed), count
        ):
            drawn[place] = pool[place]
    of_shots = sources(task)
    own = [source for source in (task.prompt.instruction, task.decompose.context) if source]
    own += [task.decompose.last] if task.decompose.context else []
    for wanted, asked in (
        (of_shots, drawn.values()),
        ([*of_shots, *template_sources(*own)], items),
    ):
        new = [each for each in asked if not each.written.keys() >= set(wanted)]
        evaluate_all(wanted, [(each.fields, each.written) for each in new])


def _answer_texts(value: Any) -> tuple[str, ...]:
    """How a right answer is written: 4.0 also as 4, truth values as JSON has them."""
    if isinstance(value, bool):
        return (str(value).lower(),)
    if isinstance(value, float) and value.is_integer():
        return (str(int(value)), str(value))
    return (str(value),)


def write_question(task: TaskSpec, item: Item) -> Question:
    """The item without shots.

    A space that the delimiter brings is taken off the contexts' ends and the choices' beginnings.

    Raises:
        UserError: the item lacks a field of the task's templates; there is no gold answer, or it
            is none of the choices; an answer is empty, or one that nothing can equal.
    """
    if task.kind == "perplexity":
        return _write_document(task, item)
    question = (_write_choices if task.kind == "multiple_choice" else _write_answers)(task, item)
    delimiter = task.prompt.delimiter
    question = replace(question, delimiter=delimiter)
    if task.kind == "code" or " " not in (delimiter[:1], delimiter[-1:]):
        return question
    contexts, choices = question.contexts, question.choices
    if delimiter.startswith(" "):
        contexts = tuple(each.rstrip(" ") for each in contexts)
    if delimiter.endswith(" "):
        choices = tuple(each.lstrip(" ") for each in choices)
    return replace(question, contexts=contexts, choices=choices)


def _write_answers(task: TaskSpec, item: Item) -> Question:
    prompt = task.prompt
    context = rendered(task, "context", prompt.context, item)
    target = rendered(task, "target", prompt.target, item) if prompt.target else ""
    answers: tuple[str, ...] = (target,)
    if prompt.answers:
        found = evaluated(task, "answers", prompt.answers, item)
        values = flat(task, "answers", prompt.answers, item, found)
        answers = tuple(text for each in values for text in _answer_texts(each) if text.strip())
        target = target or (answers[0] if answers else "")
    if task.kind == "rated" and not target:
        return Question(item.id, (context,), ("",), 0, (), plain=context)
    key = "answers" if prompt.answers else "target"
    if not target.strip() or not any(answer.strip() for answer in answers):
        fix = "give every item an answer, or leave the item out"
        raise refused(task, key, item, "the answer is empty", fix)
    if task.measure == "rouge_l" and (longest := max(map(len, answers))) > MOST_COMPARED:
        problem = f"an answer of {longest:,} characters is too long for ROUGE-L"
        raise refused(task, key, item, problem, f"shorten it to {MOST_COMPARED:,}")
    rule = task.answer.normalise
    if task.measure == "exact_match" and not any(map(NORMALISERS[rule], answers)):
        nothing = f"answer.normalise = {rule!r} leaves nothing of it"
        problem = f"nothing can equal the answer {answers[0]!r}, since {nothing}"
        fix = 'fix the answer, or compare otherwise: answer.normalise = "text"'
        raise refused(task, "", item, problem, fix)
    return Question(item.id, (context,), (target,), 0, answers, plain=context)


def _write_document(task: TaskSpec, item: Item) -> Question:
    """The text is the only choice; the only answer is the original, by which it is counted."""
    text = item.fields.get("text")
    if not isinstance(text, str) or not text.strip():
        raise refused(task, "", item, "no text", "give every item a text")
    original = str(item.fields.get("original", text))
    return Question(item.id, ("",), (text,), 0, (original,), plain=text[:SHOWN_TEXT])


def _write_pattern(task: TaskSpec, item: Item) -> Question:
    """The context is the text before the gap; each choice a label's word and the text after it."""
    prompt = task.prompt
    before, after = prompt.pattern.split(GAP)
    context = rendered(task, "pattern", before, item).removesuffix(prompt.delimiter)
    rest = rendered(task, "pattern", after, item)
    choices = tuple(word + rest for word in prompt.words.values())
    label = str(evaluated(task, "label", prompt.label, item))
    if label not in prompt.words:
        fix = f"prompt.words has words for {', '.join(prompt.words)}"
        raise refused(task, "", item, f"label {label!r} has no word", fix)
    gold = list(prompt.words).index(label)
    shown = f"{context}{prompt.delimiter}{GAP}{rest}"
    return Question(item.id, (context,), choices, gold, (choices[gold],), plain=shown)


def _write_choices(task: TaskSpec, item: Item) -> Question:
    prompt = task.prompt
    if prompt.pattern:
        return _write_pattern(task, item)
    if prompt.contexts:
        contexts = tuple(listed(task, "contexts", prompt.contexts, item))
        target = rendered(task, "target", prompt.target, item)
        choices: tuple[str, ...] = (target,) * len(contexts)
    else:
        contexts = (rendered(task, "context", prompt.context, item),)
        choices = tuple(listed(task, "choices", prompt.choices, item))
    if len(choices) < 2:
        count = f"{len(choices)} choice{'s' * (len(choices) != 1)}"
        raise refused(task, "choices", item, count, "an item needs two or more")
    if any(not choice.strip() for choice in choices):
        raise refused(task, "choices", item, "a choice is empty", "give it a text")
    said = evaluated(task, "gold", prompt.gold, item)
    gold = _gold_number(said, choices if len(contexts) == 1 else contexts)
    if gold is None:
        raise refused(
            task, "gold", item, f"gold is {no_text(said) or repr(said)}",
            f"the number of the right choice, from 0 to {len(choices) - 1}, or its text or letter "
            'where these mean one choice; of a file that counts from 1: prompt.gold = "gold - 1"',
        )  # fmt: skip
    plain = contexts[0] if len(contexts) == 1 else contexts[gold]
    return Question(item.id, contexts, choices, gold, (choices[gold],), plain=plain)


def _gold_number(said: Any, choices: Sequence[str]) -> int | None:
    """The number of the right choice, said by number, text or letter; None if it is not clear."""
    if isinstance(said, float) and said.is_integer():
        said = int(said)
    if isinstance(said, int) and not isinstance(said, bool):
        return said if 0 <= said < len(choices) else None
    if not isinstance(said, str):
        return None
    text, readings = said.strip(), set()
    if text in (texts := [choice.strip() for choice in choices]):
        readings.add(texts.index(text))
    if len(text) == 1 and text.isascii() and text.isalpha():
        readings.add(ord(text.upper()) - ord("A"))
    elif text.isdecimal() and len(text) < 4:
        readings.add(int(text))
    readings = {number for number in readings if number < len(choices)}
    return readings.pop() if len(readings) == 1 else None


def write_shot(task: TaskSpec, item: Item, answer: str | None = None) -> str:
    """The item with its right answer, or with ``answer``; an empty one shows the context alone."""
    question = write_question(task, item)
    context = question.contexts[question.gold if len(question.contexts) > 1 else 0]
    shown = question.choices[question.gold] if answer is None else answer
    return f"{context}{task.prompt.delimiter}{shown}" if shown else context


def choose_shots(
    model: EvaluatedModel, task: TaskSpec, setting: TaskSetting, item: Item, pool: Sequence[Item]
) -> list[Item]:
    """An item's examples: drawn, put in the setting's order, and as many as fit if it says so.

    Raises:
        UserError: the pool has fewer that ask something else.
    """
    wanted = MOST_SHOTS if setting.shots is None else setting.shots
    drawn = draw_shots(pool, item, wanted, setting.seed, fixed=setting.fixed) if wanted else []
    if setting.shots is not None and len(drawn) < wanted:
        raise UserError(
            f"task {task.name}, {item.where}: {wanted} shots, but only {len(drawn)} of the "
            f"{len(pool)} examples ask something else",
            "ask for fewer by --shots, or name a file with more as data.examples",
        )
    if setting.order:
        drawn = [drawn[place] for place in nth_order(len(drawn), setting.order, setting.seed)]
    return drawn[: _fitting(model, task, item, drawn)] if setting.shots is None else drawn


def _fitting(model: EvaluatedModel, task: TaskSpec, item: Item, drawn: Sequence[Item]) -> int:
    """How many of the shots leave room for the item and its answer, by bisection."""
    written = task.answer.max_new_tokens if task.kind in ("free_form", "rated") else 0

    def fits(count: int) -> bool:
        question = with_shots(task, item, drawn[:count])
        longest = max(question.choices, key=len)
        texts = [context + task.prompt.delimiter + longest for context in question.contexts]
        return max(map(len, model.encode_contexts(texts))) <= model.context - written

    if fits(len(drawn)):
        return len(drawn)
    low, high = 0, max(0, len(drawn) - 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def draw_shots(
    pool: Sequence[Item], item: Item, count: int, seed: int, *, fixed: bool = False
) -> list[Item]:
    """Examples for an item: other items of the pool, without repetition.

    Never the item itself, nor one that asks the same.

    Args:
        count: how many; fewer if the pool has fewer.
        seed: of the draw; each item has its own unless ``fixed``.
        fixed: the same for all items, but for those that are among them.
    """
    asked = _asked(item)
    places = _places(pool, item, count, seed, fixed)
    others = (pool[n] for n in places if not _asks_the_same(pool[n], item, asked))
    return list(itertools.islice(others, count))


def _places(pool: Sequence[Item], item: Item, count: int, seed: int, fixed: bool) -> Iterator[int]:
    """The pool's places in the order in which an item draws from them."""
    key = [seed] if fixed else [seed, id_number(item.id)]
    return _order(np.random.default_rng(key), len(pool), count + 8)


def id_number(name: str) -> int:
    """An item's id as a seed."""
    return int.from_bytes(name.encode(), "little") % 2**63


def _order(generator: np.random.Generator, size: int, count: int) -> Iterator[int]:
    """All places in a random order; most often the first ``count`` are enough."""
    chosen: list[int] = generator.choice(size, min(size, count), replace=False).tolist()
    yield from chosen
    seen = set(chosen)
    yield from (place for place in generator.permutation(size).tolist() if place not in seen)


def nth_order(count: int, number: int, seed: int) -> tuple[int, ...]:
    """The order number ``number`` of ``count`` shots: 0 as they are, the others at random.

    Orders of different numbers differ; which one a number means depends on nothing else.

    Raises:
        ValueError: there are not so many orders.
    """
    order = as_they_are = tuple(range(count))
    if number >= math.factorial(count):
        raise ValueError(f"order {number} of {count} shots, which have {math.factorial(count)}")
    generator = np.random.default_rng([seed, STREAM, count])
    seen = {as_they_are}
    while len(seen) <= number:
        order = tuple(int(place) for place in generator.permutation(count))
        seen.add(order)
    return order if number else as_they_are


def _asked(item: Item) -> str:
    """The question as its prompt writes it, without what people overlook (`_folded`)."""
    if item.task is None:
        return ""
    prompt = item.task.prompt
    if prompt.pattern:
        text = rendered(item.task, "pattern", prompt.pattern, item)
    elif prompt.contexts:
        contexts = listed(item.task, "contexts", prompt.contexts, item)
        text = "\n".join([*sorted(contexts), rendered(item.task, "target", prompt.target, item)])
    else:
        text = rendered(item.task, "context", prompt.context, item)
    return _folded(text)


_DASHES = re.compile("[\u2010-\u2015\u2212]")
_SENTENCE_MARKS = re.compile(
    "(?!(?<=\\d)[.,:](?=\\d))[.,;:!?\"'`\u00a1\u00bf\u3001\u3002\u2018-\u201f\u00ab\u00bb\u300c-\u300f]"
)
"""Marks that one sentence is written with or without; brackets and signs of sums say something."""


def _folded(text: str) -> str:
    """A text without case, white space, characters that do not show, and marks of sentences."""
    folded = unicodedata.normalize("NFKC", html.unescape(text)).casefold()
    shown = "".join(folded.split())
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(c for c in shown if not _is_hidden(c))
    shown = _DASHES.sub("-", shown)
    return _SENTENCE_MARKS.sub("", shown) or shown


def _is_hidden(character: str) -> bool:
    """Whether it is a control, has no width, or only says how the one before it looks."""
    return unicodedata.category(character) in ("Cc", "Cf") or "\ufe00" <= character <= "\ufe0f"


def _asks_the_same(other: Item, item: Item, asked: str) -> bool:
    """Whether two items are one question, so that one would tell the other's answer.

    With choices of their own they are if these are the same, or the right one is.
    """
    if item.task is None or other.task is None:
        return other.fields == item.fields
    if _asked(other) != asked:
        return False
    if not item.task.prompt.choices:
        return True
    one, two = (write_question(each.task or item.task, each) for each in (item, other))
    choices = [{_folded(choice) for choice in each.choices} for each in (one, two)]
    golds = [_folded(each.choices[each.gold]) for each in (one, two)]
    return choices[0] == choices[1] or golds[0] == golds[1]


def with_shots(
    task: TaskSpec, item: Item, shots: Sequence[Item], answers: Sequence[str | None] = ()
) -> Question:
    """The item with its instruction and examples before it.

    Demonstrations that the task writes out stand in place of the last ones drawn: a task with
    eight of them and four shots shows its first four.

    Args:
        answers: of the shots, in place of the right ones (see `write_shot`).
    """
    question = write_question(task, item)
    prompt = task.prompt
    written = list(prompt.demonstrations[: len(shots)])
    shown = shots[: len(shots) - len(written)]
    parts = [rendered(task, "instruction", prompt.instruction, item)] if prompt.instruction else []
    said = answers or [None] * len(shown)
    parts += [*written, *(write_shot(task, *each) for each in zip(shown, said, strict=False))]
    before = "".join(part + prompt.separator for part in parts)
    asked = replace(
        question,
        contexts=tuple(before + context for context in question.contexts),
        shots=(*(f"demonstration {n + 1}" for n in range(len(written))), *(s.id for s in shown)),
    )
    spec = task.decompose
    if not spec.context:
        return asked
    broken_up = rendered(task, "decompose.context", spec.context, item)
    decompose = prompt.separator.join([*spec.demonstrations[: len(asked.shots)], broken_up])
    return replace(
        asked, decompose=decompose, last=rendered(task, "decompose.last", spec.last, item)
    )


class PromptSizes:
    """Counts the characters of a task's questions, so that they do not fill the memory."""

    def __init__(self, task: TaskSpec) -> None:
        self._task, self._total = task, 0

    def add(self, item: Item, question: Question) -> None:
        """Raises UserError if the question, or all of them so far, are too long."""
        if self._task.kind == "perplexity":  # its documents are in memory anyway
            return
        size = sum(map(len, (*question.contexts, *question.choices)))
        self._total += size
        if size > MOST_PROMPT or self._total > MOST_PROMPTS:
            of = "this prompt has" if size > MOST_PROMPT else "the prompts so far have"
            problem = f"{of} {max(size, self._total):,} characters"
            raise refused(self._task, "", item, problem, "use fewer shots, or --limit")


def write_part(template: str, part: str) -> str:
    """The prompt for a part of a question.

    Raises:
        UserError: the template is none, or reaches a limit.
    """
    return write(template, {"part": part}, "decompose.question")


def write_grading(template: str, question: Question, answer: str) -> str:
    """The text that a grader reads of an answer.

    Raises:
        UserError: the template is none, names something else than prompt, target and answer, or
            reaches a limit.
    """
    target = question.answers[0] if question.answers else ""
    shown = {"prompt": question.plain, "target": target, "answer": answer.strip()}
    return write(template, shown, "rating.prompt")
