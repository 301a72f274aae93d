"""``lmsmith score``: the rewards that a reward model gives to responses."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from pathlib import Path

from lmsmith import api
from lmsmith.cli.output import input_lines, print_json
from lmsmith.core.errors import UserError
from lmsmith.options import Precision


def score(
    model: str,
    *,
    prompt: str = "",
    response: tuple[str, ...] = (),
    input: Path | None = None,
    precision: Precision = "auto",
    threads: int = 0,
    json: bool = False,
) -> None:
    """Score responses with a reward model: a line a response, its reward and its text.

    A reward has no unit: only differences between scores of one model mean something.

    Args:
        model: A reward model's folder, or a run that has one (runs/quickstart).
        prompt: What the response answers; else conversations are read.
        response: To the prompt; may be given more than once.
        input: JSONL of {"prompt": …, "response": …}, {"prompt": …, "responses": […]} or
            {"messages": […]}, whose last message is scored; standard input by default.
    """
    if bool(prompt) != bool(response):
        raise UserError("--prompt and --response: one without the other", "give both, or neither")
    if prompt and input:
        raise UserError("--prompt and --input: not both", "leave one out")
    rows = [{"prompt": prompt, "responses": list(response)}] if prompt else list(_rows(input))
    if not rows:
        raise UserError(f"{input or 'standard input'}: no conversations", "give one or more")
    found = api.score(model, rows, precision=precision, threads=threads)
    if json:
        print_json(found.as_dict())
        return
    for each in found.scores:
        text = json_module.dumps(each.messages[-1]["content"], ensure_ascii=False)
        print(f"{each.reward:8.4f}  {text}")


def _rows(file: Path | None) -> Iterator[dict[str, object]]:
    for number, line in ((n, text) for n, text in input_lines(file) if text.strip()):
        try:
            row = json_module.loads(line)
        except ValueError as error:
            raise UserError(f"line {number}: not valid JSON ({error})", "fix it") from error
        if not isinstance(row, dict):
            raise UserError(f"line {number}: not a JSON object", "a row is {…}")
        yield row
