"""GPT-1's tokenizer: lower-case words, BPE within them, ``</w>`` where a word ends."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_write, write_json
from lmsmith.core.text import encodable
from lmsmith.tokenizers.gpt2 import check_merges, read_merges, read_vocabulary
from lmsmith.tokenizers.importing import import_tokenizer
from lmsmith.tokenizers.special import END_OF_TEXT
from lmsmith.tokenizers.text import ftfy_cleaned
from lmsmith.tokenizers.tokenizer import Tokenizer

MERGES = 40_000
"""Of the paper (Radford et al. 2018, section 4.1)."""

UNKNOWN = "<unk>"
WORD_END = "</w>"


def load_gpt1(folder: Path | str, *, end_of_text: str | None = END_OF_TEXT) -> Tokenizer:
    """GPT-1's vocabulary of 40,478 from its files.

    Text is fixed by ftfy, lower-cased, freed of accents and cut at spaces and punctuation
    (BERT's basic tokenizer, which transformers uses too; OpenAI cut with spaCy). Decoding gives
    lower-case words with a space after each: the text itself does not come back.

    Args:
        folder: has ``encoder_bpe_40000.json`` and ``vocab_40000.bpe``, or transformers' names,
            ``vocab.json`` and ``merges.txt``.
        end_of_text: added as one more token, since GPT-1 has none: the model needs one row more
            in its embedding. None adds nothing, and ``<unk>`` stands for it.

    Raises:
        UserError: a file is missing or damaged, or ftfy is not installed.
    """
    folder = Path(folder)
    vocabulary = read_vocabulary(folder, ("encoder_bpe_40000.json", "vocab.json"))
    merges = read_merges(folder, ("vocab_40000.bpe", "merges.txt"))
    if UNKNOWN not in vocabulary:
        raise UserError(f"{folder}: the vocabulary has no {UNKNOWN}", "fetch it again")
    check_merges(vocabulary, merges)
    model = models.BPE(
        vocab=vocabulary, merges=merges, unk_token=UNKNOWN, end_of_word_suffix=WORD_END
    )
    return _tokenizer(_backend(model), end_of_text)


def train_gpt1(texts: Iterable[str], merges: int = MERGES) -> Tokenizer:
    """Learn ``merges`` merges (fewer if the texts give no more) from texts fixed by ftfy.

    The vocabulary is ``<unk>``, each character, each that ends a word, the merges, and the end
    of the text.

    Raises:
        UserError: ftfy is not installed.
    """
    backend = _backend(models.BPE(unk_token=UNKNOWN, end_of_word_suffix=WORD_END))
    cleaned = [ftfy_cleaned(encodable(text)) for text in texts]
    trainer = trainers.BpeTrainer(
        vocab_size=1 + _base_size(backend, cleaned) + merges,
        special_tokens=[UNKNOWN],
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    backend.train_from_iterator(cleaned, trainer)
    return _tokenizer(backend, END_OF_TEXT)


def write_gpt1_files(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt``, which `load_gpt1` and transformers read."""
    model = tokenizer.description["model"]
    write_json(folder / "vocab.json", model["vocab"])
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"]), ""]
    atomic_write(folder / "merges.txt", "\n".join(lines))


def _backend(model: models.BPE) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=WORD_END)
    return backend


def _tokenizer(backend: tokenizers.Tokenizer, end_of_text: str | None) -> Tokenizer:
    backend.add_special_tokens([UNKNOWN] if end_of_text is None else [UNKNOWN, end_of_text])
    description: dict[str, Any] = json.loads(backend.to_str())
    end = end_of_text or UNKNOWN
    return import_tokenizer(
        description,
        variables={"bos_token": end, "eos_token": end, "unk_token": UNKNOWN},
        cleaning="ftfy",
    )


def _base_size(backend: tokenizers.Tokenizer, texts: Iterable[str]) -> int:
    """How many characters there are, and how many end a word: the tokens before any merge."""
    normalizer, cutter = backend.normalizer, backend.pre_tokenizer
    assert normalizer is not None
    assert cutter is not None
    everywhere: set[str] = set()
    at_the_end: set[str] = set()
    for text in texts:
        for word, _ in cutter.pre_tokenize_str(normalizer.normalize_str(text)):
            everywhere.update(word)
            at_the_end.add(word[-1])
    return len(everywhere) + len(at_the_end)
