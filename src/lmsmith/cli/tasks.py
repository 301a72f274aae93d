"""``lmsmith tasks``: the tasks, their prompts, and tasks of one's own."""

from __future__ import annotations

import itertools
import json as json_module
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith import api
from lmsmith.cli.output import input_lines, print_json
from lmsmith.cli.parsing import printed
from lmsmith.core.errors import UserError
from lmsmith.core.terminal import visible_json
from lmsmith.core.text import encodable_json
from lmsmith.options import Precision

if TYPE_CHECKING:
    from lmsmith.evaluation.tasks.spec import TaskSpec

BATCH = 64
"""Texts answered together."""


def list_tasks(*, json: bool = False) -> None:
    """List the tasks that come with lmsmith, your own, and the suites."""
    from lmsmith.core.config import encode
    from lmsmith.evaluation.tasks.shipped import shipped_tasks, suites, user_tasks

    own, shipped = user_tasks(), shipped_tasks()
    if json:
        tasks = {name: encode(task) for name, task in (shipped | own).items()}
        print_json({"tasks": tasks, "suites": suites()})
        return
    groups: dict[str, list[str]] = {}
    for name in {**shipped, **own}:
        groups.setdefault(name.split("/")[0], []).append(name)
    width = max(len(group) for group in groups)
    for group, names in groups.items():
        task = own.get(names[0]) or shipped[names[0]]
        mine = "yours; " if names[0] in own else ""
        parts = [name.split("/", 1)[1] for name in names if "/" in name]
        each = f": {group}/ {', '.join(parts)}" if parts else ""
        print(f"{group:<{width}}  {task.kind:<15}  {mine}{task.about}{each}")
    for name, rows in suites().items():
        print(f"--suite {name}: {', '.join(dict.fromkeys(task for task, _ in rows))}")


def show_task(
    task: str,
    *,
    shots: int | None = None,
    item: int = 0,
    fixed_shots: bool = False,
    seed: int = 0,
    data: Sequence[Path] = (),
    toml: bool = False,
    json: bool = False,
) -> None:
    """Show a task, and the exact prompt of one of its items.

    Args:
        task: A name (lmsmith tasks ls), or a .toml, .jsonl, .txt or .py file, or
            my_task.py:MyTask, my_module:MyTask. Python code that is named here is run.
        shots: Examples before the item; what the task says by default.
        item: Which item, from 0.
        fixed_shots: The same examples for all items.
        seed: Of the examples.
        data: Where the task's file is; also LMSMITH_DATA.
        toml: Print the task as a TOML file, to begin one of your own with.
    """
    from lmsmith.core.config import encode
    from lmsmith.evaluation.tasks.data import read_data, search_path
    from lmsmith.evaluation.tasks.prompts import draw_shots, with_shots
    from lmsmith.evaluation.tasks.python_task import PythonTask
    from lmsmith.evaluation.tasks.shipped import find_tasks

    found = find_tasks([task], run_python=True)[0]
    if toml:
        if isinstance(found, PythonTask):
            raise UserError(f"{task}: written in Python, so no TOML file", "leave --toml out")
        print(api.task_toml(found))
        return
    read = read_data(found, search_path(data), seed)
    if not 0 <= item < len(read.items):
        raise UserError(f"--item {item}: the task has {len(read.items)}, from 0", "name another")
    count = found.shown_shots(found.shots if shots is None else shots)
    asked = read.items[item]
    drawn = draw_shots(read.pool, asked, count, seed, fixed=fixed_shots)
    question = with_shots(found, asked, drawn)
    if json:
        print_json({"task": encode(found), "items": len(read.items), "question": vars(question)})
        return
    print(f"{found.name}: {found.about} ({found.source or 'no source named'})")
    print(f"kind {found.kind}, {len(read.items):,} items, judged by {found.measure}")
    if question.decompose:
        print("--- the prompt that asks for its parts ---")
        print(question.decompose)
    for context in question.contexts:
        fewer = f" of {count} asked for" if len(question.shots) < count else ""
        print(f"--- the prompt of item {item}, {len(question.shots)} shots{fewer} drawn ---")
        print(context)
    print("--- and what is looked for ---")
    right = found.kind == "multiple_choice"
    for number, choice in enumerate(question.choices):
        mark = "*" if right and number == question.gold else " "
        print(f"{mark} {(found.prompt.delimiter + choice)!r}")
    if found.kind in ("free_form", "code"):
        print("--- how it is answered and read ---")
        for line in answer_rules(found):
            print(line)


def answer_rules(task: TaskSpec) -> list[str]:
    """The rules by which a task's answers are written, and found in a text."""
    answer, parts = task.answer, task.decompose
    ways = {
        "greedy": "the likeliest token each time",
        "beam": "beams of width 4, length penalty 0.6",
        "sample": f"sampled at temperature {answer.temperature}, nucleus {answer.top_p}",
    }
    ends = f", up to {' or '.join(map(repr, answer.stop))}" if answer.stop else ""
    lines = []
    if parts.context:
        lines.append(f"parts: what {parts.part} matches, at most {parts.most}; each is asked so:")
        lines.append(f"  {parts.question!r}")
        lines.append("  after the prompt and the parts before it with their answers")
    if answer.reason:
        lines.append(f"first pass: the prompt and {answer.reason!r}, {answer.reason_tokens} tokens")
        lines.append(f"second pass: all that, a line feed and {answer.extraction!r}")
    lines.append(f"written: {ways[answer.search]}, at most {answer.max_new_tokens} tokens{ends}")
    if answer.samples > 1:
        vote = "; the commonest answer is taken" if task.kind == "free_form" else ""
        lines.append(f"samples: {answer.samples}{vote}")
    if task.kind == "code":
        return lines
    rule = f"the {answer.take} match of {answer.extract}" if answer.extract else "the whole text"
    compared = {
        "text": "as they are",
        "squad": "in small letters, without marks and articles (SQuAD)",
        "number": "by the first number in it, exactly",
        "bleu": "by BLEU of the whole corpus (sacrebleu, 13a, case kept)",
        "rouge_l": "by ROUGE-L (rouge-score)",
        "f1": "by the words in common, in small letters, without marks and articles (SQuAD)",
    }
    way = compared.get(task.measure, compared[answer.normalise])
    return [*lines, f"read: {rule}", f"compared: {way}"]


def _show_added(added: api.AddedTask) -> None:
    print(f"{added.task.name}: {added.examples} examples, {added.path}")
    print(f"use it: lmsmith tasks run {added.task.name} MODEL < input.jsonl")


add_task = printed(api.add_task, _show_added)


def run_task(
    name: str,
    model: str,
    *,
    input: Path | None = None,
    precision: Precision = "auto",
    threads: int = 0,
) -> None:
    """Put a task of your own to texts: JSON lines in, JSON lines out, in the same order.

    Each line read is {"input": …}, or plain text; each line printed has the input with its label
    and every label's probability, or with what was written. A fine-tuned model reads lines with
    the texts of its task, such as {"premise": …, "hypothesis": …}.

    Args:
        input: A file of lines; standard input by default.
    """
    lines = input_lines(input)
    function: Any = api.task_function(name, model, precision=precision, threads=threads)
    fields: Sequence[str] = getattr(function, "fields", ())
    blank = 0

    def texts() -> Iterator[Any]:
        nonlocal blank
        for number, line in lines:
            if line.strip():
                yield _input_of(line, number, fields)
            else:
                blank += 1

    waiting = texts()
    while batch := list(itertools.islice(waiting, BATCH)):
        for row in function(batch):
            print(visible_json(json_module.dumps(row, ensure_ascii=False)), flush=True)
    if blank:
        print(f"blank lines, which have no answer: {blank}", file=sys.stderr)
    if function.cut:
        print(
            f"texts longer than the model's context ({function.context} tokens), of which only the "
            f"end was read: {function.cut}; shorten them",
            file=sys.stderr,
        )


def _input_of(line: str, number: int, fields: Sequence[str] = ()) -> object:
    """The text of a line: a JSON object's input, or the line itself; or the object, if it has
    one of ``fields``."""
    if not line.lstrip().startswith("{"):
        return line
    try:
        row = json_module.loads(encodable_json(line))
    except ValueError as error:
        raise UserError(f"line {number}: not valid JSON ({error})", "fix it") from error
    if any(name in row for name in fields):
        return row
    if not isinstance(row.get("input"), str):
        raise UserError(f"line {number}: no text 'input'", 'write {"input": …}')
    text: str = row["input"]
    return text
