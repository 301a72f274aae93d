"""A template: a line that makes an instruction and its answer of one example of a task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lmsmith.core.config import Problem

OPTIONS = "OPTIONS:"
"""Stands before the list of answers (Wei et al. 2022, section 2.3)."""

_FIELD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class LabelledExample:
    """An example of a task as named texts.

    Attributes:
        fields: name → text, which templates name in braces.
        options: the answers to choose from; empty where the answer is free.
        gold: the number of the right one, from 0.
        answer: the right answer.
        label: the label as the data has it; empty where there is none.
    """

    fields: Mapping[str, str]
    options: tuple[str, ...]
    gold: int
    answer: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Instruction:
    """An example written out.

    Attributes:
        prompt: what the user asks.
        completion: what the assistant answers.
        options: the answers that are ranked; empty where there is nothing to choose.
        gold: the number of the right one.
    """

    prompt: str
    completion: str
    options: tuple[str, ...] = ()
    gold: int = 0


@dataclass(frozen=True)
class Template:
    """A way to put a task; in a task's file, a text alone is a prompt."""

    prompt: str
    """The instruction; {NAME} is the text of that name, {answer} the right answer."""
    target: str = ""
    """What is to be written in place of the answer: the template turns the task around."""
    only: str = ""
    """Used for the examples of this label alone."""
    words: dict[str, str] = field(default_factory=dict)
    """Label → answer, in place of the task's own."""

    @classmethod
    def from_text(cls, prompt: str) -> Template:
        """A task's file may hold the prompt alone."""
        return cls(prompt)

    def check(self) -> list[Problem]:
        """An empty prompt, or one that holds the answer that it asks for."""
        problems = []
        if not self.prompt.strip():
            problems.append(Problem("prompt", self.prompt, "a text", "write the instruction"))
        if not self.target and "answer" in self.names:
            fix = "leave {answer} out, or name a target"
            problems.append(Problem("prompt", self.prompt, "no {answer} without target", fix))
        return problems

    @property
    def names(self) -> set[str]:
        """The texts that it names."""
        return {*_FIELD.findall(self.prompt), *_FIELD.findall(self.target)}

    @property
    def turned(self) -> bool:
        """Whether it asks for another text than the answer."""
        return bool(self.target)

    def fits(self, example: LabelledExample) -> bool:
        """Whether it is used for the example."""
        return self.only in ("", example.label)


def fill(
    template: Template, example: LabelledExample, labels: Sequence[str] = (), *, options: bool
) -> Instruction:
    """Write an example out.

    A text is put in as it is: braces in it name nothing.

    Args:
        labels: the task's labels in the order of its options, for templates with words of their
            own.
        options: append the answers to choose from, as FLAN does.

    Raises:
        KeyError: the template names a text that the example has not.
    """
    answers, right = example.options, example.answer
    if template.words and labels:
        answers = tuple(template.words[label] for label in labels)
        right = answers[example.gold]
    texts = {**example.fields, "answer": right, "label": example.label}

    def put(text: str) -> str:
        return _FIELD.sub(lambda found: texts[found[1]], text)

    prompt = put(template.prompt)
    if template.turned:
        return Instruction(prompt, put(template.target))
    if options and answers:
        prompt += f"\n\n{OPTIONS}\n" + "\n".join(f"- {each}" for each in answers)
    return Instruction(prompt, right, answers, example.gold)
