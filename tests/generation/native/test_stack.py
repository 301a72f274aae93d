"""All blocks in one call give the bits of their operations one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.native.operations import NativeKernels
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.presets import llama
from lmsmith.training.machine import resolve_machine

pytestmark = pytest.mark.usefixtures("kernels")

BF16 = resolve_machine(MachineConfig(precision="bf16"))
PLAIN = ModelConfig(layers=3, width=40, heads=4, context=200, vocabulary_size=61)
SHAPES = {
    "gpt2": PLAIN,
    "banded": replace(PLAIN, attention_pattern=("dense", "banded"), window=20),
    "llama": replace(llama(2, 48, 4, 2, 84, 200), vocabulary_size=61),
    "heads of 64": replace(llama(2, 48, 6, 2, 80, 200), vocabulary_size=61, head_width=64),
}


def random_decoder(config: ModelConfig) -> Decoder:
    decoder = Decoder(config).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    return decoder


def make(decoder: Decoder, kind: str) -> InferenceDecoder:
    model = InferenceDecoder(decoder, BF16, weights=kind)  # type: ignore[arg-type]
    assert isinstance(model.kernels, NativeKernels)
    return model


@pytest.mark.parametrize(
    ("name", "kind", "threads"),
    [*((name, kind, 1) for name in SHAPES for kind in ("model", "int8")), ("banded", "int8", 2)],
)
def test_the_same_bits_as_one_by_one(name: str, kind: str, threads: int) -> None:
    """Prompts and single tokens, ragged, in a cache that grows, and in a second cache."""
    torch.set_num_threads(threads)
    model = make(random_decoder(SHAPES[name]), kind)
    stack = model._stack
    assert stack is not None
    for _ in range(2):
        states = []
        for whole in (True, False):
            model._stack = stack if whole else None
            cache = model.new_cache(3, 10)
            rows = [cache.open() for _ in range(3)]
            pieces = [(7, 90, 1), (1, 1, 1), (1, 65, 3), (5, 1, 1)]
            generator = torch.Generator().manual_seed(4)
            for counts in pieces:
                tokens = [torch.randint(61, (n,), generator=generator).tolist() for n in counts]
                states.append(model.read(list(zip(rows, tokens, strict=True)), cache))
        half = len(states) // 2
        assert all(map(torch.equal, states[:half], states[half:]))


@pytest.mark.parametrize(
    "change",
    [{"norm_position": "post"}, {"activation": "gelu"}, {"activation": "relu"}],
    ids=lambda change: next(iter(change.values())),
)
def test_what_is_not_in_it_goes_one_by_one(change: dict[str, str]) -> None:
    assert make(random_decoder(replace(PLAIN, **change)), "model")._stack is None  # type: ignore[arg-type]


def test_float32_goes_one_by_one() -> None:
    assert InferenceDecoder(random_decoder(PLAIN))._stack is None


def test_matrix_units_take_many_tokens(kernels: NativeKernels) -> None:
    units = NativeKernels(kernels.library, matrix_units=True)
    decoder = random_decoder(PLAIN)
    for kind, many in (("model", False), ("int8", True)):
        stack = InferenceDecoder(decoder, BF16, weights=kind, kernels=units)._stack  # type: ignore[arg-type]
        assert stack is not None
        assert stack.takes(8)
        assert stack.takes(9) == many
