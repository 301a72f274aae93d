"""Shards give back the documents they were made of, and are never half written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lmsmith.core.errors import UserError
from lmsmith.corpus.batches import PretrainingBatches
from lmsmith.corpus.shards import TokenShards, write_shards

END = 0
DOCUMENTS = [[5, 6, 7], [], [300]]


@pytest.mark.parametrize(("vocabulary_size", "kind"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_documents_come_back_framed(vocabulary_size: int, kind: type, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", iter(DOCUMENTS), END, vocabulary_size)
    assert isinstance(shards.tokens, np.memmap)
    assert shards.tokens.dtype == kind
    assert len(shards) == 3
    assert shards.total_tokens == 4 + 6
    read = [document.tolist() for document in np.split(shards.tokens, shards.offsets[1:-1])]
    assert read == [[END, *document, END] for document in DOCUMENTS]


def test_no_documents(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", [], END, 300)
    assert (len(shards), shards.total_tokens) == (0, 0)


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", DOCUMENTS, END, 300)

    def failing() -> Iterator[list[int]]:
        yield [1, 2]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_shards(tmp_path / "shards", failing(), END, 300)
    assert TokenShards.load(tmp_path / "shards").tokens[:5].tolist() == [END, 5, 6, 7, END]
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "other", "objects"])
def test_damaged_shards_are_refused(name: str, damage: str, tmp_path: Path) -> None:
    write_shards(tmp_path, [[1] * 1000] * 100, END, 300)
    path = tmp_path / name
    match damage:
        case "missing":
            path.unlink()
        case "cut off":
            path.write_bytes(path.read_bytes()[:-200])
        case "other":
            np.save(path, np.zeros((2, 2)))
        case "objects":
            np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="token shards"):
        TokenShards.load(tmp_path)


@pytest.mark.parametrize("change", ["cut off", "written to", "removed", "replaced"])
def test_shards_that_are_written_to_meanwhile_are_refused(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is removed or replaced stays mapped as it was."""
    monkeypatch.setattr("lmsmith.corpus.batches.LOOK_SECONDS", 0.0)
    write_shards(tmp_path / "a/00000", [[1] * 1000] * 100, END, 300)
    write_shards(tmp_path / "a/00001", [[2] * 1000] * 100, END, 300)
    path, other = tmp_path / "a/00001/tokens.npy", tmp_path / "other"
    batches = PretrainingBatches([TokenShards.load(tmp_path / "a")], [1.0], 8, 4, 0)
    before = batches.batch(5).tokens_bt
    content = path.read_bytes()
    match change:
        case "cut off":
            os.truncate(path, 200)
        case "written to":
            with path.open("r+b") as file:
                file.seek(500)
                file.write(b"new")
        case "removed":
            path.unlink()
        case "replaced":
            other.write_bytes(content)
            other.replace(path)
    if change in ("removed", "replaced"):
        np.testing.assert_array_equal(batches.batch(5).tokens_bt, before)
    else:
        with pytest.raises(UserError, match=r"a/00001/tokens.npy: was written to while"):
            batches.batch(5)
