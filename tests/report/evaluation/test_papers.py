"""Our figures stand in the rows of the papers' tables, each under its own size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lmsmith.evaluation.measures import aggregate
from lmsmith.evaluation.rows import ItemRow
from lmsmith.evaluation.run import TaskResult
from lmsmith.evaluation.tasks.shipped import find_tasks
from lmsmith.evaluation.tasks.spec import Published, TaskSetting, TaskSpec
from lmsmith.report.evaluation.papers import nearest, papers_section, shown_published


def result_of(task: TaskSpec, shots: int, **metrics: float) -> TaskResult:
    rows = [
        ItemRow(id=str(n), metrics={k: v * (n % 2) for k, v in metrics.items()}) for n in (0, 1)
    ]
    measures = aggregate(rows)
    return TaskResult(task, TaskSetting(shots), measures, 2, 0, shots, 0.0, rows, Path("x"))


def test_a_row_has_every_size_and_the_nearest_is_marked() -> None:
    lambada, copa = find_tasks(["lambada", "copa"])
    results = [result_of(lambada, 0, accuracy=1.0, perplexity=2.0), result_of(copa, 16, accuracy=1)]
    section = papers_section(results, "m<1>", 300_000_000)
    assert section is not None
    gpt3, gpt2 = section["tables"]
    assert (gpt3["family"], gpt2["family"]) == ("GPT-3", "GPT-2")
    sizes = ["125M", "350M", "760M", "1.3B", "2.7B", "6.7B", "13B", "175B"]
    assert gpt3["columns"] == [(size, size == "350M") for size in sizes]
    assert [name for name, _ in gpt2["columns"]] == ["117M", "345M", "762M", "1.5B"]
    accuracy, perplexity, few = gpt3["rows"]
    assert (accuracy["task"], accuracy["ours"]) == ("lambada", "50.0\u00a0%")
    assert accuracy["cells"][0] == "42.7\u00a0%"
    assert accuracy["cells"][-1] == "76.2\u00a0%"
    assert perplexity["cells"][:3] == ["18.6", "9.09", "6.53"]
    assert (few["task"], few["cells"][0]) == ("copa, 16-shot", "67.0\u00a0%")
    assert few["source"] == "table H.1, 32 shots"
    assert gpt2["rows"][0]["source"] == "table 3"
    assert 'aria-label="m&lt;1&gt; on each task among GPT-3' in section["svg"]
    assert "copa, 16-shot" in section["svg"]


def test_what_a_paper_has_of_another_task_is_left_empty() -> None:
    one = Published("P", "Codex 12M", 12e6, "accuracy", 0.5)
    other = Published("P", "Codex 25M", 25e6, "accuracy", 0.6)
    copa = find_tasks(["copa"])[0]
    results = [
        result_of(replace(copa, name=name, published=(row,)), 0, accuracy=1.0)
        for name, row in (("a", one), ("b", other))
    ]
    section = papers_section(results, "m", 20_000_000)
    assert section is not None
    (table,) = section["tables"]
    cells = [row["cells"] for row in table["rows"]]
    assert cells == [["50.0\u00a0%", "–"], ["–", "60.0\u00a0%"]]


def test_without_figures_of_papers_there_is_no_section_and_without_shares_no_drawing() -> None:
    ptb, copa = find_tasks(["ptb", "copa"])
    assert papers_section([result_of(replace(copa, published=()), 0, accuracy=1)], "m", 9) is None
    section = papers_section([result_of(ptb, 0, word_perplexity=4.0)], "m", 9)
    assert section is not None
    assert section["svg"] == ""


@pytest.mark.parametrize(
    ("parameters", "first", "second"),
    [(135_000_000, "125M", "350M"), (1_000_000, "125M", "350M"), (5e9, "6.7B", "2.7B")],
)
def test_the_nearest_sizes_come_first(parameters: int, first: str, second: str) -> None:
    result = result_of(find_tasks(["rte/gpt3"])[0], 1, accuracy=1)
    rows = nearest(result, "accuracy", int(parameters))
    assert [row.model for row in rows] == [f"GPT-3 {first}", f"GPT-3 {second}"]
    assert shown_published(rows[0]).endswith("(GPT-3, table H.1)")
