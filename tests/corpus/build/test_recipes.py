"""The shipped recipes of corpora, and mistakes in a recipe: every one named, before work starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpus.build.conftest import Build
from lmsmith.cli import main
from lmsmith.core.config import SettingsError
from lmsmith.core.recipe import CORPORA, shipped_recipes
from lmsmith.corpus.build.recipe import load_corpus_recipe


def test_shipped_recipes_are_valid_and_lie_in_the_present_folder() -> None:
    assert set(shipped_recipes(CORPORA)) == {"corpus", "corpus-demo"}
    for name in shipped_recipes(CORPORA):
        recipe = load_corpus_recipe(name)
        assert recipe.place == Path("corpora") / name
        assert recipe.folder == "."


def test_a_corpus_is_no_run_and_a_copy_is_built_by_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "corpus-demo"]) == 2
    assert "lmsmith corpus build corpus-demo" in capsys.readouterr().err
    assert main(["recipes", "cp", "corpus", str(tmp_path / "my.toml")]) == 0
    assert "lmsmith corpus build" in capsys.readouterr().out
    assert load_corpus_recipe(tmp_path / "my.toml").sources["raw"].paths == ("raw",)
    assert main(["recipes", "validate", str(tmp_path / "my.toml")]) == 0
    assert "sources: raw" in capsys.readouterr().out


def test_every_mistake_in_a_recipe_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        """
        sorces = 1
        out = "s3://bucket/corpus"
        workers = -1
        [sources."a/b"]
        paths = []
        [sources.c]
        paths = ["c"]
        weight = 1
        [sources.d]
        paths = ["d"]
        weight = 1.0
        epochs = 2.0
        [sources.e]
        paths = ["e"]
        epochs = 1
        text_field = ""
        [language]
        keep = ["English"]
        [clean]
        boilerplate_lines = ["("]
        [read]
        max_row_mib = 99999999999999
        [mix]
        tokens = 0
        """
    )
    with pytest.raises(SettingsError) as caught:
        load_corpus_recipe(tmp_path / "c.toml")
    said = str(caught.value)
    for part in (
        "did you mean sources?",
        "workers = -1: must be 0 or more",
        'out = "s3://bucket/corpus": a folder of this machine',
        "sources.a/b.paths = []: names no file",
        "the name of a source becomes a folder's",
        "sources.a/b.weight: missing, and c has a weight",
        "sources.d.epochs = 2.0: the source has a weight already",
        'language.keep.0 = "English": not two or three small letters',
        'sources.e.text_field = "": names no field',
        "clean.boilerplate_lines.0",
        "read.max_row_mib = 99999999999999: must be between 1 and 2000",
        "mix.tokens = 0: must be 1 or more",
    ):
        assert part in said, said


def test_weights_and_a_budget_become_the_table(corpus: Path, build: Build) -> None:
    """Weights 3 and 1 for 1,000 tokens; epochs are tokens over those that are there."""
    weights = ("sources.crawl.weight=3.0", "sources.books.weight=1.0", "mix.tokens=1000")
    record = build(corpus, *weights, "deduplicate.near.enabled=false")
    table = {row["source"]: row for row in record["mixture"]}
    assert (table["crawl"]["drawn"], table["books"]["drawn"]) == (750, 250)
    for name, row in table.items():
        assert row["epochs"] == row["drawn"] / record["sources"][name]["tokens"]
        assert record["sources"][name]["weight"] == row["epochs"]
