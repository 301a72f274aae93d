"""What of a config.json of transformers our decoder does not have: all of it at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lmsmith.core.config import Problem, report_problems
from lmsmith.core.errors import UserError
from lmsmith.models.interop.families import (
    FAMILIES,
    ROPE_METHODS,
    TRANSFORMERS_ACTIVATIONS,
    rope_table,
)

CLASSES: Mapping[str, tuple[str, ...]] = {
    "openai-gpt": ("OpenAIGPTLMHeadModel", "OpenAIGPTModel"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Model"),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoModel"),
    "llama": ("LlamaForCausalLM", "LlamaModel"),
}
"""model_type → classes whose weights we read: with an unembedding, and without."""

_ACTIVATIONS = tuple(TRANSFORMERS_ACTIVATIONS)

_ALLOWED: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "openai-gpt": {"afn": ("gelu",)},
    "gpt2": {
        "activation_function": _ACTIVATIONS,
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    "gpt_neo": {"activation_function": _ACTIVATIONS},
    "llama": {"hidden_act": ("silu",), "sliding_window": (None,), "partial_rotary_factor": (1.0,)},
}
"""model_type → setting → the values that we have; a setting that is absent is fine."""

_MEND = "another model of this family may have it"


def refuse_unsupported(settings: Mapping[str, Any], where: str) -> None:
    """Raise one UserError that names everything in a config.json that we do not have."""
    family = str(settings.get("model_type"))
    if family not in FAMILIES:
        named = ", ".join(map(str, settings.get("architectures") or [])) or "no architecture"
        raise UserError(
            f"{where}: model_type = {settings.get('model_type')} ({named}): "
            "not an architecture that lmsmith has",
            f"it reads {', '.join(classes[0] for classes in CLASSES.values())}",
        )
    problems = [Problem(*problem) for problem in unsupported(settings)]
    if problems:
        raise report_problems(problems, where)


def unsupported(settings: Mapping[str, Any]) -> Iterator[tuple[str, object, str, str]]:
    """(key, value, expected, fix) of everything that our decoder does not have."""
    family = str(settings["model_type"])
    for name in settings.get("architectures") or []:
        if name not in CLASSES[family]:
            fix = "its head is no part of a language model"
            yield "architectures", name, " or ".join(CLASSES[family]), fix
    for key, values in _ALLOWED[family].items():
        if key in settings and settings[key] not in values:
            yield key, settings[key], " or ".join(map(str, values)), _MEND
    if settings.get("quantization_config"):
        fix = "take the model's unquantised files, or its GGUF file"
        yield "quantization_config", "a quantised model", "none", fix
    kinds = settings.get("layer_types") or []
    if other := sorted(set(kinds) - {"full_attention"}):
        yield "layer_types", ", ".join(other), "full_attention", _MEND
    if family == "llama":
        yield from _unsupported_rope(settings)


def _unsupported_rope(settings: Mapping[str, Any]) -> Iterator[tuple[str, object, str, str]]:
    table = rope_table(settings)
    if not isinstance(table, Mapping):
        yield "rope_scaling", table, "an object", "fetch the file again"
        return
    method = table.get("rope_type") or table.get("type") or "default"
    if method not in ROPE_METHODS and method != "default":
        yield "rope_type", method, f"default, {', '.join(ROPE_METHODS)}", _MEND
    if table.get("mscale"):
        yield "mscale", table["mscale"], "none", _MEND
    if table.get("partial_rotary_factor", 1.0) != 1.0:
        yield "partial_rotary_factor", table["partial_rotary_factor"], "1.0", _MEND
