"""The standard streams of a command, whatever their encoding is and wherever they lead."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lmsmith.core.errors import UserError
from lmsmith.core.files import storage_error

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
"""What stands for characters that an encoding does not have; '?' for all others."""

READER_GONE = 141
"""128 + SIGPIPE."""


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in unknown), error.end


def show_what_can_be_shown() -> None:
    """Characters that a stream's encoding does not have are replaced; none ends the command."""
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
def written_out() -> Iterator[None]:
    """All that the block prints has left when it ends.

    Raises:
        UserError: the disk is full behind standard output, or behind a file the error names.
        BrokenPipeError: the reader, such as ``head``, has seen enough.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _write_no_more(sys.stdout)
        raise
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _write_no_more(sys.stdout)
            raise UserError(
                f"standard output: cannot be written ({os.strerror(error.errno)})",
                "Free space on its disk, or send the output elsewhere.",
            ) from error
        if error.filename is not None:
            raise storage_error(Path(os.fsdecode(error.filename)), error) from error
        raise


def say(message: str) -> None:
    """A line on standard error, where there is one that takes it."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        _write_no_more(sys.stderr)


def _write_no_more(stream: TextIO) -> None:
    """What waits in the buffer of a stream is thrown away, lest it fail again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
