"""A round that is killed at any moment ends with the version that it ends with anyhow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from improve.tiny_round import make_model, run_round, write_data
from lmsmith.catalogue import versions
from lmsmith.catalogue.resolve import Sampling, advised_sampling, resolve
from lmsmith.catalogue.versions import Version
from lmsmith.core.files import write_json
from lmsmith.improve.gates import GATES_FILE
from lmsmith.improve.snapshot import SIDES_FILE, SNAPSHOT_FILE

MOMENTS = (
    "first version",
    "freeze",
    "data",
    "sft",
    "reward",
    "gates",
    "record",
    "recorded",
    "put_in_place",
    "announced",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMSMITH_HOME", str(folder / "home"))
        yield folder


def files(made: Version) -> dict[str, bytes]:
    """What the stages and gates of a version wrote, where it holds no time and no name."""
    kept = [made.path, made.folder / "reward/model", made.folder / "judge/model"]
    found = {
        f"{each.parent.name}/{path.name}": path.read_bytes()
        for each in kept
        for path in each.iterdir()
        if path.suffix == ".safetensors"
    }
    for name in (f"gates/{GATES_FILE}", "gates/samples.jsonl", f"data/{SIDES_FILE}"):
        found[name] = (made.folder / name).read_bytes()
    return found | {SNAPSHOT_FILE: (made.folder / "data" / SNAPSHOT_FILE).read_bytes()}


def test_killed_ten_times_a_round_ends_as_if_it_never_was(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lineage, killed at each moment in turn, each time at work again with one command."""
    monkeypatch.setenv("LMSMITH_HOME", str(home / "home"))
    model, data = make_model(home / "model"), write_data(home / "data")
    write_json(home / "model/card.json", {"sampling": {"temperature": 0.2, "top_p": 0.9}})
    whole = run_round(model, data, "whole").version
    script = Path(__file__).with_name("tiny_round.py")
    paths = [str(script.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script), model, data, "killed", *MOMENTS]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    ended = [line.split(" [")[0] for line in done.stdout.splitlines()]
    expected = [f"{moment} {signal.SIGKILL.value}" for moment in MOMENTS]
    assert ended == expected, done.stderr[-2000:]
    found = run_round(model, data, "killed").version
    assert whole is not None
    assert found is not None
    assert (found.word, found.verdict) == ("killed@2", whole.verdict)
    assert files(found) == files(whole)
    assert [each.number for each in versions.versions("killed")] == [1, 2]
    assert not (versions.folder_of("killed") / versions.NEXT).exists()
    versions.verify(found)
    assert (found.folder / "report.html").is_file()
    # The stages keep what the makers of the first model advise.
    assert advised_sampling(resolve("whole@2")) == Sampling(0.2, 0.9)
