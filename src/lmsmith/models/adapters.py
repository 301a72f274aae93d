"""Low-rank adapters: train two narrow matrices beside each frozen one (LoRA, Hu et al. 2021).

A layer computes W x + b + (α/r) · B A x, with A (r, in) and B (out, r). W is frozen; B is zero at
first, so an adapted model begins as its base. ``merged_state`` gives the weights W + (α/r) B A of
an equal plain model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.core.config import NonNegativeInt, PositiveFloat, Problem
from lmsmith.models.blocks import Block

Part = Literal["attention", "feed_forward"]
PARTS: tuple[Part, ...] = ("attention", "feed_forward")

LowRank = Mapping[str, tuple[Tensor, Tensor]]
"""Name of a linear layer → A (r, inputs) and B (outputs, r), the latter times α/r, float32."""


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
        rank, alpha: of the adapter, which is empty until `initialise_adapters`.
        dtype: of the frozen weight; that of products saves conversions.
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


def adapt(model: nn.Module, config: AdapterConfig, dtype: torch.dtype, seed: int) -> None:
    """Prepare a model in place for training by adapters; a ``config.rank`` of 0 changes nothing.

    ``dtype`` is that of products, and ``seed`` that of the adapters' first values.
    """
    if config.rank:
        add_adapters(model, config, dtype)
        initialise_adapters(model, torch.Generator().manual_seed(seed))


def add_adapters(model: nn.Module, config: AdapterConfig, dtype: torch.dtype | None = None) -> None:
    """Freeze the model, except the head on its body, and put adapters into its blocks.

    The adapters are empty until `initialise_adapters`, or until weights are loaded. ``dtype`` is
    that of the adapted layers' frozen weights; unchanged if None.
    """
    body: nn.Module = getattr(model, "decoder", model)
    body.requires_grad_(False)
    for block in [module for module in body.modules() if isinstance(module, Block)]:
        for part in config.parts:
            layer = getattr(block, part)
            for name, child in list(layer.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(layer, name, AdaptedLinear(child, config.rank, config.alpha, dtype))


@torch.no_grad()
def initialise_adapters(model: nn.Module, generator: torch.Generator) -> None:
    """A uniform within ±1/√in, as in `nn.Linear`; B zero."""
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
    """``state_dict`` of the equal plain model."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    for name, layer in adapted_layers(model):
        state[f"{name}.weight"] = layer.merged_weight()
        del state[f"{name}.down"], state[f"{name}.up"]
    return state


def low_rank(config: AdapterConfig, state: Mapping[str, Tensor]) -> LowRank:
    """The matrices of adapters, from ``down`` and ``up`` of each layer in their state.

    Columns of B that are zero change nothing and are left out, and so are layers without others.
    """
    scale, found = config.alpha / config.rank, {}
    for name in (key.removesuffix(".up") for key in state if key.endswith(".up")):
        up, down = state[f"{name}.up"].float(), state[f"{name}.down"].float()
        used = (up != 0).any(dim=0)
        if bool(used.any()):
            found[name] = down[used], scale * up[:, used]
    return found


def add_up(first: LowRank, second: LowRank) -> LowRank:
    """Adapters equal to both, one on top of the other: B₁A₁ + B₂A₂ = [B₁ B₂] [A₁; A₂]."""
    found = dict(first)
    for name, (down, up) in second.items():
        before = found.get(name)
        if before is not None:
            down, up = torch.cat([before[0], down]), torch.cat([before[1], up], dim=1)
        found[name] = down, up
    return found


def side_by_side(
    pairs: Sequence[tuple[Tensor, Tensor] | None], heights: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """A and B for layers of the same inputs whose outputs are stacked: [A₁; A₂] and diag(B₁, B₂).

    Args:
        pairs: one for each layer, or None; not all are None.
        heights: outputs of each layer.
    """
    down = torch.cat([pair[0] for pair in pairs if pair is not None])
    up, row, column = torch.zeros(sum(heights), len(down)), 0, 0
    for pair, height in zip(pairs, heights, strict=True):
        if pair is not None:
            rank = len(pair[0])
            up[row : row + height, column : column + rank] = pair[1]
            column += rank
        row += height
    return down, up


@torch.no_grad()
def merge(state: Mapping[str, Tensor], adapter: LowRank) -> dict[str, Tensor]:
    """The weights W + (α/r) B A of an equal plain model; the others are shared."""
    merged = dict(state)
    for name, (down, up) in adapter.items():
        weight = state[f"{name}.weight"]
        merged[f"{name}.weight"] = torch.addmm(weight, up.to(weight.device), down.to(weight.device))
    return merged


class TrainedState:
    """State that training changes: buffers and parameters that are not frozen."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
        self.names = [name for name in model.state_dict() if name not in frozen]

    def state_dict(self) -> dict[str, Any]:
        state = self.model.state_dict()
        return {name: state[name] for name in self.names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises RuntimeError if ``state`` is of another model."""
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        if unexpected or set(missing) & set(self.names):
            raise RuntimeError(f"not this model's state: {[*missing, *unexpected]}")
