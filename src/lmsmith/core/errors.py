"""The two ways a run ends early, a mistake and an interruption; and packages that are missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """A mistake the user can fix: one message, exit code 2, no traceback.

    Args:
        problem: names the input and what was expected, e.g. ``"my.jsonl, line 3: no 'messages'"``.
        fix: what to do about it, in the imperative.
    """

    exit_code = 2

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(problem if not fix else f"{problem}\n  {fix}")
        self.problem = problem
        self.fix = fix


class Interrupted(Exception):
    """Raised after a SIGINT or SIGTERM, once everything worth keeping has been saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """UserError with the extra's name if a package that is imported inside is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        problem = f"the package {error.name} is not installed"
        raise UserError(problem, f'install it: pip install "lmsmith[{name}]"') from error
