"""Chinese: fewer tokens than characters, and every text comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from lmsmith.stages.tokenizer import compression
from lmsmith.tokenizers import Tokenizer


def test_a_tokenizer_for_chinese_needs_less_than_a_token_a_character(
    public_data: Callable[[str], Path],
) -> None:
    def poems(name: str) -> list[str]:
        rows = json.loads(public_data(f"chinese/{name}").read_text(encoding="utf-8"))
        return ["\n".join(row["paragraphs"]) for row in rows if row["paragraphs"]]

    training = poems("poet.tang.0.json") + poems("poet.tang.1000.json") + poems("lunyu.json")
    held_out = poems("poet.tang.2000.json")
    tokenizer = Tokenizer.train(training, 8192)
    for text in held_out:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    figures = compression(tokenizer, held_out)
    assert figures["tokens_per_character"] < 1
    assert figures["bytes_per_token"] > 3
