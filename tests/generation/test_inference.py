"""A decoder made for reading gives what the decoder gives, whatever it is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.kernels import TorchKernels
from lmsmith.generation.native.operations import best_kernels
from lmsmith.models.config import ModelConfig, RopeScaling
from lmsmith.models.decoder import Decoder
from lmsmith.models.presets import llama
from lmsmith.training.machine import resolve_machine

BF16 = resolve_machine(MachineConfig(precision="bf16"))
PLAIN = ModelConfig(layers=2, width=48, heads=4, context=300, vocabulary_size=61)
LLAMA = replace(llama(2, 48, 4, 2, 80, 300), vocabulary_size=61)
SHAPES = {
    "gpt2": PLAIN,
    "gpt1": replace(PLAIN, norm_position="post", activation="gelu"),
    "relu, sinusoidal": replace(PLAIN, positions="sinusoidal", activation="relu"),
    "banded": replace(PLAIN, attention_pattern=("dense", "banded"), window=20),
    "wide band": replace(PLAIN, attention_pattern=("banded",), window=70),
    "llama": LLAMA,
    "one shared head": replace(LLAMA, kv_heads=1, head_width=32, tied_embeddings=False),
    "heads of 64": replace(LLAMA, head_width=64),
    "six share a head": replace(LLAMA, heads=6, kv_heads=1, head_width=128),
    "banded heads of 64": replace(
        PLAIN, attention_pattern=("banded", "dense"), window=37, head_width=64
    ),
    "dynamic": replace(LLAMA, rope_scaling=RopeScaling("dynamic", factor=2.0, original_context=50)),
}


def random_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    """Weights large enough that every state depends on all before it."""
    decoder = Decoder(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            spread = 0.5 if "embedding" in name else 0.3
            parameter.normal_(
                1.0 if name.endswith("norm.weight") else 0.0, spread, generator=generator
            )
    return decoder


def read_in_pieces(
    model: InferenceDecoder, rows: list[list[int]], cuts: list[list[int]]
) -> list[torch.Tensor]:
    """Hidden states of rows whose tokens come in pieces, those of all rows read together."""
    cache = model.new_cache(len(rows), 10)  # too small: it must grow
    numbers = [cache.open() for _ in rows]
    states: list[list[torch.Tensor]] = [[] for _ in rows]
    for step in range(max(map(len, cuts))):
        reading = [i for i, cut in enumerate(cuts) if step < len(cut)]
        spans = [(numbers[i], rows[i][([0] + cuts[i])[step] : cuts[i][step]]) for i in reading]
        parts = model.read(spans, cache).split([len(tokens) for _, tokens in spans])
        for i, part in zip(reading, parts, strict=True):
            states[i].append(part)
    return [torch.cat(parts) for parts in states]


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> TorchKernels:
    found = best_kernels()
    if request.param == "torch":
        return TorchKernels()
    if isinstance(found, TorchKernels) and type(found) is TorchKernels:
        pytest.skip("no C++ compiler")
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_pieces_of_ragged_rows_give_the_states_of_the_whole(
    name: str, kernels: TorchKernels
) -> None:
    config = SHAPES[name]
    decoder = random_decoder(config)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(61, (n,), generator=generator).tolist() for n in (5, 150, 131)]
    if name == "dynamic":  # an angle depends on the length when it is cached
        cuts = [[5], [150], [131]]
    else:
        cuts = [[2, 5], [100, 101, 103, 149, 150], [1, 64, 65, 128, 131]]
    with torch.no_grad():
        expected = [decoder(torch.tensor([row]))[0] for row in rows]
    found = read_in_pieces(InferenceDecoder(decoder, kernels=kernels), rows, cuts)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.std()) + 1e-4)
    rounded = read_in_pieces(InferenceDecoder(decoder, BF16, kernels=kernels), rows, cuts)
    with torch.no_grad(), BF16.autocast():
        autocast = [decoder(torch.tensor([row]))[0].float() for row in rows]
    ours = torch.cat([a - b for a, b in zip(rounded, expected, strict=True)]).std()
    theirs = torch.cat([a - b for a, b in zip(autocast, expected, strict=True)]).std()
    assert ours < 1.3 * theirs


def test_a_rows_states_are_the_same_bits_in_any_company() -> None:
    if type(best_kernels()) is TorchKernels:
        pytest.skip("promised of the C++ kernels")
    for name in ("gpt2", "llama", "heads of 64", "banded heads of 64"):
        config = SHAPES[name]
        model = InferenceDecoder(random_decoder(config), BF16)
        generator = torch.Generator().manual_seed(2)
        rows = [torch.randint(61, (n,), generator=generator).tolist() for n in (9, 40, 3, 70, 11)]
        cuts = [[len(row) - 2, len(row) - 1, len(row)] for row in rows]
        together = read_in_pieces(model, rows, cuts)
        for row, cut, states in zip(rows, cuts, together, strict=True):
            assert torch.equal(read_in_pieces(model, [row], [cut])[0], states)


def test_int8_is_near() -> None:
    decoder = random_decoder(LLAMA)
    row = list(range(61))
    with torch.no_grad():
        expected = decoder(torch.tensor([row]))[0]
    error = {}
    for kind in ("model", "int8"):
        model = InferenceDecoder(decoder, BF16, weights=kind)  # type: ignore[arg-type]
        error[kind] = float((read_in_pieces(model, [row], [[61]])[0] - expected).std())
    assert error["model"] < error["int8"] < 0.1 * float(expected.std())
