"""Convert settings and weights of transformers to ours and back."""

from __future__ import annotations

import contextlib
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lmsmith.core.config import Problem, SettingsError, problems_in
from lmsmith.core.errors import UserError
from lmsmith.models.config import ModelConfig, RopeScaling
from lmsmith.models.decoder import Decoder
from lmsmith.models.encoder import Encoder
from lmsmith.models.folder import without_weights
from lmsmith.models.interop.families import (
    FAMILIES,
    UNEMBEDDING,
    Family,
    refuse_unsupported,
    spelt_out,
)
from lmsmith.models.weights_file import refuse_impossible_sizes, require_weight

State = Mapping[str, Tensor]

NOT_WEIGHTS = (
    "embeddings.position_ids",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)
"""Endings of masks and positions in older files, which are no weights; ``inv_freq`` is another."""


def from_transformers(
    settings: Mapping[str, Any], state: State
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Convert a model of transformers.

    Args:
        settings: the contents of its config.json.
        state: its weights by name, with or without the prefix of the model with a head.

    Returns:
        The shape, and what `load_state_dict` of a `Decoder`, or of an `Encoder`, takes, in the
        weights' own type.

    Raises:
        UserError: another family, an unsupported setting, or weights that are missing, of another
            shape, or without a place.
    """
    refuse_unsupported(settings, "config.json")
    family = FAMILIES[settings["model_type"]]
    config = read_shape(family, settings)
    if config.pooler:
        config = replace(config, pooler=any("pooler.dense." in name for name in state))
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    refuse_impossible_sizes(config, shapes, "config.json")
    used: set[str] = set()
    fix = "its config.json and its weights are not of one model"

    def read(ours: str, theirs: str, number: int, shape: tuple[int, ...]) -> Tensor:
        key = theirs if theirs in state else theirs.removeprefix(family.prefix)
        if key not in state:
            raise UserError(f"the model's weights lack {theirs}", "load them again")
        used.add(key)
        turned = _is_transposed(family, ours)
        require_weight(theirs, state[key], shape[::-1] if turned else shape, fix)
        return state[key].T if turned else state[key]

    found = join_parts(config, lambda ours: their_names(family, ours), read)
    scale = math.sqrt(config.width_per_head)
    found = {name: scale_query(w, name, config, family, scale) for name, w in found.items()}
    left = [name for name in state if name not in used and not _is_ignored(name)]
    if left:
        raise UserError(
            f"the model has weights without a place in ours: {', '.join(sorted(left)[:3])}",
            "it is another architecture than its config.json says",
        )
    return config, found


def join_parts(
    config: ModelConfig,
    their_names: Callable[[str], list[str]],
    read: Callable[[str, str, int, tuple[int, ...]], Tensor],
) -> dict[str, Tensor]:
    """All our parameters, each made of the parts that ``read(ours, theirs, number, shape)`` gives.

    ``read`` raises UserError where a part has another shape.
    """
    state = {}
    for ours, shape in parameter_shapes(config).items():
        names = their_names(ours)
        rows = query_key_value_rows(config) if len(names) > 1 else [shape[0]]
        parts = [
            read(ours, theirs, number, (rows[number], *shape[1:]))
            for number, theirs in enumerate(names)
        ]
        state[ours] = _joined(parts, shape)
    return state


def _joined(parts: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """The parts as one. `torch.cat` of meta tensors imports PyTorch's compiler: 70 MB, a second."""
    if parts[0].is_meta:
        return torch.empty(shape, device="meta")
    return torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()


def read_shape(family: Family, settings: Mapping[str, Any]) -> ModelConfig:
    """The shape that a config.json describes.

    Raises:
        UserError: a value is missing, of the wrong kind, or out of range.
    """
    try:
        config = family.read(settings)
    except KeyError as error:
        raise UserError(f"the model's config.json lacks {error}", "load it again") from error
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        problem = f"a value in the model's config.json is of the wrong kind ({error})"
        raise UserError(problem, "load it again") from error
    if wrong := [*_wrong_kinds(config), *_wrong_kinds(config.rope_scaling)]:
        raise SettingsError(wrong, "config.json")
    if problems := problems_in(config):
        raise SettingsError(problems, "config.json")
    return config


_KINDS: Mapping[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
}
"""Type of a setting → types of its values, and their name."""


def _wrong_kinds(values: ModelConfig | RopeScaling) -> Iterator[Problem]:
    """Settings that should be numbers or truth values and are not."""
    for name, hint in typing.get_type_hints(type(values)).items():
        value = getattr(values, name)
        if hint in _KINDS and type(value) not in _KINDS[hint][0]:
            yield Problem(name, value, _KINDS[hint][1], "fetch the file again")


def to_transformers(config: ModelConfig, state: State) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a model to transformers: the contents of config.json, and the weights.

    Raises:
        UserError: no known family of transformers has this shape.
    """
    family, settings = family_of(config)
    scale = 1.0 / math.sqrt(config.width_per_head)
    made: dict[str, Tensor] = {}
    for name in parameter_shapes(config):
        weight = scale_query(state[name], name, config, family, scale)
        names = their_names(family, name)
        parts = (weight,) if len(names) == 1 else torch.split(weight, query_key_value_rows(config))
        for theirs, part in zip(names, parts, strict=True):
            made[theirs] = (part.T if _is_transposed(family, name) else part).contiguous()
    return settings, made


def family_of(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The first family whose settings, read back, are this shape; and those settings."""
    for family in FAMILIES.values():
        settings = family.write(config)
        with contextlib.suppress(KeyError):  # a part that this family cannot name
            if _comparable(family.read(settings)) == _comparable(config):
                return family, settings
    raise UserError(
        "transformers has no model of this shape",
        f"lmsmith can write what is wholly like {', '.join(FAMILIES)}",
    )


def _comparable(config: ModelConfig) -> ModelConfig:
    """All defaults written out, without dropout, which is no part of a trained model, and without
    the pooler, of which a config.json says nothing."""
    pattern = tuple(config.attention_kind(layer) for layer in range(config.layers))
    return replace(spelt_out(config), attention_pattern=pattern, dropout=0.0, pooler=False)


def parameter_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Name → shape of all our parameters."""
    with without_weights():
        model = Encoder(config) if config.is_encoder else Decoder(config)
        return {name: tensor.shape for name, tensor in model.state_dict().items()}


def their_names(family: Family, name: str) -> list[str]:
    """Their names of one of our parameters; three where our one matrix is three of theirs."""
    if name == "unembedding.weight":
        return [UNEMBEDDING]
    part, kind = name.rsplit(".", 1)
    if not part.startswith("blocks."):
        return [f"{family.prefix}{family.outside[part]}.{kind}"]
    _, layer, part = part.split(".", 2)
    block = f"{family.prefix}{family.layers}.{layer}"
    return [f"{block}.{theirs}.{kind}" for theirs in family.inside[part]]


def _is_transposed(family: Family, name: str) -> bool:
    """Whether they store it (inputs, outputs)."""
    matrix = name.startswith("blocks.") and "norm" not in name and name.endswith(".weight")
    return family.input_first and matrix


def query_key_value_rows(config: ModelConfig) -> list[int]:
    """Rows of queries, keys and values in the one matrix."""
    shared = config.resolved_kv_heads * config.width_per_head
    return [config.heads * config.width_per_head, shared, shared]


def scale_query(
    weight: Tensor, name: str, config: ModelConfig, family: Family, scale: float
) -> Tensor:
    """The query's rows contain the factor of scores that are not divided by √head_width."""
    if family.scales_scores or ".query_key_value." not in name:
        return weight
    query, *rest = torch.split(weight, query_key_value_rows(config))
    return torch.cat([query * scale, *rest])


def _is_ignored(name: str) -> bool:
    return name.endswith(NOT_WEIGHTS) or "inv_freq" in name or name == UNEMBEDDING
