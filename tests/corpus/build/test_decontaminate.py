"""GPT-3's 13-gram rule, to the letter, against a plain implementation."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from built_corpus import Built, after
from lmsmith.corpus.build.decontaminate import (
    DecontaminateConfig,
    TaskGrams,
    TaskText,
    cuts,
    matches,
    remove_tasks,
    task_grams,
)
from lmsmith.corpus.build.document import Document
from lmsmith.corpus.words import normal_words

QUESTION = "Did the quick brown fox really jump over the lazy dog's back before noon, or not?"


def filler(words: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(10**6)}" for _ in range(words))


def built(folder: Path, documents: dict[str, str], grams: TaskGrams, **settings: Any) -> Built:
    """The whole step."""
    config = DecontaminateConfig(words=grams.words, **settings)
    corpus = [Document(id, "crawl", text) for id, text in documents.items()]
    return after(folder, corpus, lambda engine, data: remove_tasks(engine, data, grams, config))


def test_the_match_and_200_characters_on_either_side_are_removed(tmp_path: Path) -> None:
    grams = task_grams([TaskText("fox", "7", QUESTION)])
    before, after_it = filler(80, 1), filler(90, 2)
    written = QUESTION.upper().replace(" ", "  ")
    text = f"{before}. {written} {after_it}"
    found = built(tmp_path, {"a": text, "b": filler(50)}, grams)
    assert list(found.texts) == ["a/piece-1", "a/piece-2", "b"]
    first, second, _ = found.texts.values()
    assert first == text[: len(before) + 2 - 200]
    assert second == text[text.index(written) + len(written) - 1 + 200 :]
    (cut,) = found.removed
    assert (cut.id, cut.reason) == ("a", "overlap with task fox: item 7")
    assert written[:-1] in cut.excerpt
    assert len(first) + cut.size + len(second) == len(text)


def test_twelve_words_in_a_row_are_no_overlap() -> None:
    grams = task_grams([TaskText("t", "0", " ".join("abcdefghijklm"))])
    assert len(grams.hashes_g) == 1
    twelve = "x a b c d e f g h i j k l x b c d e f g h i j k l m"
    assert matches([twelve, "A-b.c, d e f 'g' h i j k l m!"], grams)[0] == []
    (match,) = matches([twelve, "A-b.c, d e f 'g' h i j k l m!"], grams)[1]
    assert (match.start, match.end) == (0, 28)
    assert task_grams([TaskText("t", "0", "too short"), TaskText("t", "1", QUESTION)]).short == 1


def test_short_pieces_are_dropped_and_documents_in_more_than_ten_pieces(tmp_path: Path) -> None:
    grams = task_grams([TaskText("fox", "0", QUESTION)])
    parts = [filler(80, n) for n in range(12)]
    edge = filler(200)[:400]
    documents = {
        "ten": QUESTION.join(parts[:10]),
        "eleven": QUESTION.join(parts[:11]),
        "long": f"{edge} {QUESTION}",
        "short": f"{edge[1:]} {QUESTION}",
    }
    found = built(tmp_path, documents, grams, shortest=201)
    assert list(found.texts) == sorted(["long/piece-1", *(f"ten/piece-{n}" for n in range(1, 11))])
    assert len(found.texts["long/piece-1"]) == 201
    reasons = {each.id: each.reason for each in found.removed if "overlap" not in each.reason}
    assert reasons == {
        "eleven": "in more than 10 pieces: 11",
        "short": "no piece is long enough",
    }


def test_runs_in_more_than_ten_documents_are_ignored(tmp_path: Path) -> None:
    grams = task_grams([TaskText("fox", "0", QUESTION)])
    ten = {str(n): f"{filler(80, n)} {QUESTION} {QUESTION}" for n in range(10)}
    assert len(built(tmp_path / "10", ten, grams).removed) == 10
    eleven = ten | {"10": QUESTION + filler(80, 10)}
    found = built(tmp_path / "11", eleven, grams)
    assert found.removed == []
    assert found.texts == dict(sorted(eleven.items()))


def plain(text: str, task_words: set[tuple[str, ...]], n: int, around: int) -> list[str]:
    """Pieces by regular expressions and a mask of characters."""
    places = list(re.finditer("[a-z0-9]+", text.lower()))
    mask = [True] * len(text)
    for i in range(len(places) - n + 1):
        if tuple(place.group() for place in places[i : i + n]) in task_words:
            start, end = places[i].start(), places[i + n - 1].end()
            for place in range(max(0, start - around), min(len(text), end + around)):
                mask[place] = False
    kept = "".join(c if m else "\0" for c, m in zip(text, mask, strict=True))
    return [piece for piece in kept.split("\0") if piece]


def test_pieces_are_those_of_a_plain_implementation() -> None:
    draw = random.Random(4)
    tasks = [" ".join(draw.choices("abc", k=8)) for _ in range(6)]
    grams = task_grams([TaskText("t", str(n), text) for n, text in enumerate(tasks)], words=4)
    task_words = {
        tuple(words[i : i + 4]) for words in map(normal_words, tasks) for i in range(len(words) - 3)
    }
    cut = 0
    for _ in range(400):
        text = "".join(draw.choices(["a", "b", "C", " ", ", ", "\n"], k=draw.randrange(120)))
        around = draw.randrange(6)
        (matched,) = matches([text], grams)
        _, pieces = cuts(len(text), matched, around)
        assert [text[a:b] for a, b in pieces] == plain(text, task_words, 4, around)
        cut += bool(matched)
    assert cut > 50


def test_the_published_13_grams_are_runs_of_13_words_already_normal(
    public_data: Callable[[str], Path],
) -> None:
    published = public_data("gpt3_contamination/overlap_frequency.md").read_text("utf-8")
    rows = re.findall(r"^(?:```)?\d+\s+(.+)$", published, re.M)
    assert len(rows) > 100
    for row in rows:
        assert normal_words(row) == row.split()
        assert len(row.split()) == 13
