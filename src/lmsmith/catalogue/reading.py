"""A model and its tokenizer, whatever the format of their files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lmsmith.catalogue.resolving import Source, resolve
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import load_decoder, load_tokenizer, read_model_config, without_weights
from lmsmith.models.interop.folders import read_transformers_config, read_transformers_folder
from lmsmith.models.interop.gguf_file import GgufFile, open_gguf
from lmsmith.models.interop.gguf_models import from_gguf, read_gguf_config
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.any_kind import load_any_tokenizer
from lmsmith.tokenizers.gguf_vocabulary import tokenizer_from_gguf
from lmsmith.tokenizers.gpt1 import load_gpt1


@dataclass(frozen=True)
class ReadModel:
    """A model that writes text.

    Attributes:
        decoder: float32 weights, in evaluation mode.
        tokenizer: its vocabulary is at most the decoder's.
        source: where it was read from.
        card: what is known of its making.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    source: Source
    card: dict[str, Any]


def read_model(word: str | Path | Source) -> ReadModel:
    """Read the model that a path or a registered name means (`resolve`).

    Raises:
        UserError: there is none; it is damaged; it has something that our decoder has not; or it
            gives rewards and not text.
    """
    source = word if isinstance(word, Source) else resolve(word)
    path, card = source.path, {}
    if source.format == "gguf":
        file = open_gguf(path)
        with _naming(path):
            config, state = from_gguf(file)
            decoder, tokenizer = make_decoder(config, state), _gguf_tokenizer(file)
        card = {"name": file.metadata.get("general.name", path.stem)}
    elif source.format == "hf":
        config, state = read_transformers_folder(path)
        decoder, tokenizer = make_decoder(config, state), _folder_tokenizer(path)
    else:
        decoder, tokenizer = load_decoder(path), load_tokenizer(path)
    if (path / "card.json").is_file():
        content = read_json(path / "card.json")
        card = content if isinstance(content, dict) else {}
    known, needed = decoder.config.vocabulary_size, tokenizer.vocabulary_size
    if known < needed or (source.format == "lmsmith" and tokenizer.is_own and known != needed):
        raise UserError(  # others' embeddings may be padded
            f"{path}: the model knows {known} tokens and the tokenizer beside it {needed}",
            "the files in it come from different runs: run the stage that wrote it again"
            if source.format == "lmsmith"
            else "its files are not of one model: fetch it again",
        )
    return ReadModel(decoder, tokenizer, source, card)


def read_config(source: Source) -> ModelConfig:
    """The shape alone, without the weights."""
    if source.format == "gguf":
        file = open_gguf(source.path)
        with _naming(source.path):
            return read_gguf_config(file)
    if source.format == "hf":
        return read_transformers_config(source.path)
    return read_model_config(source.path)[1]


def make_decoder(config: ModelConfig, state: Mapping[str, Tensor]) -> Decoder:
    """A decoder with these weights, as float32; they are not copied where they are already."""
    with without_weights():
        decoder = Decoder(config)
    decoder.load_state_dict({name: each.float() for name, each in state.items()}, assign=True)
    return decoder.requires_grad_(True).eval()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """The path goes before the messages of what fails inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error.problem}", error.fix) from error


def _gguf_tokenizer(file: GgufFile) -> Tokenizer:
    return tokenizer_from_gguf(
        {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    )


def _folder_tokenizer(folder: Path) -> Tokenizer:
    """Of a Hugging Face folder. GPT-1's own files give no token more than its embedding has."""
    settings = read_json(folder / "config.json")
    first = isinstance(settings, dict) and settings.get("model_type") == "openai-gpt"
    if first and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return load_gpt1(folder, end_of_text=None)
    return load_any_tokenizer(folder)
