"""What transformers calls the settings and weights of each family of models.

A family gives names alone; `lmsmith.models.interop.transformers` moves the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.models.config import AttentionKind, ModelConfig, RopeScaling

Settings = Mapping[str, Any]
"""The contents of transformers' config.json."""


@dataclass(frozen=True)
class Family:
    """Names of one of transformers' architectures.

    Attributes:
        model_type: in config.json.
        prefix: before all names but the unembedding's; files of the bare model have none.
        layers: name of the list of blocks.
        outside: our parameter, without ``.weight`` or ``.bias`` → theirs, outside the blocks.
        inside: the same inside a block; where theirs are several, ours is all of them, stacked.
        read: their settings → ours.
        write: ours → theirs.
        input_first: whether the blocks' matrices are stored (inputs, outputs).
        scales_scores: whether scores are divided by √head_width; if not, the query's weights hold
            that factor.
    """

    model_type: str
    prefix: str
    layers: str
    outside: Mapping[str, str]
    inside: Mapping[str, Sequence[str]]
    read: Callable[[Settings], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    input_first: bool = False
    scales_scores: bool = True


UNEMBEDDING = "lm_head.weight"
"""Outside every prefix; in the file only where it is not tied."""

TRANSFORMERS_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def _activation(settings: Settings, key: str) -> Any:
    name = settings.get(key, "gelu_new")
    if name not in TRANSFORMERS_ACTIVATIONS:
        raise UserError(
            f"{key} = {name}: not an activation that lmsmith has",
            f"models with {', '.join(TRANSFORMERS_ACTIVATIONS)} can be read",
        )
    return TRANSFORMERS_ACTIVATIONS[name]


def _their_activation(config: ModelConfig) -> str:
    return {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation)


def _refuse(settings: Settings, ours: Mapping[str, object]) -> None:
    """Settings that our decoder has in one way only."""
    for key, value in ours.items():
        if settings.get(key, value) != value:
            raise UserError(
                f"{key} = {settings[key]}: lmsmith's decoder has {value} only",
                "another model of this family may have it",
            )


def read_openai_gpt(settings: Settings) -> ModelConfig:
    """GPT-1. Its ``afn = "gelu"`` is the tanh form."""
    _refuse(settings, {"afn": "gelu"})
    return ModelConfig(
        settings["n_layer"],
        settings["n_embd"],
        settings["n_head"],
        settings["n_positions"],
        settings["vocab_size"],
        dropout=settings.get("resid_pdrop", 0.1),
        norm_position="post",
        norm_epsilon=settings.get("layer_norm_epsilon", 1e-5),
        tied_embeddings=settings.get("tie_word_embeddings", True),
    )


def write_openai_gpt(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["OpenAIGPTLMHeadModel"],
        "model_type": "openai-gpt",
        "afn": "gelu",
        **_gpt_sizes(config),
    }


def _gpt_sizes(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_layer": config.layers,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_positions": config.context,
        "vocab_size": config.vocabulary_size,
        "layer_norm_epsilon": config.norm_epsilon,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": config.tied_embeddings,
    }


def read_gpt2(settings: Settings) -> ModelConfig:
    """GPT-2."""
    _refuse(settings, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False})
    return ModelConfig(
        settings["n_layer"],
        settings["n_embd"],
        settings["n_head"],
        settings["n_positions"],
        settings["vocab_size"],
        ffn_width=settings.get("n_inner") or 0,
        dropout=settings.get("resid_pdrop", 0.1),
        norm_epsilon=settings.get("layer_norm_epsilon", 1e-5),
        activation=_activation(settings, "activation_function"),
        tied_embeddings=settings.get("tie_word_embeddings", True),
    )


def write_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": _their_activation(config),
        "n_inner": config.resolved_ffn_width,
        **_gpt_sizes(config),
    }


_NEO_KINDS: Mapping[str, AttentionKind] = {"global": "dense", "local": "banded"}


def read_gpt_neo(settings: Settings) -> ModelConfig:
    """GPT-Neo: dense and banded layers, no bias on queries, keys and values."""
    layers = settings.get("attention_layers") or [
        kind for kinds, times in settings["attention_types"] for kind in list(kinds) * times
    ]
    pattern = shortest_cycle([_NEO_KINDS[kind] for kind in layers[: settings["num_layers"]]])
    return ModelConfig(
        settings["num_layers"],
        settings["hidden_size"],
        settings["num_heads"],
        settings["max_position_embeddings"],
        settings["vocab_size"],
        ffn_width=settings.get("intermediate_size") or 0,
        dropout=settings.get("resid_dropout", 0.0),
        norm_epsilon=settings.get("layer_norm_epsilon", 1e-5),
        activation=_activation(settings, "activation_function"),
        qkv_bias=False,
        tied_embeddings=settings.get("tie_word_embeddings", True),
        attention_pattern=pattern,
        window=settings["window_size"] if "banded" in pattern else 0,
    )


def write_gpt_neo(config: ModelConfig) -> dict[str, Any]:
    theirs = {ours: name for name, ours in _NEO_KINDS.items()}
    layers = [theirs[config.attention_kind(layer)] for layer in range(config.layers)]
    return {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": "gpt_neo",
        "num_layers": config.layers,
        "hidden_size": config.width,
        "num_heads": config.heads,
        "max_position_embeddings": config.context,
        "vocab_size": config.vocabulary_size,
        "intermediate_size": config.resolved_ffn_width,
        "activation_function": _their_activation(config),
        "attention_layers": layers,
        "attention_types": [[layers, 1]],
        "window_size": config.window or 256,
        "layer_norm_epsilon": config.norm_epsilon,
        "embed_dropout": config.dropout,
        "attention_dropout": config.dropout,
        "resid_dropout": config.dropout,
        "tie_word_embeddings": config.tied_embeddings,
    }


def shortest_cycle(kinds: Sequence[AttentionKind]) -> tuple[AttentionKind, ...]:
    """The shortest pattern that, repeated, gives ``kinds``."""
    for length in range(1, len(kinds)):
        if all(kind == kinds[place % length] for place, kind in enumerate(kinds)):
            return tuple(kinds[:length])
    return tuple(kinds)


def read_llama(settings: Settings) -> ModelConfig:
    """Llama, and what shares its architecture, such as SmolLM2."""
    _refuse(settings, {"hidden_act": "silu"})
    context, theta, scaling = _read_rope(settings)
    attention_bias = bool(settings.get("attention_bias", False))
    return ModelConfig(
        settings["num_hidden_layers"],
        settings["hidden_size"],
        settings["num_attention_heads"],
        context,
        settings["vocab_size"],
        ffn_width=settings["intermediate_size"],
        kv_heads=settings.get("num_key_value_heads") or 0,
        head_width=settings.get("head_dim") or 0,
        norm="rms",
        norm_epsilon=settings.get("rms_norm_eps", 1e-6),
        positions="rotary",
        rope_theta=theta,
        rope_scaling=scaling,
        activation="swiglu",
        qkv_bias=attention_bias,
        attention_output_bias=attention_bias,
        ffn_bias=bool(settings.get("mlp_bias", False)),
        tied_embeddings=bool(settings.get("tie_word_embeddings", False)),
    )


def write_llama(config: ModelConfig) -> dict[str, Any]:
    dynamic = config.rope_scaling.method == "dynamic"
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.resolved_kv_heads,
        "head_dim": config.width_per_head,
        "max_position_embeddings": (
            config.rope_scaling.original_context if dynamic else config.context
        ),
        "vocab_size": config.vocabulary_size,
        "intermediate_size": config.resolved_ffn_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.ffn_bias,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_theta": config.rope_theta,
        "rope_parameters": _write_rope(config),
    }


_ROPE_KEYS: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "low_frequency_factor": "low_freq_factor",
        "high_frequency_factor": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
}
"""Method → our setting → theirs."""

ROPE_METHODS = tuple(name for name in _ROPE_KEYS if name != "none")


def _read_rope(settings: Settings) -> tuple[int, float, RopeScaling]:
    """Context, θ and scaling, from version 5's ``rope_parameters`` or the older keys."""
    table = rope_table(settings)
    theta = float(table.get("rope_theta") or settings.get("rope_theta") or 10_000.0)
    method: Any = table.get("rope_type") or table.get("type") or "default"
    method = "none" if method == "default" else method
    context = int(settings["max_position_embeddings"])
    if method not in _ROPE_KEYS or table.get("mscale"):
        what = "mscale" if method in _ROPE_KEYS else f"rope_type = {method}"
        raise UserError(
            f"{what}: a scaling of rotary positions that lmsmith does not have",
            f"models with {', '.join(name for name in _ROPE_KEYS if name != 'none')} can be read",
        )
    known = _ROPE_KEYS[method]
    values = {ours: table[key] for ours, key in known.items() if table.get(key) is not None}
    if "factor" in known and "factor" not in values:
        raise UserError(f"rope_type = {method}: it has no factor", "fetch the file again")
    if "original_context" in known:
        values.setdefault("original_context", context)
    scaling = replace(RopeScaling(method=method), **values)
    if method == "dynamic":
        scaling = replace(scaling, original_context=context)
        context = int(context * scaling.factor)
    return context, theta, scaling


def rope_table(settings: Settings) -> Any:
    """What config.json says of rotary positions: transformers takes ``rope_scaling`` first."""
    return settings.get("rope_scaling") or settings.get("rope_parameters") or {}


def _write_rope(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    method = "default" if scaling.method == "none" else scaling.method
    table: dict[str, Any] = {"rope_type": method, "rope_theta": config.rope_theta}
    for ours, theirs in _ROPE_KEYS[scaling.method].items():
        if ours != "attention_factor" or scaling.attention_factor:
            table[theirs] = getattr(scaling, ours)
    return table


_GPT_INSIDE = {
    "attention_norm": ["ln_1"],
    "attention.query_key_value": ["attn.c_attn"],
    "attention.output": ["attn.c_proj"],
    "feed_forward_norm": ["ln_2"],
    "feed_forward.inner": ["mlp.c_fc"],
    "feed_forward.output": ["mlp.c_proj"],
}

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "openai-gpt",
            "transformer.",
            "h",
            {"token_embedding": "tokens_embed", "position_embedding": "positions_embed"},
            _GPT_INSIDE,
            read_openai_gpt,
            write_openai_gpt,
            input_first=True,
        ),
        Family(
            "gpt2",
            "transformer.",
            "h",
            {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"},
            _GPT_INSIDE,
            read_gpt2,
            write_gpt2,
            input_first=True,
        ),
        Family(
            "gpt_neo",
            "transformer.",
            "h",
            {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"},
            {
                **_GPT_INSIDE,
                "attention.query_key_value": [
                    "attn.attention.q_proj",
                    "attn.attention.k_proj",
                    "attn.attention.v_proj",
                ],
                "attention.output": ["attn.attention.out_proj"],
            },
            read_gpt_neo,
            write_gpt_neo,
            scales_scores=False,
        ),
        Family(
            "llama",
            "model.",
            "layers",
            {"token_embedding": "embed_tokens", "final_norm": "norm"},
            {
                "attention_norm": ["input_layernorm"],
                "attention.query_key_value": [
                    "self_attn.q_proj",
                    "self_attn.k_proj",
                    "self_attn.v_proj",
                ],
                "attention.output": ["self_attn.o_proj"],
                "feed_forward_norm": ["post_attention_layernorm"],
                "feed_forward.gate": ["mlp.gate_proj"],
                "feed_forward.inner": ["mlp.up_proj"],
                "feed_forward.output": ["mlp.down_proj"],
            },
            read_llama,
            write_llama,
        ),
    )
}
"""model_type → names."""
