"""Random models of many shapes, and what transformers and llama.cpp make of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmsmith.models.config import ModelConfig, RopeScaling
from lmsmith.models.decoder import Decoder
from lmsmith.models.presets import llama

LLAMA = replace(llama(2, 64, 4, 2, 96, 64), vocabulary_size=320)

SHAPES: dict[str, ModelConfig] = {
    "gpt2": ModelConfig(2, 64, 4, 64, 320),
    "gpt2-untied": ModelConfig(3, 32, 2, 64, 320, ffn_width=96, tied_embeddings=False),
    "llama": LLAMA,
    "llama-untied": replace(LLAMA, tied_embeddings=False, kv_heads=4, norm_epsilon=1e-6),
    "llama-one-kv": replace(LLAMA, kv_heads=1, layers=3, rope_theta=50_000.0),
    "llama-wide-heads": replace(LLAMA, head_width=32),
    "llama-bias": replace(LLAMA, qkv_bias=True, attention_output_bias=True),
    "llama-linear": replace(LLAMA, rope_scaling=RopeScaling("linear", 4.0)),
    "llama-llama3": replace(LLAMA, context=128, rope_scaling=RopeScaling("llama3", 8.0, 32)),
    "llama-yarn": replace(LLAMA, rope_scaling=RopeScaling("yarn", 4.0, 16)),
    "llama-yarn-attention": replace(
        LLAMA, rope_scaling=RopeScaling("yarn", 4.0, 16, attention_factor=1.3)
    ),
}

ONLY_TRANSFORMERS: dict[str, ModelConfig] = {
    "gpt1": ModelConfig(2, 64, 4, 64, 320, norm_position="post"),
    "gpt-neo": ModelConfig(
        4,
        64,
        4,
        64,
        320,
        qkv_bias=False,
        attention_pattern=("dense", "banded"),
        window=8,
    ),
    "llama-dynamic": replace(LLAMA, rope_scaling=RopeScaling("dynamic", 2.0, 32)),
}


def random_decoder(config: ModelConfig) -> Decoder:
    """Fresh weights, large enough that every part of the model matters."""
    decoder = Decoder(config).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(centre, 0.1)
    return decoder


def random_tokens(config: ModelConfig, batch: int = 2, length: int = 40) -> Tensor:
    return torch.randint(config.vocabulary_size, (batch, length))


@torch.no_grad()
def logits(decoder: Decoder, tokens_bt: Tensor) -> Tensor:
    return decoder.logits(decoder(tokens_bt))


@torch.no_grad()
def transformers_logits(folder: Path, tokens_bt: Tensor, **options: Any) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, **options
    )
    result: Tensor = model.eval()(tokens_bt).logits
    return result


def llama_cpp_greedy(
    path: Path, prompt: list[int], count: int, banned: list[int], context: int = 64
) -> tuple[list[int], list[dict[int, float]]]:
    """Tokens, and log-probabilities of the likeliest at each place, as llama.cpp has them.

    Its server joins tokens that are no whole characters; ``banned`` keeps them out of its reply,
    which the log-probabilities do not know of.
    """
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = context, 1, False
    parameters.cpuparams.n_threads = 1
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(parameters)
    answer = server.handle_completions(
        {
            "prompt": prompt,
            "max_tokens": count,
            "temperature": 0,
            "logprobs": 8,
            "return_tokens": True,
            "ignore_eos": True,
            "logit_bias": [[token, False] for token in banned],
        }
    )
    places = answer["choices"][0]["logprobs"]["content"]
    return [place["id"] for place in places], [
        {each["id"]: each["logprob"] for each in place["top_logprobs"]} for place in places
    ]


def spelt_out(config: ModelConfig) -> ModelConfig:
    """With nothing left to a default."""
    return replace(
        config,
        ffn_width=config.resolved_ffn_width,
        kv_heads=config.resolved_kv_heads,
        head_width=config.width_per_head,
    )
