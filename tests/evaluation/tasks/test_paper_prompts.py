"""Shipped tasks ask what the papers ask, to the character: their figures' own items, written out.

The paragraphs' breaks are those of the papers' figures (Brown et al. 2020, figure 2.1 and appendix
G; Radford et al. 2018, section 5; Wei et al. 2022, figure 1; Kojima et al. 2022, figure 2).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmsmith.evaluation.tasks.data import Item, read_data
from lmsmith.evaluation.tasks.prompts import Question, with_shots
from lmsmith.evaluation.tasks.shipped import find_tasks


def asked(name: str, fields: dict[str, Any], shots: list[dict[str, Any]]) -> Question:
    (task,) = find_tasks([name])
    items = [Item(str(n), each, f"shot {n}") for n, each in enumerate(shots)]
    return with_shots(task, Item("9", fields, "item"), items)


def sum_row(question: str, answer: str) -> dict[str, str]:
    return {"context": f"\n\nQ: What is {question}?\n\nA:", "completion": f" {answer}"}


FR = [
    {"text": "sea otter", "beside": "loutre de mer"},
    {"text": "peppermint", "beside": "menthe poivrée"},
    {"text": "plush girafe", "beside": "girafe peluche"},
]
UNSCRAMBLE = "Please unscramble the letters into a word, and write that word:\n"

PROMPTS: list[tuple[str, str, dict[str, Any], list[dict[str, Any]], str, str]] = [
    (
        "figure 2.1",
        "translate/en_fr",
        {"text": "cheese", "beside": "fromage"},
        FR,
        "Translate English to French:\n"
        "sea otter => loutre de mer\n"
        "peppermint => menthe poivrée\n"
        "plush girafe => girafe peluche\n"
        "cheese =>",
        " fromage",
    ),
    (
        "figure 2.1, zero-shot",
        "translate/en_fr",
        {"text": "cheese", "beside": "fromage"},
        [],
        "Translate English to French:\ncheese =>",
        " fromage",
    ),
    (
        "figure G.37's form",
        "translate/en_fr_equals",
        {"text": "In no case may they be used for commercial purposes.", "beside": "x"},
        [],
        "In no case may they be used for commercial purposes. =",
        " x",
    ),
    (
        "figure G.36, zero-shot",
        "translate/en_fr_asked",
        {"text": "cheese", "beside": "fromage"},
        [],
        "Q: What is the French translation of cheese A:",
        " fromage",
    ),
    (
        "figure G.5",
        "copa",
        {
            "query": "My body cast a shadow over the grass because",
            "choices": ["the sun was rising.", "the grass was cut."],
            "gold": 0,
        },
        [],
        "My body cast a shadow over the grass because",
        " the sun was rising.",
    ),
    (
        "figure G.8",
        "openbook_qa",
        {
            "query": "Organisms require energy in order to do what?",
            "choices": ["mature and develop.", "rest soundly."],
            "gold": 0,
        },
        [],
        "Organisms require energy in order to do what?",
        " mature and develop.",
    ),
    (
        "figure G.16",
        "arc_easy",
        {
            "query": "Question: Which factor will most likely cause a person to develop a fever?",
            "choices": ["a bacterial population in the bloodstream", "a leg muscle relaxing"],
            "gold": 0,
        },
        [],
        "Question: Which factor will most likely cause a person to develop a fever?\nAnswer:",
        " a bacterial population in the bloodstream",
    ),
    (
        "figure G.13",
        "winograd",
        {
            "context_options": [
                "Grace was happy to trade me her sweater for my jacket. She thinks the sweater",
                "Grace was happy to trade me her sweater for my jacket. She thinks the jacket",
            ],
            "continuation": "looks dowdy on her.",
            "gold": 0,
        },
        [],
        "Grace was happy to trade me her sweater for my jacket. She thinks the sweater",
        " looks dowdy on her.",
    ),
    (
        "figure G.29",
        "boolq",
        {
            "query": "Passage: The force is normal.\nQuestion: is the normal force equal to the "
            "force of gravity?",
            "choices": ["no", "yes"],
            "gold": 1,
        },
        [],
        "The force is normal.\nquestion: is the normal force equal to the force of gravity?\n"
        "answer:",
        " yes",
    ),
    (
        "figure G.30",
        "cb/gpt3",
        {
            "premise": "Certainly, the recent drop in prices doesn't mean Manhattan comes cheap.",
            "hypothesis": "Manhattan comes cheap",
            "label": "contradiction",
        },
        [],
        "Certainly, the recent drop in prices doesn't mean Manhattan comes cheap.\n"
        "question: Manhattan comes cheap. true, false, or neither?\n"
        "answer:",
        " false",
    ),
    (
        "figure G.31",
        "rte/gpt3",
        {
            "premise": "The bet, which won him dinner for four, was regarding the existence and "
            "mass of the top quark, an elementary particle discovered in 1995.",
            "hypothesis": "The Top Quark is the last of six flavors of quarks predicted by the "
            "standard model theory of particle physics.",
            "label": "not_entailment",
        },
        [],
        "The bet, which won him dinner for four, was regarding the existence and mass of the top "
        "quark, an elementary particle discovered in 1995.\n"
        "question: The Top Quark is the last of six flavors of quarks predicted by the standard "
        "model theory of particle physics. True or False?\n"
        "answer:",
        " False",
    ),
    (
        "figure G.34",
        "triviaqa",
        {
            "context": "Question: 'Nude Descending A Staircase' is perhaps the most famous "
            "painting by which 20th century artist?\nAnswer:",
            "answer": "Marcel Duchamp",
            "aliases": [],
        },
        [],
        "Q: 'Nude Descending A Staircase' is perhaps the most famous painting by which 20th "
        "century artist?\n\nA:",
        " Marcel Duchamp",
    ),
    (
        "figure G.21",
        "lambada_blank",
        {
            "context": 'She held the torch in front of her. "In fact," she said, raising the torch '
            "higher, \"there's more than a",
            "continuation": "step",
        },
        [],
        'Fill in blank:\n\nShe held the torch in front of her. "In fact," she said, raising the '
        "torch higher, \"there's more than a ____. ->",
        " step",
    ),
    *(
        (
            figure,
            f"{group}/{kind}",
            {"context": f"\n{scrambled} =", "completion": f" {word}"},
            [],
            f"{UNSCRAMBLE}{scrambled} =",
            f" {word}",
        )
        for group in ("scrambles", "gpt3_scrambles")
        for figure, kind, scrambled, word in (
            ("figure G.19", "cycle", "asinoc", "casino"),
            ("figure G.22", "anagram_1", "skicts", "sticks"),
            ("figure G.23", "anagram_2", "volwskagen", "volkswagen"),
            ("figure G.26", "insertion", "r e!c.i p r o.c a/l", "reciprocal"),
            ("figure G.27", "reversed", "taefed", "defeat"),
        )
    ),
    *(
        (figure, f"{group}/{kind}", sum_row(said, value), [], f"Q: What is {said}?\n\nA:", value)
        for group in ("arithmetic", "gpt3_arithmetic")
        for figure, kind, said, value in (
            ("figure G.42", "1d_composite", "(2 * 4) * 6", "48"),
            ("figure G.43", "2d_minus", "17 minus 14", "3"),
            ("figure G.44", "2d_plus", "98 plus 45", "143"),
            ("figure G.45", "2d_times", "95 times 45", "4275"),
            ("figure G.46", "3d_minus", "509 minus 488", "21"),
            ("figure G.47", "3d_plus", "556 plus 497", "1053"),
            ("figure G.48", "4d_minus", "6209 minus 3365", "2844"),
            ("figure G.49", "4d_plus", "9923 plus 617", "10540"),
        )
    ),
    (
        "GPT-3, section 3.9.1",
        "arithmetic/2d_plus",
        sum_row("48 plus 76", "124"),
        [sum_row("2 plus 3", "5")],
        "Q: What is 2 plus 3?\n\nA: 5\n\nQ: What is 48 plus 76?\n\nA:",
        "124",
    ),
    (
        "GPT-1, section 5",
        "sst2/very",
        {"text": "one long string of cliches", "label": "0"},
        [],
        "one long string of cliches very",
        " negative",
    ),
    (
        "PET, Yelp's second pattern",
        "sst2/pet_2",
        {"text": "Best pizza ever", "label": "1"},
        [],
        "Best pizza ever. All in all, it was",
        " good.",
    ),
    (
        "PET, its pattern for pairs of sentences",
        "cb/pet_2",
        {"premise": "Oil prices rise", "hypothesis": "Oil prices fall.", "label": "contradiction"},
        [],
        "Oil prices fall?",
        " No, Oil prices rise",
    ),
]


@pytest.mark.parametrize(
    ("task", "fields", "shots", "prompt", "answer"),
    [row[1:] for row in PROMPTS],
    ids=[f"{row[0]}, {row[1]}" for row in PROMPTS],
)
def test_a_prompt_is_the_papers(
    task: str, fields: dict[str, Any], shots: list[dict[str, Any]], prompt: str, answer: str
) -> None:
    (spec,) = find_tasks([task])
    question = asked(task, fields, shots)
    # The published files begin every item with the break that parts it from the one before.
    assert question.contexts[0].strip("\n") == prompt
    assert (spec.prompt.delimiter + question.choices[question.gold]).lstrip() == answer.lstrip()
    joined = question.contexts[0] + spec.prompt.delimiter + question.choices[question.gold]
    assert joined.endswith(f"{prompt} {answer.lstrip()}")


def test_a_chain_of_thought_is_asked_as_its_papers_do() -> None:
    fields = {"context": "How many are 2 and 3?", "answer": "5", "chain_of_thought": "2 + 3 = 5."}
    (few,) = find_tasks(["gsm8k"])
    question = asked("gsm8k", fields, [fields] * 4)
    parts = question.contexts[0].split("\n\n")
    assert len(parts) == 5
    assert parts[-1] == "Q: How many are 2 and 3?\nA:"
    assert all(p.startswith("Q: ") and "\nA: " in p for p in parts[:-1])
    assert all(" The answer is " in p and p.endswith(".") for p in parts[:-1])
    assert few.answer.extract.startswith("[Tt]he answer is")
    (zero,) = find_tasks(["gsm8k_zero"])
    assert asked("gsm8k_zero", fields, []).contexts[0] == "Q: How many are 2 and 3?\nA:"
    assert zero.answer.reason == "Let's think step by step."
    assert zero.answer.extraction == "Therefore, the answer (arabic numerals) is"
    for task in find_tasks(["gsm8k_zero", "multiarith", "coin_flip", "last_letters"]):
        assert task.answer.stop == ("\nQ:",)  # an answer may stand on a line of its own


@pytest.mark.parametrize("name", ["sst2", "rte", "cb", "boolq", "boolq_pet", "translate"])
def test_every_item_of_the_real_data_can_be_asked(public_data: Any, name: str) -> None:
    folder: Path = public_data("tasks").parent
    for task in find_tasks([name]):
        data = read_data(task, [folder])
        for item in data.items[:200]:
            question = with_shots(task, item, [data.pool[-1]])
            assert question.contexts[0]
            json.dumps(question.choices)
