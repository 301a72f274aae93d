"""Labelers' answers to a task: a demonstration's text, a rating with flags, ranks with ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmsmith.core.errors import UserError

FLAGS = (
    "fails_instruction",
    "inappropriate_for_assistant",
    "hallucination",
    "satisfies_constraint",
    "sexual_content",
    "violent_content",
    "encourages_harm",
    "denigrates_protected_class",
    "harmful_advice",
    "expresses_opinion",
    "moral_judgement",
)
"""Flags of an answer, as InstructGPT's labelers set them (Ouyang et al. 2022, table 3)."""

LOWEST, HIGHEST = 1, 7
FEWEST_RANKED, MOST_RANKED = 2, 9
"""A pair at least; InstructGPT had K = 4 to 9 (section 3.5)."""

LONGEST = 100_000
"""Characters of a demonstration or a comment."""


def check_responses(kind: str, responses: Sequence[str]) -> None:
    """Raises UserError unless a demonstration has no responses, a rating one, a ranking 2 to 9."""
    ranges = {"demonstration": (0, 0), "rating": (1, 1), "ranking": (FEWEST_RANKED, MOST_RANKED)}
    least, most = ranges[kind]
    if not least <= len(responses) <= most:
        expected = str(least) if least == most else f"{least} to {most}"
        raise UserError(f"a {kind} of {len(responses)} answers: expected {expected}")


def checked(kind: str, count: int, answer: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    """An answer in its one form; a draft (not ``whole``) may lack any of it.

    - demonstration: ``content``
    - rating: ``score`` 1 to 7, ``flags`` of `FLAGS`, ``comment``
    - ranking: ``ranks``, one for each of ``count`` responses, 1 is best, equal ones are ties, made
      dense (1, 3, 3 is 1, 2, 2); 0 in a draft is one not ranked yet; ``comment``

    Raises:
        UserError: it is none; names what is missing.
    """
    if kind == "demonstration":
        content = _text(answer, "content")
        if whole and not content.strip():
            raise UserError("content: the demonstration is empty")
        return {"content": content}
    comment = {"comment": _text(answer, "comment")}
    return comment | (
        _rating(answer, whole) if kind == "rating" else _ranking(answer, count, whole)
    )


def dense(ranks: Sequence[int]) -> list[int]:
    """The same order and ties in the numbers 1, 2, 3, …"""
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)), start=1)}
    return [places[rank] for rank in ranks]


def _rating(answer: Mapping[str, Any], whole: bool) -> dict[str, Any]:
    score, flags = answer.get("score"), answer.get("flags", [])
    if (whole or score is not None) and not (type(score) is int and LOWEST <= score <= HIGHEST):
        raise UserError(f"score = {score!r}: expected a whole number of {LOWEST} to {HIGHEST}")
    if not isinstance(flags, list) or not all(flag in FLAGS for flag in flags):
        raise UserError(f"flags = {flags!r}: expected some of {', '.join(FLAGS)}")
    return {"score": score, "flags": [flag for flag in FLAGS if flag in flags]}


def _ranking(answer: Mapping[str, Any], count: int, whole: bool) -> dict[str, Any]:
    ranks, least = answer.get("ranks", [] if whole else [0] * count), 1 if whole else 0
    if (
        not isinstance(ranks, list)
        or len(ranks) != count
        or not all(type(rank) is int and least <= rank <= count for rank in ranks)
    ):
        raise UserError(f"ranks = {ranks!r}: expected {count} whole numbers of 1 to {count}")
    return {"ranks": dense(ranks) if whole else list(ranks)}


def _text(answer: Mapping[str, Any], name: str) -> str:
    content = answer.get(name, "")
    if not isinstance(content, str) or len(content) > LONGEST:
        raise UserError(f"{name}: expected a text of {LONGEST:,} characters at most")
    return content
