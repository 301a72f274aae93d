"""Tasks of the gates: whether those that a recipe names can be run here, and which others can."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lmsmith.core.errors import UserError
from lmsmith.evaluation.run import plan_tasks
from lmsmith.evaluation.tasks.data import MissingData, find_file, read_data, search_path
from lmsmith.evaluation.tasks.shipped import shipped_tasks, user_tasks
from lmsmith.evaluation.tasks.spec import TaskSpec
from lmsmith.options import TaskOptions


def check_tasks(words: Sequence[str]) -> None:
    """Find tasks and their data before a round trains for an hour.

    Raises:
        UserError: there is no such task, or its data is not here.
    """
    if not words:
        return
    for planned in plan_tasks(TaskOptions(tasks=words), ""):
        try:
            read_data(planned.task, search_path())
        except MissingData as error:
            fix = f"{error.fix}; or name a task whose data is here: {', '.join(tasks_here())}"
            raise UserError(f"gates: {error.problem}", fix) from error


def tasks_here() -> list[str]:
    """Names of tasks whose items are made from a seed, come with lmsmith, or are in a file here.

    A name that has variants stands for all of them.
    """
    known = shipped_tasks() | user_tasks()
    return sorted({name.partition("/")[0] for name in _with_data(known.values())})


def _with_data(tasks: Iterable[TaskSpec]) -> Iterable[str]:
    path = search_path()
    for task in tasks:
        if task.data.generator:
            yield task.name
        elif task.data.file:
            try:
                find_file(task.data.file, path)
            except MissingData:
                continue
            yield task.name
