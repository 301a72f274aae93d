"""A linear layer laid out for oneDNN gives what the plain one gives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lmsmith.generation import inference
from lmsmith.generation.inference import InferenceLinear


@pytest.fixture(params=["onednn", "plain"])
def _kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(inference, "onednn_linear", lambda: None)
    elif inference.onednn_linear() is None:
        pytest.skip("this processor or this PyTorch has no such kernel")


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 7, 48), (300, 48)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear(shape: tuple[int, ...], with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(80, 48, generator=generator)
    bias = torch.randn(80, generator=generator) if with_bias else None
    x = torch.randn(shape, generator=generator)
    result = InferenceLinear(weight, bias, torch.bfloat16)(x)
    assert result.dtype == torch.bfloat16
    half = [None if t is None else t.bfloat16().float() for t in (x, weight, bias)]
    assert half[0] is not None
    expected = F.linear(half[0], half[1], half[2])  # type: ignore[arg-type]
    torch.testing.assert_close(result.float(), expected, rtol=8e-3, atol=2e-2)


@pytest.mark.usefixtures("_kernel")
def test_gelu_is_the_tanh_form() -> None:
    """At −2.5 the two forms differ by 3 %, ten times bf16's rounding."""
    values = torch.linspace(-3, 3, 49).bfloat16()
    layer = InferenceLinear(torch.eye(49), torch.zeros(49), torch.bfloat16, gelu=True)
    expected = F.gelu(values.float(), approximate="tanh")
    torch.testing.assert_close(layer(values[None])[0].float(), expected, rtol=1e-2, atol=1e-6)


def test_float32_is_left_as_it_is() -> None:
    weight, bias, x = torch.randn(5, 4), torch.randn(5), torch.randn(3, 4)
    assert torch.equal(InferenceLinear(weight, bias, torch.float32)(x), F.linear(x, weight, bias))
