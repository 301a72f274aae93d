"""Tasks from Python code that the user names: ``my_task.py``, ``my_task.py:Name``, ``module:Name``.

Code is run only where the user names it on the command line; no task file, no data and no hub can
have it run. The class's methods write rows and prompts; they are called with care.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import operator
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from lmsmith.core.config import Problem, SettingsError, decode, settings_of, unknown_key
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, sha256_file
from lmsmith.evaluation.tasks.spec import NEEDED, PromptSpec, TaskSpec

MOST_ROWS = 1_000_000
"""More rows than this are taken for endless."""

WRITTEN = "python"
"""The field of an item that holds the texts of the methods, for templates."""

WRITERS: Mapping[str, str] = {
    **{key: f"{{{{ {WRITTEN}.{key} }}}}" for key in ("instruction", "context", "target")},
    **{key: f"{WRITTEN}.{key}" for key in ("contexts", "choices", "gold", "label", "answers")},
}
"""Settings of a prompt that a method of a row may write → the template that reads it."""

LISTS = ("contexts", "choices", "answers")
"""Those that are lists."""


def method_name(key: str) -> str:
    """How the class names the method: what comes before the answer is its ``prompt``."""
    return "prompt" if key == "context" else key


@dataclass(frozen=True)
class Author:
    """An object of the user's class, which gives rows and writes their prompts.

    An error in its code becomes one message with file and line; its prints go to standard error,
    since standard output is for results.

    Attributes:
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
        """The rows of a method, ``items`` or ``examples``: each row, its fields, and its place.

        Args:
            seed: given to a method that asks for ``seed``.

        Raises:
            UserError: the code fails, or a row is neither a table, a dataclass nor a text.
        """
        method = getattr(self.instance, name)
        with self._guarded(f"{name}()"):
            wanted = {"seed": seed} if "seed" in inspect.signature(method).parameters else {}
            found = iter(method(**wanted))
        for number in range(1, MOST_ROWS + 2):
            doing = f"{name}(), row {number}"
            with self._guarded(doing):
                row = next(found, _END)
            if row is _END:
                return
            if number > MOST_ROWS:
                problem = f"{self.where}: {name}() gives more than {MOST_ROWS:,} rows"
                raise UserError(problem, "let it end")
            where = f"{self.file}, {doing}"
            yield row, _fields(row, where), where

    def write(self, row: Any, where: str) -> dict[str, Any]:
        """The settings of a prompt that the methods write of a row.

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
        """An answer's value by the class's own measure, from 0 to 1.

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
        """The row, in a message that has named the class's file already."""
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


@contextlib.contextmanager
def guarded(file: str, doing: str) -> Iterator[None]:
    """Run the user's code: an error in it, or an exit, becomes a UserError with file and line."""
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
        fix = "every row must be a dict with texts for keys, a dataclass, or a text"
        raise UserError(f"{where}: it is {type(row).__name__}", fix)
    return dict(row)


def _checked(key: str, value: Any, where: str) -> Any:
    """A method's value, as the templates want it."""
    expected = "a text"
    if key == "gold":
        expected = "the number of the right choice, from 0"
        with contextlib.suppress(TypeError):
            return value if isinstance(value, bool) else operator.index(value)
    elif key in LISTS:
        expected = "a list of texts"
        if isinstance(value, list) or (key == "answers" and isinstance(value, str)):
            return value
    elif isinstance(value, str):
        return value
    elif key == "label" and isinstance(value, int):
        return str(value)
    raise UserError(f"{where}: gave {value!r}", f"it must give {expected}")


def canonical(fields: Mapping[str, Any]) -> str:
    """A row's fields for a fingerprint; the type alone of values that JSON cannot hold."""
    return json.dumps(fields, default=lambda value: type(value).__name__, skipkeys=True)


_WORD = re.compile(r"(?P<file>.+\.py)(:(?P<class>\w+))?|(?P<module>[A-Za-z_][\w.]*):(?P<name>\w+)")
_PROMPT = tuple(each.name for each in fields(PromptSpec))
_TASK = tuple(each.name for each in settings_of(TaskSpec) if each.name != "prompt")
_METHODS = ("items", "examples", "prompt", "measure")
OWN_MEASURE = "own_measure"
"""Name of a class's measure if it has no headline."""


def names_python(word: str) -> bool:
    """Whether a word names code: a .py file, perhaps with ``:Class``, or ``module:Class``."""
    return _WORD.fullmatch(word) is not None


def python_tasks(word: str) -> dict[str, PythonTask]:
    """The tasks of a file or a module, or the one of a class, by name. Runs the code.

    Raises:
        UserError: there is no such file, module or class; its code fails; it is no task.
    """
    found = _WORD.fullmatch(word)
    assert found is not None, "asked for where names_python says so"
    if found["file"]:
        file = Path(found["file"])
        module, digest = _run_file(file)
        stem, shown, wanted = file.stem, str(file), found["class"]
    else:
        module = _import(found["module"])
        shown, wanted = str(module.__file__ or found["module"]), found["name"]
        digest = sha256_file(Path(module.__file__)) if module.__file__ else ""
        stem = found["module"].rsplit(".", 1)[-1]
    classes = chosen = _classes(module)
    if wanted:
        cls = getattr(module, wanted, None)
        if not inspect.isclass(cls):
            near = difflib.get_close_matches(wanted, classes, n=1)
            others = f"its tasks: {', '.join(classes)}" if classes else "it has no tasks"
            fix = f"did you mean {near[0]}?" if near else others
            raise UserError(f"{word}: no class {wanted}", fix)
        chosen = {wanted: cls}
    if not chosen:
        fix = 'a task is a class that says its kind, e.g. kind = "multiple_choice"'
        raise UserError(f"{word}: the file defines no task", fix)
    made: dict[str, PythonTask] = {}
    for name, cls in chosen.items():
        default = stem if len(classes) == 1 and name in classes else f"{stem}/{name}"
        task = _task(cls, default, shown, digest)
        if task.name in made:
            raise UserError(f"{word}: two tasks are named {task.name}", "name them apart")
        made[task.name] = task
    return made


def _run_file(file: Path) -> tuple[ModuleType, str]:
    """A file's module, and its fingerprint: of the very bytes that are run."""
    try:
        source = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error})", "check the path") from error
    folder = str(file.absolute().parent)
    if folder not in sys.path:  # the files beside it can be imported; what is installed goes first
        sys.path.append(folder)
    name = f"lmsmith_task_{fingerprint(str(file.absolute()))}"
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses look their module up
    with guarded(str(file), "the file"):
        exec(compile(source, str(file), "exec"), module.__dict__)
    return module, hashlib.sha256(source).hexdigest()


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    found = None
    try:
        with guarded(name, "the import"):  # of an inner module, the outer ones' code is run
            found = importlib.util.find_spec(name)
    except UserError as error:
        cause = error.__cause__
        if not (isinstance(cause, ModuleNotFoundError) and f"{name}.".startswith(f"{cause.name}.")):
            raise
    if found is None:
        fix = "check the name, or name the file: my_task.py"
        raise UserError(f"{name}: no such module here", fix)
    with guarded(str(found.origin or name), "the import"):
        return importlib.import_module(name)


def _classes(module: ModuleType) -> dict[str, type]:
    """A module's own classes that say their kind; those whose names begin with _ are bases."""
    return {
        name: each
        for name, each in vars(module).items()
        if inspect.isclass(each)
        and each.__module__ == module.__name__
        and not name.startswith("_")
        and hasattr(each, "kind")
    }


def _task(cls: type, name: str, file: str, digest: str) -> PythonTask:
    where = f"{file}, class {cls.__name__}"
    with guarded(file, f"{cls.__name__}()"):
        instance = cls()
    author = Author(instance, file, where, digest)
    if not hasattr(instance, "kind"):
        raise UserError(f"{where}: no kind", 'say it, e.g. kind = "multiple_choice"')
    prompt, writers = _prompt(author)
    author = replace(author, writers=writers)
    table: dict[str, Any] = {"name": name, "about": _first_line(cls), "source": file}
    for key in _TASK:
        value = _setting(author, key)
        if value is not None:
            table[key] = value
    if isinstance(_setting(author, "measure"), str):
        table.setdefault("headline", instance.measure)
    table["prompt"] = prompt
    _check_rows(author, table)
    _check_names(author)
    own = ""
    if author.has("measure"):
        if table["kind"] != "free_form":
            expected = "a method measure(row, answer) goes with free_form"
            raise UserError(f"{where}: kind {table['kind']}", f"{expected}; headline names one")
        own = str(table.pop("headline", "")) or OWN_MEASURE
    _check_methods(author, str(table["kind"]), prompt)
    task, problems = decode(TaskSpec, table, "")
    if task is None:
        raise SettingsError(problems, where)
    settings = {each.name: getattr(task, each.name) for each in fields(TaskSpec)}
    return PythonTask(**settings, author=author, own_measure=own)


def _first_line(cls: type) -> str:
    """First line of the docstring; a dataclass's own signature does not count."""
    text = (cls.__doc__ or "").strip()
    made = dataclasses.is_dataclass(cls) and text.startswith(f"{cls.__name__}(")
    return "" if made or not text else text.splitlines()[0]


def _setting(author: Author, key: str) -> Any:
    """A setting as TOML holds it; None if it is a method, or not there."""
    value = getattr(author.instance, key, None)
    return None if callable(value) else _plain(value)


def _plain(value: Any) -> Any:
    """Settings given as the package's own dataclasses, or as tables."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _prompt(author: Author) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The prompt's table, and which of its settings methods write."""
    given = _setting(author, "prompt")
    if not isinstance(given, str | dict | None):
        raise UserError(f"{author.where}: prompt is {given!r}", "write def prompt(self, row)")
    table: dict[str, Any] = {"context": given} if isinstance(given, str) else dict(given or {})
    writers = []
    for key in _PROMPT:
        name = method_name(key)
        value = _setting(author, key)
        if author.has(name) and key in WRITERS:
            writers.append(key)
            table[key] = WRITERS[key]
        elif author.has(name):
            by_row = ", ".join(f"{method_name(each)}(row)" for each in WRITERS)
            fix = f"say it as a value; by row: {by_row}"
            raise UserError(f"{author.where}: {key} is a method", fix)
        elif key in LISTS and isinstance(value, list):
            table[key] = repr([str(each) for each in value])
        elif value is not None:
            table[key] = value
    return table, tuple(writers)


def _check_rows(author: Author, table: dict[str, Any]) -> None:
    if author.has("items"):
        data = table.get("data", {})
        sources = ("file", "package", "hub", "generator")
        if not isinstance(data, dict) or any(data.get(key) for key in sources):
            raise UserError(f"{author.where}: both data and items()", "leave one out")
        table["data"] = {**data, "generator": "items()"}
    elif "data" not in table:
        fix = 'write def items(self), which yields rows, or data = {"file": "rows.jsonl"}'
        raise UserError(f"{author.where}: no method items, and no data", fix)


def _check_methods(author: Author, kind: str, prompt: Mapping[str, Any]) -> None:
    for key, needed in NEEDED.get(kind, {}).items():
        if not any(prompt.get(each) for each in needed):
            name = method_name(key)
            others = [each for each in needed if each != key]
            instead = f" (or {', or '.join(others)})" if others else ""
            problem = f"{author.where}: no method {name}"
            raise UserError(problem, f"the kind {kind} needs it: def {name}(self, row){instead}")


def _check_names(author: Author) -> None:
    """A value whose name is nearly a setting's is a typing error."""
    known = [*_TASK, *_PROMPT, *_METHODS]
    problems: list[Problem] = []
    for cls in type(author.instance).__mro__[:-1]:
        for name, value in vars(cls).items():
            plain = not name.startswith("_") and isinstance(value, str | int | float | list | dict)
            if plain and name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.86)
                if near and not hasattr(author.instance, near[0]):
                    problems.append(unknown_key(name, value, known))
    if problems:
        raise SettingsError(problems, author.where)
