"""The tasks of names and files: those that come with the package, and the user's own."""

from __future__ import annotations

import csv
import difflib
import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from lmsmith.core.config import MOST_TOML
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_text
from lmsmith.core.paths import task_folders
from lmsmith.evaluation.tasks.inferred import infer_task
from lmsmith.evaluation.tasks.python_task import names_python, python_tasks
from lmsmith.evaluation.tasks.spec import Published, TaskSpec, read_tasks

SUITES_FILE = "suites.toml"
_FOLDER = resources.files("lmsmith.evaluation.tasks")


@functools.cache
def shipped_tasks() -> dict[str, TaskSpec]:
    """The tasks that come with the package, by name."""
    names = sorted(file.name for file in _FOLDER.iterdir() if file.name.endswith(".toml"))
    found: dict[str, TaskSpec] = {}
    for name in names:
        if name != SUITES_FILE:
            found |= read_tasks(_FOLDER.joinpath(name).read_text("utf-8"), name)
    for name, rows in _gpt3_sizes().items():
        found[name] = replace(found[name], published=(*found[name].published, *rows))
    return found


GPT3_SIZES = {
    "125M": 125e6, "350M": 350e6, "760M": 760e6, "1.3B": 1.3e9, "2.7B": 2.7e9, "6.7B": 6.7e9,
    "13B": 13e9, "175B": 175e9,
}  # fmt: skip
"""Parameters of the eight (Brown et al. 2020, table 2.1)."""


def _gpt3_sizes() -> dict[str, list[Published]]:
    """Task → figures of GPT-3 in each of its sizes (Brown et al. 2020, table H.1)."""
    text = _FOLDER.joinpath("gpt3_table_h1.csv").read_text("utf-8")
    found: dict[str, list[Published]] = {}
    for row in csv.DictReader(text.splitlines()):
        few = f", {row['k']} shots" if row["shots"] == "few" else ""
        found.setdefault(row["task"], []).extend(
            Published(
                f"GPT-3, table H.1{few}",
                f"GPT-3 {size}",
                parameters,
                row["measure"],
                float(row[size]),
                row["shots"],  # type: ignore[arg-type]
            )
            for size, parameters in GPT3_SIZES.items()
        )
    return found


@functools.cache
def suites() -> dict[str, list[tuple[str, str]]]:
    """Suite → (task, shots) of each row."""
    tables = tomllib.loads(_FOLDER.joinpath(SUITES_FILE).read_text("utf-8"))
    return {
        name: [(row["task"], str(shots)) for row in rows for shots in row.get("shots", [0])]
        for name, rows in tables.items()
    }


def user_tasks() -> dict[str, TaskSpec]:
    """The user's own tasks, by name."""
    found: dict[str, TaskSpec] = {}
    for folder in task_folders():
        for file in sorted(folder.glob("*.toml")):
            found |= _read_file(file)
    return found


def _read_file(file: Path) -> dict[str, TaskSpec]:
    tasks = read_tasks(read_text(file, MOST_TOML), str(file))
    return {name: replace(task, file=str(file)) for name, task in tasks.items()}


def find_tasks(words: Sequence[str], *, run_python: bool = False) -> list[TaskSpec]:
    """The tasks that words mean: names, groups (all variants of a name), .toml, .jsonl, .txt, .py.

    Args:
        run_python: run the code that words name, since they are from the command line.

    Raises:
        UserError: a word means none (the message has the nearest name), or two tasks have one name.
    """
    known = shipped_tasks() | user_tasks()
    found: dict[str, TaskSpec] = {}

    def add(tasks: Mapping[str, TaskSpec], word: str) -> None:
        twice = next((name for name in tasks if found.get(name, tasks[name]) != tasks[name]), None)
        if twice is not None:
            raise UserError(f"{word}: another task has the name {twice}", "rename one of the two")
        found.update(tasks)

    for word in words:
        if word in known:
            add({word: known[word]}, word)
        elif group := [name for name in known if name.startswith(f"{word}/")]:
            add({name: known[name] for name in group}, word)
        elif word.lower().endswith(".toml"):
            add(_read_file(Path(word)), word)
        elif word.lower().removesuffix(".gz").endswith((".jsonl", ".json", ".txt")):
            task = infer_task(Path(word))
            add({task.name: task}, word)
        elif names_python(word):
            if not run_python:
                problem = f"{word}: Python code, which is run only where --tasks names it"
                raise UserError(problem, "name a task or a .toml file here")
            add(python_tasks(word), word)
        else:
            groups = sorted({name.split("/")[0] for name in known})
            near = difflib.get_close_matches(word, [*sorted(known), *groups], n=1, cutoff=0.6)
            fix = f"did you mean {near[0]}?" if near else f"the tasks here: {', '.join(groups)}."
            fix += " Or name a .toml, .jsonl, .txt or .py file."
            raise UserError(f"{word}: no such task", fix)
    return list(found.values())
