"""Text to token ids and back."""

from __future__ import annotations

from lmsmith.tokenizers.bpe import Tokenizer
from lmsmith.tokenizers.stream import StreamDecoder

__all__ = ["StreamDecoder", "Tokenizer"]
