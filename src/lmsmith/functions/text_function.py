"""A task of the user's own, from a description and a few examples, as a function of texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks.spec import AnswerSpec, DataSpec, PromptSpec, TaskSpec

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def classification(name: str, about: str, labels: Sequence[str], file: str) -> TaskSpec:
    """The task of giving a text one of the labels; a row has ``input`` and ``label``.

    Raises:
        UserError: the name is none for a file, or there are fewer than two different labels.
    """
    check_name(name)
    if len(set(labels)) < 2 or not all(label.strip() for label in labels):
        raise UserError(f"labels {', '.join(labels) or '(none)'}", "name two or more")
    return TaskSpec(
        name,
        "multiple_choice",
        DataSpec(file=file),
        about=about,
        prompt=PromptSpec(
            instruction=_as_template(about),
            context="Input: {{ input }}\nLabel:",
            choices=repr(list(labels)),
            gold=f"{list(labels)!r}.index(label)",
            answer_context="Label:",
        ),
    )


def extraction(name: str, about: str, file: str, max_new_tokens: int = 64) -> TaskSpec:
    """The task of writing a line about a text; a row has ``input`` and ``output``."""
    check_name(name)
    return TaskSpec(
        name,
        "free_form",
        DataSpec(file=file),
        about=about,
        prompt=PromptSpec(
            instruction=_as_template(about),
            context="Input: {{ input }}\nOutput:",
            target="{{ output }}",
        ),
        answer=AnswerSpec(max_new_tokens=max_new_tokens, stop=("\n",)),
    )


def check_name(name: str) -> None:
    """Raises UserError if a task cannot be called so."""
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r}: no name for a task", "use a–z, 0–9, _ and -")


def _as_template(text: str) -> str:
    """A text that a template gives back as it is."""
    return "{% raw %}" + text.replace("endraw", "end raw") + "{% endraw %}"
