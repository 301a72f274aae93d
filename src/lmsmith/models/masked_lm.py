"""BERT's heads for pretraining: masked tokens, and whether a sentence follows another."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.core.config import Problem, problems_in
from lmsmith.models.blocks import ACTIVATIONS, make_norm
from lmsmith.models.config import ModelConfig
from lmsmith.models.encoder import Encoder


@dataclass(frozen=True)
class MaskedLMConfig:
    """The encoder's shape, and its heads."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The encoder's shape."""
    next_sentence: bool = False
    """Whether it also says if the second segment follows the first."""

    def check(self) -> list[Problem]:
        """What the encoder's shape lacks."""
        found = problems_in(self.model)
        if self.next_sentence and not self.model.pooler:
            found.append(Problem("next_sentence", True, "false without a pooler"))
        return found

    @property
    def parameters(self) -> int:
        """Number of parameters, the tied embedding counted once."""
        width, norm = self.model.width, 2 if self.model.norm == "layer" else 1
        transform = width * width + width + norm * width
        heads = transform + self.model.vocabulary_size + self.next_sentence * 2 * (width + 1)
        return self.model.parameters + heads


class MaskedLM(nn.Module):
    """An encoder that predicts masked tokens (Devlin et al. 2018, section 3.1).

    A state h becomes norm(f(W h + b)); its logits are those of the token embedding, and a bias.
    """

    def __init__(self, config: MaskedLMConfig, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.config = config
        self.decoder = Encoder(config.model) if encoder is None else encoder
        width = config.model.width
        self.transform = nn.Linear(width, width)
        self.transform_norm = make_norm(config.model)
        self.bias = nn.Parameter(torch.zeros(config.model.vocabulary_size))
        self.next_sentence = nn.Linear(width, 2) if config.next_sentence else None

    @property
    def encoder(self) -> Encoder:
        """The body; `decoder` is its name in every model with a head."""
        return self.decoder

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02), biases zero."""
        self.decoder.initialise(generator)
        for layer in (self.transform, self.next_sentence):
            if layer is not None:
                layer.weight.normal_(0.0, 0.02, generator=generator)
                layer.bias.zero_()

    def transformed(self, hidden_nd: Tensor) -> Tensor:
        """States (…, width) → what the token embedding is multiplied by."""
        activation = ACTIVATIONS[self.config.model.activation]
        result: Tensor = self.transform_norm(activation(self.transform(hidden_nd)))
        return result

    def logits(self, hidden_nd: Tensor) -> Tensor:
        """Logits of each token of the vocabulary: (…, width) → (…, vocabulary)."""
        weight = self.decoder.token_embedding.weight
        return F.linear(self.transformed(hidden_nd), weight, self.bias)

    def follows(self, hidden_btd: Tensor) -> Tensor:
        """Logits (batch, 2) of "the second segment follows the first" and "it does not"."""
        assert self.next_sentence is not None
        result: Tensor = self.next_sentence(self.decoder.pooled(hidden_btd))
        return result

    def forward(
        self,
        tokens_bt: Tensor,
        mask_bts: Tensor | None = None,
        segments_bt: Tensor | None = None,
    ) -> Tensor:
        """Logits (batch, length, vocabulary); arguments as in `Stack.forward`."""
        return self.logits(self.decoder(tokens_bt, None, mask_bts, segments_bt))
