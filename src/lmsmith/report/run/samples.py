"""Which conversations the page shows, and the replies to them side by side."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lmsmith.core.files import growing_rows
from lmsmith.report.run.records import Row, RunRecord, as_number
from lmsmith.report.run.words import REPLIERS

SHOWN_OPEN = 6
"""Prompts shown at once; the others stand in a fold."""
SHOWN_MOST = 60
"""Prompts on the page at most; all of them are in ``evaluate/samples.jsonl``."""
_ROLE_TOKEN = re.compile(r"<\|(system|user|assistant)\|>")

LONG_REPLY = 700
"""Characters after which a text is folded."""


@dataclass(frozen=True)
class Text:
    """Text of unknown language: ``head`` is shown, ``rest`` folded; ``language`` "" if unknown."""

    head: str
    rest: str = ""
    language: str = ""

    @property
    def empty(self) -> bool:
        return not (self.head + self.rest).strip()


@dataclass(frozen=True)
class Turn:
    """One message of a prompt."""

    role: str
    text: Text


@dataclass(frozen=True)
class Score:
    """A score with the length, from -1 to 1, of the bar that shows it."""

    name: str
    value: float
    bar: float


@dataclass(frozen=True)
class Reply:
    """One replier's answer to the prompt above it."""

    replier: str
    title: str
    text: Text
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Exchange:
    """A prompt and every replier's answer to it."""

    turns: tuple[Turn, ...]
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Average:
    """A replier's mean score over all sampled prompts with its 95 % interval."""

    title: str
    replier: str
    values: dict[str, tuple[float, float, int]]  # score's name → (mean, half interval, count)


def read_exchanges(run: RunRecord) -> tuple[Exchange, ...]:
    """All sampled prompts of the evaluate stage in the file's order: none is picked."""
    rows = _sample_rows(run)
    largest = {
        kind: max((abs(v) for row in rows for v in _scores(row, kind).values()), default=1.0) or 1.0
        for kind in ("reward", "judge")
    }
    return tuple(_exchange(row, largest) for row in rows[:SHOWN_MOST])


def average_scores(run: RunRecord) -> tuple[Average, ...]:
    """The mean reward and judge's score of every replier over all rows of the samples file."""
    rows = _sample_rows(run)
    averages = []
    for replier in _repliers(rows):
        values = {}
        for kind in ("reward", "judge"):
            scores = [s for row in rows if (s := _scores(row, kind).get(replier)) is not None]
            if scores:
                values[kind] = (*_mean_interval(scores), len(scores))
        if values:
            averages.append(Average(REPLIERS.get(replier, replier), replier, values))
    return tuple(averages)


def read_practice(run: RunRecord, most: int = 4) -> tuple[Exchange, ...]:
    """Samples of PPO's first and last logged step; the same prompts where there are such.

    A prompt that both steps answered is one exchange with two replies; where the steps share
    none, ``most`` exchanges of each step follow one another. Empty with fewer than two steps.
    """
    rows = growing_rows(run.folder / "ppo" / "samples.jsonl")
    by_step: dict[int, dict[str, Row]] = {}
    for row in rows:
        step = as_number(row.get("step"))
        if step is not None and isinstance(row.get("response"), str):
            by_step.setdefault(int(step), {})[json.dumps(row.get("prompt"))] = row
    if len(by_step) < 2:
        return ()
    first, last = min(by_step), max(by_step)
    largest = max((abs(as_number(row.get("score")) or 0.0) for row in rows), default=0.0) or 1.0
    shared = [prompt for prompt in by_step[first] if prompt in by_step[last]]
    groups = [[(first, prompt), (last, prompt)] for prompt in shared[:most]] or [
        [(step, prompt)] for step in (first, last) for prompt in list(by_step[step])[:most]
    ]
    return tuple(
        Exchange(
            _turns(by_step[group[0][0]][group[0][1]].get("prompt")),
            tuple(_practised(step, by_step[step][prompt], largest) for step, prompt in group),
        )
        for group in groups
    )


def fold(text: str, limit: int = LONG_REPLY) -> Text:
    """``text`` cut at a character's end, the rest to be folded; its language guessed by script."""
    language = guess_language(text)
    if len(text) <= limit * 1.2:
        return Text(text, "", language)
    cut = limit
    space = text.rfind(" ", limit - 40, limit)
    if space > 0:
        cut = space
    while cut < len(text) and _joins(text[cut], text[cut - 1]):
        cut += 1
    return Text(text[:cut], text[cut:], language)


def guess_language(text: str) -> str:
    """The language by its script where that settles it ("zh", "ja", "ko"), "" elsewhere.

    HTML's empty ``lang`` means unknown, which is the truth for text in Latin letters.
    """
    counts = {"han": 0, "kana": 0, "hangul": 0, "letters": 0}
    for character in text[:2000]:
        code = ord(character)
        if 0x3040 <= code <= 0x30FF:
            counts["kana"] += 1
        elif 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF:
            counts["han"] += 1
        elif 0xAC00 <= code <= 0xD7AF:
            counts["hangul"] += 1
        elif character.isalpha():
            counts["letters"] += 1
    if counts["hangul"] > counts["letters"]:
        return "ko"
    if counts["kana"] * 5 > counts["han"] + counts["letters"]:
        return "ja"
    return "zh" if counts["han"] > counts["letters"] / 3 else ""


def _joins(character: str, before: str) -> bool:
    """True if a cut before ``character`` would tear one visible character (emoji, accents)."""
    return (
        unicodedata.combining(character) != 0
        or character in "\u200d\ufe0f"
        or before == "\u200d"
        or 0x1F3FB <= ord(character) <= 0x1F3FF
    )


def _sample_rows(run: RunRecord) -> list[Row]:
    return growing_rows(run.folder / "evaluate" / "samples.jsonl")


def _repliers(rows: Iterable[Row]) -> list[str]:
    seen: dict[str, None] = {}
    for row in rows:
        if isinstance(row.get("human"), str):
            seen.setdefault("human")
        seen.update(dict.fromkeys(_table(row, "responses")))
    return sorted(seen, key=lambda name: [*REPLIERS, name].index(name))


def _exchange(row: Row, largest: dict[str, float]) -> Exchange:
    texts = {**_table(row, "responses")}
    if isinstance(row.get("human"), str):
        texts["human"] = row["human"]
    replies = []
    for replier in _repliers([row]):
        scores = tuple(
            Score(kind, value, max(-1.0, min(1.0, value / largest[kind])))
            for kind in ("reward", "judge")
            if (value := _scores(row, kind).get(replier)) is not None
        )
        title = REPLIERS.get(replier, replier)
        replies.append(Reply(replier, title, fold(str(texts[replier])), scores))
    return Exchange(_turns(row.get("prompt")), tuple(replies))


def _practised(step: int, row: Row, largest: float) -> Reply:
    score = as_number(row.get("score"))
    scores = () if score is None else (Score("reward", score, score / largest),)
    return Reply("ppo", f"PPO, iteration {step:,}", fold(_without_ends(row["response"])), scores)


def _turns(prompt: object) -> tuple[Turn, ...]:
    if isinstance(prompt, str):
        return _decoded_turns(prompt)
    messages = [m for m in prompt if isinstance(m, dict)] if isinstance(prompt, list) else []
    return tuple(Turn(str(m.get("role", "")), fold(str(m.get("content", "")))) for m in messages)


def _decoded_turns(prompt: str) -> tuple[Turn, ...]:
    """Turns of a prompt that was decoded from tokens, its chat tokens written out."""
    parts = _ROLE_TOKEN.split(_without_ends(prompt))
    if len(parts) < 3:
        return (Turn("user", fold(parts[0])),)
    turns = [Turn(role, fold(text)) for role, text in zip(parts[1::2], parts[2::2], strict=True)]
    if not parts[-1].strip():
        turns.pop()
    return tuple(turns)


def _without_ends(text: str) -> str:
    return text.replace("<|end|>", "").replace("<|endoftext|>", "")


def _table(row: Row, key: str) -> Row:
    value = row.get(key)
    return value if isinstance(value, dict) else {}


def _scores(row: Row, kind: str) -> dict[str, float]:
    pairs = ((name, as_number(value)) for name, value in _table(row, kind).items())
    return {name: value for name, value in pairs if value is not None}


def _mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half its 95 % interval under the normal approximation."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.inf
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, 1.96 * math.sqrt(variance / len(values))
