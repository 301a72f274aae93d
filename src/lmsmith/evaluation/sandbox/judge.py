"""Tests run against a program in another process, which is asked over pipes.

The tests see stand-ins for the program's functions. A stand-in sends its arguments as plain data
and gives back a value rebuilt from plain data, or raises an error of a builtin class. The program's
iterators stay with it, and are asked for each value when the tests want it.
"""

from __future__ import annotations

import builtins
import os
import sys
import types

from lmsmith.evaluation.sandbox import loops, plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Any

KILLED = -9
ENDING_LOOPS = ("StopIteration", "StopAsyncIteration", "GeneratorExit")
"""Errors that would end a loop of the tests early and silently."""


_ENDED = object()
_NO_REPLY = plain.Unreadable("an answer that is neither value nor error")


class Raised(Exception):
    """The program raised an error that has no builtin class, or its process ended."""

    def __init__(self, text: str, out_of_time: bool = False) -> None:
        super().__init__(text)
        self.out_of_time = out_of_time


class Values:
    """An iterator of the program's that is no generator."""

    def __init__(self, asked: Generator[Any, Any, None]) -> None:
        self._asked = asked

    def __iter__(self) -> Values:
        return self

    def __next__(self) -> Any:
        return next(self._asked)


class Judge:
    """The program in the other process.

    Args:
        process: its number.
        asking: descriptor that calls are written to.
        answered: descriptor that answers are read from.
        cpu_seconds: its limit, to tell how it ended.
    """

    def __init__(self, process: int, asking: int, answered: int, cpu_seconds: int) -> None:
        self._process = process
        self._asking = asking
        self._answered = answered
        self._cpu_seconds = cpu_seconds
        self._iterators: dict[int, tuple[object, int]] = {}  # held, or an id could be another's

    def run(self, given: str, tests: str, asked: str = "") -> None:
        """Pass if the program loads and the tests, if any, come to their end.

        Args:
            given: source that the tests may use, from what the program began with.
            tests: they may call any function of the program by its name.
            asked: the function that the program is to write, if it has a builtin's name.

        Raises:
            Exception: as the program or the tests raise it.
        """
        self._result()
        if not tests:
            return
        loops.allow_loops(given, tests)
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        names = vars(module)
        parts = [compile(given, "given", "exec"), compile(tests, "tests", "exec")]
        python = set(dir(builtins)) - {asked}  # a task may ask for a function of a builtin's name
        for name in {name for part in parts for name in names_in(part)} - python:
            names.setdefault(name, self._stand_in(name))
        for part in parts:
            exec(part, names)

    def _stand_in(self, name: str) -> Callable[..., Any]:
        def call(*places: Any, **words: Any) -> Any:
            return self._ask([name, places, words])

        call.__name__ = call.__qualname__ = name
        return call

    def _ask(self, asked: list[Any] | tuple[int, Any]) -> Any:
        try:
            plain.send(self._asking, asked, self._number)
        except BrokenPipeError:
            raise self._ended() from None
        return self._result(ends=isinstance(asked, tuple))

    def _result(self, ends: bool = False) -> Any:
        """The value of the program's reply, or its error; `_ENDED` where an iterator ``ends``."""
        try:
            reply = plain.receive(self._answered, iterator=self._iterator)
        except EOFError:
            raise self._ended() from None
        match reply:
            case {"value": value}:
                return value
            case {"raised": [*names], "message": str(message)}:
                raise rebuilt(names, message)
            case {"awaited": dict(inner)}:
                return _awaited(inner)
            case {"ended": None} if ends:
                return _ENDED
        raise _NO_REPLY

    def _iterator(self, number: int, is_generator: bool) -> object:
        def values() -> Generator[Any, Any, None]:
            sent: Any = None
            while (value := self._ask((number, sent))) is not _ENDED:
                sent = yield value

        made = values() if is_generator else Values(values())
        self._iterators[id(made)] = made, number
        return made

    def _number(self, iterator: object) -> int | None:
        """The number of an iterator of the program's, which the tests hand back to it."""
        return self._iterators.get(id(iterator), (None, None))[1]

    def _ended(self) -> Raised:
        _, status, used = os.wait4(self._process, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == KILLED and used.ru_utime + used.ru_stime > self._cpu_seconds - 0.5:
            return Raised(f"{self._cpu_seconds} s of the processor", out_of_time=True)
        return Raised(f"ended early, with code {code}")


async def _awaited(reply: dict[str, Any]) -> Any:
    """The result of a coroutine of the program's, which ran when it was made."""
    match reply:
        case {"value": value}:
            return value
        case {"raised": [*names], "message": str(message)}:
            raise rebuilt(names, message)
    raise _NO_REPLY


def rebuilt(names: list[Any], message: str) -> Exception:
    """The nearest builtin error of these names; one that says them where there is none.

    Its attribute ``told`` is the error's last line as the program would show it.
    """
    told = f"{names[0] if names else 'error'}: {message}"[:1000]
    for name in names:
        kind = getattr(builtins, name, None) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            if name in ENDING_LOOPS:
                break
            try:
                error = kind(message)
            except TypeError:
                break
            error.__dict__["told"] = told
            return error
    return Raised(told)


def names_in(code: types.CodeType) -> Iterator[str]:
    """Every name that the code, or a function in it, looks for outside itself."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)
