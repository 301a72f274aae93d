"""GGUF's settings and names: what is read, what is refused, and the order of rotary rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.errors import UserError
from lmsmith.models.decoder import Decoder
from lmsmith.models.interop.gguf_file import GgufFile
from lmsmith.models.interop.gguf_models import (
    from_gguf,
    halves_apart,
    pairs_together,
    read_gguf_config,
    to_gguf,
)
from lmsmith.models.interop.quantised import PackedTensor, tensor_type
from lmsmith.models.presets import PRESETS, llama

CONFIG = replace(llama(2, 32, 4, 2, 48, 16), vocabulary_size=40, tied_embeddings=False)


def as_file(**changes: Any) -> GgufFile:
    """A model in memory as if it were in a file, with changes to its metadata."""
    name, metadata, tensors = to_gguf(CONFIG, Decoder(CONFIG).state_dict())
    plain = tensor_type(0, "t")
    packed = {
        key: PackedTensor(
            plain, tuple(t.shape), t.detach().contiguous().view(torch.uint8).flatten()
        )
        for key, t in tensors
    }
    return GgufFile({"general.architecture": name, **metadata, **changes}, packed)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_rows_come_back(heads: int, half: int, columns: int) -> None:
    rows = torch.randn(heads * 2 * half, columns)
    turned = pairs_together(rows, heads)
    assert torch.equal(halves_apart(turned, heads), rows)
    for head in range(heads):
        for pair in range(half):
            first = head * 2 * half
            assert torch.equal(turned[first + 2 * pair], rows[first + pair])
            assert torch.equal(turned[first + 2 * pair + 1], rows[first + half + pair])


def test_tensors_without_a_place_are_named() -> None:
    file = as_file()
    extra = dict(file.tensors) | {"blk.0.attn_q_norm.weight": file.tensors["output_norm.weight"]}
    with pytest.raises(UserError, match=r"without a place in our decoder: blk.0.attn_q_norm"):
        from_gguf(GgufFile(file.metadata, extra))
    fewer = {name: each for name, each in file.tensors.items() if name != "blk.1.ffn_up.weight"}
    with pytest.raises(UserError, match=r"lacks the tensor blk.1.ffn_up.weight"):
        from_gguf(GgufFile(file.metadata, fewer))


def test_an_embedding_written_twice_is_tied() -> None:
    file = as_file()
    assert not read_gguf_config(file).tied_embeddings
    twice = dict(file.tensors) | {"output.weight": file.tensors["token_embd.weight"]}
    config, state = from_gguf(GgufFile(file.metadata, twice))
    assert config.tied_embeddings
    assert "unembedding.weight" not in state


def test_everything_unsupported_is_named_at_once() -> None:
    file = as_file(
        **{
            "llama.expert_count": 8,
            "llama.rope.dimension_count": 4,
            "llama.attention.sliding_window": 64,
            "llama.rope.scaling.type": "longrope",
            "llama.attention.head_count_kv": [2, 1],
        }
    )
    with pytest.raises(UserError) as caught:
        from_gguf(file)
    for key in (
        "expert_count",
        "rope.dimension_count",
        "sliding_window",
        "rope.scaling.type",
        "head_count_kv",
    ):
        assert key in str(caught.value)
    with pytest.raises(UserError, match=r"general.architecture = rwkv.*\n.*gpt2, llama"):
        from_gguf(as_file(**{"general.architecture": "rwkv"}))


def test_kinds_of_one_value_for_each_layer_are_read() -> None:
    assert read_gguf_config(as_file(**{"llama.attention.head_count_kv": [2, 2]})) == (
        replace(CONFIG, attention_pattern=("dense",))
    )


@pytest.mark.parametrize("preset", ["gpt1", "gpt3-125m"])
def test_what_llama_cpp_has_not_is_refused(preset: str) -> None:
    with pytest.raises(UserError, match=r"norm_position|attention_pattern"):
        to_gguf(PRESETS[preset].config, {})
