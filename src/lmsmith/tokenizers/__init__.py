"""Text to token ids and back."""

from __future__ import annotations

from lmsmith.tokenizers.tokenizer import EncodedChat, StreamDecoder, Tokenizer

__all__ = ["EncodedChat", "StreamDecoder", "Tokenizer"]
