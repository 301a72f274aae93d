"""Instruction tuning: what is held out is never learnt, and what tuning gives is measured."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith.core.config import problems_in
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import write_jsonl
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.instructions.prompted import read_prompted
from lmsmith.corpus.instructions.task import shipped_instruction_tasks
from lmsmith.corpus.words import normal_words
from lmsmith.evaluation import run as evaluation_run
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.report.run.page import build_report
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.flan import FlanConfig, divided_templates, run
from lmsmith.stages.pipeline import load_stage_recipe, run_recipe
from lmsmith.stages.zero_shot import ZeroShotConfig
from lmsmith.stages.zero_shot import run as measure
from lmsmith.tokenizers import Tokenizer
from tiny_models import TEXTS

WORDS = ["dog", "cat", "sea", "mat", "sky", "house", "river", "sister", "boat", "tree"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def own_tasks(folder: Path) -> tuple[str, ...]:
    """Three small tasks of two clusters, the one of the cluster ``odd`` held out."""
    chance = random.Random(1)
    for name, cluster in (("colour", "even"), ("size", "even"), ("sound", "odd")):
        rows = [
            {"q": f"{name} {chance.choice(WORDS)} {chance.choice(WORDS)} {n}",
             "choices": ["yes", "no"], "gold": n % 2}
            for n in range(80)
        ]  # fmt: skip
        write_jsonl(folder / f"{name}.jsonl", rows)
        (folder / f"{name}.toml").write_text(
            f'cluster = "{cluster}"\nfile = "{name}.jsonl"\noptions = "choices"\ngold = "gold"\n'
            'fields = { q = "(?P<thing>.*)" }\n'
            'templates = ["Is {thing} so?", "{thing}, is it?", "Say if {thing}.", "So {thing}?",\n'
            '  { prompt = "Name what is so: {answer}", target = "{thing}" }]\n'
        )
    return tuple(str(folder / f"{name}.toml") for name in ("colour", "size", "sound"))


def tiny(tasks: tuple[str, ...], **changes: Any) -> FlanConfig:
    given: dict[str, Any] = {"held_out": ("odd",), "kept_back": 1, "examples": 60} | changes
    return FlanConfig(tasks=tasks, test_examples=12, validation_examples=2, **given)


def stage_folder(path: Path, seed: int = 5) -> StageFolder:
    path.mkdir(parents=True, exist_ok=True)
    machine = MachineConfig(precision="fp32", compile="off", threads=1)
    return StageFolder(path, seed, machine, QuietProgress())


def test_no_text_template_or_task_of_a_held_out_cluster_is_learnt(
    public_data: Callable[[str], Path], tmp_path: Path
) -> None:
    t0 = public_data("instructions/t0_train_sample.jsonl")
    config = FlanConfig(data=str(t0.parents[1]), files=(str(t0),), test_examples=400)
    metrics = run(config, {}, out := stage_folder(tmp_path / "flan"))
    names = {name for name, task in shipped_instruction_tasks().items()
             if task.cluster in ("nli", "paraphrase")}  # fmt: skip
    assert names == {"rte", "cb", "mrpc", "stsb"}
    learnt = rows_of(out / "demonstrations.jsonl") + rows_of(out / "validation.jsonl")
    assert len(learnt) > 10_000
    tasks = {row["id"].split("/")[0] for row in learnt}
    assert not tasks & names
    assert not any(name.startswith(("glue_", "paws", "anli")) for name in tasks)
    assert "imdb" in tasks
    assert "sst2" in tasks
    left_out = [r for r in read_prompted(t0, Counter())
                if r.cluster in ("nli", "paraphrase")]  # fmt: skip
    assert metrics["of_clusters_left_out"] == len(left_out) > 100
    said = {row["messages"][0]["content"] for row in learnt}
    assert not said & {each.instruction.prompt for each in left_out}
    # No eight words of a held-out example's texts, by an index of our own.
    held = set()
    for name in ("rte", "cb"):
        for line in (t0.parents[1] / f"glue/{name}.val.jsonl").read_text().splitlines():
            for key in ("premise", "hypothesis"):
                words = normal_words(json.loads(line)[key])
                held |= {" ".join(words[n : n + 8]) for n in range(len(words) - 7)}
    assert len(held) > 10_000
    for row in learnt:
        words = normal_words("\n".join(each["content"] for each in row["messages"]))
        runs = {" ".join(words[n : n + 8]) for n in range(len(words) - 7)}
        assert not runs & held, row["id"]
    measured = {path.stem for path in (out / "measured" / "unseen").glob("*.jsonl")}
    assert measured == {"rte", "cb"}


def test_templates_kept_back_are_measured_and_not_learnt(tmp_path: Path) -> None:
    config = tiny(own_tasks(tmp_path))
    metrics = run(config, {}, out := stage_folder(tmp_path / "flan"))
    learnt = rows_of(out / "demonstrations.jsonl")
    assert metrics["demonstrations"] == len(learnt) == 60
    mixture = json.loads((out / "mixture.json").read_text())["tasks"]
    assert set(mixture) == {"colour", "size"}
    for name in ("colour", "size"):
        used = {row["id"].split("/")[1] for row in learnt if row["id"].startswith(name)}
        assert used == set(mixture[name]["templates"])
        assert len(used) == 4
        seen = {row["template"] for row in rows_of(out / "measured/seen" / f"{name}.jsonl")}
        back = {row["template"]
                for row in rows_of(out / "measured/other_phrasing" / f"{name}.jsonl")}  # fmt: skip
        assert {f"template {number}" for number in seen} < used
        assert len(back) == 1
        assert f"template {back.pop()}" not in used
    row = rows_of(out / "measured/unseen/sound.jsonl")[0]
    assert row["choices"] == ["yes", "no"]
    assert row["query"].endswith("OPTIONS:\n- yes\n- no")
    test = {json.loads(json.dumps(r["query"])) for r in rows_of(out / "measured/seen/size.jsonl")}
    assert not test & {r["messages"][0]["content"] for r in learnt}


def test_the_same_seed_gives_the_same_files_and_another_others(tmp_path: Path) -> None:
    config = tiny(own_tasks(tmp_path))
    folders = [stage_folder(tmp_path / str(n), seed) for n, seed in enumerate((5, 5, 6))]
    for folder in folders:
        run(config, {}, folder)
    texts = [(folder / "demonstrations.jsonl").read_bytes() for folder in folders]
    assert texts[0] == texts[1] != texts[2]


def test_more_templates_and_clusters_add_to_fewer() -> None:
    task = shipped_instruction_tasks()["sst2"]
    learnt = [divided_templates(task, 2, most, 7) for most in (1, 3, 0)]
    assert [len(numbers) for numbers, _ in learnt] == [1, 3, 8]
    assert learnt[0][0] == learnt[1][0][:1] == learnt[2][0][:1]
    assert learnt[1][0] == learnt[2][0][:3]
    assert len({tuple(back) for _, back in learnt}) == 1
    assert not task.templates[learnt[0][0][0]].turned
    assert not any(task.templates[n].turned for n in learnt[0][1])


def test_examples_that_share_text_with_held_out_ones_are_left_out(tmp_path: Path) -> None:
    tasks = own_tasks(tmp_path)
    run(tiny(tasks), {}, out := stage_folder(tmp_path / "before"))
    asked = rows_of(out / "measured/unseen/sound.jsonl")[0]["query"].split("\n")[0] + " "
    sounds = [row["q"] for row in rows_of(tmp_path / "sound.jsonl")]
    (text,) = (each for each in sounds if re.search(rf"{each}[ ,.?]", asked))
    colours = rows_of(tmp_path / "colour.jsonl")
    copied = [{**row, "q": f"{row['q']} {text.upper()}!"} for row in colours]
    write_jsonl(tmp_path / "colour.jsonl", copied)
    metrics = run(tiny(tasks), {}, out := stage_folder(tmp_path / "after"))
    assert metrics["overlapping"] > 40
    assert metrics["tasks"] == 1
    assert not any(r["id"].startswith("colour") for r in rows_of(out / "demonstrations.jsonl"))


def test_a_row_that_names_a_held_out_task_is_not_learnt(tmp_path: Path) -> None:
    tasks, file = own_tasks(tmp_path), tmp_path / "written.jsonl"
    row = {"prompt": "Is it so?", "completion": "yes"}
    names = ["sound", "super_glue_rte", "rte", "imdb", "mine"]
    write_jsonl(file, [{**row, "task": name} for name in names for _ in range(20)])
    config = tiny(tasks, held_out=("odd", "nli"), files=(str(file),))
    metrics = run(config, {}, out := stage_folder(tmp_path / "flan"))
    assert metrics["of_clusters_left_out"] == 60
    mixture = json.loads((out / "mixture.json").read_text())["tasks"]
    assert {name: each["cluster"] for name, each in mixture.items()} == {
        "colour": "even", "size": "even", "imdb": "sentiment", "mine": "other",
    }  # fmt: skip
    write_jsonl(file, [{**row, "task": "size"}])
    with pytest.raises(UserError, match="the data set size has the name of a task"):
        run(config, {}, stage_folder(tmp_path / "again"))


def test_what_cannot_be_measured_is_told_before_training(tmp_path: Path) -> None:
    tasks = own_tasks(tmp_path)
    rows = rows_of(tmp_path / "sound.jsonl")
    write_jsonl(tmp_path / "sound.jsonl", [{**row, "answer": "so"} for row in rows])
    free = (tmp_path / "sound.toml").read_text()
    free = free.replace('options = "choices"\ngold = "gold"', 'answer = "answer"')
    (tmp_path / "sound.toml").write_text(free)
    with pytest.raises(UserError, match="no test example of sound has answers to choose from"):
        run(tiny(tasks), {}, stage_folder(tmp_path / "flan"))


def test_mistakes_are_named(tmp_path: Path) -> None:
    (problem,) = problems_in(FlanConfig(held_out=("logic",)))
    assert "nli" in problem.expected
    tasks = own_tasks(tmp_path)
    with pytest.raises(UserError, match="no task of the held-out clusters odd is here"):
        run(tiny(tasks[:2]), {}, stage_folder(tmp_path / "a"))
    with pytest.raises(UserError, match="no task is left to learn"):
        run(tiny(tasks[2:]), {}, stage_folder(tmp_path / "b"))
    with pytest.raises(UserError, match="not in any of"):
        FlanConfig(tasks=("rte",), data=str(tmp_path)).external_files()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    tokenizer = Tokenizer.train([*TEXTS, " ".join(WORDS)], 300)
    decoder = Decoder(ModelConfig(1, 16, 1, 256, tokenizer.vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(3))
    save_model(folder / "model", decoder, tokenizer, {})
    return folder


RECIPE = """
seed = 5
[machine]
precision = "fp32"
threads = 1
compile = "off"
[base]
model = "{base}"
[flan]
tasks = {tasks}
held_out = ["odd"]
kept_back = 1
examples = 40
validation_examples = 2
test_examples = 12
[sft]
batch_tokens = 256
min_steps = 0
validations = 1
[zero_shot]
shots = 2
"""


def test_a_recipe_runs_from_tasks_to_the_report(base: Path, tmp_path: Path) -> None:
    tasks = json.dumps(list(own_tasks(tmp_path)))
    file = tmp_path / "my.toml"
    file.write_text(RECIPE.format(base=base / "model", tasks=tasks))
    recipe = load_stage_recipe(file)
    found = run_recipe(recipe, tmp_path / "run")
    metrics: dict[str, float] = found["stages"]["zero_shot"]["metrics"]  # type: ignore[index]
    for way in ("unseen", "seen", "other_phrasing", "in_context"):
        assert metrics[f"{way}_items"] in (12, 24)
        assert metrics[f"{way}_chance"] == 0.5
        gain = metrics[f"{way}_after"] - metrics[f"{way}_before"]
        assert metrics[f"{way}_gain"] == pytest.approx(gain)
        assert metrics[f"{way}_gain_low"] <= gain <= metrics[f"{way}_gain_high"]
    results = json.loads((tmp_path / "run/zero_shot/results.json").read_text())["results"]
    ways = {(row["way"], row["level"], row["name"]) for row in results}
    assert ("unseen", "task", "sound") in ways
    assert ("seen", "cluster", "even") in ways
    again = run_recipe(recipe, tmp_path / "run")
    assert all(s["action"] == "skip" for s in again["stages"].values())  # type: ignore[attr-defined]
    page = build_report(tmp_path / "run").read_text()
    assert "12 items of clusters not learnt" in page
    assert "40" in page


def test_measuring_continues_after_an_interruption(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny(own_tasks(tmp_path)), {}, stage_folder(tmp_path / "flan"))
    inputs = {"tasks": tmp_path / "flan", "base": base, "policy": base}
    whole, cut = stage_folder(tmp_path / "whole"), stage_folder(tmp_path / "cut")
    config = ZeroShotConfig(shots=2)
    expected = measure(config, inputs, whole)
    assert expected["in_context_gain"] == 0.0  # the same model, which reads plain text there
    calls = iter(range(100))

    def stop() -> None:
        if next(calls) == 3:
            raise Interrupted(2)

    monkeypatch.setattr(evaluation_run, "stop_if_requested", stop)
    with pytest.raises(Interrupted):
        measure(config, inputs, cut)
    monkeypatch.setattr(evaluation_run, "stop_if_requested", lambda: None)
    assert measure(config, inputs, cut) == expected
    assert (cut / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    asked_as_chat = measure(replace(config, base_form="chat"), inputs, stage_folder(tmp_path / "c"))
    for way in ("unseen", "seen", "other_phrasing", "in_context"):
        assert asked_as_chat[f"{way}_gain"] == 0.0
    unseen = measure(
        replace(config, learnt_tasks=False, shots=0), inputs, stage_folder(tmp_path / "u")
    )
    assert unseen == {key: value for key, value in expected.items() if key.startswith("unseen")}
