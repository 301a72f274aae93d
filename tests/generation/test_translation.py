"""Beams over an encoder–decoder: exhaustive search, greedy search, batches, texts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from lmsmith.generation.beam import BeamSettings
from lmsmith.generation.translation import (
    MORE_TOKENS,
    PAPER_BEAMS,
    TooLong,
    Translator,
    beam_translate,
)
from lmsmith.models.config import EncoderDecoderConfig, ModelConfig
from lmsmith.models.encoder_decoder import EncoderDecoder
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine

END, START = 0, 1
MACHINE = ResolvedMachine("fp32", "off", 1, "", "other", True)


def tiny(vocabulary_size: int, context: int = 24, seed: int = 0) -> EncoderDecoder:
    shape = ModelConfig(
        2, 16, 2, context, vocabulary_size, norm_position="post", positions="sinusoidal"
    )
    model = EncoderDecoder(EncoderDecoderConfig(shape, start_token=START, end_token=END))
    generator = torch.Generator().manual_seed(seed)
    model.initialise(generator)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False).eval()


def log_prob(model: EncoderDecoder, source: Sequence[int], target: Sequence[int]) -> float:
    """Log-probability of a whole target, without a cache."""
    hidden = model(torch.tensor([source]), torch.tensor([[START, *target[:-1]]]))
    log_probs = model.logits(hidden)[0].log_softmax(dim=-1)
    return float(log_probs[range(len(target)), list(target)].sum())


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wide_beams_find_what_exhaustive_search_finds(seed: int, penalty: float) -> None:
    """All replies of up to three tokens of four, the last of them an end or cut off."""
    model, longest, source = tiny(5, seed=seed), 3, [3, 4, 2, END]
    words = [token for token in range(5) if token != END]
    replies = [
        (*before, END) for n in range(longest) for before in itertools.product(words, repeat=n)
    ]
    replies += list(itertools.product(words, repeat=longest))

    def score(reply: Sequence[int]) -> float:
        return log_prob(model, source, reply) / ((5 + len(reply)) / 6) ** penalty

    expected = max(replies, key=score)
    settings = BeamSettings(200, penalty, length_offset=5, max_new_tokens=longest)
    (beams,) = beam_translate(model, [source], settings)
    assert beams[0].tokens == expected
    assert beams[0].score == pytest.approx(score(expected), abs=1e-5)


def test_one_beam_is_greedy_and_the_cache_changes_nothing() -> None:
    for seed in range(5):
        model, source = tiny(11, seed=seed), [3, 9, 4, 2, END]
        written: list[int] = []
        while len(written) < 12 and (not written or written[-1] != END):
            hidden = model(torch.tensor([source]), torch.tensor([[START, *written]]))
            written.append(int(model.logits(hidden)[0, -1].argmax()))
        settings = BeamSettings(width=1, max_new_tokens=12)
        (beams,) = beam_translate(model, [source], settings)
        assert list(beams[0].tokens) == written


def test_a_batch_is_its_sentences() -> None:
    model, settings = tiny(11), BeamSettings(3, 0.6, max_new_tokens=9)
    sources = [[3, 9, 4, END], [5, END], [2, 2, 7, 8, 10, END], [5, 6, 4, END]]
    together = list(beam_translate(model, sources, settings))
    for source, beams in zip(sources, together, strict=True):
        (alone,) = beam_translate(model, [source], settings)
        assert [beam.tokens for beam in beams] == [beam.tokens for beam in alone]
        expected = [beam.score for beam in alone]
        assert [beam.score for beam in beams] == pytest.approx(expected, abs=1e-5)
    assert len({beams[0].tokens for beams in together}) > 1


def test_forbidden_tokens_are_in_no_translation() -> None:
    model, forbidden = tiny(11), torch.zeros(11, dtype=torch.bool)
    forbidden[[START, 3, 4, 5]] = True
    (beams,) = beam_translate(model, [[3, 4, END]], BeamSettings(4, max_new_tokens=8), forbidden)
    assert not {START, 3, 4, 5} & {token for beam in beams for token in beam.tokens}


def test_the_longest_translation_is_fifty_tokens_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmsmith.generation.translation.MORE_TOKENS", 2)
    model, forbidden = tiny(11), torch.zeros(11, dtype=torch.bool)
    forbidden[END] = True
    (beams,) = beam_translate(model, [[3, 4, END]], BeamSettings(2), forbidden)
    assert {len(beam.tokens) for beam in beams} == {5}


@pytest.fixture(scope="module")
def translator() -> Translator:
    tokenizer = Tokenizer.train(["a red dog runs", "ein roter Hund läuft"] * 3, 280)
    return Translator(tiny(tokenizer.vocabulary_size), tokenizer, MACHINE)


def test_texts_in_texts_out(translator: Translator) -> None:
    texts = ["a red dog", "", "runs", "a red dog"]
    done: list[int] = []
    found = translator(texts, BeamSettings(2, max_new_tokens=5), done.append)
    assert [each.source for each in found] == texts
    assert (found[1].text, found[1].tokens) == ("", ())
    assert found[0] == found[3]
    assert done[-1] == 4
    for each in (found[0], found[2]):
        assert each.text == translator.tokenizer.decode(each.tokens).strip()
        assert not set(each.tokens) & (set(translator.tokenizer.control_tokens) - {END})


def test_long_translations_are_cut_by_the_source_and_the_context_alone() -> None:
    """BeamSettings has a limit of 128 tokens, which is below that of a long source."""
    tokenizer = Tokenizer.train(["a red dog runs"] * 3, 280)
    long = Translator(tiny(tokenizer.vocabulary_size, context=256), tokenizer, MACHINE)
    long._forbidden[END] = True
    text = "x" * 120
    assert len(long.encode(text)) == 121
    (found,) = long([text], replace(PAPER_BEAMS, width=1))
    assert len(found.tokens) == 121 + MORE_TOKENS


def test_a_text_that_spells_a_control_token_is_text(translator: Translator) -> None:
    tokens = translator.encode("<|endoftext|>")
    assert tokens[-1] == END
    assert not set(tokens[:-1]) & set(translator.tokenizer.control_tokens)


def test_a_text_longer_than_the_context(translator: Translator) -> None:
    with pytest.raises(TooLong, match="the model reads at most 24"):
        translator(["x y z " * 20])


def test_attention_of_a_translation(translator: Translator) -> None:
    (found,) = translator(["a red dog"], BeamSettings(2, max_new_tokens=4))
    attended = translator.attention(found)
    assert len(attended.source) == len(translator.encode("a red dog"))
    assert len(attended.target) == len(attended.weights) == len(found.tokens)
    assert attended.source[-1] == "⏎"
    assert "".join(attended.source[:-1]) == "a red dog"
    for row in attended.weights:
        assert sum(row) == pytest.approx(1.0, abs=1e-5)


def test_an_empty_translation_attends_to_nothing(translator: Translator) -> None:
    attended = translator.attention(*translator([" "]))
    assert attended.source[-1] == "⏎"
    assert (attended.target, attended.weights) == ([], [])
