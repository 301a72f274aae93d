"""Labelled tasks: the shipped ones on GLUE's files as they come, and labels in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.corpus.labelled.task import (
    TaskExamples,
    _sorted_labels,
    locate_task,
    read_examples,
    shipped_labelled_tasks,
)

COUNTS = {
    "cb": (250, 0, 56),
    "cola": (8551, 0, 1043),
    "mrpc": (4076, 0, 1725),
    "rte": (2490, 0, 277),
    "sst2": (6920, 872, 1821),
    "stsb": (5749, 1500, 1379),
}


def test_the_shipped_tasks() -> None:
    assert sorted(shipped_labelled_tasks()) == sorted(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_glues_files_have_all_their_rows(name: str, public_data: Callable[[str], Path]) -> None:
    found = read_examples(locate_task(name, [public_data("glue").parent]))
    assert (len(found.train), len(found.validation), len(found.test)) == COUNTS[name]


def test_mrpc_keeps_quotation_marks(public_data: Callable[[str], Path]) -> None:
    found = read_examples(locate_task("mrpc", [public_data("glue").parent]))
    assert 'whom he called "the witness"' in found.train[0].texts[0]
    assert Counter(each.label for each in found.test)[1] == 1147
    assert all("\t" not in text for each in found.train for text in each.texts)


@pytest.mark.parametrize("name", ["rte", "cb"])
def test_labels_are_those_of_the_row(name: str, public_data: Callable[[str], Path]) -> None:
    """A wrong order of RTE's or CB's labels gives a model that is wrong where it is right."""
    found = read_examples(locate_task(name, [public_data("glue").parent]))
    hypothesis = {
        "rte": "Weapons of Mass Destruction Found in Iraq.",
        "cb": "the language was peeled down",
    }[name]
    first = next(each for each in found.train if each.texts[1] == hypothesis)
    assert found.labels[first.label] == {"rte": "not_entailment", "cb": "entailment"}[name]


def made(folder: Path, train: str, settings: str, name: str = "t.tsv") -> TaskExamples:
    (folder / name).write_text(train, encoding="utf-8")
    (folder / "t.toml").write_text(f'{settings}\n[data]\ntrain = "{name}"\n')
    return read_examples(locate_task(str(folder / "t.toml"), []))


def test_the_inner_folder_may_be_named(public_data: Callable[[str], Path]) -> None:
    inner = public_data("glue/sst2.train.tsv").parent
    assert locate_task("sst2", [inner]) == locate_task("sst2", [inner.parent])


def test_labels_that_are_not_listed_are_sorted(tmp_path: Path) -> None:
    found = made(tmp_path, "text\tlabel\na\t10\nb\t9\nc\t10\n", 'texts = ["text"]')
    assert found.labels == ("9", "10")
    assert [each.label for each in found.train] == [1, 0, 1]
    found = made(
        tmp_path,
        '{"text": "a", "label": true}\n{"text": "b", "label": false}\n',
        'texts = ["text"]',
        "t.jsonl",
    )
    assert found.labels == ("false", "true")


def test_the_order_of_equal_numbers_does_not_change() -> None:
    """A set's order differs from process to process."""
    labels = {"1", "1.0", "01", "2", "10"}
    assert _sorted_labels(labels) == ("01", "1", "1.0", "2", "10")


def test_long_numbers_are_labels_of_their_own(tmp_path: Path) -> None:
    rows = '{{"text": "a", "label": {}}}\n{{"text": "b", "label": {}}}\n'
    long = ("123456789012345671", "123456789012345679")
    found = made(tmp_path, rows.format(*long), 'texts = ["text"]', "t.jsonl")
    assert found.labels == long
    found = made(tmp_path, rows.format("1.0", "2.5"), 'texts = ["text"]', "t.jsonl")
    assert found.labels == ("1", "2.5")
    for wrong in ("1e300", "1" * 400):
        with pytest.raises(UserError, match=r"line 1: the label 1[\de+]+ is no label"):
            made(tmp_path, rows.format(wrong, "1"), 'texts = ["text"]', "t.jsonl")


def test_numbers_that_are_all_the_same_teach_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"every example has the number 2\.5"):
        made(tmp_path, "text\tlabel\na\t2.5\nb\t2.50\n", 'texts = ["text"]\nnumbers = true')
    with pytest.raises(UserError, match="no finite number to predict"):
        made(tmp_path, f"text\tlabel\na\t{'9' * 400}\n", 'texts = ["text"]\nnumbers = true')


def test_choices_in_a_list_or_in_columns(tmp_path: Path) -> None:
    listed = '{"q": "x", "c": ["a", "b", "c"], "gold": 2}\n{"q": "y", "c": ["a", "b"], "gold": 0}\n'
    settings = 'form = "multiple_choice"\ntexts = ["q"]\nlabel = "gold"\n'
    found = made(tmp_path, listed, f'{settings}answers = ["c"]', "t.jsonl")
    assert [(each.answers, each.label) for each in found.train] == [
        (("a", "b", "c"), 2),
        (("a", "b"), 0),
    ]
    named = f'{settings}answers = ["one", "two"]\nlabels = ["A", "B"]'
    found = made(tmp_path, "q\tone\ttwo\tgold\nx\ta\tb\tB\n", named)
    assert (found.train[0].answers, found.train[0].label) == (("a", "b"), 1)
    with pytest.raises(UserError, match="right answer is '99999"):
        made(
            tmp_path,
            listed.replace("2", '"' + "9" * 5000 + '"'),
            f'{settings}answers = ["c"]',
            "t.jsonl",
        )
    with pytest.raises(UserError, match="right answer is 'C', not A, B"):
        made(tmp_path, "q\tone\ttwo\tgold\nx\ta\tb\tC\n", named)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean sst2"):
        locate_task("sst", [])
    with pytest.raises(UserError, match="not in any of"):
        locate_task("sst2", [Path("nowhere")])
