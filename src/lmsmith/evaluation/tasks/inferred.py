"""A task made from the rows of a user's file, without a TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.core.files import missing, require_file
from lmsmith.evaluation.tasks.spec import AnswerSpec, DataSpec, Kind, PromptSpec, TaskSpec

_QUESTION = "Question: {{ question }}\nAnswer:"
_ANSWERS = "[answer, aliases | default([], true)]"
"""One right answer or a list of them, and other ways to write it where a row has any."""

_CHOICE: Kind = "multiple_choice"
_FREE: Kind = "free_form"

_SHAPES: Mapping[str, tuple[Kind, Mapping[str, Any]]] = {
    "choices gold query": (
        _CHOICE, {"context": "{{ query }}", "choices": "choices", "gold": "gold"},
    ),
    "context_options continuation gold": (
        _CHOICE, {"contexts": "context_options", "target": "{{ continuation }}", "gold": "gold"},
    ),
    "context continuation": (
        "cloze", {"context": "{{ context }}", "target": "{{ continuation }}"},
    ),
    "completion context": (
        _FREE,
        {"context": "{{ context }}", "answers": "completion", "delimiter": "", "separator": ""},
    ),
    "answer choices question": (
        _CHOICE, {"context": _QUESTION, "choices": "choices", "gold": "answer"},
    ),
    "answer context question": (
        _FREE, {"context": f"{{{{ context }}}}\n{_QUESTION}", "answers": _ANSWERS},
    ),
    "answer question": (_FREE, {"context": _QUESTION, "answers": _ANSWERS}),
    "answer context": (_FREE, {"context": "{{ context }}", "answers": _ANSWERS}),
    "text": ("perplexity", {}),
}  # fmt: skip
"""Keys that a row must have → the kind of task, and its prompt; the first that fits counts."""


FEWEST_SPACES = 1 / 20
"""Share of a text's characters below which spaces do not separate its words, as in Chinese."""


def infer_task(path: Path) -> TaskSpec:
    """The task of a file, by the fields of its first row, or by its being text.

    Raises:
        UserError: there is no such file, or its rows match no form of a task.
    """
    from lmsmith.evaluation.tasks.data import read_items

    require_file(path)
    if not path.is_file():
        raise UserError(missing(path), "check the path")
    data = DataSpec(file=str(path.absolute()))
    name = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    if path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv")):
        raise UserError(
            f"{path}: a table, which would be taken for one text",
            'write its rows as .jsonl, such as {"question": "…", "answer": "…"}, or describe a '
            ".tsv file without a heading in a TOML file: data.columns",
        )
    first = next(read_items(path, data), None)
    if first is None:
        raise UserError(f"{path}: no items", "a task needs at least one")
    keys: dict[str, Any] = dict(first.fields)
    for needed, (kind, prompt) in _SHAPES.items():
        if set(needed.split()) <= keys.keys():
            text = str(keys.get("text", ""))
            unparted = kind == "perplexity" and text.count(" ") < FEWEST_SPACES * len(text)
            return TaskSpec(
                name,
                kind,
                data,
                about=f"{path}",
                headline="bits_per_character" if unparted else "",
                prompt=PromptSpec(**prompt),
                answer=AnswerSpec(normalise="text" if "completion" in needed else "squad"),
            )
    shapes = "; ".join(needed.replace(" ", ", ") for needed in _SHAPES)
    raise UserError(
        f"{path}: its rows have {', '.join(keys) or 'nothing'}, which match no form of a task",
        f"give them one of: {shapes}; or describe the task in a TOML file "
        "(lmsmith tasks show NAME --toml prints one to begin with)",
    )
