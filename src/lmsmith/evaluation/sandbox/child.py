"""The inside of the sandbox: two processes, of which one runs the program and one judges it.

The first process builds the walls that both stand behind and makes the second, which runs the
program and answers calls of its functions with plain data. Then it reads the tests, which the
second has therefore never held, and runs them on stand-ins for the program's functions. A bare
interpreter starts it; see `programs`. It imports little, which takes its time for every program.
"""

from __future__ import annotations

import ctypes
import os
import sys
import types

from lmsmith.evaluation.sandbox import calls, loops, plain, walls
from lmsmith.evaluation.sandbox.judge import Judge, Raised

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

SHOWN = 1000
"""Most characters of an error that a verdict keeps."""
ORDER = 1 << 30
"""Most bytes of a program, and of its tests."""


def main() -> NoReturn:
    """Take an order from standard input, and send a verdict to the descriptor of the last word."""
    given = int(sys.argv.pop())
    verdict = os.dup(given)  # the lowest number there is, which `keep_open` reaches
    os.close(given)
    try:
        judge = prepare(verdict)
    except Exception as error:
        plain.send(verdict, {"broken": describe(error)})
        os._exit(3)
    try:
        # Read only now: the program's process is a copy of this one as it was before.
        order = plain.receive(0, ORDER)
        judge.run(order["given"], order["tests"], order["asked"])
        said = {"outcome": "passed", "detail": ""}
    except Raised as error:
        said = {"outcome": "timed out" if error.out_of_time else "failed", "detail": str(error)}
    except BaseException as error:
        told = vars(error).get("told") or describe(error)
        said = {"outcome": "failed", "detail": told}
    plain.send(verdict, said)
    os._exit(0)


def prepare(verdict: int) -> Judge:
    """Build the walls, and set the program going."""
    libc = ctypes.CDLL(None, use_errno=True)
    order = plain.receive(0, ORDER)
    way, limits = order["way"], order["limits"]
    own_root = way != "landlock"
    walls.die_with_parent(libc)
    if way != "bubblewrap" and os.getppid() != order["parent"]:
        os._exit(3)  # it ended before the kernel knew
    if way == "namespaces":
        walls.enter_namespaces(libc, order["folder"], limits)
    else:
        os.chdir(order["folder"])
    landlock = walls.landlock_version(libc)
    if not landlock and not own_root:
        raise OSError("the kernel has no Landlock")
    # The judge's end must end the program's process; `calls` lets neither send a signal.
    rules = walls.file_rules(libc, landlock, own_root, signals=True)
    writable = walls.WORK if way == "namespaces" else ""
    program_rules = walls.file_rules(libc, landlock, own_root, signals=False, writable=writable)
    for module in order["modules"]:
        __import__(module)

    def stand_behind(rules: int | None) -> None:
        walls.limit_resources(limits, threads=own_root)
        walls.close_files(libc, rules)
        walls.give_up_powers(libc)
        walls.die_with_parent(libc)  # again: the kernel forgets it where powers change
        calls.refuse_calls(libc, os.uname().machine, own_root)

    asked, asking = os.pipe()
    answered, answering = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            walls.die_with_parent(libc)
            keep_open(asked, answering, program_rules)
            stand_behind(program_rules)
            plain.send(answering, None)
            plain.receive(asked)  # nothing comes from a parent that ended before the kernel knew
        except BaseException as error:
            plain.send(answering, describe(error))
            os._exit(3)
        serve(order["program"], asked, answering)
    os.close(asked)
    os.close(answering)
    stand_behind(rules)
    if problem := plain.receive(answered):
        raise OSError(problem)
    plain.send(asking, None)
    plain.send(verdict, {"landlock": landlock})
    return Judge(process, asking, answered, limits["cpu_seconds"])


def keep_open(*descriptors: int | None) -> None:
    """Close every other one but for standard output; the order, with the tests, is one of them."""
    os.dup2(1, 0)
    for descriptor in range(3, 64):
        if descriptor not in descriptors:
            try:
                os.close(descriptor)
            except OSError:
                continue


def serve(program: str, asked: int, answering: int) -> NoReturn:
    """Run the program, then call its functions as asked."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    served = Served(vars(module))
    loops.allow_loops(program)
    reply = served.reply(lambda: exec(compile(program, "program", "exec"), vars(module)))
    while True:
        plain.write(answering, reply)
        try:
            asked_for = plain.receive(asked, iterator=served.iterator)
        except EOFError:
            os._exit(0)
        reply = served.next(*asked_for) if len(asked_for) == 2 else served.call(*asked_for)


class Served:
    """The program's functions, by its names, and the iterators that they gave."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names
        self._iterators: list[Any] = []
        self._runner = loops.Runner()

    def call(self, name: str, places: list[Any], words: dict[str, Any]) -> bytes:
        """Call a function of the program; a coroutine of its is run at once."""

        def called() -> Any:
            if name not in self._names:
                raise NameError(f"name {name!r} is not defined")
            return self._names[name](*places, **words)

        return self.reply(called)

    def next(self, number: int, sent: Any) -> bytes:
        """The next value of an iterator."""
        iterator = self._iterators[number]
        ended = False

        def following() -> Any:
            nonlocal ended
            try:
                return next(iterator) if sent is None else iterator.send(sent)
            except StopIteration:
                ended = True

        reply = self.reply(following)
        return plain.pack({"ended": None}) if ended else reply

    def iterator(self, number: int, is_generator: bool) -> Any:
        """The iterator that a call gave before."""
        return self._iterators[number]

    def _keep(self, iterator: Any) -> int:
        self._iterators.append(iterator)
        return len(self._iterators) - 1

    def reply(self, call: Callable[[], Any]) -> bytes:
        """``value``; or ``raised``, the names of the error's class and its bases, and ``message``;
        or ``awaited``, one of these for a coroutine.
        """
        found = self._attempt(call)
        coroutine = found.get("value")
        if type(coroutine) is types.CoroutineType:
            found = {"awaited": self._attempt(lambda: self._runner.run(coroutine))}
        try:
            return plain.pack(found, self._keep)
        except BaseException as error:
            return plain.pack(_raised(error))

    def _attempt(self, call: Callable[[], Any]) -> dict[str, Any]:
        try:
            return {"value": call()}
        except BaseException as error:
            return _raised(error)


def _raised(error: BaseException) -> dict[str, Any]:
    names = [kind.__name__ for kind in type(error).__mro__]
    return {"raised": names, "message": describe(error).partition(": ")[2]}


def describe(error: BaseException) -> str:
    """The error's last line."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    whole = f"{type(error).__name__}: {text}"[:SHOWN]
    return whole.encode("utf-8", "replace").decode()
