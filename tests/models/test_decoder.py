"""The decoder: initialisation, causality, checkpointing, and its compiled form."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from lmsmith.device import compute_dtype
from lmsmith.models.attention import SelfAttention, packed_mask
from lmsmith.models.blocks import Block, gelu
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder

CONFIG = ModelConfig(layers=3, width=24, heads=3, context=32, vocabulary_size=41)
LLAMA = replace(
    CONFIG, kv_heads=1, positions="rotary", norm="rms", activation="swiglu", tied_embeddings=False
)


def random_decoder(config: ModelConfig = CONFIG, seed: int = 0) -> Decoder:
    decoder = Decoder(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.3, generator=generator)
    return decoder


def random_tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(41, (batch, length), generator=torch.Generator().manual_seed(seed))


def gradients(
    decoder: Decoder, mask_bts: Tensor | None = None, shape: tuple[int, int] = (3, 17)
) -> dict[str, Tensor]:
    """Gradients of a loss that weighs every logit differently."""
    decoder.zero_grad()
    logits = decoder.logits(decoder(random_tokens(*shape), mask_bts=mask_bts))
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    (logits.tanh() * weights).sum().backward()
    return {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = float(value.abs().max()) + 1e-3
        torch.testing.assert_close(other[name], value, rtol=0, atol=tolerance * scale, msg=name)


def test_gelus_two_forms_are_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([torch.linspace(-12, 12, 4_001), torch.tensor([0.0, 1e-8, -1e-8])])
    plain = gelu(x)
    assert torch.equal(plain, F.gelu(x, approximate="tanh"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(gelu(x), plain, rtol=1e-5, atol=2e-6)
    assert gelu(x.bfloat16()).dtype == torch.bfloat16


def test_initialisation_scales_residual_projections_and_nothing_else() -> None:
    config = ModelConfig(layers=8, width=128, heads=4, context=64, vocabulary_size=300)
    decoder = Decoder(config)
    decoder.initialise(torch.Generator().manual_seed(3))
    scaled = 0
    for name, held in decoder.named_parameters():
        parameter = held.detach()
        if name.endswith(("attention.output.weight", "feed_forward.output.weight")):
            expected, scaled = 0.02 / math.sqrt(16), scaled + 1
        elif parameter.ndim == 2:
            expected = 0.02
        else:
            assert torch.equal(parameter, torch.full_like(parameter, "norm.weight" in name)), name
            continue
        # The standard deviation of n draws is within 5 / √(2n) of the truth, in nearly all cases.
        assert float(parameter.std()) == pytest.approx(
            expected, rel=5 / math.sqrt(2 * parameter.numel())
        ), name
        assert abs(float(parameter.mean())) < 5 * expected / math.sqrt(parameter.numel()), name
    assert scaled == 2 * config.layers


def test_initialisation_is_a_function_of_the_seed() -> None:
    def weights(seed: int) -> Tensor:
        decoder = Decoder(CONFIG)
        decoder.initialise(torch.Generator().manual_seed(seed))
        return nn.utils.parameters_to_vector(decoder.parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_no_position_sees_a_later_token() -> None:
    decoder, tokens = random_decoder(), random_tokens(1, 12)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 41
    with torch.no_grad():
        one, other = decoder(tokens), decoder(changed)
    assert torch.equal(one[:, :7], other[:, :7])
    assert (one[:, 7:] != other[:, 7:]).any(dim=2).all()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_activations_give_the_same_gradients(dropout: float) -> None:
    decoder = random_decoder().train()
    decoder.set_dropout(dropout)
    found = []
    for checkpointed in (False, True):
        decoder.checkpoint_activations = checkpointed
        torch.manual_seed(7)
        found.append(gradients(decoder))
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value), name


def test_explicit_attention_gives_the_decoder_the_same_gradients() -> None:
    decoder = random_decoder()
    mask = packed_mask(torch.tensor([[0] * 6 + [1] * 11] * 3))
    plain = gradients(decoder), gradients(decoder, mask)
    for module in decoder.modules():
        if isinstance(module, SelfAttention):
            module.explicit = True
    assert_close(plain[0], gradients(decoder), 1e-5)
    assert_close(plain[1], gradients(decoder, mask), 1e-5)


@pytest.mark.filterwarnings("ignore")  # torch's tracer hides its own warnings, so it may warn
def test_the_path_that_is_compiled_gives_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Traced as for compiling, then run by torch itself, which needs no C++ compiler."""

    def traced(block: Block, **options: Any) -> None:
        nn.Module.compile(block, backend="eager", **options)

    decoder = random_decoder(ModelConfig(1, 24, 3, 32, 41))
    plain = gradients(decoder)
    monkeypatch.setattr(Block, "compile", traced)
    decoder.compile_blocks()
    assert decoder.compiled
    assert_close(plain, gradients(decoder), 1e-5)


@pytest.mark.filterwarnings("ignore")
def test_only_training_is_compiled_since_held_out_text_has_many_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled.append(1)
        return graph.forward

    def traced(block: Block, **options: Any) -> None:
        nn.Module.compile(block, backend=backend, **options)

    monkeypatch.setattr(Block, "compile", traced)
    decoder = random_decoder(ModelConfig(2, 24, 3, 32, 41))
    expected = [decoder(random_tokens(1, length)).detach() for length in (9, 11)]
    decoder.compile_blocks()
    with torch.no_grad():
        for length, hidden in zip((9, 11), expected, strict=True):
            torch.testing.assert_close(decoder(random_tokens(1, length)), hidden)
    assert not compiled
    decoder(random_tokens(1, 9))
    assert compiled


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", [CONFIG, LLAMA], ids=["gpt", "llama"])
def test_rows_of_any_length_are_compiled_once(
    monkeypatch: pytest.MonkeyPatch, config: ModelConfig
) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()

    def traced(block: Block, **options: Any) -> None:
        nn.Module.compile(block, backend=counter, **options)

    monkeypatch.setattr(Block, "compile", traced)
    decoder, eager = random_decoder(config), random_decoder(config)
    decoder.compile_blocks(lengths_vary=True)
    for rows, length in ((3, 9), (3, 14), (2, 11), (4, 5), (3, 16)):
        one, other = (gradients(each, shape=(rows, length)) for each in (decoder, eager))
        assert_close(one, other, 1e-4)
    assert counter.frame_count == 1


def test_dropout_is_set_everywhere_and_off_in_evaluation() -> None:
    decoder, tokens = random_decoder(), random_tokens(1, 9)
    with torch.no_grad():
        expected = decoder(tokens)
        decoder.set_dropout(0.5)
        assert torch.equal(decoder(tokens), expected)
        assert not torch.equal(decoder.train()(tokens), expected)
        decoder.set_dropout(0.0)
        assert torch.equal(decoder(tokens), expected)


def test_dropout_reaches_embeddings_attention_and_both_branches() -> None:
    """Each place alone changes the result."""
    decoder, tokens = random_decoder().train(), random_tokens(1, 9)
    expected = decoder(tokens)
    block = decoder.blocks[0]
    assert isinstance(block, Block)
    for place in (decoder.dropout, block.dropout):
        place.p = 0.5
        assert not torch.equal(decoder(tokens), expected)
        place.p = 0.0
    block.attention.dropout = 0.5
    assert not torch.equal(decoder(tokens), expected)


def test_compute_dtype_is_autocasts() -> None:
    x = torch.zeros(1)
    assert compute_dtype(x) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compute_dtype(x) == torch.bfloat16


def test_bf16_stays_close_to_float32() -> None:
    decoder = Decoder(CONFIG).eval()
    decoder.initialise(torch.Generator().manual_seed(1))
    tokens = random_tokens(2, 16)
    mask = packed_mask(torch.tensor([[0] * 6 + [1] * 10] * 2))
    with torch.no_grad():
        exact = decoder(tokens, mask_bts=mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = decoder(tokens, mask_bts=mask)
    assert float((rounded.float() - exact).square().mean().sqrt()) < 0.02
