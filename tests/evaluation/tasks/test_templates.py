"""Templates and regular expressions of task files: no more time and memory than they may have."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmsmith.core.errors import UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.evaluation import run
from lmsmith.evaluation.methods.answers import extract_answers
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.run import evaluate_task
from lmsmith.evaluation.tasks import prompts, templates
from lmsmith.evaluation.tasks.data import Item, read_data
from lmsmith.evaluation.tasks.prompts import (
    prepare,
    with_shots,
    write_grading,
    write_part,
    write_question,
)
from lmsmith.evaluation.tasks.shipped import find_tasks
from lmsmith.evaluation.tasks.spec import AnswerSpec, DataSpec, PromptSpec, TaskSetting, TaskSpec

PROMPT = PromptSpec(context="{{ q }}", choices="choices", gold="gold")
TASK = TaskSpec("made", "multiple_choice", DataSpec(file="a.jsonl"), prompt=PROMPT)
FIELDS = {"q": "blue?", "choices": ["yes", "no"], "gold": 0}
LOOPS = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4


def an_item(**fields: Any) -> Item:
    return Item("0", FIELDS | fields, "a.jsonl, line 1")


@pytest.fixture(autouse=True)
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.5)


HOSTILE_TEXTS = [
    ("{{ 'a' * 10**10 }}", "memory"),
    ("{{ 'a'.ljust(10**10) }}", "memory"),
    ("{{ 'a'|center(10**10) }}", "memory"),
    ("{{ '%10000000000d' % 1 }}", "memory"),
    ("{{ '{:>10000000000}'.format(1) }}", "memory"),
    ("{{ q * 10**7 }}", "more than 1,000,"),
    ("{{ 9**(9**9) }}", "seconds of the processor"),
    (LOOPS, "seconds of the processor"),
    ("{% set n = namespace(x='a') %}" + "{% set n.x = n.x + n.x %}" * 99, "memory"),
    ("{% for a in range(99999) %}{{ 'x' * 99 }}{% endfor %}", "more than 1,000,"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deep"),
    ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested too deep|too many nested"),
    ("{{ lipsum(n=99999) }}", "seconds of the processor|more than 1,000,"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ cycler.__init__.__globals__ }}", "unsafe"),
    ("{% include 'x' %}", "no loader"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "said"), HOSTILE_TEXTS)
def test_a_hostile_template_ends_in_one_message(template: str, said: str) -> None:
    task = replace(TASK, prompt=replace(PROMPT, context=template), file="mine/made.toml")
    item = an_item()
    prepare(task, TaskSetting(), [item], [item])
    with pytest.raises(UserError) as caught:
        write_question(task, item)
    where = "task made (mine/made.toml), prompt.context, a.jsonl, line 1: "
    assert caught.value.problem.startswith(where)
    assert re.search(said, caught.value.problem)
    assert len(caught.value.problem) < 1000
    assert write_question(TASK, an_item()).contexts == ("blue?",)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("[q] * 10**10", "memory"),
        ("[q] * 10**6", "more than 10,000 values"),
        ("range(99999)", "more than 10,000 values"),
        ("[[q] * 999] * 999", "more than 10,000 values"),
        ("[q * 10**7, q]", "more than 1,000,"),
        ("[9**(9**9), q]", "seconds of the processor"),
        ("[10**9999, q]", "4300"),
        ("[q.x.y, q]", "no attribute 'x'"),
    ],
)
def test_a_hostile_expression_ends_in_one_message(expression: str, said: str) -> None:
    for key in ("choices", "gold"):
        task = replace(TASK, prompt=replace(PROMPT, **{key: expression}))
        with pytest.raises(UserError, match=rf"task made, prompt\.{key}, a\.jsonl, line 1: ") as e:
            write_question(task, an_item())
        assert re.search(said, e.value.problem)
    assert write_question(TASK, an_item()).choices == ("yes", "no")


@pytest.mark.parametrize("key", ["instruction", "target", "answers", "decompose", "last"])
def test_every_setting_has_the_limits(key: str) -> None:
    prompt = PromptSpec(context="q", target="x")
    task = TaskSpec("free", "free_form", DataSpec(file="a.jsonl"), prompt=prompt)
    parts = {"context": "{{ q }}", "last": "{{ q }}"}
    if key in ("decompose", "last"):
        parts |= {"context" if key == "decompose" else "last": LOOPS}
        task = replace(task, decompose=replace(task.decompose, **parts))
    elif key == "answers":
        task = replace(task, prompt=replace(task.prompt, answers="9**(9**9)"))
    else:
        task = replace(task, prompt=replace(task.prompt, **{key: LOOPS}))
    with pytest.raises(UserError, match=r"line 1: the template needs more than 0\.5 seconds"):
        with_shots(task, an_item(), [])
    with pytest.raises(UserError, match=r"rating\.prompt: the template needs"):
        write_grading(LOOPS, with_shots(TASK, an_item(), []), "an answer")
    with pytest.raises(UserError, match=r"decompose\.question: the template needs"):
        write_part(LOOPS, "a part")


def test_the_document_that_is_too_much_is_named() -> None:
    """A template may be harmless but for one document."""
    loop = "{% for a in range(q|length ** 4) %}"
    text = loop * 2 + "{% endfor %}" * 2 + "x"
    task = replace(TASK, prompt=replace(PROMPT, context=text))
    items = [Item(str(n), FIELDS | {"q": "a" * 2}, f"a.jsonl, line {n + 1}") for n in range(600)]
    items[300] = Item("300", FIELDS | {"q": "a" * 17}, "a.jsonl, line 301")
    prepare(task, TaskSetting(), items, items)
    assert write_question(task, items[299]).contexts == ("x",)
    assert write_question(task, items[301]).contexts == ("x",)
    with pytest.raises(UserError, match=r"prompt\.context, a\.jsonl, line 301: the template needs"):
        write_question(task, items[300])


def test_the_characters_of_all_prompts_are_bounded(
    make_tiny: Callable[..., EvaluatedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**FIELDS, "q": f"{n}?"} for n in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = replace(TASK, prompt=replace(PROMPT, context="{{ 'x' * 900000 }}{{ q }}"))
    place = ([tmp_path], tmp_path, QuietProgress())
    with pytest.raises(UserError, match=r"made, .*line 1: this prompt has 18,\d\d\d,\d\d\d char"):
        evaluate_task(make_tiny(), task, TaskSetting(20), *place)
    monkeypatch.setattr(prompts, "MOST_PROMPTS", 4_000_000)
    with pytest.raises(UserError, match=r"line 5: the prompts so far have 4,50\d,\d\d\d char"):
        evaluate_task(make_tiny(), task, TaskSetting(), *place)


def test_a_packed_file_that_grows_without_end_is_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        for _ in range(80):
            file.write(b" " * (1 << 20))
    with pytest.raises(UserError, match="more than 67,108,864 bytes"):
        read_data(TASK, [tmp_path])


def test_an_answer_that_rouge_takes_too_long_for_is_refused() -> None:
    prompt = PromptSpec(context="{{ q }}", answers="[q * 20000]")
    task = TaskSpec("free", "free_form", DataSpec(file="a"), headline="rouge_l", prompt=prompt)
    with pytest.raises(UserError, match=r"answer of 100,000 characters is too long for ROUGE-L"):
        write_question(task, an_item())


def test_a_nested_document_is_refused_or_written() -> None:
    deep: Any = "a"
    for _ in range(900):
        deep = [deep]
    with pytest.raises(UserError, match=r"line 1: .*(list|nested)"):
        write_question(TASK, an_item(q=deep))
    with pytest.raises(UserError, match=r"line 1: .*(choice|nested)"):
        write_question(TASK, an_item(choices=deep))


@pytest.mark.parametrize("name", ["arithmetic/2d_plus", "refusal/harmful", "hindsight"])
def test_many_at_once_are_written_as_one_by_one(name: str) -> None:
    task = find_tasks([name])[0]
    one, many = read_data(task, [], 0), read_data(task, [], 0)
    prepare(task, TaskSetting(4), many.items[:300], many.pool)
    assert all(item.written for item in many.items[:300])
    for alone, together in zip(one.items[:20], many.items[:20], strict=True):
        assert with_shots(task, alone, one.pool[:2]) == with_shots(task, together, many.pool[:2])


CATASTROPHES = ["(a+)+$", "(a|a)*$", "(.*a){20}$", r"(a*)*b\1", "((a{1,99}){1,99}){1,99}b"]


@pytest.mark.parametrize("pattern", CATASTROPHES)
def test_a_hostile_regular_expression_ends_in_one_message(pattern: str) -> None:
    spec = AnswerSpec(extract=f"(?:{pattern})()")
    texts = ["no", "aaa", "a" * 5000 + "!", "no"]
    with pytest.raises(templates.SlowPattern, match=r"text of 5,001 characters.*0\.5 sec") as e:
        extract_answers(texts, spec)
    assert e.value.number == 2
    assert extract_answers(["a 1"], AnswerSpec(extract=r"(\d)")) == ["1"]


def test_a_long_regular_expression_is_refused_before_it_is_compiled() -> None:
    long = "(?i)(" + "[a-\U0010ffff]" * 20000 + ")"
    (problem,) = AnswerSpec(extract=long).check()
    assert "at most 1,000" in str(problem.expected)


def test_what_was_answered_before_a_slow_expression_is_kept(
    make_tiny: Callable[..., EvaluatedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "TOKENS_A_BATCH", 1)  # each item is a batch
    rows = [{"q": "the dog " * (n + 1), "a": "river"} for n in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskSpec(
        "made",
        "free_form",
        DataSpec(file="a.jsonl"),
        prompt=PromptSpec(context="{{ q }}", target="{{ a }}"),
        answer=AnswerSpec(max_new_tokens=4, extract="(.*)"),
        file="made.toml",
    )
    find, asked = templates.find_all, []

    def slow_at_the_third(pattern: str, texts: list[str]) -> list[list[str | None]]:
        asked.append(texts)
        if len(asked) == 3:
            pattern, texts = "(a+)+$", ["a" * 5000 + "!"]
        return find(pattern, texts)

    monkeypatch.setattr("lmsmith.evaluation.methods.answers.find_all", slow_at_the_third)
    place = (make_tiny(), task, TaskSetting(), [tmp_path], tmp_path, QuietProgress())
    said = r"task made \(made\.toml\), answer\.extract, item \d: on a text of 5,001 characters"
    with pytest.raises(UserError, match=said):
        evaluate_task(*place)
    assert len(evaluate_task(*place).rows) == 4
    assert len(asked) == 5  # of the two kept, none was asked again
