"""AI feedback: models answer prompts, and a judge ranks the answers, in place of people.

The judge compares two answers at a time (Bai et al. 2022, constitutional AI, section 4.1). The
rows are those of people's rankings, so the reward stage reads them as they are.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    again: bool = False,
) -> dict[str, int]:
    """Append a ranking for each prompt to a JSONL file; after an interrupted run, the rest.

    Prompts without one are kept in the file of `left_out_of`, and not asked again.

    Args:
        writers: models by name; each writes an equal part of the answers.
        answers: to each prompt, 2 to 9.
        drawn_by: what else decides the answers, as JSON: sampling settings, the models' weights.
            A prompt is known if all of it is the same.
        again: whether to ask the prompts again that were left out.

    Returns:
        ``rankings`` made, ``known`` from an earlier run, ``dropped`` for want of different answers,
        ``undecided`` where the judge has no opinion: such a row would teach nothing;
        ``asked_before``, how many of these two were asked in an earlier run alone.

    Raises:
        UserError: no model, or another number of answers.
    """
    if not writers:
        raise UserError("no model writes the answers", "name one or more")
    if not 2 <= answers <= 9:
        raise UserError(f"--answers {answers}: 2 to 9 are ranked")
    beside = left_out_of(file)
    known, left_out = _rows(file), _rows(beside)
    counts = dict.fromkeys(("rankings", "known", "dropped", "undecided", "asked_before"), 0)
    settings = [list(writers), judge.fingerprint, answers, seed, drawn_by]
    file.parent.mkdir(parents=True, exist_ok=True)
    progress.begin("prompts", len(prompts), "prompts")
    for number, each in enumerate(prompts, start=1):
        stop_if_requested()
        name = fingerprint([SOURCE, each.messages, *settings])[:16]
        if name in known:
            counts["known"] += 1
        elif name in left_out and not again:
            counts[left_out[name]["why"]] += 1
            counts["asked_before"] += 1
        else:
            found = collect_answers(each.messages, writers, answers, seed)
            row = _ranked(each, found, judge, answers)
            counts[row.get("why", "rankings")] += 1
            if "why" not in row:
                _append(file, {"id": name, **row})
            elif name not in left_out:
                _append(beside, {"id": name, **row})
        progress.update(number)
    progress.end()
    return counts


def left_out_of(file: Path) -> Path:
    """The file of prompts without a ranking, beside that of rankings: JSONL rows with ``id``,
    ``why``, the prompt, and its responses."""
    return file.with_name(f"{file.name}.left-out")


def _ranked(
    prompt: SampledPrompt, found: Sequence[tuple[str, str]], judge: Judge, answers: int
) -> dict[str, Any]:
    """A row with the ranks of answers, or with ``why`` there are none."""
    responses = [text for _, text in found]
    row: dict[str, Any] = {
        "prompt": prompt.messages,
        "responses": responses,
        "models": [model for model, _ in found],
        "labeler": judge.name,
        "source": SOURCE,
    }
    if len(found) < answers:
        return row | {"why": "dropped"}
    ranks = rank_responses(judge, prompt.messages, responses)
    return row | ({"ranks": ranks} if max(ranks) > 1 else {"why": "undecided"})


def _rows(file: Path) -> dict[str, Any]:
    """The rows of a file that rows are added to, by id; the last one of an id counts."""
    mend_last_line(file)
    return {str(row.get("id")): row for _, row in read_jsonl(file)} if file.exists() else {}


def _append(file: Path, row: Mapping[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row, ensure_ascii=False) + "\n")
