"""1, 2 and 4 processes train the same models: losses, resuming, and what ends them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from preference_world import conversations
from run_together import PRETRAIN
from test_pretrain import documents

from lmsmith.core.files import write_jsonl
from lmsmith.models.folder import load_decoder
from lmsmith.runs.metrics_log import read_metrics

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
STAGES = ("pretrain", "sft", "reward", "ppo")
LOSSES = {"loss", "loss/policy_avg", "loss/value_avg", "loss/ptx_avg", "objective/scores"}
UNEVEN = ("seconds", "per_second", "share_of_peak", "clipfrac")
"""Parts of the names of figures that are times, or count numbers on either side of a bound."""


def environment() -> dict[str, str]:
    folders = (HERE.parent / name for name in ("stages", "training"))
    paths = (SOURCE, HERE, HERE.parent, *folders)
    keep = {
        name: os.environ[name] for name in ("PATH", "HOME", "LMSMITH_CACHE") if name in os.environ
    }
    return keep | {"PYTHONPATH": ":".join(map(str, paths)), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `run_together` makes, in a program of its own: it forks."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, str(HERE / "run_together.py"), str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=900)
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


@pytest.mark.parametrize("stage", ["pretrain", "reward", "ppo"])
def test_bf16_products_give_the_same_losses_in_parts(made: Path, stage: str) -> None:
    """Each process rounds its own sums, and a block's norms are bf16."""
    alone, others = figures(made / "bf16-1" / stage), figures(made / "bf16-sharded" / stage)
    assert alone[0] != figures(made / "1" / stage)[0]
    for one, other in zip(alone, others, strict=True):
        for name in LOSSES & set(one):
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=2e-3), (one["step"], name)


def test_no_process_keeps_whole_weights_for_the_backward_pass(made: Path) -> None:
    """Autocast would keep a copy in bf16 of those that are gathered in float32."""
    kept = json.loads((made / "kept.json").read_text())
    matrices = 4 * PRETRAIN.model.layers
    assert kept == {"fp32": [matrices, 0], "bf16": [matrices, 0]}


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


@pytest.mark.parametrize("many", [2, 4])
def test_candidates_and_evaluation_are_divided_and_the_same(made: Path, many: int) -> None:
    alone, others = made / "divided-1", made / f"divided-{many}"
    names = [path.relative_to(alone) for path in alone.rglob("*.json*")]
    assert {"train.jsonl", "samples.jsonl", "frontier.jsonl", "returned.json"} <= {
        name.name for name in names
    }
    for name in names:
        assert (others / name).read_bytes() == (alone / name).read_bytes(), name
    for stage in ("rankings", "evaluate"):
        assert callers(others, "generate", stage) == set("0123"[:many])
        assert callers(alone, "generate", stage) == {"0"}


def callers(folder: Path, function: str, stage: str) -> set[str]:
    return {path.name[-1] for path in folder.glob(f"{function}-by-lmsmith.stages.{stage}-*")}


def test_one_asks_the_server_while_others_measure(made: Path) -> None:
    alone, others = made / "by-server-1/evaluate", made / "by-server-2/evaluate"
    for name in ("samples.jsonl", "calibration.json", "frontier.jsonl", "returned.json"):
        assert (others / name).read_bytes() == (alone / name).read_bytes(), name
    assert callers(others.parent, "generate", "evaluate") == {"0"}
    assert callers(others.parent, "predict_replies", "evaluate") == {"1"}


def test_all_stop_after_the_same_step_when_a_signal_reaches_one_earlier(made: Path) -> None:
    """Else one would add up gradients of a step that another never computes."""
    found = [json.loads((made / f"stopped/{rank}.json").read_text()) for rank in (0, 1)]
    assert found == 2 * [{"said": "Interrupted", "saved": ["step-00000005"]}]


def test_who_waits_for_a_process_that_ends_is_told(made: Path) -> None:
    """Its store ends with it: no word would ever come."""
    left = made / "left.json"
    assert left.exists(), "it waited for ever"
    found = json.loads(left.read_text())
    assert found["kind"] == "PeerLost"
    assert "another process of this run has ended (waiting for the first process" in found["said"]


HANGING = """
import sys, time, torch
from lmsmith.core.errors import PeerLost
from lmsmith.training import parallel
from lmsmith.training.sharding import twin_in_parts
from forks import in_processes
from lmsmith.device import HOST
from test_memory import GPT, Decoder
from pathlib import Path

def model_in_parts():
    twin = twin_in_parts(Decoder(GPT), HOST, torch.float32)
    return lambda: twin(torch.zeros(1, 4, dtype=torch.long)).sum().backward()

WAITS = {
    "adding up": lambda: lambda: parallel.add_up(1.0),
    "items": lambda: parallel.meet,
    "parts": model_in_parts,
}

def work():
    try:
        with parallel.together() as team:
            waits = WAITS[sys.argv[2]]()
            waits()
            if team.rank == 1:
                time.sleep(1)
                parallel.give_sign()  # and hangs in the next item
                time.sleep(6)
                raise SystemExit
            began = time.monotonic()
            waits()
    except PeerLost as error:
        print(f"{time.monotonic() - began:.1f} {error}", flush=True)

in_processes(2, Path(sys.argv[1]), work, timeout=2)
"""


SLOW_READER = """
import os, sys, time
from pathlib import Path
from forks import in_processes
from lmsmith.core.files import write_json
from lmsmith.training import parallel

place = Path(sys.argv[1])
paths = [place / "0.json", place / "1.json"]

def work():
    with parallel.together():
        rank, read = parallel.team().rank, parallel.read_json
        if rank:
            parallel.read_json = lambda path: (time.sleep(0.3), read(path))[1]
        write_json(paths[rank], rank)
        assert parallel.read_together(paths) == [0, 1]
        for path in paths:
            path.unlink(missing_ok=True)

in_processes(2, place / "store", work, timeout=20)
"""


def test_no_part_is_removed_before_all_have_read_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_READER, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("waits", "least"), [("adding up", 1.5), ("items", 2.5), ("parts", 2.5)])
def test_a_process_that_hangs_is_named(tmp_path: Path, waits: str, least: float) -> None:
    """Two seconds after its last sign of life."""
    command = [sys.executable, "-c", HANGING, str(tmp_path / "store"), waits]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    seconds, _, message = done.stdout.partition(" ")
    assert least < float(seconds) < 6, done
    assert message.startswith("process 1 of 2 has not answered within 2 s")


RECIPE = """
seed = 3
[machine]
precision = "fp32"
threads = 1
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


def steps_logged(run: Path) -> int:
    logs = [*run.glob("*/metrics.jsonl"), *run.glob(".*/metrics.jsonl")]
    return max((len(log.read_bytes().splitlines()) for log in logs), default=0)


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]


def write_recipe(folder: Path, machine: str) -> None:
    write_jsonl(folder / "talks.jsonl", conversations(20, 3, "z"))
    write_jsonl(folder / "docs.jsonl", documents(40, 3))
    (folder / "own.toml").write_text(RECIPE.replace("[data]", f"{machine}\n[data]"))


RUN = ["-m", "lmsmith", "run", "own.toml", "--folder", "run", "--json", "--quiet"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@contextlib.contextmanager
def begun(folder: Path, words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A run in a group of its own, as of a terminal, after three more steps."""
    before = steps_logged(folder / "run")
    with subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=environment(),
        text=True,
        start_new_session=True,
    ) as running:
        end = time.monotonic() + 200
        while steps_logged(folder / "run") < before + 3:
            assert running.poll() is None, running.stderr and running.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield running


def completed(folder: Path, words: list[str]) -> None:
    """The same run goes on to its end: one object on standard output, every step once."""
    before = steps_done(folder / "run")
    assert before >= 1
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert stages["pretrain"]["metrics"]["steps"] == 200
    rows = read_metrics(folder / "run/pretrain/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 201))
    record = json.loads((folder / "run/pretrain/stage.json").read_text())
    assert record["machine"]["processes"] == 2


def test_ctrl_c_stops_all_with_one_message_and_torchrun_goes_on(tmp_path: Path) -> None:
    """Nothing is saved before: what the message says must be so."""
    write_recipe(tmp_path, "checkpoint_seconds = 1e9")
    with begun(tmp_path, [*RUN, "--processes", "2"]) as running:
        os.killpg(running.pid, signal.SIGINT)
        out, error = running.communicate(timeout=100)
    assert (running.returncode, out) == (130, "")
    assert error == "saved; run the same command to continue\n"
    with begun(tmp_path, [*TORCHRUN, *RUN]) as running:
        os.killpg(running.pid, signal.SIGINT)
        out, error = running.communicate(timeout=100)
    assert out == ""
    assert error.count("saved; run the same command to continue\n") == 1
    completed(tmp_path, [*TORCHRUN, *RUN])


def test_when_one_is_killed_all_stop_and_the_same_command_continues(tmp_path: Path) -> None:
    """Also where they wait in PyTorch's own code, for a model in parts."""
    write_recipe(tmp_path, 'sharding = "on"\ncheckpoint_seconds = 0.1')
    command = [*RUN, "--processes", "2"]
    with begun(tmp_path, command) as running:
        os.kill(children(running.pid)[-1], signal.SIGKILL)
        killed = time.monotonic()
        out, error = running.communicate(timeout=100)
    assert time.monotonic() - killed < 30
    assert (running.returncode, out) == (75, "")
    assert re.fullmatch(
        r"lmsmith: process \d of 2 was ended by signal 9 \(SIGKILL[^\n]*\n"
        r"  all processes stop; the same command continues\n",
        error,
    ), error
    completed(tmp_path, command)
