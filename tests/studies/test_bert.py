"""The comparison of GPT and BERT against counts by hand, and text by masks by its definition."""

from __future__ import annotations

import pytest
import torch

from lmsmith.core.errors import UserError
from lmsmith.generation.mask_writing import MaskWriting, write_by_masks
from lmsmith.models.masked_lm import MaskedLM
from lmsmith.statistics.intervals import bootstrap_ratio
from lmsmith.studies.bert import answered, compare, masked_accuracy
from lmsmith.tokenizers.word_piece import Frame
from tiny_encoders import tiny_masked_lm, tiny_tokenizer


def run(*right: bool) -> dict[str, list[float]]:
    rows = [
        {"texts": [f"text {n}"], "right": "yes", "label": "yes" if each else "no"}
        for n, each in enumerate(right)
    ]
    return answered(rows)


def test_seeds_are_averaged_and_examples_are_the_unit() -> None:
    gpt = [run(True, True, False, True), run(True, False, False, True)]
    bert = [run(True, False, False, False), run(False, False, True, False)]
    found = compare(gpt, bert)
    assert found.accuracy["gpt"].value == 5 / 8
    assert found.accuracy["bert"].value == 2 / 8
    assert [each.value for each in found.seeds["gpt"]] == [0.75, 0.5]
    assert found.difference == bootstrap_ratio([1, 1, -1, 2], [2, 2, 2, 2])
    assert found.difference.value == 3 / 8
    assert found.examples == 4
    same = compare(gpt, gpt)
    assert (same.difference.low, same.difference.high) == (0, 0)
    with pytest.raises(ValueError, match="different examples"):
        compare(gpt, [run(True, True)])


def test_masked_accuracy_has_wilson_s_interval() -> None:
    metrics = {"held_out_targets": 200.0, "masked_accuracy": 0.25, "unigram_accuracy": 0.05}
    found = masked_accuracy(metrics)
    assert list(found) == ["bert", "commonest token"]
    assert found["bert"].value == 0.25
    assert found["bert"].low == pytest.approx(0.1950, abs=1e-4)  # Wilson 1927, by hand
    assert found["bert"].high == pytest.approx(0.3144, abs=1e-4)
    assert masked_accuracy({"masked_accuracy": 0.2}) == {}


class Successor(MaskedLM):
    """Says what follows the left neighbour: token n + 1 after token n, or the first word."""

    def __init__(self, other: MaskedLM, first: int, last: int) -> None:
        super().__init__(other.config)
        self.first, self.last, self.asked = first, last, list[list[int]]()

    @property
    def encoder(self):  # type: ignore[no-untyped-def, override]
        def states(tokens_bt: torch.Tensor) -> torch.Tensor:
            self.asked.append(tokens_bt[0].tolist())
            before = torch.cat([tokens_bt[:, :1], tokens_bt[:, :-1]], dim=1)
            return before[..., None].float()

        return states

    def logits(self, hidden_nd: torch.Tensor) -> torch.Tensor:
        token = int(hidden_nd[0])
        follows = token + 1 if self.first <= token < self.last else self.first
        logits_v = torch.full((self.config.model.vocabulary_size,), -1e9)
        logits_v[follows] = 0.0
        return logits_v


def test_every_place_is_hidden_and_drawn_once_a_sweep() -> None:
    tokenizer = tiny_tokenizer()
    frame, size = Frame.of(tokenizer), tokenizer.vocabulary_size
    model = Successor(tiny_masked_lm(size), size - 20, size - 1)
    settings = MaskWriting(new_tokens=5, sweeps=30, seed=3)
    text = write_by_masks(model, tokenizer, "the dog", settings)
    before = [frame.cls, *tokenizer.encode("the dog")]
    assert len(model.asked) == 5 * 31
    assert model.asked[0][: len(before)] == before
    assert model.asked[0].count(frame.mask) == 5
    for step, tokens in enumerate(model.asked):
        assert len(tokens) == len(before) + 6
        assert tokens.count(frame.mask) == (5 - step if step < 5 else 1)
    for sweep in range(31):  # each place is hidden once: what is new in the next question
        asked = model.asked[5 * sweep : 5 * sweep + 5]
        if sweep:
            assert len({tokens.index(frame.mask) for tokens in asked}) == 5
    start = model.first if not model.first <= before[-1] < model.last else before[-1] + 1
    expected = tokenizer.decode([start + n for n in range(5)]).strip()
    assert text == expected  # Gibbs sampling has reached what the model holds for right


def test_control_tokens_are_never_written_and_the_seed_decides() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_masked_lm(tokenizer.vocabulary_size)
    with torch.no_grad():
        model.bias[list(tokenizer.control_tokens)] = 100.0
    texts = [
        write_by_masks(model, tokenizer, "the", MaskWriting(new_tokens=9, sweeps=1, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert not any("[" in text for text in texts)
    with pytest.raises(UserError, match="the model reads 48"):
        write_by_masks(model, tokenizer, "the", MaskWriting(new_tokens=60))
