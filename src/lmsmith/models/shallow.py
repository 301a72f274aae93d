"""A decoder with some layers of another one: where a student may begin (Sanh et al. 2019)."""

from __future__ import annotations

from dataclasses import replace

from lmsmith.core.errors import UserError
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder


def kept_layers(layers: int, kept: int) -> list[int]:
    """The numbers of ``kept`` of ``layers`` layers, evenly spaced, the first and last among them.

    Raises:
        UserError: there are not so many.
    """
    if not 1 <= kept <= layers:
        raise UserError(f"{kept} of {layers} layers cannot be kept", f"keep 1 to {layers}")
    if kept == 1:
        return [0]
    return [(place * (layers - 1) + (kept - 1) // 2) // (kept - 1) for place in range(kept)]


def shallow_config(config: ModelConfig, layers: list[int]) -> ModelConfig:
    """The shape with these layers alone; each keeps its kind of attention."""
    kinds = tuple(config.attention_kind(layer) for layer in layers)
    pattern = kinds if len(set(kinds)) > 1 else kinds[:1]
    return replace(config, layers=len(layers), attention_pattern=pattern, preset="")


def shallow_copy(decoder: Decoder, kept: int) -> Decoder:
    """A copy with ``kept`` of the layers (`kept_layers`), embeddings and norms as they are."""
    return copy_of_layers(decoder, kept_layers(decoder.config.layers, kept))


def copy_of_layers(decoder: Decoder, layers: list[int]) -> Decoder:
    """A copy with the layers of these numbers, embeddings and norms as they are."""
    student = Decoder(shallow_config(decoder.config, layers))
    state = {}
    for name, value in decoder.state_dict().items():
        if not name.startswith("blocks."):
            state[name] = value
            continue
        _, number, part = name.split(".", 2)
        if int(number) in layers:
            state[f"blocks.{layers.index(int(number))}.{part}"] = value
    student.load_state_dict(state)
    return student
