"""oneDNN's product with weights laid out beforehand, which PyTorch has without a public name."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


@functools.cache
def onednn_linear() -> Any:
    """PyTorch's operator for a linear layer in bf16 with such weights, or None.

    It is the one that torch.compile's frozen graphs call; plain `F.linear` lays the weights out
    anew in every call.
    """
    if not (torch._C._has_mkldnn and torch.cpu._is_avx512_bf16_supported()):
        return None
    try:
        weight = lay_out(torch.zeros(16, 16, dtype=torch.bfloat16))
        linear = torch.ops.mkldnn._linear_pointwise
        linear(torch.zeros(1, 16, dtype=torch.bfloat16), weight, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    return linear


def lay_out(weight: Tensor) -> Tensor:
    """A bf16 matrix as oneDNN's kernels read it."""
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return result
