"""What a build finds in its folder: files of others are refused or left, an old corpus is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpus.build.conftest import Build, content
from lmsmith.core.errors import UserError
from lmsmith.corpus.build import run
from lmsmith.corpus.build.recipe import load_corpus_recipe
from lmsmith.corpus.inspect.documents import CorpusDocuments
from lmsmith.corpus.inspect.stats import statistics


@pytest.mark.parametrize("name", ["report.html", "shards-2024/mine.txt", "work/read/mine.txt"])
def test_a_folder_with_other_files_is_refused(corpus: Path, build: Build, name: str) -> None:
    mine = corpus.parent / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    message = r"out: the folder has files that no build of a corpus made, such as "
    with pytest.raises(UserError, match=message) as caught:
        build(corpus)
    assert caught.value.fix == "Name another folder in out."
    with pytest.raises(UserError, match=message):
        run.plan_corpus(load_corpus_recipe(corpus))
    assert [path for path in (corpus.parent / "out").rglob("*") if path.is_file()] == [mine]


def test_a_build_that_found_no_file_may_be_called_again(corpus: Path, build: Build) -> None:
    (corpus.parent / "out").mkdir()
    (corpus.parent / "out/.gitignore").write_text("*")
    with pytest.raises(UserError, match="no file matches"):
        build(corpus, "sources.crawl.paths=['none/*']")
    build(corpus)


def test_only_results_of_builds_are_removed(corpus: Path, build: Build) -> None:
    out = corpus.parent / "out"
    first = build(corpus)
    mine = [out / "shards-2024/mine.txt", out / f"shards-{'0' * 16}/mine.txt", out / "notes.txt"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    second = build(corpus, "shards.vocabulary_size=310", "deduplicate.exact=false")
    assert not {first["shards"], first["removed"]} & {path.name for path in out.iterdir()}
    assert {second["shards"], second["removed"]} <= {path.name for path in out.iterdir()}
    assert [path.read_text() for path in mine] == ["mine"] * 3
    mine.append(out / "work/after-exact/mine.txt")
    mine[-1].parent.mkdir()
    mine[-1].write_text("mine")
    with pytest.raises(UserError, match=r"after-exact: no build made this folder, and mine\.txt"):
        build(corpus, "deduplicate.lines.enabled=true")
    assert mine[-1].read_text() == "mine"


def test_an_old_corpus_is_whole_until_the_new_one_is(
    corpus: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(corpus)
    before = content(corpus.parent / "out")

    def killed(*_given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_json", lambda path, _: path.name != "corpus.json" or killed())
        with pytest.raises(KeyboardInterrupt):
            build(corpus, "deduplicate.exact=false")
    after = content(corpus.parent / "out")
    assert {name: after[name] for name in before} == before
    build(corpus)
    assert content(corpus.parent / "out") == before


def test_a_damaged_list_of_what_was_removed_names_the_command(corpus: Path, build: Build) -> None:
    record = build(corpus)
    damaged = Path(record["folder"]) / record["removed"]
    damaged.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="damaged") as caught:
        statistics(CorpusDocuments.open(record["folder"]))
    assert caught.value.fix == "Build it again: lmsmith corpus build RECIPE."
    build(corpus)
    assert statistics(CorpusDocuments.open(record["folder"]))["sources"]["crawl"]["duplicates"]
