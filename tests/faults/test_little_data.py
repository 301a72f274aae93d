"""Little text and few conversations: something is held out, or the run says that nothing is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmsmith.core.errors import UserError
from lmsmith.stages.pipeline import load_stage_recipe, run_recipe

Faults = Callable[[str], Path]


def run(recipe: str, folder: Path, *overrides: str) -> dict[str, Any]:
    (folder / "my.toml").write_text(recipe)
    result: Any = run_recipe(load_stage_recipe(folder / "my.toml", overrides), folder / "run")
    found: dict[str, Any] = result["stages"]
    return found


@pytest.fixture
def books(faults: Faults, tmp_path: Path) -> Path:
    script = faults("26-few-documents") / "make.py"
    subprocess.run([sys.executable, str(script)], check=True, cwd=tmp_path)
    return tmp_path


def test_one_book_is_held_out_in_part(faults: Faults, books: Path) -> None:
    recipe = (faults("26-few-documents") / "base.toml").read_text()
    for number in (0, 5):
        found = run(recipe.replace("FILE", f"book{number}.txt"), books)
        metrics = found["data"]["metrics"]
        assert metrics["validation_documents.bytes"] > 1_000
        assert metrics["test_documents.bytes"] > 1_000
        assert "validation_bits_per_byte" in found["pretrain"]["metrics"]


def test_twenty_five_conversations_reach_every_split(faults: Faults, books: Path) -> None:
    recipe = (faults("26-few-documents") / "base.toml").read_text()
    head, tail = recipe.split("[data]")
    tail = tail[tail.index("[tokenizer]") :]
    for number in range(6):
        source = f'[data]\nconversations = ["c{number}.jsonl"]\n'
        (books / "my.toml").write_text(head + source + tail)
        only = load_stage_recipe(books / "my.toml")
        result: Any = run_recipe(only, books / f"run{number}", only="data")
        metrics = result["stages"]["data"]["metrics"]
        names = ("demonstrations", "comparisons", "prompts", "judge", "test", "validation")
        assert all(metrics[f"splits.{name}"] > 0 for name in names)


@pytest.mark.parametrize("name", ["short.txt", "one_word.txt", "same.txt"])
def test_tiny_texts_are_trained_on(faults: Faults, tmp_path: Path, name: str) -> None:
    recipe = (faults("26-few-documents") / "base.toml").read_text()
    found = run(recipe.replace("FILE", str(faults("40-tiny-corpora") / name)), tmp_path)
    said = any("no text is held out" in line for line in found["pretrain"]["warnings"])
    assert said == (name != "same.txt")


@pytest.mark.parametrize("name", ["empty.txt", "blank.txt"])
def test_no_text_is_said(faults: Faults, tmp_path: Path, name: str) -> None:
    recipe = (faults("26-few-documents") / "base.toml").read_text()
    with pytest.raises(UserError, match="the documents hold no text"):
        run(recipe.replace("FILE", str(faults("40-tiny-corpora") / name)), tmp_path)
