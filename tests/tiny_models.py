"""Tiny decoders that tests of several parts use."""

from __future__ import annotations

import torch

from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder


def random_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    """Weights large enough that every token's distribution depends on all before it."""
    decoder = Decoder(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            spread = 0.5 if "embedding" in name else 0.3
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(centre, spread, generator=generator)
    return decoder
