"""Rankings alone are enough for every stage, and none is used for two things."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lmsmith.core.config import decode
from lmsmith.core.errors import UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.rows import Conversation, Ranking, read_conversations, read_rankings
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages import data, rankings
from lmsmith.stages.data import DataConfig, Splits
from lmsmith.stages.human_rankings import best_conversations

SPLITS = ("demonstrations", "comparisons", "prompts", "judge", "test", "validation")
USED = {"train": "comparisons", "validation": "validation", "test": "test"}


def talk(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)]


def dialogue(number: int) -> list[dict[str, Any]]:
    """Three turns of a dialogue, each ranked, the second with another history."""
    first, second, third = f"Question {number}?", f"more {number}", f"and {number}"
    prompts = [[first], [f"question {number}", "so", second], [first, "yes", second, "ah", third]]
    return [
        {
            "id": f"{number}#{turn}",
            "prompt": talk(*prompt),
            "responses": ["no", "yes", "yes too"],
            "ranks": [2, 1, 1],
        }
        for turn, prompt in enumerate(prompts)
    ]


class Bench:
    """Runs the data stage on rows, and reads what it wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "data"
        self.progress = QuietProgress()

    def write(self, rows: list[dict[str, Any]], name: str) -> str:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def run(self, rows: list[dict[str, Any]], **settings: Any) -> dict[str, float]:
        settings.setdefault("rankings_as_conversations", True)
        config = DataConfig(rankings=(self.write(rows, "own.jsonl"),), **settings)
        self.out.mkdir(exist_ok=True)
        return data.run(config, {}, StageFolder(self.out, 1, MachineConfig(), self.progress))

    def conversations(self, split: str) -> list[Conversation]:
        path = self.out / f"{split}.jsonl"
        return list(read_conversations(path)) if path.is_file() else []

    def rankings(self) -> list[Ranking]:
        path = self.out / "rankings.jsonl"
        return list(read_rankings(path)) if path.is_file() else []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def number_of(messages: list[dict[str, str]]) -> str:
    """Which dialogue it is, by its first words."""
    return "".join(filter(str.isdigit, messages[0]["content"]))


def test_no_dialogue_is_used_for_two_things(bench: Bench) -> None:
    rows = [row for number in range(200) for row in dialogue(number)]
    metrics = bench.run(rows)
    families = {
        split: {number_of(talk.messages) for talk in bench.conversations(split)} for split in SPLITS
    }
    assert all(families.values())
    assert sum(map(len, families.values())) == len(set.union(*families.values())) == 200
    found: dict[str | None, set[str]] = {split: set() for split in USED}
    for ranking in bench.rankings():
        found[ranking.split].add(number_of(ranking.prompt))
    assert found == {split: families[name] for split, name in USED.items()}
    counts = Counter(ranking.split for ranking in bench.rankings())
    assert {split: metrics[f"rankings.{split}"] for split in USED} == counts
    assert all(counts[split] == 3 * len(families[name]) for split, name in USED.items())
    assert metrics["rankings"] == sum(counts.values())
    assert metrics["rankings.read"] == 600


def test_the_rankings_stage_takes_them_as_they_are_divided(bench: Bench, tmp_path: Path) -> None:
    bench.run([row for number in range(60) for row in dialogue(number)])
    folder = tmp_path / "rankings"
    folder.mkdir()
    out = StageFolder(folder, 1, MachineConfig(), QuietProgress())
    rankings.run(rankings.RankingsConfig(), {"data": bench.out}, out)
    for split in USED:
        expected = [ranking for ranking in bench.rankings() if ranking.split == split]
        assert list(read_rankings(folder / f"{split}.jsonl")) == expected != []


def test_a_conversation_is_the_prompt_and_the_first_best_response(bench: Bench) -> None:
    rows = dialogue(1)[:2]
    metrics = bench.run(rows, splits=Splits(1, 0, 0, 0, 0, 0))
    assert [c.messages for c in bench.conversations("demonstrations")] == [
        talk("Question 1?", "yes"),
        talk("question 1", "so", "more 1", "yes"),
    ]
    assert metrics["conversations.read"] == metrics["documents"] == 2
    assert bench.rankings() == []
    assert not (bench.out / "comparisons.jsonl").exists()


def test_what_only_begins_another_conversation_is_dropped(bench: Bench) -> None:
    rows = dialogue(1)  # the first is how the third begins
    metrics = bench.run(rows, splits=Splits(1, 0, 0, 0, 0, 0))
    assert [c.id for c in bench.conversations("demonstrations")] == ["1#1/best", "1#2/best"]
    assert metrics["dropped.contained"] == 1
    ranking = Ranking("r", talk("a"), ["b", "c"], [1, 2])
    counts: Counter[str] = Counter()
    whole = Conversation("w", talk("a", "b", "c"))
    assert best_conversations([ranking], [whole], counts) == []
    other = Conversation("o", talk("a", "c", "d"))
    assert [c.id for c in best_conversations([ranking], [other], counts)] == ["r/best"]
    same = Conversation("s", talk("a", "b"))
    assert len(best_conversations([ranking], [same], counts)) == 1, "that one is a duplicate"


def test_an_empty_best_response_is_no_conversation(bench: Bench) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "responses": ["x", " "], "ranks": [2, 1]},
        {"prompt": "b", "responses": ["x", " "], "ranks": [1, 2]},
    ]
    metrics = bench.run(rows, splits=Splits(0, 1, 0, 0, 0, 0))
    assert [c.messages for c in bench.conversations("comparisons")] == [talk("b", "x")]
    assert metrics["dropped.empty_best_response"] == 1
    assert metrics["rankings.train"] == 2, "people's judgement counts all the same"


def test_own_conversations_stay_with_the_rankings_that_begin_as_they_do(bench: Bench) -> None:
    rows = [row for number in range(80) for row in dialogue(number)]
    own = [
        {"id": f"mine {number}", "messages": talk(f"QUESTION {number}", "hm", "bye", "bye")}
        for number in range(160)
    ]
    path = bench.write(own, "talks.jsonl")
    bench.run(rows, conversations=(path,))
    splits = {split: bench.conversations(split) for split in SPLITS}
    mine = {talk.id: split for split, talks in splits.items() for talk in talks if "m" in talk.id}
    theirs = {
        number_of(talk.messages): split
        for split, talks in splits.items()
        for talk in talks
        if "best" in talk.id
    }
    assert len(mine) == 160
    assert all(mine[f"mine {number}"] == split for number, split in theirs.items())
    bench.run(rows, conversations=(path,), rankings_as_conversations=False)
    alone = {c.id: split for split in SPLITS for c in bench.conversations(split)}
    assert {name: alone[name] for name in list(mine)[80:]} != mine
    assert all(alone[f"mine {number}"] == mine[f"mine {number}"] for number in range(80, 160))
    assert {ranking.split for ranking in bench.rankings()} == {None}
    assert len(bench.rankings()) == len(rows)


def test_a_ranking_follows_its_conversation_when_cleaning_changes_how_it_begins(
    bench: Bench,
) -> None:
    rows = [
        {"prompt": talk(f"{number}", " ", "then"), "responses": ["a", "b"], "ranks": [1, 2]}
        for number in range(60)
    ]
    bench.run(rows, splits=Splits(0.5, 0.5, 0, 0, 0, 0))
    assert {number_of(ranking.prompt) for ranking in bench.rankings()} == {
        number_of(talk.messages) for talk in bench.conversations("comparisons")
    }


def test_duplicates_are_dropped_as_of_other_conversations(bench: Bench) -> None:
    row = {"prompt": "Why?", "responses": ["So.", "x"], "ranks": [1, 2]}
    again = {"prompt": "why", "responses": ["y", "so!"], "ranks": [2, 1]}
    metrics = bench.run([row, again], splits=Splits(0, 1, 0, 0, 0, 0))
    assert metrics["dropped.duplicates"] == 1
    assert metrics["conversations.comparisons"] == 1
    assert metrics["rankings.train"] == 2


def test_irregular_pairs_are_left_out_counted_and_told_of(bench: Bench) -> None:
    def pair(chosen: str, rejected: str) -> dict[str, str]:
        texts = chosen, rejected
        return {
            name: f"\n\nHuman: why?{text}"
            for name, text in zip(("chosen", "rejected"), texts, strict=True)
        }

    rows = [
        pair("\n\nAssistant: a", "\n\nAssistant: b"),
        pair("\n\nAssistant: ", "\n\nAssistant: b"),
        pair("\n\nAssistant: a", ""),
        pair("\n\nAssistant: a", "\n\nAssistant:"),
    ]
    metrics = bench.run(rows, splits=Splits(0, 1, 0, 0, 0, 0))
    assert (metrics["rankings.read"], metrics["rankings.left_out"]) == (4, 3)
    assert metrics["rankings"] == 1
    path = bench.folder / "own.jsonl"
    assert bench.progress.said == [
        "data: 3 of 4 rankings left out: 2 with an empty message, 1 that do not end with the "
        f"assistant's message (the first: {path}, line 2: a message is empty)"
    ]
    with pytest.raises(UserError, match=r"1 of 1 rankings left out: 1 with an empty message"):
        bench.run(rows[1:2])
    with pytest.raises(UserError, match=r"own\.jsonl: no rankings in it"):
        bench.run([])
    with pytest.raises(UserError, match=r"own\.jsonl, line 2: no 'rejected' in this row"):
        bench.run([rows[0], {"chosen": "a"}])


def test_empty_files_of_an_export_are_none_and_it_is_said(bench: Bench) -> None:
    talks = [{"messages": talk(f"a {number}", f"b {number}")} for number in range(20)]
    judged, empty = bench.write(talks, "talks.jsonl"), bench.write([], "conversations.jsonl")
    metrics = bench.run([], rankings_as_conversations=False, conversations=(judged, empty))
    assert (metrics["conversations.kept"], metrics["rankings"]) == (20, 0)
    said = bench.progress.said
    assert f"data: 1 file was empty: {bench.folder / 'own.jsonl'}" in said
    assert f"data: 1 file was empty: {empty}" in said
    assert any("no rankings of people" in line for line in said)


def test_too_few_rankings_for_the_reward_model_are_said(bench: Bench) -> None:
    bench.run([{"prompt": "a", "chosen": "b", "rejected": "c"}], splits=Splits(0.99, 0.01, 0, 0, 0))
    assert any("no ranking fell into comparisons" in line for line in bench.progress.said)


def test_rankings_that_name_a_split_are_not_divided_again(bench: Bench) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "split": "test", "id": "r"}
    with pytest.raises(UserError, match=r"but 'r' of own\.jsonl says that its 'split' is test"):
        bench.run([row])
    bench.run([row], rankings_as_conversations=False, documents=(own_text(bench),))
    assert [ranking.split for ranking in bench.rankings()] == ["test"]


def own_text(bench: Bench) -> data.DocumentSource:
    (bench.folder / "book.txt").write_text("A book.")
    return data.DocumentSource(str(bench.folder / "book.txt"))


@pytest.mark.parametrize(
    ("table", "keys"),
    [
        ({"rankings_as_conversations": True}, ["data.rankings"]),
        ({"rankings": ["r.jsonl"]}, ["data.conversations"]),
        ({"rankings": ["r.jsonl"], "rankings_as_conversations": True}, []),
        (
            {"rankings": ["r.jsonl"], "rankings_as_conversations": True, "either_side": True},
            ["data.either_side"],
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(
    table: dict[str, object], keys: list[str]
) -> None:
    _, problems = decode(DataConfig, table, "data")
    assert [problem.key for problem in problems] == keys
