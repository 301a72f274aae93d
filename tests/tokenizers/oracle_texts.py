"""Real text in two scripts, emoji and random bytes, for comparing tokenizers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path


def oracle_texts(find: Callable[[str], Path]) -> dict[str, str]:
    """Texts by name; ``find`` gives the place of a file of the public data."""
    poems = json.loads(find("chinese/poet.tang.0.json").read_text(encoding="utf-8"))
    chance = random.Random(0)
    noise = bytes(chance.randrange(256) for _ in range(20_000))
    return {
        "WikiText-2": find("lm/wikitext2.test.txt").read_text(encoding="utf-8")[:200_000],
        "Shakespeare": find("lm/tinyshakespeare.txt").read_text(encoding="utf-8")[:100_000],
        "Tang poems": "\n".join("".join(poem["paragraphs"]) for poem in poems)[:50_000],
        "emoji": "😀👩‍👩‍👧 ❤️hello 1234 x12y  \n\n\t don't I'LL \u00a0\u3000 नमस्ते สวัสดี" * 20,
        "random bytes": noise.decode(errors="replace"),
    }
