"""Every token of a document is foretold once; the four units are one number of nats."""

from __future__ import annotations

import math

import pytest
import torch

from lmsmith.evaluation.methods.rolling import Rolling, count_words, window_pairs
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.prompts import with_shots
from lmsmith.evaluation.tasks.spec import DataSpec, TaskSpec

TEXT = "Once there was a little house by the sea.\nIn it lived three sisters — and a cat.\n"


def test_units_are_of_the_original_and_nats_of_what_is_read(tiny: EvaluatedModel) -> None:
    task = TaskSpec("made", "perplexity", DataSpec(file="made.txt"))
    original = TEXT.replace(".", " .")
    item = Item("0", {"text": TEXT, "original": original}, "row")
    row = next(iter(Rolling(tiny, task, [with_shots(task, item, [])]).answer([0])))
    tokenizer, decoder = tiny.tokenizer, tiny.model._decoder
    tokens = [tokenizer.start_of_text, *tokenizer.encode(TEXT)]
    with torch.no_grad():
        log_probs = decoder.logits(decoder(torch.tensor([tokens]))).log_softmax(-1)[0]
    nats = -sum(float(log_probs[i - 1, tokens[i]]) for i in range(1, len(tokens)))
    parts = {name: top / bottom for name, (top, bottom) in row["metrics"].items()}
    assert parts["token_perplexity"] == pytest.approx(nats / (len(tokens) - 1), abs=1e-4)
    assert parts["word_perplexity"] == pytest.approx(nats / count_words(original), abs=1e-4)
    bits = nats / math.log(2)
    assert parts["bits_per_byte"] == pytest.approx(bits / len(original.encode()), abs=1e-4)
    assert parts["bits_per_character"] == pytest.approx(bits / len(original), abs=1e-4)


def test_words_are_counted_with_line_ends() -> None:
    assert count_words(" no it was n't black monday \n but while \n") == 6 + 2 + 2


@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
def test_windows_foretell_each_token_once_with_what_is_before_it(
    length: int, overlap: float
) -> None:
    tokens = list(range(100, 101 + length))
    foretold = []
    for pair in window_pairs(tokens, 8, overlap):
        assert len(pair.tokens) - 1 <= 8
        start = pair.tokens[0] - 100
        assert list(pair.tokens) == tokens[start : start + len(pair.tokens)]
        foretold += pair.tokens[-pair.scored :]
    assert foretold == tokens[1:]
