"""Rows of a table in a file: JSONL, CSV, TSV, GLUE's plain text, or a member of a zip file."""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import read_rows, read_text, require_file

Format = Literal["auto", "jsonl", "csv", "tsv"]

MOST_MEMBER_BYTES = 1 << 28
"""Most bytes of a file in a zip file."""

JSON_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")

Row = Mapping[str, object]


def read_table(
    path: Path, columns: Sequence[str] = (), form: Format = "auto", quotes: bool | None = None
) -> Iterator[tuple[str, Row]]:
    """(place, row) of each row; the place names file and line in messages.

    Args:
        path: a file, or ``FILE.zip/MEMBER``; a byte order mark at its start is skipped.
        columns: the names of the columns, in the file's order; if empty, the first line has them.
            A line may have more fields than names that are given here, but not more than the first
            line has. Names of JSONL are its own.
        form: of the file; ``auto`` goes by the end of its name: ``.jsonl``, ``.json`` (one list of
            rows), ``.csv``, and all others are tab-separated.
        quotes: whether a quotation mark around a field is not part of it. By default so in a
            comma-separated file alone: GLUE's tab-separated files hold quotation marks as text.

    Raises:
        UserError: the file is missing or damaged, has no rows, or a line has too few or too many
            fields.
    """
    inside = re.search(r"\.zip/", str(path))
    if form == "jsonl" or (form == "auto" and path.name.lower().endswith(JSON_ENDINGS)):
        if inside:
            raise UserError(f"{path}: JSONL inside a zip file", "unpack it")
        found = read_rows(path)
        first = next(found, None)
        if first is None:
            raise _no_rows(path)
        yield first
        yield from found
        return
    text = _member(path) if inside else read_text(path)
    if form == "auto":
        form = "csv" if path.name.lower().removesuffix(".gz").endswith(".csv") else "tsv"
    quoted = form == "csv" if quotes is None else quotes
    yield from _fields(
        text.removeprefix("\ufeff"), path, columns, "," if form == "csv" else "\t", quoted
    )


def _fields(
    text: str, path: Path, columns: Sequence[str], delimiter: str, quoted: bool
) -> Iterator[tuple[str, Row]]:
    """Rows of delimited lines."""
    csv.field_size_limit(MOST_MEMBER_BYTES)  # of one text; Python's own limit is 131,072
    content = io.StringIO(text, newline="")
    if quoted:
        lines = csv.reader(content, delimiter=delimiter, strict=True)
    else:
        lines = csv.reader(content, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    names, rows = list(columns), 0
    try:
        for fields in lines:
            if not fields:
                continue
            if not names:
                names = [name.strip() for name in _without_empty_end(fields)]
                _check_names(names, path)
                continue
            where = f"{path}, line {lines.line_num}"
            if len(fields) < len(names):
                expected = f"the columns are {', '.join(names)}"
                problem = f"{where}: {len(fields)} field{'s' * (len(fields) != 1)}, and {expected}"
                raise UserError(problem, "fix the line, or name its columns in the task")
            if not columns and len(_without_empty_end(fields)) > len(names):
                problem = f"{where}: {len(fields)} fields, and the columns are {', '.join(names)}"
                fix = "put quotation marks around a text with commas, or write JSONL"
                raise UserError(problem, fix if delimiter == "," else "write it as JSONL")
            rows += 1
            yield where, dict(zip(names, fields, strict=False))
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: {error}", "fix the line") from error
    if not rows:
        raise _no_rows(path)


def _no_rows(path: Path) -> UserError:
    return UserError(f"{path}: no rows", "name a file with one example a line")


def _without_empty_end(fields: Sequence[str]) -> list[str]:
    """The fields without empty ones at the end, which spreadsheets add."""
    found = list(fields)
    while found and not found[-1].strip():
        found.pop()
    return found


def _check_names(names: Sequence[str], path: Path) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"{path}: the first line names the column {twice!r} twice",
            "name the columns in the task (columns = [...]), if the file has no line of names",
        )


def _member(path: Path) -> str:
    """The text of ``FILE.zip/MEMBER``."""
    file, _, name = str(path).partition(".zip/")
    archive = Path(f"{file}.zip")
    require_file(archive)
    with refusing_damage(archive):
        try:
            with zipfile.ZipFile(archive) as opened:
                found = opened.getinfo(name)
                if found.file_size > MOST_MEMBER_BYTES:
                    raise UserError(f"{path}: {found.file_size:,} bytes", "unpack it")
                return opened.read(found).decode("utf-8")
        except KeyError as error:
            with zipfile.ZipFile(archive) as opened:
                names = [each for each in opened.namelist() if not each.endswith("/")]
            fix = f"it holds {', '.join(names[:12])}"
            raise UserError(f"{archive} has no file {name}", fix) from error
        except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error})", "get it again") from error


def file_on_disk(path: Path) -> Path:
    """The file on the disk that ``path`` is, or is in."""
    file, inside, _ = str(path).partition(".zip/")
    return Path(f"{file}.zip") if inside else path


def as_finite(value: object) -> float | None:
    """A number of a field; None where it is none, or not finite."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
