"""Texts that a task's templates make of an item, or one message that names task and item."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks import text_worker
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.python_task import PythonTask
from lmsmith.evaluation.tasks.spec import GAP, TaskSpec
from lmsmith.evaluation.tasks.templates import Result, Source, TaskTextError, evaluate
from lmsmith.evaluation.tasks.text_worker import no_text


def sources(task: TaskSpec) -> list[Source]:
    """The templates and expressions by which items are written, as shots or as questions."""
    prompt = task.prompt
    texts = [prompt.context, prompt.target, *prompt.pattern.split(GAP)]
    expressions = [prompt.contexts, prompt.choices, prompt.gold, prompt.label, prompt.answers]
    return [
        *template_sources(*texts),
        *((each, True) for each in dict.fromkeys(expressions) if each),
    ]


def template_sources(*templates: str) -> list[Source]:
    return [(each, False) for each in dict.fromkeys(templates) if each]


def _result(task: TaskSpec, source: Source, item: Item) -> Result:
    """The result of a template; Python code's is evaluated here, since it may use any values."""
    if (result := item.written.get(source)) is None:
        if isinstance(task, PythonTask):
            result = text_worker.evaluate(*source, item.fields)
        else:
            result = evaluate(source, item.fields)
        item.written[source] = result
    return result


def rendered(task: TaskSpec, key: str, text: str, item: Item) -> str:
    result = _result(task, (text, False), item)
    if "unfit" in result:
        raise _no_text_error(task, key, item, result, result["error"])
    if "error" in result:
        raise _prompt_error(task, key, item, result["error"])
    return str(result["value"])


def evaluated(task: TaskSpec, key: str, text: str, item: Item) -> Any:
    result = _result(task, (text, True), item)
    if "error" in result:
        raise _prompt_error(task, key, item, result["error"])
    return result["value"]


def refused(task: TaskSpec, key: str, item: Item, problem: object, fix: str) -> UserError:
    of = f", {key if '.' in key else f'prompt.{key}'}" if key else ""
    return UserError(f"{task.where}{of}, {item.where}: {problem}", fix)


def _prompt_error(task: TaskSpec, key: str, item: Item, error: str) -> UserError:
    has = ", ".join(item.fields) or "nothing"
    fix = f"give every row what the template names, or change it; this one has {has}"
    if error.startswith(("the template ", "the expression ")):  # reached a limit
        fix = "change it, or leave the row out"
    return refused(task, key, item, error, fix)


def _no_text_error(task: TaskSpec, key: str, item: Item, result: Result, said: str) -> UserError:
    """Names the fields of a template that are no texts; ``said`` if all are."""
    unfit = [f"{name!r} is {what}" for name, what in result["unfit"]]
    fix = "give it a text, or leave the row out"
    listed = any(what == "a list" for _, what in result["unfit"])
    if listed and key == "target" and task.kind == "free_form":
        fix += f'; for several right answers set prompt.answers = "{result["unfit"][0][0]}"'
    return refused(task, key, item, ", ".join(unfit) or said, fix)


def listed(task: TaskSpec, key: str, expression: str, item: Item) -> list[str]:
    """The texts of an expression that gives a list of them, or of lists."""
    found = evaluated(task, key, expression, item)
    if not isinstance(found, list):
        given = f"it gives {no_text(found) or repr(found)}"
        raise refused(task, key, item, given, "it must give a list")
    return [str(each) for each in flat(task, key, expression, item, found)]


def flat(task: TaskSpec, key: str, expression: str, item: Item, value: Any) -> Iterator[Any]:
    """The values of nested lists, each one that can be written."""
    if isinstance(value, list):
        for each in value:
            yield from flat(task, key, expression, item, each)
    elif what := no_text(value):
        result = _result(task, (expression, True), item)
        raise _no_text_error(task, key, item, result, f"a value is {what}")
    else:
        yield value


@contextlib.contextmanager
def naming_the_task(task: TaskSpec) -> Iterator[None]:
    """An error of a regular expression or template inside names its task."""
    try:
        yield
    except TaskTextError as error:
        raise UserError(f"{task.where}, {error.problem}", error.fix) from error
