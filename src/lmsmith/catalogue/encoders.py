"""An encoder and its tokenizer, whatever the format of their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.catalogue.reading import load_any_tokenizer
from lmsmith.catalogue.resolve import ENCODING_STAGE, Source, resolve
from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import read_json
from lmsmith.models.encoder import Encoder
from lmsmith.models.folder import load_model, load_tokenizer, read_model_config
from lmsmith.models.interop.bert import read_bert_folder
from lmsmith.models.interop.folders import read_transformers_config
from lmsmith.models.masked_lm import MaskedLM
from lmsmith.tokenizers import Tokenizer

_FIX = "name an encoder: lmsmith pull all-minilm-l6-v2, or a run of lmsmith run bert"


@dataclass(frozen=True)
class Pooling:
    """How the states of a text's tokens become one vector.

    Attributes:
        mean: the mean of all states; else the first one's.
        most_tokens: of a text, its frame included; 0 for the context.
    """

    mean: bool = True
    most_tokens: int = 0


@dataclass(frozen=True)
class ReadEncoder:
    """A float32 encoder in evaluation mode, perhaps with its masked-token head."""

    model: Encoder | MaskedLM
    tokenizer: Tokenizer
    source: Source
    pooling: Pooling

    @property
    def encoder(self) -> Encoder:
        return self.model.encoder if isinstance(self.model, MaskedLM) else self.model


def is_encoder(source: Source) -> bool:
    """Whether a model is an encoder, as its config says; false for what cannot be read."""
    try:
        if source.format == "hf":
            return read_transformers_config(source.path).is_encoder
        if source.format == "lmsmith":
            return read_model_config(source.path)[0] in ("encoder", "masked_lm")
    except UserError:
        pass  # its reader says what is wrong
    return False


def find_encoder(word: str | Path) -> Source | None:
    """The model that a word means, if it is an encoder; of a run, a model that writes comes
    first."""
    source = resolve(word)
    return source if is_encoder(source) else None


def read_encoder(word: str | Path | Source) -> ReadEncoder:
    """Read the encoder that a path or a registered name means (`resolve`).

    Raises:
        UserError: there is none, it is damaged, or it is a model of another kind.
    """
    source = word if isinstance(word, Source) else _found(word)
    path = source.path
    if source.format == "gguf":
        raise UserError(f"{path} is a model that writes text, not an encoder", _FIX)
    with refusing_damage(path):
        pooling = Pooling()
        model: Any
        if source.format == "hf":
            if not read_transformers_config(path).is_encoder:
                raise UserError(f"{path} is a model that writes text, not an encoder", _FIX)
            model, tokenizer = read_bert_folder(path), load_any_tokenizer(path)
            pooling = read_pooling(path)
        else:
            model, tokenizer = load_model(path), load_tokenizer(path)
        if not isinstance(model, Encoder | MaskedLM):
            raise UserError(f"{path} is not an encoder", _FIX)
    found = ReadEncoder(model, tokenizer, source, pooling)
    known, needed = found.encoder.config.vocabulary_size, tokenizer.vocabulary_size
    if known < needed:
        raise UserError(
            f"{path}: the model knows {known} tokens and the tokenizer beside it {needed}",
            "its files are not of one model: fetch it again",
        )
    return found


def _found(word: str | Path) -> Source:
    """The model that a word means; of a run, the encoder before a model that writes."""
    made = Path(word) / ENCODING_STAGE / "model"
    if (made / "config.json").is_file():
        return Source("lmsmith", made, str(word))
    return resolve(word)


def read_pooling(folder: Path) -> Pooling:
    """The pooling of a folder that sentence-transformers wrote; the mean where it is silent.

    Raises:
        UserError: it makes vectors in a way that lmsmith has not.
    """
    for kind in _modules(folder):
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UserError(
                f"{folder}: modules.json has a module {kind}, which lmsmith does not compute",
                "use a model of Transformer, Pooling and Normalize alone",
            )
    limits = _object(folder / "sentence_bert_config.json").get("max_seq_length")
    most = limits if isinstance(limits, int) and limits > 0 else 0
    chosen = _pooling_modes(_object(folder / "1_Pooling" / "config.json"))
    if chosen - {"mean"} and chosen != {"cls"}:
        raise UserError(
            f"{folder}: its vectors are pooled by {', '.join(sorted(chosen))}",
            "use a model that takes the mean of the tokens, or the first one",
        )
    return Pooling(mean=chosen != {"cls"}, most_tokens=most)


def _modules(folder: Path) -> list[str]:
    """Kinds of sentence-transformers' modules: the class of each, without its package."""
    path = folder / "modules.json"
    content = read_json(path) if path.is_file() else []
    kinds = content if isinstance(content, list) else []
    types = [each.get("type") if isinstance(each, dict) else each for each in kinds]
    return [str(kind).rpartition(".")[2] for kind in types]


def _pooling_modes(config: dict[str, Any]) -> set[str]:
    """How a Pooling module pools: ``mean``, ``cls`` and others; empty if it does not say."""
    named = config.get("pooling_mode")  # by newer versions
    if named:
        return set(map(str, named)) if isinstance(named, list) else {str(named)}
    flags = {name for name, value in config.items() if value is True and "pooling_mode" in name}
    short = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    return {short.get(name, name) for name in flags}


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}
