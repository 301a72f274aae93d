"""The measurements against peers hold every side to one set of instructions, and judge rightly."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lmsmith.corpus.build.minhash import jaccard, shingle_sets
from lmsmith.generation.machine import resolve_for_reading
from lmsmith.generation.native.instructions import SETS
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer
from tiny_models import TEXTS, random_decoder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> object:
    """Imports a file of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def info(*flags: str) -> str:
    return "CPU : " + " | ".join(f"{flag} = 1" for flag in flags) + " | "


def test_llama_cpp_must_be_built_for_the_set(benchmark) -> None:
    held: ModuleType = benchmark("held")
    avx2 = ("SSE3", "AVX", "AVX2", "F16C", "FMA", "BMI2")
    avx512 = (*avx2, "AVX512", "AVX512_VNNI", "AVX512_BF16")
    assert held.is_built_for(info(*avx2), "avx2")
    assert not held.is_built_for(info(*avx2), "avx512")  # as the wheel of xllamacpp
    assert held.is_built_for(info(*avx512), "avx512")
    assert not held.is_built_for(info(*avx512), "avx2")
    assert not held.is_built_for(info(*avx2, "AVX_VNNI"), "avx2")
    assert not held.is_built_for(info("SSE3", "AVX"), "avx2")


@pytest.mark.parametrize("command", ["generation.py", "serving.py"])
def test_a_set_that_the_processor_lacks_is_refused(command: str) -> None:
    if next(each for each in SETS if each.name == "avx512").runs_here:
        pytest.skip("this processor has AVX-512")
    run = subprocess.run(
        [sys.executable, BENCHMARKS / command, "--instructions", "avx512"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 2, run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert "--instructions avx512: this processor has" in run.stderr


def test_the_faster_of_two_peers_counts_and_the_aim_is_that_of_the_set(benchmark) -> None:
    found: ModuleType = benchmark("generation")
    turns = {
        "lmsmith 4 bits": {"batch16": [2.0, 1.0], "bandwidth": [8.0], "bytes": [2.0],
                           "steps": [2.0], "operations of batch16": [6.0]},
        "transformers bf16": {"batch16": [4.0, 6.0]},
        "transformers fp32": {"batch16": [3.5, 9.0]},
    }  # fmt: skip
    (row,) = found.compare(turns, {"integers": 10.0, "floats": 1.0}, "avx2")
    assert (row.what, row.peer, row.ratio, row.aim, row.met) == (
        "16 at once", "transformers fp32", 3.5, 3.0, True)  # fmt: skip
    assert row.share_of_floor == 0.6  # 6 operations at 10 a second; the bytes take 0.5 s
    (row,) = found.compare(turns, {"integers": 10.0, "floats": 1.0}, "avx512")
    assert (row.aim, row.met) == (4.0, False)
    (row,) = found.compare(turns, {}, "neon")
    assert (row.aim, row.met, row.share_of_floor) == (None, None, 0.5)


def test_memory_is_a_multiple_of_the_file(benchmark) -> None:
    found: ModuleType = benchmark("generation")
    whole, beyond = found.memory_rows({"file": 500, "tiny model": 300}, {"file": 100})
    assert (whole.ratio, whole.met) == (5.0, False)
    assert (beyond.ratio, beyond.met) == (2.0, True)


def test_adapters_in_one_batch_are_measured(
    benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.train(TEXTS, 300)
    decoder = random_decoder(ModelConfig(1, 16, 2, 32, tokenizer.vocabulary_size))
    save_model(tmp_path / "model", decoder, tokenizer, {})
    found: ModuleType = benchmark("adapters")
    monkeypatch.setattr(found, "hold", lambda wanted: wanted)  # it would bind this process
    monkeypatch.setattr("lmsmith.generation.machine.prepare_reading", resolve_for_reading)
    small = {"streams": 4, "adapters": 2, "rank": 16, "tokens": 5, "prompt": 4, "rounds": 1}
    assert found.main(str(tmp_path / "model"), **small, threads=1, peer=False, json=True) == 0
    measured = json.loads(capsys.readouterr().out)
    base, mixed = measured["tokens_per_second"]
    assert measured["ratio"] == {
        base: pytest.approx(
            measured["tokens_per_second"][mixed] / measured["tokens_per_second"][base]
        )
    }
    extra = measured["weight_bytes"][mixed] - measured["weight_bytes"][base]
    sizes = (16 + 48) + (16 + 16) + (16 + 64) + (64 + 16)  # rows of A and B of each matrix
    assert extra == 2 * 2 * 16 * sizes  # two adapters, bf16


def test_scaling_divides_by_the_ratio_of_processes(benchmark) -> None:
    scaling: ModuleType = benchmark("scaling")
    found = scaling.compare({1: 100.0, 2: 180.0}, {1: [3.0, 2.0], 2: [3.0, 2.00001]})
    assert found["efficiency"] == pytest.approx(0.9)
    assert found["equal_losses"]
    assert not scaling.compare({1: 1.0, 2: 2.0}, {1: [3.0], 2: [3.01]})["equal_losses"]


def test_what_is_planted_in_a_corpus_is_in_its_texts(benchmark, tmp_path: Path) -> None:
    planted_module: ModuleType = benchmark("planted")
    corpus = tmp_path / "corpus.jsonl"
    planted = planted_module.plant(corpus, 1, seed=3)
    texts = {row["id"]: row["text"] for row in map(json.loads, corpus.read_text().splitlines())}
    assert len(texts) == planted.documents
    assert sum(map(len, texts.values())) == planted.size
    assert all(texts[one] == texts[copy] for one, copy in planted.exact)
    assert all(planted.items[item] in texts[id] for id, item in planted.contaminated.items())
    assert len(planted.near) > 20
    for one, copy, similarity in planted.near:
        sets = list(shingle_sets([texts[one], texts[copy]], planted_module.SHINGLE))
        assert jaccard(*sets) == pytest.approx(similarity)
