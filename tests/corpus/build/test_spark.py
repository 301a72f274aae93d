"""The engine of a cluster on real Spark: the same bytes as the local one, whatever is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from corpus.build.conftest import Build, save_random_classifier
from corpus.build.conftest import content as all_content
from lmsmith.core.errors import UserError
from lmsmith.corpora import build_corpus
from lmsmith.corpus.build import run
from lmsmith.corpus.build.reading import plan
from lmsmith.corpus.build.recipe import load_corpus_recipe
from lmsmith.corpus.finished import FinishedCorpus
from lmsmith.evaluation.harmful_text import fine_tuned_scorer

needs_spark = pytest.mark.skipif(
    find_spec("pyspark") is None or shutil.which("java") is None,
    reason="PySpark or Java is not installed: make test-spark",
)

RECIPE = """
seed = 3
out = "out"
workers = 2
engine = "spark"
[sources.crawl]
paths = ["crawl/*.jsonl"]
[sources.books]
paths = ["books"]
curated = true
[clean]
boilerplate = true
[harmful]
examples = ["harmful"]
harmless = ["harmless"]
[quality.classifier]
enabled = true
feature_bits = 10
pareto = 0.3
[deduplicate.lines]
enabled = true
unit = "lines"
[shards]
vocabulary_size = 300
validation = 0.1
"""

AGAIN = "Accept all of the cookies of this site to go on."
HARM = "zuzzu " * 60
SYLLABLES = [first + last for first in "bdfghklmnprstvz" for last in "aeiou"]


def text(number: int, lines: int = 8) -> str:
    """Lines of words that are drawn for the number."""
    draw = random.Random(number)
    words = ["".join(draw.choices(SYLLABLES, k=2)) for _ in range(9 * lines)]
    return "\n".join(" ".join(words[9 * n : 9 * n + 9]) + "." for n in range(lines))


def content(folder: Path) -> dict[str, Any]:
    """The files of a corpus, and what was removed without the order of an engine."""
    files: dict[str, Any] = all_content(folder)
    path = FinishedCorpus.load(folder).removed
    del files[path.name]
    rows = pq.read_table(path).to_pylist()
    files["removed"] = sorted(json.dumps(row) for row in rows)
    assert rows
    return files


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A crawl with doubles, near-duplicates, a line that comes again, harmful and broken rows, and
    ids that come again; books; examples of harm."""
    monkeypatch.setattr(plan, "ITEM_BYTES", 20_000)  # several files are several tasks
    (tmp_path / "crawl").mkdir()
    (tmp_path / "books").mkdir()
    for file in range(4):
        numbers = range(file * 30, file * 30 + 30)
        rows = [text(number) for number in numbers]
        rows += [f"{text(number)}\nonce more" for number in numbers[:4]]
        rows += [f"{AGAIN}\n{text(-1 - number)}" for number in numbers[:4]]
        rows += [f"{HARM} {text(900 + number)}" for number in numbers[:2]]
        lines = [json.dumps({"text": row, "id": f"row {n}"}) for n, row in enumerate(rows)]
        (tmp_path / f"crawl/{file}.jsonl").write_text("\n".join([*lines, "broken"]) + "\n")
    for number in range(40):
        (tmp_path / f"books/{number:02d}.txt").write_text(text(7 * number))
    for folder, begin in (("harmful", HARM), ("harmless", "")):
        (tmp_path / folder).mkdir()
        for number in range(12):
            (tmp_path / folder / f"{number}.txt").write_text(f"{begin} {text(2000 + number)}")
    (tmp_path / "corpus.toml").write_text(RECIPE)
    return tmp_path / "corpus.toml"


@needs_spark
def test_both_engines_make_the_same_bytes(corpus: Path, build: Build) -> None:
    record = build(corpus)
    build(corpus, "engine=local", "out=local")
    assert content(corpus.parent / "out") == content(corpus.parent / "local")
    removed = {step for step, found in record["steps"].items() if "removed" in str(found)}
    assert {"read", "harmful-score", "exact", "near-duplicates"} <= removed
    figures = record["figures"]
    assert figures["duplicate_ids"]["crawl"]["documents"] > 90
    assert figures["near_duplicates"]["pairs"] > 0
    assert figures["near_duplicates"]["precision"] == 1
    assert (
        record["steps"]["lines"]["crawl"]["bytes_out"]
        < record["steps"]["lines"]["crawl"]["bytes_in"]
    )
    about = record["build"]["engine"]
    assert about["master"].startswith("local[2")
    # No stage is a single task, but for the empty table of a check that all clusters are stars.
    single = {name for name, tasks in about["tasks_of_stages"].items() if 1 in tasks}
    assert {name.rstrip("0123456789") for name in single} <= {"near-count-"}


@needs_spark
@pytest.mark.parametrize("victim", ["worker", "executor"])
def test_killed_workers_and_executors_change_no_byte(
    victim: str, corpus: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One dies in the middle of its rows in every kind of task."""
    from lmsmith.corpus.build import spark_tasks

    build(corpus, "engine=local", "out=local")
    kinds = ["map_rows", "pair_rows", "reduce_rows", "lookup_rows", "shard_rows"]
    for kind in kinds:
        deadly = killing(getattr(spark_tasks, kind), str(corpus.parent / kind), victim)
        monkeypatch.setattr(spark_tasks, kind, deadly)
    cluster = ["spark.master=local-cluster[2,1,1024]"] if victim == "executor" else []
    build(corpus, *cluster)
    assert all((corpus.parent / kind).exists() for kind in kinds)
    assert content(corpus.parent / "out") == content(corpus.parent / "local")


def killing(original: Callable[..., Iterator[Any]], mark: str, victim: str) -> Callable[..., Any]:
    """A task that kills its process, or the executor that started it, when it is first run."""

    def task(batches: Iterator[Any], **given: Any) -> Iterator[Any]:
        import os
        import signal
        from pathlib import Path

        for batch in original(batches, **given):
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                yield batch
                continue
            yield batch
            if victim == "worker":
                os.kill(os.getpid(), signal.SIGKILL)
            daemon = os.getppid()
            parent = Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()[1]
            os.kill(int(parent), signal.SIGKILL)

    return task


@needs_spark
def test_executors_judge_by_a_fine_tuned_classifier(corpus: Path) -> None:
    save_random_classifier(corpus.parent / "toxic")
    scores = fine_tuned_scorer(str(corpus.parent / "toxic")).scores([text(n) for n in range(41)])
    named = ["harmful.examples=[]", "harmful.harmless=[]", "harmful.classifier=toxic"]
    named += ["quality.classifier.enabled=false"]
    for engine in ("spark", "local"):
        threshold = f"harmful.threshold={sorted(scores)[20]}"
        settings = [*named, f"engine={engine}", f"out={engine}", threshold]
        record = build_corpus(str(corpus), set=settings, quiet=True).record
        counts = record["steps"]["harmful-score"]["crawl"]
        assert 0 < counts["documents_out"] < counts["documents_in"]
    files = (content(corpus.parent / each) for each in ("spark", "local"))
    one, other = ({k: v for k, v in each.items() if k != "report.html"} for each in files)
    assert one == other


@needs_spark
def test_a_killed_build_goes_on_after_the_last_finished_step(corpus: Path, build: Build) -> None:
    program = f"""
import os, signal, sys
from lmsmith.core.progress import QuietProgress
from lmsmith.corpus.build import spark_session
from lmsmith.corpus.build.recipe import load_corpus_recipe
from lmsmith.corpus.build.run import build_corpus
from lmsmith.tokenizers import Tokenizer
run = spark_session.Actions.run
def counted(self, name, action, counted=True):
    if name == "near-verified":
        os.kill(os.getpid(), signal.SIGKILL)
    return run(self, name, action, counted)
spark_session.Actions.run = counted
build_corpus(load_corpus_recipe({str(corpus)!r}), Tokenizer.load, QuietProgress())
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in (corpus.parent / "out").rglob("_SUCCESS")}
    assert len(finished) > 5
    record = build(corpus)
    for path, time in finished.items():
        assert path.stat().st_mtime_ns == time
    assert "near-verified" in record["build"]["engine"]["tasks_of_stages"]
    assert "near-bands" not in record["build"]["engine"]["tasks_of_stages"]
    build(corpus, "engine=local", "out=local")
    assert content(corpus.parent / "out") == content(corpus.parent / "local")


@needs_spark
def test_a_file_that_could_not_be_read_is_tried_again(
    corpus: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, away = corpus.parent / "books/07.txt", corpus.parent / "07.txt"
    make_items = run.make_items

    def moved(*given: Any) -> Any:
        items = make_items(*given)
        book.rename(away)
        return items

    settings = ["harmful.examples=[]", "harmful.harmless=[]", "quality.classifier.enabled=false"]
    settings += ["deduplicate.near.enabled=false", "deduplicate.lines.enabled=false"]
    with monkeypatch.context() as patch:
        patch.setattr(run, "make_items", moved)
        first = build(corpus, *settings)
        away.rename(book)
    assert first["steps"]["read"]["books"]["removed.cannot be read"] == 1
    record = build(corpus, *settings)
    assert record["steps"]["read"]["books"]["documents_out"] == 40
    assert record["shards"] != first["shards"]
    again = build(corpus, *settings)
    assert "read" not in again["build"]["engine"]["tasks_of_stages"]


@needs_spark
def test_a_mistake_that_a_worker_finds_is_one_message(
    corpus: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsmith.corpus.build import spark_tasks

    def mistaken(batches: Iterator[Any], **_given: Any) -> Iterator[Any]:
        raise UserError("words.txt: no such file", "Check the path.")
        yield from batches

    with monkeypatch.context() as patch:
        patch.setattr(spark_tasks, "map_rows", mistaken)
        with pytest.raises(UserError) as caught:
            build(corpus)
    assert (caught.value.problem, caught.value.fix) == (
        "words.txt: no such file",
        "Check the path.",
    )
    rows = corpus.parent / "out/work/spark/read/rows"
    for path in rows.glob("part-*.parquet"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"read/rows/part-.*\n  Remove"):
        build(corpus)
    shutil.rmtree(rows)
    build(corpus)


def test_what_is_missing_is_named(corpus: Path, build: Build, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyspark", None)
        with pytest.raises(UserError, match=r"pip install \"lmsmith\[spark\]\""):
            build(corpus)


@needs_spark
def test_a_missing_java_is_named(corpus: Path, build: Build, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(UserError, match="Java 17"):
        build(corpus)


def test_settings_of_spark_are_read_with_their_dots(corpus: Path) -> None:
    table = '\n[spark.conf]\n"spark.executor.memory" = "8g"\nspark.task.maxFailures = 2\n'
    corpus.write_text(RECIPE + table)
    recipe = load_corpus_recipe(corpus, ["spark.conf.spark.ui.enabled=false"])
    assert recipe.spark.conf == {
        "spark.executor.memory": "8g",
        "spark.task.maxFailures": "2",
        "spark.ui.enabled": "false",
    }
    with pytest.raises(UserError, match=r"spark\.conf\.executor\.memory"):
        load_corpus_recipe(corpus, ["spark.conf.executor.memory=8g"])
