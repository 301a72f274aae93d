"""Templates, tasks of instructions, T0's files and the mixture."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.config import SettingsError
from lmsmith.core.errors import UserError
from lmsmith.core.files import write_jsonl
from lmsmith.corpus.instructions.mixture import left_out_clusters, mixing_counts, word_runs
from lmsmith.corpus.instructions.prompted import read_prompted, task_of
from lmsmith.corpus.instructions.task import (
    find_task,
    read_task,
    read_task_texts,
    shipped_instruction_tasks,
)
from lmsmith.corpus.instructions.template import Instruction, LabelledExample, Template, fill

EXAMPLE = LabelledExample({"text": "a {answer} day"}, ("bad", "good"), 1, "good", "1")


def test_a_template_is_filled_and_the_options_stand_at_its_end() -> None:
    made = fill(Template('How is "{text}"?'), EXAMPLE, options=True)
    asked = 'How is "a {answer} day"?\n\nOPTIONS:\n- bad\n- good'  # braces of a text name nothing
    assert made == Instruction(asked, "good", ("bad", "good"), 1)
    assert fill(Template("{text}"), EXAMPLE, options=False).prompt == "a {answer} day"


def test_a_template_may_have_words_of_its_own() -> None:
    template = Template("Is {text} good?", words={"1": "yes", "0": "no"})
    made = fill(template, EXAMPLE, ("0", "1"), options=True)
    assert (made.completion, made.options, made.gold) == ("yes", ("no", "yes"), 1)


def test_a_template_that_turns_the_task_around_has_no_options() -> None:
    template = Template("Write a {answer} sentence.", target="{text}", only="1")
    assert fill(template, EXAMPLE, options=True) == Instruction(
        "Write a good sentence.", "a {answer} day"
    )
    other = LabelledExample({"text": "rain"}, ("bad", "good"), 0, "bad", "0")
    assert template.fits(EXAMPLE)
    assert not template.fits(other)


@pytest.mark.parametrize("name", sorted(shipped_instruction_tasks()))
def test_every_shipped_task_has_ten_templates_some_turned_around(name: str) -> None:
    templates = shipped_instruction_tasks()[name].templates
    assert len(templates) == len({each.prompt for each in templates}) == 10
    assert 1 <= sum(each.turned for each in templates) <= 3  # section 2.1 of the paper


@pytest.mark.parametrize("name", sorted(shipped_instruction_tasks()))
def test_every_template_of_every_shipped_task_fits_the_real_data(
    public_data: Callable[[str], Path], name: str
) -> None:
    folder = public_data("glue/rte.train.jsonl").parents[1]
    task = shipped_instruction_tasks()[name]
    found = read_task_texts(task, [folder])
    assert found.train
    assert found.validation
    assert found.test
    for template in task.templates:
        example = next(each for each in found.train if template.fits(each))
        made = fill(template, example, found.labels, options=True)
        assert "{" not in made.prompt.replace(next(iter(example.fields.values())), "")
        assert made.completion.strip()
        assert not made.options or made.options[made.gold] == made.completion
    texts = [{next(iter(e.fields.values())) for e in part} for part in (found.train, found.test)]
    if task.file and not task.contexts:
        assert not texts[0] & texts[1]


def test_schemas_of_winograd_are_parted_where_they_begin_to_differ(tmp_path: Path) -> None:
    rows = [
        {"context_options": [f"We {n} saw Ann as Ann", f"We {n} saw Ann as Bob"],
         "continuation": "left.", "gold": 1}
        for n in range(40)
    ]  # fmt: skip
    write_jsonl(tmp_path / "tasks/winograd_wsc.jsonl", rows)
    task, _ = find_task("winograd")
    found = read_task_texts(task, [tmp_path])
    example = found.train[0]
    assert example.options == ("Ann", "Bob")
    assert example.fields["before"].endswith("saw Ann as")
    assert example.answer == "Bob"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('cluster = "a"\ntemplates = ["{x}"]', "either labelled or file"),
        ('cluster = "a"\nlabelled = "rte"\ntemplates = []', "one or more"),
        ('cluster = "a"\nlabelled = "rte"\ntemplates = ["{answer}?"]', "no {answer} without"),
        ('cluster = "a"\nfile = "x"\nanswer = "y"\ntemplates = ["x"]\nfields = {q = "("}',
         "named groups"),
        ('cluster = "a"\nfile = "x"\noptions = "y"\ntemplates = ["x"]', "a column"),
    ],
)  # fmt: skip
def test_mistakes_in_a_task_are_named(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match="(?s)" + re.escape(said)):
        read_task(text, "my.toml")


def test_a_template_that_names_an_unknown_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(
        'cluster = "a"\nfile = "my.jsonl"\nanswer = "a"\n'
        'fields = { q = "(?P<question>.*)" }\ntemplates = ["{passage}?"]\n'
    )
    write_jsonl(tmp_path / "my.jsonl", [{"q": f"who {n}", "a": "x"} for n in range(40)])
    task, folder = find_task(str(tmp_path / "my.toml"))
    assert folder == tmp_path
    with pytest.raises(UserError, match=r"(?s)names \{passage\}.*there is answer, label, question"):
        read_task_texts(task, [tmp_path])
    with pytest.raises(UserError, match="did you mean boolq"):
        find_task("boolqq")


def test_rows_that_do_not_fit_the_task_are_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "tasks/copa.jsonl", [{"query": "no link", "choices": [], "gold": 0}])
    with pytest.raises(UserError, match="line 1: query does not match"):
        read_task_texts(find_task("copa")[0], [tmp_path])
    write_jsonl(tmp_path / "tasks/copa.jsonl", [{"query": "so, because"}])
    with pytest.raises(UserError, match="line 1: no column 'choices'"):
        read_task_texts(find_task("copa")[0], [tmp_path])


@pytest.mark.parametrize("answer", [None, ["so"], "", " "])
def test_an_answer_that_is_none_is_refused(tmp_path: Path, answer: object) -> None:
    text = 'cluster = "odd"\nfile = "x.jsonl"\nfields = { q = "(?P<thing>.*)" }\nanswer = "a"\n'
    task = read_task(text + 'templates = ["{thing}?"]', "x")
    write_jsonl(tmp_path / "x.jsonl", [{"q": "it", "a": "so"}, {"q": "it", "a": answer}])
    with pytest.raises(UserError, match=r"line 2: a is "):
        read_task_texts(task, [tmp_path])
    write_jsonl(tmp_path / "x.jsonl", [{"q": None, "a": "so"}])
    with pytest.raises(UserError, match=r"line 1: q is None, no text"):
        read_task_texts(task, [tmp_path])


def test_numbers_outside_the_answers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("text\tlabel\na\t1\nb\t7\n")
    (tmp_path / "t.toml").write_text('texts = ["text"]\nnumbers = true\n[data]\ntrain = "t.tsv"\n')
    task = read_task(
        'cluster = "odd"\nlabelled = "t.toml"\ntemplates = ["{text}?"]', str(tmp_path / "o.toml")
    )
    with pytest.raises(UserError, match=r"t\.tsv, line 3: 7 is not from 0 to 5"):
        read_task_texts(task, [tmp_path])


def test_names_of_t0_are_of_known_clusters(public_data: Callable[[str], Path]) -> None:
    left_out = Counter[str]()
    rows = list(read_prompted(public_data("instructions/t0_train_sample.jsonl"), left_out))
    clusters = {row.cluster for row in rows}
    assert {"paraphrase", "sentiment", "reading", "summarisation"} <= clusters
    assert "other" not in clusters
    assert left_out["without prompt or completion"] < 0.03 * len(rows)
    assert not any("<|endoftext|>" in row.instruction.completion for row in rows)
    assert task_of("glue_mrpc_same_thing") == ("glue_mrpc", "paraphrase")
    assert task_of("glue_mrpcx") == ("glue_mrpcx", "other")


def test_own_rows_say_their_task_and_cluster(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "completion": "Ho<|endoftext|>", "task": "greet", "cluster": "talk"}
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "prompt": " "}))
    left_out = Counter[str]()
    (found,) = read_prompted(tmp_path / "own.jsonl", left_out)
    assert (found.instruction.completion, found.task, found.cluster) == ("Ho", "greet", "talk")
    assert left_out.total() == 1


def test_clusters_that_tell_of_each_other_are_left_out_together() -> None:
    assert left_out_clusters(["nli"]) == {"nli", "paraphrase"}
    assert left_out_clusters(["paraphrase"]) == {"nli", "paraphrase"}
    assert left_out_clusters(["reading"]) == {"reading", "reading_commonsense"}
    assert left_out_clusters(["nli"], related=False) == {"nli"}


def test_the_mixture_is_proportional_up_to_the_limit() -> None:
    sizes = {"a": 30_000, "b": 3_000, "c": 100}
    assert mixing_counts(sizes, 3_000) == {"a": 3_000, "b": 3_000, "c": 100}
    assert mixing_counts(sizes, 3_000, 610) == {"a": 300, "b": 300, "c": 10}


@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 500), min_size=1, max_size=6),
    st.integers(1, 100),
    st.integers(1, 1_000),
)
def test_the_mixture_adds_up_and_is_off_by_less_than_one(
    sizes: dict[str, int], limit: int, total: int
) -> None:
    found = mixing_counts(sizes, limit, total)
    rates = {name: min(size, limit) for name, size in sizes.items()}
    assert sum(found.values()) == total
    for name, count in found.items():
        assert abs(count - total * rates[name] / sum(rates.values())) < 1


def test_runs_of_words() -> None:
    assert list(word_runs(["a", "b", "c", "d"], 3)) == [("a", "b", "c"), ("b", "c", "d")]
    assert list(word_runs(["a"], 3)) == [("a",)]
    assert not list(word_runs([], 3))
