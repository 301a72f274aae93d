"""Which conversations the page shows, and the replies to them side by side."""

from __future__ import annotations

import json
import math
import re
import statistics
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from lmsmith.core.files import growing_rows
from lmsmith.report.numbers import as_number
from lmsmith.report.run.records import Row, RunRecord, as_table
from lmsmith.report.run.words import REPLIERS

SHOWN_OPEN = 6
"""Prompts shown at once; the others stand in a fold."""
SHOWN_MOST = 60
"""Prompts on the page at most; all of them are in ``evaluate/samples.jsonl``."""
_ROLE_TOKEN = re.compile(r"<\|(system|user|assistant)\|>")

LONG_REPLY = 700
"""Characters after which a text is folded."""

KINDS = ("reward", "judge")
"""Who scores a reply: the reward model, the judge."""

_SCRIPTS = (
    ("kana", "\u3040", "\u30ff"),
    ("han", "\u4e00", "\u9fff"),
    ("han", "\u3400", "\u4dbf"),
    ("hangul", "\uac00", "\ud7af"),
)
"""Scripts that tell the language, by their first and last character."""


class Text(NamedTuple):
    """Text of unknown language: ``head`` is shown, ``rest`` folded; ``language`` "" if unknown."""

    head: str
    rest: str = ""
    language: str = ""

    @property
    def empty(self) -> bool:
        return not (self.head + self.rest).strip()


class Score(NamedTuple):
    """A score with the length, from -1 to 1, of the bar that shows it."""

    name: str
    value: float
    bar: float


class Reply(NamedTuple):
    """One replier's answer to the prompt above it."""

    replier: str
    title: str
    text: Text
    scores: tuple[Score, ...]


class Exchange(NamedTuple):
    """A prompt as (role, text) of each message, and every replier's answer to it."""

    turns: list[tuple[str, Text]]
    replies: list[Reply]


def read_exchanges(run: RunRecord) -> list[Exchange]:
    """The first `SHOWN_MOST` sampled prompts of the evaluate stage in the file's order."""
    rows = _sample_rows(run)
    largest = {
        kind: max((abs(v) for row in rows for v in _scores(row, kind).values()), default=0.0) or 1.0
        for kind in KINDS
    }
    return [_exchange(row, largest) for row in rows[:SHOWN_MOST]]


def average_scores(run: RunRecord) -> dict[str, dict[str, tuple[float, float, int]]]:
    """By replier's title and kind of score: mean, half its 95 % interval, and number of rows."""
    rows = _sample_rows(run)
    averages: dict[str, dict[str, tuple[float, float, int]]] = {}
    for replier in _in_order(name for row in rows for name in _replies(row)):
        for kind in KINDS:
            scores = [s for row in rows if (s := _scores(row, kind).get(replier)) is not None]
            if scores:
                means = averages.setdefault(REPLIERS.get(replier, replier), {})
                means[kind] = (*_mean_interval(scores), len(scores))
    return averages


def read_practice(run: RunRecord, most: int = 4) -> list[Exchange]:
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
        return []
    first, last = min(by_step), max(by_step)
    largest = max((abs(as_number(row.get("score")) or 0.0) for row in rows), default=0.0) or 1.0
    shared = [prompt for prompt in by_step[first] if prompt in by_step[last]]
    groups = [[(first, prompt), (last, prompt)] for prompt in shared[:most]] or [
        [(step, prompt)] for step in (first, last) for prompt in list(by_step[step])[:most]
    ]
    exchanges = []
    for group in groups:
        replies = [_practised(step, by_step[step][prompt], largest) for step, prompt in group]
        exchanges.append(Exchange(_turns(json.loads(group[0][1])), replies))
    return exchanges


def fold(text: str, limit: int = LONG_REPLY) -> Text:
    """``text`` cut at a character's end, the rest to be folded; its language guessed by script."""
    language = guess_language(text)
    if len(text) <= limit * 1.2:
        return Text(text, "", language)
    space = text.rfind(" ", limit - 40, limit)
    cut = space if space > 0 else limit
    while cut < len(text) and _joins(text[cut], text[cut - 1]):
        cut += 1
    return Text(text[:cut], text[cut:], language)


def guess_language(text: str) -> str:
    """The language by its script where that settles it ("zh", "ja", "ko"), "" elsewhere.

    HTML's empty ``lang`` means unknown, which is the truth for text in Latin letters.
    """
    counts = dict.fromkeys(("han", "kana", "hangul", "letters"), 0)
    for character in text[:2000]:
        script = next((name for name, low, high in _SCRIPTS if low <= character <= high), "letters")
        counts[script] += script != "letters" or character.isalpha()
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


def _replies(row: Row) -> Row:
    """By replier, the texts of a row."""
    human = {"human": row["human"]} if isinstance(row.get("human"), str) else {}
    return {**as_table(row.get("responses")), **human}


def _in_order(repliers: Iterable[str]) -> list[str]:
    """Names in `REPLIERS` first, then the others in their order."""
    return sorted(dict.fromkeys(repliers), key=lambda name: [*REPLIERS, name].index(name))


def _exchange(row: Row, largest: dict[str, float]) -> Exchange:
    texts, replies = _replies(row), []
    for replier in _in_order(texts):
        scores = tuple(
            Score(kind, value, max(-1.0, min(1.0, value / largest[kind])))
            for kind in KINDS
            if (value := _scores(row, kind).get(replier)) is not None
        )
        title = REPLIERS.get(replier, replier)
        replies.append(Reply(replier, title, fold(str(texts[replier])), scores))
    return Exchange(_turns(row.get("prompt")), replies)


def _practised(step: int, row: Row, largest: float) -> Reply:
    score = as_number(row.get("score"))
    scores = () if score is None else (Score("reward", score, score / largest),)
    return Reply("ppo", f"PPO, iteration {step:,}", fold(_without_ends(row["response"])), scores)


def _turns(prompt: object) -> list[tuple[str, Text]]:
    if isinstance(prompt, str):
        return _decoded_turns(prompt)
    messages = [m for m in prompt if isinstance(m, dict)] if isinstance(prompt, list) else []
    return [(str(m.get("role", "")), fold(str(m.get("content", "")))) for m in messages]


def _decoded_turns(prompt: str) -> list[tuple[str, Text]]:
    """Turns of a prompt that was decoded from tokens, its chat tokens written out."""
    parts = _ROLE_TOKEN.split(_without_ends(prompt))
    if len(parts) < 3:
        return [("user", fold(parts[0]))]
    turns = [(role, fold(text)) for role, text in zip(parts[1::2], parts[2::2], strict=True)]
    return turns if parts[-1].strip() else turns[:-1]


def _without_ends(text: str) -> str:
    return text.replace("<|end|>", "").replace("<|endoftext|>", "")


def _scores(row: Row, kind: str) -> dict[str, float]:
    pairs = ((name, as_number(value)) for name, value in as_table(row.get(kind)).items())
    return {name: value for name, value in pairs if value is not None}


def _mean_interval(values: list[float]) -> tuple[float, float]:
    """The mean and half its 95 % interval under the normal approximation."""
    mean, count = statistics.fmean(values), len(values)
    return mean, 1.96 * statistics.stdev(values) / math.sqrt(count) if count > 1 else math.inf
