"""How commands print: JSON for programs, tables and progress for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from rich.console import Console

from lmsmith.core.files import finite
from lmsmith.core.progress import LineProgress, LiveProgress, QuietProgress, RunProgress


def print_json(value: Mapping[str, object]) -> None:
    """One JSON object on standard output; NaN and infinity are null.

    Where the output's encoding has not all characters, they are escaped.
    """
    escaped = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    json.dump(finite(value), sys.stdout, ensure_ascii=escaped, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the command end as by any other output, and not with 1."""
        raise BrokenPipeError


def table_console() -> Console:
    """For tables: what stands in brackets in people's names is no markup."""
    # A pipe has no width of its own; a table that is cut would say less.
    width = None if sys.stdout.isatty() else 200
    return _Console(width=width, markup=False, emoji=False)


def choose_progress(title: str, quiet: bool) -> RunProgress:
    """A live view in a terminal, lines elsewhere, nothing if asked for."""
    if quiet:
        return QuietProgress()
    return LiveProgress(title) if sys.stderr.isatty() else LineProgress()
