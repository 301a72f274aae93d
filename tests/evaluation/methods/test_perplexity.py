"""Bits per byte and perplexity against token-by-token sums and models with known answers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import NO_TARGET
from lmsmith.evaluation.methods.perplexity import (
    Rolling,
    bits_per_byte,
    count_words,
    document_windows,
    predict_replies,
    reply_bits_per_byte,
    window_pairs,
)
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.prompts import with_shots
from lmsmith.evaluation.tasks.spec import DataSpec, TaskSpec
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.prompts.sft_rows import conversation_windows
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine

MACHINE = resolve_machine(MachineConfig(precision="fp32"))
TEXTS = ["I think so, don't you?", "Where are you? Ich bin hier. 你好 😀", "a " * 60]
TOKENIZER = Tokenizer.train(TEXTS * 3, 300)


def decoder(context: int = 16) -> Decoder:
    model = Decoder(ModelConfig(2, 16, 2, context, TOKENIZER.vocabulary_size))
    model.initialise(torch.Generator().manual_seed(int(torch.randint(0, 1 << 30, ()))))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def nats(model: Decoder, before: list[int], token: int) -> float:
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([before]))[0, -1])
    return -float(logits.log_softmax(dim=-1)[token])


@given(st.integers(1, 60), st.integers(2, 12), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_windows_predict_every_token_once(length: int, context: int, overlap: float) -> None:
    tokens = list(range(100, 100 + length))
    predicted: list[int] = []
    for inputs, targets in document_windows(tokens, context, overlap):
        assert len(inputs) == len(targets) <= context
        for place, target in enumerate(targets):
            if target != NO_TARGET:
                assert inputs[place] == target - 1
                # all that is before it, or at least the overlap
                assert place + 1 >= min(target - 100, int(context * overlap))
                predicted.append(target)
    assert predicted == tokens[1:]


def test_short_documents_equal_token_by_token_sums() -> None:
    model = decoder(context=128)
    total = 0.0
    for text in TEXTS:
        tokens = [TOKENIZER.end_of_text, *TOKENIZER.encode(text)]
        total += sum(nats(model, tokens[:i], tokens[i]) for i in range(1, len(tokens)))
    expected = total / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert bits_per_byte(model, TOKENIZER, TEXTS, MACHINE) == pytest.approx(expected, rel=1e-5)


def test_long_documents_see_the_windows_context() -> None:
    model = decoder(context=8)
    text = " ".join(TEXTS)
    tokens = [TOKENIZER.end_of_text, *TOKENIZER.encode(text)]
    assert len(tokens) > 20
    total = 0.0
    for inputs, targets in document_windows(tokens, 8, 0.5):
        for place, target in enumerate(targets):
            if target != NO_TARGET:
                total += nats(model, inputs[: place + 1], target)
    expected = total / math.log(2) / len(text.encode())
    assert bits_per_byte(model, TOKENIZER, [text], MACHINE) == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_needs_the_logarithm_of_the_vocabulary() -> None:
    model = decoder()
    model.token_embedding.weight.data.zero_()
    tokens = sum(len(TOKENIZER.encode(text)) for text in TEXTS)
    size = sum(len(text.encode()) for text in TEXTS)
    expected = tokens * math.log2(TOKENIZER.vocabulary_size) / size
    assert bits_per_byte(model, TOKENIZER, TEXTS, MACHINE) == pytest.approx(expected, rel=1e-5)
    found = predict_replies(model, TOKENIZER, [[{"role": "assistant", "content": "so"}]], MACHINE)
    assert found.perplexity == pytest.approx(TOKENIZER.vocabulary_size, rel=1e-4)


def test_replies_equal_token_by_token_sums() -> None:
    model = decoder(context=128)
    messages = [
        {"role": "user", "content": "Where are you?"},
        {"role": "assistant", "content": "hier 😀"},
        {"role": "user", "content": "so"},
        {"role": "assistant", "content": "I think so"},
    ]
    ((tokens, is_target),) = conversation_windows(TOKENIZER, messages, 999, 0)
    total = sum(nats(model, tokens[:i], tokens[i]) for i in range(len(tokens)) if is_target[i])
    found = predict_replies(model, TOKENIZER, [messages], MACHINE)
    assert found.tokens == sum(is_target)
    assert found.perplexity == pytest.approx(math.exp(total / sum(is_target)), rel=1e-5)
    replies = len("hier 😀".encode()) + len("I think so")
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / replies, rel=1e-5)
    assert reply_bits_per_byte(model, TOKENIZER, [messages], MACHINE) == found.bits_per_byte


def test_every_reply_of_a_long_conversation_counts() -> None:
    messages = [
        {"role": ("user", "assistant")[turn % 2], "content": "you think so " * (1 + turn % 3)}
        for turn in range(20)
    ]
    replies = [message["content"] for message in messages if message["role"] == "assistant"]
    found = predict_replies(decoder(context=40), TOKENIZER, [messages], MACHINE)
    assert found.tokens == sum(len(TOKENIZER.encode(reply)) + 1 for reply in replies)


def test_no_text_has_no_figure() -> None:
    assert math.isnan(bits_per_byte(decoder(), TOKENIZER, [], MACHINE))
    assert predict_replies(decoder(), TOKENIZER, [], MACHINE).tokens == 0


def test_progress_is_told() -> None:
    told: list[int] = []
    bits_per_byte(decoder(), TOKENIZER, TEXTS, MACHINE, on_tokens=told.append)
    assert told == sorted(told)
    assert told[-1] > 0


TEXT = "Once there was a little house by the sea.\nIn it lived three sisters — and a cat.\n"


def test_units_are_of_the_original_and_nats_of_what_is_read(tiny: EvaluatedModel) -> None:
    task = TaskSpec("made", "perplexity", DataSpec(file="made.txt"))
    original = TEXT.replace(".", " .")
    item = Item("0", {"text": TEXT, "original": original}, "row")
    row = next(iter(Rolling(tiny, [with_shots(task, item, [])]).answer([0])))
    tokenizer, decoder = tiny.tokenizer, tiny.model._decoder
    tokens = [tokenizer.start_of_text, *tokenizer.encode(TEXT)]
    with torch.no_grad():
        log_probs = decoder.logits(decoder(torch.tensor([tokens]))).log_softmax(-1)[0]
    nats = -sum(float(log_probs[i - 1, tokens[i]]) for i in range(1, len(tokens)))
    parts = {name: top / bottom for name, (top, bottom) in row.metrics.items()}
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
