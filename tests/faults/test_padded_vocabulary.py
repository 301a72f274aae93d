"""Models with more embedding rows than tokens write, are measured, trained and exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import lmsmith
from lmsmith import cli
from lmsmith.core.errors import UserError

ROWS, TOKENS = 383, 346


def shapes(folder: Path) -> set[int]:
    weights = load_file(next(folder.glob("*.safetensors")))
    return {each.shape[0] for name, each in weights.items() if "embed" in name or "head" in name}


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_it_writes_tokens_alone(zoo: Path, temperature: float) -> None:
    model = lmsmith.load(zoo / "padded")
    assert model.decoder.config.vocabulary_size == ROWS
    for seed in range(4):
        settings = model.settings(60, temperature, 0, 1.0, seed)
        tokens = list(model.write_tokens(model.text_tokens("hello"), settings))
        assert all(token < TOKENS for token in tokens)
        asked = [{"role": "user", "content": "hi"}]
        model.chat(asked, max_new_tokens=30, temperature=temperature, seed=seed)
    assert len(model.next_tokens(model.text_tokens("a"), 1000)) == TOKENS


def test_a_task_that_samples_is_measured(
    zoo: Path, faults: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = faults("20-padded-vocabulary")
    monkeypatch.chdir(tmp_path)
    for name in ("samp.toml", "q.jsonl"):
        shutil.copy(given / name, name)
    assert cli.main(["eval", str(zoo / "padded"), "--tasks", "samp.toml"]) == 0


def test_it_is_trained_and_exported_with_its_shape(
    zoo: Path,
    faults: Callable[[str], Path],
    with_new_keys: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = faults("20-padded-vocabulary")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(zoo / "padded", "zoo/padded")
    shutil.copy(given / "rank.jsonl", "rank.jsonl")
    Path("pad.toml").write_text(with_new_keys((given / "pad.toml").read_text()))
    talks = [
        {"messages": [{"role": "user", "content": f"question {n}?"},
                      {"role": "assistant", "content": f"a good answer {n}"}]}
        for n in range(120)
    ]  # fmt: skip
    Path("conversations.jsonl").write_text("\n".join(map(json.dumps, talks)))
    assert cli.main(["run", "pad.toml"]) == 0
    assert shapes(Path("runs/pad/ppo/model")) == {ROWS}
    assert cli.main(["export", "runs/pad", "out"]) == 0
    assert shapes(Path("out")) == {ROWS}
    lmsmith.load("out").chat(talks[0]["messages"][:1], max_new_tokens=5)


def test_fewer_rows_than_tokens_are_refused(zoo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    shutil.copytree(zoo / "padded", folder)
    weights = load_file(folder / "model.safetensors")
    cut = {
        name: each[:340].clone() if len(each) == ROWS else each for name, each in weights.items()
    }
    save_file(cut, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 340}))
    with pytest.raises(UserError, match=r"knows 340 tokens and the tokenizer beside it 346"):
        lmsmith.load(folder)
