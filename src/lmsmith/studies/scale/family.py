"""The models of the study: one shape in several sizes, named by layers and width (``4x128``)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmsmith.core.errors import UserError
from lmsmith.models.config import ModelConfig
from lmsmith.studies.scale.documents import CONTEXT

DEFAULT_SIZES = "1x32,2x32,2x64,3x96,4x128"
HEAD_WIDTH = 32
MOST_LAYERS, MOST_WIDTH = 48, 2048


@dataclass(frozen=True)
class Size:
    """Blocks and the width of the residual stream."""

    layers: int
    width: int

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.width}"

    def config(self, vocabulary_size: int) -> ModelConfig:
        """Rotary positions, RMSNorm, GELU, no biases; heads of 32."""
        return ModelConfig(
            self.layers,
            self.width,
            self.width // HEAD_WIDTH,
            CONTEXT,
            vocabulary_size,
            norm="rms",
            positions="rotary",
            qkv_bias=False,
            attention_output_bias=False,
            ffn_bias=False,
        )


def read_sizes(text: str, vocabulary_size: int) -> tuple[Size, ...]:
    """Sizes of ``2x32,4x128``, the fewest parameters first.

    Raises:
        UserError: one is not of that form or out of range, two are the same, or there is but one.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    sizes = [_read_size(word) for word in words]
    twice = next((size for size in sizes if sizes.count(size) > 1), None)
    if twice:
        raise UserError(f"--sizes: {twice.name} is named twice", "name each size once")
    if len(sizes) < 2:
        raise UserError(
            f"--sizes {text}: a study of scale has two sizes or more", f"e.g. {DEFAULT_SIZES}"
        )
    return tuple(sorted(sizes, key=lambda size: size.config(vocabulary_size).parameters))


def _read_size(word: str) -> Size:
    found = re.fullmatch(r"(\d+)[x×](\d+)", word)
    if not found:
        raise UserError(f"--sizes {word}: not layers x width", f"e.g. --sizes {DEFAULT_SIZES}")
    size = Size(int(found[1]), int(found[2]))
    if not 1 <= size.layers <= MOST_LAYERS:
        raise UserError(f"--sizes {word}: {size.layers} layers", f"1 to {MOST_LAYERS}")
    if size.width % HEAD_WIDTH or not HEAD_WIDTH <= size.width <= MOST_WIDTH:
        raise UserError(
            f"--sizes {word}: the width must be a multiple of {HEAD_WIDTH}, the heads' width, "
            f"at most {MOST_WIDTH}",
            f"e.g. {size.layers}x{max(1, round(size.width / HEAD_WIDTH)) * HEAD_WIDTH}",
        )
    return size
