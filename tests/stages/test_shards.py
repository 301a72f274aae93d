"""A run on the shards of a finished corpus: tokenizer, held-out text and batches are theirs."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lmsmith.core.config import SettingsError
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import PretrainingBatches, read_mixture
from lmsmith.corpus.build.recipe import load_corpus_recipe
from lmsmith.corpus.build.run import build_corpus
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages import data, distil, masked_lm, pretrain, tokenizer
from lmsmith.stages.pipeline import load_stage_recipe
from lmsmith.tokenizers import Tokenizer

CORPUS = """
out = "built"
workers = 1
[sources.a]
paths = ["a.jsonl"]
[sources.b]
paths = ["b.txt"]
[shards]
vocabulary_size = 300
validation = 0.2
"""

DISTIL = """
[distil]
tokens = 64
batch_tokens = 32
written_texts = 4
max_new_tokens = 6
prompt_tokens = 5
[distil.student]
layers = 1
width = 4
heads = 1
context = 16
"""

MASKED = """
[masked_lm]
tokens = 64
batch_tokens = 32
next_sentence = false
[masked_lm.model]
layers = 1
width = 8
heads = 1
context = 16
"""

RUN = """
[data]
shards = "built"
documents = ["more.txt"]
[tokenizer]
[pretrain]
tokens = 64
batch_tokens = 32
[pretrain.model]
layers = 1
width = 8
heads = 1
context = 16
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = [json.dumps({"text": f"row {n} of the crawl {n * n}"}) for n in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.txt").write_text("A book of one page. " * 20)
    (tmp_path / "more.txt").write_text("A page that is no part of the corpus. " * 10)
    (tmp_path / "corpus.toml").write_text(CORPUS)
    (tmp_path / "run.toml").write_text(RUN)
    loaded = load_corpus_recipe(tmp_path / "corpus.toml")
    build_corpus(loaded, Tokenizer.load, QuietProgress())
    return tmp_path / "run.toml"


class Stages:
    """Runs the stages of a recipe, each on those before."""

    def __init__(self, recipe: Path, folder: Path, *changed: str) -> None:
        self.configs: Any = load_stage_recipe(recipe, changed).stages
        self.folder = folder
        self.inputs: dict[str, Path] = {}

    def run(self, module: ModuleType) -> dict[str, float]:
        name = module.__name__.rpartition(".")[2]
        place = self.folder / name
        place.mkdir(parents=True)
        machine = MachineConfig(precision="fp32", threads=1, compile="off")
        out = StageFolder(place, 1, machine, QuietProgress())
        metrics: dict[str, float] = module.run(self.configs[name], self.inputs, out)
        self.inputs[name] = place
        return metrics


def test_pretraining_reads_the_shards(recipe: Path, tmp_path: Path) -> None:
    stages = Stages(recipe, tmp_path / "run")
    counts = stages.run(data)
    stages.run(tokenizer)
    metrics = stages.run(pretrain)
    inputs = stages.inputs

    built = json.loads((tmp_path / "built/corpus.json").read_text())
    tokens = sum(source["tokens"] for source in built["sources"].values())
    assert counts["shards.tokens"] == tokens
    assert counts["validation_documents"] == built["validation_documents"] > 0
    theirs = tmp_path / "built" / built["shards"] / "tokenizer/tokenizer.json"
    assert (inputs["tokenizer"] / "tokenizer.json").read_bytes() == theirs.read_bytes()

    # What PPO reads afterwards is the same mixture: own text first, then the corpus's sources.
    shards, shares = read_mixture(tmp_path / "run/pretrain")
    assert len(shards) == 3
    assert sum(each.total_tokens for each in shards) == metrics["corpus_tokens"] > tokens
    assert shares == [each.total_tokens for each in shards]
    batch = PretrainingBatches(shards, shares, 16, 8, 0).batch(0)
    assert np.unique(batch.tokens_bt).size > 10


def test_distillation_reads_the_shards_and_continues_their_documents(
    recipe: Path, tmp_path: Path
) -> None:
    recipe.write_text(RUN + DISTIL)
    stages = Stages(recipe, tmp_path / "run", "data.documents=[]")
    stages.run(data)
    stages.run(tokenizer)
    stages.run(pretrain)
    metrics = stages.run(distil)
    built = json.loads((tmp_path / "built/corpus.json").read_text())
    tokens = sum(source["tokens"] for source in built["sources"].values())
    assert metrics["parameters"] < metrics["teacher_parameters"]
    lines = (stages.inputs["distil"] / "written.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    assert len(written) == 4
    # The prompts are beginnings of the corpus's documents, its sources in turn.
    assert [row["id"] for row in written] == ["a:0", "b:0", "a:1", "a:2"]
    own = ("data.documents=[]", "distil.written_texts=0", "distil.tokens=1024")
    stages = Stages(recipe, tmp_path / "own", *own)
    stages.run(data)
    stages.inputs["pretrain"] = tmp_path / "run/pretrain"
    assert stages.run(distil)["rows"] == -(-tokens // 16)
    # The corpus's tokenizer must be the teacher's.
    Tokenizer.train(["something else entirely"], 300).save(tmp_path / "other")
    about = tmp_path / "own/data/corpus_shards.json"
    about.write_text(json.dumps(read_json(about) | {"tokenizer": str(tmp_path / "other")}))
    stages.folder = tmp_path / "again"
    with pytest.raises(UserError, match="another tokenizer"):
        stages.run(distil)


def test_masked_tokens_are_learnt_from_a_corpus_of_word_pieces(
    recipe: Path, tmp_path: Path
) -> None:
    loaded = load_corpus_recipe(tmp_path / "corpus.toml", ["shards.kind=word_piece"])
    build_corpus(loaded, Tokenizer.load, QuietProgress())
    recipe.write_text(RUN + MASKED)
    stages = Stages(recipe, tmp_path / "run", "data.documents=[]")
    stages.run(data)
    stages.run(tokenizer)
    metrics = stages.run(masked_lm)
    built = json.loads((tmp_path / "built/corpus.json").read_text())
    assert metrics["corpus_tokens"] == sum(each["tokens"] for each in built["sources"].values())
    assert metrics["held_out_targets"] > 0


def test_a_missing_or_damaged_corpus_is_one_message(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        load_stage_recipe(recipe, ["data.shards=nowhere"])
    built = json.loads((tmp_path / "built/corpus.json").read_text())["shards"]
    with pytest.raises(SettingsError, match="brings its own tokenizer"):
        load_stage_recipe(recipe, [f"tokenizer.load=built/{built}/tokenizer"])
    (tmp_path / "built/corpus.json").write_text('{"sources": 1}')
    config = load_stage_recipe(recipe).stages["data"]
    out = StageFolder(tmp_path / "data", 1, MachineConfig(), QuietProgress())
    with pytest.raises(UserError, match=r"corpus.json: damaged"):
        data.run(config, {}, out)  # type: ignore[arg-type]
