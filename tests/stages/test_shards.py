"""A run on the shards of a finished corpus: tokenizer, held-out text and batches are theirs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lmsmith.core.config import SettingsError
from lmsmith.core.errors import UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import PretrainingBatches, read_mixture
from lmsmith.corpus.build.recipe import load_corpus_recipe
from lmsmith.corpus.build.run import build_corpus
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages import data, pretrain, tokenizer
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


def test_pretraining_reads_the_shards(recipe: Path, tmp_path: Path) -> None:
    stages = load_stage_recipe(recipe).stages
    machine = MachineConfig(precision="fp32", threads=1, compile="off")

    def folder(name: str) -> StageFolder:
        (tmp_path / "run" / name).mkdir(parents=True)
        return StageFolder(tmp_path / "run" / name, 1, machine, QuietProgress())

    counts = data.run(stages["data"], {}, folder("data"))  # type: ignore[arg-type]
    inputs = {"data": tmp_path / "run/data"}
    tokenizer.run(stages["tokenizer"], inputs, folder("tokenizer"))  # type: ignore[arg-type]
    inputs["tokenizer"] = tmp_path / "run/tokenizer"
    metrics = pretrain.run(stages["pretrain"], inputs, folder("pretrain"))  # type: ignore[arg-type]

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
