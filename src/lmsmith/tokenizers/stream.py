"""Token ids in, text out as soon as it is whole: never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from lmsmith.tokenizers.tokenizer import Tokenizer


class StreamDecoder:
    """Decode a stream of ids.

    Joined, what `push` and `flush` return is ``tokenizer.decode(ids, after=after)``.

    A byte-level token may end in the middle of a UTF-8 character (Chinese, emoji); its first
    bytes are held back until the rest has come.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start, self._held = tokenizer.spaces_after(after)

    def push(self, token: int) -> str:
        """The text that is complete now that `token` has come; often empty for multi-byte text."""
        return self._trimmed(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def flush(self) -> str:
        """End the stream: U+FFFD if it stopped inside a character. The decoder can be reused."""
        rest = self._trimmed(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        self._at_start, self._held = self._tokenizer.spaces_after(())
        return rest

    def _trimmed(self, text: str) -> str:
        """Without the space that the tokenizer itself put at the start, or at the end."""
        if self._at_start and text:
            self._at_start = False
            text = text.removeprefix(" ")
        if self._tokenizer.drops_last_space and text:
            text, self._held = self._held + text, ""
            if text.endswith(" "):
                text, self._held = text[:-1], " "
        return text
