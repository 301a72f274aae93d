"""Runs a program that a model wrote, and says whether it passes its tests.

Each program gets two processes, which end with it (see `child`): one runs it, the other its tests.
Both are held back in one of three ways, the first that this system allows:

- ``namespaces``: users, mounts, processes, IPC and network of their own; no file of the system
  but the interpreter's has a path, and what the program writes lies in memory;
- ``bubblewrap``: the same by the program ``bwrap``, where only that is allowed to; no writing;
- ``landlock``: nothing is written, and only the interpreter's files are read; the names, sizes and
  times of other files can still be asked for.

In each way seccomp refuses every system call but those on a list, Landlock is used as far as the
kernel has it, resource limits are set, and root's powers are given up.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import functools
import marshal
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lmsmith.core.errors import UserError
from lmsmith.evaluation.sandbox import plain, walls

Way = Literal["namespaces", "bubblewrap", "landlock"]
WAYS: tuple[Way, ...] = ("namespaces", "bubblewrap", "landlock")

MODULES = ("calls", "plain", "walls", "loops", "judge", "child")
"""The sandbox's modules, each after those that it imports."""
START = """
import marshal, os, sys, types
for name in ("lmsmith", "lmsmith.evaluation", "lmsmith.evaluation.sandbox"):
    sys.modules[name] = package = types.ModuleType(name)
for name, code in marshal.loads(os.read(0, int(sys.argv.pop(1)))):
    module = types.ModuleType(f"{package.__name__}.{name}")
    sys.modules[module.__name__] = module
    setattr(package, name, module)
    exec(code, vars(module))
module.main()
"""
"""Makes them of code that is ready to run, as reading and compiling takes longer than the rest."""
PYTHON = getattr(sys, "_base_executable", None) or sys.executable
"""The interpreter itself, where this one is a virtual environment's."""

SHARED = ("collections", "copy", "functools", "itertools", "math", "re", "string", "typing")
"""Modules without a state that both processes import once, if the program's beginning does."""

LONGEST_ORDER = 1 << 30
"""Most bytes of a program, and of its tests."""

STARTING = 60.0
"""Seconds for the sandbox to stand."""

WATCHED_EVERY = 0.1
"""Seconds between two looks at the number of a program's threads."""


@dataclass(frozen=True)
class Program:
    """A program and its tests.

    Attributes:
        source: the whole program.
        tests: they call its functions by name; empty: it passes by coming to its end.
        given: what its author was given as its beginning; the tests may use the functions that
            stand whole in it, as they were given.
    """

    source: str
    tests: str = ""
    given: str = ""


@dataclass(frozen=True)
class Limits:
    """The limits of a program; all of them in total, since it cannot start another process.

    Attributes:
        cpu_seconds: of the program, and as many of its tests.
        wall_seconds: several times the processor's, since the machine may be busy.
        memory_bytes: of address space, and as many of its tests.
        file_bytes: of any file it writes.
        folder_bytes: of all files it writes together.
        folder_entries: files and folders it writes.
    """

    cpu_seconds: int = 5
    wall_seconds: float = 30.0
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    folder_bytes: int = 16 << 20
    folder_entries: int = 1024
    open_files: int = 32
    threads: int = 64


@dataclass(frozen=True)
class Verdict:
    """How a program ended; ``detail`` is its error's last line."""

    outcome: Literal["passed", "failed", "timed out"]
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


class Broken(Exception):
    """The sandbox could not be set up."""


class TooMany(Exception):
    """The program has more threads than it may."""


def run_program(program: Program | str, limits: Limits | None = None) -> Verdict:
    """Run a Python program; it passes if it loads and its tests come to their end.

    Leaving early, by ``sys.exit(0)`` or otherwise, is no passing.

    Raises:
        UserError: this system cannot hold a program back.
    """
    way = check_system()
    whole = Program(program) if isinstance(program, str) else program
    try:
        return run_in(way, whole, limits or Limits())
    except Broken as error:
        raise _refused(str(error)) from error


@functools.cache
def check_system() -> Way:
    """The way in which programs are held back here, found by trying.

    Raises:
        UserError: there is none.
    """
    problems = []
    for way in WAYS:
        try:
            verdict = run_in(way, Program("def one(): return 1", "assert one() == 1"), Limits())
        except Broken as error:
            problems.append(f"{way}: {error}")
            continue
        if verdict.passed:
            return way
        problems.append(f"{way}: {verdict.detail}")
    raise _refused("; ".join(problems))


def describe_sandbox() -> list[str]:
    """The layers that hold programs back here, outermost first; none where none are run."""
    try:
        way = check_system()
    except UserError:
        return []
    version = walls.landlock_version(ctypes.CDLL(None, use_errno=True))
    landlock = [f"landlock {version}"] if version else []
    return [*([way] if way != "landlock" else []), *landlock, "seccomp", "resource limits"]


def _refused(problem: str) -> UserError:
    return UserError(
        f"programs cannot be run safely on this system: {problem}",
        "code tasks need Linux 5.13 or newer on x86-64 or arm64; leave them out elsewhere",
    )


def run_in(way: Way, program: Program, limits: Limits) -> Verdict:
    """As `run_program`, in one of the `WAYS`.

    Raises:
        Broken: the system does not allow this way.
    """
    if sys.platform != "linux":
        raise Broken(f"no sandbox for {sys.platform}")
    with tempfile.TemporaryDirectory(prefix="lmsmith-sandbox-") as folder:
        return _run(way, folder, program, limits)


def _run(way: Way, folder: str, program: Program, limits: Limits) -> Verdict:
    inside = "/" if way == "bubblewrap" else folder
    # Nothing of ours: no keys, no paths.
    environment = {"HOME": inside, "TMPDIR": inside, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    given, imported, asked = finished(program.given)
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as answers, tempfile.TemporaryFile() as order:
        order.write(code())
        for part in (
            {
                "way": way,
                "parent": os.getpid(),
                "folder": inside,
                "limits": asdict(limits),
                "modules": [name for name in SHARED if name in imported],
                "program": program.source,
            },
            {"given": given, "tests": program.tests, "asked": asked},
        ):
            body = plain.pack(part, most=LONGEST_ORDER)
            order.write(len(body).to_bytes(4, "big") + body)
        order.seek(0)
        try:
            child = subprocess.Popen(
                [*_command(way), str(writer)],
                stdin=order,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
                pass_fds=[writer],
                start_new_session=True,
            )
        except OSError as error:
            raise Broken(f"Python cannot be started: {error}") from error
        finally:
            os.close(writer)
        try:
            begun = _answer(answers.fileno(), STARTING, child.pid, limits)
            if "landlock" not in begun:
                problem = begun.get("broken", begun.get("detail", "it ended early"))
                raise Broken(problem)
            said = _answer(answers.fileno(), limits.wall_seconds, child.pid, limits)
        finally:
            _end(child)
    if said.get("outcome") in ("passed", "failed", "timed out"):
        return Verdict(said["outcome"], str(said.get("detail", "")))
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Verdict("timed out", f"{limits.cpu_seconds} s of the processor, in the tests")
    return Verdict("failed", f"the tests ended early, with code {child.returncode}")


@functools.lru_cache(maxsize=64)
def finished(given: str) -> tuple[str, frozenset[str], str]:
    """What a program's beginning defines whole, the modules that it imports, and what is asked for.

    The function or class at its end is the one to be written, and left out; its name is the third.
    """
    for ending in ("", " pass", "\n    pass"):
        try:
            body = ast.parse(given + ending).body
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
        asked = ""
        if body and isinstance(body[-1], ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            asked = body.pop().name  # type: ignore[attr-defined]
        modules = [part.module for part in body if isinstance(part, ast.ImportFrom)]
        names = [part.names for part in body if isinstance(part, ast.Import)]
        imported = frozenset(
            [*filter(None, modules), *(each.name for few in names for each in few)]
        )
        return ast.unparse(ast.Module(body, [])), imported, asked
    return "", frozenset(), ""


@functools.cache
def code() -> bytes:
    """`MODULES` as `START` reads them."""
    compiled = []
    for name in MODULES:
        source = Path(__file__).with_name(f"{name}.py").read_text("utf-8")
        compiled.append((name, compile(source, f"sandbox/{name}.py", "exec")))
    return marshal.dumps(compiled)


def _command(way: Way) -> list[str]:
    start = ["-I", "-S", "-B", "-c", START, str(len(code()))]
    if way != "bubblewrap":
        return [PYTHON, *start]
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise Broken("bwrap is not installed")
    shown = [*walls.readable_folders(), os.path.realpath(PYTHON)]
    return [
        bubblewrap, "--unshare-all", "--die-with-parent", "--cap-drop", "ALL",
        *[word for path in shown for word in ("--ro-bind", path, path)],
        *[word for path in walls.hidden_folders() for word in ("--tmpfs", path)],
        *[word for path in walls.DEVICES for word in ("--dev-bind-try", path, path)],
        *[word for path in (*walls.hidden_folders(), "/") for word in ("--remount-ro", path)],
        "--chdir", "/", "--", os.path.realpath(PYTHON), *start,
    ]  # fmt: skip


def _answer(descriptor: int, seconds: float, watched: int, limits: Limits) -> dict[str, Any]:
    """The next message; empty where the judge ended without one.

    Args:
        watched: a process whose threads, and those below it, are counted meanwhile.
    """
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)

    def wait() -> None:
        while not poll.poll(1000 * WATCHED_EVERY):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{seconds:g} s")
            if _threads(watched) > limits.threads:
                raise TooMany(f"more than {limits.threads} threads")

    try:
        message = plain.receive(descriptor, wait=wait)
    except TimeoutError as error:
        return {"outcome": "timed out", "detail": str(error)}
    except TooMany as error:
        return {"outcome": "failed", "detail": str(error)}
    except (EOFError, plain.Unreadable):
        return {}
    return message if isinstance(message, dict) else {}


def _threads(process: int) -> int:
    """Threads of the process, or of the one below it that has most."""
    try:
        # The program gives its process a name of any bytes.
        status = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
        below = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0
    own = int(status.rpartition(")")[2].split()[17])
    return max([own, *(_threads(int(number)) for number in below)])


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    # Where this process takes the place of init, the program's one is its to ask after.
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-child.pid, 0)
