"""The two ways a run ends early, a mistake and an interruption; packages and files that fail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_MOST_CHARACTERS, _LAST_CHARACTERS = 8_000, 1_000


class UserError(Exception):
    """A mistake the user can fix: one message, exit code 2, no traceback.

    Args:
        problem: names the input and what was expected, e.g. ``"my.jsonl, line 3: no 'messages'"``.
            One of many thousand characters, which a file's value may have, loses its middle.
        fix: what to do about it, in the imperative.
    """

    exit_code = 2

    def __init__(self, problem: str, fix: str = "") -> None:
        if len(problem) > _MOST_CHARACTERS:
            first = problem[: _MOST_CHARACTERS - _LAST_CHARACTERS]
            problem = f"{first} … {problem[-_LAST_CHARACTERS:]}"
        super().__init__(problem if not fix else f"{problem}\n  {fix}")
        self.problem = problem
        self.fix = fix


class PeerLost(UserError):
    """Another process of the same run has ended, or does not answer."""

    exit_code = 75

    def __init__(self, problem: str) -> None:
        plain = problem.partition("\n")[0]
        super().__init__(plain, "all processes stop; the same command continues")


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


_OF_WRONG_VALUES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # RecursionError is one, and those of torch are
    TypeError,
    ValueError,
)


@contextlib.contextmanager
def refusing_damage(where: object, fix: str = "fetch it again") -> Iterator[None]:
    """Read a file from outside: values of the wrong kind or size in it end in a UserError.

    Its readers check what they know of; this is for all combinations that nobody thought of.
    """
    try:
        yield
    except UserError:
        raise
    except _OF_WRONG_VALUES as error:
        said = (str(error).strip().splitlines() or [""])[0][:200]
        what = f"{type(error).__name__}: {said}" if said else type(error).__name__
        problem = f"{where}: damaged: a value in it is missing, or of the wrong kind ({what})"
        raise UserError(problem, fix) from error
