"""``lmsmith task``: a task of your own from a description and examples, and its use."""

from __future__ import annotations

import contextlib
import json as json_module
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import tyro

from lmsmith.cli.output import print_json
from lmsmith.core.errors import UserError
from lmsmith.core.files import require_file
from lmsmith.core.recipe import MachineConfig
from lmsmith.core.text import encodable_json

if TYPE_CHECKING:
    from lmsmith.evaluation.tasks.spec import TaskSpec

BATCH = 64
"""Texts answered together."""


def add(
    name: str,
    about: str,
    examples: Path,
    labels: Annotated[str, tyro.conf.arg(metavar="A,B,…")] = "",
    replace: bool = False,
    json: bool = False,
) -> int:
    """Make a task of a description and a few examples, to be run as a function of texts.

    With labels it classifies; the examples' rows are {"input": …, "label": …}. Without, it writes a
    line about each text; the rows are {"input": …, "output": …}. The description and the examples
    stand before every text.

    Args:
        name: To call it by.
        about: What is to be done, in a sentence the model reads.
        examples: A JSONL file.
        labels: To choose from; by default those of the examples, if they have any.
        replace: Overwrite a task of this name.
        json: Print one JSON object.
    """
    from lmsmith.core.config import encode
    from lmsmith.core.files import atomic_write, read_jsonl, write_jsonl
    from lmsmith.core.paths import tasks_folder
    from lmsmith.evaluation.tasks.shipped import shipped_tasks
    from lmsmith.functions.text_function import check_name, classification, extraction

    check_name(name)
    if name in shipped_tasks():
        raise UserError(f"{name}: a task of this name comes with lmsmith", "choose another")
    rows = [(number, row) for number, row in read_jsonl(examples)]
    if not rows:
        raise UserError(f"{examples}: no examples", "give one or more")
    answer = "label" if labels or "label" in rows[0][1] else "output"
    for number, row in rows:
        for key in ("input", answer):
            if not isinstance(row.get(key), str) or not str(row[key]).strip():
                raise UserError(
                    f"{examples}, line {number}: no text {key!r}",
                    f'every row is {{"input": …, "{answer}": …}}',
                )
    place = tasks_folder()
    file = place / f"{name}.toml"
    if file.exists() and not replace:
        raise UserError(f"{name}: there is such a task already", "add --replace to overwrite it")
    kept = place / f"{name}.jsonl"
    if answer == "label":
        known = [word.strip() for word in labels.split(",") if word.strip()]
        found = list(dict.fromkeys(str(row["label"]).strip() for _, row in rows))
        strange = [label for label in found if known and label not in known]
        if strange:
            raise UserError(f"{examples}: labels {', '.join(strange)}", f"use {', '.join(known)}")
        task = classification(name, about, known or found, str(kept))
    else:
        task = extraction(name, about, str(kept))
    write_jsonl(
        kept, [{key: str(row[key]).strip() for key in ("input", answer)} for _, row in rows]
    )
    from lmsmith.cli.tasks import task_toml

    atomic_write(file, task_toml(task))
    if json:
        print_json({"task": encode(task), "path": str(file), "examples": len(rows)})
        return 0
    print(f"{name}: {len(rows)} examples, {file}")
    print(f"use it: lmsmith task run {name} MODEL < input.jsonl")
    return 0


def run(
    name: str,
    model: str,
    input: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    threads: int = 0,
) -> int:
    """Put a task of your own to texts: JSON lines in, JSON lines out, in the same order.

    Each line read is {"input": …}, or plain text; each line printed has the input with its label
    and every label's probability, or with what was written.

    Args:
        name: Of the task (lmsmith task add).
        model: A run, a model folder, a Hugging Face folder, a GGUF file or a registered name.
        input: A file of lines; standard input by default.
        precision: Of matrix products; auto: bf16 where the processor multiplies it.
        threads: Of one operation; 0 for all cores.
    """
    from lmsmith.evaluation.model import load_evaluated_model
    from lmsmith.evaluation.tasks.data import read_data
    from lmsmith.functions.text_function import TextFunction
    from lmsmith.training.machine import prepare_process

    task = _user_task(name)
    opened = _opened(input)
    machine = prepare_process(MachineConfig(precision=precision, threads=threads))
    subject = load_evaluated_model(model, machine)
    function = TextFunction(subject, task, read_data(task, [Path()]).items)
    waiting: list[str] = []
    blank = 0
    with opened as stream:
        for number, line in enumerate(_text_lines(stream), start=1):
            if line.strip():
                waiting.append(_input_of(line, number))
            else:
                blank += 1
            if len(waiting) == BATCH:
                _print_answers(function(waiting))
                waiting = []
    _print_answers(function(waiting))
    if blank:
        print(f"blank lines, which have no answer: {blank}", file=sys.stderr)
    if function.cut:
        print(
            f"texts longer than the model's context ({subject.context} tokens), of which only the "
            f"end was read: {function.cut}; shorten them",
            file=sys.stderr,
        )
    return 0


def _opened(file: Path | None) -> contextlib.AbstractContextManager[BinaryIO]:
    """The file, or standard input, whose bytes are UTF-8 whatever the terminal's encoding is."""
    if file is None:
        if sys.stdin is None:
            raise UserError("standard input is closed", "name a file: --input FILE")
        return contextlib.nullcontext(sys.stdin.buffer)
    require_file(file)
    try:
        return file.open("rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})", "check the path") from error


def _text_lines(stream: BinaryIO) -> Iterator[str]:
    """Lines without their ends, be these of Unix, Windows or old Macs; byte order marks left out.

    Raises:
        UserError: a line is not UTF-8.
    """
    number = 0
    for block in stream:
        try:
            text = block.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"line {number + 1}: not UTF-8 text", "save it as UTF-8") from error
        for line in text.split("\r"):
            number += 1
            yield line.removeprefix("\ufeff")


def _user_task(name: str) -> TaskSpec:
    from lmsmith.evaluation.tasks.shipped import user_tasks

    own = user_tasks()
    if name not in own:
        known = f"yours: {', '.join(own)}" if own else "there are none yet: lmsmith task add"
        raise UserError(f"{name}: no such task of your own", known)
    return own[name]


def _input_of(line: str, number: int) -> str:
    """The text of a line: a JSON object's input, or the line itself."""
    if not line.lstrip().startswith("{"):
        return line
    try:
        row = json_module.loads(encodable_json(line))
    except ValueError as error:
        raise UserError(f"line {number}: not valid JSON ({error})", "fix it") from error
    if not isinstance(row.get("input"), str):
        raise UserError(f"line {number}: no text 'input'", 'write {"input": …}')
    text: str = row["input"]
    return text


def _print_answers(rows: list[dict[str, object]]) -> None:
    for row in rows:
        print(json_module.dumps(row, ensure_ascii=False), flush=True)
