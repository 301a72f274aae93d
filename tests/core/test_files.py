"""Files are whole or absent, and a bad one is named with its line."""

from __future__ import annotations

import gzip
import json
import math
import os
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.core import files
from lmsmith.core.errors import UserError
from lmsmith.core.files import (
    atomic_folder,
    atomic_write,
    fingerprint,
    read_json,
    read_jsonl,
    remove_partials,
    sha256_file,
    write_json,
    write_jsonl,
)

# Integers as large as 64 bits hold: JSON readers differ on larger ones.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    atomic_write(path, "one")
    atomic_write(path, "两个".encode())
    assert path.read_text(encoding="utf-8") == "两个"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_write_that_cannot_be_finished_damages_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    atomic_write(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"file\.bin: the file grew past") as caught:
            atomic_write(path, bytes(2000))
        with pytest.raises(UserError), atomic_folder(tmp_path / "folder") as folder:
            (folder / "large.bin").write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.fix
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_path_through_a_file_or_onto_a_folder_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        atomic_write(tmp_path / "file" / "inside.txt", "text")
    with pytest.raises(UserError, match="is a folder"):
        atomic_write(tmp_path, "text")


def test_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in ("one", "two"):
        with atomic_folder(target) as folder:
            (folder / f"{text}.txt").write_text(text)
            assert not (target / f"{text}.txt").exists()
    assert [entry.name for entry in target.iterdir()] == ["two.txt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_folder_stays_as_it_was_when_the_block_fails(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "one.txt").write_text("one")
    with pytest.raises(RuntimeError, match="boom"), atomic_folder(target) as folder:
        raise RuntimeError("boom")
    assert (target / "one.txt").read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / ".model.replaced").mkdir()
    (tmp_path / ".model.replaced" / "old.txt").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model"):
        raise RuntimeError
    assert (tmp_path / "model" / "old.txt").read_text() == "old"


def test_partials_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "sub" / ".model.1-ab.partial").mkdir(parents=True)
    (tmp_path / ".a.json.1-ab.partial").write_text("")
    (tmp_path / "my.partial").write_text("")
    remove_partials(tmp_path, inside=False)
    assert (tmp_path / "sub" / ".model.1-ab.partial").exists()
    remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["my.partial", "sub"]


@settings(deadline=None, max_examples=50)  # each waits for the disk
@given(JSON)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert fingerprint(read_json(path)) == fingerprint(value)


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": math.nan, "b": [math.inf, 1.5]})
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [None, 1.5]}


def test_jsonl_round_trip_skips_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"text": "a\u2028b"}, {"text": "é🙂"}])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert list(read_jsonl(path)) == [(1, {"text": "a\u2028b"}), (3, {"text": "é🙂"})]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"a": 1', "line 2: not valid JSON"),
        (b"hello", "line 2: not valid JSON"),
        (b"[1]", "line 2: expected a JSON object, found an array"),
        (b'"text"', "found a string"),
        (b"3", "found a number"),
        (b"null", "found null"),
        (b'{"a": "\xff"}', "line 2: not UTF-8 text"),
        (b"[" * 100_000, "line 2: not valid JSON"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: bytes, expected: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=expected) as caught:
        list(read_jsonl(path))
    assert str(path) in str(caught.value)


def test_gzip_is_unpacked_and_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"a": 1}\n\n{"a": "\xc3\xa9"}'))
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (3, {"a": "é"})]
    path.write_bytes(gzip.compress(b'{"a": 1}\nhello\n'))
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        list(read_jsonl(path))
    with pytest.raises(UserError, match="no such file"):
        list(read_jsonl(tmp_path / "missing.jsonl.gz"))


@pytest.mark.parametrize("damage", ["plain", "cut", "cut early", "begun", "changed", "sum"])
def test_damaged_gzip_is_named(tmp_path: Path, damage: str) -> None:
    rows = b"".join(b'{"row": %d}\n' % (number * 7919 % 1000) for number in range(3000))
    packed = bytearray(gzip.compress(rows, mtime=0))
    if damage == "begun":
        packed[10:20] = b"\xff" * 10
    if damage == "changed":
        packed[len(packed) // 2 : len(packed) // 2 + 40] = bytes(40)
    if damage == "sum":
        packed[-6] ^= 1
    content = {"plain": rows, "cut": packed[:-100], "cut early": packed[:5]}.get(damage, packed)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    message = r"rows\.jsonl\.gz: damaged, or not packed by gzip .*\n.*take \.gz off its name"
    with pytest.raises(UserError, match=message):
        list(read_jsonl(path))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for read in (read_json, sha256_file, lambda path: list(read_jsonl(path))):
        with pytest.raises(UserError, match="no such file"):
            read(tmp_path / "missing.jsonl")
        with pytest.raises(UserError, match="is a folder"):
            read(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


def test_fingerprint_is_known_and_knows_no_key_order() -> None:
    assert fingerprint({"a": 1, "b": 2.5}) == fingerprint({"b": 2.5, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    # A constant: run folders made by earlier versions must still be recognised.
    assert fingerprint({"seed": 1, "name": "é"}) == "51ab531787d51a01"


def test_sha256_is_the_usual_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc").startswith("ba7816bf8f01cfea")


def test_finite_reaches_into_rows() -> None:
    assert json.dumps(files.finite({"a": (1.0, math.nan)})) == '{"a": [1.0, null]}'


def test_half_an_emoji_becomes_the_replacement_character(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a\\ud83d": "\\ud83d\\ude00 \\ude00"}\n')
    assert list(read_jsonl(path)) == [(1, {"a\ufffd": "\U0001f600 \ufffd"})]
    assert read_json(path) == {"a\ufffd": "\U0001f600 \ufffd"}
    write_jsonl(path, [{"a": "\ud83d"}])
    assert list(read_jsonl(path)) == [(1, {"a": "\ufffd"})]
    assert fingerprint("\ud83d") == fingerprint("\ufffd")


def test_files_of_a_folder_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "model") as folder:
            for name, mode in (("a", 0o600), ("b", 0o644), ("c", 0o400)):
                (folder / name).write_text("x")
                (folder / name).chmod(mode)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {"a": 0o640, "b": 0o640, "c": 0o640}
