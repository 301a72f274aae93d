"""Prompts are what the task says, to the character; shots are drawn as promised."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks.data import Item, TaskData, read_data
from lmsmith.evaluation.tasks.prompts import draw_shots, with_shots, write_question
from lmsmith.evaluation.tasks.shipped import find_tasks
from lmsmith.evaluation.tasks.spec import AnswerSpec, DataSpec, PromptSpec, TaskSpec

TRANSLATE = TaskSpec(
    "fr",
    "free_form",
    DataSpec(file="fr.jsonl"),
    prompt=PromptSpec(
        instruction="Translate English to French:",
        context="{{ en }} =>",
        target="{{ fr }}",
        separator="\n",
    ),
)
PAIRS = [("sea otter", "loutre de mer"), ("cheese", "fromage"), ("plush giraffe", "girafe peluche")]
ITEMS = [Item(str(n), {"en": en, "fr": fr}, f"row {n}") for n, (en, fr) in enumerate(PAIRS)]


def test_gpt3s_figure_of_few_shot_translation() -> None:
    question = with_shots(TRANSLATE, ITEMS[1], [ITEMS[0], ITEMS[2]])
    assert question.contexts == (
        "Translate English to French:\n"
        "sea otter => loutre de mer\n"
        "plush giraffe => girafe peluche\n"
        "cheese =>",
    )
    assert question.shots == ("0", "2")
    assert question.plain == "cheese =>"


def test_demonstrations_come_first_and_count_as_shots() -> None:
    task = replace(TRANSLATE, prompt=replace(TRANSLATE.prompt, demonstrations=("a => b", "c => d")))
    assert with_shots(task, ITEMS[1], ITEMS[:1]).contexts[0].splitlines()[1:] == [
        "a => b",
        "cheese =>",
    ]
    three = with_shots(task, ITEMS[1], [ITEMS[0], ITEMS[2], ITEMS[1]])
    assert three.shots == ("demonstration 1", "demonstration 2", "0")


def test_shots_are_the_items_own_and_never_the_item() -> None:
    pool = [Item(str(n), {"en": str(n), "fr": str(n)}, "row") for n in range(30)]
    seen = set()
    for item in pool:
        drawn = draw_shots(pool, item, 5, seed=1)
        assert drawn == draw_shots(pool, item, 5, seed=1)
        ids = [each.id for each in drawn]
        assert len(set(ids)) == 5
        assert item.id not in ids
        seen.add(tuple(ids))
    assert len(seen) == 30
    assert draw_shots(pool, pool[0], 5, seed=1) != draw_shots(pool, pool[0], 5, seed=2)
    assert len(draw_shots(pool, pool[0], 99, seed=1)) == 29


def test_fixed_shots_are_the_same_but_for_those_among_them() -> None:
    pool = [Item(str(n), {"en": str(n)}, "row") for n in range(30)]
    drawn = [tuple(x.id for x in draw_shots(pool, i, 4, 7, fixed=True)) for i in pool]
    common = max(set(drawn), key=drawn.count)
    assert drawn.count(common) == 26
    assert all(len(set(each)) == 4 for each in drawn)


CHOICES = PromptSpec(context="{{ q }}", choices="choices", gold="gold")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"q": "?", "choices": ["a", "b"]}, r"prompt\.gold.*'gold' is undefined"),
        ({"q": "?", "choices": ["a", "b"], "gold": 2}, "gold is 2\n.*from 0 to 1"),
        ({"q": "?", "choices": ["a", "b"], "gold": True}, "gold is True"),
        ({"q": "?", "choices": ["a"], "gold": 0}, r"prompt\.choices, .*: 1 choice\n"),
        ({"q": "?", "choices": "ab", "gold": 0}, "must give a list"),
        ({"q": None, "choices": ["a", "b"], "gold": 0}, r"prompt\.context, .*: 'q' is null\n"),
        ({"q": ["?"], "choices": ["a", "b"], "gold": 0}, "'q' is a list\n"),
        ({"q": "?", "choices": ["a", None], "gold": 0}, "'choices' is a list with null\n"),
        ({"q": "?", "choices": {"text": ["a", "b"]}, "gold": 0}, "it gives an object\n"),
        ({"q": "?", "choices": ["a", "b"], "gold": None}, "gold is null"),
        ({"q": "?", "choices": ["a", "b"], "gold": "c"}, "gold is 'c'"),
        ({"q": "?", "choices": ["0", "2", "1"], "gold": "1"}, "gold is '1'"),
        ({"q": "?", "choices": ["B", "A"], "gold": "A"}, "gold is 'A'"),
        ({"q": "?", "choices": ["a", " "], "gold": 0}, "a choice is empty"),
        ({"choices": ["a", "b"], "gold": 0}, r"prompt\.context.*'q' is undefined"),
    ],
)
def test_an_item_that_cannot_be_asked_says_why(fields: dict[str, Any], said: str) -> None:
    task = TaskSpec("made", "multiple_choice", DataSpec(file="a.jsonl"), prompt=CHOICES)
    with pytest.raises(UserError, match=said):
        write_question(task, Item("0", fields, "a.jsonl, item 1"))


@pytest.mark.parametrize(
    ("gold", "choices", "right"),
    [
        (1.0, ["a", "b"], 1),
        ("1", ["a", "b"], 1),
        ("B", ["sea", "dog"], 1),
        ("b", ["sea", "dog", "b"], None),
        ("dog ", ["sea", "dog"], 1),
        ("4", ["3", "4"], 1),
        ("1", ["2", "1"], 1),
        ("a", ["a", "a", "b"], 0),
    ],
)
def test_the_right_choice_is_named_by_number_text_or_letter(
    gold: object, choices: list[str], right: int | None
) -> None:
    task = TaskSpec("made", "multiple_choice", DataSpec(file="a.jsonl"), prompt=CHOICES)
    item = Item("0", {"q": "?", "choices": choices, "gold": gold}, "a.jsonl, line 1")
    if right is None:  # its text, or the letter of another
        with pytest.raises(UserError, match=r"prompt\.gold, a\.jsonl, line 1: gold is 'b'"):
            write_question(task, item)
    else:
        assert write_question(task, item).gold == right


ANSWERS = replace(TRANSLATE.prompt, target="", answers="[fr, aliases | default([], true)]")


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({"fr": ["Paris", "Lutece"]}, ("Paris", "Lutece")),
        ({"fr": "Paris", "aliases": None}, ("Paris",)),
        ({"fr": "Paris", "aliases": ["Lutece", " "]}, ("Paris", "Lutece")),
        ({"fr": 4}, ("4",)),
        ({"fr": 4.0}, ("4", "4.0")),
        ({"fr": 0.1}, ("0.1",)),
        ({"fr": True}, ("true",)),
        ({"fr": 12345678901234567890}, ("12345678901234567890",)),
    ],
)
def test_answers_have_their_obvious_meaning(
    fields: dict[str, Any], answers: tuple[str, ...]
) -> None:
    task = replace(TRANSLATE, prompt=ANSWERS)
    question = write_question(task, Item("0", {"en": "x", **fields}, "row 0"))
    assert question.answers == answers
    assert question.choices == answers[:1]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "'fr' is null"),
        (float("nan"), "'fr' is NaN"),
        ({"text": ["Paris"]}, "'fr' is an object"),
        (["Paris", None], "'fr' is a list with null"),
        ([], "the answer is empty"),
    ],
)
def test_answers_without_a_meaning_are_refused(answer: object, said: str) -> None:
    task = replace(TRANSLATE, prompt=ANSWERS)
    with pytest.raises(UserError, match=rf"task fr, prompt\.answers, row 0: {said}"):
        write_question(task, Item("0", {"en": "x", "fr": answer}, "row 0"))
    if answer is None:
        with pytest.raises(UserError, match=r"task fr, prompt\.target, row 0: 'fr' is null"):
            write_question(TRANSLATE, Item("0", {"en": "x", "fr": answer}, "row 0"))


def test_an_answer_that_nothing_can_equal_is_refused() -> None:
    task = replace(TRANSLATE, answer=AnswerSpec(normalise="number"))
    with pytest.raises(UserError, match=r"nothing can equal the answer 'twelve'"):
        write_question(task, Item("0", {"en": "x", "fr": "twelve"}, "row 0"))


@pytest.mark.parametrize("delimiter", [" ", "", "\n"])
def test_a_space_stands_once_between_context_and_choice(delimiter: str) -> None:
    prompt = replace(CHOICES, delimiter=delimiter)
    task = TaskSpec("made", "multiple_choice", DataSpec(file="a.jsonl"), prompt=prompt)
    fields = {"q": "The sky is ", "choices": [" blue", "green"], "gold": 0}
    question = write_question(task, Item("0", fields, "row"))
    written = [question.contexts[0] + delimiter + choice for choice in question.choices]
    if delimiter == " ":
        assert written == ["The sky is blue", "The sky is green"]
    else:
        assert written == [f"The sky is {delimiter} blue", f"The sky is {delimiter}green"]


def read_rows(task: TaskSpec, rows: list[dict[str, Any]], folder: Path) -> TaskData:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / task.data.file).write_text(lines, "utf-8")
    return read_data(task, [folder])


SAME = [
    "What is the code?",
    "what is  the Code ?",
    "What is the code?\u200b",
    "\tWHAT IS THE CODE?",
    "What is the code",
    "\u201cWhat is the code?\u201d",
    "What&nbsp;is the code&#63;",
    "What is the\x00 code\ufe0f\uff1f\uff01",
]


def test_an_item_that_asks_the_same_is_no_shot(tmp_path: Path) -> None:
    rows = [{"id": n, "en": text, "fr": "QX7"} for n, text in enumerate(SAME)]
    rows += [{"fr": f"fruit {n}", "en": f"A fruit? {n}", "id": 9} for n in range(3)]
    data = read_rows(TRANSLATE, rows, tmp_path)
    for item in data.items[: len(SAME)]:
        for seed in range(5):
            shots = draw_shots(data.pool, item, 3, seed)
            assert len(shots) == 3
            assert "QX7" not in with_shots(TRANSLATE, item, shots).contexts[0]
    assert len(draw_shots(data.pool, data.items[0], 4, 0)) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Say 3.5 more", "Say 35 more"),
        ("3 - 4?", "3 + 4?"),
        ("Is -3 small?", "Is 3 small?"),
        ("At 5:30?", "At 530?"),
        ("Close [ ( <", "Close < ( ["),
    ],
)
def test_marks_that_are_the_question_part_items(one: str, other: str, tmp_path: Path) -> None:
    data = read_rows(TRANSLATE, [{"en": text, "fr": "x"} for text in (one, other)], tmp_path)
    assert len(draw_shots(data.pool, data.items[0], 1, 0)) == 1


def test_choices_of_their_own_make_another_question(tmp_path: Path) -> None:
    task = TaskSpec("made", "multiple_choice", DataSpec(file="a.jsonl"), prompt=CHOICES)
    rows = [
        {"id": 0, "q": "A fruit?", "choices": ["apple", "dog"], "gold": 0},
        {"id": 1, "q": "A fruit?", "choices": ["dog", "Apple "], "gold": 1},
        {"id": 2, "q": "A fruit?", "choices": ["apple", "cat"], "gold": 0},
        {"id": 3, "q": "A fruit?", "choices": ["cow", "pear"], "gold": 1},
    ]
    data = read_rows(task, rows, tmp_path)
    assert [item.id for item in draw_shots(data.pool, data.items[0], 4, 0)] == ["3"]


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(UserError, match=r"row 9: the answer is empty"):
        write_question(TRANSLATE, Item("9", {"en": "x", "fr": " "}, "row 9"))


def test_a_template_reaches_nothing_but_the_item() -> None:
    prompt = replace(TRANSLATE.prompt, context="{{ en.__class__.__mro__ }}")
    with pytest.raises(UserError, match="unsafe"):
        write_question(replace(TRANSLATE, prompt=prompt), ITEMS[0])


@pytest.mark.parametrize(
    ("name", "shots", "prompt"),
    [
        (
            "gpt3_arithmetic/2d_plus",
            1,
            "\n\nQ: What is 98 plus 45?\n\nA:",
        ),
        ("gpt3_scrambles/cycle", 1, "\nasinoc ="),
        ("lambada_blank", 1, "I don't care about ____. ->"),
        ("winograd", 1, "a permit because the city councilmen"),
    ],
)
def test_shipped_prompts_end_as_the_papers_do(
    public_data: Callable[[str], Path], name: str, shots: int, prompt: str
) -> None:
    task = find_tasks([name])[0]
    data = read_data(task, [public_data("tasks").parent])
    item = data.items[0]
    question = with_shots(task, item, draw_shots(data.pool, item, shots, 0))
    assert question.contexts[0].endswith(prompt)
    assert len(question.shots) == shots


PATTERN = TaskSpec(
    "clause",
    "multiple_choice",
    DataSpec(file="a.jsonl"),
    prompt=PromptSpec(
        pattern="{{ h }}? ____, {{ p }}",
        label="label",
        words={"yes": "Right", "no": "Wrong"},
    ),
)


def test_a_pattern_is_read_up_to_its_gap_and_chosen_with_what_follows() -> None:
    items = [
        Item("0", {"h": "It rains ____", "p": "The street is wet.", "label": "yes"}, "row 0"),
        Item("1", {"h": "It snows", "p": "It is hot.", "label": "no"}, "row 1"),
    ]
    question = with_shots(PATTERN, items[0], [items[1]])
    assert question.contexts == ("It snows? Wrong, It is hot.\n\nIt rains ____?",)
    assert question.choices == ("Right, The street is wet.", "Wrong, The street is wet.")
    assert (question.gold, question.answers) == (0, ("Right, The street is wet.",))
    wrong = Item("2", {"h": "x", "p": "y", "label": "maybe"}, "row 2")
    with pytest.raises(UserError, match=r"row 2: label 'maybe' has no word\n.*yes, no"):
        write_question(PATTERN, wrong)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pattern": "{{ h }}?"}, "one gap ____"),
        ({"pattern": "____ {{ h }} ____"}, "one gap ____"),
        ({"pattern": "{{ h }}____"}, "the delimiter before the gap"),
        ({"words": {"yes": "Right"}}, "two words or more"),
        ({"words": {"yes": "Right", "no": "Right"}}, "different words"),
    ],
)
def test_a_pattern_that_cannot_be_used_says_why(change: dict[str, Any], said: str) -> None:
    problems = replace(PATTERN.prompt, **change).check()
    assert any(said in problem.expected for problem in problems)
    assert replace(PATTERN.prompt, pattern="____: {{ h }}", delimiter="").check() == []
