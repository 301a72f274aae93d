"""A finished corpus in object storage: its record, tokenizer and offsets are copied, no tokens.

The copy is a folder like the corpus's own, in which a small file stands for each file of tokens
(`lmsmith.corpus.remote_tokens`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from lmsmith.core.errors import UserError, needs_extra, refusing_damage
from lmsmith.core.files import atomic_write, sha256_file
from lmsmith.core.paths import cache_folder
from lmsmith.core.progress import Progress
from lmsmith.corpus.finished import CORPUS_FILE
from lmsmith.corpus.remote_tokens import RemoteFile, find_file
from lmsmith.corpus.shards import OFFSETS_FILE, TOKENS_FILE

AT_ONCE = 16
"""Files that are copied at a time."""

_FIX = "Check the address, and that the package for it is installed, such as s3fs for s3://."


def fetch_record(url: str) -> Path:
    """The record of a corpus elsewhere, as a file in the user's cache that has its content.

    Raises:
        UserError: it cannot be read.
    """
    place = _cached(url) / CORPUS_FILE
    content = _read(f"{url.rstrip('/')}/{CORPUS_FILE}")
    if not place.is_file() or place.read_bytes() != content:
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(place, content)
    return place


def kept_copy(url: str, progress: Progress) -> Path:
    """`copy_corpus` with the index, in the user's cache."""
    return copy_corpus(url, _cached(url), progress, index=True)


def _cached(url: str) -> Path:
    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    return cache_folder() / "corpora" / name


def copy_corpus(url: str, folder: Path, progress: Progress, *, index: bool = False) -> Path:
    """Copy all of a corpus elsewhere but its tokens; what is there already is not read again.

    Args:
        url: of the folder that ``lmsmith corpus build`` made, such as ``s3://bucket/corpus``.
        folder: gets the copy.
        index: whether ids, names and scores of the documents are copied too.

    Returns:
        ``folder``.

    Raises:
        UserError: there is no finished corpus, or a file is missing or damaged.
    """
    url = url.rstrip("/")
    record_bytes = _read(f"{url}/{CORPUS_FILE}")
    work: list[Callable[[], None]] = []
    with refusing_damage(folder / CORPUS_FILE, "Copy the corpus to the storage again."):
        record: Any = msgspec.json.decode(record_bytes)
        shards, place = f"{url}/{record['shards']}", _below(folder, record["shards"])
        for name, content in record["files"].items():
            work.append(_copying(f"{shards}/{name}", _below(place, name), content))
        for part in record["parts"]:
            for name, content in part["files"].items():
                at, to = f"{shards}/{part['folder']}", _below(place, part["folder"])
                if name == TOKENS_FILE:
                    work.append(_finding(f"{at}/{name}", to))
                elif name == OFFSETS_FILE or index:
                    work.append(_copying(f"{at}/{name}", _below(to, name), content))
    progress.begin(f"reading {url}", len(work), "files")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number, done in enumerate([pool.submit(each) for each in work], start=1):
            done.result()
            progress.update(number)
    progress.end()
    atomic_write(folder / CORPUS_FILE, record_bytes)
    return folder


def _below(folder: Path, name: str) -> Path:
    """A place in a folder, whose name somebody else wrote."""
    place = folder / name
    if not place.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of the corpus")
    return place


def _copying(url: str, path: Path, content: str) -> Callable[[], None]:
    """What copies a file whose checksum is known."""

    def copy() -> None:
        if path.is_file() and sha256_file(path) == content:
            return
        data = _read(url)
        if hashlib.sha256(data).hexdigest() != content:
            fix = "Copy the corpus to the storage again."
            raise UserError(f"{url}: damaged: its checksum is another", fix)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)

    return copy


def _finding(url: str, folder: Path) -> Callable[[], None]:
    """What notes where a part's tokens are."""

    def find() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        found: RemoteFile = find_file(url)
        found.save(folder)

    return find


def _read(url: str) -> bytes:
    with needs_extra("corpus"):
        from fsspec.core import url_to_fs
    try:
        system, path = url_to_fs(url)
        found: bytes = system.cat_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file: no finished corpus is there", _FIX) from error
    except Exception as error:  # each storage's package has errors of its own
        raise UserError(f"{url}: cannot be read ({error})", _FIX) from error
    return found
