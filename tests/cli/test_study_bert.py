"""``lmsmith study bert`` end to end in small: it makes the run, compares, goes on, and draws."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from lmsmith import bert_study
from lmsmith.cli import main
from lmsmith.core.errors import UserError

THINGS = ["house", "river", "dog", "cat", "sky", "sea", "mat", "sister"]
WORDS = {"good": 1, "lovely": 1, "bad": 0, "poor": 0}
ROWS = [(f"the {thing} is {word}", label) for word, label in WORDS.items() for thing in THINGS]

RECIPE = """
description = "BERT in small."
seed = 5
machine = {{ threads = 1, precision = "fp32" }}

[data]
documents = ["{texts}"]

[data.splits]
demonstrations = 0.0
comparisons = 0.0
prompts = 0.0
judge = 0.0
test = 0.0
validation = 0.2

[tokenizer]
kind = "word_piece"
vocabulary_size = 300

[pretrain]
tokens = 2_048
batch_tokens = 256
validations = 1
model = {{ layers = 1, width = 16, heads = 2, context = 32 }}

[masked_lm]
tokens = 2_048
batch_tokens = 256
next_sentence = false
validations = 1
model = {{ layers = 1, width = 16, heads = 2, context = 32, segments = 2 }}
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, source = tmp_path_factory.mktemp("here"), random.Random(1)
    lines = [
        json.dumps({"text": ". ".join(source.choice(ROWS)[0] for _ in range(8)), "id": str(n)})
        for n in range(40)
    ]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    (folder / "small.toml").write_text(RECIPE.format(texts=folder / "texts.jsonl"))
    for name, rows in {"train": ROWS, "dev": ROWS[::3], "test": ROWS[::2]}.items():
        text = "".join(f"{words}\t{label}\n" for words, label in rows)
        (folder / f"sst2.{name}.tsv").write_text(text)
    return folder


def arguments(here: Path, *more: str) -> list[str]:
    return [
        "study", "bert", str(here / "run"), "--recipe", str(here / "small.toml"),
        "--seeds", "1", "--data", str(here), "--out", str(here / "study"), "--threads", "1",
        "--texts", "2", "--new-tokens", "6",
        "--set", "machine.precision=fp32", "--set", "min_steps=0", "--set", "epochs=1", *more,
    ]  # fmt: skip


def test_one_command_makes_one_page_and_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = bert_study.finetune, list[str]()

    def stopping(model: str, *args: object, **more: object) -> object:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(model)
        return real(model, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(bert_study, "finetune", stopping)
    with pytest.raises(KeyboardInterrupt):
        bert_study.study_bert(
            here / "run", recipe=str(here / "small.toml"), seeds=1, data=here, threads=1,
            out=here / "study", texts=2, new_tokens=6, quiet=True,
            set=["machine.precision=fp32", "min_steps=0", "epochs=1"],
        )  # fmt: skip
    monkeypatch.setattr(
        bert_study, "finetune", lambda *a, **k: made.append("again") or real(*a, **k)
    )
    assert main(arguments(here, "--quiet")) == 0
    assert made.count("again") == 1  # GPT's was kept
    said = capsys.readouterr().out
    assert re.search(r"sst2 .*16", said)
    assert "hidden tokens named by BERT, both sides" in said
    page = (here / "study" / "report.html").read_text()
    for title in ("GPT against BERT", "What a token may see", "What each writes"):
        assert title in page
    assert 'id="bert-masks-' in page
    assert page.count("Gibbs sampling") == 1
    assert "--texts 2 --new-tokens 6 --threads 1 --set=machine.precision=fp32" in page
    assert "Both read the same text, as many tokens in as many updates" in page
    check(json.loads((here / "study" / "results.json").read_text()))


def check(found: dict) -> None:  # type: ignore[type-arg]
    task = found["tasks"]["sst2"]
    for name in ("gpt", "bert"):
        seeds = [each["value"] for each in task["seeds"][name]]
        assert task["accuracy"][name]["value"] == pytest.approx(seeds[0])
        models = found["models"][name]
        assert (models["tokens"], models["updates"]) == (2048, 8)
    gap = task["accuracy"]["gpt"]["value"] - task["accuracy"]["bert"]["value"]
    assert task["difference"]["value"] == pytest.approx(gap)
    assert set(found["masked"]) == {"gpt", "bert", "commonest token"}
    assert len(found["texts"]) == 2
    assert all(each["bert"] for each in found["texts"])
    (gpt,), (bert,) = (found["sentence"]["attention"][name] for name in ("gpt", "bert"))
    count = len(found["sentence"]["tokens"])
    for row in range(count):
        assert sum(gpt[row]) == pytest.approx(1, abs=1e-4)
        assert all(value == 0 for value in gpt[row][row + 1 :])
        assert all(value > 0 for value in bert[row])


def test_bad_input_is_named(here: Path) -> None:
    with pytest.raises(UserError, match="--seeds 0"):
        bert_study.study_bert(here / "run", seeds=0)
    (here / "glue").mkdir(exist_ok=True)
    for part in ("train", "dev", "test"):
        (here / f"glue/stsb.{part}.csv").write_text("g\tf\t1\t2\t3.5\ta cat\ta dog\n" * 6)
    with pytest.raises(UserError, match="stsb: it has no accuracy"):
        bert_study.study_bert(here / "run", tasks=["stsb"], data=here)
    with pytest.raises(UserError, match="it has no stage masked_lm"):
        bert_study.study_bert(
            here / "none", recipe="quickstart", data=here, out=here / "o", quiet=True
        )
    assert not (here / "none").exists()
