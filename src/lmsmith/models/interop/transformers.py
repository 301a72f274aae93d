"""Weights and settings as transformers has them, to ours and back."""

from __future__ import annotations

import contextlib
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lmsmith.core.config import Problem, SettingsError, problems_in
from lmsmith.core.errors import UserError
from lmsmith.models.config import ModelConfig, RopeScaling
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import without_weights
from lmsmith.models.interop.families import (
    FAMILIES,
    UNEMBEDDING,
    Family,
    refuse_unsupported,
    spelt_out,
)

State = Mapping[str, Tensor]

NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
"""Endings of masks that older files hold beside the weights; ``inv_freq`` is another."""


def from_transformers(
    settings: Mapping[str, Any], state: State
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A model of transformers as one of ours.

    Args:
        settings: the contents of its config.json.
        state: its weights by name, with or without the prefix of the model with a head.

    Returns:
        The shape, and what `Decoder.load_state_dict` takes, in the weights' own type.

    Raises:
        UserError: another family, a setting that we do not have, or weights that are missing, of
            another shape, or without a place.
    """
    refuse_unsupported(settings, "config.json")
    family = FAMILIES[settings["model_type"]]
    config = read_shape(family, settings)
    problems = problems_in(config)
    if problems:
        raise SettingsError(problems, "config.json")
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, shape in parameter_shapes(config).items():
        parts = []
        for theirs in their_names(family, name):
            key = theirs if theirs in state else theirs.removeprefix(family.prefix)
            if key not in state:
                raise UserError(f"the model's weights lack {theirs}", "load them again")
            used.add(key)
            parts.append(state[key].T if _turned(family, name) else state[key])
        weight = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
        if weight.shape != shape:
            raise UserError(
                f"{theirs} has the shape {tuple(weight.shape)}, not {tuple(shape)}",
                "its config.json and its weights are not of one model",
            )
        found[name] = _scale_query(weight, name, config, family, math.sqrt(config.width_per_head))
    left = [name for name in state if name not in used and not _is_left_out(name)]
    if left:
        raise UserError(
            f"the model has weights without a place in ours: {', '.join(sorted(left)[:3])}",
            "it is another architecture than its config.json says",
        )
    return config, found


def read_shape(family: Family, settings: Mapping[str, Any]) -> ModelConfig:
    """The shape that a config.json describes.

    Raises:
        UserError: a value is missing, or of the wrong kind.
    """
    try:
        config = family.read(settings)
    except KeyError as error:
        raise UserError(f"the model's config.json lacks {error}", "load it again") from error
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"a value in the model's config.json is of the wrong kind ({error})"
        raise UserError(problem, "load it again") from error
    wrong = [*_no_numbers(config), *_no_numbers(config.rope_scaling)]
    if wrong:
        raise SettingsError(wrong, "config.json")
    return config


def _no_numbers(values: ModelConfig | RopeScaling) -> Iterator[Problem]:
    """Those that are to be numbers, and are none."""
    for name, hint in typing.get_type_hints(type(values)).items():
        value = getattr(values, name)
        kinds = (int,) if hint is int else (int, float)
        if hint in (int, float) and (isinstance(value, bool) or not isinstance(value, kinds)):
            expected = "a whole number" if hint is int else "a number"
            yield Problem(name, value, expected, "fetch the file again")


def to_transformers(config: ModelConfig, state: State) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A model of ours as one of transformers: the contents of config.json, and the weights.

    Raises:
        UserError: no family of transformers that we know has this shape.
    """
    family, settings = their_family(config)
    made: dict[str, Tensor] = {}
    for name in parameter_shapes(config):
        scale = 1.0 / math.sqrt(config.width_per_head)
        weight = _scale_query(state[name], name, config, family, scale)
        names = their_names(family, name)
        parts = (weight,) if len(names) == 1 else torch.split(weight, _rows(config))
        for theirs, part in zip(names, parts, strict=True):
            made[theirs] = (part.T if _turned(family, name) else part).contiguous()
    return settings, made


def their_family(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The first family whose settings, read back, are this shape; and those settings."""
    for family in FAMILIES.values():
        settings = family.write(config)
        with contextlib.suppress(KeyError):  # a part that this family cannot name
            if _compared(family.read(settings)) == _compared(config):
                return family, settings
    raise UserError(
        "transformers has no model of this shape",
        f"lmsmith can write what is wholly like {', '.join(FAMILIES)}",
    )


def _compared(config: ModelConfig) -> ModelConfig:
    """With nothing left to a default, and without dropout, which is no part of a trained model."""
    pattern = tuple(config.attention_kind(layer) for layer in range(config.layers))
    return replace(spelt_out(config), attention_pattern=pattern, dropout=0.0)


def parameter_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Name → shape of all our parameters."""
    with without_weights():
        return {name: tensor.shape for name, tensor in Decoder(config).state_dict().items()}


def their_names(family: Family, name: str) -> list[str]:
    """Theirs of one of our parameters; three where our one matrix is three of theirs."""
    if name == "unembedding.weight":
        return [UNEMBEDDING]
    part, kind = name.rsplit(".", 1)
    if not part.startswith("blocks."):
        return [f"{family.prefix}{family.outside[part]}.{kind}"]
    _, layer, part = part.split(".", 2)
    return [
        f"{family.prefix}{family.layers}.{layer}.{theirs}.{kind}" for theirs in family.inside[part]
    ]


def _turned(family: Family, name: str) -> bool:
    """Whether they store it (inputs, outputs)."""
    matrix = name.startswith("blocks.") and "norm" not in name and name.endswith(".weight")
    return family.input_first and matrix


def _rows(config: ModelConfig) -> list[int]:
    """Rows of queries, keys and values in the one matrix."""
    shared = config.resolved_kv_heads * config.width_per_head
    return [config.heads * config.width_per_head, shared, shared]


def _scale_query(
    weight: Tensor, name: str, config: ModelConfig, family: Family, scale: float
) -> Tensor:
    """Their scores are not divided by √head_width: the query's rows make up for it."""
    if family.scales_scores or ".query_key_value." not in name:
        return weight
    query, *rest = torch.split(weight, _rows(config))
    return torch.cat([query * scale, *rest])


def _is_left_out(name: str) -> bool:
    return name.endswith(NOT_WEIGHTS) or "inv_freq" in name or name == UNEMBEDDING
