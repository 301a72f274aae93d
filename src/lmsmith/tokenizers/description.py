"""The contents of a ``tokenizer.json`` from outside, checked before anything is made of them.

The library that reads them (``tokenizers``) ends the thread on some files, and ids decide how long
our own tables are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec

from lmsmith.core.errors import UserError

MOST_BYTES = 1 << 27
"""Of a tokenizer.json; the largest published ones have a quarter of it."""

MOST_SMALL_BYTES = 1 << 24
"""Of the files beside it."""

MOST_UNUSED = 1 << 16
"""Ids without a token that a vocabulary may have, besides as many as it has tokens."""

_MOST_GROWTH = 256
"""Most characters that the replacements of a normaliser may make of one."""

MOST_MERGES = 16
"""For each token; published vocabularies have up to three."""

_FIX = "fetch the model's files again"

_Id = Annotated[int, msgspec.Meta(ge=0)]


class _AddedToken(msgspec.Struct):
    id: _Id
    content: str
    special: bool = False


class _Description(msgspec.Struct):
    model: dict[str, Any]
    added_tokens: list[_AddedToken] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


class _Model(msgspec.Struct):
    vocab: dict[str, _Id] | list[tuple[str, float]] | None = None
    merges: list[str | tuple[str, str]] | None = None
    unk_token: str | None = None
    unk_id: _Id | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    max_input_chars_per_word: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 100


def check_description(description: object) -> dict[str, Any]:
    """The contents as they are.

    Raises:
        UserError: a value is of the wrong kind; an id is larger than a vocabulary of so many
            tokens has; a merge is of what is no token; or a text would grow without limit.
    """
    try:
        found = msgspec.convert(description, _Description)
        model = msgspec.convert(found.model, _Model)
    except msgspec.ValidationError as error:
        raise UserError(f"not a tokenizer: {error}", _FIX) from error
    vocabulary = model.vocab or {}
    added = found.added_tokens or []
    if isinstance(vocabulary, list):
        vocabulary = {piece: token for token, (piece, _) in enumerate(vocabulary)}
    _check_ids(vocabulary, added)
    _check_merges(model, vocabulary)
    growth = 1.0
    for step in _steps(found.normalizer, "normalizers"):
        growth *= _growth(step)
        if growth > _MOST_GROWTH:
            raise UserError("the tokenizer's normaliser makes texts too long", _FIX)
    assert isinstance(description, dict)
    return description


def _check_ids(vocabulary: Mapping[str, int], added: list[_AddedToken]) -> None:
    ids = [*vocabulary.values(), *(token.id for token in added)]
    most = 2 * len(ids) + MOST_UNUSED
    if ids and (largest := max(ids)) >= most:
        raise UserError(
            f"the tokenizer has a token of the id {largest:,}, and {len(ids):,} tokens in all", _FIX
        )


def _check_merges(model: _Model, vocabulary: Mapping[str, int]) -> None:
    """Refuse merges of what is no token: the library ends the thread on some of these."""
    prefix = model.continuing_subword_prefix or ""
    merges = model.merges or []
    if len(merges) > MOST_MERGES * (len(vocabulary) + 1):
        raise UserError(f"the tokenizer has {len(merges):,} merges of {len(vocabulary):,}", _FIX)
    for number, merge in enumerate(merges, start=1):
        left, _, right = (
            merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
        )
        parts = (left, right, left + right.removeprefix(prefix))
        wrong = next((part for part in parts if part not in vocabulary), None)
        if wrong is not None or not right.startswith(prefix):
            problem = f"merge {number} of the tokenizer needs the token {wrong or right!r}"
            raise UserError(problem, _FIX)


def _steps(step: object, inner: str) -> Iterator[Mapping[str, Any]]:
    """A step, and those within it."""
    if isinstance(step, Mapping):
        yield step
        below = step.get(inner)
        for each in below if isinstance(below, list) else []:
            yield from _steps(each, inner)


def _growth(step: Mapping[str, Any]) -> float:
    """How many characters a replacement makes of one, at most."""
    pattern, content = step.get("pattern"), step.get("content")
    if step.get("type") != "Replace" or not isinstance(content, str):
        return 1.0
    text = pattern.get("String") if isinstance(pattern, Mapping) else pattern
    return max(1.0, len(content) / (len(text) if isinstance(text, str) and text else 1))


def read_description(text: str | bytes) -> dict[str, Any]:
    """`check_description` of JSON.

    Raises:
        UserError: also if it is not JSON.
    """
    try:
        return check_description(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the tokenizer is not valid JSON ({error})", _FIX) from error
