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

from lmsmith.evaluation.sandbox import calls, plain, walls
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
    verdict = int(sys.argv.pop())
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
    names = vars(module)
    sys.modules["__main__"] = module
    reply = attempt(lambda: exec(compile(program, "program", "exec"), names))
    while True:
        plain.write(answering, reply)
        try:
            asked_for = plain.receive(asked)
        except EOFError:
            os._exit(0)
        reply = attempt(lambda: call(names, *asked_for))  # noqa: B023


def call(names: dict[str, Any], name: str, places: list[Any], words: dict[str, Any]) -> Any:
    """Call a function of the program."""
    if name not in names:
        raise NameError(f"name {name!r} is not defined")
    return names[name](*places, **words)


def attempt(call: Callable[[], Any]) -> bytes:
    """``value``, or ``raised`` (names of the error's class and its bases) and ``message``."""
    try:
        reply = plain.pack({"value": call()})
        if len(reply) <= plain.MOST:
            return reply
        raise plain.NotPlain(f"an answer of {len(reply):,} bytes")
    except BaseException as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        return plain.pack({"raised": names, "message": describe(error).partition(": ")[2]})


def describe(error: BaseException) -> str:
    """The error's last line."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    whole = f"{type(error).__name__}: {text}"[:SHOWN]
    return whole.encode("utf-8", "replace").decode()
