"""Model folders: config.json, model.safetensors, tokenizer.json, chat.json, card.json.

A model trained by adapters has ``adapter.safetensors`` instead of its weights, and its config names
the folder of its base.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from lmsmith.core.config import Problem, SettingsError, decode, encode, with_new_keys
from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import atomic_folder, read_json, write_json
from lmsmith.models import adapters
from lmsmith.models.adapters import AdapterConfig, TrainedState
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.models.weights_file import (
    read_shapes,
    read_tensors,
    refuse_impossible_sizes,
    require_weight,
)
from lmsmith.runs.integrity import check_folder
from lmsmith.tokenizers import Tokenizer

KINDS = {"decoder": Decoder, "scalar": ScalarModel}

WEIGHTS_FILE = "model.safetensors"
ADAPTER_FILE = "adapter.safetensors"

MOST_CONFIG_BYTES = 1 << 24
"""Of a config.json, which is a few thousand bytes long."""

_MOST_SAID = 2000
"""Characters of PyTorch's list of what does not match."""

_MOST_BASES = 8
"""Models that adapters may stand on, one on the other."""


class _NoInitialisation(TorchFunctionMode):
    """Makes the functions of `torch.nn.init` change nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Make modules without memory: their tensors are on the meta device.

    Initialisation is off too: on that device it imports PyTorch's compiler for three seconds.
    """
    with torch.device("meta"), _NoInitialisation():
        yield


def save_model(
    folder: Path,
    model: Decoder | ScalarModel,
    tokenizer: Tokenizer,
    card: dict[str, Any],
    adapter: AdapterConfig | None = None,
    base: Path | None = None,
) -> None:
    """Write a model folder atomically; it replaces an old one.

    Args:
        folder: where.
        model: a decoder, or a reward or value model.
        tokenizer: saved with it.
        card: parents, recipe, data, metrics, as JSON.
        adapter: the settings of the model's adapters, if it has any.
        base: the folder of their base; its path relative to ``folder`` must not change.
    """
    decoder = model.decoder if isinstance(model, ScalarModel) else model
    kind = "scalar" if isinstance(model, ScalarModel) else "decoder"
    config: dict[str, Any] = {"kind": kind, "model": encode(decoder.config)}
    state, file = model.state_dict(), WEIGHTS_FILE
    if adapters.has_adapters(model):
        if adapter is None or base is None:
            raise ValueError("a model with adapters is saved with their settings and its base")
        place = Path(os.path.relpath(base.resolve(), folder.resolve())).as_posix()
        config["adapter"] = {"base": place, **asdict(adapter)}
        state, file = TrainedState(model).state_dict(), ADAPTER_FILE
    with atomic_folder(folder) as temporary:
        write_json(temporary / "config.json", config)
        save_file({name: value.contiguous() for name, value in state.items()}, temporary / file)
        tokenizer.save(temporary)
        write_json(temporary / "card.json", card)


def read_model_config(folder: Path) -> tuple[str, ModelConfig]:
    """Kind (``decoder`` or ``scalar``) and shape of a model folder.

    Raises:
        UserError: it is not a model folder, or its config is not lmsmith's.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a model folder: it has no config.json",
            "name a folder that a stage wrote, such as runs/quickstart/ppo/model",
        )
    content = _read_config(folder)
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in KINDS or not isinstance(content.get("model"), dict):
        raise UserError(f"{path} is not an lmsmith model's config", "name another model folder")
    with refusing_damage(path, "name another model folder"):
        table = with_new_keys(ModelConfig, content["model"])
        config, problems = decode(ModelConfig, table, str(path))
    if config is None or problems:
        raise SettingsError(problems)
    return kind, config


def _read_config(folder: Path) -> dict[str, Any]:
    content = read_json(folder / "config.json", MOST_CONFIG_BYTES)
    return content if isinstance(content, dict) else {}


def load_model(folder: Path) -> Decoder | ScalarModel:
    """Read a model folder's weights, in float32 and evaluation mode; adapters are merged.

    Files of a finished stage are compared with its record first (`lmsmith.runs.integrity`).

    Raises:
        UserError: the folder, its config or its weights are missing, damaged or do not match; or
            the base of its adapters has moved.
    """
    return _load(folder, ())


def _load(folder: Path, above: tuple[Path, ...]) -> Decoder | ScalarModel:
    """``above`` are the folders of the adapters that were made for this model."""
    check_folder(folder)
    kind, config = read_model_config(folder)
    adapter = _read_config(folder).get("adapter")
    with refusing_damage(folder):
        if adapter is None:
            model = _loaded_whole(folder, kind, config)
        else:
            model = _load_adapted(folder, kind, adapter, (*above, folder.resolve()))
        return model.requires_grad_(True).eval()


def _loaded_whole(folder: Path, kind: str, config: ModelConfig) -> Decoder | ScalarModel:
    path = folder / WEIGHTS_FILE
    refuse_impossible_sizes(config, read_shapes(path), f"{path} cannot be read as these weights")
    model = _without_weights(kind, config)
    _fill(model, read_tensors(path), path)
    return model


def _load_adapted(
    folder: Path, kind: str, adapter: object, above: tuple[Path, ...]
) -> Decoder | ScalarModel:
    place = f"{folder / 'config.json'}: adapter"
    if not isinstance(adapter, dict) or not isinstance(adapter.get("base"), str):
        raise UserError(f"{place}: expected settings, with a base", "get the folder again")
    settings = {name: value for name, value in adapter.items() if name != "base"}
    found, problems = decode(AdapterConfig, settings, place)
    if found is None or problems or not found.rank:
        wrong = problems or [Problem("rank", 0, "1 or more")]
        raise SettingsError(wrong, str(folder / "config.json"))
    base = folder / adapter["base"]
    if not (base / "config.json").is_file():
        raise UserError(
            f"{folder} holds adapters alone, and the model that they were made for is no longer "
            f"at {os.path.normpath(base)}",
            "put it back there; `lmsmith export` makes one model of the two",
        )
    if base.resolve() in above or len(above) > _MOST_BASES:
        names = " → ".join(map(str, (*above, base.resolve())))
        raise UserError(f"{folder}: its adapters stand on no model: {names}", "get it again")
    model = _load(base, above)
    if kind == "scalar" and isinstance(model, Decoder):
        model = ScalarModel(model)
    decoder = model.decoder if isinstance(model, ScalarModel) else model
    path = folder / ADAPTER_FILE
    _check_rank(found.rank, decoder.config, path)
    adapters.add_adapters(model, found)
    try:
        TrainedState(model).load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    plain = _without_weights(kind, decoder.config)
    _fill(plain, adapters.merged_state(model), path)
    return plain


def _check_rank(rank: int, config: ModelConfig, path: Path) -> None:
    """Refuse adapters that are larger than their file, before there is memory for them."""
    numbers = sum(map(math.prod, read_shapes(path).values()))
    least = rank * 2 * config.width * config.layers  # a matrix in and one out, in every block
    if least > numbers:
        raise UserError(
            f"{path}: adapters of rank {rank:,} have {least:,} numbers or more, and the file has "
            f"{numbers:,}",
            "its config.json and its weights are not of one model: get both again",
        )


def _without_weights(kind: str, config: ModelConfig) -> Decoder | ScalarModel:
    with without_weights():
        decoder = Decoder(config)
        return ScalarModel(decoder) if kind == "scalar" else decoder


def _fill(model: Decoder | ScalarModel, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    for name, tensor in model.state_dict().items():
        require_weight(f"{path}: {name}", tensor, tuple(tensor.shape), "get it again")
    model.float()


def _unreadable(path: Path, error: Exception) -> UserError:
    said = str(error)
    said = said if len(said) < _MOST_SAID else f"{said[:_MOST_SAID]} …"
    return UserError(
        f"{path} cannot be read as the weights of this model: {said}",
        "get it again; a run's is made again by `lmsmith run RECIPE --redo STAGE`",
    )


def load_decoder(folder: Path) -> Decoder:
    """`load_model` for a model that writes text."""
    model = load_model(folder)
    if not isinstance(model, Decoder):
        raise UserError(
            f"{folder} is a reward or value model: it gives numbers, not text",
            "name a folder that pretrain, sft or ppo wrote",
        )
    return model


def load_scalar_model(folder: Path) -> ScalarModel:
    """Like `load_model`, for a reward or value model."""
    model = load_model(folder)
    if not isinstance(model, ScalarModel):
        raise UserError(
            f"{folder} is a language model: it has no reward head",
            "name a folder that the reward stage wrote",
        )
    return model


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder; checked as `load_model` does."""
    check_folder(folder)
    return Tokenizer.load(folder)
