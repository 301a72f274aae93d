"""The shape of a decoder, and what follows from it: parameters, operations, bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """A GPT-2 style decoder (Radford et al. 2019, section 2.3): pre-norm, final norm, learned
    positions, GELU, tied embeddings.

    Attributes:
        layers: number of blocks.
        width: size of the residual stream.
        heads: attention heads; the width must be a multiple of it.
        context: longest sequence, in tokens.
        vocabulary_size: rows of the token embedding; 0 in a recipe means the tokenizer's size.
        feed_forward: inner width of the feed-forward layer; 0 means 4 × width.
        dropout: probability, at the embeddings, the attention weights' output and each residual
            branch; 0 turns it off.
    """

    layers: int = 6
    width: int = 256
    heads: int = 4
    context: int = 256
    vocabulary_size: int = 0
    feed_forward: int = 0
    dropout: float = 0.0

    def check(self) -> list[tuple[str, object, str, str]]:
        """Contradictions between settings, as (key, value, expected, mend)."""
        problems: list[tuple[str, object, str, str]] = []
        for key in ("layers", "width", "heads", "context"):
            if getattr(self, key) < 1:
                problems.append((key, getattr(self, key), "a positive number", f"raise {key}"))
        for key in ("vocabulary_size", "feed_forward"):
            if getattr(self, key) < 0:
                problems.append((key, getattr(self, key), "0 or more", f"raise {key}"))
        if self.heads >= 1 and self.width % self.heads:
            problems.append(
                (
                    "heads",
                    self.heads,
                    f"a divisor of width ({self.width})",
                    "choose width and heads so that width / heads is whole",
                )
            )
        if not 0.0 <= self.dropout < 1.0:
            problems.append(("dropout", self.dropout, "0 <= dropout < 1", "lower dropout"))
        return problems

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def inner_width(self) -> int:
        return self.feed_forward or 4 * self.width

    @property
    def parameters(self) -> int:
        """Number of parameters, the tied embedding counted once."""
        width, inner = self.width, self.inner_width
        attention = 4 * width * width + 4 * width
        feed_forward = 2 * width * inner + inner + width
        norms = 4 * width
        embeddings = (self.vocabulary_size + self.context) * width
        return embeddings + self.layers * (attention + feed_forward + norms) + 2 * width

    def training_flops_per_token(self, context: int | None = None) -> float:
        """Operations in matrix products for one trained token, forward and backward.

        6 × the weights used in products (unembedding included, look-ups not) plus attention's
        12 × layers × width × (context / 2): half the square, as the mask is causal
        (Chowdhery et al. 2022, appendix B).
        """
        width, length = self.width, context or self.context
        products = self.layers * (4 * width * width + 2 * width * self.inner_width)
        products += self.vocabulary_size * width
        return 6.0 * products + 12.0 * self.layers * width * length / 2

    def cache_bytes_per_token(self, bytes_per_number: int = 2) -> int:
        """Bytes of key-value cache for one token of one sequence."""
        return 2 * self.layers * self.width * bytes_per_number
