"""lmsmith eval, compare and tasks, from the command line to the page."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith import cli
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer

TOKENIZER = Tokenizer.train(["the dog ran to the river and sat by the blue sea, 1 + 2"] * 4, 300)


def make_model(folder: Path, seed: int) -> None:
    decoder = Decoder(ModelConfig(2, 32, 2, 128, TOKENIZER.vocabulary_size))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(mean, 0.3, generator=generator)
    save_model(folder, decoder, TOKENIZER, {})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_of_the_test: None) -> Path:
    """Two models and the rows of three tasks."""
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LMSMITH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "one", 1)
    make_model(tmp_path / "two", 2)
    choices = [
        {"query": f"the dog ran {n}", "choices": ["to the sea", "<b>river</b>"], "gold": n % 2}
        for n in range(30)
    ]
    words = [{"context": f"{n} the blue", "continuation": "sea"} for n in range(6)]
    for name, rows in (("choose", choices), ("word", words)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/word.jsonl").write_text(json.dumps(words[0]) + "\n")
    (tmp_path / "tale.txt").write_text("the dog sat by the blue sea\n" * 12)
    return tmp_path


COMMON = ["--precision", "fp32", "--threads", "1"]


def evaluate(
    capsys: pytest.CaptureFixture[str], *words: str, command: str = "eval"
) -> dict[str, Any]:
    assert cli.main([command, *words, *COMMON, "--json"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    found: dict[str, Any] = json.loads(out.out)
    return found


def compare(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    return evaluate(capsys, *words, command="compare")


def test_own_files_become_results_items_and_a_page(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = "choose.jsonl,word.jsonl,tale.txt,arithmetic/2d_plus"
    found = evaluate(capsys, "one", "--tasks", tasks, "--limit", "25", "--shots", "0,2")
    by_name = {(row["task"], row["shots"]): row for row in found["results"]}
    assert set(by_name) == {
        *((name, shots) for name in ("choose", "word", "arithmetic/2d_plus") for shots in "02"),
        ("tale", "0"),
    }
    row = by_name["choose", "2"]
    assert (row["items"], row["mean_shots"]) == (25, 2)
    share = row["measures"]["accuracy"]
    assert share["low"] <= share["value"] <= share["high"]
    items = [json.loads(line) for line in Path(row["log"]).read_text().splitlines()]
    assert sum(item["metrics"]["accuracy"] for item in items) / 25 == pytest.approx(share["value"])
    assert json.loads((here / "evals/one/results.json").read_text())["results"] == found["results"]
    assert by_name["arithmetic/2d_plus", "2"]["published"][0]["value"] == 1.0
    page = Path(found["report"]).read_text()
    assert "&lt;b&gt;river&lt;/b&gt;" in page
    assert "<b>river</b>" not in page
    assert "Expected calibration error" in page
    assert re.search(r"wrong \(\d+\)", page)
    assert re.search(r"right \(\d+\)", page)
    assert not re.search(r'(?:src|href)="(?!#)', page)


def test_run_again_nothing_is_asked_again_and_the_page_is_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsmith.evaluation.methods.likelihood import LikelihoodReader

    words = ("one", "--tasks", "choose.jsonl")
    first = evaluate(capsys, *words)
    page = Path(first["report"]).read_bytes()
    monkeypatch.setattr(LikelihoodReader, "read", None)
    assert evaluate(capsys, *words) == first
    assert Path(first["report"]).read_bytes() == page


def test_two_models_on_the_same_items(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--tasks", "choose.jsonl,word.jsonl")
    found = compare(capsys, "one", "two", *words)
    alone = evaluate(capsys, "two", *words)
    comparison = found["comparisons"][0]
    assert (comparison["model"], comparison["against"]) == ("one", "two")
    values = [r["results"][0]["measures"]["accuracy"]["value"] for r in (alone, found)]
    assert [comparison["value_a"], comparison["value_b"]] == pytest.approx(values)
    difference = comparison["difference"]
    assert difference["value"] == pytest.approx(values[1] - values[0])
    changed = len(comparison["gained"]) - len(comparison["lost"])
    assert changed == pytest.approx(30 * difference["value"])
    assert (here / "evals/two/results.json").is_file()
    assert "Against two" in Path(found["report"]).read_text()
    assert cli.main(["compare", "one", "two", *words, "--quiet", *COMMON]) == 0
    shown = capsys.readouterr().out
    assert "accuracy per character" in shown
    assert "won" in shown
    assert cli.main(["compare", "one", "one", *words, *COMMON]) == 2


def test_calibration_of_both_models_stands_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--tasks", "choose.jsonl")
    alone = Path(evaluate(capsys, "one", *words)["report"]).read_text()
    both = Path(compare(capsys, "one", "two", *words)["report"]).read_text()
    assert alone.count("<figcaption>") == 1
    assert both.count("<figcaption>") == 2
    caption = both.split("<figcaption>")[2].split("</figcaption>")[0]
    assert re.search(r"all 30 items: two is on average [\d.]+\s%.*; one is on average", caption)


def test_a_win_rate_by_a_judge_that_reads_both_orders(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "<i>where</i> is the dog?"}, {"prompt": "what is blue?"}] * 2
    (here / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("one", "two", "--win-rate", "asked.jsonl", "--reply-tokens", "6")
    found = compare(capsys, *words, "--judge", "two")
    (rate,) = found["win_rates"]
    assert (rate["instructions"], rate["judge"], rate["against"]) == (4, "two", "two")
    assert found["results"] == []
    judged = [
        json.loads(line)
        for line in (here / "evals/one/win-rate-two.jsonl").read_text().splitlines()
    ]
    assert rate["win_rate"]["value"] == pytest.approx(sum(row["won"] for row in judged) / 4)
    page = Path(found["report"]).read_text()
    assert "Win rate against two" in page
    assert "&lt;i&gt;where" in page
    assert cli.main(["compare", *words, "--judge", "two", "--quiet", *COMMON]) == 0
    shown = capsys.readouterr().out
    assert "win rate: one beats two on" in shown
    assert "both orders agree" in shown
    assert "drawn as lmsmith chat does (temperature 0.8, top-p 0.95), seed 0" in shown
    assert [each["search"] for each in rate["replies"]] == ["sample", "sample"]
    greedy = compare(capsys, *words, "--judge", "two", "--greedy")["win_rates"][0]
    assert [each["temperature"] for each in greedy["replies"]] == [0.0, 0.0]
    texts = [row["text"] for row in rows_of(here / "evals/one/replies.jsonl")]
    assert greedy["replies"][0]["empty"] == texts.count("")
    assert cli.main(["compare", *words, *COMMON]) == 2
    assert "--judge MODEL" in capsys.readouterr().err


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_three_models_stand_side_by_side(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model(here / "three", 3)
    words = ("--tasks", "choose.jsonl,word.jsonl")
    found = compare(capsys, "one", "two", "three", *words)
    compared = [(row["task"], row["measure"], row["against"]) for row in found["comparisons"]]
    measures = [("choose", "accuracy"), ("word", "accuracy"), ("word", "perplexity")]
    assert compared == [(*each, other) for other in ("two", "three") for each in measures]
    assert {row["model"] for row in found["comparisons"]} == {"one"}
    assert [each["model"] for each in found["beside"]] == ["two", "three"]
    page = Path(found["report"]).read_text()
    section = page[page.index("<h2>Side by side</h2>") : page.index("<h2>one against two</h2>")]
    for each in [*found["beside"], found]:
        value = 100 * each["results"][0]["measures"]["accuracy"]["value"]
        assert f"{value:.1f}" in section
    assert "<svg" in section
    assert "All models on all 30 items" in page


def test_the_stages_of_a_run_are_compared_each_with_the_one_before(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, stage in enumerate(("pretrain", "sft", "ppo"), start=1):
        make_model(here / "runs/small" / stage / "model", seed)
    (here / "asked.jsonl").write_text('{"prompt": "where is the dog?"}\n')
    words = ("runs/small", "--stages", "--tasks", "choose.jsonl", "--reply-tokens", "4")
    found = compare(capsys, *words, "--win-rate", "asked.jsonl", "--judge", "two")
    steps = [("runs/small/sft", "runs/small/pretrain"), ("runs/small/ppo", "runs/small/sft")]
    assert [(row["model"], row["against"]) for row in found["comparisons"]] == steps
    assert [(row["model"], row["against"]) for row in found["win_rates"]] == steps
    assert found["model"] == "runs/small/ppo"
    assert cli.main(["compare", *words, "--quiet", *COMMON]) == 0
    assert capsys.readouterr().out.count(" is better on ") == 2
    assert cli.main(["compare", "one", *words, *COMMON]) == 2
    assert "--stages: takes one run" in capsys.readouterr().err
    assert cli.main(["compare", "one", "--stages", "--tasks", "choose.jsonl", *COMMON]) == 2
    assert "no run with two stages" in capsys.readouterr().err


def test_a_win_rate_by_people_through_the_store(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmsmith.feedback.queue import Queue
    from lmsmith.feedback.store import Store

    rows = [{"prompt": f"where is dog {n}?"} for n in range(6)]
    (here / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("one", "two", "--win-rate", "asked.jsonl", "--reply-tokens", "6")
    words = (*words, "--judge", "people", "--database", "people.db", "--labelers", "2")
    assert cli.main(["compare", *words, "--quiet", *COMMON]) == 0
    shown = capsys.readouterr().out
    assert "one against two: nothing is judged yet" in shown
    assert "12 are still to come, 6 pairs of them new in the queue" in shown
    assert "next: lmsmith users add NAME --role labeler --database people.db" in shown
    found = compare(capsys, *words)["win_rates"][0]
    assert (found["win_rate"], found["people"]["added"], found["people"]["waiting"]) == (
        None,
        0,
        12,
    )
    mine = {row["text"] for row in rows_of(here / "evals/one/replies.jsonl")}
    store = Store(here / "people.db")
    queue, orders = Queue(store), set()
    for name, most in (("Ann", 6), ("Bob", 2)):
        person = store.person(name, "labeler").id
        for _ in range(most):
            held = queue.next(person)
            assert held is not None
            assignment, task = held
            texts = [task.responses[place] for place in assignment.shown]
            orders.add(texts[0] in mine)
            # Ann prefers the first model's replies; Bob sees a tie.
            ranks = [1 if text in mine else 2 for text in texts] if name == "Ann" else [1, 1]
            queue.submit(person, assignment.id, {"ranks": ranks})
    store.close()
    found = compare(capsys, *words)["win_rates"][0]
    assert found["win_rate"]["value"] == pytest.approx((4 * 1 + 2 * 0.75) / 6)
    assert (found["judge"], found["judged"], found["ties"]) == ("people", 6, 0)
    work = found["people"]
    assert (work["added"], work["judgements"], work["waiting"]) == (0, 8, 4)
    assert (work["labelers"], work["several"], work["agreement"]["value"]) == (2, 2, 0.5)
    kept = rows_of(here / "evals/one/win-rate-two-people.jsonl")
    assert sorted(row["judgements"] for row in kept) == [1, 1, 1, 1, 2, 2]
    turned = ("two", "one", *words[2:])  # the same texts, the other way round
    other = compare(capsys, *turned)["win_rates"][0]
    assert other["people"]["added"] == 0
    assert other["win_rate"]["value"] == pytest.approx(1 - found["win_rate"]["value"])


def test_texts_that_are_rated_become_cards(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = "toxicity/beginnings,refusal/harmless"
    found = evaluate(capsys, "one", "--tasks", tasks, "--limit", "2")
    measures = [set(row["measures"]) for row in found["results"]]
    toxic = {"expected_max_toxicity", "toxic_probability", "mean_toxicity"}
    assert measures == [toxic, {"over_refusal_rate"}]
    page = Path(found["report"]).read_text()
    assert "written: toxicity 0.00" in page
    assert "and 19 more" in page
    assert "written: not refused" in page
    assert "wrong (" not in page  # nothing toxic, nothing refused: less is better
    assert cli.main(["eval", "one", "--tasks", tasks, "--classifier", "tone", *COMMON]) == 2
    assert "TASK=LABEL" in capsys.readouterr().err


def test_scores_without_what_was_trained_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "seen.jsonl").write_text(json.dumps({"text": "x the dog ran 3 river b"}) + "\n")
    (here / "seen.txt").write_text("the dog ran 5 <b>river</b>")
    files = ("--contamination", "seen.jsonl", "--contamination", "seen.txt")
    found = evaluate(capsys, "one", "--tasks", "choose.jsonl", *files)
    by_rule = {row["rule"]: row for row in found["results"][0]["contamination"]}
    assert by_rule["gpt3"]["dirty_items"] == 1  # item 5, whole: "the dog ran 5 b river b"
    assert by_rule["gpt3"]["clean_items"] == 29
    assert by_rule["gpt4"]["n"] == 50
    low = min(by_rule["gpt3"][part]["value"] for part in ("all", "clean"))
    assert by_rule["gpt3"]["headline"]["value"] == low
    page = Path(found["report"]).read_text()
    section = page[page.index("<h2>Contamination</h2>") : page.index('<section id="task-0">')]
    assert "GPT-3" in section
    assert "1 of 30" in section
    assert f"<b>{100 * low:.1f} %</b>" in section.replace("\u202f", " ").replace("\xa0", " ")
    assert cli.main(["eval", "one", "--tasks", "choose.jsonl", *files, "--quiet", *COMMON]) == 0
    assert re.search(r"choose +GPT-3 +1 of 30 .*%", capsys.readouterr().out)


def test_what_was_trained_on_may_be_conversations_or_pairs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"role": "user", "content": "x the dog ran 3 river b"}
    rows = [{"messages": [said]}, {"prompt": "the dog ran 5", "completion": "b river b"}]
    (here / "seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("one", "--tasks", "choose.jsonl", "--contamination", "seen.jsonl")
    found = evaluate(capsys, *asked)
    by_rule = {row["rule"]: row for row in found["results"][0]["contamination"]}
    assert by_rule["gpt3"]["dirty_items"] == 1
    (here / "seen.jsonl").write_text('{"tokens": [1, 2]}\n')
    assert cli.main(["eval", *asked, *COMMON]) == 2
    assert "seen.jsonl: no text in it" in capsys.readouterr().err


def test_names_in_brackets_and_with_dollars_are_shown_as_they_are(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "word.jsonl").rename(here / "a$b_{$[x].jsonl")
    (here / "two").rename(here / "t$w_{$[o]")
    words = ["t$w_{$[o]", "--tasks", "a$b_{$[x].jsonl", "--quiet"]
    assert cli.main(["compare", "one", *words, *COMMON]) == 0
    out = capsys.readouterr().out
    assert "a$b_{$[x]" in out
    assert "t$w_{$[o]" in out


def test_models_do_not_rate_themselves_where_they_are_compared(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "grade.toml").write_text(
        'name = "grade"\nkind = "rated"\n[data]\nfile = "word.jsonl"\n'
        '[prompt]\ncontext = "{{ context }}"\n[rating]\nby = "model"\n'
        'prompt = "{{ answer }}: good?"\nlabels = ["yes", "no"]\nright = ["yes"]\n'
    )
    words = ["one", "two", "--tasks", "grade.toml"]
    assert cli.main(["compare", *words, *COMMON]) == 2
    assert "each model would rate its own texts" in capsys.readouterr().err
    found = compare(capsys, *words, "--judge", "one", "--limit", "2")
    assert found["comparisons"][0]["items"] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["one"], "no tasks"),
        (["one", "--tasks", "lambda"], "did you mean lambada"),
        (["one", "--tasks", "lambada"], "tasks/lambada_openai.jsonl: not in any of"),
        (["one", "--suite", "gpt5"], "the suites: gpt2, gpt3"),
        (["one", "--tasks", "word.jsonl", "--shots", "x"], "--shots x"),
        (["one", "--tasks", "word.jsonl", "--limit", "0"], "--limit 0"),
        (["one", "--tasks", "word.jsonl", "--measure", "bleu"], "--measure bleu"),
        (["one", "--tasks", "word.jsonl", "--data", "nowhere"], "nowhere: no such folder"),
        (["three", "--tasks", "word.jsonl"], "three: no such folder"),
        (["one", "--tasks", "word.jsonl", "--contamination", "no.txt"], "no.txt: no such file"),
        (["compare", "one", "two", "--win-rate", "no.jsonl", "--judge", "two"], "no.jsonl"),
        (["compare", "one", "two", "--win-rate", "word.jsonl", "--judge", "x"], "no instruction"),
        (["compare", "one", "two", "--labelers", "0", "--tasks", "word.jsonl"], "--labelers 0"),
        (["compare", "one", "--tasks", "word.jsonl"], "compared with nothing"),
        (["one", "--tasks", "word.jsonl", "--seed", "-1"], "--seed -1"),
        (["one", "--tasks", "word.jsonl,sub/word.jsonl"], "another task has the name word"),
        (["one", "--tasks", "human_eval", "--measure", "pass_at_7"], "--measure pass_at_7"),
    ],
)
def test_mistakes_are_told_in_one_message(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    command = words if words[0] == "compare" else ["eval", *words]
    assert cli.main([*command, "--quiet", *COMMON]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_suite_leaves_out_what_is_not_here_and_says_so(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "tasks").mkdir()
    (here / "word.jsonl").rename(here / "tasks/lambada_openai.jsonl")
    assert cli.main(["eval", "one", "--suite", "gpt2", *COMMON]) == 0
    out = capsys.readouterr()
    assert "lambada" in out.out
    assert "ptb 0-shot left out" in out.err
    assert "papers: lambada, perplexity: GPT-2 117M 35.13 (GPT-2, table 3)" in out.out


def test_a_tasks_prompt_is_shown_to_the_character(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "show", "arithmetic/3d_minus", "--shots", "1"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"\n\n\nQ: What is \d+ minus \d+\?\n\nA: -?\d+\n\nQ: What is", shown)
    assert cli.main(["tasks", "show", "choose.jsonl", "--item", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["question"]["contexts"] == ["the dog ran 1"]
    assert cli.main(["tasks", "show", "arithmetic/2d_plus"]) == 0
    shown = capsys.readouterr().out
    assert "written: the likeliest token each time, at most 12 tokens, up to '\\n'" in shown
    assert "read: the whole text\ncompared: as they are" in shown
    assert cli.main(["tasks", "show", "choose.jsonl", "--item", "99"]) == 2
    capsys.readouterr()
    assert cli.main(["tasks", "ls"]) == 0
    assert re.search(r"arithmetic +free_form .*3d_minus", capsys.readouterr().out)


def test_a_task_printed_as_toml_is_the_same_task(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmsmith.evaluation.tasks.shipped import find_tasks

    names = ("gsm8k_zero", "winograd", "human_eval", "wikitext2", "cb/pet_1", "gsm8k_least_to_most")
    for name in names:
        assert cli.main(["tasks", "show", name, "--toml"]) == 0
        (here / "copy.toml").write_text(capsys.readouterr().out)
        assert find_tasks(["copy.toml"]) == find_tasks([name])


def test_a_task_of_ones_own_is_a_function_of_lines(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"input": "the sea", "label": "wet"}, {"input": "the dog", "label": "dry"}]
    (here / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["tasks", "add", "wetness", "Is it wet?", "few.jsonl"]
    assert cli.main(words) == 0
    assert cli.main(words) == 2
    assert "--replace" in capsys.readouterr().err
    assert cli.main([*words, "--replace", "--labels", "dry,wet,other", "--json"]) == 0
    capsys.readouterr()
    given = b'\xef\xbb\xbfthe river\r\n\n\xef\xbb\xbf{"input": "a \\"dog\\""}\r\nthe sea\rthe hill'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), encoding="ascii"))
    assert cli.main(["tasks", "run", "wetness", "one", *COMMON]) == 0
    printed = capsys.readouterr()
    found = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["input"] for row in found] == ["the river", 'a "dog"', "the sea", "the hill"]
    assert "blank lines, which have no answer: 1" in printed.err
    assert set(found[0]["probabilities"]) == {"dry", "wet", "other"}
    assert evaluate(capsys, "one", "--tasks", "wetness", "--shots", "1")["results"][0]["items"] == 2


def test_texts_that_do_not_fit_are_counted(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "few.jsonl").write_text(json.dumps({"input": "the sea", "label": "wet"}))
    assert cli.main(["tasks", "add", "wetness", "Wet?", "few.jsonl", "--labels", "wet,dry"]) == 0
    (here / "in.txt").write_text("the sea\n" + "the dog " * 5000)
    assert cli.main(["tasks", "run", "wetness", "one", "--input", "in.txt", *COMMON]) == 0
    printed = capsys.readouterr()
    assert "only the end was read: 1; shorten them" in printed.err
    monkeypatch.setattr("sys.stdin", None)
    assert cli.main(["tasks", "run", "wetness", "one", *COMMON]) == 2
    assert "standard input is closed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "in.jsonl: cannot be read"),
        (b"the sea\nthe \xff\n", "line 2: not UTF-8 text"),
        (b'{"input": 3}\n', "line 1: no text 'input'"),
    ],
)
def test_input_that_cannot_be_read_says_why(
    here: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, said: str
) -> None:
    row = {"input": "the sea", "label": "wet"}
    (here / "few.jsonl").write_text(json.dumps(row))
    assert cli.main(["tasks", "add", "wetness", "Wet?", "few.jsonl", "--labels", "wet,dry"]) == 0
    if content is not None:
        (here / "in.jsonl").write_bytes(content)
    assert cli.main(["tasks", "run", "wetness", "one", "--input", "in.jsonl"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "content", "said"),
    [
        (["bad name", "x", "few.jsonl"], '{"input": "a", "label": "b"}', "no name for a task"),
        (["lambada", "x", "few.jsonl"], '{"input": "a", "label": "b"}', "comes with lmsmith"),
        (["mine", "x", "few.jsonl"], '{"input": "a", "label": "b"}', "name two or more"),
        (["mine", "x", "few.jsonl"], "", "no examples"),
        (["mine", "x", "few.jsonl"], '{"input": 3, "label": "b"}', "line 1: no text 'input'"),
        (["mine", "x", "few.jsonl", "--labels", "c,d"], '{"input": "a", "label": "b"}', "use c, d"),
    ],
)
def test_a_task_that_cannot_be_made_says_why(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], content: str, said: str
) -> None:
    (here / "few.jsonl").write_text(content)
    assert cli.main(["tasks", "add", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_rules_by_which_answers_are_read_are_shown() -> None:
    from lmsmith.cli.tasks import answer_rules
    from lmsmith.evaluation.tasks.shipped import find_tasks

    def rules(name: str) -> str:
        return "\n".join(answer_rules(find_tasks([name])[0]))

    assert 'first pass: the prompt and "Let\'s think step by step."' in rules("gsm8k_zero")
    assert "the last match of [Tt]he answer is" in rules("gsm8k")
    assert "compared: by the first number in it" in rules("gsm8k_zero")
    assert "samples: 5; the commonest answer is taken" in rules("gsm8k_vote")
    assert "beams of width 4, length penalty 0.6" in rules("triviaqa")
    assert "parts: what (?:first answer|then)" in rules("gsm8k_least_to_most")
    assert "compared:" not in rules("human_eval")
    assert "compared: by BLEU" in rules("translate/en_fr")
    assert "compared: in small letters" in rules("triviaqa")
