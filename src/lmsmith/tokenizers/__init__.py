"""Text to token ids and back."""

from __future__ import annotations

from lmsmith.tokenizers.stream import StreamDecoder
from lmsmith.tokenizers.tokenizer import EncodedChat, Tokenizer

__all__ = ["EncodedChat", "StreamDecoder", "Tokenizer"]
