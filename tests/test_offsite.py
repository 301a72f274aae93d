"""The function of ``lmsmith offsite plug``: the folder it writes, and those that it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

import lmsmith
from lmsmith.catalogue.reading import read_card
from lmsmith.core.errors import UserError
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import save_model
from lmsmith.models.offsite import make_emulator, save_offsite_adapters
from lmsmith.tokenizers import Tokenizer
from tiny_models import random_decoder


def test_plugging_replaces_only_what_it_made(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["tea and rain"] * 3, 270)
    full = random_decoder(ModelConfig(3, 16, 2, 16, tokenizer.vocabulary_size))
    model, adapters, out = (tmp_path / name for name in ("full", "adapters", "plugged"))
    save_model(model, full, tokenizer, {"stage": "pretrain", "parents": []})
    save_offsite_adapters(adapters, *make_emulator(full, 1, 1), {})
    for _ in range(2):
        assert lmsmith.offsite_plug(str(model), adapters, out=out).folder == out
        assert read_card(out)["stage"] == "offsite plug"
    other = tmp_path / "other"
    save_model(other, full, tokenizer, {"stage": "sft", "parents": []})
    (tmp_path / "notes").mkdir()
    for taken in (other, tmp_path / "notes"):
        with pytest.raises(UserError, match="is there, and `offsite plug` did not make it"):
            lmsmith.offsite_plug(str(model), adapters, out=taken)
    assert read_card(other)["stage"] == "sft"
    for itself in (model, out):
        with pytest.raises(UserError, match="is the model itself"):
            lmsmith.offsite_plug(str(itself), adapters, out=itself)
