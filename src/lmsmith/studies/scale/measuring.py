"""Results of one trained model: by shots, by digits with and without a chain, and its loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmsmith.corpus.batches import NO_TARGET, Batch, generator
from lmsmith.device import HOST, device_of
from lmsmith.generation.engine import generate
from lmsmith.generation.settings import SamplingSettings
from lmsmith.models.decoder import Decoder
from lmsmith.runs.signals import stop_if_requested
from lmsmith.statistics.intervals import Interval, bootstrap_ratio
from lmsmith.studies.scale import texts
from lmsmith.studies.scale.documents import (
    CONTEXT,
    DIGITS,
    HELD_OUT,
    LINES,
    SHARES,
    Document,
    StudyBatches,
    Writer,
    pack,
)
from lmsmith.training.machine import ResolvedMachine
from lmsmith.training.packed import packed_rows

SHOTS = (0, 1, 2, 4, 8, 16)
STYLES: Mapping[str, str] = {"direct": texts.DIRECT, "chain": texts.CHAIN}
ROWS_AT_ONCE = 50
SAMPLES = 3
"""Replies kept for the page, of each kind of question."""

_PATTERN_ITEMS, _SUM_ITEMS = 10, 11
"""Streams of random numbers, in addition to those of the batches."""


def measure(
    decoder: Decoder,
    machine: ResolvedMachine,
    *,
    items: int,
    seed: int,
    on_part: Callable[[int], object] = lambda done: None,
) -> dict[str, Any]:
    """All results of a model, as JSON has them.

    All models are asked the same items. Answers of patterns and direct sums are right where the
    likeliest token is right at each of their places, given those before: the same as writing them
    greedily. Chains of thought are written.

    Args:
        items: documents of each pattern, sums of each number of digits, and rows for the loss.
        on_part: called with the number of parts done, of `parts`.
    """
    writer, done = Writer(), itertools.count(1)
    found: dict[str, Any] = {"patterns": {}, "sums": {}, "losses": {}, "samples": []}

    def finished() -> None:
        on_part(next(done))
        stop_if_requested()

    with machine.reading(decoder):
        for kind in texts.PATTERNS:
            found["patterns"][kind] = _measure_pattern(decoder, machine, writer, kind, items, seed)
            finished()
        asked = {digits: sums_of(digits, items, seed) for digits in range(1, DIGITS + 1)}
        for name, style in STYLES.items():
            by_digits, samples = _measure_sums(decoder, machine, writer, asked, style)
            found["sums"][name] = by_digits
            found["samples"] += samples
            finished()
        for family in SHARES:
            batches = StudyBatches(ROWS_AT_ONCE, seed, HELD_OUT)
            found["losses"][family] = vars(_loss(decoder, machine, batches, family, items))
            finished()
    return found


parts = len(texts.PATTERNS) + len(STYLES) + len(SHARES)
"""How often `measure` calls ``on_part``."""


def _measure_pattern(
    decoder: Decoder, machine: ResolvedMachine, writer: Writer, kind: str, items: int, seed: int
) -> dict[str, list[int]]:
    """By number of shots, [right, items].

    Line k of a document has k lines before it. Where lines have noise, each number of shots has a
    document of its own, which ends with the question for the clean answer; they share a row.
    """
    chance = generator(seed, _PATTERN_ITEMS, list(texts.PATTERNS).index(kind))
    drawn = [texts.draw_document(kind, LINES, chance) for _ in range(items)]
    if drawn[0][0].clean:
        rows = [
            [writer.pattern([*lines[:shots], lines[shots].asked]) for shots in SHOTS]
            for lines in drawn
        ]
        columns = [sum(SHOTS[: number + 1]) + number for number in range(len(SHOTS))]
    else:
        rows, columns = [[writer.pattern(lines)] for lines in drawn], list(SHOTS)
    right = _right_lines(decoder, machine, writer, rows, columns[-1] + 1)
    counts = right[:, columns].sum(axis=0).tolist()
    return {str(shots): [count, items] for shots, count in zip(SHOTS, counts, strict=True)}


def _right_lines(
    decoder: Decoder,
    machine: ResolvedMachine,
    writer: Writer,
    rows: Sequence[Sequence[Document]],
    lines: int,
) -> NDArray[np.bool_]:
    """(rows, lines): whether every token of a line's answer is the likeliest."""
    (newline,) = writer.encode("\n")
    right = np.ones((len(rows), lines), np.bool_)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = pack(rows[start : start + ROWS_AT_ONCE], CONTEXT, writer.end_of_text)
        for row, wrong_t in enumerate(_wrong(decoder, machine, batch)):
            # A document's last line end is a target and no token: its successor's number counts it.
            ends = (batch.tokens_bt[row] == newline).cumsum() + batch.documents_bt[row]
            right[start + row, ends[wrong_t]] = False
    return right


def sums_of(digits: int, count: int, seed: int) -> list[texts.Sum]:
    """Different held-out sums; fewer than ``count`` where there are not enough."""
    chance = generator(seed, _SUM_ITEMS, digits)
    found: dict[texts.Sum, None] = {}
    for _ in range(20 * count):
        found[texts.draw_sum(digits, chance, held_out=True)] = None
        if len(found) == count:
            break
    return list(found)


def _measure_sums(
    decoder: Decoder,
    machine: ResolvedMachine,
    writer: Writer,
    asked: Mapping[int, Sequence[texts.Sum]],
    style: str,
) -> tuple[dict[str, list[int]], list[dict[str, Any]]]:
    """By number of digits, [right, items]; and a few of the replies to the longest."""
    questions = [each for sums in asked.values() for each in sums]
    prompts = [writer.prompt(each.prompt(style)) for each in questions]
    longest = max(len(each.reply(style)) for each in questions) + 8
    stops = (writer.end_of_text,)
    settings = SamplingSettings(longest, temperature=0.0, stop_tokens=stops)
    written = generate(decoder, prompts, settings, machine=machine)
    tokens = [[token for token in reply if token not in stops] for reply in written]
    replies = [writer.tokenizer.decode(reply) for reply in tokens]
    pairs = zip(replies, questions, strict=True)
    right = [texts.read_answer(style, text) == each.answer for text, each in pairs]
    by_digits, samples, start = {}, [], 0
    for digits, sums in asked.items():
        place = range(start, start + len(sums))
        by_digits[str(digits)] = [sum(right[i] for i in place), len(sums)]
        if digits == DIGITS - 1:
            samples = [
                {"prompt": questions[i].prompt(style), "reply": replies[i], "right": right[i]}
                for i in place[:SAMPLES]
            ]
        start += len(sums)
    return by_digits, samples


def _loss(
    decoder: Decoder, machine: ResolvedMachine, batches: StudyBatches, family: str, rows: int
) -> Interval:
    """Nats per target on held-out rows, rows resampled."""
    sums: list[float] = []
    counts: list[int] = []
    for step in range(max(1, rows // batches.rows)):
        batch = batches.batch_of(family, step)
        logits_bvt = _logits(decoder, machine, batch).transpose(1, 2)
        losses_bt = torch.nn.functional.cross_entropy(
            logits_bvt.to(HOST),
            torch.from_numpy(batch.targets_bt),
            ignore_index=NO_TARGET,
            reduction="none",
        )
        sums += losses_bt.double().sum(dim=1).tolist()
        counts += (batch.targets_bt != NO_TARGET).sum(axis=1).tolist()
    return bootstrap_ratio(sums, counts)


def _wrong(decoder: Decoder, machine: ResolvedMachine, batch: Batch) -> NDArray[np.bool_]:
    """Where there is a target, and another token is likelier."""
    likeliest = _logits(decoder, machine, batch).argmax(dim=-1).to(HOST).numpy()
    return np.asarray((likeliest != batch.targets_bt) & (batch.targets_bt != NO_TARGET))


def _logits(decoder: Decoder, machine: ResolvedMachine, batch: Batch) -> torch.Tensor:
    with machine.autocast():
        packed = packed_rows(batch, device_of(decoder))
        return decoder.logits(decoder(*packed.read)).float()
