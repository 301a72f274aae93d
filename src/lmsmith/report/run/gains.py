"""Each stage's gain over the one before it, in numbers and in honest words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from lmsmith.report.numbers import NBSP, fixed, percent, percent_interval
from lmsmith.report.run.records import RunRecord
from lmsmith.report.run.words import REPLIERS, STAGE_WORDS

Verdict = Literal["better", "unclear", "worse", ""]
Metrics = Mapping[str, float | None]

_BITS = "bits per byte of unseen text"

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


class Meter(NamedTuple):
    """A share with its interval and the mark it should clear, all between 0 and 1."""

    value: float
    low: float | None
    high: float | None
    mark: float


class KeyFigure(NamedTuple):
    """One of the few numbers at the top of the page."""

    name: str
    value: str
    note: str
    stage: str
    meter: Meter | None = None


def describe_gains(run: RunRecord, tables: Mapping[str, Metrics]) -> tuple[Gain, ...]:
    """A row a stage of the run, in order, whether it has run or not."""
    before = tables.get(_first_model(tables), {}).get("reply_perplexity")
    measures: _Measures = {**_MEASURES, "sft": partial(_of_sft, before=before)}
    rows = []
    for stage in run.planned:
        title, does = STAGE_WORDS.get(stage.name, (stage.name, ""))
        measured = _Measured()
        if stage.name in measures and stage.status != "not run":
            measured = measures[stage.name](tables[stage.name]) or _Measured("not measured")
        seconds, peak = stage.wall_seconds, stage.peak_memory_bytes
        rows.append(Gain(stage.name, title, does, stage.status, *measured, seconds, peak))
    return tuple(rows)


def key_figures(tables: Mapping[str, Metrics]) -> tuple[KeyFigure, ...]:
    """The most important numbers of a run, where they have been measured."""
    figures = []
    first = _first_model(tables)
    start, sft = tables.get(first, {}), tables.get("sft", {})
    bits, where = _bits_per_byte(start)
    if bits is not None:
        later = {stage: tables.get(stage, {}).get("bits_per_byte") for stage in ("sft", "ppo")}
        words = [f"{REPLIERS[s]} {fixed(v, 3)}" for s, v in later.items() if v is not None]
        note = _joined(f"{REPLIERS[first].lower()}, {where} split", ", ".join(words))
        figures.append(KeyFigure("Bits per byte", fixed(bits, 3), note, first))
    perplexity = sft.get("reply_perplexity")
    if perplexity is not None:
        before = start.get("reply_perplexity")
        note = _joined("after SFT", f"{fixed(before, 1)} before" if before is not None else "")
        figures.append(KeyFigure("Reply perplexity", fixed(perplexity, 1), note, "sft"))
    baseline, mark = _best_baseline(tables.get("reward", {}))
    against = f"{baseline}: {percent(mark)}" if mark > 0.5 else ""
    for stage, metric, name, least, beside in (
        ("reward", "accuracy", "Reward model accuracy", mark, against),
        ("ppo", "win_rate", "PPO wins over SFT", 0.5, ""),
    ):
        value, low, high = _with_interval(tables.get(stage, {}), metric)
        if value is not None:
            note = _joined(_interval_words(low, high), beside)
            meter = Meter(value, low, high, least)
            figures.append(KeyFigure(name, percent(value), note, stage, meter))
    tuned = tables.get("finetune", {})
    part, measure = classifier_measure(tuned)
    value, low, high = _with_interval(tuned, f"{part}_{measure}")
    if value is not None:
        note = _joined(_interval_words(low, high), f"{part} examples")
        figures.append(KeyFigure(measure.capitalize(), percent(value), note, "finetune"))
    translated = tables.get("translate", {})
    if (bleu := translated.get("bleu")) is not None:
        note = f"{_whole(translated.get('validation_pairs'))} validation sentences"
        figures.append(KeyFigure("BLEU", fixed(bleu, 1), note, "translate"))
    distilled = tables.get("distil", {})
    value, low, high = _with_interval(distilled, "gain_bits_per_byte")
    if value is not None:
        note = f"bits per byte; 95{NBSP}%: {fixed(low, 3)} to {fixed(high, 3)}"
        figures.append(KeyFigure("Gained from the teacher", fixed(value, 3), note, "distil"))
    return tuple(figures)


def verdict_of(low: float | None, high: float | None, mark: float) -> Verdict:
    """Whether an interval lies wholly above ``mark``, wholly below, or holds it."""
    if low is None or high is None:
        return ""
    return "better" if low > mark else "worse" if high < mark else "unclear"


def _with_interval(table: Metrics, metric: str) -> list[float | None]:
    """A metric, and the low and the high end of its interval."""
    return [table.get(f"{metric}{end}") for end in ("", "_low", "_high")]


def _interval_words(low: float | None, high: float | None) -> str:
    interval = percent_interval(low, high)
    return f"95{NBSP}%: {interval}" if interval else ""


def _best_baseline(table: Metrics) -> tuple[str, float]:
    """The strongest thing a reward model must beat: a coin, length, or SFT's likelihood."""
    rules = [
        ("a coin", 0.5),
        ("the longer wins", table.get("longer_wins_accuracy")),
        ("the likelier wins", table.get("likelier_wins_accuracy")),
    ]
    known = [(name, value) for name, value in rules if value is not None]
    return max(known, key=lambda rule: rule[1])


class _Measured(NamedTuple):
    """The part of a `Gain` that a stage's metrics tell."""

    measure: str = ""
    before: str = ""
    after: str = ""
    note: str = ""
    verdict: Verdict = ""


def _of_data(table: Metrics) -> _Measured | None:
    kept, read = table.get("conversations.kept"), table.get("conversations.read")
    if kept:
        note = f"of {_whole(read)} read" if read and read != kept else ""
        return _Measured("conversations kept", after=_whole(kept), note=note)
    documents = table.get("documents")
    return _Measured("documents", after=_whole(documents)) if documents else None


def _of_tokenizer(table: Metrics) -> _Measured | None:
    vocabulary, length = table.get("vocabulary_size"), table.get("bytes_per_token")
    density = table.get("tokens_per_character")
    if length is None:
        pieces = _Measured("pieces in the vocabulary", after=_whole(vocabulary))
        return pieces if vocabulary is not None else None
    note = f"{_whole(vocabulary)} pieces" if vocabulary is not None else ""
    if note and density is not None:
        note += f", {fixed(density, 2)} tokens a character"
    return _Measured("bytes per token", "1", fixed(length, 2), note)


def _first_model(tables: Mapping[str, Metrics]) -> str:
    """The stage whose model fine-tuning began with."""
    return "pretrain" if tables.get("pretrain") else "base"


def _of_base(table: Metrics) -> _Measured | None:
    after, where = _bits_per_byte(table)
    note = f"on the {where} split"
    return _Measured(_BITS, after=fixed(after, 3), note=note) if after else None


def _of_pretrain(table: Metrics) -> _Measured | None:
    after, where = _bits_per_byte(table)
    if after is None:
        return None
    note = f"on the {where} split; 8 is knowing nothing"
    return _Measured(_BITS, "8", fixed(after, 3), note, "better" if after < 8 else "worse")


def _bits_per_byte(table: Metrics) -> tuple[float | None, str]:
    """The pretrained model's figure on the test split, else training's own on validation."""
    tested = table.get("bits_per_byte")
    if tested is not None:
        return tested, "test"
    return table.get("validation_bits_per_byte"), "validation"


def _of_sft(table: Metrics, before: float | None) -> _Measured | None:
    after, measure = table.get("reply_perplexity"), "perplexity of the person's reply"
    if after is None:
        return None
    if before is None:
        return _Measured(measure, after=fixed(after, 1))
    note = f"{percent(abs(1 - after / before), 0)} {'less' if after < before else 'more'}"
    verdict: Verdict = "better" if after < before else "worse"
    return _Measured(measure, fixed(before, 1), fixed(after, 1), note, verdict)


def _of_finetune(table: Metrics) -> _Measured | None:
    """The task's first measure on the test examples, against rules that know no language."""
    part, measure = classifier_measure(table)
    value, low, high = _with_interval(table, f"{part}_{measure}")
    if value is None:
        return None
    rules = {"the commonest label": "majority", "regression over words": "bag_of_words"}
    known = {name: table.get(f"{rule}_{measure}") for name, rule in rules.items()}
    best = max(((v, name) for name, v in known.items() if v is not None), default=None)
    note = _joined(_interval_words(low, high), f"before: {best[1]}" if best else "")
    count = table.get(f"{part}_examples")
    title = f"{measure} on {_whole(count)} {part} examples"
    before = percent(best[0]) if best else ""
    verdict: Verdict = verdict_of(low, high, best[0]) if best else ""
    return _Measured(title, before, percent(value), note, verdict)


def _of_flan(table: Metrics) -> _Measured | None:
    """How much is learnt, and of what."""
    count, tasks, clusters = (table.get(n) for n in ("demonstrations", "tasks", "clusters"))
    if count is None:
        return None
    note = f"{_whole(tasks)} tasks of {_whole(clusters)} clusters"
    return _Measured("instructions with their answers", after=_whole(count), note=note)


def _of_zero_shot(table: Metrics) -> _Measured | None:
    """Accuracy on the clusters that were not learnt, item by item against the model before."""
    before, after = table.get("unseen_before"), table.get("unseen_after")
    if before is None or after is None:
        return None
    _, low, high = _with_interval(table, "unseen_gain")
    note = _joined(
        f"difference {interval}" if (interval := percent_interval(low, high)) else "",
        f"the commonest answer: {percent(table.get('unseen_commonest') or 0.0)}",
    )
    title = f"accuracy on {_whole(table.get('unseen_items'))} items of clusters not learnt"
    verdict = verdict_of(low, high, 0.0)
    return _Measured(title, percent(before), percent(after), note, verdict)


def _of_distil(table: Metrics) -> _Measured | None:
    """Bits per byte with the teacher against the same student without; its gain decides."""
    after, low, high = _with_interval(table, "test_bits_per_byte")
    if after is None:
        return None
    before, teacher = (
        table.get(f"{name}_test_bits_per_byte") for name in ("without_teacher", "teacher")
    )
    _, least, most = _with_interval(table, "gain_bits_per_byte")
    note = _joined(
        f"95{NBSP}%: {fixed(low, 3)} to {fixed(high, 3)}",
        "before: the same student without a teacher" if before is not None else "",
        f"gain {fixed(least, 3)} to {fixed(most, 3)}" if least is not None else "",
        f"the teacher: {fixed(teacher, 3)}" if teacher is not None else "",
    )
    title = "bits per byte of the test texts"
    start = fixed(before, 3) if before is not None else ""
    return _Measured(title, start, fixed(after, 3), note, verdict_of(least, most, 0.0))


def _of_emulator(table: Metrics) -> _Measured | None:
    """Bits per byte of the layers that are left, before and after they learnt to stand for all."""
    layers = f"{_whole(table.get('layers'))} of {_whole(table.get('full_layers'))} layers"
    after, low, high = _with_interval(table, "test_bits_per_byte")
    if after is None:
        return _Measured("parameters", after=_whole(table.get("parameters")), note=layers)
    before, full = (table.get(f"{name}_test_bits_per_byte") for name in ("undistilled", "full"))
    note = _joined(
        f"95{NBSP}%: {fixed(low, 3)} to {fixed(high, 3)}",
        layers,
        f"the full model: {fixed(full, 3)}" if full is not None else "",
    )
    title = "bits per byte of the test texts"
    if before is None or low is None or high is None:
        return _Measured(title, "", fixed(after, 3), note)
    verdict = verdict_of(-high, -low, -before)
    return _Measured(title, fixed(before, 3), fixed(after, 3), note, verdict)


def _of_offsite(table: Metrics) -> _Measured | None:
    """Accuracy of what was tuned, the emulator with its adapters, item by item against before."""
    before, after = table.get("before_accuracy"), table.get("after_accuracy")
    if before is None or after is None:
        held_out = table.get("validation_bits_per_byte")
        return _Measured("bits per byte of held-out replies", after=fixed(held_out, 3))
    _, low, high = _with_interval(table, "gain_accuracy")
    interval = percent_interval(low, high)
    title = f"accuracy on {_whole(table.get('test_items'))} test items"
    note = f"difference {interval}" if interval else ""
    return _Measured(title, percent(before), percent(after), note, verdict_of(low, high, 0.0))


def classifier_measure(table: Metrics) -> tuple[str, str]:
    """``test`` or ``validation``, and the measure that decides there."""
    part = "test" if table.get("test_examples") else "validation"
    ends = [name for name in table if name.startswith(f"{part}_") and name.endswith("_low")]
    return part, ends[0][len(part) + 1 : -len("_low")] if ends else ""


def _of_translate(table: Metrics) -> _Measured | None:
    """BLEU of the validation's translations, and the perplexity of their references."""
    if (bleu := table.get("bleu")) is None:
        return None
    title = f"BLEU on {_whole(table.get('validation_pairs'))} validation sentences"
    perplexity = table.get("validation_perplexity")
    note = f"{fixed(perplexity, 2)} a token, perplexity" if perplexity is not None else ""
    return _Measured(title, after=fixed(bleu, 1), note=note)


def _of_masked_lm(table: Metrics) -> _Measured | None:
    """Hidden words of held-out text that are found, against those that a decoder finds from the
    left alone."""
    if (found := table.get("masked_accuracy")) is None:
        return None
    left, common = table.get("decoder_accuracy"), table.get("unigram_accuracy")
    title = f"of {_whole(table.get('held_out_targets'))} hidden tokens found"
    before = left if left is not None else common
    note = _joined(
        "before: a GPT of the same size, from the left alone" if left is not None else "",
        f"the commonest token: {percent(common)}" if common is not None else "",
    )
    return _Measured(title, percent(before) if before is not None else "", percent(found), note)


def _of_rankings(table: Metrics) -> _Measured | None:
    for names in (("train", "validation", "test"), ("rankings",)):
        known = [value for name in names if (value := table.get(name)) is not None]
        if known:
            return _Measured("prompts with ranked replies", after=_whole(sum(known)))
    return None


def _of_reward(table: Metrics) -> _Measured | None:
    value, low, high = _with_interval(table, "accuracy")
    if value is None:
        return None
    name, mark = _best_baseline(table)
    note = _joined(_interval_words(low, high), f"before: {name}")
    measure = "pairs ordered as the labeler did"
    return _Measured(measure, percent(mark), percent(value), note, verdict_of(low, high, mark))


def _of_ppo(table: Metrics) -> _Measured | None:
    """By the judge; without one by the reward model that PPO trained with, which proves less."""
    judged = table.get("win_rate") is not None
    value, low, high = _with_interval(table, "win_rate" if judged else "win_rate_by_reward")
    if value is None:
        return None
    controlled, kl = table.get("win_rate_length_controlled"), table.get("kl")
    note = _joined(
        _interval_words(low, high),
        f"at equal length {percent(controlled)}" if controlled is not None else "",
        f"KL {fixed(kl, 2)} nats" if kl is not None else "",
        "" if judged else "no judge measured it",
    )
    measure = f"wins over SFT by {'the judge' if judged else 'its own reward model'}"
    verdict = verdict_of(low, high, 0.5) if judged else ""
    return _Measured(measure, percent(0.5), percent(value), note, verdict)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


_Measures = dict[str, Callable[[Metrics], _Measured | None]]
_MEASURES: _Measures = {
    "data": _of_data,
    "tokenizer": _of_tokenizer,
    "pretrain": _of_pretrain,
    "base": _of_base,
    "masked_lm": _of_masked_lm,
    "translate": _of_translate,
    "finetune": _of_finetune,
    "flan": _of_flan,
    "zero_shot": _of_zero_shot,
    "distil": _of_distil,
    "emulator": _of_emulator,
    "offsite": _of_offsite,
    "rankings": _of_rankings,
    "reward": _of_reward,
    "ppo": _of_ppo,
    "judge_rankings": _of_rankings,
    "judge": _of_reward,
}
