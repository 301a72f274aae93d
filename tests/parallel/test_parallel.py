"""1, 2 and 4 processes train the same models: losses, resuming, and what ends them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from preference_world import conversations
from test_pretrain import documents

from lmsmith.core.files import write_jsonl
from lmsmith.models.folder import load_decoder
from lmsmith.runs.metrics_log import read_metrics

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
STAGES = ("pretrain", "sft", "reward", "ppo")
UNEVEN = ("seconds", "per_second", "share_of_peak", "clipfrac")
"""Parts of the names of figures that are times, or count numbers on either side of a bound."""


def environment() -> dict[str, str]:
    paths = (SOURCE, HERE, HERE.parent, HERE.parent / "stages")
    keep = {
        name: os.environ[name] for name in ("PATH", "HOME", "LMSMITH_CACHE") if name in os.environ
    }
    return keep | {"PYTHONPATH": ":".join(map(str, paths)), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `run_together` makes, in a program of its own: it forks."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, str(HERE / "run_together.py"), str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=460)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def figures(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if not any(part in name for part in UNEVEN)}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize("many", ["2", "4", "sharded"])
@pytest.mark.parametrize("stage", STAGES)
def test_losses_do_not_depend_on_the_number_of_processes(made: Path, stage: str, many: str) -> None:
    alone, others = figures(made / "1" / stage), figures(made / many / stage)
    assert len(alone) >= (25 if stage == "ppo" else 50)
    for one, other in zip(alone, others, strict=True):
        assert set(one) == set(other)
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=5e-5, abs=5e-6), (one["step"], name)
    assert alone[0] != alone[-1]


def test_the_models_are_the_same_too(made: Path) -> None:
    tokens = torch.arange(30)[None]
    for stage in ("pretrain", "sft", "ppo"):
        found = [
            load_decoder(made / run / stage / "model")(tokens) for run in ("1", "4", "sharded")
        ]
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-2, atol=2e-3)


def test_a_run_continues_with_the_same_bits_on_the_same_number(made: Path) -> None:
    """Dropout included: each process draws its own, from seed, step and rank."""
    files = [made / name / "pretrain/model/model.safetensors" for name in ("resumed-2", "whole-2")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_continues_on_another_number_of_processes(made: Path) -> None:
    alone, resumed = figures(made / "1/pretrain"), figures(made / "resumed-1/pretrain")
    for one, other in zip(alone, resumed, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)


HANGING = """
import sys, time
from lmsmith.core.errors import PeerLost
from lmsmith.training import parallel
from run_together import HOST, in_processes
from pathlib import Path

def work():
    with parallel.together() as team:
        parallel.add_up(1.0)
        if team.rank == 1:
            time.sleep(6)
            raise SystemExit
        began = time.monotonic()
        try:
            parallel.add_up(1.0)
        except PeerLost as error:
            print(f"{time.monotonic() - began:.1f} {error}", flush=True)

in_processes(2, Path(sys.argv[1]), work, timeout=2)
"""


def test_a_process_that_hangs_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGING, str(tmp_path / "store")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    seconds, _, message = done.stdout.partition(" ")
    assert float(seconds) < 5, done
    assert message.startswith("process 1 of 2 has not answered within 2 s")


RECIPE = """
seed = 3
[machine]
precision = "fp32"
threads = 1
checkpoint_seconds = 0.0
[data]
conversations = ["talks.jsonl"]
documents = ["docs.jsonl"]
[tokenizer]
vocabulary_size = 280
[pretrain]
tokens = 12_800
batch_tokens = 64
model.layers = 1
model.width = 16
model.heads = 2
model.context = 32
validation_documents = 2
"""


def steps_done(run: Path) -> int:
    found = [path.name for path in run.glob("*/checkpoints/step-*")]
    found += [path.name for path in run.glob(".*/checkpoints/step-*")]
    return max((int(name.removeprefix("step-")) for name in found if name[5:].isdigit()), default=0)


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]


def test_when_one_is_killed_all_stop_and_the_same_command_continues(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "talks.jsonl", conversations(20, 3, "z"))
    write_jsonl(tmp_path / "docs.jsonl", documents(40, 3))
    (tmp_path / "own.toml").write_text(RECIPE)
    command = [sys.executable, "-m", "lmsmith", "run", "own.toml", "--folder", "run"]
    command += ["--processes", "2", "--json", "--quiet"]
    options = {"cwd": tmp_path, "env": environment(), "text": True}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    ) as running:  # type: ignore[call-overload]
        end = time.monotonic() + 200
        while steps_done(tmp_path / "run") < 3:
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(children(running.pid)[-1], signal.SIGKILL)
        killed = time.monotonic()
        out, error = running.communicate(timeout=100)
    assert time.monotonic() - killed < 30
    assert running.returncode == 75
    assert out == ""
    assert re.fullmatch(
        r"lmsmith: process \d of 2 was ended by signal 9 \(SIGKILL[^\n]*\n"
        r"  all processes stop; the same command continues\n",
        error,
    ), error
    before = steps_done(tmp_path / "run")
    assert before >= 3
    done = subprocess.run(command, capture_output=True, timeout=300, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert stages["pretrain"]["metrics"]["steps"] == 200
    rows = read_metrics(tmp_path / "run/pretrain/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 201))
    record = json.loads((tmp_path / "run/pretrain/stage.json").read_text())
    assert record["machine"]["processes"] == 2
