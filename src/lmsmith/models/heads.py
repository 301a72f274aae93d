"""Reward and value models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmsmith.device import without_autocast
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder


class ScalarModel(nn.Module):
    """A decoder without its unembedding, and a linear head to one number a position.

    A reward model's reward is the number at the last token (Ouyang et al. 2022, section 3.5); a
    value model's numbers are the returns expected from each position. ``shift`` is subtracted from
    every number, so that demonstrations score 0 on average.
    """

    shift: Tensor

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = nn.Linear(decoder.config.width, 1)
        self.register_buffer("shift", torch.zeros(()))

    @property
    def config(self) -> ModelConfig:
        """The decoder's shape."""
        return self.decoder.config

    @torch.no_grad()
    def initialise_head(self, generator: torch.Generator) -> None:
        """Normal with standard deviation 0.1/√(width + 1), bias zero: all scores begin near 0.

        The deviation is a tenth of Stiennon et al. 2020, appendix B.
        """
        deviation = 0.1 * (self.head.in_features + 1) ** -0.5
        self.head.weight.normal_(0.0, deviation, generator=generator)
        self.head.bias.zero_()

    def forward(
        self,
        tokens_bt: Tensor,
        positions_bt: Tensor | None = None,
        mask_bts: Tensor | None = None,
    ) -> Tensor:
        """Values (batch, length), float32."""
        hidden_btd = self.decoder(tokens_bt, positions_bt, mask_bts)
        # Rounded to bf16, rewards that differ by less than 1 % would be ties.
        with without_autocast(hidden_btd.device):
            values_bt: Tensor = self.head(hidden_btd.float())[..., 0]
        return values_bt - self.shift
