"""AI feedback: models answer prompts, and a judge ranks the answers, in place of people.

The judge compares two answers at a time (Bai et al. 2022, constitutional AI, section 4.1). The
rows are those of people's rankings, so the reward stage reads them as they are.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmsmith.comparison.judges import Judge
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, mend_last_line, read_jsonl
from lmsmith.core.progress import Progress
from lmsmith.feedback.sample import SampledPrompt, Writer, collect_answers
from lmsmith.prompts import Message
from lmsmith.runs.signals import stop_if_requested

SOURCE = "judge"
"""``source`` of the rows, which tells them from people's."""


def rank_responses(judge: Judge, prompt: Sequence[Message], responses: Sequence[str]) -> list[int]:
    """Ranks of K responses, 1 is best, equal numbers are ties.

    All K(K − 1)/2 pairs are compared. A response has a point for each that it is better than, and
    half a point for a tie; points order them.
    """
    pairs = list(itertools.combinations(range(len(responses)), 2))
    rows = [(list(prompt), responses[one], responses[other]) for one, other in pairs]
    points = [0.0] * len(responses)
    for (one, other), found in zip(pairs, judge.compare(rows), strict=True):
        won = (
            1 + (found["score_a"] > found["score_b"]) - (found["score_a"] < found["score_b"])
        ) / 2
        points[one] += won
        points[other] += 1 - won
    order = sorted(set(points), reverse=True)
    return [1 + order.index(each) for each in points]


def rank_answers(
    prompts: Sequence[SampledPrompt],
    writers: Mapping[str, Writer],
    judge: Judge,
    file: Path,
    *,
    answers: int,
    seed: int,
    progress: Progress,
    drawn_by: object = None,
) -> dict[str, int]:
    """Append a ranking for each prompt to a JSONL file; after an interrupted run, the rest.

    Args:
        writers: models by name; each writes an equal part of the answers.
        answers: to each prompt, 2 to 9.
        drawn_by: what else decides the answers, as JSON: sampling settings, the models' weights.
            A prompt is known if all of it is the same.

    Returns:
        ``rankings`` made, ``known`` from an earlier run, ``dropped`` for want of different answers,
        ``undecided`` where the judge has no opinion: such a row would teach nothing.

    Raises:
        UserError: no model, or another number of answers.
    """
    if not writers:
        raise UserError("no model writes the answers", "name one or more")
    if not 2 <= answers <= 9:
        raise UserError(f"--answers {answers}: 2 to 9 are ranked")
    mend_last_line(file)
    known = {row.get("id") for _, row in read_jsonl(file)} if file.exists() else set()
    counts: Counter[str] = Counter(rankings=0, known=0, dropped=0, undecided=0)
    settings = [list(writers), judge.fingerprint, answers, seed, drawn_by]
    file.parent.mkdir(parents=True, exist_ok=True)
    progress.begin("prompts", len(prompts), "prompts")
    with file.open("a", encoding="utf-8") as out:
        for number, each in enumerate(prompts, start=1):
            stop_if_requested()
            name = fingerprint([SOURCE, each.messages, *settings])[:16]
            if name in known:
                counts["known"] += 1
            elif len(found := collect_answers(each.messages, writers, answers, seed)) < answers:
                counts["dropped"] += 1
            else:
                models, responses = zip(*found, strict=True)
                ranks = rank_responses(judge, each.messages, responses)
                counts["rankings" if max(ranks) > 1 else "undecided"] += 1
                row = {"id": name, "prompt": each.messages, "responses": responses, "ranks": ranks}
                row |= {"models": models, "labeler": judge.name, "source": SOURCE}
                if max(ranks) > 1:
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
                    out.flush()
            progress.update(number)
    progress.end()
    return dict(counts)
