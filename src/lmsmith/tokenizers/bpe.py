"""Byte-level BPE: any text comes back unchanged, and no text makes a control token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_write, read_json, write_json
from lmsmith.tokenizers.special import (
    ROLE_TOKENS,
    SPECIAL_TOKENS,
    TEMPLATE_NAME,
    chat_description,
)

TOKENIZER_FILE = "tokenizer.json"
CHAT_FILE = "chat.json"

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
"""One token for each byte, so that no text is out of reach, and the control tokens."""

LARGEST_VOCABULARY = 1 << 20

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

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

_REMAKE = "train it again with `lmsmith run RECIPE --only tokenizer`, or name another folder"


class Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019, section 2.2).

    Text is first cut by `PATTERN`: GPT-2's, changed in three ways that newer tokenizers share.
    A word keeps its contraction (``don't`` may be one token) and its combining marks (GPT-2 cuts
    Hindi and Thai inside syllables), a run of line ends is one piece (GPT-2 cuts the last one
    off, so the blank line between two turns cost two tokens), and digits come in threes. On the
    demo's conversations that is about 5 % fewer tokens than by GPT-2's own.
    It serves Chinese: Han characters are letters and full-width punctuation is not, so a clause
    is one piece in which BPE finds words by their counts.

    There is no normaliser and no prefix space, so ``decode(encode(text)) == text`` for every
    string that UTF-8 can hold. A lone surrogate (half of an escaped pair in broken JSON) is no
    character and becomes U+FFFD.

    The ids of the control tokens are the lowest five; the 256 bytes follow, then merges.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # Not part of tokenizer.json: without it the text "<|end|>" would become the token.
        backend.encode_special_tokens = True
        self._backend = backend
        self._bytes = _bytes_by_id(backend)
        self.end_of_text, self.system, self.user, self.assistant, self.end_of_turn = range(
            len(SPECIAL_TOKENS)
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
        """Learn merges from `texts`. The same texts give the same tokenizer, byte for byte.

        The result has at most `vocabulary_size` tokens: fewer when the texts have no more pairs
        that occur twice, so callers read `vocabulary_size` from the result.

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
        return cls(backend)

    @classmethod
    def load(cls, folder_or_file: Path | str) -> Tokenizer:
        """Read a folder that `save` wrote, a model folder, or the ``tokenizer.json`` in one.

        Raises:
            UserError: the file is missing, is damaged, or is another program's tokenizer.
        """
        path = Path(folder_or_file)
        if path.is_dir():
            _check_chat_file(path / CHAT_FILE)
            path = path / TOKENIZER_FILE
        description = read_json(path)
        _check_is_ours(description, path)
        try:
            backend = tokenizers.Tokenizer.from_str(json.dumps(description))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a readable tokenizer ({error})", _REMAKE) from error
        return cls(backend)

    def save(self, folder: Path | str) -> None:
        """Write ``tokenizer.json`` and ``chat.json`` into `folder`, made if it is missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / TOKENIZER_FILE, self._backend.to_str(pretty=True))
        write_json(folder / CHAT_FILE, chat_description())

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, control tokens included; ids are ``range(vocabulary_size)``."""
        return len(self._bytes)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; never a control token, whatever the text spells."""
        ids: list[int] = self._backend.encode(encodable(text), add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``[encode(text) for text in texts]``, on all cores."""
        encodings = self._backend.encode_batch_fast(
            [encodable(text) for text in texts], add_special_tokens=False
        )
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of `ids`. Bytes that are not UTF-8 become U+FFFD.

        Control tokens are left out, or written as they are named if `special`.
        """
        pieces = (
            SPECIAL_TOKENS[token].encode()
            if special and 0 <= token < len(SPECIAL_TOKENS)
            else self.token_bytes(token)
            for token in ids
        )
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that `token` adds to a text: empty for a control token.

        Raises:
            ValueError: there is no such id.
        """
        if not 0 <= token < len(self._bytes):
            raise ValueError(f"token id {token} is not in 0..{len(self._bytes) - 1}")
        return self._bytes[token]

    def role_token(self, role: str) -> int:
        """Id of the token that opens a message of `role` (system, user or assistant)."""
        return SPECIAL_TOKENS.index(ROLE_TOKENS[role])


def encodable(text: str) -> str:
    """`text` with each lone surrogate, which UTF-8 cannot hold, replaced by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return _LONE_SURROGATE.sub("\ufffd", text)
    return text


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins: the inverse of the character that writes each byte.

    Bytes that print keep their character; the others are numbered from U+0100 in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(0x100 + number): byte for number, byte in enumerate(others)}


def _bytes_by_id(backend: tokenizers.Tokenizer) -> list[bytes]:
    byte_of_character = _byte_of_character()
    table: list[bytes] = [b""] * backend.get_vocab_size()
    for written, token in backend.get_vocab(with_added_tokens=True).items():
        if token >= len(SPECIAL_TOKENS):
            table[token] = bytes(byte_of_character[character] for character in written)
    return table


def _check_chat_file(path: Path) -> None:
    chat = read_json(path)
    if not isinstance(chat, dict) or chat != chat_description():
        name = chat.get("template") if isinstance(chat, dict) else None
        raise UserError(
            f"{path}: expected the chat template {TEMPLATE_NAME!r} as lmsmith writes it, "
            f"found {name!r}" + (" with other contents" if name == TEMPLATE_NAME else ""),
            _REMAKE,
        )


def _check_is_ours(description: object, path: Path) -> None:
    """Refuse a tokenizer whose ids or bytes would not mean what this class says they mean."""

    def refuse(what: str) -> UserError:
        return UserError(f"{path}: not a tokenizer of lmsmith: {what}", _REMAKE)

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
    if sorted(id_ for id_ in vocabulary.values() if isinstance(id_, int)) != list(
        range(len(vocabulary))
    ):
        raise refuse("its ids are not 0 to the size of its vocabulary")
    byte_of_character = _byte_of_character()
    written = set(vocabulary) - set(SPECIAL_TOKENS)
    if not byte_of_character.keys() <= written or any(
        character not in byte_of_character for token in written for character in token
    ):
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
