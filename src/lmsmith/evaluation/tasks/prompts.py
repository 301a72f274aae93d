"""An item as the text a model reads: its context, its answers, and the shots before it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.spec import GAP, TaskSpec

SHOWN_TEXT = 400
"""Characters of a document that its row shows."""


@dataclass(frozen=True)
class Question:
    """An item written out.

    Attributes:
        id: the item's.
        contexts: what comes before the answer; one, or one for each choice (partial evaluation).
        choices: the answers to choose from, or the target alone; one for each context where
            there are several.
        gold: the number of the right choice.
        answers: every answer that counts as right.
        shots: ids of the items shown before it.
        plain: the context without instruction and shots.
        decompose: the prompt that asks for its parts; empty if it is answered whole.
        last: what is asked after its parts.
    """

    id: str
    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int
    answers: tuple[str, ...]
    shots: tuple[str, ...] = ()
    plain: str = ""
    decompose: str = ""
    last: str = ""


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )


@functools.cache
def _template(text: str) -> jinja2.Template:
    return _environment().from_string(text)


@functools.cache
def _expression(text: str) -> Any:
    return _environment().compile_expression(text, undefined_to_none=False)


def _rendered(task: TaskSpec, key: str, text: str, item: Item) -> str:
    try:
        return _template(text).render(item.fields)
    except jinja2.TemplateError as error:
        raise _prompt_error(task, key, item, error) from error


def _evaluated(task: TaskSpec, key: str, text: str, item: Item) -> Any:
    try:
        value = _expression(text)(**item.fields)
        if isinstance(value, jinja2.Undefined):
            str(value)  # a strict one says what is missing
        return value
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise _prompt_error(task, key, item, error) from error


def _prompt_error(task: TaskSpec, key: str, item: Item, error: Exception) -> UserError:
    has = ", ".join(item.fields) or "nothing"
    return UserError(
        f"task {task.name}, prompt.{key}, {item.where}: {error}",
        f"the item has {has}",
    )


def write_question(task: TaskSpec, item: Item) -> Question:
    """The item without shots.

    Raises:
        UserError: the item lacks what the task's templates name; there is no gold answer, or it
            is none of the choices; an answer is empty.
    """
    prompt = task.prompt
    if task.kind == "multiple_choice":
        return _write_choices(task, item)
    if task.kind == "perplexity":
        return _write_document(task, item)
    context = _rendered(task, "context", prompt.context, item)
    target = _rendered(task, "target", prompt.target, item) if prompt.target else ""
    answers: tuple[str, ...] = (target,)
    if prompt.answers:
        found = _evaluated(task, "answers", prompt.answers, item)
        answers = tuple(str(each) for each in ([found] if isinstance(found, str) else found))
        target = target or (answers[0] if answers else "")
    if task.kind == "rated" and not target:
        return Question(item.id, (context,), ("",), 0, (), plain=context)
    if not target.strip() or not any(answer.strip() for answer in answers):
        raise UserError(
            f"task {task.name}, {item.where}: the answer is empty",
            "give every item an answer, or leave the item out",
        )
    return Question(item.id, (context,), (target,), 0, answers, plain=context)


def _write_document(task: TaskSpec, item: Item) -> Question:
    """The text is the only choice; the only answer is the original, by which it is counted."""
    text = item.fields.get("text")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"task {task.name}, {item.where}: no text", "give every item a text")
    original = str(item.fields.get("original", text))
    return Question(item.id, ("",), (text,), 0, (original,), plain=text[:SHOWN_TEXT])


def _write_pattern(task: TaskSpec, item: Item) -> Question:
    """What is before the gap is the context; each choice is a label's word with what follows it."""
    prompt = task.prompt
    before, after = prompt.pattern.split(GAP)
    context = _rendered(task, "pattern", before, item).removesuffix(prompt.delimiter)
    rest = _rendered(task, "pattern", after, item)
    choices = tuple(word + rest for word in prompt.words.values())
    label = str(_evaluated(task, "label", prompt.label, item))
    if label not in prompt.words:
        raise UserError(
            f"task {task.name}, {item.where}: label {label!r} has no word",
            f"prompt.words has words for {', '.join(prompt.words)}",
        )
    gold = list(prompt.words).index(label)
    shown = f"{context}{prompt.delimiter}{GAP}{rest}"
    return Question(item.id, (context,), choices, gold, (choices[gold],), plain=shown)


def _write_choices(task: TaskSpec, item: Item) -> Question:
    prompt = task.prompt
    if prompt.pattern:
        return _write_pattern(task, item)
    if prompt.contexts:
        found = _evaluated(task, "contexts", prompt.contexts, item)
        contexts = tuple(str(each) for each in found)
        target = _rendered(task, "target", prompt.target, item)
        choices: tuple[str, ...] = (target,) * len(contexts)
    else:
        contexts = (_rendered(task, "context", prompt.context, item),)
        found = _evaluated(task, "choices", prompt.choices, item)
        if isinstance(found, str) or not isinstance(found, Sequence):
            raise UserError(
                f"task {task.name}, {item.where}: the choices are {type(found).__name__}",
                "prompt.choices must give a list",
            )
        choices = tuple(str(each) for each in found)
    if len(choices) < 2:
        raise UserError(
            f"task {task.name}, {item.where}: {len(choices)} choices",
            "an item needs two or more",
        )
    if any(not choice.strip() for choice in choices):
        raise UserError(f"task {task.name}, {item.where}: a choice is empty", "give it a text")
    gold = _evaluated(task, "gold", prompt.gold, item)
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise UserError(
            f"task {task.name}, {item.where}: gold is {gold!r}",
            f"the number of the right choice, from 0 to {len(choices) - 1}",
        )
    answer = choices[gold]
    plain = contexts[0] if len(contexts) == 1 else contexts[gold]
    return Question(item.id, contexts, choices, gold, (answer,), plain=plain)


def write_shot(task: TaskSpec, item: Item, answer: str | None = None) -> str:
    """The item with its right answer, as an example to go by.

    Args:
        answer: stands in the right one's place; "" for the context alone.
    """
    question = write_question(task, item)
    context = question.contexts[question.gold if len(question.contexts) > 1 else 0]
    shown = question.choices[question.gold] if answer is None else answer
    return f"{context}{task.prompt.delimiter}{shown}" if shown else context


def draw_shots(
    pool: Sequence[Item], item: Item, count: int, seed: int, *, fixed: bool = False
) -> list[Item]:
    """Examples for an item: other items of the pool, without repetition.

    Args:
        pool: what is drawn from; the item itself is never drawn, nor one with its text.
        item: whose examples they are.
        count: how many; fewer where the pool has fewer.
        seed: of the draw; each item has its own unless ``fixed``.
        fixed: the same for all items, but for those that are among them.
    """
    key = [seed] if fixed else [seed, int.from_bytes(item.id.encode(), "little") % 2**63]
    generator = np.random.default_rng(key)
    drawn: list[Item] = []
    # A few more than needed, in case the item itself is among them.
    for place in _order(generator, len(pool), count + 8):
        other = pool[place]
        if other.fields != item.fields and len(drawn) < count:
            drawn.append(other)
    return drawn


def _order(generator: np.random.Generator, size: int, count: int) -> list[int]:
    chosen: list[int] = generator.choice(size, min(size, count), replace=False).tolist()
    return chosen


def with_shots(
    task: TaskSpec, item: Item, shots: Sequence[Item], answers: Sequence[str | None] = ()
) -> Question:
    """The item with its instruction and examples before it.

    Demonstrations that the task writes out stand in place of the last ones drawn: a task with
    eight of them and four shots shows its first four.

    Args:
        answers: what the shots show in their right answers' place (see `write_shot`).
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
    return _to_be_decomposed(task, item, asked) if task.decompose.context else asked


def _to_be_decomposed(task: TaskSpec, item: Item, question: Question) -> Question:
    spec = task.decompose
    parts = [
        *spec.demonstrations[: len(question.shots)],
        _rendered(task, "context", spec.context, item),
    ]
    last = _rendered(task, "last", spec.last, item)
    return replace(question, decompose=task.prompt.separator.join(parts), last=last)


def write_part(task: TaskSpec, part: str) -> str:
    """How a part of a question is asked."""
    return _template(task.decompose.question).render(part=part)


def item_fields(question: Question) -> Mapping[str, object]:
    """What of a question is kept in an item's row."""
    return {"id": question.id, "shots": list(question.shots), "prompt": question.plain}


def write_grading(task: TaskSpec, question: Question, answer: str) -> str:
    """What a grader reads of an answer.

    Raises:
        UserError: the template is none, or names something else than prompt, target and answer.
    """
    target = question.answers[0] if question.answers else ""
    try:
        return _template(task.rating.prompt).render(
            prompt=question.plain, target=target, answer=answer.strip()
        )
    except jinja2.TemplateError as error:
        raise UserError(
            f"task {task.name}, rating.prompt: {error}", "it may name prompt, target and answer"
        ) from error
