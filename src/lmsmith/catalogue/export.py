"""Write a model in the formats that other programs read: Hugging Face folders and GGUF files."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmsmith.catalogue.classifiers import ReadClassifier
from lmsmith.catalogue.encoders import ReadEncoder
from lmsmith.catalogue.export_classifier import write_classifier
from lmsmith.catalogue.reading import ReadModel
from lmsmith.catalogue.translators import ReadTranslator
from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_folder, read_json, write_json
from lmsmith.models.folder import load_decoder, read_adapters
from lmsmith.models.interop.bert import write_bert_folder
from lmsmith.models.interop.folders import read_transformers_folder, write_transformers_model
from lmsmith.models.interop.gguf_file import FILE_TYPES, write_gguf
from lmsmith.models.interop.gguf_models import to_gguf
from lmsmith.models.interop.marian import write_marian_model
from lmsmith.models.interop.peft import write_peft_folder
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.gguf import UNUSED, gguf_metadata
from lmsmith.tokenizers.hugging_face import to_hugging_face
from lmsmith.tokenizers.word_piece import Frame

CARD_FILE = "card.json"
FORMATS = ("hf", "gguf", "peft")
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ExportedModel:
    """A model in another program's format: a folder or a file."""

    format: str
    type: str
    path: Path
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        return vars(self) | {"path": str(self.path)}


def export(
    model: ReadModel | ReadTranslator, folder: Path, to: str, kind: str = "", base: str = ""
) -> ExportedModel:
    """Write the model into ``folder``, atomically.

    Args:
        model: from `read_model` or `read_translator`.
        folder: made if it is missing. A Hugging Face folder may replace an earlier export, but
            nothing else; a GGUF file takes a name of its own in it.
        to: ``hf``, ``gguf`` or ``peft``.
        kind: of the weights: f32, f16, bf16, and q8_0 for GGUF. Empty: f32 for hf, f16 for gguf.
            PEFT's adapters are f32.
        base: for ``peft``, the Hugging Face model that the adapters stand on.

    Raises:
        UserError: the format has no such model (all reasons are named) or type, or ``folder``
            holds something else.
    """
    if to not in FORMATS:
        raise UserError(f"--to {to}: not a format", f"it is one of {', '.join(FORMATS)}")
    if base and to != "peft":
        raise UserError(f"--base {base}: --to {to} writes a whole model", "leave --base out")
    kind = kind or ("f16" if to == "gguf" else "f32")
    kinds = {"hf": tuple(_DTYPES), "gguf": tuple(FILE_TYPES), "peft": ("f32",)}[to]
    if kind not in kinds:
        raise UserError(f"--type {kind}: not a type of {to}", f"it is one of {', '.join(kinds)}")
    if to == "hf":
        path = _to_folder(model, folder, kind)
    elif isinstance(model, ReadTranslator):
        name = {"gguf": "llama.cpp", "peft": "PEFT"}[to]
        raise UserError(f"--to {to}: {name} has no model of this shape", "write a folder: --to hf")
    elif to == "peft":
        path = _to_adapters(model, folder, base)
    else:
        path = _to_file(model, folder, kind)
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return ExportedModel(to, kind, path, sum(each.stat().st_size for each in files))


def export_classifier(
    read: ReadClassifier, folder: Path | None, to: str, kind: str = ""
) -> ExportedModel:
    """Write a classifier as …ForSequenceClassification; the rest is as in `export`.

    Raises:
        UserError: also where transformers has no class that computes the same.
    """
    kind = kind or "f32"
    if to != "hf" or kind not in _DTYPES:
        raise UserError(
            f"--to {to} --type {kind}: a classifier is exported to hf, as {', '.join(_DTYPES)}",
            "leave both out",
        )
    folder = folder or _default_folder(read.path, str(read.path), to)
    _check_replaceable(folder)
    with atomic_folder(folder.absolute()) as partial:
        write_classifier(read, partial, _DTYPES[kind])
        origin = {"exported_from": str(read.path), "exported_by": "lmsmith"}
        write_json(partial / CARD_FILE, read.card | origin)
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    return ExportedModel(to, kind, folder, size)


def export_encoder(
    read: ReadEncoder, folder: Path | None, to: str, kind: str = ""
) -> ExportedModel:
    """Write an encoder as transformers' BertModel, BertForMaskedLM or BertForPreTraining.

    Raises:
        UserError: another format or type, a shape that BERT has not, or the folder holds something
            else.
    """
    kind = kind or "f32"
    if to != "hf" or kind not in _DTYPES:
        raise UserError(
            f"--to {to} --type {kind}: an encoder is exported to hf, as {', '.join(_DTYPES)}",
            "leave both out",
        )
    folder = folder or _default_folder(read.source.path, read.source.name, to)
    _check_replaceable(folder)
    with atomic_folder(folder.absolute()) as partial:
        to_hugging_face(read.tokenizer, partial)
        write_bert_folder(partial, read.model, _DTYPES[kind], Frame.of(read.tokenizer).pad)
        origin = {"exported_from": str(read.source.path), "exported_by": "lmsmith"}
        write_json(partial / CARD_FILE, origin)
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    return ExportedModel(to, kind, folder, size)


def default_folder(model: ReadModel | ReadTranslator, to: str) -> Path:
    """Beside a run's stages, ``runs/NAME/export/hf``; else ``NAME-hf`` in the working folder."""
    return _default_folder(model.source.path, model.source.name, to)


def _default_folder(path: Path, name: str, to: str) -> Path:
    for parent in path.parents:
        if (parent / "recipe.json").is_file():
            return parent / "export" / to
    return Path(f"{_name_of(path, name)}-{to}")


def _name(model: ReadModel | ReadTranslator) -> str:
    return _name_of(model.source.path, model.source.name)


def _name_of(path: Path, name: str) -> str:
    """A run's name, a registered name, or the file's or folder's own."""
    for parent in path.resolve().parents:
        if (parent / "recipe.json").is_file():
            return parent.name
    name = Path(name).name
    return name.removesuffix(".gguf") or path.resolve().name


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Control tokens by their names in transformers' config and generation settings."""
    ends = list(tokenizer.stop_tokens)
    return {
        "bos_token_id": tokenizer.start_of_text,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": tokenizer.end_of_text,
    }


def _to_folder(model: ReadModel | ReadTranslator, folder: Path, kind: str) -> Path:
    _check_replaceable(folder)
    with atomic_folder(folder.absolute()) as partial:
        to_hugging_face(model.tokenizer, partial)
        if isinstance(model, ReadTranslator):
            write_marian_model(partial, model.model, _DTYPES[kind])
        else:
            shape, state = model.decoder.config, model.decoder.state_dict()
            tokens = token_ids(model.tokenizer)
            write_transformers_model(partial, shape, state, dtype=_DTYPES[kind], tokens=tokens)
        origin = {"exported_from": str(model.source.path), "exported_by": "lmsmith"}
        write_json(partial / CARD_FILE, model.card | origin)
    return folder


def _to_adapters(model: ReadModel, folder: Path, base: str) -> Path:
    """A LoRA folder of PEFT; a base that is a folder here is compared with the adapters' own."""
    _check_replaceable(folder)
    source = model.source
    if source.format != "lmsmith":
        raise UserError(f"{source.path} has no adapters of lmsmith", "name a run or a model folder")
    config, state, own = read_adapters(source.path)
    if not base:
        raise UserError(
            "--to peft: adapters stand on a model, and it has no name yet",
            f"write it once (lmsmith export {shlex.quote(str(own))} BASE), then give --base BASE",
        )
    if Path(base).is_dir():
        _, weights = read_transformers_folder(Path(base))
        theirs = {name: value.float() for name, value in weights.items()}
        ours = load_decoder(own).state_dict()
        same = ours.keys() == theirs.keys()
        if not same or any(not torch.equal(value, theirs[name]) for name, value in ours.items()):
            raise UserError(
                f"--base {base}: not the model that these adapters were made for",
                f"write that one: lmsmith export {shlex.quote(str(own))} BASE",
            )
        base = str(Path(base).resolve())
    with atomic_folder(folder.absolute()) as partial:
        to_hugging_face(model.tokenizer, partial)
        write_peft_folder(partial, base, model.decoder.config, config, state)
        origin = {"exported_from": str(source.path), "exported_by": "lmsmith"}
        write_json(partial / CARD_FILE, model.card | origin)
    return folder


def _check_replaceable(folder: Path) -> None:
    """Only what was exported before, or an empty folder, is replaced."""
    if folder.is_file():
        raise UserError(f"{folder} is a file", "name a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        if folder.is_dir() and folder.resolve() == Path.cwd():
            raise UserError(f"{folder} is the working folder", "name a folder in it")
        return
    card = folder / CARD_FILE
    content = read_json(card) if card.is_file() else {}
    if not isinstance(content, dict) or content.get("exported_by") != "lmsmith":
        raise UserError(
            f"{folder} is not empty, and not an earlier export: it would be replaced",
            "name another folder",
        )


def _to_file(model: ReadModel, folder: Path, kind: str) -> Path:
    path = folder if folder.suffix == ".gguf" else folder / f"{_name(model)}-{kind}.gguf"
    decoder, tokenizer = model.decoder, model.tokenizer
    architecture, metadata, tensors = to_gguf(decoder.config, decoder.state_dict())
    named = {"general.name": _name(model), "general.quantization_version": 2}
    vocabulary = padded_vocabulary(gguf_metadata(tokenizer), decoder.config.vocabulary_size)
    write_gguf(path, architecture, named | metadata | vocabulary, tensors, kind)
    return path


def padded_vocabulary(metadata: dict[str, Any], size: int) -> dict[str, Any]:
    """Tokens without use up to the embedding's rows: llama.cpp wants as many."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    added = [f"[unused{number}]" for number in range(len(tokens), size)]
    return metadata | {
        "tokenizer.ggml.tokens": [*tokens, *added],
        "tokenizer.ggml.token_type": [*types, *[UNUSED] * len(added)],
    }
