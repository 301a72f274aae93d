"""Every row is read as written, and every mistake names its file and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.core.files import write_jsonl
from lmsmith.corpus import rows as rows_module
from lmsmith.corpus.formats import IrregularPair
from lmsmith.corpus.rows import read_conversations, read_documents, read_rankings

HELLO = {"role": "user", "content": "hello"}
HI = {"role": "assistant", "content": "hi"}
BYE = {"role": "assistant", "content": "bye"}


def written(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_conversations_come_back_as_written(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"messages": [HELLO, HI], "id": "a", "topic": "not ours, left alone"},
        {"messages": [HI], "id": 7},
        {"messages": [HELLO]},
    )
    first, second, third = read_conversations(path)
    assert (first.id, first.messages) == ("a", [HELLO, HI])
    assert second.id == "7"
    write_jsonl(path, [first.row(), second.row(), third.row()])
    assert list(read_conversations(path)) == [first, second, third]


def test_a_conversation_without_id_has_the_same_one_wherever_it_stands(tmp_path: Path) -> None:
    alone = list(read_conversations(written(tmp_path, {"messages": [HELLO, HI]})))
    later = list(
        read_conversations(written(tmp_path, {"messages": [HI]}, {"messages": [HELLO, HI]}))
    )
    assert later[1].id == alone[0].id != later[0].id


def test_documents_come_back_as_written(tmp_path: Path) -> None:
    path = written(tmp_path, {"text": "a", "id": "x", "source": "s"}, {"text": "b"})
    first, second = read_documents(path)
    assert (first.text, first.id, first.source) == ("a", "x", "s")
    assert (second.text, second.source) == ("b", "rows.jsonl")
    assert {document.source for document in read_documents(path, "mine")} == {"mine"}


def test_a_long_text_file_is_several_documents_that_join_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "LONG_TEXT_CHARACTERS", 20)
    text = "A paragraph.\n\n" * 10 + "the end"
    (tmp_path / "a.txt").write_text(text)
    documents = list(read_documents(tmp_path / "a.txt"))
    assert "".join(document.text for document in documents) == text
    assert len({document.id for document in documents}) == len(documents) == 6
    assert all(document.text.endswith("\n\n") for document in documents[:-1])
    (tmp_path / "b.txt").write_text("one line without any blank one " * 10)
    assert len(list(read_documents(tmp_path / "b.txt"))) == 1


def test_rankings_come_back_as_written(tmp_path: Path) -> None:
    row = {
        "prompt": [HELLO],
        "responses": ["a", "b", "c"],
        "ranks": [2, 1, 2],
        "labeler": "me",
        "source": "here",
        "id": "r",
    }
    path = written(tmp_path, row)
    (ranking,) = read_rankings(path)
    assert ranking.row() == row


def test_a_split_is_read_and_written_where_there_is_one(tmp_path: Path) -> None:
    row = {"prompt": "hello", "responses": ["a", "b"], "ranks": [1, 2], "id": "r"}
    path = written(tmp_path, row, {**row, "split": "test"}, {**row, "split": None})
    rankings = list(read_rankings(path))
    assert [ranking.split for ranking in rankings] == [None, "test", None]
    assert [ranking.row().get("split", "no key") for ranking in rankings] == [
        "no key",
        "test",
        "no key",
    ]
    write_jsonl(path, (ranking.row() for ranking in rankings))
    assert list(read_rankings(path)) == rankings


def test_rows_of_all_kinds_stand_in_one_file(tmp_path: Path) -> None:
    replies = [{"role": "assistant", "text": text, "rank": at} for at, text in enumerate("xyz")]
    tree = {
        "message_tree_id": "t",
        "prompt": {"role": "prompter", "text": "why?", "message_id": "m", "replies": replies},
    }
    own = {"prompt": "how?", "responses": ["a", "b"], "ranks": [2, 1], "id": "own"}
    pair = {"prompt": "who?", "chosen": "c", "rejected": "d", "id": "pair"}
    path = written(tmp_path, own, tree, pair)
    found = {ranking.id: (ranking.responses, ranking.ranks) for ranking in read_rankings(path)}
    assert found == {
        "own": (["a", "b"], [2, 1]),
        "m": (["x", "y", "z"], [1, 2, 3]),
        "pair": (["c", "d"], [1, 2]),
    }
    assert {ranking.source for ranking in read_rankings(path)} == {"rows.jsonl"}
    (talk,) = read_conversations(written(tmp_path, tree))
    assert (talk.id, talk.messages[1]) == ("t", {"role": "assistant", "content": "x"})


def test_irregular_pairs_end_the_reading_or_are_left_out(tmp_path: Path) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = written(tmp_path, good, {**good, "chosen": " "}, {**good, "rejected": "b"}, good)
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2: a message is empty"):
        list(read_rankings(path))
    left_out: list[IrregularPair] = []
    assert len(list(read_rankings(path, left_out))) == 2
    assert [irregular.flaw for irregular in left_out] == [
        "with an empty message",
        "of one response twice",
    ]
    with pytest.raises(UserError, match=r"line 2.*no 'rejected'"):
        list(read_rankings(written(tmp_path, good, {"chosen": "a"}), []))


Reader = Callable[[Path], Iterator[object]]


@pytest.mark.parametrize(
    ("reader", "row", "problem"),
    [
        (read_conversations, {"message": [HELLO]}, "no 'messages' in this row; its keys are: 'mes"),
        (
            read_conversations,
            {"messages": [{"role": "bot", "content": ""}]},
            "message 1 has the ro",
        ),
        (read_conversations, {"messages": [HELLO], "id": [1]}, "'id' must be text, not a list"),
        (read_conversations, [HELLO], "expected a JSON object"),
        (read_documents, {"content": "a"}, "no 'text' in this row"),
        (read_documents, {"text": None, "id": "a"}, "'text' must be text, not null"),
        (read_documents, {"text": ["a"]}, "'text' must be text, not a list"),
        (read_rankings, {"prompt": [HELLO], "responses": ["a", "b"]}, "no 'ranks' in this row"),
        (
            read_rankings,
            {"prompt": [HI], "responses": ["a", "b"], "ranks": [1, 2]},
            "the prompt ends with the assistant's message",
        ),
        (
            read_rankings,
            {"prompt": [HELLO], "responses": ["a"], "ranks": [1]},
            "'responses' must hold at least two, not 1",
        ),
        (
            read_rankings,
            {"prompt": [HELLO], "responses": ["a", 2], "ranks": [1, 2]},
            "'responses' must be a list of texts",
        ),
        (
            read_rankings,
            {"prompt": [HELLO], "responses": ["a", "b"], "ranks": [1, 2, 3]},
            "2 responses but 3 ranks",
        ),
        (
            read_rankings,
            {"prompt": [HELLO], "responses": ["a", "b"], "ranks": [0, 1]},
            "'ranks' must be a list of whole numbers from 1",
        ),
        (
            read_rankings,
            {"prompt": [HELLO], "responses": ["a", "b"], "ranks": [True, 2]},
            "'ranks' must be a list of whole numbers from 1",
        ),
        (
            read_rankings,
            {"prompt": [HELLO], "responses": ["a", "b"], "ranks": [1, 2], "split": "dev"},
            "'split' is 'dev'; expected one of train, validation, test",
        ),
        (read_rankings, {"message_tree_id": "t"}, "no 'prompt' in this row"),
        (read_rankings, {"chosen": "a", "prompt": "b"}, "no 'rejected' in this row"),
        (read_rankings, {"chosen": "a", "rejected": "b"}, "there is no 'prompt', and"),
        (
            read_rankings,
            {"chosen": [HELLO, HI], "rejected": [{**HELLO, "content": "x"}, BYE]},
            "differ before their last message",
        ),
        (read_rankings, {"chosen": [HELLO], "rejected": [HELLO]}, "must end with the assistant's"),
    ],
)
def test_each_mistake_names_file_line_and_what_is_wrong(
    reader: Reader, row: object, problem: str, tmp_path: Path
) -> None:
    good: dict[Reader, object] = {
        read_conversations: {"messages": [HELLO]},
        read_documents: {"text": "a"},
        read_rankings: {"prompt": "a", "chosen": "b", "rejected": "c"},
    }
    path = written(tmp_path, good[reader], row)
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 2.*({problem})"):
        list(reader(path))


def test_a_text_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xff\n")
    with pytest.raises(UserError, match=r"a\.txt, line 2: not UTF-8"):
        list(read_documents(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="no such file"):
        list(read_documents(tmp_path / "b.txt"))
