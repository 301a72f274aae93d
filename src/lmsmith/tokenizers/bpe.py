"""lmsmith's own byte-level BPE: any text comes back unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from lmsmith.core.errors import UserError
from lmsmith.core.text import encodable
from lmsmith.tokenizers.chat_format import REMAKE, SPECIAL_TOKENS
from lmsmith.tokenizers.token_bytes import byte_of_character

TOKENIZER_FILE = "tokenizer.json"

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
"""One token for each byte, so that no text is out of reach, and the control tokens."""

LARGEST_VOCABULARY = 1 << 20

PATTERN = "|".join(
    [
        r" ?\p{L}[\p{L}\p{M}]*(?:['’]\p{L}[\p{L}\p{M}]*)*",  # a word, with what it contracts
        r" ?\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+",  # punctuation, emoji
        r"\s*[\r\n]+",
        r"\s+(?!\S)|\s+",
    ]
)
"""Where text is cut before merging; merges never cross a cut."""


def train_description(texts: Iterable[str], vocabulary_size: int) -> dict[str, Any]:
    """Learn byte-level BPE (Sennrich et al. 2016; Radford et al. 2019, section 2.2).

    Text is first cut by `PATTERN`: GPT-2's, changed in three ways that newer tokenizers share.
    A word keeps its contraction (``don't`` may be one token) and its combining marks (GPT-2 cuts
    Hindi and Thai inside syllables), a run of line ends is one piece (GPT-2 cuts the last one
    off, so the blank line between two turns cost two tokens), and digits come in threes. On the
    demo's conversations that is about 5 % fewer tokens than by GPT-2's own.
    In Chinese a clause is one piece, in which BPE finds words by their counts.

    There is no normaliser and no prefix space, so ``decode(encode(text)) == text`` for every
    string that UTF-8 can hold; a lone surrogate becomes U+FFFD.

    Returns:
        Contents of a ``tokenizer.json``. The lowest ids are the control tokens; the 256 bytes
        follow, then merges.

    Raises:
        UserError: `vocabulary_size` has no room for bytes and control tokens, or is absurd.
    """
    if not SMALLEST_VOCABULARY <= vocabulary_size <= LARGEST_VOCABULARY:
        raise UserError(
            f"vocabulary_size = {vocabulary_size}: must be between {SMALLEST_VOCABULARY} "
            f"(256 bytes and {len(SPECIAL_TOKENS)} control tokens) and {LARGEST_VOCABULARY}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((encodable(text) for text in texts), trainer)
    description: dict[str, Any] = json.loads(backend.to_str())
    return description


def check_is_ours(description: object, path: Path) -> None:
    """Refuse a tokenizer of another kind: other control tokens, ids or bytes."""

    def refuse(what: str) -> UserError:
        return UserError(f"{path}: not a tokenizer of lmsmith: {what}", REMAKE)

    if not isinstance(description, dict):
        raise refuse("expected an object at the top")
    model = description.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise refuse("its model is not BPE")
    specials = description.get("added_tokens")
    names = [
        (token.get("id"), token.get("content")) if isinstance(token, dict) else None
        for token in (specials if isinstance(specials, list) else [])
    ]
    if names != list(enumerate(SPECIAL_TOKENS)):
        raise refuse(f"its control tokens are not {', '.join(SPECIAL_TOKENS)} with ids from 0")
    if description.get("normalizer") is not None or not _only_cuts(description):
        raise refuse("it is not byte-level without prefix space or normaliser")
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or len(vocabulary) < SMALLEST_VOCABULARY:
        raise refuse("its vocabulary does not hold the 256 bytes")
    ids = sorted(token for token in vocabulary.values() if isinstance(token, int))
    if ids != list(range(len(vocabulary))):
        raise refuse("its ids are not 0 to the size of its vocabulary")
    written = set(vocabulary) - set(SPECIAL_TOKENS)
    if set("".join(written)) - byte_of_character().keys() or byte_of_character().keys() - written:
        raise refuse("its tokens are not written in byte-level characters")


def _only_cuts(description: dict[str, object]) -> bool:
    """Whether the pre-tokenizer cuts text and writes its bytes, and adds or drops nothing."""
    step = description.get("pre_tokenizer")
    steps = step.get("pretokenizers") if isinstance(step, dict) else None
    steps = steps if isinstance(steps, list) else [step]
    if not all(isinstance(step, dict) for step in steps):
        return False
    *cuts, last = steps
    return (
        last.get("type") == "ByteLevel"
        and last.get("add_prefix_space") is False
        and all(cut.get("type") == "Split" and cut.get("behavior") == "Isolated" for cut in cuts)
    )
