"""The last step: a tokenizer, the held-out documents, and token shards with their index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import msgspec

from lmsmith.core.files import atomic_folder, sha256_file
from lmsmith.corpus.build.chunks import write_table
from lmsmith.corpus.build.document import Document, Yielded, point, text_hash
from lmsmith.corpus.build.engine import Data, Engine, key_of
from lmsmith.corpus.build.groups import groups
from lmsmith.corpus.build.recipe import ShardsConfig
from lmsmith.corpus.shards import OFFSETS_FILE, TOKENS_FILE, write_tokens
from lmsmith.runs.signals import stop_if_requested
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.word_piece import train_word_piece

INDEX_FILE = "documents.parquet"
"""Beside the tokens: id, name, language, scores, bytes and hash of each document, in order."""

LEAST_HELD_OUT, MOST_HELD_OUT = 8, 0.1
"""Documents that a small corpus holds out, as far as that is no larger share."""

_HELD_OUT = "validation"
"""Name of the draw of the documents that are held out."""

LoadTokenizer = Callable[[str], Tokenizer]
"""Reads the tokenizer that a recipe names."""


class IndexRow(msgspec.Struct, frozen=True):
    """A document's row of the index; ``hash`` is of its text."""

    id: str
    name: str
    language: str
    scores: dict[str, float]
    size: int
    hash: str


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer on disk, for the workers."""

    path: Path
    key: str


def held_out_share(config: ShardsConfig, documents: int) -> float:
    """The share of the documents that is held out."""
    if config.validation == 0 or config.max_validation == 0 or documents == 0:
        return 0.0
    least = min(MOST_HELD_OUT, LEAST_HELD_OUT / documents)
    return min(max(config.validation, least), config.max_validation / documents)


def without_held_out(
    documents: Iterable[Document], _broadcast: Any, *, seed: int, shares: Mapping[str, float]
) -> Iterator[Document]:
    """The documents that are for training, by the share of their source that is held out."""
    for each in documents:
        if point(seed, _HELD_OUT, each.id) >= shares[each.source]:
            yield each


def hold_out(
    engine: Engine, data: Data, seed: int, share: float
) -> tuple[Data, list[dict[str, str]]]:
    """The documents for training, and the rows of those that are held out.

    Of a source whose documents are all drawn, the one that was drawn last is for training.

    Args:
        data: a checkpoint.
    """
    if share == 0:
        return data, []
    found = engine.sample(data, seed, _HELD_OUT, share)
    drawn: dict[str, list[float]] = {}
    for each in found:
        drawn.setdefault(each.source, []).append(point(seed, _HELD_OUT, each.id))
    shares = {
        source: share if len(points := drawn.get(source, [])) < documents else max(points)
        for source, (documents, _) in engine.sizes(data).items()
    }
    rows = [
        {"text": each.text, "id": each.id, "source": each.source}
        for each in found
        if point(seed, _HELD_OUT, each.id) < shares[each.source]
    ]
    kept: Callable[..., Iterator[Yielded]] = partial(without_held_out, seed=seed, shares=shares)
    return engine.map(data, "validation", kept), rows


def make_tokenizer(
    engine: Engine,
    data: Data,
    config: ShardsConfig,
    seed: int,
    total_bytes: int,
    folder: Path,
    load: LoadTokenizer,
    named: object,
) -> TokenizerFolder:
    """Train the tokenizer, or load the one that is named, into ``folder``/KEY.

    Args:
        named: identity of the tokenizer that is loaded.
    """
    share = min(1.0, (config.tokenizer_mib << 20) / max(1, total_bytes))
    if config.tokenizer:
        key = key_of("tokenizer", named)
    else:
        trained = config.vocabulary_size, config.kind, config.lowercase
        key = key_of("tokenizer", data.key, trained, share, seed)
    place = folder / key
    if not place.is_dir():
        if config.tokenizer:
            tokenizer = load(config.tokenizer)
        else:
            found = engine.sample(data, seed, "tokenizer", share)
            tokenizer = _trained([each.text for each in found], config)
        with atomic_folder(place) as partial_folder:
            tokenizer.save(partial_folder)
    return TokenizerFolder(place, key)


def _trained(texts: Sequence[str], config: ShardsConfig) -> Tokenizer:
    if config.kind == "word_piece":
        return train_word_piece(texts, config.vocabulary_size, lowercase=config.lowercase)
    return Tokenizer.train(texts, config.vocabulary_size)


def parts_of(sizes: Mapping[str, int], part_mib: int) -> dict[str, int]:
    """How many parts each source has, by the bytes of its text."""
    return {name: max(1, -(-size // (part_mib << 20))) for name, size in sorted(sizes.items())}


@lru_cache(maxsize=2)
def _loaded(path: Path) -> Tokenizer:
    return Tokenizer.load(path)


def write_part(
    documents: Sequence[Document], folder: Path, given: TokenizerFolder
) -> dict[str, Any]:
    """Tokens, offsets and index of one part; returns their checksums and sizes."""
    tokenizer = _loaded(given.path)
    offsets = write_tokens(
        folder,
        _encoded(tokenizer, documents),
        tokenizer.end_of_text,
        tokenizer.vocabulary_size,
        tokenizer.document_start,
    )
    rows = [_row(each) for each in documents]
    write_table(folder / INDEX_FILE, rows, IndexRow.__struct_fields__)
    names = (TOKENS_FILE, OFFSETS_FILE, INDEX_FILE)
    return {
        "documents": len(documents),
        "bytes": sum(row.size for row in rows),
        "tokens": int(offsets[-1]),
        "files": {name: sha256_file(folder / name) for name in names},
    }


def _row(each: Document) -> IndexRow:
    return IndexRow(each.id, each.name, each.language, each.scores, each.size, text_hash(each.text))


def _encoded(tokenizer: Tokenizer, documents: Sequence[Document]) -> Iterator[list[int]]:
    for group in groups(documents):
        stop_if_requested()
        yield from tokenizer.encode_batch([each.text for each in group])
