"""``lmsmith eval --win-rate``: what all models reply to, and who says whose reply is better."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith.core.progress import RunProgress, choose_progress

if TYPE_CHECKING:
    from lmsmith.cli.eval_run import Measured
    from lmsmith.comparison.instructions import Instruction, Replies
    from lmsmith.comparison.versus import Versus

PEOPLE = "people"
"""The judge that is no model: the labelers of a database."""


@dataclass(frozen=True)
class Instructions:
    """What models reply to, how, and who judges.

    Attributes:
        file: JSONL.
        limit: only so many of its rows, drawn by the seed.
        tokens: the longest reply.
        seed: of the rows drawn, the replies and the intervals.
        greedy: the likeliest token each time, else as ``lmsmith chat`` draws.
        judge: a model, or `PEOPLE`.
        database: the labelers'; the server's if empty.
        labelers: how many are to judge each pair.
    """

    file: Path
    limit: int | None
    tokens: int
    seed: int
    greedy: bool
    judge: str
    database: str = ""
    labelers: int = 1

    @functools.cached_property
    def asked(self) -> Sequence[Instruction]:
        """The file's instructions, read once."""
        from lmsmith.comparison.instructions import read_instructions

        return read_instructions(self.file, self.limit, self.seed)

    def check(self) -> None:
        """What can be known to be wrong before hours are spent.

        Raises:
            UserError: the instructions are none, or there is no such judge.
        """
        from lmsmith.catalogue.resolve import resolve

        _ = self.asked  # raises what is wrong with the file
        if self.judge != PEOPLE:
            resolve(self.judge)

    def replies(self, subject: Any, place: Path, progress: RunProgress) -> Replies:
        """A model's replies."""
        from lmsmith.comparison.instructions import reply_spec, write_replies

        spec = reply_spec(subject, self.tokens, greedy=self.greedy)
        return write_replies(subject, self.asked, self.file, place, spec, self.seed, progress)

    def judged(
        self, pairs: Sequence[tuple[Measured, Measured]], machine: Any, *, quiet: bool
    ) -> list[Versus]:
        """Of each two models, the first before the second, how often the second one's is better.

        Judgements are kept in the second one's folder, in ``win-rate-FIRST.jsonl``.
        """
        return self._by_people(pairs) if self.judge == PEOPLE else self._by(pairs, machine, quiet)

    def _by(
        self, pairs: Sequence[tuple[Measured, Measured]], machine: Any, quiet: bool
    ) -> list[Versus]:
        from lmsmith.comparison.judges import load_a_judge
        from lmsmith.comparison.versus import judge_replies
        from lmsmith.evaluation.run import folder_name
        from lmsmith.runs.locking import locked
        from lmsmith.runs.signals import StopSignal

        progress = choose_progress(f"win rate by {self.judge}", quiet)
        labels = [f"win rate against {before.name}" for before, _ in pairs]
        found = []
        progress.plan(labels)
        try:
            judging = load_a_judge(self.judge, machine)
            for label, (before, after) in zip(labels, pairs, strict=True):
                started = time.monotonic()
                progress.stage_begins(label, "")
                log = after.folder / f"win-rate-{folder_name(before.word)}.jsonl"
                with StopSignal(), locked(after.folder, progress):
                    a, b = after.replied, before.replied
                    found.append(judge_replies(judging, self.asked, a, b, log, progress, self.seed))
                progress.stage_ends(label, time.monotonic() - started)
        finally:
            progress.close()
        return found

    def _by_people(self, pairs: Sequence[tuple[Measured, Measured]]) -> list[Versus]:
        import msgspec

        from lmsmith.cli.feedback import opened
        from lmsmith.core.files import write_jsonl
        from lmsmith.evaluation.run import folder_name

        found = []
        with opened(self.database, new=True) as store:
            from lmsmith.comparison.people import people_judge

            for before, after in pairs:
                a, b = after.replied, before.replied
                versus = people_judge(store, self.asked, a, b, self.labelers, self.seed)
                log = after.folder / f"win-rate-{folder_name(before.word)}-people.jsonl"
                write_jsonl(log, [msgspec.to_builtins(row) for row in versus.rows])
                found.append(replace(versus, log=log.name))
        return found

    def next_step(self, found: Sequence[Versus]) -> str:
        """What is to be done now, if people have something left to judge."""
        waiting = sum(each.people.waiting for each in found if each.people)
        if not waiting:
            return ""
        from lmsmith.cli.feedback import next_step

        return f"{next_step(self.database)}. Then this command again"
