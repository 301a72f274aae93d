"""The streams that commands read and print to, whatever their encoding is, and what is printed."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from lmsmith.core.errors import UserError
from lmsmith.core.files import finite, require_file, storage_error
from lmsmith.core.terminal import checked, in_one_line, visible_console, visible_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PLAIN = {
    **dict.fromkeys("\u00a0\u2009\u202f", " "),
    **dict.fromkeys("─━═╌┄╴╶", "-"),
    **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼┏┓┗┛┣┫┳┻╋┡┩╇╈", "+"),
    **dict.fromkeys("“”„«»", '"'),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("–—−", "-"),
    "…": "...",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
    "×": "x",
    "·": "-",
    "•": "*",
}
"""Substitutes for characters that an encoding does not have; '?' for all others."""

READER_GONE = 141
"""128 + SIGPIPE."""


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in unknown), error.end


def encode_output() -> None:
    """Replace characters that a stream's encoding does not have; none ends the command."""
    codecs.register_error("lmsmith.plain", _plainly)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed before the command began
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="lmsmith.plain")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


@contextlib.contextmanager
def visible_output() -> Iterator[None]:
    """Print no control characters of models or people within the block."""
    with (
        contextlib.redirect_stdout(checked(sys.stdout)),
        contextlib.redirect_stderr(checked(sys.stderr, rewrites=True)),
    ):
        yield


@contextlib.contextmanager
def flushed_output() -> Iterator[None]:
    """Flush all that the block prints.

    Raises:
        UserError: the disk is full behind standard output, or behind a file the error names.
        BrokenPipeError: the reader, such as ``head``, has seen enough.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        raise
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _discard(sys.stdout)
            raise UserError(
                f"standard output: cannot be written ({os.strerror(error.errno)})",
                "Free space on its disk, or send the output elsewhere.",
            ) from error
        if error.filename is not None:
            raise storage_error(Path(os.fsdecode(error.filename)), error) from error
        raise


def print_error(message: str) -> None:
    """Print a line on standard error, if that is open."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Throw away the buffer of a stream, which would fail again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object: NaN and infinity as null, characters without encoding escaped."""
    escaped = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(finite(value), ensure_ascii=escaped, indent=2)
    sys.stdout.write(f"{visible_json(text)}\n")
    sys.stdout.flush()


def table_console() -> Console:
    """A console for tables; brackets in names are no markup."""
    # A pipe has no width of its own; a table that is cut would say less.
    width = None if sys.stdout.isatty() else 200
    return visible_console(sys.stdout, width=width, markup=False, emoji=False)


def plain_table(
    *names: str, left: tuple[str, ...] = (), no_wrap: bool = False, title: str | None = None
) -> Table:
    """A table with a line below its head; the first column and ``left`` are left-aligned.

    A text in it is one line, whatever it contains.
    """
    from rich import box
    from rich.table import Table

    class Lines(Table):
        def add_row(self, *cells: Any, **options: Any) -> None:
            shown = [in_one_line(cell) if isinstance(cell, str) else cell for cell in cells]
            super().add_row(*shown, **options)

    table = Lines(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for place, name in enumerate(names):
        on_left = place == 0 or name in left
        table.add_column(name, justify="left" if on_left else "right", no_wrap=no_wrap)
    return table


def input_lines(file: Path | None) -> Iterator[tuple[int, str]]:
    """Numbered UTF-8 lines of a file, or of standard input, without line ends and marks.

    Raises:
        UserError: the file cannot be read, which is known at once; or a line is not UTF-8.
    """
    if file is None:
        if sys.stdin is None:
            raise UserError("standard input is closed", "name a file: --input FILE")
        return _text_lines(contextlib.nullcontext(sys.stdin.buffer))
    require_file(file)
    try:
        return _text_lines(file.open("rb"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})", "check the path") from error


def _text_lines(opened: contextlib.AbstractContextManager[BinaryIO]) -> Iterator[tuple[int, str]]:
    number = 0
    with opened as stream:
        for block in stream:
            try:
                text = block.decode("utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                raise UserError(f"line {number + 1}: not UTF-8 text", "save it as UTF-8") from error
            for line in text.split("\r"):
                number += 1
                yield number, line.removeprefix("\ufeff")
