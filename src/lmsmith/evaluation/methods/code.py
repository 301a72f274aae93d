"""Programs by their tests, run where they can do no harm: HumanEval (Chen et al. 2021).

Each program runs in a process of its own, in an empty temporary folder, with these limits, which
`sandbox_child` sets before the program begins:

- processor time, memory, file size and open files by resource limits; wall time from outside;
- no network, no other process, no signal to one, no change of a file's rights: seccomp refuses
  the system calls, and root's powers are given up;
- no file outside its folder but the interpreter's own to read: Landlock refuses it.

Where the system has neither seccomp nor Landlock (they are Linux's), nothing is run. What remains:
the program shares its interpreter with its tests, and could trick these; a kernel's own faults are
open to it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lmsmith.core.errors import UserError
from lmsmith.evaluation.methods.writing import WritingMethod
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.rows import ProgramRow
from lmsmith.evaluation.tasks.prompts import Question
from lmsmith.evaluation.tasks.spec import AnswerSpec, measured_at
from lmsmith.runs.stage_folder import available_cores

CHILD = Path(__file__).with_name("sandbox_child.py")


class Code(WritingMethod):
    """Completes programs, and runs them with their tests in the sandbox.

    ``pass_at_K`` is the unbiased estimate from all samples, for K = 1, 10 and 100 as far as there
    are so many.
    """

    def __init__(
        self, model: EvaluatedModel, questions: Sequence[Question], spec: AnswerSpec, seed: int = 0
    ) -> None:
        check_system()
        contexts = [question.contexts[0] for question in questions]
        super().__init__(model, questions, contexts, spec, seed)

    def answer(self, numbers: Sequence[int]) -> Iterator[ProgramRow]:
        """The rows of the problems of these numbers."""
        with ThreadPoolExecutor(available_cores()) as pool:
            for question, texts, lost in zip(*self.written(numbers), strict=True):
                programs = [make_program(question, text) for text in texts]
                verdicts = list(pool.map(run_program, programs))
                passed = sum(verdict.passed for verdict in verdicts)
                yield ProgramRow(
                    id=question.id,
                    shots=list(question.shots),
                    prompt=question.plain,
                    gold=question.choices[0],
                    texts=texts,
                    verdicts=[" ".join([v.outcome, v.detail]).strip() for v in verdicts],
                    truncated=lost,
                    metrics={
                        f"pass_at_{k}": pass_at_k(len(verdicts), passed, k)
                        for k in measured_at(len(verdicts))
                    },
                )


def make_program(question: Question, completion: str) -> str:
    """Prompt, completion and tests as one program."""
    return f"{question.plain}{completion}\n{question.answers[0]}"


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k), the unbiased estimate from n samples of which c passed.

    As a product, which neither overflows nor loses digits.

    Raises:
        ValueError: fewer samples than k, or more passed than there are.
    """
    if not (0 <= passed <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} of {samples} samples, {passed} passed")
    if samples - passed < k:
        return 1.0
    missed = 1.0
    for number in range(samples - passed + 1, samples + 1):
        missed *= 1.0 - k / number
    return 1.0 - missed


@dataclass(frozen=True)
class Limits:
    """The limits of a program.

    Attributes:
        wall_seconds: several times the processor's, since the machine may be busy.
        memory_bytes: of address space.
        file_bytes: of any file it writes.
    """

    cpu_seconds: int = 5
    wall_seconds: float = 30.0
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    open_files: int = 32


@dataclass(frozen=True)
class Verdict:
    """How a program ended; ``detail`` is its error's last line."""

    outcome: Literal["passed", "failed", "timed out"]
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def run_program(program: str, limits: Limits | None = None) -> Verdict:
    """Run a Python program; it passes if it comes to its end.

    Leaving early, by ``sys.exit(0)`` or otherwise, is no passing.

    Raises:
        UserError: this system cannot hold a program back.
    """
    check_system()
    return _run(program, limits or Limits())


@functools.cache
def check_system() -> None:
    """Make sure that programs are held back here, by trying.

    Raises:
        UserError: they are not.
    """
    verdict = _run("pass", Limits())
    if not verdict.passed:
        problem = f"programs cannot be run safely on this system: {verdict.detail}"
        fix = "code tasks need Linux 5.13 or newer on x86-64 or arm64; leave them out elsewhere"
        raise UserError(problem, fix)


def _run(program: str, limits: Limits) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="lmsmith-sandbox-") as folder:
        return _run_in(folder, program, limits)


def _run_in(folder: str, program: str, limits: Limits) -> Verdict:
    word = secrets.token_hex(16)
    order = {"program": program, "word": word, "folder": folder, "limits": asdict(limits)}
    # Nothing of ours: no keys, no paths.
    environment = {"HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as answer:
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(CHILD), str(writer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
                pass_fds=[writer],
                start_new_session=True,
            )
        finally:
            os.close(writer)
        try:
            child.communicate(json.dumps(order).encode(), timeout=limits.wall_seconds)
        except subprocess.TimeoutExpired:
            return Verdict("timed out", f"{limits.wall_seconds:g} s")
        except BrokenPipeError:
            pass
        finally:
            _end(child)
        said = answer.read(4096).decode("utf-8", "replace")
    if said == word:
        return Verdict("passed")
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Verdict("timed out", f"{limits.cpu_seconds} s of the processor")
    return Verdict("failed", said or f"ended early, with code {child.returncode}")


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()
