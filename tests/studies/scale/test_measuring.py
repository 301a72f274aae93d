"""Shots are counted at the lines that they belong to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import NO_TARGET, Batch
from lmsmith.models.decoder import Decoder
from lmsmith.studies.scale import measuring
from lmsmith.studies.scale.documents import CONTEXT, Writer
from lmsmith.studies.scale.measuring import SHOTS
from lmsmith.studies.scale.running import Size
from lmsmith.studies.scale.texts import best_accuracy
from lmsmith.training.machine import resolve_machine

ITEMS = 300


def measured(kind: str) -> dict[str, list[int]]:
    writer = Writer()
    decoder = Decoder(Size(1, 32).config(writer.tokenizer.vocabulary_size))
    machine = resolve_machine(MachineConfig(precision="fp32", threads=1))
    return measuring._measure_pattern(decoder, machine, writer, kind, ITEMS, 0)


def read_columns(decoder: Decoder, machine: object, batch: Batch) -> torch.Tensor:
    """Logits: how often a token was at the same place of the earlier lines, all of 5 tokens."""
    likely = torch.zeros(*batch.tokens_bt.shape, decoder.config.vocabulary_size)
    newline = int(Writer().encode("\n")[0])
    for row, tokens in enumerate(batch.tokens_bt):
        for at, place in enumerate(batch.positions_bt[row].tolist()):
            before = tokens[at - place + 1 : at + 1][place % 5 :: 5]
            counts = np.bincount(before, minlength=likely.shape[2])
            likely[row, at] = torch.from_numpy(counts)
            likely[row, at, newline] += 100.0 * (place % 5 == 4)
    return likely


def test_who_reads_noisy_copies_at_best_gets_what_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = best_accuracy("noisy_copies")
    assert bound is not None
    monkeypatch.setattr(measuring, "_logits", read_columns)
    found = measured("noisy_copies")
    assert list(found) == [str(shots) for shots in SHOTS]
    for shots in SHOTS[1:]:
        right, items = found[str(shots)]
        assert items == ITEMS
        error = (bound(shots) * (1 - bound(shots)) / ITEMS) ** 0.5
        assert right / ITEMS == pytest.approx(bound(shots), abs=4 * error + 0.005)


def test_a_wrong_token_counts_against_its_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_in_line_4(decoder: object, machine: object, batch: Batch) -> NDArray[np.bool_]:
        lines = np.arange(CONTEXT) // len("abcd>cadb\n")
        return np.asarray((lines == 4) & (batch.targets_bt != NO_TARGET))

    monkeypatch.setattr(measuring, "_wrong", wrong_in_line_4)
    found = measured("reorder")
    assert found == {str(shots): [0 if shots == 4 else ITEMS, ITEMS] for shots in SHOTS}
