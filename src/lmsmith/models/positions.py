"""Sinusoidal and rotary positions, and the scaling of the latter."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lmsmith.device import HOST
from lmsmith.models.config import ModelConfig, RopeScaling

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each (batch or 1, 1, length, head_width / 2), float32."""


class SinusoidalPositions(nn.Module):
    """sin(t / 10000^(2i/d)) at dimension 2i, the cosine at 2i + 1 (Vaswani et al. 2017, 3.5)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # A plain attribute on the CPU: models are also built on the meta device.
        self.frequencies = rotary_frequencies(width, 10_000.0)

    def forward(self, positions_bt: Tensor) -> Tensor:
        """(batch, length) → (batch, length, width)."""
        frequencies = self.frequencies.to(positions_bt.device)
        angles_bti = positions_bt[..., None].float() * frequencies
        return torch.stack([angles_bti.sin(), angles_bti.cos()], dim=-1).flatten(-2)


class RotaryPositions(nn.Module):
    """Rotation angles of queries and keys (Su et al. 2021, section 3.2.2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width, self.theta = config.width_per_head, config.rope_theta
        self.scaling = config.rope_scaling
        self.frequencies, self.magnitude = scaled_frequencies(self.width, self.theta, self.scaling)

    def forward(self, positions_bt: Tensor) -> Rotation:
        """Cosines and sines of every position's angles."""
        frequencies = self.frequencies.to(positions_bt.device)
        if self.scaling.method == "dynamic":
            frequencies = dynamic_frequencies(self.width, self.theta, self.scaling, positions_bt)
        angles_b1ti = (positions_bt[..., None].float() * frequencies)[:, None]
        return angles_b1ti.cos() * self.magnitude, angles_b1ti.sin() * self.magnitude


def rotate(x_bhtk: Tensor, rotation: Rotation) -> Tensor:
    """Rotate dimensions i and i + head_width / 2 together, Llama's pairs; in float32."""
    cosine, sine = rotation
    first, second = x_bhtk.float().chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(x_bhtk.dtype)


def rotary_frequencies(width: int, theta: float) -> Tensor:
    """θ^(−2i/width) radians a token, i = 0 … width/2 − 1, float32."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=HOST) / width
    result: Tensor = 1.0 / theta**exponents
    return result


def scaled_frequencies(width: int, theta: float, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Frequencies (width / 2) of every method but ``dynamic``, and the factor of cos and sin."""
    frequencies = rotary_frequencies(width, theta)
    if scaling.method == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.method == "llama3":
        return llama3_frequencies(frequencies, scaling), 1.0
    if scaling.method == "yarn":
        magnitude = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
        return yarn_frequencies(frequencies, theta, scaling), magnitude
    return frequencies, 1.0


def dynamic_frequencies(
    width: int, theta: float, scaling: RopeScaling, positions_bt: Tensor
) -> Tensor:
    """Frequencies (batch, 1, width / 2) by the length of each row, its largest position + 1.

    θ' = θ (factor · length / original − (factor − 1))^(width / (width − 2)) beyond the original
    context.
    """
    lengths_b = (positions_bt.amax(dim=1) + 1).clamp(min=scaling.original_context).float()
    stretch_b = scaling.factor * lengths_b / scaling.original_context - (scaling.factor - 1)
    theta_b = theta * stretch_b ** (width / (width - 2))
    exponents = torch.arange(0, width, 2, device=positions_bt.device) / width
    return 1.0 / theta_b[:, None, None] ** exponents


def llama3_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Long wavelengths divided by the factor, short ones kept, a line between (Llama 3.1)."""
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_context * frequencies / (2.0 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling.factor)


def yarn_frequencies(frequencies: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """NTK by parts (Peng et al. 2023, section 3.2), its ramp over the index of the dimension."""
    width = 2 * len(frequencies)

    def dimension(turns: float) -> float:
        """Where a frequency makes so many turns within the original context."""
        ratio = scaling.original_context / (turns * 2.0 * math.pi)
        return width * math.log(ratio) / (2.0 * math.log(theta))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    span = last - first or 0.001
    indices = torch.arange(len(frequencies), dtype=torch.float32, device=HOST)
    divided = ((indices - first) / span).clamp(0.0, 1.0)
    return frequencies * (1.0 - divided + divided / scaling.factor)
