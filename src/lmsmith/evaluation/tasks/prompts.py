"""An item as the text a model reads: its context, its answers, and the shots before it."""

from __future__ import annotations

import functools
import html
import itertools
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.meta
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmsmith.core.errors import UserError
from lmsmith.evaluation.methods.answers import NORMALISERS
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.spec import GAP, TaskSetting, TaskSpec

if TYPE_CHECKING:
    from lmsmith.evaluation.model import EvaluatedModel

SHOWN_TEXT = 400
"""Characters of a document that its row shows."""

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


class _NoText(jinja2.TemplateError):
    """A value that a prompt cannot show."""


def _no_text(value: object, *, lists: bool = False) -> str:
    """Why a value cannot be written as a text, or a list of texts; else empty."""
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    if isinstance(value, Mapping):
        return "an object"
    if not isinstance(value, list | tuple):
        return ""
    if not lists:
        return "a list"
    return next((f"a list with {what}" for each in value if (what := _no_text(each))), "")


def _written(value: Any) -> Any:
    """The value of a template's expression; null, NaN, lists and objects are refused."""
    if what := _no_text(value):
        raise _NoText(f"a value is {what}")
    return value


_JINJA = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_written
)
_template = functools.cache(_JINJA.from_string)
_expression = functools.cache(functools.partial(_JINJA.compile_expression, undefined_to_none=False))


def _rendered(task: TaskSpec, key: str, text: str, item: Item) -> str:
    try:
        return _template(text).render(item.fields)
    except _NoText as error:
        raise _no_text_error(task, key, text, item, str(error)) from error
    except jinja2.TemplateError as error:
        raise _prompt_error(task, key, item, error) from error


def _evaluated(task: TaskSpec, key: str, text: str, item: Item) -> Any:
    try:
        value: Any = _expression(text)(**item.fields)
        for each in [value, *(value if isinstance(value, list | tuple) else ())]:
            if isinstance(each, jinja2.Undefined):
                str(each)  # a strict one says what is missing
        return value
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise _prompt_error(task, key, item, error) from error


def _refused(task: TaskSpec, key: str, item: Item, problem: object, fix: str) -> UserError:
    of = f", prompt.{key}" if key else ""
    return UserError(f"task {task.name}{of}, {item.where}: {problem}", fix)


def _prompt_error(task: TaskSpec, key: str, item: Item, error: Exception) -> UserError:
    has = ", ".join(item.fields) or "nothing"
    fix = f"give every row what the template names, or change it; this one has {has}"
    return _refused(task, key, item, error, fix)


def _no_text_error(
    task: TaskSpec, key: str, text: str, item: Item, said: str, *, lists: bool = False
) -> UserError:
    """Names the fields of a template that are no texts; ``said`` if all are."""
    named = sorted(jinja2.meta.find_undeclared_variables(_JINJA.parse(text)))
    unfit = [
        f"{name!r} is {what}"
        for name in named
        if (what := _no_text(item.fields.get(name, ""), lists=lists))
    ]
    fix = "give it a text, or leave the row out"
    listed = any(each.endswith("a list") for each in unfit)
    if listed and key == "target" and task.kind == "free_form":
        fix += f'; for several right answers set prompt.answers = "{named[0]}"'
    return _refused(task, key, item, ", ".join(unfit) or said, fix)


def _listed(task: TaskSpec, key: str, expression: str, item: Item) -> list[str]:
    """The texts of an expression that gives a list of them, or of lists."""
    found = _evaluated(task, key, expression, item)
    if isinstance(found, str | Mapping) or not isinstance(found, Sequence):
        given = f"it gives {_no_text(found) or repr(found)}"
        raise _refused(task, key, item, given, "it must give a list")
    return [str(each) for each in _flat(task, key, expression, item, found)]


def _flat(task: TaskSpec, key: str, expression: str, item: Item, value: Any) -> Iterator[Any]:
    """The values of nested lists, each one that can be written."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _flat(task, key, expression, item, each)
    elif what := _no_text(value):
        template = f"{{{{ {expression} }}}}"
        raise _no_text_error(task, key, template, item, f"a value is {what}", lists=True)
    else:
        yield value


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
    context = _rendered(task, "context", prompt.context, item)
    target = _rendered(task, "target", prompt.target, item) if prompt.target else ""
    answers: tuple[str, ...] = (target,)
    if prompt.answers:
        found = _evaluated(task, "answers", prompt.answers, item)
        values = _flat(task, "answers", prompt.answers, item, found)
        answers = tuple(text for each in values for text in _answer_texts(each) if text.strip())
        target = target or (answers[0] if answers else "")
    if task.kind == "rated" and not target:
        return Question(item.id, (context,), ("",), 0, (), plain=context)
    if not target.strip() or not any(answer.strip() for answer in answers):
        key = "answers" if prompt.answers else "target"
        fix = "give every item an answer, or leave the item out"
        raise _refused(task, key, item, "the answer is empty", fix)
    rule = task.answer.normalise
    if task.measure == "exact_match" and not any(map(NORMALISERS[rule], answers)):
        nothing = f"answer.normalise = {rule!r} leaves nothing of it"
        problem = f"nothing can equal the answer {answers[0]!r}, since {nothing}"
        fix = 'fix the answer, or compare otherwise: answer.normalise = "text"'
        raise _refused(task, "", item, problem, fix)
    return Question(item.id, (context,), (target,), 0, answers, plain=context)


def _write_document(task: TaskSpec, item: Item) -> Question:
    """The text is the only choice; the only answer is the original, by which it is counted."""
    text = item.fields.get("text")
    if not isinstance(text, str) or not text.strip():
        raise _refused(task, "", item, "no text", "give every item a text")
    original = str(item.fields.get("original", text))
    return Question(item.id, ("",), (text,), 0, (original,), plain=text[:SHOWN_TEXT])


def _write_pattern(task: TaskSpec, item: Item) -> Question:
    """The context is the text before the gap; each choice a label's word and the text after it."""
    prompt = task.prompt
    before, after = prompt.pattern.split(GAP)
    context = _rendered(task, "pattern", before, item).removesuffix(prompt.delimiter)
    rest = _rendered(task, "pattern", after, item)
    choices = tuple(word + rest for word in prompt.words.values())
    label = str(_evaluated(task, "label", prompt.label, item))
    if label not in prompt.words:
        fix = f"prompt.words has words for {', '.join(prompt.words)}"
        raise _refused(task, "", item, f"label {label!r} has no word", fix)
    gold = list(prompt.words).index(label)
    shown = f"{context}{prompt.delimiter}{GAP}{rest}"
    return Question(item.id, (context,), choices, gold, (choices[gold],), plain=shown)


def _write_choices(task: TaskSpec, item: Item) -> Question:
    prompt = task.prompt
    if prompt.pattern:
        return _write_pattern(task, item)
    if prompt.contexts:
        contexts = tuple(_listed(task, "contexts", prompt.contexts, item))
        target = _rendered(task, "target", prompt.target, item)
        choices: tuple[str, ...] = (target,) * len(contexts)
    else:
        contexts = (_rendered(task, "context", prompt.context, item),)
        choices = tuple(_listed(task, "choices", prompt.choices, item))
    if len(choices) < 2:
        count = f"{len(choices)} choice{'s' * (len(choices) != 1)}"
        raise _refused(task, "choices", item, count, "an item needs two or more")
    if any(not choice.strip() for choice in choices):
        raise _refused(task, "choices", item, "a choice is empty", "give it a text")
    said = _evaluated(task, "gold", prompt.gold, item)
    gold = _gold_number(said, choices if len(contexts) == 1 else contexts)
    if gold is None:
        raise _refused(
            task, "gold", item, f"gold is {_no_text(said) or repr(said)}",
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
    key = [seed] if fixed else [seed, id_number(item.id)]
    generator = np.random.default_rng(key)
    asked = _asked(item)
    places = _order(generator, len(pool), count + 8)
    others = (pool[n] for n in places if not _asks_the_same(pool[n], item, asked))
    return list(itertools.islice(others, count))


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
        text = _rendered(item.task, "pattern", prompt.pattern, item)
    elif prompt.contexts:
        contexts = _listed(item.task, "contexts", prompt.contexts, item)
        text = "\n".join([*sorted(contexts), _rendered(item.task, "target", prompt.target, item)])
    else:
        text = _rendered(item.task, "context", prompt.context, item)
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
    parts = [_rendered(task, "instruction", prompt.instruction, item)] if prompt.instruction else []
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
    broken_up = _rendered(task, "context", spec.context, item)
    decompose = prompt.separator.join([*spec.demonstrations[: len(asked.shots)], broken_up])
    return replace(asked, decompose=decompose, last=_rendered(task, "last", spec.last, item))


def write_part(template: str, part: str) -> str:
    """The prompt for a part of a question."""
    return _template(template).render(part=part)


def write_grading(template: str, question: Question, answer: str) -> str:
    """The text that a grader reads of an answer.

    Raises:
        UserError: the template is none, or names something else than prompt, target and answer.
    """
    target = question.answers[0] if question.answers else ""
    shown = {"prompt": question.plain, "target": target, "answer": answer.strip()}
    try:
        return _template(template).render(shown)
    except jinja2.TemplateError as error:
        fix = "it may name prompt, target and answer"
        raise UserError(f"rating.prompt: {error}", fix) from error
