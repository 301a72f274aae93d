"""The optimiser and its schedules."""

from __future__ import annotations

import copy
import itertools
import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmsmith.core.config import problems_in
from lmsmith.device import HOST, product_dtype
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.training.muon import Muon
from lmsmith.training.optimiser import Optimiser, OptimiserConfig, Schedule, learning_rate_factor

CONFIG = ModelConfig(layers=2, width=16, heads=2, context=12, vocabulary_size=20)


def made() -> ScalarModel:
    decoder = Decoder(CONFIG)
    decoder.initialise(torch.Generator().manual_seed(0))
    model = ScalarModel(decoder)
    model.initialise_head(torch.Generator().manual_seed(1))
    return model


def set_gradients(model: nn.Module, seed: int = 2, size: float = 1.0) -> float:
    """Random gradients; returns their norm."""
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for parameter in model.parameters():
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)
        total += float(parameter.grad.square().sum())
    return total**0.5


def names_in(model: nn.Module, group: list[Tensor]) -> set[str]:
    ids = {id(parameter) for parameter in group}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_each_parameter_is_in_one_group_and_decays_only_if_it_is_a_matrix_of_a_layer(
    name: str,
) -> None:
    model = made()
    config = OptimiserConfig(name=name, weight_decay=0.1)  # type: ignore[arg-type]
    optimiser = Optimiser(model, config, matrices=[model.decoder.blocks])
    groups = [(part, group) for part in optimiser.parts for group in part.param_groups]
    every = [id(parameter) for _, group in groups for parameter in group["params"]]
    assert sorted(every) == sorted(id(parameter) for parameter in model.parameters())
    matrices = {
        f"decoder.blocks.{layer}.{part}.weight"
        for layer in range(2)
        for part in ("attention.query_key_value", "attention.output", "feed_forward.inner",
                     "feed_forward.output")
    }  # fmt: skip
    decayed: set[str] = set()
    for part, group in groups:
        if group["weight_decay"]:
            decayed |= names_in(model, group["params"])
        if isinstance(part, Muon):
            assert names_in(model, group["params"]) == matrices
    assert decayed == matrices | {"head.weight"}
    assert any(isinstance(part, Muon) for part in optimiser.parts) == (name == "muon")


def test_adamw_is_the_formula() -> None:
    """Two steps of a single number, with decay, by hand (Loshchilov & Hutter 2019)."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(2.0)
    config = OptimiserConfig(
        learning_rate=0.1, weight_decay=0.5, beta1=0.8, beta2=0.9, epsilon=1e-3, gradient_clip=0
    )
    optimiser = Optimiser(model, config)
    weight, first, second = 2.0, 0.0, 0.0
    for number, (gradient, factor) in enumerate([(3.0, 0.5), (-1.0, 1.0)], start=1):
        model.weight.grad = torch.full((1, 1), gradient)
        assert optimiser.step(factor) == pytest.approx(abs(gradient))
        rate = 0.1 * factor
        first = 0.8 * first + 0.2 * gradient
        second = 0.9 * second + 0.1 * gradient**2
        weight -= rate * 0.5 * weight
        weight -= rate * (first / (1 - 0.8**number)) / ((second / (1 - 0.9**number)) ** 0.5 + 1e-3)
        assert float(model.weight.detach()) == pytest.approx(weight, rel=1e-5)


def test_the_norm_is_the_whole_gradients_and_it_is_clipped_as_one() -> None:
    clipped, plain = made(), made()
    config = OptimiserConfig(gradient_clip=1.0, epsilon=1e3, weight_decay=0.0)
    expected = set_gradients(clipped)
    set_gradients(plain)
    for parameter in plain.parameters():
        assert parameter.grad is not None
        parameter.grad /= expected
    norm = Optimiser(clipped, config).step(1.0)
    assert norm == pytest.approx(expected, rel=1e-5)
    assert Optimiser(plain, OptimiserConfig(**{**vars(config), "gradient_clip": 0.0})).step(
        1.0
    ) == pytest.approx(1.0, rel=1e-5)
    start = dict(made().named_parameters())
    for (name, one), other in zip(clipped.named_parameters(), plain.parameters(), strict=True):
        # With so large an epsilon a step is in proportion to the gradient, so clipping shows.
        moved = (one - start[name]).detach()
        torch.testing.assert_close(moved, (other - start[name]).detach(), rtol=2e-3, atol=1e-9)
        assert one.grad is None


def test_a_small_gradient_is_not_clipped() -> None:
    one, other = made(), made()
    for model, clip in ((one, 1.0), (other, 0.0)):
        set_gradients(model, size=1e-3)
        Optimiser(model, OptimiserConfig(gradient_clip=clip)).step(1.0)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_leaves_the_weights(bad: float) -> None:
    model = made()
    optimiser = Optimiser(model, OptimiserConfig(name="muon"), [model.decoder.blocks])
    set_gradients(model)
    optimiser.step(1.0)
    before = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimiser.state_dict())
    set_gradients(model, seed=3)
    assert model.head.weight.grad is not None
    model.head.weight.grad[0, 0] = bad
    norm = optimiser.step(1.0)
    assert not torch.isfinite(torch.tensor(norm))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    moments = optimiser.state_dict()["parts"][0]["state"][0]["exp_avg"]
    assert torch.equal(moments, state["parts"][0]["state"][0]["exp_avg"])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_muons_step_is_orthogonal_and_at_its_own_rate() -> None:
    model = made()
    config = OptimiserConfig(
        name="muon", matrix_learning_rate=0.05, learning_rate=1e-12, weight_decay=0.0
    )
    optimiser = Optimiser(model, config, [model.decoder.blocks])
    before = copy.deepcopy(model.state_dict())
    set_gradients(model)
    optimiser.step(0.5)
    name = "decoder.blocks.0.attention.output.weight"
    moved = (model.state_dict()[name] - before[name]) / 0.025
    singular = torch.linalg.svdvals(moved)
    assert float(singular.min()) > 0.5
    assert float(singular.max()) < 1.4
    still = model.state_dict()["decoder.token_embedding.weight"]
    torch.testing.assert_close(still, before["decoder.token_embedding.weight"], rtol=0, atol=1e-10)


def test_muon_multiplies_in_float32_where_the_model_does() -> None:
    """Rounded to bf16, a last bit of a gradient would be a hundredth of an update."""
    model = made()
    exact, fast = (
        Optimiser(model, OptimiserConfig(name="muon"), [model.decoder.blocks], dtype).parts[-1]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert isinstance(exact, Muon)
    assert isinstance(fast, Muon)
    assert (exact.dtype, fast.dtype) == (torch.float32, product_dtype(HOST))


def test_frozen_parameters_are_left_out() -> None:
    model = made()
    model.decoder.requires_grad_(False)
    optimiser = Optimiser(model, OptimiserConfig(name="muon"), [model.decoder.blocks])
    assert names_in(model, optimiser.parameters) == {"head.weight", "head.bias"}
    assert len(optimiser.parts) == 1


def test_settings_out_of_range_are_all_named() -> None:
    config = OptimiserConfig(
        learning_rate=0, weight_decay=-1, beta2=1.0, momentum=-0.1, gradient_clip=-1
    )
    assert [each.key for each in problems_in(config)] == [
        "learning_rate",
        "weight_decay",
        "beta2",
        "momentum",
        "gradient_clip",
    ]
    assert problems_in(OptimiserConfig()) == []


def test_warm_up_is_a_straight_line_whose_last_step_is_the_peak() -> None:
    for name in get_args(Schedule):
        factors = [learning_rate_factor(name, step, 100, warmup_steps=10) for step in range(11)]
        after = (10 / 11) ** 0.5 if name == "inverse_sqrt" else 1.0
        assert factors == pytest.approx([(step + 1) / 10 for step in range(10)] + [after])


def test_cosine() -> None:
    for step in range(20, 100):
        progress = (step - 20) / 79
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2
        found = learning_rate_factor("cosine", step, 100, warmup_steps=20, final_lr_fraction=0.1)
        assert found == pytest.approx(expected)
    assert learning_rate_factor("cosine", 99, 100, final_lr_fraction=0.1) == pytest.approx(0.1)


def test_linear() -> None:
    factors = [learning_rate_factor("linear", step, 5, final_lr_fraction=0.2) for step in range(5)]
    assert factors == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_warm_up_stable_decay() -> None:
    factors = [
        learning_rate_factor("warmup_stable_decay", step, 20, warmup_steps=2, decay_fraction=0.25)
        for step in range(20)
    ]
    assert factors == pytest.approx([0.5] + [1.0] * 14 + [0.8, 0.6, 0.4, 0.2, 0.0])


def test_constant() -> None:
    assert {
        learning_rate_factor("constant", step, 9, final_lr_fraction=0.5) for step in range(9)
    } == {1.0}


def test_inverse_square_root_is_the_papers_formula() -> None:
    """Vaswani et al. 2017, equation 3: d^−½ min(step^−½, step · warm-up^−³ᐟ²)."""
    width, warmup = 512, 4000
    peak = (width * warmup) ** -0.5
    for step in (1, 7, 3999, 4000, 4001, 100_000):
        factor = learning_rate_factor("inverse_sqrt", step - 1, 200_000, warmup)
        expected = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert peak * factor == pytest.approx(expected, rel=1e-12)


@given(
    st.sampled_from(get_args(Schedule)),
    st.integers(1, 200),
    st.integers(0, 50),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_every_factor_is_between_nothing_and_the_peak_and_never_rises_after_warm_up(
    schedule: Schedule, steps: int, warmup: int, final: float, decay: float
) -> None:
    factors = [
        learning_rate_factor(schedule, step, steps, warmup, final, decay) for step in range(steps)
    ]
    assert all(0.0 <= factor <= 1.0 + 1e-12 for factor in factors)
    after = factors[warmup:]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(after))
    if schedule not in ("constant", "inverse_sqrt") and steps > warmup + 1:
        assert factors[-1] == pytest.approx(final)
    if steps == warmup + 1:
        assert schedule == "inverse_sqrt" or factors[-1] == 1.0
