"""The Transformer: parity with torch.nn.Transformer, masks by perturbation, presets, the cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lmsmith.core.config import problems_in
from lmsmith.models.attention import KeptKeys
from lmsmith.models.blocks import CrossBlock
from lmsmith.models.config import EncoderDecoderConfig, ModelConfig
from lmsmith.models.encoder_decoder import EncoderDecoder, shift_right
from lmsmith.models.presets import TRANSFORMERS, transformer

VOCABULARY = 23


def tiny(**changes: object) -> EncoderDecoderConfig:
    shape = replace(transformer(2, 16, 4, 24), vocabulary_size=VOCABULARY, context=32, dropout=0.0)
    return EncoderDecoderConfig(replace(shape, **changes), decoder_layers=3, start_token=1)


def made(config: EncoderDecoderConfig, seed: int = 0) -> EncoderDecoder:
    """With no parameter zero or one."""
    model, generator = EncoderDecoder(config), torch.Generator().manual_seed(seed)
    model.initialise(generator)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tokens(*shape: int, seed: int = 5) -> Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def as_torch(model: EncoderDecoder) -> nn.Transformer:
    """The same weights in torch.nn.Transformer, an independent implementation."""
    shape = model.config.model
    common = {
        "dropout": 0.0,
        "activation": "relu",
        "layer_norm_eps": shape.norm_epsilon,
        "batch_first": True,
        "norm_first": shape.norm_position == "pre",
    }
    sizes = (shape.width, shape.heads, shape.resolved_ffn_width)
    final = [nn.LayerNorm(shape.width) if shape.has_final_norm else None for _ in range(2)]
    theirs = nn.Transformer(
        *sizes[:2],
        custom_encoder=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*sizes, **common),
            shape.layers,
            final[0],
            enable_nested_tensor=False,
        ),
        custom_decoder=nn.TransformerDecoder(
            nn.TransformerDecoderLayer(*sizes, **common), len(model.decoder_blocks), final[1]
        ),
        batch_first=True,
    ).eval()

    def copy(ours: nn.Module, their: nn.Module) -> None:
        their.load_state_dict(ours.state_dict())

    def copy_attention(
        query_key_value: list[nn.Linear], output: nn.Linear, their: nn.Module
    ) -> None:
        their.in_proj_weight.data = torch.cat([part.weight for part in query_key_value])
        their.in_proj_bias.data = torch.cat([part.bias for part in query_key_value])
        copy(output, their.out_proj)

    pairs = [*zip(model.encoder.blocks, theirs.encoder.layers, strict=True)]
    pairs += [*zip(model.decoder_blocks, theirs.decoder.layers, strict=True)]
    for ours, their in pairs:
        attention = ours.attention
        copy_attention([attention.query_key_value], attention.output, their.self_attn)
        norms = [ours.attention_norm, ours.feed_forward_norm]
        if isinstance(ours, CrossBlock):
            cross = ours.cross_attention
            copy_attention([cross.query, cross.key_value], cross.output, their.multihead_attn)
            norms.insert(1, ours.cross_norm)
        for number, norm in enumerate(norms, start=1):
            copy(norm, getattr(their, f"norm{number}"))
        copy(ours.feed_forward.inner, their.linear1)
        copy(ours.feed_forward.output, their.linear2)
    if shape.has_final_norm:
        copy(model.encoder.final_norm, theirs.encoder.norm)
        copy(model.decoder_norm, theirs.decoder.norm)
    return theirs


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_forward_equals_torch(norm_position: str) -> None:
    model = made(tiny(norm_position=norm_position))
    theirs = as_torch(model)
    source, target = tokens(3, 7), tokens(3, 5, seed=6)
    lengths = torch.tensor([7, 4, 6])
    positions = torch.arange(7)[None]
    padded = positions.expand(3, 7) >= lengths[:, None]
    with torch.no_grad():
        ours = model(source, target, lengths)
        expected = theirs(
            model.encoder.embed(source, positions),
            model.encoder.embed(target, positions[:, :5]),
            tgt_mask=torch.ones(5, 5, dtype=torch.bool).triu(1),
            src_key_padding_mask=padded,
            memory_key_padding_mask=padded,
        )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_embeddings_are_shared_and_scaled() -> None:
    """Section 3.4: one matrix three times; times √d at the input."""
    model = made(tiny())
    embedded = model.encoder.embed(torch.tensor([[3]]), torch.tensor([[0]]))[0, 0]
    zero = torch.tensor([0.0, 1.0] * 8)  # sines and cosines of position 0
    torch.testing.assert_close(embedded, 4.0 * model.unembedding_weight[3] + zero)
    hidden = torch.randn(16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.logits(hidden), model.unembedding_weight @ hidden)


def changed(model: EncoderDecoder, source: Tensor, target: Tensor, place: str, at: int) -> Tensor:
    """Which target positions another token at one place changes, (t,)."""
    others = {"source": source.clone(), "target": target.clone()}
    others[place][0, at] = (others[place][0, at] + 1) % VOCABULARY
    with torch.no_grad():
        before, after = model(source, target), model(others["source"], others["target"])
    return (before - after).abs().amax(dim=-1)[0] > 1e-6


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_the_decoder_sees_the_source_and_not_the_future(norm_position: str) -> None:
    model = made(tiny(norm_position=norm_position))
    source, target = tokens(1, 6), tokens(1, 5, seed=6)
    for at in range(6):
        assert changed(model, source, target, "source", at).all()
    for at in range(5):
        expected = torch.arange(5) >= at
        assert torch.equal(changed(model, source, target, "target", at), expected)


def test_padding_changes_nothing() -> None:
    model = made(tiny())
    source, target = tokens(1, 4), tokens(1, 3, seed=6)
    with torch.no_grad():
        alone = model(source, target)
        for filler in (0, 7):
            longer = torch.cat([source, torch.full((1, 3), filler)], dim=1)
            wider = torch.cat([target, torch.full((1, 2), filler)], dim=1)
            padded = model(longer, wider, torch.tensor([4]))[:, :3]
            torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_cached_decoding_equals_whole(norm_position: str) -> None:
    model = made(tiny(norm_position=norm_position))
    source, target = tokens(2, 6), tokens(2, 5, seed=6)
    lengths = torch.tensor([6, 4])
    with torch.no_grad():
        whole = model(source, target, lengths)
        memory = model.encode(source, lengths)
        kept = [KeptKeys() for _ in model.decoder_blocks]
        steps = [model.decode(target[:, t : t + 1], memory, kept, t) for t in range(5)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-5, atol=1e-6)


def test_rows_of_the_cache_are_selected() -> None:
    model = made(tiny())
    source, target = tokens(2, 6), tokens(2, 4, seed=6)
    rows = torch.tensor([1, 1, 0])
    with torch.no_grad():
        expected = model(source[rows], target[rows])[:, -1:]
        memory, kept = model.encode(source), [KeptKeys() for _ in model.decoder_blocks]
        for t in range(3):
            model.decode(target[:, t : t + 1], memory, kept, t)
        for each in kept:
            each.select(rows)
        found = model.decode(target[rows, 3:], memory.select(rows), kept, 3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_attention_weights() -> None:
    """The weights with which the target's tokens were predicted; they mix the memory's values."""
    model = made(tiny())
    source, target = [4, 5, 6, 0], [7, 8, 0]
    found = model.attention_weights(source, target)
    assert [weights.shape for weights in found] == [(4, 3, 4)] * 3
    for weights in found:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4, 3))
    mixed: list[tuple[Tensor, Tensor]] = []
    block = model.decoder_blocks[0].cross_attention
    hook = block.output.register_forward_hook(lambda _, inputs, __: mixed.append(inputs[0]))
    with torch.no_grad():
        memory = model.encode(torch.tensor([source]))
        model.decode(torch.tensor([[1, 7, 8]]), memory)
    hook.remove()
    by_hand = (found[0] @ memory.layers[0][1][0]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(mixed[0][0], by_hand)


def test_targets_are_shifted_right() -> None:
    assert shift_right([[5, 6, 0], [0]], 3) == [[3, 5, 6], [3]]


@pytest.mark.parametrize("output_bias", [False, True])
@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_parameters_are_counted(norm_position: str, output_bias: bool) -> None:
    config = replace(tiny(norm_position=norm_position, kv_heads=2), output_bias=output_bias)
    counted = sum(parameter.numel() for parameter in EncoderDecoder(config).parameters())
    assert config.parameters == counted


def test_presets_have_the_papers_shapes() -> None:
    """Table 3: 65 and 213 million parameters, with a vocabulary of about 37,000."""
    found = {name: EncoderDecoderConfig(each.config) for name, each in TRANSFORMERS.items()}
    assert found["transformer-base"].parameters == 63_082_496
    assert found["transformer-big"].parameters == 214_245_376
    base = found["transformer-base"].model
    assert (base.layers, base.width, base.heads, base.resolved_ffn_width) == (6, 512, 8, 2048)
    assert (base.dropout, found["transformer-big"].model.dropout) == (0.1, 0.3)
    with torch.device("meta"):
        for config in found.values():
            model = EncoderDecoder(config)
            assert sum(each.numel() for each in model.parameters()) == config.parameters


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"positions": "rotary"}, "model.positions"),
        ({"attention_pattern": ("dense", "banded"), "window": 4}, "model.attention_pattern"),
        ({"tied_embeddings": False}, "model.tied_embeddings"),
        ({"causal": False}, "model"),
    ],
)
def test_parts_that_it_has_not(changes: dict[str, object], key: str) -> None:
    assert [problem.key for problem in problems_in(tiny(**changes))] == [key]
    assert not problems_in(EncoderDecoderConfig(ModelConfig(positions="learned")))


def test_no_dropout_on_attention_weights() -> None:
    """Section 5.4: on each sub-layer's output and on the sums of the embeddings."""
    model = EncoderDecoder(replace(tiny(), model=replace(tiny().model, dropout=0.3)))
    attentions = [each.attention for each in (*model.encoder.blocks, *model.decoder_blocks)]
    attentions += [each.cross_attention for each in model.decoder_blocks]
    assert {attention.dropout for attention in attentions} == {0.0}
    assert {each.p for each in model.modules() if isinstance(each, nn.Dropout)} == {0.3}
    model.set_dropout(0.1)
    assert {each.p for each in model.modules() if isinstance(each, nn.Dropout)} == {0.1}
