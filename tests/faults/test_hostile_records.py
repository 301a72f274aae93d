"""Records of runs, and files of rows, that were made to harm: each is one message."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.catalogue.resolve import Source, resolve
from lmsmith.core.config import Problem
from lmsmith.core.errors import UserError
from lmsmith.core.files import growing_rows, read_jsonl, read_rows, write_json
from lmsmith.core.progress import QuietProgress
from lmsmith.corpus.rows import read_conversations
from lmsmith.evaluation.tasks.data import read_items
from lmsmith.evaluation.tasks.spec import DataSpec
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import save_model
from lmsmith.models.interop.gguf_file import open_gguf
from lmsmith.models.weights_file import read_shapes
from lmsmith.report.run.records import read_run
from lmsmith.runs.locking import locked
from lmsmith.runs.metrics_log import MetricsLog, read_metrics
from lmsmith.runs.records import read_record, write_record
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.checkpoint import CHECKSUMS, SCALARS, TENSORS, Checkpoints
from tiny_models import TEXTS, random_decoder

TOKENIZER = Tokenizer.train(TEXTS, 300)


# Records


@pytest.mark.parametrize(
    "values",
    [
        {"outputs": ["a"]},
        {"outputs": {"a": []}},
        {"outputs": {"../../a": "b"}},
        {"outputs": {"/dev/zero": "b"}},
        {"outputs": {"a\0": "b"}},
        {"output_bytes": {"a": "b"}},
        {"inputs": 5},
        {"inputs": {"data": {"stage": []}}},
        {"inputs": {"data": {"stage": "../other", "files": {}}}},
        {"inputs": {"data": {"stage": "data", "files": []}}},
        {"files": {"a": 5}},
        {"settings": []},
        {"metrics": {"loss": "a"}},
        {"metrics": {"loss": 10**400}},
        {"wall_seconds": "a"},
        {"wall_seconds": {}},
        {"warnings": 5},
        {"machine": "a"},
        {"fingerprint": 5},
    ],
)
def test_a_record_of_wrong_values_is_damaged_though_its_checksum_is_right(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    path = tmp_path / "stage.json"
    write_record(path, {"stage": "sft", "outputs": {}, "wall_seconds": 1, "metrics": {"a": 1.5}})
    assert read_record(path)
    write_record(path, {"stage": "sft", "outputs": {}, **values})
    assert read_record(path) is None


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("words")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(mine)
    with pytest.raises(UserError, match="lock"), locked(run, QuietProgress()):
        pass
    assert mine.read_text() == "words"


def test_metrics_are_not_written_through_a_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("words without a line end")
    (tmp_path / "metrics.jsonl").symlink_to(mine)
    with pytest.raises(UserError, match="link"):
        MetricsLog(tmp_path / "metrics.jsonl").append(1, {"loss": 1.0})
    assert mine.read_text() == "words without a line end"


ROWS_OF_NO_USE = ["[" * 100_000, '{"step": 1, "loss": "a"}', '{"step": 1, "loss": []}', "\0", "5"]
ROWS_OF_NO_USE += ['{"step": 1, "loss": ' + "9" * 400 + "}", '{"step": true}', '{"loss": 1}']


@pytest.mark.parametrize("line", ROWS_OF_NO_USE)
def test_a_damaged_line_of_metrics(tmp_path: Path, line: str) -> None:
    """It is passed over while a stage runs, and told once it is done."""
    path = tmp_path / "run" / "sft" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(f'{{"step": 1, "loss": 2.5}}\n{line}\n{{"step": 2, "loss": null}}\n')
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    MetricsLog(path).truncate_after(5)
    path.write_text(f'{{"step": 1, "loss": 2.5}}\n{line}\n')
    write_record(path.parent / "started.json", {"stage": "sft"})
    assert read_run(tmp_path / "run").stages["sft"].status == "started"
    write_record(path.parent / "stage.json", {"stage": "sft", "outputs": {}})
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: damaged"):
        read_run(tmp_path / "run")


def test_a_recipe_of_a_run_that_cannot_be_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape = ModelConfig(2, 16, 2, 32, TOKENIZER.vocabulary_size)
    save_model(tmp_path / "sft" / "model", random_decoder(shape), TOKENIZER, {})
    (tmp_path / "recipe.json").write_text("{")
    with caplog.at_level(logging.INFO, "lmsmith.models"):
        resolve(tmp_path)
    assert "recipe.json: not valid JSON" in caplog.text


@pytest.mark.parametrize("state", ["[" * 100_000, '{"state": 5}', "{}", "5", '{"state": {"a": 1}}'])
def test_a_checkpoint_whose_checksums_are_right_and_its_state_is_not(
    tmp_path: Path, state: str
) -> None:
    from lmsmith.core.files import sha256_file

    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, say=said.append)
    for step in (1, 2):
        checkpoints.save(step, {"step": step})
    folder = checkpoints.path(2)
    (folder / SCALARS).write_text('{"state": {"dict": 5}}' if state == "5" else state)
    write_json(folder / CHECKSUMS, {n: sha256_file(folder / n) for n in (TENSORS, SCALARS)})
    found = checkpoints.load_latest()
    if state != '{"state": {"a": 1}}':
        assert found == (1, {"step": 1})
        assert "damaged" in said[0]
    (folder / CHECKSUMS).write_text("[" * 100_000)
    assert checkpoints.load_latest() == (1, {"step": 1})


# Rows


SWELLING = "[" + "[]," * 50_000 + "[]]"


def test_rows_that_are_kept_are_bounded_together(tmp_path: Path) -> None:
    """Each is small enough alone, and all together take many times their file."""
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": {SWELLING}}}\n' * 40)
    assert sum(1 for _ in read_jsonl(path)) == 40  # one at a time
    for read in (lambda: list(read_jsonl(path, kept=True)), lambda: growing_rows(path)):
        with pytest.raises(UserError, match="would take more than"):
            read()
    with pytest.raises(UserError, match="would take more than"):
        list(read_items(path, DataSpec(file="a.jsonl")))


@pytest.mark.parametrize(("name", "line"), [("a.jsonl", "{}\n"), ("a.txt", "a\n")])
def test_items_are_bounded_by_their_file(tmp_path: Path, name: str, line: str) -> None:
    path = tmp_path / name
    path.write_text(line * 400_000)
    with pytest.raises(UserError, match="would take more than"):
        for _ in read_items(path, DataSpec(file=name, documents="lines")):
            pass


def test_a_list_of_many_short_conversations_is_read(tmp_path: Path) -> None:
    """One at a time: whole, the list would take more than ten times its file."""
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps([row] * 600_000))
    assert path.stat().st_size > 48 << 20
    assert sum(1 for _ in read_conversations(path)) == 600_000


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("[]", 0),
        (" [ ] ", 0),
        ('[{"a": "],[}{\\\\\\"],"}, {"a": [[], {}]}]', 2),
        ('{"a": [1]}', 1),
        ('\ufeff[{"a": "ü😀"}\n,\n{}]\n', 2),
        ('[{"a": 1},]', None),
        ("[,]", None),
        ('[{"a": 1} {}]', None),
        ('[{"a": 1}', None),
        ('[{"a": 1]}', None),
        ('[{"a": 1}]]', None),
        ('[{"a": 1}] {}', None),
        ('[{"a": "b]', None),
        ("5", None),
        ("", None),
        ("[5]", None),
    ],
)
def test_items_of_a_json_list(tmp_path: Path, text: str, rows: int | None) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    if rows is None:
        with pytest.raises(UserError, match=r"a\.json"):
            list(read_rows(path))
    else:
        found = [row for _, row in read_rows(path)]
        value = json.loads(text.removeprefix("\ufeff"))
        assert found == (value if isinstance(value, list) else [value])
        assert len(found) == rows


# Messages


@pytest.mark.parametrize("value", ["a" * 10**6, [1] * 10**6, {str(n): n for n in range(10**5)}])
def test_a_long_value_is_not_repeated(value: Any) -> None:
    assert len(str(Problem("a.b", value, "a number"))) < 200
    error = UserError(f"a.gguf: bos = {value}: expected an id", "fetch it again")
    assert len(str(error)) < 10_000
    assert error.problem.endswith("expected an id")
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert len(str(Problem("a.b", deep, "a number"))) < 200


@pytest.mark.parametrize("epsilon", [10**400, 10**309])
def test_a_whole_number_that_no_float_can_be(tmp_path: Path, epsilon: int) -> None:
    shape = ModelConfig(
        2, 16, 2, 32, TOKENIZER.vocabulary_size, norm="rms", positions="rotary",
        activation="swiglu", qkv_bias=False, attention_output_bias=False, ffn_bias=False,
    )  # fmt: skip
    source = Source("lmsmith", Path("nowhere"), "tiny")
    folder = export(ReadModel(random_decoder(shape), TOKENIZER, source, {}), tmp_path, "hf").path
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": epsilon}))
    with pytest.raises(UserError, match="finite"):
        read_model(folder)


def test_a_tensor_of_many_dimensions(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [1] * 10_000, "data_offsets": [0, 4]}}
    content = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(4))
    with pytest.raises(UserError, match="10,000 dimensions"):
        read_shapes(path)
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + os.urandom(20))
    with pytest.raises(UserError):
        open_gguf(tmp_path / "a.gguf")
