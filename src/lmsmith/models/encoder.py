"""The encoder: a stack in which every position sees all others, as BERT (Devlin et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmsmith.core.errors import UserError
from lmsmith.models.config import ModelConfig
from lmsmith.models.stack import Stack


class Encoder(Stack):
    """BERT without its heads for pretraining (Devlin et al. 2018, section 3).

    Raises:
        UserError: the config is a decoder's.
    """

    def __init__(self, config: ModelConfig) -> None:
        if config.causal:
            raise UserError(
                "an encoder sees the text on both sides, and this config is a decoder's "
                "(causal = true)",
                "write causal = false, or use a model's preset such as bert-base",
            )
        super().__init__(config)
        self.pooler = nn.Linear(config.width, config.width) if config.pooler else None

    def pooled(self, hidden_btd: Tensor) -> Tensor:
        """The first token's state, through tanh of the pooler if there is one: (batch, width)."""
        first_bd = hidden_btd[:, 0]
        return first_bd if self.pooler is None else torch.tanh(self.pooler(first_bd))
