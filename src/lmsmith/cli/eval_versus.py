"""``lmsmith eval --win-rate``: what both models reply to, and who says whose reply is better."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith.core.progress import RunProgress

if TYPE_CHECKING:
    from lmsmith.cli.eval_run import Measured
    from lmsmith.evaluation.versus import Versus


@dataclass(frozen=True)
class Instructions:
    """What both models reply to, and how long."""

    file: Path
    limit: int | None
    tokens: int
    seed: int

    def replies(self, subject: Any, place: Path, progress: RunProgress) -> list[str]:
        """A model's replies."""
        from lmsmith.evaluation.tasks.spec import AnswerSpec
        from lmsmith.evaluation.versus import read_instructions, write_replies

        asked = read_instructions(self.file, self.limit)
        spec = AnswerSpec(max_new_tokens=self.tokens, stop=())
        return write_replies(subject, asked, self.file, place, spec, self.seed, progress)

    def judged(
        self, found: Measured, before: Measured, judge: str, machine: Any, place: Path
    ) -> Versus:
        """Whose replies are better; what was judged goes to ``win-rate.jsonl``."""
        from lmsmith.core.files import write_jsonl
        from lmsmith.evaluation.judges import load_a_judge
        from lmsmith.evaluation.versus import judge_replies, read_instructions

        asked = read_instructions(self.file, self.limit)
        judging = load_a_judge(judge, machine)
        versus = judge_replies(judging, asked, found.replies, before.replies, self.seed)
        write_jsonl(place / "win-rate.jsonl", [dict(row) for row in versus.rows])
        return versus
