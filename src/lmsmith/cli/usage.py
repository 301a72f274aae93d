"""Mistakes in a command line, in the words of all other messages: tyro would draw boxes."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lmsmith.core.errors import UserError


@contextlib.contextmanager
def explained(name: str, function: Callable[..., Any], beside: Sequence[str]) -> Iterator[None]:
    """Within this block, what tyro refuses is a `UserError`.

    Args:
        name: the command's.
        function: what it runs; its parameters are the options.
        beside: other commands that begin with this one's name.
    """
    try:
        from tyro._errors import on_parse_error
    except ImportError:  # another version, with boxes alone
        yield
        return

    def refuse(event: Any) -> None:
        kind = type(event).__name__
        fix = ""
        if kind == "MissingArgs":
            absent = [_shown(each.arg) for each in event.missing_arguments]
            problem = f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing"
        elif kind == "BadValue":
            problem = f"{_shown(event.argument)} has no value"
        elif kind == "InvalidChoice":
            choices = [*event.choices, *(each.split()[-1] for each in beside)]
            expected = f"expected {', '.join(choices[:-1])} or {choices[-1]}"
            problem = f"{_shown(event.argument)} is {event.value!r}; {expected}"
            fix = did_you_mean(event.value, choices)
        elif kind == "UnrecognizedArgs" and event.tokens[0].startswith("-"):
            problem = f"{event.tokens[0]} is no option of this command"
            options = [each.strip("_") for each in inspect.signature(function).parameters]
            flags = [f"--{option.replace('_', '-')}" for option in options]
            fix = did_you_mean(event.tokens[0].partition("=")[0], flags)
        elif kind == "UnrecognizedArgs":
            problem = f"{event.tokens[0]!r} is one word too many"
        elif kind == "InstantiationFailure" and event.argument is not None:
            expected = event.argument.lowered.metavar
            # Of a value that may be absent the last reason is that of the value.
            reason = event.message.rpartition("'>: ")[2].removesuffix(")")
            problem = f"{_shown(event.argument)}: expected {expected} ({reason})"
        else:
            return
        hint = f"lmsmith {name} --help shows its arguments and options."
        raise UserError(f"{name}: {problem}", " ".join(filter(None, (fix, hint))))

    with on_parse_error(refuse):
        yield


def did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    """A question that names the nearest of the words known; empty if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"Did you mean {before}{near[0]}?" if near else ""


def _shown(argument: Any) -> str:
    """An argument as the user writes it."""
    lowered = argument.lowered
    return str(lowered.metavar if argument.is_positional() else lowered.name_or_flags[-1])
