"""A task whose rows and prompts a class of the user's writes: its methods, called with care."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
import operator
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks.spec import TaskSpec

MOST_ROWS = 1_000_000
"""More than so many rows are taken for rows without an end."""

WRITTEN = "python"
"""The field of an item that holds what the methods wrote; templates find it there."""

WRITERS: Mapping[str, str] = {
    "instruction": f"{{{{ {WRITTEN}.instruction }}}}",
    "context": f"{{{{ {WRITTEN}.context }}}}",
    "contexts": f"{WRITTEN}.contexts",
    "choices": f"{WRITTEN}.choices",
    "gold": f"{WRITTEN}.gold",
    "label": f"{WRITTEN}.label",
    "target": f"{{{{ {WRITTEN}.target }}}}",
    "answers": f"{WRITTEN}.answers",
}
"""Settings of a prompt that a method of a row may write → the template that reads it."""

LISTS = ("contexts", "choices", "answers")
"""Those that are lists."""


def method_name(key: str) -> str:
    """How the class names the method: what comes before the answer is its ``prompt``."""
    return "prompt" if key == "context" else key


@dataclass(frozen=True)
class Author:
    """An object of the user's class, asked for rows and for how they are written.

    Whatever goes wrong in its code is told in one message with file and line; what it prints
    goes to standard error, since standard output is for results.

    Attributes:
        instance: the object.
        file: of its code.
        where: file and class, for messages.
        fingerprint: of the file's bytes.
        writers: the settings of a prompt that its methods write.
    """

    instance: Any
    file: str
    where: str
    fingerprint: str
    writers: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether the class has a method of that name."""
        return callable(getattr(self.instance, name, None))

    def rows(self, name: str, seed: int) -> Iterator[tuple[Any, dict[str, Any], str]]:
        """What the method ``name`` yields: each row, its fields, and which one it is.

        Args:
            name: ``items`` or ``examples``.
            seed: given to a method that asks for ``seed``.

        Raises:
            UserError: the code fails, or a row is neither a table, a dataclass nor a text.
        """
        method = getattr(self.instance, name)
        with self._guarded(f"{name}()"):
            wanted = {"seed": seed} if "seed" in inspect.signature(method).parameters else {}
            found = iter(method(**wanted))
        number = 0
        while True:
            where = f"{self.file}, {name}(), row {number + 1}"
            with self._guarded(f"{name}(), row {number + 1}"):
                row = next(found, _END)
            if row is _END:
                return
            if number == MOST_ROWS:
                raise UserError(
                    f"{self.where}: {name}() gives more than {MOST_ROWS:,} rows", "let it end"
                )
            yield row, _fields(row, where), where
            number += 1

    def write(self, row: Any, where: str) -> dict[str, Any]:
        """What the methods write of a row, by setting.

        Raises:
            UserError: the code fails, or gives something of another type.
        """
        written: dict[str, Any] = {}
        for key in self.writers:
            name = method_name(key)
            given = dict(row) if isinstance(row, Mapping) else row
            with self._guarded(f"{name}(row)", where):
                value = getattr(self.instance, name)(given)
                if key in LISTS and not isinstance(value, str | Mapping):
                    value = [str(each) for each in value]
            written[key] = _checked(key, value, f"{self.where}, {name}(row), {self._row(where)}")
        return written

    def measure(self, row: Any, answer: str, where: str) -> float:
        """What the class's own measure gives an answer, from 0 to 1.

        Raises:
            UserError: the code fails, or gives something else.
        """
        with self._guarded("measure(row, answer)", where):
            value = self.instance.measure(row, answer)
            number = float(value)
        if not (math.isfinite(number) and 0 <= number <= 1):
            raise UserError(
                f"{self.where}, measure(row, answer), {self._row(where)}: gave {value!r}",
                "it must give a number from 0 to 1, or whether the answer is right",
            )
        return number

    @contextlib.contextmanager
    def _guarded(self, doing: str, where: str = "") -> Iterator[None]:
        with guarded(self.file, f"{doing}, {self._row(where)}" if where else doing):
            yield

    def _row(self, where: str) -> str:
        """Which row, where the message has named the class's file already."""
        return where.removeprefix(f"{self.file}, ")


_END = object()


@dataclass(frozen=True)
class PythonTask(TaskSpec):
    """A task whose author is a class; its settings are those of any task."""

    author: Author | None = field(
        default=None, kw_only=True, compare=False, repr=False, metadata={"encoded": False}
    )
    own_measure: str = field(default="", kw_only=True)
    """The name of the measure that the class computes itself."""

    @property
    def measures(self) -> tuple[str, ...]:
        """The class's own first."""
        known = super().measures
        return (self.own_measure, *known) if self.own_measure else known

    def scorer(self) -> Callable[[Mapping[str, Any], str, str], float] | None:
        """Gives an answer its value by the class's own measure; None if it has none."""
        return self.author.measure if self.author is not None and self.own_measure else None


@contextlib.contextmanager
def guarded(file: str, doing: str) -> Iterator[None]:
    """Run code of the user's: an error in it becomes one message with file and line.

    Raises:
        UserError: the code failed, or asked to exit.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        line = _line_of(error, file)
        at = f"{file}, line {line}" if line else file
        fix = "fix the class"
        if isinstance(error, ModuleNotFoundError) and error.name:
            fix = f"install {error.name} beside lmsmith, or put it beside the file"
        raise UserError(f"{at}, in {doing}: {what}", fix) from error


def _line_of(error: BaseException, file: str) -> int | None:
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return lines[-1] if lines else None


def _fields(row: Any, where: str) -> dict[str, Any]:
    if isinstance(row, str):
        return {"text": row}
    if dataclasses.is_dataclass(row) and not isinstance(row, type):
        return {each.name: getattr(row, each.name) for each in dataclasses.fields(row)}
    if not isinstance(row, Mapping) or not all(isinstance(key, str) for key in row):
        raise UserError(
            f"{where}: it is {type(row).__name__}",
            "every row must be a dict with texts for keys, a dataclass, or a text",
        )
    return dict(row)


def _checked(key: str, value: Any, where: str) -> Any:
    """A method's value, as the templates want it."""
    if key == "gold":
        try:
            return value if isinstance(value, bool) else operator.index(value)
        except TypeError:
            expected = "the number of the right choice, from 0"
    elif key in LISTS:
        if isinstance(value, list) or (key == "answers" and isinstance(value, str)):
            return value
        expected = "a list of texts"
    elif isinstance(value, str):
        return value
    elif key == "label" and isinstance(value, int):
        return str(value)
    else:
        expected = "a text"
    raise UserError(f"{where}: gave {value!r}", f"it must give {expected}")


def canonical(fields: Mapping[str, Any]) -> str:
    """A row's fields for a fingerprint; of what JSON cannot hold, the type alone."""
    return json.dumps(fields, default=lambda value: type(value).__name__, skipkeys=True)
