"""A source string finds its files, or says what it looked for."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.corpus import demo
from lmsmith.corpus.sources import conversations_of, documents_of, files_of, rankings_of

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
        ("chat", "chat: no such file or folder\n  Did you mean chats"),
        ("nowhere/x.jsonl", "nowhere/x.jsonl: no such file or folder"),
        ("chats/*.json", r"chats/\*.json: no .jsonl or .jsonl.gz file matches"),
        ("chats/notes.txt", "expected a .jsonl or .jsonl.gz file"),
        ("empty", "empty: no .jsonl or .jsonl.gz file in this folder"),
        ("chats/x.gz", "expected a .jsonl or .jsonl.gz file"),
        ("package:chit-chat", "does not know how to read this package\n.*package:chitchat-dataset"),
    ],
)
def test_what_is_not_found_is_said(folder: Path, source: str, problem: str) -> None:
    (folder / "empty").mkdir()
    (folder / "chats" / "x.gz").write_bytes(b"")
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
    (conversation,) = demo.read_chitchat(path)
    assert conversation.id == "one"
    assert conversation.messages == [
        {"role": "user", "content": "hello\nthere?"},
        {"role": "assistant", "content": "hi\nagain"},
        {"role": "user", "content": "ok"},
    ]
    path.write_text(json.dumps({"one": {"messages": [["hello"]]}}))
    with pytest.raises(UserError, match="conversation one: not as version"):
        list(demo.read_chitchat(path))


def test_the_demo_package_is_found_without_importing_it() -> None:
    try:
        importlib.metadata.version(demo.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the demo's data is not installed: pip install --no-deps chitchat-dataset")
    (path,) = files_of("package:chitchat-dataset", (".jsonl",))
    assert path.name == "dataset.json"
    assert "chitchat_dataset" not in sys.modules
