"""Data is found on the search path, whole or compressed; what is wrong with it is told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks.data import (
    DATA_VARIABLE,
    MissingData,
    find_file,
    read_data,
    read_items,
    search_path,
)
from lmsmith.evaluation.tasks.inferred import infer_task
from lmsmith.evaluation.tasks.prompts import write_question
from lmsmith.evaluation.tasks.spec import DataSpec, TaskSpec

ROW = {"context": "a b", "continuation": "c"}


def test_the_folders_given_come_before_those_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "two"))
    assert find_file("x.txt", search_path([tmp_path / "one"])).read_text() == "one"
    assert find_file("x.txt", search_path()).read_text() == "two"
    with pytest.raises(MissingData, match=r"y\.txt: not in any of .*\n.*--data FOLDER"):
        find_file("y.txt", search_path())
    with pytest.raises(UserError, match="no such folder"):
        search_path([tmp_path / "three"])


def test_compressed_and_nested_files_are_read(tmp_path: Path) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress((json.dumps(ROW) + "\n\n").encode()))
    task = TaskSpec("made", "cloze", DataSpec(file="rows.jsonl"))
    assert [item.fields for item in read_data(task, [tmp_path]).items] == [ROW]
    nested = tmp_path / "rows.json"
    nested.write_text(json.dumps({"examples": [ROW, ROW]}))
    spec = DataSpec(file="rows.json", field="examples")
    assert [item.id for item in read_items(nested, spec)] == ["0", "1"]


def test_line_ends_of_windows_are_no_part_of_the_text(tmp_path: Path) -> None:
    for name, ending in (("a.txt", "\n"), ("b.txt", "\r\n")):
        (tmp_path / name).write_bytes(ending.join(["one", "two", ""]).encode("utf-8-sig"))
    texts = [next(read_items(tmp_path / n, DataSpec(file=n))).fields for n in ("a.txt", "b.txt")]
    assert texts[0] == texts[1] == {"text": "one\ntwo\n", "original": "one\ntwo\n"}
    (tmp_path / "rows.jsonl").write_bytes((json.dumps(ROW) + "\r\n").encode() * 2)
    spec = DataSpec(file="rows.jsonl")
    assert [item.fields for item in read_items(tmp_path / "rows.jsonl", spec)] == [ROW, ROW]


def test_text_is_parted_into_documents(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(" \n = One = \n \n x @-@ y . \n = = Part = = \n z \n = Two = \n w \n")
    whole = list(read_items(file, DataSpec(file="a.txt")))
    assert len(whole) == 1
    spec = DataSpec(file="a.txt", documents="articles", detokenise="wikitext")
    articles = list(read_items(file, spec))
    assert [a.fields["text"].splitlines()[0] for a in articles] == ["= One =", "= Two ="]
    assert "x-y." in articles[0].fields["text"]
    assert "x @-@ y ." in articles[0].fields["original"]
    assert len(list(read_items(file, DataSpec(file="a.txt", documents="lines")))) == 6


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a"', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl, line 1: not a JSON object"),
        ("a.jsonl", b"\xff\n", "not UTF-8"),
        ("a.json", b'{"rows": []}', "no list of items"),
        ("a.jsonl.gz", b"nothing", "damaged, or not packed"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        list(read_items(tmp_path / name, DataSpec(file=name)))


def test_an_empty_file_and_an_unknown_generator_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no items"):
        read_data(TaskSpec("made", "cloze", DataSpec(file="a.jsonl")), [tmp_path])
    with pytest.raises(UserError, match="no generator nothing"):
        read_data(TaskSpec("made", "cloze", DataSpec(generator="nothing")), [])


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"query": "q", "choices": ["a", "b"], "gold": 0}, "multiple_choice"),
        ({"context_options": ["a", "b"], "continuation": "c", "gold": 0}, "multiple_choice"),
        (ROW, "cloze"),
        ({"question": "q", "answer": "a"}, "free_form"),
        ({"question": "q", "choices": ["a", "b"], "answer": "B"}, "multiple_choice"),
        ({"context": "c", "question": "q", "answer": ["a"]}, "free_form"),
        ({"text": "t"}, "perplexity"),
    ],
)
def test_a_users_rows_say_what_task_they_are(
    tmp_path: Path, row: dict[str, Any], kind: str
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(row) + "\n")
    task = infer_task(file)
    assert (task.name, task.kind) == ("mine", kind)
    assert not task.check()
    if "question" in row:  # nothing that it gives is left out
        question = write_question(task, read_data(task, [tmp_path]).items[0])
        assert question.contexts[0].endswith("Question: q\nAnswer:")
        assert ("c\nQuestion" in question.contexts[0]) == ("context" in row)
        assert question.choices == tuple(row.get("choices", ("a",)))


def test_a_text_without_spaces_is_measured_a_character(tmp_path: Path) -> None:
    (tmp_path / "zh.txt").write_text("北京大学在北京。清华大学也在北京。\n", "utf-8")
    (tmp_path / "en.txt").write_text("The dog ran to the sea.\n")
    assert infer_task(tmp_path / "zh.txt").measure == "bits_per_character"
    assert infer_task(tmp_path / "en.txt").measure == "word_perplexity"


def test_rows_of_no_known_shape_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"x": 1}\n')
    with pytest.raises(UserError, match="its rows have x, which match no form of a task"):
        infer_task(file)


def test_lines_parted_by_tabs_have_the_columns_names(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('one "long"\u2028string\t0\ntwo\t1\n', "utf-8")
    spec = DataSpec(file="a.tsv", columns=("text", "label"))
    items = read_data(TaskSpec("a", "cloze", spec), [tmp_path]).items
    assert [item.fields for item in items] == [
        {"text": 'one "long"\u2028string', "label": "0"},
        {"text": "two", "label": "1"},
    ]
    (tmp_path / "a.tsv").write_text("one\t0\ntwo\n")
    with pytest.raises(UserError, match=r"line 2: 1 fields\n.*text, label"):
        read_data(TaskSpec("a", "cloze", spec), [tmp_path])


def test_two_files_are_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("a dog\n\na cat\n")
    (tmp_path / "a.fr").write_text("un chien\n\nun chat\n")
    task = TaskSpec("a", "free_form", DataSpec(file="a.en", beside="a.fr"))
    data = read_data(task, [tmp_path])
    assert data.items[2].fields == {"text": "a cat", "beside": "un chat"}
    assert data.pool == data.items
    (tmp_path / "a.fr").write_text("un chien\n\nune chatte\n")
    assert read_data(task, [tmp_path]).fingerprint != data.fingerprint
    (tmp_path / "a.fr").write_text("un chien\n")
    with pytest.raises(UserError, match=r"has 3 lines, .* 1\n"):
        read_data(task, [tmp_path])


@pytest.mark.parametrize("name", ["made.csv", "made.TSV", "made.csv.gz"])
def test_a_table_is_not_taken_for_a_text(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("question,answer\nq,a\n", "utf-8")
    with pytest.raises(UserError, match=r"a table[\s\S]*\.jsonl"):
        infer_task(tmp_path / name)


def test_a_row_without_an_answer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "made.jsonl"
    file.write_text('{"question": "q", "answer": "a"}\n{"question": "r"}\n', "utf-8")
    task = infer_task(file)
    items = read_data(task, [tmp_path]).items
    with pytest.raises(UserError, match=r"line 2: 'answer' is undefined"):
        write_question(task, items[1])
