"""A source string finds its files, or says what it looked for."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import sys
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.corpus.sources import (
    DEMO_PACKAGE,
    FilesOnce,
    conversations_of,
    documents_of,
    files_of,
    rankings_of,
    read_chitchat,
)

ROW = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats" / "more").mkdir(parents=True)
    for name in ("chats/b.jsonl", "chats/a.jsonl", "chats/more/c.jsonl"):
        (tmp_path / name).write_text(json.dumps({**ROW, "id": name}) + "\n")
    (tmp_path / "chats" / "notes.txt").write_text("some text")
    return tmp_path


def test_a_file_a_folder_and_a_glob(folder: Path) -> None:
    ids = {
        source: [conversation.id for conversation in conversations_of(source)]
        for source in ("chats/a.jsonl", "chats", "chats/*.jsonl", "chats/**/*.jsonl")
    }
    everything = ["chats/a.jsonl", "chats/b.jsonl", "chats/more/c.jsonl"]
    assert list(ids.values()) == [everything[:1], everything, everything[:2], everything]
    absolute = [conversation.id for conversation in conversations_of(f"{folder}/chats/*.jsonl")]
    assert absolute == everything[:2]


def test_packed_files_are_found_as_others_are(folder: Path) -> None:
    (folder / "chats" / "a.jsonl").unlink()
    packed = folder / "chats" / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps({**ROW, "id": "packed"}).encode()))
    for source in ("chats/a.jsonl.gz", "chats/*.jsonl*", "chats"):
        assert "packed" in [conversation.id for conversation in conversations_of(source)], source
    (folder / "docs").mkdir()
    (folder / "docs" / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "two"}\n'))
    assert [document.text for document in documents_of("docs")] == ["two"]
    pair = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    (folder / "r.jsonl.gz").write_bytes(gzip.compress(pair))
    assert len(list(rankings_of("r.jsonl.gz"))) == 1


def test_what_systems_leave_beside_the_data_is_not_read(folder: Path) -> None:
    for name in ("._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", ".hidden/x.jsonl"):
        (folder / "chats" / name).parent.mkdir(exist_ok=True)
        (folder / "chats" / name).write_bytes(b"\x00\x05\x16\x07\xff")
    for source in ("chats", "chats/**/*.jsonl"):
        names = [path.name for path in files_of(source, (".jsonl", ".txt"))]
        assert [name for name in names if name != "notes.txt"] == ["a.jsonl", "b.jsonl", "c.jsonl"]


@pytest.mark.parametrize("name", ["data [v1]", "a[b", "[0]", "chats*"])
def test_a_glob_in_a_folder_whose_name_looks_like_one(folder: Path, name: str) -> None:
    (folder / "chats").rename(folder / name)
    found = [path.name for path in files_of(f"{name}/*.jsonl", (".jsonl", ".txt"))]
    assert found == ["a.jsonl", "b.jsonl"]
    found = [path.name for path in files_of(f"{folder}/{name}/**/c.*", (".jsonl", ".txt"))]
    assert found == ["c.jsonl"]


def test_names_in_capitals_are_read(folder: Path) -> None:
    (folder / "loud").mkdir()
    (folder / "loud" / "A.JSONL").write_text(json.dumps(ROW))
    (folder / "loud" / "B.Jsonl.GZ").write_bytes(gzip.compress(json.dumps(ROW).encode()))
    assert len(list(conversations_of("loud"))) == 2
    (folder / "loud" / "C.TXT").write_text("text")
    assert [document.text for document in documents_of("loud/C.TXT")] == ["text"]


def test_an_export_is_found_in_its_folder_and_other_json_by_its_name(folder: Path) -> None:
    for name in ("conversations.json", "user.json"):
        (folder / "chats" / name).write_text(json.dumps([{"instruction": name, "output": "b"}]))
    files = FilesOnce()
    found = [talk.messages[0]["content"] for talk in conversations_of("chats", None, files)]
    assert "conversations.json" in found
    assert "user.json" not in found
    assert files.notes() == [
        "2 files were not read, for the end of the name: chats/notes.txt, chats/user.json; "
        "a .json file is read if it is named itself"
    ]
    assert len(list(conversations_of("chats/user.json"))) == 1


def test_a_file_that_comes_twice_is_read_once(folder: Path) -> None:
    (folder / "copy.jsonl").write_bytes((folder / "chats" / "a.jsonl").read_bytes())
    files = FilesOnce()
    found = [
        talk.id
        for source in ("chats/a.jsonl", "chats/*.jsonl", "copy.jsonl")
        for talk in conversations_of(source, None, files)
    ]
    assert found == ["chats/a.jsonl", "chats/b.jsonl"]
    assert files.notes() == [
        "2 files were read once, though named twice: chats/a.jsonl, and 1 more"
    ]
    files.again.pop(0)
    assert files.notes() == [
        "1 file was read once, though named twice: copy.jsonl holds the same as chats/a.jsonl"
    ]


def test_documents_are_text_or_rows(folder: Path) -> None:
    (folder / "docs").mkdir()
    (folder / "docs" / "a.txt").write_text("one")
    (folder / "docs" / "b.jsonl").write_text('{"text": "two"}\n')
    documents = list(documents_of("docs"))
    assert [(document.text, document.source) for document in documents] == [
        ("one", "docs"),
        ("two", "docs"),
    ]


def test_rankings(folder: Path) -> None:
    (folder / "r.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert len(list(rankings_of("r.jsonl"))) == 1


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("chat", r"chat: no such file or folder \(looked for /.*/chat\)\n  Did you mean chats"),
        ("nowhere/x.jsonl", "nowhere/x.jsonl: no such file or folder"),
        ("chats/*.csv", r"chats/\*.csv: no .jsonl, .jsonl.gz or .json file matches \(looked for /"),
        ("chats/notes.txt", "expected a .jsonl, .jsonl.gz or .json file"),
        ("empty", "empty: no .jsonl, .jsonl.gz or .json file in this folder"),
        ("chats/x.gz", "expected a .jsonl, .jsonl.gz or .json file"),
        ("pipe.jsonl", "pipe.jsonl: is no regular file but a pipe"),
        ("broken", "broken/x.jsonl: is a link to nowhere.jsonl, which does not exist"),
        ("package:chit-chat", "does not know how to read this package\n.*package:chitchat-dataset"),
    ],
)
def test_what_is_not_found_is_said(folder: Path, source: str, problem: str) -> None:
    (folder / "empty").mkdir()
    (folder / "chats" / "x.gz").write_bytes(b"")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "broken").mkdir()
    (folder / "broken" / "x.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(UserError, match=problem):
        list(conversations_of(source))


def test_a_package_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(UserError, match="pip install --no-deps chitchat-dataset"):
        list(conversations_of("package:chitchat-dataset"))


def test_the_demo_format_becomes_turns(tmp_path: Path) -> None:
    def sent(sender: str, text: str) -> dict[str, str]:
        return {"sender": sender, "text": text, "timestamp": "2018-05-02T19:38:15Z"}

    path = tmp_path / "dataset.json"
    runs = [
        [sent("x", "hello"), sent("x", "there?")],
        [sent("y", "hi")],
        [sent("y", "again")],
        [sent("x", "ok")],
    ]
    path.write_text(json.dumps({"one": {"messages": runs}, "none": {"messages": []}}))
    (conversation,) = read_chitchat(path)
    assert conversation.id == "one"
    assert conversation.messages == [
        {"role": "user", "content": "hello\nthere?"},
        {"role": "assistant", "content": "hi\nagain"},
        {"role": "user", "content": "ok"},
    ]
    path.write_text(json.dumps({"one": {"messages": [["hello"]]}}))
    with pytest.raises(UserError, match="conversation one: not as version"):
        list(read_chitchat(path))


def test_the_demo_package_is_found_without_importing_it() -> None:
    try:
        importlib.metadata.version(DEMO_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the demo's data is not installed: pip install --no-deps chitchat-dataset")
    (path,) = files_of("package:chitchat-dataset", (".jsonl",))
    assert path.name == "dataset.json"
    assert "chitchat_dataset" not in sys.modules
