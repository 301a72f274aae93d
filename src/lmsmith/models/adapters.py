"""Low-rank adapters: train two narrow matrices beside each frozen one (LoRA, Hu et al. 2021).

A layer computes W x + b + (α/r) · B A x, with A (r, in) and B (out, r). W is never changed; B
begins at zero, so an adapted model begins as the one it was made from. ``merged_state`` gives the
weights W + (α/r) B A of a plain model that computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.core.config import NonNegativeInt, PositiveFloat, Problem
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel

Part = Literal["attention", "feed_forward"]
PARTS: tuple[Part, ...] = ("attention", "feed_forward")


@dataclass(frozen=True)
class AdapterConfig:
    """Settings of low-rank adapters."""

    rank: NonNegativeInt = 0
    """The adapter's rank r; 0 uses none, and every weight is trained."""
    alpha: PositiveFloat = 32.0
    """The adapter's product is scaled by alpha / rank."""
    parts: tuple[Part, ...] = PARTS
    """The layers of a block that are adapted."""

    def check(self) -> list[Problem]:
        """Adapters without a layer."""
        fix = "leave it out to adapt all"
        return [] if self.parts else [Problem("parts", [], "at least one", fix)]


class AdaptedLinear(nn.Linear):
    """A frozen linear layer and its adapter.

    Args:
        linear: its weight and bias are shared, and no longer trained.
        rank, alpha: of the adapter; it must be filled (`initialise_adapters`, or loaded).
        dtype: the frozen weight is kept in; the one that products are computed in spares a
            conversion at every use.
    """

    def __init__(
        self, linear: nn.Linear, rank: int, alpha: float, dtype: torch.dtype | None = None
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        device = linear.weight.device
        self.down = nn.Parameter(torch.empty(rank, self.in_features, device=device))
        self.up = nn.Parameter(torch.empty(self.out_features, rank, device=device))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        adapted = F.linear(F.linear(x, self.down), self.up)
        return F.linear(x, self.weight, self.bias) + self.scale * adapted

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + (α/r) B A, float32."""
        return torch.addmm(self.weight.float(), self.up, self.down, alpha=self.scale)


def adapt(
    model: Decoder | ScalarModel, config: AdapterConfig, dtype: torch.dtype, seed: int
) -> None:
    """Prepare a model for training by adapters; nothing happens where ``config.rank`` is 0.

    Args:
        model: changed in place.
        dtype: that products are computed in.
        seed: of the adapters' first values.
    """
    if config.rank:
        add_adapters(model, config, dtype)
        initialise_adapters(model, torch.Generator().manual_seed(seed))


def add_adapters(
    model: Decoder | ScalarModel, config: AdapterConfig, dtype: torch.dtype | None = None
) -> None:
    """Freeze the model, a scalar model's head excepted, and put adapters into its blocks.

    The adapters are empty until `initialise_adapters`, or until weights are loaded.

    Args:
        model: changed in place; without adapters yet.
        config: with a rank above 0.
        dtype: the adapted layers' frozen weights are kept in; as they are if None.
    """
    decoder = model.decoder if isinstance(model, ScalarModel) else model
    decoder.requires_grad_(False)
    for block in decoder.blocks:
        for part in config.parts:
            layer = getattr(block, part)
            for name, child in list(layer.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(layer, name, AdaptedLinear(child, config.rank, config.alpha, dtype))


@torch.no_grad()
def initialise_adapters(model: nn.Module, generator: torch.Generator) -> None:
    """A uniform within ±1/√in (as `nn.Linear` draws), B zero: nothing is changed at first."""
    for _, layer in adapted_layers(model):
        bound = 1.0 / math.sqrt(layer.in_features)
        layer.down.uniform_(-bound, bound, generator=generator)
        layer.up.zero_()


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """(name, layer) of every adapted layer."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            yield name, module


def has_adapters(model: nn.Module) -> bool:
    return next(adapted_layers(model), None) is not None


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """``state_dict`` of the plain model that computes the same."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    for name, layer in adapted_layers(model):
        state[f"{name}.weight"] = layer.merged_weight()
        del state[f"{name}.down"], state[f"{name}.up"]
    return state


class TrainedState:
    """What training changes of a model's state: all that is not frozen, and the buffers.

    A checkpoint of it is as large as the adapters, not as the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
        self.names = [name for name in model.state_dict() if name not in frozen]

    def state_dict(self) -> dict[str, Any]:
        state = self.model.state_dict()
        return {name: state[name] for name in self.names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises RuntimeError where ``state`` is of another model."""
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        if unexpected or set(missing) & set(self.names):
            raise RuntimeError(f"not this model's state: {[*missing, *unexpected]}")
