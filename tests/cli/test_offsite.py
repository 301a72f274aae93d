"""lmsmith offsite, from the command line: both owners' sides, and the comparison's page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lmsmith.cli import main
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import write_jsonl
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import load_decoder, save_model
from lmsmith.offsite_study import ARMS, offsite_compare, task_figures
from lmsmith.tokenizers import Tokenizer
from tiny_models import TEXTS, random_decoder

TOKENIZER = Tokenizer.train([*TEXTS, "Is it so? yes no colour size"], 300)
SETTINGS = [
    "offsite.sft.epochs=1", "offsite.sft.batch_tokens=128", "offsite.sft.max_length=128",
    "offsite.sft.min_steps=2", "offsite.sft.validations=1", "offsite.test_examples=6",
    "offsite.examples=12", "emulator.tokens=512", "emulator.batch_tokens=128",
    "emulator.max_length=128", "emulator.validations=1", "machine.threads=1",
    "machine.compile=off",
]  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of five layers, texts, and two tasks: one of templates, one of finetune's form."""
    monkeypatch.chdir(tmp_path)
    shape = ModelConfig(5, 16, 2, 128, TOKENIZER.vocabulary_size)
    for seed, name in enumerate(("model", "other")):
        save_model(Path(name), random_decoder(shape, seed), TOKENIZER, {})
    write_jsonl(Path("texts.jsonl"), [{"text": f"{text} {n}"} for n in range(9) for text in TEXTS])
    rows = [{"q": f"colour {n}", "choices": ["yes", "no"], "gold": n % 2} for n in range(40)]
    write_jsonl(Path("colour.jsonl"), rows)
    Path("colour.toml").write_text(
        'cluster = "colours"\nfile = "colour.jsonl"\noptions = "choices"\ngold = "gold"\n'
        'fields = { q = "(?P<thing>.*)" }\ntemplates = ["Is {thing} so?", "{thing}?"]\n'
    )
    sizes = [{"text": f"size {n}", "label": ("yes", "no")[n % 2]} for n in range(30)]
    write_jsonl(Path("size.jsonl"), sizes)
    Path("size.toml").write_text(
        'texts = ["text"]\n[data]\ntrain = "size.jsonl"\ntest = ["size.jsonl"]\n'
    )


def settings(*stages: str) -> list[str]:
    chosen = [each for each in SETTINGS if each.startswith(("machine.", *stages))]
    return [word for each in chosen for word in ("--set", each)]


def test_the_two_owners_commands_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--adapter-layers", "1", "--keep", "2", *settings("emulator")]
    made = ["offsite", "emulator", "model", "--distil", "texts.jsonl", *shape]
    assert main(made) == 0
    said = capsys.readouterr().out
    assert "emulator: runs/emulator/emulator/model" in said
    assert "Emulator" in Path("runs/emulator/report.html").read_text()
    quick = ["--set", "sft.epochs=1", *settings("offsite")]
    assert main(["offsite", "tune", "runs/emulator", "colour.toml", *quick]) == 0
    assert "adapters: runs/offsite-colour/offsite/adapters" in capsys.readouterr().out
    assert main(["offsite", "plug", "model", "runs/offsite-colour", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["folder"] == "runs/plugged"
    before, after = load_decoder(Path("model")).state_dict(), load_decoder(Path("runs/plugged"))
    changed = {
        name.split(".")[1]
        for name, value in after.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"0", "4"}
    assert main(["generate", "runs/plugged", "The dog", "--max-tokens", "2"]) == 0
    assert main(["generate", "runs/emulator", "The dog", "--max-tokens", "2"]) == 0
    capsys.readouterr()
    for words, said in (
        (["offsite", "plug", "other", "runs/offsite-colour"], "other weights"),
        (["offsite", "plug", "model", "runs/emulator"], "no tuned adapters"),
        (["offsite", "plug", "model", "nowhere"], "nowhere"),
        (["offsite", "plug", "model", "runs/offsite-colour", "--out", "runs"], "did not make it"),
        (["offsite", "plug", "model", "runs/offsite-colour", "--out", "model"], "the model itself"),
        (["generate", "runs/offsite-colour", "The"], "lmsmith offsite plug MODEL"),
        (["offsite", "tune", "model", "colour.toml"], "is a model, and no emulator"),
        (["offsite", "tune", "runs/emulator", "nosuch"], "nosuch"),
        (["offsite", "emulator", "model", "--out", "e"], "8 of the 1 layers"),
        (["offsite", "emulator", "model", "--distil", "none.txt", "--out", "e"], "none.txt"),
    ):
        assert main(words) == 2, words
        assert said in capsys.readouterr().err, words


def test_a_comparison_measures_each_task_once_and_goes_on_after_an_interruption(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsmith.stages import pipeline

    real, runs = pipeline.run_recipe, []

    def cut_off_in_the_second_task(*args: object, **options: object) -> object:
        runs.append(args)
        if len(runs) == 4:
            raise Interrupted(2)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "run_recipe", cut_off_in_the_second_task)
    command = ["offsite", "compare", "model", "colour.toml", "size.toml", "--adapter-layers", "1"]
    command += ["--keep", "2", "--distil", "texts.jsonl", "--out", "out", "--quiet", "--json"]
    command += settings("emulator", "offsite")
    assert main(command) == 130
    capsys.readouterr()
    assert main(command) == 0
    # the emulator, two trainings, the one cut off; the emulator again, and two
    assert len(runs) == 7
    record = json.loads(capsys.readouterr().out)
    assert [each["task"] for each in record["tasks"]] == ["colour.toml", "size.toml"]
    for each in record["tasks"]:
        assert set(each["arms"]) == set(ARMS)
        assert each["items"] == 6
        assert 0 < each["train_examples"] <= 12
        assert each["trained_parameters"]["tuned"] < each["trained_parameters"]["full"]
    assert not list(Path("out").glob("*/full"))
    page = Path("out/report.html").read_text()
    assert "plug-in − emulator fine-tuning" in page
    assert "3 of 5 layers" not in page
    assert "4 of 5 layers" in page
    words = "lmsmith offsite compare model colour.toml size.toml --adapter-layers 1 --keep 2"
    assert record["command"].startswith(f"{words} --distil=texts.jsonl --set=")
    assert record["command"] in page
    assert main([word for word in command if word != "--json"]) == 0
    assert len(runs) == 8  # the emulator is looked at, and nothing is left to do
    assert main(["offsite", "compare", "model", "talks.jsonl"]) == 2
    assert "no answers to choose from" in capsys.readouterr().err


def test_figures_of_a_task_are_paired_over_items() -> None:
    scores = {name: [0.0] * 8 for name in ARMS}
    scores |= {"full": [1.0] * 6 + [0.0] * 2, "plugged": [1.0] * 4 + [0.0] * 4}
    found = task_figures(scores)
    assert found["arms"]["full"]["value"] == 0.75
    first, second, third, last = found["differences"]
    assert (first["better"], first["worse"], first["value"]) == ("full", "plugged", 0.25)
    assert 0.0 <= first["low"] < 0.25 < first["high"] <= 0.625
    assert (second["better"], second["value"]) == ("plugged", 0.5)
    assert (third["better"], third["worse"]) == ("emulator", "zero_shot")
    assert third["low"] == third["high"] == 0.0
    assert (last["better"], last["worse"], last["value"]) == ("plugged", "zero_shot", 0.5)


def test_mistakes_of_a_comparison() -> None:
    with pytest.raises(UserError, match="no tasks"):
        offsite_compare("model", [])
    with pytest.raises(UserError, match="two tasks of that name"):
        offsite_compare("model", ["colour.toml", "colour"])
    with pytest.raises(UserError, match="of which stage"):
        offsite_compare("model", ["colour.toml"], keep=2, adapter_layers=1, set=["sft.epochs=3"])
    with pytest.raises(UserError, match="begin it with emulator"):
        offsite_compare("model", ["colour.toml"], set=["tokens=3"])
