"""The data stage keeps real exchange, splits it without overlap, and says what it dropped."""

from __future__ import annotations

import importlib.metadata
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmsmith.core.config import decode
from lmsmith.core.errors import UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig, shipped_recipes
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.data import DataConfig, DocumentSource, Splits, run
from lmsmith.stages.pipeline import load_stage_recipe

SPLITS = ("demonstrations", "comparisons", "prompts", "judge", "test", "validation")


def talk(*contents: str, system: str = "", first: str = "user") -> list[dict[str, str]]:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    turns = [{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + turns


def many(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"c{number}", "messages": talk(*(f"{number} says {turn}" for turn in "abcd"))}
        for number in range(count)
    ]


class Bench:
    """Runs the stage on rows, and reads what it wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.progress = QuietProgress()

    def write(self, rows: list[dict[str, Any]], name: str = "talks.jsonl") -> str:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def run(self, config: DataConfig) -> dict[str, float]:
        out = self.folder / "out"
        out.mkdir(exist_ok=True)
        return run(config, {}, StageFolder(out, 1, MachineConfig(), self.progress))

    def read(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / "out" / f"{name}.jsonl"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [json.loads(line) for line in text.split("\n") if line]

    def ids(self) -> dict[str, set[str]]:
        return {name: {row["id"] for row in self.read(name)} for name in SPLITS}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_every_conversation_is_in_one_split(bench: Bench) -> None:
    rows = many(300)
    metrics = bench.run(DataConfig(conversations=(bench.write(rows),)))
    ids = bench.ids()
    assert sum(map(len, ids.values())) == 300
    assert set().union(*ids.values()) == {row["id"] for row in rows}
    assert all(metrics[f"splits.{name}"] == len(ids[name]) for name in SPLITS)
    assert metrics["conversations.read"] == metrics["conversations.kept"] == 300


def test_pretraining_reads_nothing_of_judge_validation_and_test(bench: Bench) -> None:
    bench.run(DataConfig(conversations=(bench.write(many(300)),), either_side=True))
    ids = bench.ids()
    names = ("documents", "validation_documents", "test_documents")
    documents, validation, test = ({row["id"] for row in bench.read(name)} for name in names)
    assert validation == ids["validation"]
    assert test == ids["test"]
    own = ids["demonstrations"] | ids["comparisons"] | ids["prompts"]
    assert documents == {name for name in own if "/" not in name}
    row = bench.read("documents")[0]
    number = row["id"].removeprefix("c")
    assert row["text"] == "\n\n".join(f"{number} says {turn}" for turn in "abcd")


def test_what_is_left_over_is_for_pretraining(bench: Bench) -> None:
    splits = Splits(0.2, 0.0, 0.0, 0.1, 0.1, 0.1)
    metrics = bench.run(DataConfig(conversations=(bench.write(many(300)),), splits=splits))
    held_out = sum(metrics[f"splits.{name}"] for name in ("judge", "test", "validation"))
    assert metrics["documents"] == 300 - held_out > metrics["splits.demonstrations"]
    assert not (bench.folder / "out" / "comparisons.jsonl").exists()


def test_splits_do_not_depend_on_order_nor_on_other_rows(bench: Bench) -> None:
    rows = many(200)
    config = DataConfig(conversations=(bench.write(rows),))
    bench.run(config)
    before = bench.ids()
    random.Random(0).shuffle(rows)
    bench.write(rows[:120])
    bench.run(config)
    left = {row["id"] for row in rows[:120]}
    assert bench.ids() == {name: ids & left for name, ids in before.items()}


@pytest.mark.parametrize("reverse", [False, True])
def test_of_nearly_equal_conversations_the_smallest_id_is_kept(bench: Bench, reverse: bool) -> None:
    rows = [
        {"id": "b", "messages": talk("Hello there!", "Hi", "x")},
        {"id": "a", "messages": talk("hello  THERE", "hi.", "x?")},
        {"id": "c", "messages": talk("Hello there!", "Hi", "x", first="assistant")},
        {"id": "d", "messages": talk("Hello there!", "Hi", "y")},
    ]
    path = bench.write(rows[::-1] if reverse else rows)
    metrics = bench.run(DataConfig(conversations=(path,), splits=Splits(1, 0, 0, 0, 0, 0)))
    assert bench.ids()["demonstrations"] == {"a", "d"}
    assert metrics["dropped.duplicates"] == 2


def test_what_is_no_exchange_is_dropped_and_counted(bench: Bench) -> None:
    rows = [
        {"id": "kept", "messages": talk("a\x00\r\nb ", "c", " ", "d", "e", system="be")},
        {"id": "one side", "messages": talk("a")},
        {"id": "one side after cleaning", "messages": talk("a", " \n", "b")},
        {"id": "short", "messages": talk("a", "b")},
        {"id": "system and short", "messages": talk("a", "b", system="be")},
    ]
    config = DataConfig((bench.write(rows),), min_turns=3, splits=Splits(1, 0, 0, 0, 0, 0))
    metrics = bench.run(config)
    (row,) = bench.read("demonstrations")
    assert row["messages"] == talk("a\nb", "c\nd", "e", system="be")
    assert metrics["dropped.one_sided"] == 2
    assert metrics["dropped.too_few_turns"] == 2
    assert metrics["dropped.empty_messages"] == 2
    assert bench.read("documents")[0]["text"] == "a\nb\n\nc\nd\n\ne"


def test_either_side_gives_each_training_conversation_twice(bench: Bench) -> None:
    path = bench.write(many(200))
    config = DataConfig(conversations=(path,))
    bench.run(config)
    once = bench.ids()
    metrics = bench.run(replace(config, either_side=True))
    for name, ids in bench.ids().items():
        doubled = set() if name in ("test", "validation") else {f"{id_}/other-side" for id_ in ids}
        assert {id_ for id_ in ids if "/" in id_} == doubled & ids
        assert {id_ for id_ in ids if "/" not in id_} == once[name]
        assert metrics[f"conversations.{name}"] == len(once[name]) * (2 if doubled else 1)
        assert metrics[f"splits.{name}"] == len(once[name])


def test_own_documents_and_rankings(bench: Bench) -> None:
    text = bench.folder / "book.txt"
    text.write_text("A book.\n\nWith a page.\n")
    rows: list[dict[str, Any]] = [{"text": f"document {number}"} for number in range(200)]
    rows += [
        {"text": " "},
        {"text": "Document 7!"},
        {"text": "7 says a 7 says b 7 says c 7 says d"},
    ]
    documents = bench.write(rows, "docs.jsonl")
    ranking = {"prompt": "a", "chosen": "b", "rejected": "c", "id": "r", "labeler": "me"}
    config = DataConfig(
        conversations=(bench.write(many(50)),),
        documents=(DocumentSource(str(text), weight=0.5), DocumentSource(documents)),
        rankings=(bench.write([ranking], "ranks.jsonl"),),
    )
    metrics = bench.run(config)
    assert metrics["dropped.empty_documents"] == 1
    assert metrics["dropped.duplicate_documents"] == 2
    names = ("documents", "validation_documents", "test_documents")
    by_source = [row["source"] for name in names for row in bench.read(name)]
    assert by_source.count(documents) == 200
    assert by_source.count(str(text)) == 1
    assert any(row["source"] == documents for row in bench.read("test_documents"))
    mixture = json.loads((bench.folder / "out" / "mixture.json").read_text())
    assert mixture == {"data.conversations": 1.0, str(text): 0.5, documents: 1.0}
    assert bench.read("rankings") == [
        {
            "prompt": [{"role": "user", "content": "a"}],
            "responses": ["b", "c"],
            "ranks": [1, 2],
            "labeler": "me",
            "source": "ranks.jsonl",
            "id": "r",
        }
    ]
    assert config.external_files() == [
        str(bench.folder / name)
        for name in ("talks.jsonl", "ranks.jsonl", "book.txt", "docs.jsonl")
    ]


def test_documents_alone_are_enough(bench: Bench) -> None:
    path = bench.write([{"text": f"document {number}"} for number in range(100)], "docs.jsonl")
    bench.run(DataConfig(documents=(DocumentSource(path),)))
    written = {file.name for file in (bench.folder / "out").iterdir()}
    assert written == {
        "documents.jsonl",
        "validation_documents.jsonl",
        "test_documents.jsonl",
        "mixture.json",
    }


def test_the_same_input_gives_the_same_bytes(bench: Bench) -> None:
    config = DataConfig(conversations=(bench.write(many(60)),), either_side=True)
    files = []
    for _ in range(2):
        bench.run(config)
        out = bench.folder / "out"
        files.append({file.name: file.read_bytes() for file in sorted(out.iterdir())})
    assert files[0] == files[1]


def test_a_run_removes_what_an_earlier_one_left(bench: Bench) -> None:
    path = bench.write(many(60))
    bench.run(DataConfig(conversations=(path,)))
    bench.run(DataConfig(conversations=(path,), splits=Splits(1, 0, 0, 0, 0, 0)))
    assert not (bench.folder / "out" / "test.jsonl").exists()
    assert not (bench.folder / "out" / "test_documents.jsonl").exists()


@pytest.mark.parametrize("count", [1, 2, 3, 6, 25])
def test_no_split_is_empty_while_there_are_conversations_enough(bench: Bench, count: int) -> None:
    for number in range(5):
        rows = [{**row, "id": f"{number} {row['id']}"} for row in many(count)]
        bench.run(DataConfig(conversations=(bench.write(rows),)))
        ids = bench.ids()
        assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == count
        assert [name for name in SPLITS if ids[name]] == list(SPLITS[:count])
        assert bench.read("documents")
    told = [line for line in bench.progress.said if "each of 6 splits needs one" in line]
    assert bool(told) == (count < 6)


def test_a_split_without_a_share_stays_empty(bench: Bench) -> None:
    splits = Splits(0.5, 0, 0.5, 0, 0, 0)
    bench.run(DataConfig(conversations=(bench.write(many(3)),), splits=splits))
    assert {name for name, ids in bench.ids().items() if ids} == {"demonstrations", "prompts"}
    assert bench.progress.said == []


def test_what_is_left_out_is_said_with_its_reason(bench: Bench) -> None:
    rows = [
        *({"id": f"s{number}", "messages": talk(f"{number} short", "so")} for number in range(36)),
        {"id": "one side", "messages": talk("a")},
        *many(20),
        {"id": "again", "messages": many(1)[0]["messages"]},
    ]
    texts = bench.write([{"text": "the same"}, {"text": "The same!"}, {"text": " "}], "docs.jsonl")
    documents = (DocumentSource(texts),)
    bench.run(DataConfig((bench.write(rows),), documents, min_turns=4))
    assert bench.progress.said[:2] == [
        "data: 38 of 58 conversations left out: 1 without a message of both user and assistant, "
        "36 with fewer than 4 turns (data.min_turns), 1 with the text of another",
        "data: 2 of 3 documents left out: 1 empty, 1 with the text of another, or of a "
        "conversation",
    ]


def test_exchanged_roles_are_said(bench: Bench) -> None:
    config = DataConfig(conversations=(bench.write(many(60)),), either_side=True)
    bench.run(config)
    (told,) = [line for line in bench.progress.said if "exchanged" in line]
    trained = sum(len(ids) for name, ids in bench.ids().items() if name not in SPLITS[-2:])
    assert f"data: {trained // 2} conversations are used a second time" in told


def test_comparisons_give_prompts_where_people_ranked(bench: Bench) -> None:
    ranking = {"prompt": "a", "chosen": "b", "rejected": "c"}
    config = DataConfig(conversations=(bench.write(many(100)),))
    bench.run(config)
    before = bench.ids()
    assert before["comparisons"]
    bench.run(replace(config, rankings=(bench.write([ranking], "ranks.jsonl"),)))
    now = bench.ids()
    assert now["prompts"] == before["prompts"] | before["comparisons"]
    assert {name: ids for name, ids in now.items() if name != "prompts"} == {
        name: ids for name, ids in before.items() if name != "prompts"
    }
    (told,) = [line for line in bench.progress.said if "your rankings train" in line]
    assert f"so {len(before['comparisons'])} conversations of the split comparisons" in told


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_long_texts_are_held_out_by_their_ends(bench: Bench, count: int) -> None:
    for start in range(4):
        texts = [f"Text {start} {number}. " + "word and word\n" * 300 for number in range(count)]
        path = bench.write([{"text": text} for text in texts], "docs.jsonl")
        metrics = bench.run(DataConfig(documents=(DocumentSource(path),)))
        names = ("documents", "validation_documents", "test_documents")
        sizes = [metrics[f"{name}.bytes"] for name in names]
        assert all(size >= 100 for size in sizes)
        total = sum(len(text.strip()) for text in texts)
        assert total - 2 * len(texts) - 4 <= sum(sizes) <= total
        assert sizes[0] >= 0.5 * total or count > 1
        assert {row["source"] for name in names for row in bench.read(name)} == {path}


def test_texts_too_short_to_hold_out_are_for_training(bench: Bench) -> None:
    for word in ("one", "two", "three", "four", "five", "six", "seven", "eight"):
        path = bench.write([{"text": word}], "docs.jsonl")
        bench.run(DataConfig(documents=(DocumentSource(path),)))
        assert [row["text"] for row in bench.read("documents")] == [word]


def test_nothing_left_says_why(bench: Bench) -> None:
    rows = [{"messages": talk("a", "b")}, {"messages": talk("b", "a")}, {"messages": talk("a")}]
    problem = "none of 3 conversations is left: 1 have one side only, 2 fewer than 4 turns"
    with pytest.raises(UserError, match=problem) as caught:
        bench.run(DataConfig(conversations=(bench.write(rows),), min_turns=4))
    assert "Lower data.min_turns (it is 4)" in str(caught.value)
    with pytest.raises(UserError, match="1 have one side only") as caught:
        bench.run(DataConfig(conversations=(bench.write(rows[2:]),)))
    assert "min_turns" not in str(caught.value)
    assert "check the roles" in str(caught.value)
    with pytest.raises(UserError, match="no conversations in it"):
        bench.run(DataConfig(conversations=(bench.write([]),)))
    with pytest.raises(UserError, match="hold no text"):
        bench.run(DataConfig(documents=(DocumentSource(bench.write([{"text": " "}])),)))


def test_a_bad_row_names_file_and_line(bench: Bench) -> None:
    path = bench.write([*many(2), {"messages": [{"role": "bot", "content": "a"}]}])
    with pytest.raises(UserError, match=r"talks\.jsonl, line 3: message 1 has the role 'bot'"):
        bench.run(DataConfig(conversations=(path,)))


def test_settings_are_checked_all_at_once() -> None:
    table = {
        "min_turns": 0,
        "conversations_weight": -1.0,
        "turn_separator": "",
        "documents": [],
        "splits": {"test": 0.9, "demonstrations": 0.8},
    }
    _, problems = decode(DataConfig, table, "data")
    assert any("add up to" in str(problem) for problem in problems)
    del table["splits"]
    _, problems = decode(DataConfig, table, "data")
    assert sorted(problem.key for problem in problems) == [
        "data.conversations",
        "data.conversations_weight",
        "data.min_turns",
        "data.turn_separator",
    ]
    _, problems = decode(DataConfig, {"conversations": ["a"], "splits": {"test": -0.1}}, "data")
    assert [problem.key for problem in problems] == ["data.splits.test"]
    documents = [{"path": "a"}, {"path": "a", "weight": -1}]
    _, problems = decode(DataConfig, {"documents": documents}, "data")
    keys = {problem.key for problem in problems}
    assert keys == {"data.documents.1.path", "data.documents.1.weight"}
    config, problems = decode(DataConfig, {"conversations": ["a.jsonl"]}, "data")
    assert config == DataConfig(conversations=("a.jsonl",))


def test_paths_are_relative_to_the_recipe(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.folder / "mine").mkdir()
    bench.write(many(30), "mine/talks.jsonl")
    bench.write([{"text": "a text"}], "mine/docs.jsonl")
    monkeypatch.chdir(bench.folder)
    config = DataConfig(("talks.jsonl",), (DocumentSource("docs.jsonl"),), folder="mine")
    assert config.external_files() == ["mine/talks.jsonl", "mine/docs.jsonl"]
    assert bench.run(config)["conversations.read"] == 30
    assert {row["source"] for row in bench.read("documents")} == {
        "data.conversations",
        "docs.jsonl",
    }
    absolute = str(bench.folder / "mine" / "talks.jsonl")
    assert replace(config, conversations=(absolute,)).external_files()[0] == absolute
    with pytest.raises(UserError) as caught:
        DataConfig(("mine/talks.jsonl",), folder="mine").external_files()
    assert f"looked for {bench.folder}/mine/mine/talks.jsonl" in str(caught.value)
    assert "relative to its file: write talks.jsonl" in str(caught.value)


def test_a_document_may_be_named_by_its_path_alone() -> None:
    config, problems = decode(DataConfig, {"documents": ["c.txt", {"path": "d.txt"}]}, "data")
    assert not problems
    assert config is not None
    assert config.documents == (DocumentSource("c.txt"), DocumentSource("d.txt"))
    _, (problem,) = decode(DataConfig, {"documents": "c.txt"}, "data")
    assert problem.fix == 'write ["c.txt"]'
    _, (problem,) = decode(DataConfig, {"conversations": "c.jsonl"}, "data")
    assert problem.fix == 'write ["c.jsonl"]'
    _, problems = decode(DataConfig, {"folder": "x", "conversations": ["a.jsonl"]}, "data")
    assert [str(problem) for problem in problems] == [
        'data.folder = "x": unknown key; the keys here are '
        + ", ".join(
            (
                "conversations",
                "documents",
                "shards",
                "rankings",
                "rankings_as_conversations",
                "conversations_weight",
                "min_turns",
                "either_side",
                "unicode_form",
                "turn_separator",
                "splits",
            )
        )
    ]


def test_the_demo(bench: Bench) -> None:
    try:
        importlib.metadata.version("chitchat-dataset")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the demo's data is not installed: pip install --no-deps chitchat-dataset")
    metrics = bench.run(DataConfig(("package:chitchat-dataset",), min_turns=4))
    assert metrics["conversations.read"] == 7168
    assert metrics["conversations.kept"] == 3242
    assert metrics["documents.bytes"] > 9e6
    assert all(metrics[f"splits.{name}"] > 100 for name in SPLITS)


def test_the_recipe_for_own_data_learns_the_assistant_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shipped_recipes()["own"]
    bench = Bench(tmp_path)
    bench.write([{"messages": talk("a", "b")}], "talks.jsonl")
    written = text.replace("conversations = [] ", 'conversations = ["talks.jsonl"] ')
    assert written != text
    (tmp_path / "my.toml").write_text(written)
    monkeypatch.chdir("/")
    recipe = load_stage_recipe(tmp_path / "my.toml")
    config = recipe.stages["data"]
    assert isinstance(config, DataConfig)
    assert (config.either_side, config.min_turns) == (False, 2)
    assert config.external_files() == [str(tmp_path / "talks.jsonl")]
    assert bench.run(config)["conversations.kept"] == 1
    with pytest.raises(UserError, match="name conversations, documents or shards"):
        load_stage_recipe("own")


@pytest.mark.parametrize("key", ["conversations", "rankings", "documents"])
def test_a_source_that_names_no_file_is_refused(key: str) -> None:
    config = DataConfig(conversations=("a.jsonl",))
    source = DocumentSource(" ") if key == "documents" else " "
    problems = replace(config, **{key: (source,)}).check()
    assert [(each.key, each.expected) for each in problems] == [(f"{key}.0", "names no file")]
