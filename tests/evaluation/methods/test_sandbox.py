"""Hostile programs do no harm and pass nothing; harmless ones run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.evaluation.methods.code import Limits, check_system, run_program

try:
    check_system()
except UserError as error:
    pytest.skip(f"no sandbox here: {error.problem}", allow_module_level=True)

QUICK = Limits(cpu_seconds=1, wall_seconds=20.0)


@pytest.mark.parametrize(
    "program",
    [
        "import collections, hashlib, math, random, re, typing\nassert math.pi > 3",
        "open('mine.txt', 'w').write('x')\nassert open('mine.txt').read() == 'x'",
        "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
        "import os\nassert set(os.environ) <= {'HOME', 'TMPDIR', 'PYTHONHASHSEED', "
        "'OMP_NUM_THREADS', 'LC_CTYPE'}",
        "import os\nassert os.listdir('.') == []",
    ],
)
def test_harmless_programs_pass(program: str) -> None:
    assert run_program(program) == run_program(program)
    assert run_program(program).passed


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended early"),
        ("import os; os.abort()", "ended early"),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "not permitted"),
        ("import socket; socket.getaddrinfo('example.org', 80)", "gaierror"),
        ("import os; os.fork()", "not permitted"),
        ("import os\nwhile True: os.fork()", "not permitted"),
        ("import subprocess; subprocess.run(['/bin/sh', '-c', 'true'])", "not permitted"),
        ("import os; os.execv('/bin/true', ['true'])", "denied|not permitted"),
        ("import os; os.kill(os.getppid(), 9)", "not permitted"),
        ("import os; os.kill(-1, 9)", "not permitted"),
        ("open('/etc/passwd').read()", "denied"),
        ("import os; os.listdir('/etc')", "denied"),
        ("import os; os.chmod('/etc/hosts', 0)", "not permitted"),
        ("import os; os.utime('/etc/hosts')", "not permitted"),
        ("import os; os.chroot('.')", "not permitted"),
        ("import os; os.setuid(1)", "not permitted"),
        ("import os; os.setxattr('.', 'user.x', b'y')", "not permitted"),
        ("import os; os.remove('/etc/hostname')", "denied|not permitted"),
        ("open('/proc/1/environ').read()", "denied"),
        ("x = 'a' * (1 << 31)", "MemoryError"),
        ("x = []\nwhile True: x.append(bytes(1 << 20))", "MemoryError"),
        ("open('big', 'wb').write(bytes(8 << 20))", "too large"),
        ("fs = [open(f'{n}', 'w') for n in range(100)]", "Too many open files"),
        ("import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))", "not allowed|not permitted"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import os; os.setpriority(0, 0, -20)", "not permitted"),
    ],
)
def test_hostile_programs_fail_and_say_why(program: str, said: str) -> None:
    verdict = run_program(program, QUICK)
    assert verdict.outcome == "failed"
    assert any(part in verdict.detail for part in said.split("|")), verdict.detail


def test_files_elsewhere_are_not_written(tmp_path: Path) -> None:
    target = tmp_path / "harm.txt"
    for program in (
        f"open({str(target)!r}, 'w')",
        f"import os; os.mkdir({str(target)!r})",
        f"import os; os.symlink('/etc', 'link'); open('link/../{target}', 'w')",
        f"open('x', 'w'); import os; os.rename('x', {str(target)!r})",
        f"import ctypes; ctypes.CDLL(None).open({str(target).encode()!r}, 0o101, 0o600); 1 / 0",
    ):
        assert not run_program(program, QUICK).passed
        assert not target.exists()
    mine = tmp_path / "mine.txt"
    mine.write_text("secret")
    assert not run_program(f"open({str(mine)!r}).read()", QUICK).passed
    assert not run_program(f"import os; os.truncate({str(mine)!r}, 0)", QUICK).passed
    assert mine.read_text() == "secret"


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
    ],
)
def test_endless_work_is_ended_by_the_processors_clock(program: str) -> None:
    assert run_program(program, QUICK).outcome == "timed out"


def children() -> set[str]:
    """Processes that this one has begun, dead ones that nobody has asked after included."""
    found = Path("/proc/self/task").glob("*/children")
    return {number for file in found for number in file.read_text().split()}


def test_endless_waiting_is_ended_by_the_wall_clock_and_leaves_no_process() -> None:
    before = children()
    program = "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n"
    verdict = run_program(program + "time.sleep(99)", Limits(wall_seconds=1.0))
    assert verdict.outcome == "timed out"
    assert children() <= before


def test_a_flood_of_output_and_a_guessed_answer_do_nothing() -> None:
    flood = "import sys\nfor _ in range(10000): print('x' * 1000); print('x', file=sys.stderr)"
    assert run_program(flood).passed
    guess = "import os, sys\nos.write(int(sys.argv[1]), b'passed')\nos._exit(0)"
    assert not run_program(guess).passed
