"""Instructions that are written out already: prompts and completions, such as T0's."""

from __future__ import annotations

import functools
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from lmsmith.core.files import read_rows
from lmsmith.corpus.formats import require_keys, text_of
from lmsmith.corpus.instructions.task import shipped_instruction_tasks
from lmsmith.corpus.instructions.template import Instruction

END = "<|endoftext|>"
"""GPT-2's mark after a completion, as the file of T0 has it; it is no part of the answer."""

OTHER = "other"
"""The cluster of what is known to belong to none."""


@dataclass(frozen=True, slots=True)
class Prompted:
    """An instruction with where it is from.

    Attributes:
        task: the data set.
        cluster: the kind of the task.
        template: the name of the template.
    """

    instruction: Instruction
    task: str
    cluster: str
    template: str


@functools.cache
def t0_clusters() -> Mapping[str, str]:
    """How a T0 template's name begins → its cluster."""
    text = resources.files("lmsmith.corpus.instructions").joinpath("t0.toml").read_text("utf-8")
    clusters: dict[str, list[str]] = tomllib.loads(text)["clusters"]
    return {name: cluster for cluster, names in clusters.items() for name in names}


def task_of(template: str) -> tuple[str, str]:
    """(data set, cluster) of a T0 template, by the longest name of ours that its own begins with.

    One that is unknown is a task of its own, of the cluster `OTHER`.
    """
    known = t0_clusters()
    fitting = [name for name in known if template == name or template.startswith(f"{name}_")]
    name = max(fitting, key=len, default=template)
    return name, known.get(name, OTHER)


def cluster_of(task: str, otherwise: str) -> str:
    """The cluster of a data set that is named; ``otherwise`` if the name is unknown.

    Known are the shipped tasks, and T0's data sets.
    """
    shipped = shipped_instruction_tasks().get(task)
    found = task_of(task)[1] if shipped is None else shipped.cluster
    return otherwise if found == OTHER else found


def read_prompted(path: Path, left_out: Counter[str]) -> Iterator[Prompted]:
    """The instructions of a JSONL file: ``prompt``, ``completion``, and where given ``template``,
    ``task`` and ``cluster``.

    Args:
        left_out: counts the rows that ask or answer nothing, as some of T0's.

    Raises:
        UserError: a row has no prompt or no completion.
    """
    for where, row in read_rows(path):
        require_keys(row, ("prompt", "completion"), where)
        prompt = text_of(row, "prompt", where).strip()
        completion = text_of(row, "completion", where).strip().removesuffix(END).strip()
        if not prompt or not completion:
            left_out["without prompt or completion"] += 1
            continue
        template = text_of(row, "template", where, default=path.stem)
        task, cluster = task_of(template)
        if named := text_of(row, "task", where, default=""):
            task, cluster = named, cluster_of(named, cluster)
        cluster = text_of(row, "cluster", where, default=cluster)
        yield Prompted(Instruction(prompt, completion), task, cluster, template)
