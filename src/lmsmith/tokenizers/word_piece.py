"""WordPiece, as BERT reads text: trained here, and the frame [CLS] … [SEP] … [SEP]."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from lmsmith.core.errors import UserError
from lmsmith.core.text import encodable
from lmsmith.tokenizers.import_tokenizer import import_tokenizer
from lmsmith.tokenizers.tokenizer import Tokenizer

PAD, UNKNOWN, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""BERT's names; tokenizers trained here have them as their first ids, in this order."""

_ROLES = {"pad": PAD, "unk": UNKNOWN, "cls": CLS, "sep": SEP, "mask": MASK}

CONTINUES = "##"
"""Before a token that goes on a word."""

MOST_CHARACTERS = 1000
"""Characters that have tokens of their own: the most frequent ones, a quarter of the vocabulary at
most. Others are ``[UNK]``."""

_TIMES = 10_000


def train_word_piece(
    texts: Iterable[str], vocabulary_size: int, *, lowercase: bool = True
) -> Tokenizer:
    """Learn WordPiece (Schuster and Nakajima 2012; Wu et al. 2016) from `texts`.

    Text is cleaned and cut as BERT does it: control characters go, Chinese characters stand alone,
    words are cut at spaces and punctuation, and with `lowercase` letters lose case and accents.
    What has no token, such as a character that is not in `texts`, is ``[UNK]``.

    Raises:
        UserError: the vocabulary has no room for the control tokens.
    """
    if vocabulary_size <= len(SPECIALS):
        raise UserError(
            f"vocabulary_size = {vocabulary_size}: it has no room beside {', '.join(SPECIALS)}",
            "raise it",
        )
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=CONTINUES)
    words = Counter[str]()
    for text in texts:
        clean = backend.normalizer.normalize_str(encodable(text))
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(clean))
    alphabet = _alphabet(words, min(MOST_CHARACTERS, (vocabulary_size - len(SPECIALS)) // 4))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        # The library numbers characters inside words as a hash table gives them, another way each
        # time, and pairs that are equally frequent by these numbers: so they are numbered here.
        special_tokens=[*SPECIALS, *alphabet],
        limit_alphabet=0,
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    backend.train_from_iterator(_repeated(words), trainer)
    frame = [(name, backend.token_to_id(name)) for name in (CLS, SEP)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B:1 {SEP}:1", special_tokens=frame
    )
    description: dict[str, Any] = json.loads(backend.to_str())
    description["added_tokens"] = description["added_tokens"][: len(SPECIALS)]
    variables = {f"{role}_token": name for role, name in _ROLES.items()}
    return import_tokenizer(
        description, variables={**variables, "eos_token": SEP}, text_start=[CLS]
    )


def _alphabet(words: Mapping[str, int], most: int) -> list[str]:
    """The most frequent characters, as they begin a word and as they go on one, sorted."""
    counts, inside = Counter[str](), set[str]()
    for word, count in words.items():
        for place, character in enumerate(word):
            counts[character] += count
            if place:
                inside.add(character)
    kept = sorted(sorted(counts), key=lambda each: -counts[each])[:most]
    return [*sorted(kept), *(CONTINUES + each for each in sorted(inside & set(kept)))]


def _repeated(words: Mapping[str, int]) -> Iterator[str]:
    """Each word as often as it occurs, many in a text."""
    for word in sorted(words):
        for start in range(0, words[word], _TIMES):
            yield f"{word} " * min(_TIMES, words[word] - start)


@dataclass(frozen=True)
class Frame:
    """The ids of BERT's control tokens in a tokenizer.

    Attributes:
        cls: before every sequence.
        sep: after every sentence.
        mask: in the place of a hidden token.
        pad: after a short sequence.
    """

    cls: int
    sep: int
    mask: int
    pad: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Frame:
        """Raises UserError if the tokenizer has not all of them."""
        ids = {name: token for token, name in tokenizer.control_tokens.items()}
        named = tokenizer.format.variables
        names = {role: named.get(f"{role}_token", name) for role, name in _ROLES.items()}
        missing = [names[role] for role in ("cls", "sep", "mask", "pad") if names[role] not in ids]
        if missing:
            raise UserError(
                f"the tokenizer has no {', '.join(missing)}, which encoders need",
                'use one of BERT\'s kind: in a recipe, tokenizer.kind = "word_piece"',
            )
        return cls(*(ids[names[role]] for role in ("cls", "sep", "mask", "pad")))

    def sequence(
        self, first: Sequence[int], second: Sequence[int] | None, most: int
    ) -> tuple[list[int], list[int]]:
        """One sentence or two as tokens, and the segment of each token.

        What is longer than ``most`` loses tokens at the end, of the longer sentence each time.
        """
        first = list(first)
        if second is None:
            tokens = [self.cls, *first[: most - 2], self.sep]
            return tokens, [0] * len(tokens)
        keep_first, keep_second = fitting(len(first), len(second), most - 3)
        head = [self.cls, *first[:keep_first], self.sep]
        tail = [*second[:keep_second], self.sep]
        return head + tail, [0] * len(head) + [1] * len(tail)


def fitting(first: int, second: int, most: int) -> tuple[int, int]:
    """The tokens that two sentences keep: one at a time goes, of the longer, until they fit.

    Of two equally long ones the second loses a token first, as in transformers.
    """
    if first + second <= most:
        return first, second
    shorter = min(first, second)
    if 2 * shorter > most:
        return most - most // 2, most // 2
    return (shorter, most - shorter) if first == shorter else (most - shorter, shorter)


def continues_word(tokenizer: Tokenizer) -> list[bool]:
    """For each id, whether it goes on the word before it (``##ing``)."""
    model = tokenizer.description["model"]
    prefix = model.get("continuing_subword_prefix") or CONTINUES
    found = [False] * tokenizer.vocabulary_size
    for name, token in (model.get("vocab") or {}).items():
        found[token] = token not in tokenizer.control_tokens and name.startswith(prefix)
    return found
