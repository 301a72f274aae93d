"""The contents of a ``tokenizer.json`` from outside, checked before anything is made of them.

The library that reads them (``tokenizers``) ends the thread on some files, and ids decide how long
our own tables are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from lmsmith.core.errors import UserError
from lmsmith.core.json_text import decode_json
from lmsmith.tokenizers.text_growth import text_growth

MOST_BYTES = 1 << 27
"""Most bytes of a tokenizer.json; the largest published ones have a quarter of it."""

MOST_SMALL_BYTES = 1 << 24
"""Most bytes of each file beside it."""

MOST_UNUSED = 1 << 16
"""Ids without a token that a vocabulary may have, besides as many as it has tokens."""

MOST_CHARACTERS = 1024
"""Longest token of SentencePiece, which makes 16 by default, and longest added one."""

MOST_MERGES = 16
"""For each token; published vocabularies have up to three."""

_TIMES, _FREE = 10, 100 << 20
"""Bytes that a tokenizer may take: so many times its file's size, and so many more."""

_TOKEN, _SCORED, _ADDED, _CHARACTER, _MERGE, _PAIR = 460, 880, 1700, 110, 275, 345
"""Bytes that each takes while a tokenizer is made: a token, one with a score, an added one and each
of its characters, and a merge, written as one text or as two."""

_FIX = "fetch the model's files again"

_Id = Annotated[int, msgspec.Meta(ge=0)]


class _AddedToken(msgspec.Struct):
    id: _Id
    content: str
    special: bool = False
    normalized: bool = True


class _Description(msgspec.Struct):
    added_tokens: list[_AddedToken] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


class _Model(msgspec.Struct):
    vocab: dict[str, _Id] | list[tuple[str, float]] | None = None
    merges: list[str | list[str]] | None = None
    unk_token: str | None = None
    unk_id: _Id | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    max_input_chars_per_word: Annotated[int, msgspec.Meta(ge=0, le=256)] = 100


def check_description(description: object, size: int = 0) -> dict[str, Any]:
    """The contents as they are; equal texts in merges become one object.

    Args:
        size: of the file in bytes, if it is known; else a lower limit of it is taken.

    Raises:
        UserError: a value is of the wrong kind; an id is larger than a vocabulary of so many
            tokens has; a merge is of what is no token; a text would grow without limit, or the
            tokenizer take far more memory than its file.
    """
    table = description if isinstance(description, dict) else {}
    parts = table.get("model")
    if not isinstance(parts, dict):
        raise UserError("not a tokenizer: it has no model", _FIX)
    vocabulary, merges = parts.get("vocab") or {}, parts.get("merges") or []
    _check_memory(vocabulary, merges, [], 1.0, size)  # before anything is copied
    try:
        found = msgspec.convert({**table, "model": None}, _Description)
        growth = text_growth(found.normalizer, found.pre_tokenizer)
        added = found.added_tokens or []
        _check_memory(vocabulary, merges, added, growth, size)
        model = msgspec.convert(parts, _Model)
    except msgspec.ValidationError as error:
        raise UserError(f"not a tokenizer: {error}", _FIX) from error
    if isinstance(vocabulary, list):
        vocabulary = {piece: token for token, (piece, _) in enumerate(vocabulary)}
        _refuse_long(vocabulary)
    _refuse_long(token.content for token in added)
    _check_ids(vocabulary, added)
    _check_merges(model, vocabulary, merges)
    return table


def _refuse_long(tokens: Iterable[str]) -> None:
    """Refuse tokens so long that each place of a text would be compared with all of one."""
    if (longest := max(map(len, tokens), default=0)) > MOST_CHARACTERS:
        raise UserError(f"the tokenizer has a token of {longest:,} characters", _FIX)


def _check_ids(vocabulary: Mapping[str, int], added: list[_AddedToken]) -> None:
    ids = [*vocabulary.values(), *(token.id for token in added)]
    most = 2 * len(ids) + MOST_UNUSED
    if ids and (largest := max(ids)) >= most:
        raise UserError(
            f"the tokenizer has a token of the id {largest:,}, and {len(ids):,} tokens in all", _FIX
        )


def _check_memory(
    vocabulary: object, merges: object, added: list[_AddedToken], growth: float, size: int
) -> None:
    """Refuse numbers of tokens and merges that would take far more memory than their file."""
    pairs: list[object] = merges if isinstance(merges, list) else []
    tokens = len(vocabulary) if isinstance(vocabulary, dict | list) else 0
    if len(pairs) > MOST_MERGES * (tokens + 1):
        raise UserError(f"the tokenizer has {len(pairs):,} merges of {tokens:,} tokens", _FIX)
    states = sum(len(each.content) * (growth if each.normalized else 1.0) for each in added)
    needed = round(_CHARACTER * states) + _ADDED * len(added)
    needed += (_SCORED if isinstance(vocabulary, list) else _TOKEN) * tokens
    needed += sum(_MERGE if isinstance(merge, str) else _PAIR for merge in pairs)
    if needed <= _FREE + _TIMES * size:
        return
    written = 10 * tokens + 12 * len(pairs) + 100 * len(added)
    if needed > _FREE + _TIMES * max(size, written):
        raise UserError(
            f"the tokenizer's {tokens:,} tokens, {len(pairs):,} merges and "
            f"{len(added):,} added tokens would take {needed >> 20:,} MiB, far more than its file",
            _FIX,
        )


def most_merges(tokens: int, size: int) -> int:
    """Merges that a vocabulary of so many tokens may have, in a file of so many bytes."""
    return max(0, _FREE + _TIMES * max(size, 10 * tokens) - _TOKEN * tokens) // _PAIR


def _check_merges(model: _Model, vocabulary: Mapping[str, int], merges: list[Any]) -> None:
    """Refuse merges of what is no token: the library ends the thread on some of these."""
    prefix = model.continuing_subword_prefix or ""
    names = {name: name for name in vocabulary} if merges else {}
    for number, merge in enumerate(merges, start=1):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2:
            raise UserError(f"merge {number} of the tokenizer is not of two tokens", _FIX)
        left, right = pair
        parts = (left, right, left + right.removeprefix(prefix))
        wrong = next((part for part in parts if part not in names), None)
        if wrong is not None or not right.startswith(prefix):
            problem = f"merge {number} of the tokenizer needs the token {wrong or right!r}"
            raise UserError(problem, _FIX)
        if isinstance(merge, list):
            merge[:] = names[left], names[right]


def read_description(text: str | bytes, size: int = 0) -> dict[str, Any]:
    """`check_description` of JSON.

    Raises:
        UserError: also if it is not JSON.
    """
    content = text.encode() if isinstance(text, str) else text
    try:
        return check_description(decode_json(content), size)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise UserError(f"the tokenizer is not valid JSON ({error})", _FIX) from error
