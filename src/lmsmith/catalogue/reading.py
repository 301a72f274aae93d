"""A model and its tokenizer, whatever the format of their files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lmsmith.catalogue.resolve import PEFT_FILE, Source, resolve
from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import is_there, read_json
from lmsmith.models.adapters import TrainedState, add_adapters, merged_state
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import (
    MOST_CONFIG_BYTES,
    body_config,
    load_decoder,
    load_tokenizer,
    read_model_config,
    without_weights,
)
from lmsmith.models.interop.folders import read_transformers_config, read_transformers_folder
from lmsmith.models.interop.gguf_file import GgufFile, open_gguf
from lmsmith.models.interop.gguf_models import from_gguf, packed_from_gguf, read_gguf_config
from lmsmith.models.interop.peft import from_peft, read_peft_config, read_peft_folder
from lmsmith.models.interop.quantised import MULTIPLIED
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.bpe import TOKENIZER_FILE
from lmsmith.tokenizers.chat_format import CHAT_FILE
from lmsmith.tokenizers.description import MOST_BYTES
from lmsmith.tokenizers.gguf import tokenizer_from_gguf
from lmsmith.tokenizers.gpt import WORD_END, load_gpt1, load_gpt2
from lmsmith.tokenizers.hugging_face import CONFIG_FILE, TEMPLATE_FILE, load_hugging_face

_VOCABULARY_AND_MERGES = (
    ("encoder_bpe_40000.json", "vocab_40000.bpe"),
    ("encoder.json", "vocab.bpe"),
    ("vocab.json", "merges.txt"),
)


@dataclass(frozen=True)
class ReadModel:
    """A model that writes text: a float32 decoder in evaluation mode, and its tokenizer.

    Matrices of a quantised GGUF file may be left packed (`Decoder.packed`). The tokenizer's
    vocabulary is at most the decoder's. ``card`` tells of the model's making.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    source: Source
    card: dict[str, Any]


def read_model(
    word: str | Path | Source, tokenizer: Tokenizer | None = None, *, packed: bool = False
) -> ReadModel:
    """Read the model that a path or a registered name means (`resolve`).

    Args:
        word: the model.
        tokenizer: the one of its files, if it was read before.
        packed: leave the matrices of a quantised GGUF file as it packs them, for inference alone.

    Raises:
        UserError: there is none; it is damaged; it has something that our decoder has not; or it
            gives rewards and not text.
    """
    source = word if isinstance(word, Source) else resolve(word)
    with refusing_damage(source.path):
        return _read(source, tokenizer, packed)


def _read(source: Source, tokenizer: Tokenizer | None, packed: bool) -> ReadModel:
    path = source.path
    card: dict[str, Any] = {}
    if source.format == "gguf":
        file = open_gguf(path)
        with naming(path):
            decoder = _gguf_decoder(file, packed and is_quantised(file))
            tokenizer = tokenizer or tokenizer_from_gguf(file.metadata, source.path.stat().st_size)
        card = {"name": str(file.metadata.get("general.name", path.stem))}
    elif source.format == "hf":
        _refuse_encoder(path, read_transformers_config(path))
        config, state = read_transformers_folder(path)
        decoder, tokenizer = make_decoder(config, state), tokenizer or _folder_tokenizer(path)
    elif source.format == "peft":
        base = read_model(peft_base(path))
        decoder = _adapted(path, base.decoder)
        if tokenizer is None:
            own = (path / TOKENIZER_FILE).is_file()
            tokenizer = load_any_tokenizer(path) if own else base.tokenizer
        card = {"parents": [base.source.name]}
    else:
        decoder, tokenizer = load_decoder(path), tokenizer or load_tokenizer(path)
    card = read_card(path) or card
    known, needed = decoder.config.vocabulary_size, tokenizer.vocabulary_size
    if known < needed or (source.format == "lmsmith" and tokenizer.is_own and known != needed):
        raise UserError(  # others' embeddings may be padded
            f"{path}: the model knows {known} tokens and the tokenizer beside it {needed}",
            "the files in it come from different runs: make its stage again "
            "(`lmsmith run RECIPE --redo STAGE`)"
            if source.format == "lmsmith"
            else "its files are not of one model: fetch it again",
        )
    return ReadModel(decoder, tokenizer, source, card)


def read_card(folder: Path) -> dict[str, Any]:
    """The card in a folder; empty if there is none."""
    path = folder / "card.json"
    content = read_json(path, MOST_CONFIG_BYTES) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _refuse_encoder(path: Path, config: ModelConfig) -> None:
    if config.is_encoder:
        raise UserError(
            f"{path} is an encoder: it reads text, and writes none",
            "use it with lmsmith embed or lmsmith fill-mask, or name a model that writes",
        )


class NoBase(UserError):
    """The model that adapters were made for is not on this machine."""


def peft_base(folder: Path) -> Source:
    """The model that a PEFT folder's adapters stand on: a path, or a name that is registered here.

    Nothing is fetched.

    Raises:
        NoBase: it is not on this machine.
        UserError: it is itself a folder of adapters.
    """
    name = str(read_peft_config(folder)["base_model_name_or_path"])
    where = f"{folder / PEFT_FILE}: its base {name!r}"
    try:
        found = resolve(folder / name if is_there(folder / name) else name)
    except UserError as error:
        fix = f"pull it (lmsmith pull hf:{name}), or write its folder as base_model_name_or_path"
        raise NoBase(f"{where} is not on this machine", fix) from error
    if found.format == "peft":
        raise UserError(f"{where} is a folder of adapters too", "merge that one first")
    return found


def _adapted(folder: Path, base: Decoder) -> Decoder:
    """The base with a PEFT folder's adapters merged into its weights."""
    with naming(folder):
        config, state = from_peft(base.config, read_peft_folder(folder))
    add_adapters(base, config)
    TrainedState(base).load_state_dict(state)
    return make_decoder(base.config, merged_state(base))


def _gguf_decoder(file: GgufFile, packed: bool) -> Decoder:
    if not packed:
        return make_decoder(*from_gguf(file))
    config, state, matrices = packed_from_gguf(file)
    decoder = make_decoder(config, state)
    decoder.packed = matrices
    return decoder


def is_quantised(file: GgufFile) -> bool:
    """Whether the file has matrices of types that are multiplied as they are."""
    return any(tensor.type.name in MULTIPLIED for tensor in file.tensors.values())


def read_draft_model(
    word: str | Path, targets: Iterable[ReadModel], *, packed: bool = False
) -> Decoder:
    """Read a model that guesses the tokens of others; ``packed`` as in `read_model`.

    Raises:
        UserError: it cannot be read, or has another tokenizer than one of them.
    """
    found = read_model(word, packed=packed)
    theirs, size = found.tokenizer, found.decoder.config.vocabulary_size
    for target in targets:
        fits = target.decoder.config.vocabulary_size == size
        if not fits or not same_tokens(target.tokenizer, theirs):
            raise UserError(
                f"--draft {word}: it has another tokenizer than {target.source.name}",
                "name a model of the same tokenizer, or prompt-lookup",
            )
    return found.decoder


def same_tokens(left: Tokenizer, right: Tokenizer) -> bool:
    """Whether every id is the same token in both."""
    if left.vocabulary_size != right.vocabulary_size:
        return False
    ids = range(left.vocabulary_size)
    return all(left.token_bytes(each) == right.token_bytes(each) for each in ids)


def read_config(source: Source) -> ModelConfig:
    """The shape alone, without the weights; of a model with a head, its body's."""
    if source.format == "gguf":
        file = open_gguf(source.path)
        with naming(source.path):
            return read_gguf_config(file)
    if source.format == "hf":
        return read_transformers_config(source.path)
    if source.format == "peft":
        return read_config(peft_base(source.path))
    _, config = read_model_config(source.path)
    return body_config(config)


def make_decoder(config: ModelConfig, state: Mapping[str, Tensor]) -> Decoder:
    """A decoder with these weights, as float32; they are not copied where they are already."""
    with without_weights():
        decoder = Decoder(config)
    decoder.load_state_dict({name: each.float() for name, each in state.items()}, assign=True)
    return decoder.requires_grad_(True).eval()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """The path goes before the messages of what fails inside; damage becomes one."""
    try:
        with refusing_damage("the file"):
            yield
    except UserError as error:
        raise UserError(f"{path}: {error.problem}", error.fix) from error


def _folder_tokenizer(folder: Path) -> Tokenizer:
    """Tokenizer of a Hugging Face folder. GPT-1's files give no token beyond its embedding."""
    settings = read_json(folder / "config.json", MOST_CONFIG_BYTES)
    first = isinstance(settings, dict) and settings.get("model_type") == "openai-gpt"
    if first and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return load_gpt1(folder, end_of_text=None)
    return load_any_tokenizer(folder)


def load_any_tokenizer(path: Path | str) -> Tokenizer:
    """Read a tokenizer of any kind; see the modules of the kinds.

    Args:
        path: a folder that lmsmith wrote (with ``chat.json``), a Hugging Face folder, a folder
            with GPT-1's or GPT-2's vocabulary and merges, or a GGUF file.

    Raises:
        UserError: it is none of these, or damaged.
    """
    path = Path(path)
    with refusing_damage(path):
        return _any_tokenizer(path)


def _any_tokenizer(path: Path) -> Tokenizer:
    if path.is_file() and path.suffix == ".gguf":
        with naming(path):
            return tokenizer_from_gguf(open_gguf(path).metadata, path.stat().st_size)
    if not path.is_dir() or (path / CHAT_FILE).is_file():
        return Tokenizer.load(path)
    if (path / TOKENIZER_FILE).is_file():
        return load_hugging_face(path)
    for vocabulary, merges in _VOCABULARY_AND_MERGES:
        if (path / vocabulary).is_file() and (path / merges).is_file():
            with (path / merges).open("rb") as file:
                written = file.read(MOST_BYTES)
            return load_gpt1(path) if WORD_END.encode() in written else load_gpt2(path)
    raise UserError(
        f"{path} has no {TOKENIZER_FILE}, and no vocabulary with merges",
        "name a model folder, a Hugging Face folder or a GGUF file",
    )


def tokenizer_files(path: Path | str) -> list[Path]:
    """The files that `load_any_tokenizer` reads there."""
    path = Path(path)
    if path.is_file():
        return [path]
    names = [TOKENIZER_FILE, CHAT_FILE]
    if path.is_dir() and not (path / CHAT_FILE).is_file():
        others = (CONFIG_FILE, TEMPLATE_FILE, "special_tokens_map.json", "generation_config.json")
        candidates = [TOKENIZER_FILE, *others, "config.json", *sum(_VOCABULARY_AND_MERGES, ())]
        names = [name for name in candidates if (path / name).is_file()] or names
    return [path / name for name in names]
