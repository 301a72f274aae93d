"""Model folders: config.json, model.safetensors, tokenizer.json, chat.json, card.json.

A model trained by adapters has ``adapter.safetensors`` instead of its weights, and its config names
the folder of its base.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from lmsmith.core.config import Problem, SettingsError, decode, encode, with_new_keys
from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import atomic_folder, read_json, write_json
from lmsmith.device import HOST
from lmsmith.models import adapters
from lmsmith.models.adapters import AdapterConfig, TrainedState
from lmsmith.models.classifier import Classifier, ClassifierConfig
from lmsmith.models.config import EncoderDecoderConfig, ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.encoder import Encoder
from lmsmith.models.encoder_decoder import EncoderDecoder
from lmsmith.models.heads import ScalarModel
from lmsmith.models.masked_lm import MaskedLM, MaskedLMConfig
from lmsmith.models.weights_file import (
    read_shapes,
    read_tensors,
    refuse_impossible_sizes,
    require_weight,
)
from lmsmith.runs.integrity import check_folder
from lmsmith.tokenizers import Tokenizer


@dataclass(frozen=True)
class Kind:
    """A class of models in folders.

    Attributes:
        model: the class; its ``config`` is of the type ``shape``.
        shape: dataclass of the settings that config.json holds under ``model``.
        make: the model of these settings.
        described: what it is, and is not, in a message to who wanted another kind.
    """

    model: type[nn.Module]
    shape: type[Any]
    make: Callable[[Any], nn.Module]
    described: str


KINDS: Mapping[str, Kind] = {
    "decoder": Kind(Decoder, ModelConfig, Decoder, "a language model: it has no reward head"),
    "encoder": Kind(Encoder, ModelConfig, Encoder, "an encoder: it reads text, and writes none"),
    "masked_lm": Kind(
        MaskedLM,
        MaskedLMConfig,
        MaskedLM,
        "an encoder that fills masks: it reads text, and writes none",
    ),
    "scalar": Kind(
        ScalarModel,
        ModelConfig,
        lambda config: ScalarModel(Decoder(config)),
        "a reward or value model: it gives numbers, not text",
    ),
    "encoder_decoder": Kind(
        EncoderDecoder,
        EncoderDecoderConfig,
        EncoderDecoder,
        "a translator: it writes a text from another one (`lmsmith translate`)",
    ),
    "classifier": Kind(
        Classifier, ClassifierConfig, Classifier, "a classifier: it gives labels, not text"
    ),
}
"""Kind in config.json → its class."""

WEIGHTS_FILE = "model.safetensors"
ADAPTER_FILE = "adapter.safetensors"
LOWER_ADAPTERS = "lower_adapters"
"""Key of config.json: the base of the adapters has adapters too."""

EMULATOR_KEY = "emulator"
"""Key in config.json of what an emulator knows of its full model (`lmsmith.models.offsite`)."""

OFFSITE_KIND = "offsite_adapters"
"""Kind of a folder with the two adapters of a tuned emulator alone: it is no model."""

MOST_CONFIG_BYTES = 1 << 24
"""Most bytes of a config.json, which is a few thousand bytes long."""

_MOST_SAID = 2000
"""Characters of PyTorch's list of what does not match."""

Kinds = TypeVar("Kinds", bound=nn.Module)

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
    model: nn.Module,
    tokenizer: Tokenizer,
    card: dict[str, Any],
    adapter: AdapterConfig | None = None,
    base: Path | None = None,
    more: Mapping[str, object] | None = None,
) -> None:
    """Write a model folder atomically; it replaces an old one.

    Args:
        folder: where.
        model: of one of `KINDS`.
        tokenizer: saved with it.
        card: parents, recipe, data, metrics, as JSON.
        adapter: the settings of the model's adapters, if it has any.
        base: the folder of their base; its path relative to ``folder`` must not change.
        more: other keys of config.json.
    """
    kind = next(name for name, kind in KINDS.items() if type(model) is kind.model)
    config: dict[str, Any] = {"kind": kind, "model": encode(model.config), **(more or {})}
    state, file = model.state_dict(), WEIGHTS_FILE
    if adapters.has_adapters(model):
        if adapter is None or base is None:
            raise ValueError("a model with adapters is saved with their settings and its base")
        place = Path(os.path.relpath(base.resolve(), folder.resolve())).as_posix()
        config["adapter"] = {"base": place, **asdict(adapter)}
        if (base / ADAPTER_FILE).is_file():
            config[LOWER_ADAPTERS] = True
        state, file = TrainedState(model).state_dict(), ADAPTER_FILE
    with atomic_folder(folder) as temporary:
        write_json(temporary / "config.json", config)
        tensors = {name: value.to(HOST).contiguous() for name, value in state.items()}
        save_file(tensors, temporary / file)
        tokenizer.save(temporary)
        write_json(temporary / "card.json", card)


def read_model_config(folder: Path) -> tuple[str, Any]:
    """Kind (of `KINDS`) and settings of a model folder: for a decoder its `ModelConfig`.

    Raises:
        UserError: it is not a model folder, or its config is not lmsmith's.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a model folder: it has no config.json",
            "name a folder that a stage wrote, such as runs/quickstart/ppo/model",
        )
    content = read_config_file(folder)
    kind = content.get("kind")
    if kind == OFFSITE_KIND:
        raise UserError(
            f"{folder} holds two adapters that were tuned on an emulator, and no model",
            f"put them into their full model: lmsmith offsite plug MODEL {folder}",
        )
    if not isinstance(kind, str) or kind not in KINDS or not isinstance(content.get("model"), dict):
        raise UserError(f"{path} is not an lmsmith model's config", "name another model folder")
    with refusing_damage(path, "name another model folder"):
        shape = KINDS[kind].shape
        config, problems = decode(shape, with_new_keys(shape, content["model"]), str(path))
    if config is None or problems:
        raise SettingsError(problems)
    return kind, config


def body_config(config: Any) -> ModelConfig:
    """The body's shape in the settings of a kind."""
    shape: ModelConfig = config if isinstance(config, ModelConfig) else config.model
    return shape


def read_config_file(folder: Path) -> dict[str, Any]:
    """The contents of config.json; empty where it is no object."""
    content = read_json(folder / "config.json", MOST_CONFIG_BYTES)
    return content if isinstance(content, dict) else {}


def load_model(folder: Path) -> nn.Module:
    """Read a model folder's weights, in float32 and evaluation mode; adapters are merged.

    Files of a finished stage are compared with its record first (`lmsmith.runs.integrity`).

    Raises:
        UserError: the folder, its config or its weights are missing, damaged or do not match; or
            the base of its adapters has moved.
    """
    return _load(folder, ())


def _load(folder: Path, above: tuple[Path, ...]) -> nn.Module:
    """``above`` are the folders of the adapters that were made for this model."""
    check_folder(folder)
    kind, config = read_model_config(folder)
    adapter = read_config_file(folder).get("adapter")
    with refusing_damage(folder):
        if adapter is None:
            model = _loaded_whole(folder, kind, config)
        else:
            model = _load_adapted(folder, kind, config, adapter, (*above, folder.resolve()))
        return model.requires_grad_(True).eval()


def _loaded_whole(folder: Path, kind: str, config: Any) -> nn.Module:
    path = folder / WEIGHTS_FILE
    refuse_impossible_sizes(
        body_config(config), read_shapes(path), f"{path} cannot be read as these weights"
    )
    model = _without_weights(kind, config)
    _fill(model, read_tensors(path), path)
    return model


def _load_adapted(
    folder: Path, kind: str, config: Any, adapter: object, above: tuple[Path, ...]
) -> nn.Module:
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
    model, path = _load(base, above), folder / ADAPTER_FILE
    if type(model) is not KINDS[kind].model:  # a head on its base's body
        headed = _without_weights(kind, config).to_empty(device=HOST)
        assert isinstance(headed.decoder, nn.Module)
        body: nn.Module = getattr(model, "decoder", model)
        headed.decoder.load_state_dict(body.state_dict(), assign=True)
        model = headed
    _check_rank(found.rank, body_config(config), path)
    adapters.add_adapters(model, found)
    try:
        TrainedState(model).load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    plain = _without_weights(kind, config)
    _fill(plain, adapters.merged_state(model), path)
    return plain


def read_adapters(folder: Path) -> tuple[AdapterConfig, dict[str, torch.Tensor], Path]:
    """A model folder's adapters as they are: settings, ``down`` and ``up`` by layer, and the base.

    Raises:
        UserError: it has none, or is damaged.
    """
    check_folder(folder)
    read_model_config(folder)
    adapter = read_config_file(folder).get("adapter")
    if not isinstance(adapter, dict) or not isinstance(adapter.get("base"), str):
        fix = "train with adapter.rank above 0, or export the whole model: --to hf"
        raise UserError(f"{folder} has no adapters", fix)
    settings = {name: value for name, value in adapter.items() if name != "base"}
    found, problems = decode(AdapterConfig, settings, f"{folder / 'config.json'}: adapter")
    if found is None or problems:
        raise SettingsError(problems, str(folder / "config.json"))
    return found, read_tensors(folder / ADAPTER_FILE), folder / adapter["base"]


def has_lower_adapters(folder: Path) -> bool:
    """Whether a folder's adapters were made on adapters; false for older folders, which do not
    say it."""
    return read_config_file(folder).get(LOWER_ADAPTERS) is True


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


def _without_weights(kind: str, config: Any) -> nn.Module:
    with without_weights():
        return KINDS[kind].make(config)


def _fill(model: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
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
    return load_kind(folder, Decoder, "name a folder that pretrain, sft or ppo wrote")


def load_scalar_model(folder: Path) -> ScalarModel:
    """Like `load_model`, for a reward or value model."""
    return load_kind(folder, ScalarModel, "name a folder that the reward stage wrote")


def load_kind(folder: Path, wanted: type[Kinds], fix: str) -> Kinds:
    """`load_model` for one class of models.

    Raises:
        UserError: also where it is of another class; the message ends with ``fix``.
    """
    kind, _ = read_model_config(folder)
    if KINDS[kind].model is not wanted:
        raise UserError(f"{folder} is {KINDS[kind].described}", fix)
    model = load_model(folder)
    assert isinstance(model, wanted)
    return model


def load_body(folder: Path) -> Decoder | Encoder:
    """The decoder or encoder of a model folder, without a head that it may have."""
    model = load_model(folder)
    body = getattr(model, "decoder", model)
    if not isinstance(body, Decoder | Encoder):
        kind, _ = read_model_config(folder)
        fix = "name a language model or an encoder"
        raise UserError(f"{folder} is {KINDS[kind].described}", fix)
    return body


def load_classifier(folder: Path) -> Classifier:
    """Like `load_model`, for a fine-tuned classifier."""
    return load_kind(folder, Classifier, "name a folder that the stage finetune wrote")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder; checked as `load_model` does."""
    check_folder(folder)
    return Tokenizer.load(folder)
