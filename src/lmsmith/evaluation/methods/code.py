"""Programs by their tests: HumanEval (Chen et al. 2021).

The sandbox runs each program in one process and its tests in another, which knows the program's
functions by the values they give back alone; see `evaluation.sandbox`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from lmsmith.evaluation.methods.writing import WritingMethod
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.rows import ProgramRow
from lmsmith.evaluation.sandbox.programs import Limits as Limits
from lmsmith.evaluation.sandbox.programs import Program, check_system, run_program
from lmsmith.evaluation.sandbox.programs import Verdict as Verdict
from lmsmith.evaluation.tasks.prompts import Question
from lmsmith.evaluation.tasks.spec import AnswerSpec, measured_at
from lmsmith.runs.stage_folder import available_cores


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


def make_program(question: Question, completion: str) -> Program:
    """Prompt and completion as a program, with the question's tests."""
    return Program(f"{question.plain}{completion}\n", question.answers[0], question.plain)


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
