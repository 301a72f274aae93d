"""Names of settings and weights in transformers' families of models, and a check that our decoder
supports a config.json; `lmsmith.models.interop.transformers` converts the weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmsmith.core.config import Problem, SettingsError
from lmsmith.core.errors import UserError
from lmsmith.models.config import MOST_LAYERS, AttentionKind, ModelConfig, RopeScaling

Settings = Mapping[str, Any]
"""The contents of transformers' config.json."""

UNEMBEDDING = "lm_head.weight"
"""Outside every prefix; in the file only where it is not tied."""

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Theirs → ours."""

_SIZES = ("layers", "width", "heads", "context", "vocabulary_size")
_FIX = "another model of this family may have it"


@dataclass(frozen=True)
class Family:
    """Names of one of transformers' architectures.

    Attributes:
        model_type: in config.json.
        classes: architectures that are read: with an unembedding, and without.
        prefix: before all names but the unembedding's; files of the bare model have none.
        layers: name of the list of blocks.
        outside: our parameter, without ``.weight`` or ``.bias`` → theirs, outside the blocks.
        inside: the same inside a block; ours is all of theirs, stacked.
        settings: our setting → theirs.
        defaults: our settings where config.json has none.
        allowed: their setting → the values that our decoder supports; it may be absent.
        write_more, read_more: settings that need more than another name.
        required: our settings that config.json must have.
        input_first: whether the blocks' matrices are stored (inputs, outputs).
        scales_scores: whether scores are divided by √head_width; if not, the query's weights hold
            that factor.
    """

    model_type: str
    classes: tuple[str, ...]
    prefix: str
    layers: str
    outside: Mapping[str, str]
    inside: Mapping[str, Sequence[str]]
    settings: Mapping[str, str]
    defaults: Mapping[str, Any]
    allowed: Mapping[str, tuple[object, ...]]
    write_more: Callable[[ModelConfig], dict[str, Any]]
    read_more: Callable[[Settings], dict[str, Any]] = lambda settings: {}
    required: Sequence[str] = _SIZES
    input_first: bool = False
    scales_scores: bool = True

    def read(self, settings: Settings) -> ModelConfig:
        """The shape; raises KeyError where a setting is missing."""
        ours = dict(self.defaults)
        for name, theirs in self.settings.items():
            needed = name in self.required
            value: Any = settings[theirs] if needed else settings.get(theirs)
            if value is not None or needed:
                ours[name] = _ACTIVATIONS[value] if name == "activation" else value
        return ModelConfig(**ours | self.read_more(settings))

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The contents of config.json."""
        full, names = spelt_out(config), {"gelu_tanh": "gelu_new"}
        written = {theirs: getattr(full, ours) for ours, theirs in self.settings.items()}
        written = {key: names.get(value, value) for key, value in written.items()}
        kind = {"architectures": [self.classes[0]], "model_type": self.model_type}
        return kind | written | self.write_more(config)


def spelt_out(config: ModelConfig) -> ModelConfig:
    """With every width and number of heads written out."""
    return replace(
        config,
        ffn_width=config.resolved_ffn_width,
        kv_heads=config.resolved_kv_heads,
        head_width=config.width_per_head,
    )


_NEO_KINDS: Mapping[str, AttentionKind] = {"global": "dense", "local": "banded"}


def _read_neo_pattern(settings: Settings) -> dict[str, Any]:
    most = min(settings["num_layers"], MOST_LAYERS)
    layers = settings.get("attention_layers") or (
        kind
        for kinds, times in settings["attention_types"]
        for _ in range(min(times, most))
        for kind in kinds
    )
    pattern = shortest_cycle([_NEO_KINDS[kind] for kind in itertools.islice(layers, most)])
    window = settings["window_size"] if "banded" in pattern else 0
    return {"attention_pattern": pattern, "window": window}


def _write_neo_pattern(config: ModelConfig) -> dict[str, Any]:
    theirs = {ours: name for name, ours in _NEO_KINDS.items()}
    layers = [theirs[config.attention_kind(layer)] for layer in range(config.layers)]
    return {
        "attention_layers": layers,
        "attention_types": [[layers, 1]],
        "window_size": config.window or 256,
        "embed_dropout": config.dropout,
        "attention_dropout": config.dropout,
    }


def shortest_cycle(kinds: Sequence[AttentionKind]) -> tuple[AttentionKind, ...]:
    """The shortest pattern that, repeated, gives ``kinds``."""
    for length in range(1, len(kinds)):
        if all(kind == kinds[place % length] for place, kind in enumerate(kinds)):
            return tuple(kinds[:length])
    return tuple(kinds)


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

_ROPE_METHODS = tuple(name for name in _ROPE_KEYS if name != "none")


def _read_llama(settings: Settings) -> dict[str, Any]:
    """Rotary positions, from version 5's ``rope_parameters`` or the older keys; biases."""
    table = _rope_table(settings)
    theta = float(table.get("rope_theta") or settings.get("rope_theta") or 10_000.0)
    method: Any = _rope_method(table)
    method = "none" if method == "default" else method
    context = int(settings["max_position_embeddings"])
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
    return {
        "context": context,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "attention_output_bias": bool(settings.get("attention_bias", False)),
    }


def _rope_table(settings: Settings) -> Any:
    """Settings of rotary positions: transformers takes ``rope_scaling`` first."""
    return settings.get("rope_scaling") or settings.get("rope_parameters") or {}


def _rope_method(table: Mapping[str, Any]) -> Any:
    return table.get("rope_type") or table.get("type") or "default"


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    method = "default" if scaling.method == "none" else scaling.method
    table: dict[str, Any] = {"rope_type": method, "rope_theta": config.rope_theta}
    for ours, theirs in _ROPE_KEYS[scaling.method].items():
        if ours != "attention_factor" or scaling.attention_factor:
            table[theirs] = getattr(scaling, ours)
    written = {"hidden_act": "silu", "rope_theta": config.rope_theta, "rope_parameters": table}
    if scaling.method == "dynamic":
        written["max_position_embeddings"] = scaling.original_context
    return written


_GPT_SETTINGS = {
    "layers": "n_layer",
    "width": "n_embd",
    "heads": "n_head",
    "context": "n_positions",
    "vocabulary_size": "vocab_size",
    "norm_epsilon": "layer_norm_epsilon",
    "dropout": "resid_pdrop",
    "tied_embeddings": "tie_word_embeddings",
}


def _write_gpt_dropout(config: ModelConfig) -> dict[str, Any]:
    return dict.fromkeys(("embd_pdrop", "attn_pdrop"), config.dropout)


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
            ("OpenAIGPTLMHeadModel", "OpenAIGPTModel"),
            "transformer.",
            "h",
            {"token_embedding": "tokens_embed", "position_embedding": "positions_embed"},
            _GPT_INSIDE,
            _GPT_SETTINGS,
            {"dropout": 0.1, "norm_position": "post"},
            {"afn": ("gelu",)},  # which is the tanh form
            lambda config: {"afn": "gelu", **_write_gpt_dropout(config)},
            input_first=True,
        ),
        Family(
            "gpt2",
            ("GPT2LMHeadModel", "GPT2Model"),
            "transformer.",
            "h",
            {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"},
            _GPT_INSIDE,
            {**_GPT_SETTINGS, "ffn_width": "n_inner", "activation": "activation_function"},
            {"dropout": 0.1},
            {
                "activation_function": tuple(_ACTIVATIONS),
                "scale_attn_weights": (True,),
                "scale_attn_by_inverse_layer_idx": (False,),
                "add_cross_attention": (False,),
            },
            _write_gpt_dropout,
            input_first=True,
        ),
        Family(
            "gpt_neo",
            ("GPTNeoForCausalLM", "GPTNeoModel"),
            "transformer.",
            "h",
            {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"},
            {
                **_GPT_INSIDE,
                "attention.query_key_value": [f"attn.attention.{part}_proj" for part in "qkv"],
                "attention.output": ["attn.attention.out_proj"],
            },
            {
                "layers": "num_layers",
                "width": "hidden_size",
                "heads": "num_heads",
                "context": "max_position_embeddings",
                "vocabulary_size": "vocab_size",
                "ffn_width": "intermediate_size",
                "activation": "activation_function",
                "norm_epsilon": "layer_norm_epsilon",
                "dropout": "resid_dropout",
                "tied_embeddings": "tie_word_embeddings",
            },
            {"qkv_bias": False},
            {"activation_function": tuple(_ACTIVATIONS)},
            _write_neo_pattern,
            _read_neo_pattern,
            scales_scores=False,
        ),
        Family(
            "llama",
            ("LlamaForCausalLM", "LlamaModel"),
            "model.",
            "layers",
            {"token_embedding": "embed_tokens", "final_norm": "norm"},
            {
                "attention_norm": ["input_layernorm"],
                "attention.query_key_value": [f"self_attn.{part}_proj" for part in "qkv"],
                "attention.output": ["self_attn.o_proj"],
                "feed_forward_norm": ["post_attention_layernorm"],
                "feed_forward.gate": ["mlp.gate_proj"],
                "feed_forward.inner": ["mlp.up_proj"],
                "feed_forward.output": ["mlp.down_proj"],
            },
            {
                "layers": "num_hidden_layers",
                "width": "hidden_size",
                "heads": "num_attention_heads",
                "context": "max_position_embeddings",
                "vocabulary_size": "vocab_size",
                "ffn_width": "intermediate_size",
                "kv_heads": "num_key_value_heads",
                "head_width": "head_dim",
                "norm_epsilon": "rms_norm_eps",
                "qkv_bias": "attention_bias",
                "ffn_bias": "mlp_bias",
                "tied_embeddings": "tie_word_embeddings",
            },
            {
                "norm": "rms",
                "norm_epsilon": 1e-6,
                "positions": "rotary",
                "activation": "swiglu",
                "qkv_bias": False,
                "ffn_bias": False,
                "tied_embeddings": False,
            },
            {"hidden_act": ("silu",), "sliding_window": (None,), "partial_rotary_factor": (1.0,)},
            _write_llama,
            _read_llama,
            (*_SIZES, "ffn_width"),
        ),
        Family(
            "bert",
            (
                "BertModel",
                "BertForMaskedLM",
                "BertForPreTraining",
                "BertForSequenceClassification",
            ),
            "bert.",
            "encoder.layer",
            {
                "token_embedding": "embeddings.word_embeddings",
                "position_embedding": "embeddings.position_embeddings",
                "segment_embedding": "embeddings.token_type_embeddings",
                "embedding_norm": "embeddings.LayerNorm",
                "pooler": "pooler.dense",
            },
            {
                "attention.query_key_value": [
                    f"attention.self.{part}" for part in ("query", "key", "value")
                ],
                "attention.output": ["attention.output.dense"],
                "attention_norm": ["attention.output.LayerNorm"],
                "feed_forward.inner": ["intermediate.dense"],
                "feed_forward.output": ["output.dense"],
                "feed_forward_norm": ["output.LayerNorm"],
            },
            {
                "layers": "num_hidden_layers",
                "width": "hidden_size",
                "heads": "num_attention_heads",
                "context": "max_position_embeddings",
                "vocabulary_size": "vocab_size",
                "ffn_width": "intermediate_size",
                "segments": "type_vocab_size",
                "activation": "hidden_act",
                "norm_epsilon": "layer_norm_eps",
                "dropout": "hidden_dropout_prob",
            },
            {
                "dropout": 0.1,
                "norm_position": "post",
                "norm_epsilon": 1e-12,
                "activation": "gelu",
                "causal": False,
                "segments": 2,
                "embedding_norm": True,
                "pooler": True,
            },
            {
                "hidden_act": tuple(_ACTIVATIONS),
                "position_embedding_type": ("absolute",),
                "is_decoder": (False,),
                "add_cross_attention": (False,),
                "tie_word_embeddings": (True,),
            },
            lambda config: {"attention_probs_dropout_prob": config.dropout},
            required=(*_SIZES, "ffn_width"),
        ),
    )
}
"""model_type → names."""


def refuse_unsupported(settings: Settings, where: str) -> None:
    """Raise one UserError that names everything unsupported in a config.json."""
    family = str(settings.get("model_type"))
    if family not in FAMILIES:
        named = ", ".join(map(str, settings.get("architectures") or [])) or "no architecture"
        raise UserError(
            f"{where}: model_type = {settings.get('model_type')} ({named}): "
            "not an architecture that lmsmith has",
            f"it reads {', '.join(family.classes[0] for family in FAMILIES.values())}",
        )
    if problems := list(_unsupported(settings, FAMILIES[family])):
        raise SettingsError(problems, where)


def _unsupported(settings: Settings, family: Family) -> Iterator[Problem]:
    for name in settings.get("architectures") or []:
        if name not in family.classes:
            fix = "its head is no part of a language model"
            yield Problem("architectures", name, " or ".join(family.classes), fix)
    for key, values in family.allowed.items():
        if key in settings and settings[key] not in values:
            yield Problem(key, settings[key], " or ".join(map(str, values)), _FIX)
    if settings.get("quantization_config"):
        fix = "take the model's unquantised files, or its GGUF file"
        yield Problem("quantization_config", "a quantised model", "none", fix)
    if other := sorted(set(settings.get("layer_types") or []) - {"full_attention"}):
        yield Problem("layer_types", ", ".join(other), "full_attention", _FIX)
    if family.model_type != "llama":
        return
    table = _rope_table(settings)
    if not isinstance(table, Mapping):
        yield Problem("rope_scaling", table, "an object", "fetch the file again")
        return
    method, known = _rope_method(table), ("default", *_ROPE_METHODS)
    if method not in known:
        yield Problem("rope_type", method, ", ".join(known), _FIX)
    if table.get("mscale"):
        yield Problem("mscale", table["mscale"], "none", _FIX)
    if table.get("partial_rotary_factor", 1.0) != 1.0:
        yield Problem("partial_rotary_factor", table["partial_rotary_factor"], "1.0", _FIX)
