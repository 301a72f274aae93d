"""Odd line ends and halves of characters: a row stays one row, and all of its text is encodable."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from lmsmith.cli import main
from lmsmith.core.files import read_jsonl
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.rows import read_conversations, read_documents, read_rankings
from lmsmith.evaluation.tasks.data import DataSpec, read_items
from lmsmith.feedback.export import export
from lmsmith.feedback.imports import import_file
from lmsmith.feedback.store import Store
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages import data
from lmsmith.tokenizers import Tokenizer

ODD_ENDS = "\v\f\x85\u2028\u2029"

Faults = Callable[[str], Path]


def rows_of(path: Path) -> int:
    return path.read_bytes().count(b"\n")


@pytest.mark.parametrize("name", ["02-line-separators", "03-lone-surrogates"])
def test_a_row_stays_one_row_in_the_data_stage(faults: Faults, name: str, tmp_path: Path) -> None:
    source = faults(name) / "conversations.jsonl"
    assert len(list(read_conversations(source))) == rows_of(source)
    pairs = [str(file) for file in source.parent.glob("pairs.jsonl")]
    config = data.DataConfig(conversations=(str(source),), rankings=tuple(pairs))
    data.run(config, {}, StageFolder(tmp_path, 0, MachineConfig(), QuietProgress()))
    written = list(tmp_path.glob("*.jsonl"))
    texts = [json.dumps(row, ensure_ascii=False) for file in written for _, row in read_jsonl(file)]
    assert texts
    for text in texts:
        text.encode()
        assert not any(end in text or json.dumps(end)[1:-1] in text for end in ODD_ENDS)
    if name.startswith("02"):
        assert any(r"0 one\ntwo\nthree\nfour" in text for text in texts)


@pytest.mark.parametrize("name", ["02-line-separators", "03-lone-surrogates"])
def test_a_row_stays_one_row_in_tasks_and_feedback(
    faults: Faults, name: str, tmp_path: Path
) -> None:
    folder = faults(name)
    task = folder / "task.jsonl"
    items = list(read_items(task, DataSpec(file="task.jsonl")))
    assert len(items) == rows_of(task)
    json.dumps([item.fields for item in items], ensure_ascii=False).encode()
    with closing(Store(tmp_path / "feedback.db")) as store:
        counts = import_file(store, folder / "feedback.jsonl", person="Ann")
        assert sum(counts.values()) == rows_of(folder / "feedback.jsonl")
        counts = import_file(store, folder / "conversations.jsonl", person="Ann")
        assert counts["conversations"] == rows_of(folder / "conversations.jsonl")
        export(store, tmp_path / "out")


def test_labels_with_odd_line_ends(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path))
    labels = faults("02-line-separators") / "labels.jsonl"
    assert main(["tasks", "add", "odd", "About?", str(labels)]) == 0
    (kept,) = tmp_path.rglob("odd.jsonl")
    assert len(list(read_jsonl(kept))) == rows_of(labels)


def test_a_text_file_with_odd_line_ends(faults: Faults) -> None:
    file = faults("02-line-separators") / "lines.txt"
    (document,) = read_documents(file)
    assert document.text == file.read_bytes().decode()
    lines = list(read_items(file, DataSpec(file=file.name, documents="lines")))
    assert len(lines) == rows_of(file)


def test_pairs_with_halves_of_characters_are_tokenized(faults: Faults) -> None:
    tokenizer = Tokenizer.train(["good \ud83d bad"], 300)
    rankings = list(read_rankings(faults("03-lone-surrogates") / "pairs.jsonl"))
    assert len(rankings) == 20
    for ranking in rankings:
        text = ranking.responses[0]
        assert "\ufffd" in text
        assert tokenizer.decode(tokenizer.encode(text)) == text
