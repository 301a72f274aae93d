"""Task files: every shipped one is sound; a wrong one says what is wrong, all at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.evaluation.measures import MEASURES
from lmsmith.evaluation.tasks.shipped import GPT3_SIZES, find_tasks, shipped_tasks, suites
from lmsmith.evaluation.tasks.spec import read_tasks

GOOD = """
name = "made"
kind = "cloze"
[data]
file = "a.jsonl"
[prompt]
context = "{{ context }}"
target = "{{ word }}"
"""


def test_shipped_tasks_are_described_and_their_figures_belong_to_a_measure() -> None:
    tasks = shipped_tasks()
    assert {"lambada", "arithmetic/2d_plus", "human_eval", "wikitext2"} <= tasks.keys()
    for name, task in tasks.items():
        assert task.name == name
        assert task.about
        assert task.source
        for row in task.published:
            assert row.measure in MEASURES or row.measure.startswith("pass_at_")
            assert row.of in ("", name.split("/")[-1])
            assert 0 <= row.value <= 1 or not MEASURES[row.measure].is_share
    for rows in suites().values():
        assert all(find_tasks([task]) for task, _ in rows)


def test_a_headline_is_a_measure_that_the_task_will_have() -> None:
    winograd, code = find_tasks(["winograd", "human_eval"])
    assert replace(winograd, headline="accuracy").check() == []
    assert "one of accuracy" in str(replace(winograd, headline="accuracy_per_token").check())
    ten = replace(code, answer=replace(code.answer, samples=10))
    for task, k, known in [(code, 1, True), (code, 10, False), (ten, 10, True), (ten, 7, False)]:
        assert (replace(task, headline=f"pass_at_{k}").check() == []) == known


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / "a" / "test.jsonl", tmp_path / "b" / "test.jsonl"]
    for file in files:
        file.parent.mkdir()
        file.write_text(json.dumps({"context": file.parent.name, "continuation": "x"}) + "\n")
    with pytest.raises(UserError, match=r"b/test.jsonl: another task has the name test"):
        find_tasks([str(file) for file in files])
    assert len(find_tasks([str(files[0]), str(files[0])])) == 1


def test_gpt3_has_its_figures_in_all_sizes() -> None:
    """Three cells of table H.1, and that its 175B is that of the tables in the text."""
    tasks = shipped_tasks()

    def value(task: str, model: str, shots: str, measure: str = "accuracy") -> float:
        (found,) = [
            row.value
            for row in tasks[task].published
            if (row.model, row.shots, row.measure) == (model, shots, measure)
        ]
        return found

    assert value("copa", "GPT-3 125M", "zero") == 0.66
    assert value("cb/gpt3", "GPT-3 760M", "zero") == 0.0893
    assert value("triviaqa", "GPT-3 13B", "few", "exact_match") == 0.575
    assert value("lambada", "GPT-3 175B", "zero") == 0.762  # table 3.2
    assert value("winograd", "GPT-3 175B", "few") == 0.886  # table 3.5
    assert value("arc_easy", "GPT-3 175B", "one", "accuracy_unconditional") == 0.712  # table 3.6
    for name in ("boolq", "copa", "triviaqa", "winograd", "openbook_qa", "rte/gpt3"):
        sizes = [row.parameters for row in tasks[name].published if row.model.startswith("GPT-3")]
        assert sorted(set(sizes)) == sorted(GPT3_SIZES.values())
        assert len(sizes) == 24


def test_variants_change_only_what_they_say() -> None:
    text = GOOD + '[variants.one.data]\nfile = "b.jsonl"\n[variants.two]\nshots = 3\n'
    one, two = read_tasks(text, "made.toml").values()
    assert (one.name, one.data.file, one.shots) == ("made/one", "b.jsonl", 0)
    assert (two.name, two.data.file, two.shots) == ("made/two", "a.jsonl", 3)
    assert one.prompt == two.prompt


def test_every_problem_of_a_file_is_told_at_once() -> None:
    wrong = GOOD.replace('target = "{{ word }}"', "tarjet = 1") + "[answer]\nsamples = 3\n"
    with pytest.raises(UserError) as caught:
        read_tasks(wrong, "made.toml")
    said = str(caught.value)
    assert "prompt.tarjet = 1: unknown key; did you mean prompt.target?" in said
    assert "samples = 3" in said
    with pytest.raises(UserError, match=r"prompt\.target.*needs it"):
        read_tasks(GOOD.replace('target = "{{ word }}"', ""), "made.toml")
    with pytest.raises(UserError, match="one of file, package, hub and generator"):
        read_tasks(GOOD.replace('file = "a.jsonl"', ""), "made.toml")
    with pytest.raises(UserError, match="not valid TOML"):
        read_tasks("kind = [", "made.toml")
    with pytest.raises(UserError, match=r"one group"):
        read_tasks(GOOD + "[answer]\nextract = 'x'\n", "made.toml")


def test_an_unknown_task_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match=r"lambda: no such task\n.*did you mean lambada"):
        find_tasks(["lambda"])
    assert [task.name for task in find_tasks(["arithmetic"])][:2] == [
        "arithmetic/2d_plus",
        "arithmetic/2d_minus",
    ]


def test_every_setting_out_of_its_range_is_told() -> None:
    text = (
        'kind = "free_form"\n[data]\nfile = "a"\noverlap = 1\ncount = 0\nwindow = -1\n'
        '[prompt]\ncontext = "{{ q }}"\ntarget = "{{ a }}"\n'
        "[answer]\nsamples = 0\ntop_p = 1.5\ntemperature = 0\nmax_new_tokens = 0\n"
        '[[published]]\npaper = "p"\nmodel = " "\nparameters = 0\nmeasure = "f1"\nvalue = 1\n'
    )
    with pytest.raises(UserError) as told:
        read_tasks(text, "made.toml")
    for key in (
        "data.overlap", "data.count", "data.window", "answer.samples", "answer.top_p",
        "answer.temperature", "answer.max_new_tokens", "published.0.model",
        "published.0.parameters",
    ):  # fmt: skip
        assert f"{key} = " in str(told.value)
