"""A finished corpus read again: a position, a phrase, figures, a difference and its page."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import lmsmith
from lmsmith.cli import main
from lmsmith.core.errors import UserError
from lmsmith.corpus.build.document import text_hash
from lmsmith.corpus.finished import FinishedCorpus
from lmsmith.corpus.inspect import search as search_module
from lmsmith.corpus.inspect.documents import CorpusDocuments
from lmsmith.corpus.inspect.stats import script_of, scripts
from lmsmith.report.corpus.page import build_corpus_page

RECIPE = """
out = "out"
workers = 1
[sources.crawl]
paths = ["crawl.jsonl", "broken.txt"]
[sources.books]
paths = ["books.jsonl"]
curated = true
[personal]
mask = ["mail"]
[quality.classifier]
enabled = true
pareto = 0.01
held_out = 0.4
[deduplicate.near]
similarity = 0.7
[decontaminate]
tasks = ["asked.jsonl"]
[shards]
vocabulary_size = 300
validation = 0.05
"""

EVIL = '<script>alert("pwned")</script><img src=x onerror=alert(2)> '
QUESTION = "who was the very first person that ever walked alone across the wide frozen lake"


def sentences(draw: random.Random, kind: str, count: int = 50) -> str:
    return " ".join(f"{kind}{draw.randrange(300)}" for _ in range(count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built corpus: duplicates, near-duplicates, markup, Chinese, a task's question."""
    place = tmp_path_factory.mktemp("corpus")
    draw = random.Random(2)
    books = [sentences(draw, "good") for _ in range(30)]
    books[1] = f"{EVIL}{books[1]}"
    poems = (
        "学而时习之，不亦说乎？有朋自远方来",
        "床前明月光，疑是地上霜。举头望明月",
        "白日依山尽，黄河入海流。",
    )
    books += [f"{poem}，不亦乐乎？" for poem in poems]
    crawl = [f"{EVIL}{sentences(draw, 'raw')} Straße {n} me{n}@example.org" for n in range(30)]
    crawl += [*[books[1]] * 6, " ".join([*books[0].split()[:-2], "other"])]
    crawl += [f"{sentences(draw, 'good', 80)} {QUESTION} {sentences(draw, 'good', 80)}"]
    for name, texts in (("books", books), ("crawl", crawl)):
        rows = [json.dumps({"text": text, "id": f"{name} row"}) for text in texts]
        (place / f"{name}.jsonl").write_text("\n".join(rows))
    (place / "broken.txt").write_bytes(b"\x00" * 3000)
    (place / "asked.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "me"}))
    (place / "corpus.toml").write_text(RECIPE)
    lmsmith.build_corpus(str(place / "corpus.toml"), quiet=True)
    return place


@pytest.fixture(scope="module")
def texts(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Id → text and tokens of each document of the shards, read without `CorpusDocuments`."""
    opened = CorpusDocuments.open(folder / "out")
    found = {}
    for part in opened.parts:
        tokens = pq.read_table(part.folder / "documents.parquet").to_pylist()
        for number, row in enumerate(tokens):
            ids = part.tokens[part.offsets[number] : part.offsets[number + 1]].tolist()
            found[row["id"]] = opened.tokenizer.decode(ids), ids
            assert row["hash"] == text_hash(found[row["id"]][0])
    return found


def test_look_shows_the_tokens_around_a_position(
    folder: Path, texts: dict[str, tuple[str, list[int]]]
) -> None:
    tokenizer = CorpusDocuments.open(folder / "out").tokenizer
    stream = [token for _, ids in texts.values() for token in ids]
    total = len(stream)
    for at in [0, 1, total - 1, *random.Random(1).sample(range(total), 40)]:
        seen = lmsmith.look_at_corpus(folder / "out", at=at, tokens=30)
        assert seen["tokens"] == total
        ids = [token for row in seen["documents"] for token in row["ids"]]
        assert ids == stream[seen["start"] : seen["end"]]
        (row,) = [row for row in seen["documents"] if "token" in row]
        assert (
            row["ids"][at - row["start"]] == stream[at] == texts[row["id"]][1][at - row["position"]]
        )
        written = row["before"] + row["token"] + row["after"]
        assert written == tokenizer.decode(row["ids"], special=True)
        if "学" in texts[row["id"]][0] and row["end"] - row["start"] == row["tokens"]:
            assert "\ufffd" not in written
    books = lmsmith.look_at_corpus(folder / "out", at=0, source="crawl")
    assert {row["source"] for row in books["documents"]} == {"crawl"}
    with pytest.raises(UserError, match=f"position {total:,} is outside"):
        lmsmith.look_at_corpus(folder / "out", at=total)
    with pytest.raises(UserError, match="--source web: no such source"):
        lmsmith.look_at_corpus(folder / "out", at=0, source="web")


def held_out_texts(out: Path) -> dict[str, str]:
    """Id → text of each held-out document."""
    (file,) = out.glob("shards-*/validation.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) >= 3
    return {row["id"]: row["text"] for row in rows}


@pytest.mark.parametrize("block", [40, 1 << 20])
def test_search_finds_every_place(
    folder: Path,
    texts: dict[str, tuple[str, list[int]]],
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search_module, "BLOCK_TOKENS", block)
    out = folder / "out"
    held_out = held_out_texts(out)
    everything = {id: text for id, (text, _) in texts.items()} | held_out
    for phrase in ("good1", "script", "不亦", "Straße", "a", "1 good", "nowhere"):
        found = lmsmith.search_corpus(out, phrase, limit=1000)
        assert found["found"] == sum(text.count(phrase) for text in everything.values())
        assert found["documents"] == sum(phrase in text for text in everything.values())
        assert found["held_out"]["found"] == sum(map(str.count, held_out.values(), repeat(phrase)))
        for hit in found["hits"]:
            said = (hit["before"] + hit["text"] + hit["after"]).replace("<|endoftext|>", "")
            assert said in everything[hit["id"]]
            assert phrase in hit["text"]
            assert hit["held_out"] == (hit["position"] is None) == (hit["id"] in held_out)
    phrase = "STRASSE"
    assert lmsmith.search_corpus(out, phrase.lower())["found"] == 0
    large = lmsmith.search_corpus(out, "STRAßE", ignore_case=True)["found"]
    assert large == sum(text.count("Straße") for text in everything.values())
    assert lmsmith.search_corpus(out, "GOOD1", ignore_case=True)["found"] == sum(
        text.count("good1") for text in everything.values()
    )
    one = next(ids for _, ids in texts.values())
    found = lmsmith.search_corpus(out, " ".join(map(str, one[3:9])), ids=True)
    assert found["hits"][0]["token_in_document"] == 3
    # The end of a document and the beginning of the next are no phrase.
    first, second = (text for text, _ in list(texts.values())[:2])
    assert lmsmith.search_corpus(out, first[-5:] + second[:5])["found"] == 0
    for phrase, as_ids in (("", False), ("17 x", True), ("99999", True)):
        with pytest.raises(UserError):
            lmsmith.search_corpus(out, phrase, ids=as_ids)


def test_statistics_are_those_of_the_record(
    folder: Path, texts: dict[str, tuple[str, list[int]]]
) -> None:
    found = lmsmith.corpus_statistics(folder / "out")
    record = json.loads((folder / "out/corpus.json").read_text())
    for name, about in found["sources"].items():
        assert {key: about[key] for key in ("documents", "bytes", "tokens")} == {
            key: record["sources"][name][key] for key in ("documents", "bytes", "tokens")
        }
        assert sum(about["scripts"].values()) == pytest.approx(1)
        assert 0 < about["scores"]["quality"] < 1
    assert found["sources"]["books"]["scripts"].keys() == {"Latin", "Han"}
    removed = pq.read_table(FinishedCorpus.load(folder / "out").removed).to_pylist()
    for step in ("exact", "near-duplicates"):
        expected = Counter(row["language"] for row in removed if row["step"] == step)
        assert found["sources"]["crawl"]["duplicates"][step] == expected
    used = {token for _, ids in texts.values() for token in ids}
    assert found["vocabulary"]["used"] == len(used)
    assert scripts(iter(["abc Ωμ!1", "д 学"])) == {
        "Latin": 3 / 7, "Greek": 2 / 7, "Cyrillic": 1 / 7, "Han": 1 / 7,
    }  # fmt: skip
    assert script_of("ー") == script_of("あ") == "Kana"


def test_the_difference_names_documents_reasons_and_settings(folder: Path) -> None:
    other = folder / "other"
    lines = (folder / "crawl.jsonl").read_text().splitlines()
    changed = [lines[0], lines[1].replace("raw", "new"), *lines[2:-1]]
    (folder / "crawl.jsonl").write_text("\n".join(changed))
    off = ("quality.classifier.enabled", "deduplicate.exact", "deduplicate.near.enabled")
    settings = ["out=other", *(f"{name}=false" for name in off)]
    try:
        lmsmith.build_corpus(str(folder / "corpus.toml"), set=settings, quiet=True)
    finally:
        (folder / "crawl.jsonl").write_text("\n".join(lines))
    found = lmsmith.compare_corpora(folder / "out", other, limit=500)
    assert found["settings"] == {
        "deduplicate.exact": [True, False],
        "deduplicate.near.enabled": [True, False],
        "quality.classifier.enabled": [True, False],
    }
    why = found["added"]["reasons"]["crawl"]
    assert why["exact: equal to another document"] == 6
    assert why["near-duplicates: near-duplicate of another document"] == 1
    kept = {row["id"] for row in found["added"]["first"]}
    assert len(kept) == found["added"]["documents"] == sum(why.values())
    # The row that is no longer in the file had been cut in two pieces by the task's question.
    assert found["removed"]["reasons"]["crawl"] == {"not among what was read": 2}
    (changed_one,) = found["changed"]["first"]
    assert changed_one["id"].endswith(":2")
    assert found["same"] + 1 + 2 == found["before"]["documents"]
    itself = lmsmith.compare_corpora(folder / "out", folder / "out")
    assert itself["same"] == found["before"]["documents"]


def test_the_page_is_of_the_folder_alone_and_escapes_the_texts(folder: Path) -> None:
    out = folder / "copy"
    shutil.copytree(folder / "out", out, ignore=shutil.ignore_patterns("work", ".lock"))
    html = build_corpus_page(out).read_text()
    assert "&lt;script&gt;alert(&#34;pwned" in html
    assert not re.search(r"<(script|img|link|iframe)\b|https?://", html)
    assert "near-duplicate of another document" in html
    assert f"<mark>{QUESTION[:20]}" in html
    assert "me1@example.org" not in html
    # All rows of a source bear one id.
    assert "books: 32 documents have the id of another, such as &#39;books row&#39;" in html
    near = json.loads((out / "corpus.json").read_text())["figures"]["near_duplicates"]
    assert near["precision"] == near["recall"] == 1
    assert near["removed"] > 0
    assert re.search(r"<th scope=\"row\">books</th>.*Latin [\d.]+\s%, Han [\d.]+\s%", html)
    assert f"{near['removed']} of {near['removed']} removed documents have a duplicate" in html
    assert "a file without text" in html or "broken.txt" in html
    for title in ("Quality classifier", "Duplicates", "Languages", "Personal data", "Mixture"):
        assert f"<h2>{title}</h2>" in html
    # The order in which an engine lists what was removed changes nothing.
    removed = FinishedCorpus.load(out).removed
    table = pq.read_table(removed)
    steps = json.loads((out / "corpus.json").read_text())["steps"]
    counted: Counter[str] = Counter()
    for step, found in steps.items():
        for name, n in ((name, n) for counts in found.values() for name, n in counts.items()):
            counted[step] += n if name.startswith("removed.") else 0
    listed = Counter(table["step"].to_pylist())
    assert counted == listed
    pq.write_table(table.take(list(range(len(table) - 1, -1, -1))), removed)
    assert build_corpus_page(out).read_text() == html


def test_the_commands_print_for_people_and_programs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(folder / "out")
    said = {
        ("look", out, "--at", "40"): "token 40 of",
        ("search", out, "good1", "--limit", "1"): "more places: --limit N lists more",
        ("stats", out): "vocabulary: ",
        ("diff", out, out): "added: 0 documents",
    }
    for words, expected in said.items():
        assert main(["corpus", *words]) == 0
        assert expected in capsys.readouterr().out
        assert main(["corpus", *words, "--json"]) == 0
        found: Any = json.loads(capsys.readouterr().out)
        assert isinstance(found, dict)
    text = next(iter(held_out_texts(folder / "out").values()))
    assert main(["corpus", "search", out, text]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("found 1 time in 1 document (")
    assert "held out: 1 time in 1 document" in printed
    assert main(["report", out]) == 0
    assert capsys.readouterr().out.strip() == f"{out}/report.html"
    assert main(["corpus", "look", str(folder), "--at", "0"]) == 2
    assert "no finished corpus" in capsys.readouterr().err
    assert main(["corpus", "look", out]) == 2
