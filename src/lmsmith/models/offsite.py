"""Emulators and their adapters: tune a model without having it (Xiao et al. 2023, offsite-tuning).

The full model is adapter ∘ middle ∘ adapter: its first and last n blocks are the adapters, the
blocks between them its middle. An *emulator* has the same adapters, and only some blocks of the
middle. The owner of the data trains its adapters; they are then put into the full model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lmsmith.core.config import PositiveInt, SettingsError, decode
from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import atomic_folder, read_json, write_json
from lmsmith.device import HOST
from lmsmith.models.decoder import Decoder, state_digest
from lmsmith.models.folder import (
    ADAPTER_FILE,
    EMULATOR_KEY,
    MOST_CONFIG_BYTES,
    OFFSITE_KIND,
    read_config_file,
)
from lmsmith.models.shallow import copy_of_layers, kept_layers
from lmsmith.models.weights_file import read_tensors, require_weight
from lmsmith.runs.integrity import check_folder


@dataclass(frozen=True)
class Emulated:
    """What an emulator, and the adapters tuned on it, know of the full model."""

    adapter_layers: PositiveInt
    """Blocks of each of the two adapters."""
    layers: PositiveInt
    """Blocks of the full model."""
    fingerprint: str
    """SHA-256 of the full model's weights (`state_digest`): no other takes the adapters."""


def emulator_layers(layers: int, adapter_layers: int, kept: int) -> list[int]:
    """The numbers of the full model's blocks that an emulator has.

    The first and the last ``adapter_layers``, and ``kept`` of those between, evenly spaced with the
    first and the last of them (Xiao et al. 2023, section 3.3: uniform layer drop).

    Raises:
        UserError: the adapters leave no middle, or it has fewer than ``kept`` blocks.
    """
    middle = layers - 2 * adapter_layers
    if adapter_layers < 1 or middle < 1:
        raise UserError(
            f"adapters of {adapter_layers} layers at both ends leave no middle of {layers} layers",
            f"take 1 to {(layers - 1) // 2} adapter layers"
            if layers > 2
            else "name a deeper model",
        )
    if not 1 <= kept <= middle:
        raise UserError(
            f"{kept} of the {middle} layers between the adapters cannot be kept",
            f"keep 1 to {middle}",
        )
    between = [adapter_layers + place for place in kept_layers(middle, kept)]
    return [*range(adapter_layers), *between, *range(layers - adapter_layers, layers)]


def make_emulator(decoder: Decoder, adapter_layers: int, kept: int) -> tuple[Decoder, Emulated]:
    """The emulator before its distillation, and what it knows of ``decoder``."""
    layers = emulator_layers(decoder.config.layers, adapter_layers, kept)
    about = Emulated(adapter_layers, decoder.config.layers, state_digest(decoder))
    return copy_of_layers(decoder, layers).eval(), about


def train_only_middle(decoder: Decoder, adapter_layers: int) -> None:
    """Freeze all but the blocks between the adapters, as in distillation."""
    decoder.requires_grad_(False)
    for number, block in enumerate(decoder.blocks):
        block.requires_grad_(adapter_layers <= number < decoder.config.layers - adapter_layers)


def train_only_adapters(decoder: Decoder, adapter_layers: int) -> None:
    """Freeze all but the first and the last blocks, as in tuning."""
    decoder.requires_grad_(False)
    for number, block in enumerate(decoder.blocks):
        inside = adapter_layers <= number < decoder.config.layers - adapter_layers
        block.requires_grad_(not inside)


def _names(decoder: Decoder, adapter_layers: int) -> dict[str, str]:
    """Name of a tensor of the adapters → its name in the decoder's state.

    ``lower.0.…`` is the first block, ``upper.0.…`` the first of the last ones: the names do not
    depend on the number of blocks between.
    """
    upper = decoder.config.layers - adapter_layers
    found = {}
    for name in decoder.state_dict():
        if not name.startswith("blocks."):
            continue
        _, number, part = name.split(".", 2)
        if int(number) < adapter_layers:
            found[f"lower.{number}.{part}"] = name
        elif int(number) >= upper:
            found[f"upper.{int(number) - upper}.{part}"] = name
    return found


def adapter_state(decoder: Decoder, adapter_layers: int) -> dict[str, Tensor]:
    """The adapters' weights, of an emulator or of a full model."""
    state = decoder.state_dict()
    return {ours: state[theirs] for ours, theirs in _names(decoder, adapter_layers).items()}


def put_adapters(decoder: Decoder, state: Mapping[str, Tensor], adapter_layers: int) -> None:
    """Replace the adapters' weights in place; all others stay.

    Raises:
        UserError: the adapters are of another shape.
    """
    names = _names(decoder, adapter_layers)
    whole = decoder.state_dict()
    if names.keys() != state.keys():
        wrong = sorted(names.keys() ^ state.keys())[0]
        raise UserError(f"the adapters are of another kind of model: {wrong} is not in both")
    for ours, theirs in names.items():
        require_weight(ours, state[ours], tuple(whole[theirs].shape), "they are of another model")
    decoder.load_state_dict({**whole, **{names[name]: value for name, value in state.items()}})


def plug(decoder: Decoder, folder: Path) -> Emulated:
    """Put the adapters of a folder into the full model, in place.

    Raises:
        UserError: there are none, or they were tuned for another model.
    """
    about, state = read_offsite_adapters(folder)
    if decoder.config.layers != about.layers:
        raise UserError(
            f"{folder}: the adapters are for a model of {about.layers} layers, and this one has "
            f"{decoder.config.layers}",
            "name the model that the emulator was made from",
        )
    if (found := state_digest(decoder)) != about.fingerprint:
        raise UserError(
            f"{folder}: the adapters are for a model with other weights (fingerprint "
            f"{about.fingerprint[:12]}, this model's is {found[:12]})",
            "name the model that the emulator was made from",
        )
    put_adapters(decoder, state, about.adapter_layers)
    return about


def read_emulated(folder: Path) -> Emulated:
    """What an emulator's folder knows of its full model.

    Raises:
        UserError: the folder is no emulator's, or damaged.
    """
    known = read_config_file(folder) if (folder / "config.json").is_file() else {}
    about = known.get(EMULATOR_KEY)
    if not isinstance(about, dict):
        raise UserError(
            f"{folder} is a model, and no emulator: it does not say which layers are adapters",
            "make one: lmsmith offsite emulator MODEL",
        )
    return _decoded(about, folder)


def _decoded(about: Mapping[str, Any], folder: Path) -> Emulated:
    place = folder / "config.json"
    with refusing_damage(place):
        found, problems = decode(Emulated, about, EMULATOR_KEY)
    if found is None or problems:
        raise SettingsError(problems, str(place))
    return found


def save_offsite_adapters(
    folder: Path, decoder: Decoder, about: Emulated, card: Mapping[str, Any]
) -> None:
    """Write the two adapters of a tuned emulator, and nothing else of it, atomically."""
    state = adapter_state(decoder, about.adapter_layers)
    with atomic_folder(folder) as temporary:
        write_json(temporary / "config.json", {"kind": OFFSITE_KIND, EMULATOR_KEY: asdict(about)})
        tensors = {name: value.to(HOST).contiguous() for name, value in state.items()}
        save_file(tensors, temporary / ADAPTER_FILE)
        write_json(temporary / "card.json", dict(card))


def read_offsite_adapters(folder: Path) -> tuple[Emulated, dict[str, Tensor]]:
    """What `save_offsite_adapters` wrote, into this folder or a run's below it.

    Raises:
        UserError: there is nothing of the kind, or it is damaged.
    """
    for place in (folder, folder / "adapters", folder / "offsite" / "adapters"):
        path = place / "config.json"
        content = read_json(path, MOST_CONFIG_BYTES) if path.is_file() else None
        if isinstance(content, dict) and content.get("kind") == OFFSITE_KIND:
            check_folder(place)
            about = content.get(EMULATOR_KEY)
            with refusing_damage(place):
                tensors = read_tensors(place / ADAPTER_FILE)
            return _decoded(about if isinstance(about, dict) else {}, place), tensors
    raise UserError(
        f"{folder} has no tuned adapters", "name a folder that lmsmith offsite tune wrote"
    )
