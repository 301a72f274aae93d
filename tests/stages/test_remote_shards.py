"""A run on a corpus in object storage: the bits of one on files; its own rows alone are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from test_shards import recipe  # noqa: F401 — a fixture

from lmsmith import cli
from lmsmith.core.config import SettingsError
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus import remote_tokens
from lmsmith.corpus.batches import PretrainingBatches, read_mixture
from lmsmith.corpus.read_ahead import read_ahead
from lmsmith.corpus.remote_tokens import RemoteFile, RemoteTokens
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages import data, pretrain, tokenizer
from lmsmith.stages.pipeline import load_stage_recipe
from lmsmith.training import loop

URL = "memory://bucket/corpus"


@pytest.fixture
def stored(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:  # noqa: F811
    """The recipe, whose corpus is in a storage alone."""
    system = fsspec.filesystem("memory")
    built = recipe.parent / "built"
    system.put(str(built), "/bucket/corpus", recursive=True)
    monkeypatch.setenv("LMSMITH_CACHE", str(recipe.parent / "cache"))
    monkeypatch.setattr(remote_tokens, "WAITS", (0.0, 0.0, 0.0))
    yield recipe
    system.rm("/bucket", recursive=True)


def run_stages(recipe: Path, name: str, *settings: str) -> Path:  # noqa: F811
    """The stages data, tokenizer and pretrain, in a folder ``name``; an interrupted one goes on."""
    stages: dict[str, Any] = load_stage_recipe(recipe, ["pretrain.tokens=320", *settings]).stages
    machine = MachineConfig(precision="fp32", threads=1, compile="off", checkpoint_seconds=0.0)
    run = recipe.parent / name
    inputs: dict[str, Path] = {}
    for stage, module in (("data", data), ("tokenizer", tokenizer), ("pretrain", pretrain)):
        inputs[stage] = run / stage
        inputs[stage].mkdir(parents=True, exist_ok=True)
        folder = StageFolder(inputs[stage], 1, machine, QuietProgress())
        module.run(stages[stage], inputs, folder)
    return run


def weights(run: Path) -> bytes:
    return (run / "pretrain/model/model.safetensors").read_bytes()


def test_a_stopped_and_continued_run_has_the_bits_of_one_on_files(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = run_stages(stored, "local")
    remote = f"data.shards={URL}"
    calls = iter([None] * 4 + [2])
    with monkeypatch.context() as stopping:
        stopping.setattr(loop, "stop_requested", lambda: next(calls, None))
        with pytest.raises(Interrupted):
            run_stages(stored, "run", remote)
    run = run_stages(stored, "run", remote)
    assert weights(run) == weights(local)
    assert not list((run / "data").rglob("tokens.npy"))
    assert not list((run / "pretrain/shards").glob("*/tokens.npy"))[1:]  # its own documents' alone


def reading(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the ranges that are read from now on."""
    real, sizes = MemoryFileSystem.cat_ranges, list[int]()

    def counted(
        self: Any, paths: list[str], starts: list[int], ends: list[int], **more: Any
    ) -> Any:
        sizes.extend(end - start for start, end in zip(starts, ends, strict=True))
        return real(self, paths, starts, ends, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", counted)
    return sizes


def test_a_process_reads_its_own_rows_alone(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, _ = read_mixture(run_stages(stored, "local") / "pretrain")
    run = run_stages(stored, "run", f"data.shards={URL}", "data.documents=[]")
    shards, shares = read_mixture(run / "pretrain")
    assert all(isinstance(each.tokens, RemoteTokens) for each in shards)
    whole = PretrainingBatches(local[1:], shares, 16, 8, 0)
    sizes = reading(monkeypatch)
    for rank in range(3):
        own = slice(rank, None, 3)
        parted = PretrainingBatches(shards, shares, 16, 8, 0, own)
        assert parted.is_remote
        for step in (0, 1, 30):
            sizes.clear()
            all_, part = whole.batch(step), parted.batch(step)
            assert (part.tokens_bt[own] == all_.tokens_bt[own]).all()
            assert (part.targets_bt[own] == all_.targets_bt[own]).all()
            assert ((part.targets_bt == -100) == (all_.targets_bt == -100)).all()
            assert (part.documents_bt == all_.documents_bt).all()
            rows = len(range(8)[own])
            assert 2 * rows < sum(sizes) <= 2 * rows * (16 + 1)  # 2 bytes a token


def break_storage(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The next ``times`` reads of ranges fail."""
    real, left = MemoryFileSystem.cat_ranges, [times]

    def failing(self: Any, *given: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionError("the line is down")
        return real(self, *given, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", failing)


@pytest.mark.parametrize(("times", "ends"), [(3, True), (4, False)])
def test_a_read_that_fails_is_tried_again(
    stored: Path, monkeypatch: pytest.MonkeyPatch, times: int, ends: bool
) -> None:
    break_storage(monkeypatch, times)
    if ends:
        run_stages(stored, "run", f"data.shards={URL}")
    else:
        with pytest.raises(UserError, match=r"tokens.npy: cannot be read \(the line is down\)"):
            run_stages(stored, "run", f"data.shards={URL}")


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("a/00000/offsets.npy", lambda content: content[:-8] + bytes(8), "its checksum is another"),
        ("a/00000/tokens.npy", lambda content: content[:-8], "it is cut off"),
        ("tokenizer/tokenizer.json", lambda _: None, "no such file"),
    ],
)
def test_a_damaged_corpus_is_one_message(
    stored: Path, file: str, damage: Callable[[bytes], bytes | None], said: str
) -> None:
    system = fsspec.filesystem("memory")
    record = json.loads((stored.parent / "built/corpus.json").read_text())
    name = file.replace("a/00000", record["parts"][0]["folder"])
    path = f"/bucket/corpus/{record['shards']}/{name}"
    content = damage(system.cat_file(path))
    system.rm(path) if content is None else system.pipe_file(path, content)
    with pytest.raises(UserError, match=said) as error:
        run_stages(stored, "run", f"data.shards={URL}")
    assert f"memory:/{path}" in str(error.value)


@pytest.mark.parametrize("outside", ["../../../outside", "/outside"])
def test_nothing_is_written_outside_of_the_copy(stored: Path, outside: str) -> None:
    system, path = fsspec.filesystem("memory"), "/bucket/corpus/corpus.json"
    outside = str(stored.parent / "outside") if outside.startswith("/") else outside
    record = json.loads(system.cat_file(path))
    record["files"][outside] = hashlib.sha256(b"theirs").hexdigest()
    system.pipe_file(path, json.dumps(record).encode())
    with pytest.raises(UserError, match="leads out of the corpus"):
        run_stages(stored, "run", f"data.shards={URL}")


def test_no_corpus_there_is_said_before_anything_runs(stored: Path) -> None:
    with pytest.raises(SettingsError, match="no finished corpus is there"):
        load_stage_recipe(stored, ["data.shards=memory://bucket/nothing"])


def test_the_tools_read_it_too(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["stats"], ["look", "--at", "30"], ["search", "row 7"]):
        found = []
        for place in (str(stored.parent / "built"), URL):
            assert cli.main(["corpus", words[0], place, *words[1:], "--json"]) == 0
            found.append(json.loads(capsys.readouterr().out))
            found[-1].pop("seconds", None)  # of the search
        assert found[1] == found[0] | {"corpus": URL}


def test_ranges_of_several_files_are_one_array(tmp_path: Path) -> None:
    files = []
    for number, length in enumerate((5, 1, 7)):
        tokens = np.arange(10 * number, 10 * number + length, dtype=np.uint16)
        np.save(tmp_path / f"{number}.npy", tokens)
        files.append(remote_tokens.find_file(f"file://{tmp_path}/{number}.npy"))
    assert files[0] == RemoteFile(f"file://{tmp_path}/0.npy", 128, 5, "<u2")
    whole = np.concatenate([np.load(tmp_path / f"{number}.npy") for number in range(3)])
    tokens = RemoteTokens(files)
    assert len(tokens) == 13
    assert (np.asarray(tokens) == whole).all()
    assert tokens[np.array([], np.int64)].tolist() == []
    chance = np.random.default_rng(0)
    for index in (np.arange(13), chance.integers(0, 13, 40), np.array([4, 5, 6, 0, 1])):
        assert (tokens[index] == whole[index]).all()
    for some in (
        slice(3, 9),
        slice(-2, None),
        slice(4, 4),
        slice(13, 13),
        slice(9, 2),
        slice(0, 6),
    ):
        assert (tokens[some] == whole[some]).all()


def test_no_more_batches_wait_than_its_depth() -> None:
    made: list[int] = []
    batches: Any = SimpleNamespace(is_remote=True, batch=lambda step: made.append(step) or step)
    with read_ahead(batches, steps=20, depth=3) as batch:
        for step in [*range(5), *range(11, 20)]:
            assert batch(step) == step  # type: ignore[comparison-overlap]
            assert max(made) <= min(step + 3, 19)
    assert len(made) == len(set(made))
