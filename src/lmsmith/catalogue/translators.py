"""An encoder–decoder that translates, and its tokenizer, whatever the format of their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.catalogue.reading import load_any_tokenizer
from lmsmith.catalogue.resolve import CARD_FILE, Source, resolve
from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import read_json
from lmsmith.models.config import EncoderDecoderConfig
from lmsmith.models.encoder_decoder import EncoderDecoder
from lmsmith.models.folder import MOST_CONFIG_BYTES, load_kind, load_tokenizer, read_model_config
from lmsmith.models.interop.marian import is_marian, read_marian_config, read_marian_folder
from lmsmith.tokenizers import Tokenizer

_FIX = "name a run of `lmsmith run translate`, or a Marian folder"
_SENTENCE_PIECE = ("source.spm", "target.spm")


@dataclass(frozen=True)
class ReadTranslator:
    """A float32 encoder–decoder in evaluation mode, and the tokenizer of both its languages."""

    model: EncoderDecoder
    tokenizer: Tokenizer
    source: Source
    card: dict[str, Any]


def is_translator(source: Source) -> bool:
    """Whether a model is an encoder–decoder, as its config says; false for what is unreadable."""
    try:
        if source.format == "hf":
            return is_marian(source.path)
        return source.format == "lmsmith" and read_model_config(source.path)[0] == "encoder_decoder"
    except UserError:
        return False  # its reader says what is wrong


def translator_config(source: Source) -> EncoderDecoderConfig:
    """The shape alone, without the weights, of a source that `is_translator`."""
    if source.format == "hf":
        return read_marian_config(source.path)
    config: EncoderDecoderConfig = read_model_config(source.path)[1]
    return config


def read_translator(word: str | Path | Source) -> ReadTranslator:
    """Read the translator that a path or a registered name means (`resolve`).

    Raises:
        UserError: there is none, it is damaged, or it is a model of another kind.
    """
    source = word if isinstance(word, Source) else resolve(word)
    path = source.path
    with refusing_damage(path):
        if source.format == "lmsmith":
            model, tokenizer = load_kind(path, EncoderDecoder, _FIX), load_tokenizer(path)
        elif source.format == "hf" and is_marian(path):
            model, tokenizer = read_marian_folder(path), _marian_tokenizer(path)
        else:
            raise UserError(f"{path} is a language model, not a translator", _FIX)
        card = read_json(path / CARD_FILE, MOST_CONFIG_BYTES) if _has_card(path) else {}
    known, needed = model.config.model.vocabulary_size, tokenizer.vocabulary_size
    if known < needed:
        raise UserError(
            f"{path}: the model knows {known} tokens and the tokenizer beside it {needed}",
            "its files are not of one model: make or fetch it again",
        )
    return ReadTranslator(model, tokenizer, source, card if isinstance(card, dict) else {})


def _has_card(path: Path) -> bool:
    return (path / CARD_FILE).is_file()


def _marian_tokenizer(path: Path) -> Tokenizer:
    if any((path / name).is_file() for name in _SENTENCE_PIECE) and not _has_tokenizer(path):
        raise UserError(
            f"{path}: its tokenizer is two SentencePiece models ({', '.join(_SENTENCE_PIECE)}), "
            "which lmsmith does not read; the model's weights it does",
            "put a tokenizer.json of the same vocabulary beside them",
        )
    return load_any_tokenizer(path)


def _has_tokenizer(path: Path) -> bool:
    return (path / "tokenizer.json").is_file()
