"""GPT-1's vocabulary and merges, learnt from a few texts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.gpt import UNKNOWN, WORD_END, load_gpt1


def write_gpt1_files(texts: Iterable[str], vocabulary_size: int, folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt``, which `load_gpt1` and transformers read."""
    import ftfy

    backend = tokenizers.Tokenizer(models.BPE(unk_token=UNKNOWN, end_of_word_suffix=WORD_END))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[UNKNOWN],
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    backend.train_from_iterator((ftfy.fix_text(text) for text in texts), trainer)
    model = json.loads(backend.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"]), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def gpt1_tokenizer(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """A tokenizer of the files that `write_gpt1_files` writes."""
    with tempfile.TemporaryDirectory() as folder:
        write_gpt1_files(texts, vocabulary_size, Path(folder))
        return load_gpt1(folder)
