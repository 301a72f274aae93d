"""What each stage gained over the one before it, in numbers and in honest words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from lmsmith.report import numbers
from lmsmith.report.numbers import fixed, percent, percent_interval
from lmsmith.report.run.records import RunRecord
from lmsmith.report.run.words import REPLIERS, STAGE_WORDS

Verdict = Literal["better", "unclear", "worse", ""]
Metrics = Mapping[str, float | None]

VALIDATION_BITS = "validation_bits_per_byte"

VERDICT_WORDS: dict[Verdict, str] = {
    "better": "gained",
    "unclear": "no clear gain",
    "worse": "lost",
    "": "",
}


@dataclass(frozen=True)
class Gain:
    """A row of the table of stages; texts are empty where there is nothing to say."""

    stage: str
    title: str
    does: str
    status: str
    measure: str
    before: str
    after: str
    note: str
    verdict: Verdict
    wall_seconds: float | None
    peak_memory_bytes: float | None

    @property
    def verdict_words(self) -> str:
        return VERDICT_WORDS[self.verdict]


@dataclass(frozen=True)
class Meter:
    """A share with its interval and the mark it should clear, all between 0 and 1."""

    value: float
    low: float | None
    high: float | None
    mark: float


@dataclass(frozen=True)
class KeyFigure:
    """One of the few numbers at the top of the page."""

    name: str
    value: str
    note: str
    stage: str
    meter: Meter | None = None


def describe_gains(run: RunRecord, tables: Mapping[str, Metrics]) -> tuple[Gain, ...]:
    """A row a stage of the run, in order, whether it has run or not."""
    rows = []
    for stage in run.planned:
        words, measure = STAGE_WORDS.get(stage.name), _MEASURES.get(stage.name)
        measured = _NONE
        if measure is not None and stage.status != "not run":
            measured = measure(tables)
            if measured == _NONE:
                measured = ("not measured yet", "", "", "", "")
        rows.append(
            Gain(
                stage.name,
                words.title if words else stage.name,
                words.does if words else "",
                stage.status,
                *measured,
                stage.wall_seconds,
                stage.peak_memory_bytes,
            )
        )
    return tuple(rows)


def key_figures(tables: Mapping[str, Metrics]) -> tuple[KeyFigure, ...]:
    """The numbers by which a run is judged, those of them that have been measured."""
    figures = []
    first = _first_model(tables)
    start, sft = tables.get(first, {}), tables.get("sft", {})
    bits, where = _bits_per_byte(start)
    if bits is not None:
        later = [
            f"{REPLIERS[stage]} {fixed(value, 3)}"
            for stage in ("sft", "ppo")
            if (value := tables.get(stage, {}).get("bits_per_byte")) is not None
        ]
        note = f"{REPLIERS[first].lower()}, {where} split"
        note += f"; {', '.join(later)}" if later else ""
        figures.append(KeyFigure("Bits per byte", fixed(bits, 3), note, first))
    perplexity = sft.get("reply_perplexity")
    if perplexity is not None:
        before = start.get("reply_perplexity")
        note = "after SFT" + (f"; {fixed(before, 1)} before" if before is not None else "")
        figures.append(KeyFigure("Reply perplexity", fixed(perplexity, 1), note, "sft"))
    figures.extend(_share_figure(tables, "reward", "accuracy", "Reward model accuracy"))
    figures.extend(_share_figure(tables, "ppo", "win_rate", "PPO wins over SFT"))
    return tuple(figures)


def verdict_of(low: float | None, high: float | None, mark: float) -> Verdict:
    """Whether an interval lies wholly above ``mark``, wholly below, or holds it."""
    if low is None or high is None:
        return ""
    return "better" if low > mark else "worse" if high < mark else "unclear"


def _share_figure(
    tables: Mapping[str, Metrics], stage: str, metric: str, name: str
) -> list[KeyFigure]:
    table = tables.get(stage, {})
    value, low, high = (table.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return []
    mark = _best_baseline(table)[1] if stage == "reward" else 0.5
    interval = percent_interval(low, high)
    note = f"95{numbers.NBSP}%: {interval}" if interval else ""
    if stage == "reward" and mark > 0.5:
        against = f"{_best_baseline(table)[0]}: {percent(mark)}"
        note = f"{note}; {against}" if note else against
    return [KeyFigure(name, percent(value), note, stage, Meter(value, low, high, mark))]


def _best_baseline(table: Metrics) -> tuple[str, float]:
    """The strongest thing a reward model must beat: a coin, length, or SFT's likelihood."""
    rules = [
        ("a coin", 0.5),
        ("the longer wins", table.get("longer_wins_accuracy")),
        ("the likelier wins", table.get("likelier_wins_accuracy")),
    ]
    return max(
        ((name, value) for name, value in rules if value is not None), key=lambda rule: rule[1]
    )


_Measured = tuple[str, str, str, str, Verdict]
_NONE: _Measured = ("", "", "", "", "")


def _nothing(_: Mapping[str, Metrics]) -> _Measured:
    return _NONE


def _of_data(tables: Mapping[str, Metrics]) -> _Measured:
    table = tables["data"]
    kept, read = table.get("conversations.kept"), table.get("conversations.read")
    if kept:
        note = f"of {_whole(read)} read" if read and read != kept else ""
        return ("conversations kept", "", _whole(kept), note, "")
    documents = table.get("documents")
    return ("documents", "", _whole(documents), "", "") if documents else _NONE


def _of_tokenizer(tables: Mapping[str, Metrics]) -> _Measured:
    table = tables["tokenizer"]
    vocabulary, length = table.get("vocabulary_size"), table.get("bytes_per_token")
    density = table.get("tokens_per_character")
    note = f"{_whole(vocabulary)} pieces" if vocabulary is not None else ""
    if note and density is not None:
        note += f", {fixed(density, 2)} tokens a character"
    if length is None:
        return ("pieces in the vocabulary", "", _whole(vocabulary), "", "") if note else _NONE
    return ("bytes per token", "1", fixed(length, 2), note, "")


def _first_model(tables: Mapping[str, Metrics]) -> str:
    """The stage whose model fine-tuning began with."""
    return "pretrain" if tables.get("pretrain") else "base"


def _of_base(tables: Mapping[str, Metrics]) -> _Measured:
    after, where = _bits_per_byte(tables["base"])
    note = f"on the {where} split"
    return ("bits per byte of unseen text", "", fixed(after, 3), note, "") if after else _NONE


def _of_pretrain(tables: Mapping[str, Metrics]) -> _Measured:
    after, where = _bits_per_byte(tables["pretrain"])
    if after is None:
        return _NONE
    verdict: Verdict = "better" if after < 8 else "worse"
    note = f"on the {where} split; 8 is knowing nothing"
    return ("bits per byte of unseen text", "8", fixed(after, 3), note, verdict)


def _bits_per_byte(table: Metrics) -> tuple[float | None, str]:
    """The pretrained model's figure on the test split, else training's own on validation."""
    tested = table.get("bits_per_byte")
    return (tested, "test") if tested is not None else (table.get(VALIDATION_BITS), "validation")


def _of_sft(tables: Mapping[str, Metrics]) -> _Measured:
    before = tables.get(_first_model(tables), {}).get("reply_perplexity")
    after = tables["sft"].get("reply_perplexity")
    if after is None:
        return _NONE
    measure = "perplexity of the person's reply"
    if before is None:
        return (measure, "", fixed(after, 1), "", "")
    verdict: Verdict = "better" if after < before else "worse"
    note = f"{percent(abs(1 - after / before), 0)} {'less' if after < before else 'more'}"
    return (measure, fixed(before, 1), fixed(after, 1), note, verdict)


def _of_rankings(stage: str, tables: Mapping[str, Metrics]) -> _Measured:
    total = [tables[stage].get(name) for name in ("train", "validation", "test")]
    known = [value for value in total if value is not None]
    if not known:
        known = [v for v in [tables[stage].get("rankings")] if v is not None]
    return ("prompts with ranked replies", "", _whole(sum(known)), "", "") if known else _NONE


def _of_reward(stage: str, tables: Mapping[str, Metrics]) -> _Measured:
    table = tables[stage]
    value, low, high = (table.get(f"accuracy{end}") for end in ("", "_low", "_high"))
    if value is None:
        return _NONE
    name, mark = _best_baseline(table)
    interval = percent_interval(low, high)
    return (
        "pairs ordered as the labeler did",
        percent(mark),
        percent(value),
        (f"95{numbers.NBSP}%: {interval}; " if interval else "") + f"before: {name}",
        verdict_of(low, high, mark),
    )


def _of_ppo(tables: Mapping[str, Metrics]) -> _Measured:
    """By the judge; without one by the reward model that PPO trained with, which proves less."""
    table = tables["ppo"]
    judged = table.get("win_rate") is not None
    metric = "win_rate" if judged else "win_rate_by_reward"
    value, low, high = (table.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return _NONE
    notes = []
    if interval := percent_interval(low, high):
        notes.append(f"95{numbers.NBSP}%: {interval}")
    if (controlled := table.get("win_rate_length_controlled")) is not None:
        notes.append(f"at equal length {percent(controlled)}")
    if (kl := table.get("kl")) is not None:
        notes.append(f"KL {fixed(kl, 2)} nats")
    if not judged:
        notes.append("no judge measured it")
    return (
        f"wins over SFT by {'the judge' if judged else 'its own reward model'}",
        percent(0.5),
        percent(value),
        "; ".join(notes),
        verdict_of(low, high, 0.5) if judged else "",
    )


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


_MEASURES: dict[str, Callable[[Mapping[str, Metrics]], _Measured]] = {
    "data": _of_data,
    "tokenizer": _of_tokenizer,
    "pretrain": _of_pretrain,
    "base": _of_base,
    "sft": _of_sft,
    "rankings": lambda tables: _of_rankings("rankings", tables),
    "reward": lambda tables: _of_reward("reward", tables),
    "ppo": _of_ppo,
    "judge_rankings": lambda tables: _of_rankings("judge_rankings", tables),
    "judge": lambda tables: _of_reward("judge", tables),
}
