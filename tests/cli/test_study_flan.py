"""lmsmith study flan, from the command line to the page."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from lmsmith.cli import main
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import write_jsonl
from lmsmith.flan_study import Arm, plan_arms, study_flan
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer
from tiny_models import TEXTS

WORDS = ["dog", "cat", "sea", "mat", "sky", "house", "river", "sister", "boat", "tree"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command for a tiny model and three tasks of three clusters, one of them held out."""
    tokenizer = Tokenizer.train([*TEXTS, " ".join(WORDS)], 300)
    decoder = Decoder(ModelConfig(1, 16, 1, 128, tokenizer.vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(3))
    save_model(tmp_path / "model", decoder, tokenizer, {})
    chance, files = random.Random(1), []
    for name in ("colour", "size", "sound"):
        rows = [
            {"q": f"{name} {chance.choice(WORDS)} {n}", "choices": ["yes", "no"], "gold": n % 2}
            for n in range(60)
        ]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        file = tmp_path / f"{name}.toml"
        file.write_text(
            f'cluster = "{name}s"\nfile = "{name}.jsonl"\noptions = "choices"\ngold = "gold"\n'
            'fields = { q = "(?P<thing>.*)" }\n'
            'templates = ["Is {thing} so?", "{thing}, is it?", "Say if {thing}.", "So {thing}?"]\n'
        )
        files.append(str(file))
    settings = [
        f"flan.tasks={json.dumps(files)}", 'flan.held_out=["sounds"]', "flan.examples=24",
        "flan.test_examples=8", "flan.validation_examples=1", "flan.kept_back=1",
        "sft.batch_tokens=256", "sft.max_length=128", "sft.min_steps=0", "sft.validations=1",
        "sft.adapter.rank=2", "zero_shot.shots=1", "machine.threads=1", "machine.compile=off",
    ]  # fmt: skip
    command = ["study", "flan", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    return [*command, *(word for each in settings for word in ("--set", each))]


def test_a_study_measures_each_arm_once_and_goes_on_after_an_interruption(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lmsmith.stages import pipeline

    real, runs = pipeline.run_recipe, []

    def cut_off_in_the_second(*args: object, **options: object) -> object:
        runs.append(args)
        if len(runs) == 2:
            raise Interrupted(2)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "run_recipe", cut_off_in_the_second)
    command = [*words, "--clusters", "1,all", "--templates", "1", "--quiet", "--json"]
    assert main(command) == 130
    capsys.readouterr()
    assert main(command) == 0
    assert len(runs) == 4  # one, the one cut off, and that again with the last
    record = json.loads(capsys.readouterr().out)
    arms = record["arms"]
    assert [each["arm"] for each in arms] == [
        "1 cluster, all templates",
        "all clusters, all templates",
        "all clusters, 1 template",
    ]
    assert [each["flan"]["clusters"] for each in arms] == [1, 2, 2]
    assert [each["flan"]["templates"] for each in arms] == [3, 6, 2]
    assert {each["flan"]["demonstrations"] for each in arms} == {24}
    assert len({each["zero_shot"]["unseen_before"] for each in arms}) == 1
    assert not list((tmp_path / "out").glob("*/run"))
    page = (tmp_path / "out/report.html").read_text()
    assert "1 cluster, all templates" in page
    assert main(command[:-1]) == 0  # nothing is left to do
    assert len(runs) == 4
    assert "Before tuning" in capsys.readouterr().out


def test_arms_are_not_doubled_and_mistakes_are_named() -> None:
    assert plan_arms([1, "all"], ["all", "2"]) == [Arm(1, 0), Arm(0, 0), Arm(0, 2)]
    with pytest.raises(UserError, match="--clusters -1: neither a number from 1 nor all"):
        plan_arms([-1], [])
    with pytest.raises(UserError, match="no arms"):
        plan_arms([], [])
    with pytest.raises(UserError, match="nosuch"):
        study_flan("nosuch")
