"""Read and write Hugging Face folders: config.json and safetensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import read_json, write_json
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import MOST_CONFIG_BYTES
from lmsmith.models.interop.families import FAMILIES, refuse_unsupported
from lmsmith.models.interop.transformers import from_transformers, read_shape, to_transformers
from lmsmith.models.weights_file import read_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MOST_INDEX_BYTES = 1 << 26
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_transformers_folder(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The shape, and what `Decoder.load_state_dict` takes, in the file's own type.

    Raises:
        UserError: a file is missing or damaged, the weights are pickled, or the model has
            unsupported settings (all are named).
    """
    settings = read_settings(folder)
    with naming(folder):
        return from_transformers(settings, read_weights(folder))


def read_transformers_config(folder: Path) -> ModelConfig:
    """The shape alone.

    Raises:
        UserError: config.json is missing or damaged, or has unsupported settings.
    """
    settings = read_settings(folder)
    with naming(folder):
        return read_shape(FAMILIES[settings["model_type"]], settings)


@contextlib.contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Begin the message of a UserError with the folder; damage becomes one."""
    try:
        with refusing_damage("config.json or the weights"):
            yield
    except UserError as error:
        raise UserError(f"{folder}: {error.problem}", error.fix) from error


def read_settings(folder: Path) -> dict[str, Any]:
    """The contents of a config.json that lmsmith's models support."""
    path = folder / CONFIG_FILE
    settings = read_json(path, MOST_CONFIG_BYTES)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected an object", "fetch it again")
    with refusing_damage(path):
        refuse_unsupported(settings, str(path))
    return settings


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors, of one file or as its index says."""
    if (folder / WEIGHTS_FILE).is_file():
        return read_tensors(folder / WEIGHTS_FILE)
    index = folder / INDEX_FILE
    if not index.is_file():
        raise _no_weights(folder)
    content = read_json(index, _MOST_INDEX_BYTES)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(each, str) for each in places.values()):
        raise UserError(f"{index}: expected weight_map, files by name", "fetch it again")
    found: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise UserError(f"{index}: {name!r} is not a file beside it", "fetch it again")
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, a part of the weights", "fetch it again")
        found |= read_tensors(folder / name)
    if missing := sorted(set(places) - set(found)):
        raise UserError(f"{folder}: its files lack {missing[0]}", "fetch them again")
    return found


def _no_weights(folder: Path) -> UserError:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return UserError(
            f"{folder}: its weights are pickled ({pickles[0]}), and opening a pickle can run any "
            "program that someone put in it: lmsmith reads safetensors only",
            "fetch the model's model.safetensors, or convert it where you trust it: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)",
        )
    return UserError(f"{folder} has no {WEIGHTS_FILE}", "fetch it, or name another folder")


def write_transformers_model(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    tokens: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json, generation_config.json and model.safetensors into an existing folder.

    ``tokens`` are ``bos_token_id``, ``eos_token_id`` (one or several) and ``pad_token_id``.

    Raises:
        UserError: transformers has no model of this shape.
    """
    settings, weights = to_transformers(config, state)
    tokens = dict(tokens or {})
    ends = tokens.get("eos_token_id")
    first = {"eos_token_id": ends[0]} if isinstance(ends, list) and ends else {}
    name = str(dtype).removeprefix("torch.")
    write_json(folder / CONFIG_FILE, {**settings, **tokens, **first, "dtype": name})
    write_json(folder / "generation_config.json", tokens)
    cast = {
        name: tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in weights.items()  # safetensors takes no shared memory
    }
    save_file(cast, folder / WEIGHTS_FILE, metadata={"format": "pt"})
