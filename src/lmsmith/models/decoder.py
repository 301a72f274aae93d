"""The decoder-only transformer: a causal stack and its unembedding."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn
from torch.nn import functional as F

from lmsmith.core.errors import UserError
from lmsmith.device import HOST
from lmsmith.models.config import ModelConfig
from lmsmith.models.interop.quantised import PackedTensor
from lmsmith.models.stack import Stack


class Decoder(Stack):
    """GPT-1, GPT-2 (Radford et al. 2019, section 2.3), GPT-3 or Llama, as its config says.

    Raises:
        UserError: the config is an encoder's.
    """

    def __init__(self, config: ModelConfig) -> None:
        if config.is_encoder:
            raise UserError(
                "a decoder predicts the next token, and this config is an encoder's "
                "(causal = false, segments, embedding_norm or pooler)",
                "write causal = true, and leave the others out; `lmsmith run bert` trains encoders",
            )
        super().__init__(config)
        self.unembedding: nn.Linear | None = None
        if not config.tied_embeddings:
            self.unembedding = nn.Linear(config.width, config.vocabulary_size, bias=False)
        self.packed: dict[str, list[PackedTensor]] = {}
        """Matrices that stay as their file packs them, by name; the parameters of these names have
        no numbers (they are on the meta device). `InferenceDecoder` alone can multiply them."""

    @property
    def unembedding_weight(self) -> Tensor:
        """(vocabulary, width); the token embedding's where they are tied."""
        return (self.unembedding or self.token_embedding).weight

    def logits(self, hidden_btd: Tensor) -> Tensor:
        """Unembed: (…, width) → (…, vocabulary)."""
        return F.linear(hidden_btd, self.unembedding_weight)


def state_digest(decoder: Decoder) -> str:
    """SHA-256 of a model's weights and their names."""
    digest = hashlib.sha256()
    for name, value in decoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().contiguous().to(HOST).numpy().tobytes())
    return digest.hexdigest()
