"""An encoder learns hidden tokens that follow from their neighbours on both sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lmsmith.corpus.batches import NO_TARGET
from lmsmith.corpus.masking import MaskedBatches, Masking
from lmsmith.corpus.shards import write_shards
from lmsmith.models.masked_lm import MaskedLM, MaskedLMConfig
from lmsmith.models.presets import bert
from lmsmith.training.masked_lm import Guesses, masked_losses, unigram_guesses
from lmsmith.training.optimiser import Optimiser, OptimiserConfig


def test_neighbours_are_learnt(tmp_path: Path) -> None:
    documents = [[5 + (start + place) % 20 for place in range(60)] for start in range(20)]
    shards = write_shards(tmp_path / "shards", documents, 3, 25, [2])
    masking = Masking(4, np.arange(5, 25), np.zeros(25, np.bool_))
    batches = MaskedBatches([shards], masking, 32, 16, 1, cls=2, sep=3, pad=0)
    shape = replace(bert(2, 32, 2, 32, 25), dropout=0.0, pooler=False)
    model = MaskedLM(MaskedLMConfig(shape))
    model.initialise(torch.Generator().manual_seed(0))
    config = OptimiserConfig(name="muon", learning_rate=3e-3)
    optimiser = Optimiser(model, config, matrices=[model.decoder.blocks])
    right = targets = 0
    for step in range(300):
        batch = batches.batch(step)
        loss, _, found, _ = masked_losses(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(min(1.0, (step + 1) / 20))
        if step >= 280:
            right += found
            targets += int((batch.targets_bt != NO_TARGET).sum())
    assert right / targets > 0.85


def test_unigrams_say_the_commonest_token(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", [[7, 7, 7, 8]], 3, 9, [2])
    masking = Masking(4, np.arange(5, 9), np.zeros(9, np.bool_), fraction=1.0)
    batch = MaskedBatches([shards], masking, 8, 1, 1, cls=2, sep=3, pad=0).batch(0)
    counts = np.bincount([7, 7, 7, 8], minlength=9)
    found = unigram_guesses(counts, [batch])
    assert (found.right, found.targets) == (3, 4)
    expected = -(3 * np.log(4 / 13) + np.log(2 / 13))
    assert abs(found.loss - expected) < 1e-6
    assert Guesses().accuracy == 0.0
