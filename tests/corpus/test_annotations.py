"""Exports of Argilla and Label Studio, and QA-Feedback, as their programs write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmsmith.core.errors import UserError
from lmsmith.corpus.judgements import Judgement, read_judgements
from lmsmith.corpus.rows import read_conversations, read_rankings
from lmsmith.corpus.sources import rankings_of
from lmsmith.feedback.collect import collect
from lmsmith.feedback.imports import import_file
from lmsmith.feedback.store import Store, open_store

ANN, BOB = "1c1d2f3e-0a53-4d0c-9d1c-0d2a3d4f5a61", "7a6b5c4d-1111-4222-8333-944455556666"


def record(responses: Any, number: int = 0, **fields: Any) -> dict[str, Any]:
    """As ``Dataset.records.to_json`` of Argilla 2 writes it."""
    return {
        "id": f"5d2c1f0e-000{number}-4e9f-8a44-5f4c1b7e9b1a",
        "fields": {
            "prompt": f"How do I boil an egg, {number}?",
            "response-1": "Ten minutes in boiling water.",
            "response-2": "You don't.",
            "response-3": "Ask somebody.",
            **fields,
        },
        "metadata": {"source": "kitchen"},
        "suggestions": {"ranking": {"value": ["response-2", "response-1"], "agent": "a-model"}},
        "responses": responses,
        "vectors": {},
        "status": "completed",
        "_server_id": "0e0f",
    }


def ranks(*pairs: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"value": value, "rank": rank} for value, rank in pairs]


TIED = ranks(("response-1", 1), ("response-2", 2), ("response-3", 2))

NESTED = record(
    {
        "ranking": [
            {"value": TIED, "user_id": ANN},
            {"value": ["response-3", "response-1", "response-2"], "user_id": BOB},
        ],
        "corrected_answer": [{"value": "Ten minutes, then cold water.", "user_id": BOB}],
        "comment": [{"value": "The second is rude.", "user_id": BOB}],
        "topics": [{"value": ["cooking", "eggs"], "user_id": BOB}],
    }
)

BY_USER = record(
    [
        {"user_id": ANN, "values": {"ranking": {"value": TIED}}, "status": "submitted"},
        {"user_id": BOB, "values": {"ranking": {"value": TIED}}, "status": "discarded"},
        {"user_id": BOB, "values": {"ranking": {"value": TIED}}, "status": "draft"},
    ],
    number=1,
)

FLAT = {
    "id": "3f2e",
    "status": "completed",
    "_server_id": "aa-bb",
    "instruction": "Name a colour.",
    "response_1": "Red",
    "response_2": "Seven",
    "source": None,
    "preference.responses": [["response_2", "response_1"], ["response-1", "response-2"]],
    "preference.responses.users": [ANN, BOB],
    "preference.responses.status": ["submitted", "submitted"],
    "preference.suggestion": ["response_1", "response_2"],
    "preference.suggestion.agent": "a-model",
    "preference.suggestion.score": None,
}


def task(*annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    """As Label Studio's JSON export writes it."""
    return {
        "id": 7,
        "data": {"prompt": "Say hello.", "answer1": "Hello!", "answer2": "No.", **data},
        "annotations": list(annotations),
        "predictions": [],
        "project": 3,
        "created_at": "2024-05-02T09:12:31.000000Z",
    }


def annotated(by: Any, *results: dict[str, Any], cancelled: bool = False) -> dict[str, Any]:
    found = [{"id": "k3Jx", "origin": "manual", **each} for each in results]
    about = {"id": 12, "completed_by": by, "was_cancelled": cancelled, "ground_truth": False}
    return {**about, "result": found, "lead_time": 8.1, "task": 7}


def pairwise(side: str, names: str = "answer1,answer2") -> dict[str, Any]:
    value = {"selected": side}
    return {"type": "pairwise", "from_name": "comparison", "to_name": names, "value": value}


def ranker(value: Any) -> dict[str, Any]:
    about = {"type": "ranker", "from_name": "rank", "to_name": "results"}
    return {**about, "value": {"ranker": value}}


ITEMS = [
    {"id": "llm_1", "title": "LLM 1", "body": "First."},
    {"id": "llm_2", "title": "LLM 2", "body": "Second."},
    {"id": "llm_3", "title": "LLM 3", "body": "Third."},
]

TASKS = [
    task(
        annotated(4, pairwise("right")),
        annotated({"id": 5, "email": "bob@example.org"}, pairwise("left")),
        annotated(6, pairwise("left"), cancelled=True),
        annotated(8),
    ),
    {
        **task(annotated(4, ranker({"rank": ["llm_3", "llm_1"], "_": ["llm_2"]}))),
        "data": {"prompt": "Count.", "items": ITEMS},
    },
    {
        **task(annotated(4, ranker({"1 best": ["llm_2"], "2": ["llm_1", "llm_3"]}))),
        "data": {"prompt": "Count again.", "items": ITEMS},
    },
    task(
        annotated(
            5,
            {
                "type": "textarea",
                "from_name": "better",
                "to_name": "prompt",
                "value": {"text": ["Good morning!", "How are you?"]},
            },
            {
                "type": "textarea",
                "from_name": "comment",
                "to_name": "prompt",
                "value": {"text": ["easy"]},
            },
        )
    ),
]


def written(path: Path, rows: Any) -> str:
    text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text)
    return str(path)


def read(path: Path, rows: Any) -> list[Judgement]:
    return list(read_judgements([written(path, rows)]))


def short(found: list[Judgement]) -> list[tuple[Any, ...]]:
    return [(each.kind, each.person, each.responses, each.ranks) for each in found]


EGGS = ["Ten minutes in boiling water.", "You don't.", "Ask somebody."]


@pytest.mark.parametrize("name", ["records.json", "records.jsonl"])
def test_argilla_records_keep_labelers_and_ties(tmp_path: Path, name: str) -> None:
    found = read(tmp_path / name, [NESTED, BY_USER])
    assert short(found) == [
        ("ranking", ANN, EGGS, [1, 2, 2]),
        ("ranking", BOB, [EGGS[2], EGGS[0], EGGS[1]], [1, 2, 3]),
        ("demonstration", BOB, ["Ten minutes, then cold water."], [1]),
        ("ranking", ANN, EGGS, [1, 2, 2]),
    ]
    assert found[0].prompt == [{"role": "user", "content": "How do I boil an egg, 0?"}]
    assert len({each.id for each in found}) == len(found)


def test_argilla_flattened_columns(tmp_path: Path) -> None:
    found = read(tmp_path / "flat.jsonl", [FLAT])
    assert short(found) == [
        ("ranking", ANN, ["Seven", "Red"], [1, 2]),
        ("ranking", BOB, ["Red", "Seven"], [1, 2]),
    ]


def test_argilla_ratings_of_several_responses_are_a_ranking(tmp_path: Path) -> None:
    """In one record by a question each, or in several records by one; one alone is no order."""
    answers = {
        f"response-{n}-rating": [{"value": v, "user_id": ANN}] for n, v in enumerate((3, 5, 3), 1)
    }
    answers["response-1-rating"].append({"value": 1, "user_id": BOB})
    single = [
        {
            **record({"rating": [{"value": value, "user_id": BOB}]}),
            "fields": {"prompt": "Sing.", "response": text},
        }
        for value, text in ((2, "La"), (4, "La la"))
    ]
    found = read(tmp_path / "a.jsonl", [record(answers), *single])
    assert short(found) == [
        ("ranking", ANN, EGGS, [2, 1, 2]),
        ("ranking", BOB, ["La", "La la"], [2, 1]),
    ]


def test_argilla_chats_and_chosen_labels(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Bye"},
    ]
    row = record({"preference": [{"value": "response-2", "user_id": ANN}]})
    row["fields"] = {"chat": chat, "response-1": "Stay!", "response-2": "Bye!"}
    (found,) = read(tmp_path / "a.jsonl", [row])
    assert (found.prompt, found.ranks) == (chat, [2, 1])


def test_label_studio_tasks(tmp_path: Path) -> None:
    found = read(tmp_path / "project-3.json", TASKS)
    assert short(found) == [
        ("ranking", "label-studio-4", ["Hello!", "No."], [2, 1]),
        ("ranking", "bob@example.org", ["Hello!", "No."], [1, 2]),
        ("ranking", "label-studio-4", ["Third.", "First."], [1, 2]),
        ("ranking", "label-studio-4", ["Second.", "First.", "Third."], [1, 2, 2]),
        ("demonstration", "label-studio-5", ["Good morning!\nHow are you?"], [1]),
    ]


def test_label_studio_tags_may_be_called_otherwise_than_the_data(tmp_path: Path) -> None:
    (found,) = read(tmp_path / "a.json", [task(annotated(4, pairwise("left", "txt-1,txt-2")))])
    assert found.responses == ["Hello!", "No."]


QA: dict[str, Any] = {
    "question": "q",
    "passages": [["title", "line"]],
    "preference": [1] * 6,
    **{f"prediction {number}": f"answer {number}" for number in range(1, 5)},
}


@pytest.mark.parametrize("buckets", [("rank0", "rank1"), ("rank2", "rank9")])
def test_ranks_of_buckets_count_from_one(tmp_path: Path, buckets: tuple[str, str]) -> None:
    first, second = buckets
    row = task(annotated(1, ranker({second: ["llm_1"], first: ["llm_2"]})), items=ITEMS)
    (found,) = read(tmp_path / "a.json", [row])
    assert found.ranks == [2, 1]


def test_ratings_of_nobody_are_joined_within_an_annotation_only(tmp_path: Path) -> None:
    """Two annotations without a name may be two people's."""

    def rate(field: str, value: int) -> dict[str, Any]:
        return {"type": "rating", "from_name": f"rate_{field}", "value": {"rating": value}}

    def row(*annotations: list[dict[str, Any]]) -> dict[str, Any]:
        data = {"prompt": "p", "answer_a": "x", "answer_b": "y"}
        return {"data": data, "annotations": [{"result": each} for each in annotations]}

    a, b = rate("answer_a", 5), rate("answer_b", 1)
    assert read(tmp_path / "two.json", [row([a], [b])]) == []
    assert read(tmp_path / "rows.json", [row([a]), row([b])]) == []
    found = read(tmp_path / "one.json", [row([a, b], [a, b])])
    assert [(each.person, each.ranks) for each in found] == [("", [1, 2]), ("", [1, 2])]
    nested = {
        "fields": {"prompt": "p", "a-1": "x", "b-1": "y"},
        "responses": [{"values": {"a-1-rating": {"value": 5}}}, {"values": {"b-1-rating": 1}}],
    }
    assert read(tmp_path / "argilla.json", [nested]) == []


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            [record({"ranking": [{"value": ranks(("answer", 1), ("b", 2)), "user_id": ANN}]})],
            "item 1: ranks 'answer', which is no field with a text; there are: 'response-1'",
        ),
        (
            [NESTED, {**NESTED, "fields": {"a": "b"}}],
            "item 2: no field with a prompt; there are: 'a'",
        ),
        (
            [record({"ranking": [{"value": ranks(("response-1", 0)), "user_id": ANN}]})],
            "item 1: ranks in 'ranking' must be whole numbers from 1",
        ),
        (
            [record({"ranking": [{"user_id": ANN}]})],
            "item 1: a response to 'ranking' has no 'value'",
        ),
        ([task(annotated(1, pairwise("both")))], "item 1: selected 'both'"),
        (
            [TASKS[0], task(annotated(1, pairwise("left", "a,b")), more="text")],
            "item 2: compares 'a,b'; two texts beside the prompt",
        ),
        (
            [task(annotated(1, ranker({"best": ["llm_1"], "ads": ["llm_2"]})), items=ITEMS)],
            "item 1: the buckets 'best', 'ads' have no order",
        ),
        (
            [task(annotated(1, ranker(["llm_1", "llm_9"])), items=ITEMS)],
            "item 1: ranks the item 'llm_9', which is not in 'data'",
        ),
        (
            [task(annotated(1, ranker(["llm_1", "llm_9"])))],
            "item 1: a ranking, but no list of items",
        ),
        ([{**QA, "passages": [[]]}], "item 1: 'passages' must be lists of a title and lines"),
        ([{**QA, "passages": [["t", None]]}], "item 1: 'passages' must be lists"),
        ([{**QA, "passages": "text"}], "item 1: 'passages' must be lists"),
        ([{**QA, "preference": [[1]] * 6}], "item 1: a comparison must be 0, 1 or 2"),
        ([{**QA, "question": None}], "item 1: 'question' must be text, not null"),
        (
            [
                {
                    "prompt": "p",
                    "a": "x",
                    "b": "y",
                    "rank.responses": 3,
                    "rank.responses.users": ["u"],
                }
            ],
            "item 1: 'rank.responses', its users and its status must be lists",
        ),
        (
            [{"prompt": "p", "a": "x", "rank.responses": ["a"], "rank.responses.users": 3}],
            "item 1: 'rank.responses', its users and its status must be lists",
        ),
        ([TASKS[0], {"prompt": "a"}], "item 2: not of the form of the rows before it"),
    ],
)
def test_errors_name_file_and_row(tmp_path: Path, rows: Any, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / "mine.json", rows)
    assert caught.value.problem.startswith(f"{tmp_path / 'mine.json'}, {problem}")


def test_recipes_read_the_rankings_and_demonstrations(tmp_path: Path) -> None:
    path = Path(written(tmp_path / "project.json", TASKS))
    assert [each.labeler for each in read_rankings(path)][:2] == [
        "label-studio-4",
        "bob@example.org",
    ]
    assert len(list(rankings_of(str(path)))) == 4
    (only,) = read_conversations(path)
    assert only.messages[-1]["content"].startswith("Good morning!")


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(str(tmp_path / "feedback.db"), new=True) as opened:
        yield opened


def test_feedback_import_keeps_labelers_and_ties(tmp_path: Path, store: Store) -> None:
    path = Path(written(tmp_path / "records.json", [NESTED, BY_USER, *TASKS]))
    counts = import_file(store, path, person="import")
    assert counts == {
        "tasks": 0,
        "rankings": 7,
        "demonstrations": 2,
        "conversations": 0,
        "known": 0,
    }
    again = import_file(store, path, person="import")
    assert (again["known"], sum(again.values())) == (9, 9)
    found = collect(store)
    directly = list(read_judgements([str(path)]))
    named = [(each.kind, found.names.get(each.person, ""), each.ranks) for each in found.judgements]
    assert sorted(named) == sorted((each.kind, each.person, each.ranks) for each in directly)
    assert store  # the queue gives nobody what is done


def test_imported_demonstrations_of_nobody_are_nobodys(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "own.jsonl"
    written(path, [{"prompt": "a", "demonstration": "b"}])
    import_file(store, path, person="import")
    (only,) = collect(store).judgements
    assert (only.kind, only.person, only.responses) == ("demonstration", "", ["b"])
    written(path, [{"prompt": "a", "demonstration": " "}])
    with pytest.raises(UserError, match=r"own\.jsonl, line 1: .*empty"):
        import_file(store, path, person="import")


def test_qa_feedback(public_data: Callable[[str], Path]) -> None:
    """400 questions: six comparisons each, and 390 corrected answers."""
    found = list(read_judgements([str(public_data("preferences/qa_feedback_dev.json"))]))
    rankings = [each for each in found if each.kind == "ranking"]
    assert (len(rankings), len(found) - len(rankings)) == (2400, 390)
    assert sum(each.ranks == [1, 1] for each in rankings) == 314
    assert rankings[0].prompt[0]["content"].endswith("When does bloom by troye sivan come out?")
    assert all(each.person == "" for each in found)


def test_equal_rows_of_two_labelers_are_two_judgements(tmp_path: Path) -> None:
    """Ids count rows of one file only: two files, and two labelers, may have the same."""
    from lmsmith.improve.prospect import Sources

    for name, labeler in (("a", "x"), ("b", "y")):
        row = {"prompt": "p", "responses": ["1", "2"], "ranks": [1, 2], "labeler": labeler}
        written(tmp_path / f"{name}.jsonl", [row, {**row, "id": 1}])
    found = Sources(data=(str(tmp_path),)).judged.judgements
    assert [each.person for each in found].count("y") == 2
    assert len({each.id for each in found}) == 4
