"""Items of a task: from a file on a search path, the hub, a generator, or a class of the user's."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, is_there, missing, read_text, sha256_file
from lmsmith.core.json_text import KeptRows, decode_json, refuse_swelling
from lmsmith.evaluation.tasks.detokenise import DETOKENISERS
from lmsmith.evaluation.tasks.generated import GENERATORS
from lmsmith.evaluation.tasks.python_task import WRITTEN, Author, PythonTask, canonical
from lmsmith.evaluation.tasks.sources import MissingData as MissingData
from lmsmith.evaluation.tasks.sources import package_file, read_hub
from lmsmith.evaluation.tasks.spec import DataSpec, TaskSpec
from lmsmith.evaluation.tasks.templates import Result, Source

DATA_VARIABLE = "LMSMITH_DATA"
"""Environment variable: folders to look for data in, parted as PATH is."""

SMALL, MOST_GROWTH = 1 << 26, 100
"""Most bytes of an unpacked file: this many, or so many times as the packed one has."""

_ITEM_BYTES = 400
"""Memory of an item, besides its fields."""

_STREAM = 0x6974
"""Separates the draw of items from other draws of the same seed."""

Drawn = TypeVar("Drawn")


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a task.

    Attributes:
        id: its number in the file, from 0.
        where: file and line, for messages.
        task: whose item it is; None of a text that is in no data.
        written: what each template and expression makes of it, once it was evaluated.
    """

    id: str
    fields: Mapping[str, Any]
    where: str
    task: TaskSpec | None = field(default=None, compare=False, repr=False)
    written: dict[Source, Result] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )


@dataclass(frozen=True)
class TaskData:
    """A task's items, those its shots are drawn from, and a fingerprint of both."""

    items: tuple[Item, ...]
    pool: tuple[Item, ...]
    fingerprint: str


def search_path(folders: Sequence[Path | str] = ()) -> list[Path]:
    """Folders in which data is looked for: those given, those of LMSMITH_DATA, here, and ./data."""
    named = [Path(folder) for folder in folders]
    for folder in named:
        if not folder.is_dir():
            problem = missing(folder, "no such folder")
            raise UserError(f"--data {problem}", "name the folder of the data")
    of_environment = [Path(p) for p in os.environ.get(DATA_VARIABLE, "").split(os.pathsep) if p]
    return [*named, *of_environment, Path(), Path("data")]


def find_file(name: str, path: Sequence[Path]) -> Path:
    """The first of the search path's files of that name, plain or with ``.gz``.

    Raises:
        MissingData: none has it.
    """
    for folder in path:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if is_there(candidate) and candidate.is_file():
                return candidate
    looked = ", ".join(str(folder) for folder in path)
    fix = f"name the folder it is in: --data FOLDER, or the environment variable {DATA_VARIABLE}"
    raise MissingData(f"{name}: not in any of {looked}", fix)


def read_data(task: TaskSpec, path: Sequence[Path], seed: int = 0) -> TaskData:
    """A task's items, from the folders of a path or by the seed of a generator.

    Raises:
        UserError: a file is missing, damaged or empty; the code of a task's class fails.
    """
    if isinstance(task, PythonTask) and task.author is not None:
        read = _authored(task, task.author, path, seed)
    else:
        read = _read_spec(task, path, seed)
    items = tuple(replace(item, task=task) for item in read.items)
    shared = read.pool is read.items
    pool = items if shared else tuple(replace(item, task=task) for item in read.pool)
    return TaskData(items, pool, read.fingerprint)


def _authored(task: TaskSpec, author: Author, path: Sequence[Path], seed: int) -> TaskData:
    """Items with the texts of the class's methods beside their own fields."""

    def written(rows: Iterable[tuple[Any, Mapping[str, Any], str]]) -> tuple[Item, ...]:
        return tuple(
            Item(str(number), {**fields, WRITTEN: author.write(row, where)}, where)
            for number, (row, fields, where) in enumerate(rows)
        )

    def of_method(name: str) -> tuple[Item, ...]:
        rows = list(author.rows(name, seed))
        if not rows:
            raise UserError(f"{author.where}: {name}() gives no rows", "yield at least one")
        return written(rows)

    def of_file(items: Sequence[Item]) -> tuple[Item, ...]:
        return written((item.fields, item.fields, item.where) for item in items)

    read = None if author.has("items") else _read_spec(task, path, seed)
    items = pool = of_file(read.items) if read else of_method("items")
    if author.has("examples"):
        pool = of_method("examples")
    elif read and read.pool is not read.items:
        pool = of_file(read.pool)
    of_read = read.fingerprint if read else ""
    return TaskData(items, pool, fingerprint([author.fingerprint, of_read, *_texts(items, pool)]))


def _texts(*parts: Sequence[Item]) -> list[list[str]]:
    return [[canonical(item.fields) for item in part] for part in parts]


def _read_spec(task: TaskSpec, path: Sequence[Path], seed: int) -> TaskData:
    spec = task.data
    if spec.generator:
        made = GENERATORS.get(spec.generator)
        if made is None:
            problem = f"task {task.name}: no generator {spec.generator}"
            raise UserError(problem, f"the generators: {', '.join(GENERATORS)}")
        rows = made(spec.count, seed)
        items = tuple(Item(str(n), row, f"generated item {n + 1}") for n, row in enumerate(rows))
        return TaskData(items, items, fingerprint([spec.generator, spec.count, seed, rows]))
    if spec.hub:
        return _of_hub(spec)
    file = _located(spec, spec.path or spec.file, path)
    items = tuple(read_items(file, spec))
    if not items:
        raise UserError(f"{file}: no items", f"task {task.name} needs at least one")
    sums = [sha256_file(file)]
    pool = items
    if spec.examples:
        examples = _located(spec, spec.examples, path)
        pool = tuple(read_items(examples, spec))
        sums.append(sha256_file(examples))
    if spec.beside:
        other = find_file(spec.beside, path)
        items = tuple(_parallel(items, file, other))
        sums.append(sha256_file(other))
        pool = pool if spec.examples else items
    return TaskData(items, pool, fingerprint(sums))


def _located(spec: DataSpec, name: str, path: Sequence[Path]) -> Path:
    return package_file(spec.package, name) if spec.package else find_file(name, path)


def _of_hub(spec: DataSpec) -> TaskData:
    def rows_of(split: str) -> tuple[Item, ...]:
        rows = read_hub(spec, split)
        where = f"{spec.hub}, {split}"
        if not rows:
            raise UserError(f"{where}: no items", "name another split as data.split")
        return tuple(Item(str(n), row, f"{where}, row {n + 1}") for n, row in enumerate(rows))

    items = rows_of(spec.split)
    pool = rows_of(spec.examples) if spec.examples else items
    return TaskData(items, pool, fingerprint(_texts(items, pool)))


def draw_items(items: Sequence[Drawn], limit: int | None, seed: int) -> list[Drawn]:
    """So many of the items, drawn by a seed, in their order; all if there are no more.

    Those of a lower limit are among those of a higher.
    """
    if limit is None or limit >= len(items):
        return list(items)
    order = np.random.default_rng([seed, _STREAM]).permutation(len(items))
    return [items[place] for place in sorted(order[:limit].tolist())]


def read_items(file: Path, spec: DataSpec) -> Iterator[Item]:
    """The items of a file, by the end of its name: .jsonl, .json, or text.

    Raises:
        UserError: it is damaged, or its items would take far more memory than it does.
    """
    rows = KeptRows(file.stat().st_size, _ITEM_BYTES)
    for number, (content, item) in enumerate(_items_of(file, spec), start=1):
        try:
            rows.add(content.encode())
        except msgspec.DecodeError as error:
            raise UserError(f"{file}, item {number}: {error}", "divide the file") from error
        yield item


def _items_of(file: Path, spec: DataSpec) -> Iterator[tuple[str, Item]]:
    """Items with the JSON that they are made of; empty of one that is plain text."""
    kind = Path(file.name.lower().removesuffix(".gz")).suffix
    text = _unpacked(file).replace("\r\n", "\n")
    if kind == ".jsonl":
        for number, line in enumerate(_each_line(text)):
            if line.strip():
                where = f"{file}, line {number + 1}"
                yield line, _item(_parsed(line, where), number, where)
    elif kind == ".json":
        content = _parsed(text, str(file))
        rows = content.get(spec.field) if isinstance(content, dict) else content
        if not isinstance(rows, list):
            keys = ", ".join(content) if isinstance(content, dict) else "no keys"
            raise UserError(
                f"{file}: no list of items" + (f" at {spec.field!r}" if spec.field else ""),
                f"name the key that holds it as data.field; the file has {keys}",
            )
        for number, row in enumerate(rows):
            yield "", _item(row, number, f"{file}, item {number + 1}")
    elif spec.columns:
        yield from (("", item) for item in _rows(text, file, spec.columns))
    elif spec.beside:
        for number, line in enumerate(_lines(text)):
            yield "", Item(str(number), {"text": line}, f"{file}, line {number + 1}")
    else:
        yield from (("", item) for item in _documents(text, file, spec))


def _each_line(text: str) -> Iterator[str]:
    """The lines of a text, one at a time: a list of many short ones takes far more memory."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _unpacked(file: Path) -> str:
    """A file's text; a packed one has no more bytes than text packs to."""
    packed = file.name.lower().endswith(".gz")
    return read_text(file, max(SMALL, MOST_GROWTH * file.stat().st_size) if packed else -1)


def _lines(text: str) -> Iterator[str]:
    """The lines of a text by its line feeds alone, as a translation's files are numbered."""
    return (line.rstrip("\r") for line in _each_line(text.removesuffix("\n")))


def _rows(text: str, file: Path, columns: Sequence[str]) -> Iterator[Item]:
    """Lines whose fields tabs part."""
    for number, line in enumerate(_lines(text)):
        fields = line.split("\t")
        where = f"{file}, line {number + 1}"
        if len(fields) != len(columns):
            expected = f"data.columns says {', '.join(columns)}"
            raise UserError(f"{where}: {len(fields)} fields", expected)
        yield Item(str(number), dict(zip(columns, fields, strict=True)), where)


def _parallel(items: Sequence[Item], file: Path, other: Path) -> Iterator[Item]:
    """Lines, each with the line of the other file that belongs to it."""
    text = _unpacked(other)
    if (count := sum(1 for _ in _lines(text))) != len(items):
        problem = f"{file} has {len(items)} lines, {other} {count}"
        raise UserError(problem, "line for line they must belong together")
    for item, line in zip(items, _lines(text), strict=True):
        yield Item(item.id, {**item.fields, "beside": line}, item.where)


def _documents(text: str, file: Path, spec: DataSpec) -> Iterator[Item]:
    """A text file's documents; words are counted of the ``original``."""
    if spec.documents == "whole":
        parts = [text]
    elif spec.documents == "lines":
        parts = [line for line in re.split(r"(?<=\n)", text) if line.strip()]
    else:
        parts = [part for part in re.split(r"(?m)^(?= = [^=\n]+ = ?$)", text) if part.strip()]
    undo = DETOKENISERS.get(spec.detokenise)
    for number, part in enumerate(parts):
        fields = {"text": undo(part) if undo else part, "original": part}
        yield Item(str(number), fields, f"{file}, document {number + 1}")


def _parsed(text: str, where: str) -> Any:
    content = text.encode("utf-8")
    try:
        return decode_json(content)
    except (msgspec.DecodeError, RecursionError) as error:
        if b"NaN" in content or b"Infinity" in content:  # its message is that of the field
            with contextlib.suppress(msgspec.DecodeError, ValueError, RecursionError):
                refuse_swelling(content)
                return json.loads(content)
        raise UserError(f"{where}: not valid JSON ({error})", "fix or replace it") from error


def _item(row: Any, number: int, where: str) -> Item:
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object", "every item must be one")
    return Item(str(number), row, where)
