"""Marian's encoder–decoders of transformers (`MarianMTModel`) as ours, and back.

Marian's positions have all sines in their first half and all cosines in their second; ours take
turns (Vaswani et al. 2017, section 3.5). So the model's width is put in another order, in every
matrix and norm, which changes no output.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmsmith.core.config import Problem, SettingsError, problems_in
from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import read_json, write_json
from lmsmith.models.config import EncoderDecoderConfig, ModelConfig
from lmsmith.models.encoder_decoder import EncoderDecoder
from lmsmith.models.folder import MOST_CONFIG_BYTES, without_weights
from lmsmith.models.interop.folders import CONFIG_FILE, WEIGHTS_FILE, read_weights
from lmsmith.models.positions import SinusoidalPositions
from lmsmith.models.weights_file import refuse_impossible_sizes, require_weight

State = Mapping[str, Tensor]

MODEL_TYPE = "marian"

ALLOWED: Mapping[str, tuple[object, ...]] = {
    "scale_embedding": (True,),
    "share_encoder_decoder_embeddings": (True, None),
    "tie_word_embeddings": (True, None),
    "normalize_before": (False, None),
    "normalize_embedding": (False, None),
    "add_final_layer_norm": (False, None),
    "add_bias_logits": (False, None),
    "static_position_embeddings": (True, None),
    "is_encoder_decoder": (True, None),
}
"""Their setting → the values that our model has; None where it may be absent."""

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "swish": "silu"}
_ACTIVATIONS |= {"silu": "silu"}
_THEIRS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "swish"}

_PARTS = {
    "attention_norm": "self_attn_layer_norm",
    "attention.output": "self_attn.out_proj",
    "cross_norm": "encoder_attn_layer_norm",
    "cross_attention.query": "encoder_attn.q_proj",
    "cross_attention.output": "encoder_attn.out_proj",
    "feed_forward_norm": "final_layer_norm",
    "feed_forward.inner": "fc1",
    "feed_forward.output": "fc2",
}
_STACKED = {
    "attention.query_key_value": [f"self_attn.{each}_proj" for each in "qkv"],
    "cross_attention.key_value": [f"encoder_attn.{each}_proj" for each in "kv"],
}
"""Our part of a block → theirs, stacked in this order."""

_TIED = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
_POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
_FIX = "another Marian model may have it"


def from_marian(
    settings: Mapping[str, Any], state: State
) -> tuple[EncoderDecoderConfig, dict[str, Tensor]]:
    """Convert a `MarianMTModel`.

    Args:
        settings: the contents of its config.json.
        state: its weights by name.

    Returns:
        The shape, and what `EncoderDecoder.load_state_dict` takes, in the weights' own type.

    Raises:
        UserError: an unsupported setting (all are named), or weights that are missing, of another
            shape, or without a place.
    """
    config = read_config(settings)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    refuse_impossible_sizes(config, shapes, CONFIG_FILE)
    order = width_order(config.width)
    used: set[str] = set()

    def read(name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in state:
            raise UserError(f"the model's weights lack {name}", "load them again")
        used.add(name)
        fix = "its config.json and its weights are not of one model"
        require_weight(name, state[name], shape, fix)
        return state[name]

    found = {}
    for ours, shape in _shapes(config).items():
        names = their_names(ours)
        rows = (shape[0] // len(names), *shape[1:])
        rows = (1, *shape) if ours == "output_bias" else rows
        parts = [read(name, rows) for name in names]
        weight = parts[0][0] if ours == "output_bias" else torch.cat(parts)
        found[ours] = _reordered(ours, weight, order).contiguous()
    _check_tied(state, used)
    _check_positions(state, config, order, used)
    if left := sorted(set(state) - used):
        raise UserError(
            f"the model has weights without a place in ours: {', '.join(left[:3])}",
            "it is another architecture than its config.json says",
        )
    return config, found


def read_config(settings: Mapping[str, Any]) -> EncoderDecoderConfig:
    """The shape that a Marian config.json describes; the refusals of `from_marian`."""
    if problems := _refusals(settings):
        raise SettingsError(problems, CONFIG_FILE)
    try:
        model = ModelConfig(
            layers=settings["encoder_layers"],
            width=settings["d_model"],
            heads=settings["encoder_attention_heads"],
            context=settings["max_position_embeddings"],
            vocabulary_size=settings["vocab_size"],
            ffn_width=settings["encoder_ffn_dim"],
            dropout=settings.get("dropout") or 0.0,
            norm_position="post",
            positions="sinusoidal",
            activation=_ACTIVATIONS[settings["activation_function"]],  # type: ignore[arg-type]
        )
        config = EncoderDecoderConfig(
            model,
            decoder_layers=settings["decoder_layers"],
            start_token=settings["decoder_start_token_id"],
            end_token=settings["eos_token_id"],
            output_bias=True,
        )
        wrong = problems_in(config)
    except KeyError as error:
        raise UserError(f"the model's config.json lacks {error}", "load it again") from error
    except (TypeError, ValueError) as error:
        problem = f"a value in the model's config.json is of the wrong kind ({error})"
        raise UserError(problem, "load it again") from error
    if wrong:
        raise SettingsError(wrong, CONFIG_FILE)
    return config


def _refusals(settings: Mapping[str, Any]) -> list[Problem]:
    found = []
    if (kind := settings.get("model_type")) != MODEL_TYPE:
        found.append(Problem("model_type", kind, f"not {MODEL_TYPE}", "name another folder"))
    for name, allowed in ALLOWED.items():
        if settings.get(name) not in allowed:
            expected = f"lmsmith supports {allowed[0]} alone"
            found.append(Problem(name, settings.get(name), expected, _FIX))
    pairs = (
        ("vocab_size", "decoder_vocab_size"),
        ("encoder_attention_heads", "decoder_attention_heads"),
        ("encoder_ffn_dim", "decoder_ffn_dim"),
    )
    for one, other in pairs:
        value = settings.get(other)
        if value is not None and value != settings.get(one):
            found.append(Problem(other, value, f"lmsmith supports that of {one} alone", _FIX))
    activation = settings.get("activation_function")
    if activation not in _ACTIVATIONS:
        expected = f"lmsmith supports {', '.join(_ACTIVATIONS)}"
        found.append(Problem("activation_function", activation, expected, _FIX))
    return found


def width_order(width: int) -> Tensor:
    """Their place of each of our dimensions: sine i is at i, cosine i at width / 2 + i."""
    halves = torch.arange(width).view(2, width // 2)
    return halves.T.flatten()


def _reordered(ours: str, weight: Tensor, order: Tensor) -> Tensor:
    """A weight with its dimensions of the residual stream in the order given."""
    part = ours.rsplit(".", 1)[0]
    if ours == "output_bias":
        return weight
    if "norm" in part:
        return weight[order]
    if part.endswith("output"):  # written to the stream
        return weight[order]
    return weight[:, order] if weight.dim() == 2 else weight


def their_names(ours: str) -> list[str]:
    """Their names of one of our parameters; several where ours is a stack of theirs."""
    if ours == "output_bias":
        return ["final_logits_bias"]
    if ours == "encoder.token_embedding.weight":
        return ["model.shared.weight"]
    side, rest = ("decoder", ours.removeprefix("decoder_blocks."))
    if ours.startswith("encoder.blocks."):
        side, rest = "encoder", ours.removeprefix("encoder.blocks.")
    layer, part = rest.split(".", 1)
    part, kind = part.rsplit(".", 1)
    names = _STACKED.get(part) or [_PARTS[part]]
    return [f"model.{side}.layers.{layer}.{name}.{kind}" for name in names]


def _check_tied(state: State, used: set[str]) -> None:
    for name in _TIED:
        if name in state:
            used.add(name)
            if not torch.equal(state[name], state["model.shared.weight"]):
                raise UserError(f"{name} is not the shared embedding", _FIX)


def _check_positions(
    state: State, config: EncoderDecoderConfig, order: Tensor, used: set[str]
) -> None:
    """Positions that a file holds must be the sinusoids, or the model is another."""
    for name in _POSITIONS:
        if name in state:
            used.add(name)
            table = state[name].float()
            require_weight(name, table, (config.model.context, config.width), _FIX)
            with torch.no_grad():
                expected = SinusoidalPositions(config.width)(torch.arange(len(table))[None])[0]
            if not torch.allclose(table[:, order], expected, atol=1e-2):
                raise UserError(f"{name}: its positions are not sinusoids", _FIX)


def _shapes(config: EncoderDecoderConfig) -> dict[str, tuple[int, ...]]:
    with without_weights():
        model = EncoderDecoder(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def to_marian(
    config: EncoderDecoderConfig, state: State
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert to a `MarianMTModel`: the contents of config.json, and the weights.

    Raises:
        UserError: Marian has no model of this shape.
    """
    model = config.model
    plain = model.norm_position == "post" and model.norm == "layer"
    plain = plain and model.positions == "sinusoidal" and model.activation in _THEIRS
    plain = plain and model.resolved_kv_heads == model.heads and model.norm_epsilon == 1e-5
    plain = plain and model.heads * model.width_per_head == model.width
    plain = plain and model.qkv_bias and model.attention_output_bias and model.ffn_bias
    if not plain:
        raise UserError(
            "transformers has no encoder–decoder of this shape",
            "Marian's have post-norm, sinusoidal positions, biases and no grouped heads",
        )
    settings = {
        "architectures": ["MarianMTModel"],
        "model_type": MODEL_TYPE,
        "vocab_size": model.vocabulary_size,
        "decoder_vocab_size": model.vocabulary_size,
        "max_position_embeddings": model.context,
        "d_model": model.width,
        "encoder_layers": model.layers,
        "decoder_layers": config.resolved_decoder_layers,
        "activation_function": _THEIRS[model.activation],
        "dropout": model.dropout,
        "decoder_start_token_id": config.start_token,
        "pad_token_id": config.start_token,
        "eos_token_id": config.end_token,
        "forced_eos_token_id": None,
        "bos_token_id": None,
        "scale_embedding": True,
        "static_position_embeddings": True,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
    }
    for side in ("encoder", "decoder"):
        settings[f"{side}_attention_heads"] = model.heads
        settings[f"{side}_ffn_dim"] = model.resolved_ffn_width
    back = width_order(model.width).argsort()
    made: dict[str, Tensor] = {"final_logits_bias": torch.zeros(1, model.vocabulary_size)}
    for ours, weight in state.items():
        names = their_names(ours)
        turned = _reordered(ours, weight, back)
        parts = [turned[None]] if ours == "output_bias" else turned.chunk(len(names))
        made |= {name: part.contiguous() for name, part in zip(names, parts, strict=True)}
    return settings, made


def is_marian(folder: Path) -> bool:
    """Whether a folder's config.json is a Marian model's."""
    path = folder / CONFIG_FILE
    content = read_json(path, MOST_CONFIG_BYTES) if path.is_file() else None
    return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE


def read_marian_folder(folder: Path) -> EncoderDecoder:
    """A float32 model in evaluation mode.

    Raises:
        UserError: a file is missing or damaged, or the refusals of `from_marian`.
    """
    settings = _settings(folder)
    try:
        with refusing_damage(folder):
            read_config(settings)  # says what is not supported before the weights are read
            config, state = from_marian(settings, read_weights(folder))
    except UserError as error:
        raise UserError(f"{folder}: {error.problem}", error.fix) from error
    with without_weights():
        model = EncoderDecoder(config)
    model.load_state_dict({name: each.float() for name, each in state.items()}, assign=True)
    return model.requires_grad_(True).eval()


def read_marian_config(folder: Path) -> EncoderDecoderConfig:
    """The shape alone; the refusals of `read_config`."""
    with refusing_damage(folder):
        return read_config(_settings(folder))


def _settings(folder: Path) -> dict[str, Any]:
    settings = read_json(folder / CONFIG_FILE, MOST_CONFIG_BYTES)
    if not isinstance(settings, dict):
        raise UserError(f"{folder / CONFIG_FILE}: expected an object", "fetch it again")
    return settings


def write_marian_model(folder: Path, model: EncoderDecoder, dtype: torch.dtype) -> None:
    """Write config.json, generation_config.json and model.safetensors into an existing folder.

    Raises:
        UserError: Marian has no model of this shape.
    """
    settings, weights = to_marian(model.config, model.state_dict())
    name = str(dtype).removeprefix("torch.")
    write_json(folder / CONFIG_FILE, {**settings, "dtype": name})
    start, end = settings["decoder_start_token_id"], settings["eos_token_id"]
    generation = {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": start}
    generation |= {"num_beams": 4, "length_penalty": 0.6, "max_length": model.config.model.context}
    if start != end:
        generation["bad_words_ids"] = [[start]]
    write_json(folder / "generation_config.json", generation)
    cast = {each: tensor.detach().to(dtype, copy=True) for each, tensor in weights.items()}
    save_file(cast, folder / WEIGHTS_FILE, metadata={"format": "pt"})
