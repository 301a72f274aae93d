"""Multiple choice and cloze against a plain loop over the decoder, with each normalisation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lmsmith.evaluation.methods.likelihood import MultipleChoice, stop_word_tokens
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.run import make_method
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.prompts import with_shots
from lmsmith.evaluation.tasks.spec import DataSpec, PromptSpec, TaskSpec

ROWS = [
    {"query": "The dog ran to the", "choices": ["river", "little house by the sea"], "gold": 0},
    {"query": "Question: what is the colour?", "choices": ["blué", "mat", "the cat"], "gold": 2},
]
TASK = TaskSpec(
    "made",
    "multiple_choice",
    DataSpec(file="made.jsonl"),
    headline="accuracy_unconditional",
    prompt=PromptSpec(context="{{ query }}", choices="choices", gold="gold"),
)
ITEMS = [Item(str(n), row, f"row {n}") for n, row in enumerate(ROWS)]


def log_prob(subject: EvaluatedModel, context: str, answer: str) -> tuple[float, int]:
    """log P(answer | context) and the answer's tokens, one forward pass, nothing shared."""
    tokenizer, decoder = subject.tokenizer, subject.model._decoder
    before = [tokenizer.start_of_text, *tokenizer.encode(context)]
    tokens = [tokenizer.start_of_text, *tokenizer.encode(context + answer)]
    with torch.no_grad():
        log_probs = decoder.logits(decoder(torch.tensor([tokens]))).double().log_softmax(-1)[0]
    total = sum(float(log_probs[i - 1, tokens[i]]) for i in range(len(before), len(tokens)))
    return total, len(tokens) - len(before)


def test_a_question_costs_what_is_read_for_it_alone(tiny: EvaluatedModel) -> None:
    """With the same shots before every question, and none of them counted: they are held."""
    shots = [Item("a", {**ROWS[1], "query": "The sky and the sea and the mat " * 8}, "row")]
    task = replace(TASK, headline="accuracy")
    method = MultipleChoice(tiny, [with_shots(task, item, shots) for item in ITEMS])
    held = method._reader.tokens_read
    assert held > 32
    list(method.answer([0, 1]))
    read = method._reader.tokens_read - held
    # Contexts end with a token that is read with them; few tokens are shared by choices.
    assert read <= sum(method.tokens) + 8 * len(ITEMS)
    assert sum(method.tokens) < held


@pytest.mark.parametrize("shots", [0, 1])
def test_every_normalisation_is_its_formula(tiny: EvaluatedModel, shots: int) -> None:
    questions = [with_shots(TASK, item, ITEMS[::-1][:shots]) for item in ITEMS]
    rows = list(make_method(tiny, TASK, questions).answer([0, 1]))
    before = "Question: what is the colour? the cat\n\n" if shots else ""
    for row, asked in zip(rows, ROWS, strict=True):
        choices = asked["choices"]
        assert isinstance(choices, list)
        sums = [log_prob(tiny, f"{before}{asked['query']}", f" {choice}") for choice in choices]
        alone = [log_prob(tiny, "Answer:", f" {choice}")[0] for choice in choices]
        scores = {
            "accuracy": [total for total, _ in sums],
            "accuracy_per_token": [total / tokens for total, tokens in sums],
            "accuracy_per_character": [s / len(c) for (s, _), c in zip(sums, choices, strict=True)],
            "accuracy_per_byte": [
                s / len(c.encode()) for (s, _), c in zip(sums, choices, strict=True)
            ],
            "accuracy_unconditional": [s - a for (s, _), a in zip(sums, alone, strict=True)],
        }
        assert [each.log_prob for each in row.choices] == pytest.approx(
            scores["accuracy"], abs=1e-4
        )
        for name, each in scores.items():
            best = max(range(len(each)), key=each.__getitem__)
            assert row.chosen[name] == best
            assert row.metrics[name] == float(best == asked["gold"])
            assert row.scores[name] == pytest.approx(each, abs=1e-4)


def test_partial_evaluation_takes_the_context_under_which_the_rest_is_likelier(
    tiny: EvaluatedModel,
) -> None:
    task = TaskSpec(
        "who",
        "multiple_choice",
        DataSpec(file="made.jsonl"),
        prompt=PromptSpec(contexts="options", target="{{ rest }}", gold="gold"),
    )
    fields = {"options": ["The dog ran as the dog", "The dog ran as the cat"], "rest": "sat."}
    questions = [with_shots(task, Item("0", {**fields, "gold": 1}, "row"), [])]
    row = next(iter(make_method(tiny, task, questions).answer([0])))
    totals = [log_prob(tiny, option, " sat.")[0] for option in fields["options"]]
    assert [each.log_prob for each in row.choices] == pytest.approx(totals, abs=1e-4)
    assert row.metrics == {"accuracy": float(totals[1] > totals[0])}


def test_a_cloze_asks_for_whole_words_and_the_filter_leaves_out_stop_words(
    tiny: EvaluatedModel,
) -> None:
    tokenizer, decoder = tiny.tokenizer, tiny.model._decoder
    task = TaskSpec(
        "last word",
        "cloze",
        DataSpec(file="made.jsonl"),
        prompt=PromptSpec(context="{{ context }}", target="{{ word }}", delimiter=""),
    )
    context = "Once there was a little"
    begun = [tokenizer.start_of_text, *tokenizer.encode(context)]
    with torch.no_grad():
        logits = decoder.logits(decoder(torch.tensor([begun]))[0, -1])
    order = [tokenizer.decode([token]) for token in logits.argsort(descending=True).tolist()]
    words = [text for text in order if text.strip() and tokenizer.encode(context + text) != begun]
    whole = [w for w in words if len(tokenizer.encode(context + w)) == len(begun)][:40]
    items = [Item(str(n), {"context": context, "word": w}, "row") for n, w in enumerate(whole)]
    rows = list(
        make_method(tiny, task, [with_shots(task, i, []) for i in items]).answer(range(len(items)))
    )
    best = int(logits.argmax())
    filtered = logits.clone()
    filtered[list(stop_word_tokens(tokenizer))] = -math.inf
    for row, word in zip(rows, whole, strict=True):
        token = tokenizer.encode(context + word)[-1]
        assert row.metrics["accuracy"] == float(token == best)
        assert row.metrics["accuracy_without_stop_words"] == float(token == int(filtered.argmax()))
        assert row.metrics["perplexity"] == pytest.approx(
            -float(logits.log_softmax(-1)[token]), abs=1e-4
        )


def test_stop_words_are_whole_words_after_a_space(tiny: EvaluatedModel) -> None:
    tokenizer = tiny.tokenizer
    spelled = {tokenizer.token_bytes(token) for token in stop_word_tokens(tokenizer)}
    assert b" the" in spelled
    assert {b".", b""} <= spelled  # marks, and control tokens
    assert b"the" not in spelled
    assert not {b" sea", b" river", b" dog"} & spelled
