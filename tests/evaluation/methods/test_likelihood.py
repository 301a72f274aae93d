"""Shared prefixes change no likelihood: against one forward pass of each pair alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lmsmith.core.errors import UserError
from lmsmith.evaluation.methods import likelihood
from lmsmith.evaluation.methods.likelihood import LikelihoodReader, shared_prefix
from lmsmith.evaluation.model import Continuation, EvaluatedModel
from lmsmith.generation import log_probs as reading


def alone(subject: EvaluatedModel, pair: Continuation) -> tuple[list[float], list[int]]:
    """Log-probabilities of the continuation and the likeliest tokens, by the decoder itself."""
    decoder = subject.model._decoder
    with torch.no_grad():
        hidden = decoder(torch.tensor([pair.tokens[:-1]]))[0, -pair.scored :]
        log_probs = decoder.logits(hidden).double().log_softmax(-1)
    targets = torch.tensor(pair.tokens[-pair.scored :])
    return log_probs.gather(1, targets[:, None])[:, 0].tolist(), log_probs.argmax(-1).tolist()


def random_pairs(seed: int, subject: EvaluatedModel, count: int = 40) -> list[Continuation]:
    """Pairs with shots in common, contexts in common, and none."""
    generator = np.random.default_rng(seed)
    vocabulary = subject.tokenizer.vocabulary_size

    def some(most: int) -> tuple[int, ...]:
        return tuple(generator.integers(0, vocabulary, generator.integers(1, most)).tolist())

    shots, contexts = some(90), [some(40) for _ in range(6)]
    pairs = []
    for _ in range(count):
        before = shots if generator.random() < 0.7 else some(20)
        context = contexts[int(generator.integers(6))]
        continuation = some(6)
        pairs.append(Continuation((*before, *context, *continuation), len(continuation)))
    return pairs + pairs[:3]


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("budget", [10_000, 60])
def test_likelihoods_are_those_of_each_pair_alone(
    seed: int, tiny: EvaluatedModel, monkeypatch: pytest.MonkeyPatch, budget: int, hold: bool
) -> None:
    monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", budget)
    monkeypatch.setattr(reading, "LOGITS_AT_ONCE", 7)
    if budget == 60:
        monkeypatch.setattr(likelihood, "ROWS_AT_ONCE", 2)  # more are open, and the cache grows
    pairs = random_pairs(seed, tiny)
    reader = LikelihoodReader(tiny.model)
    if hold:
        reader.cache_prefix(pairs[0].tokens[:12])
    for _ in range(2):  # the second call finds the cache as it was left
        for pair, found in zip(pairs, reader.read(pairs), strict=True):
            log_probs, best = alone(tiny, pair)
            assert found.log_probs == pytest.approx(log_probs, abs=1e-4)
            assert found.greedy == (best == list(pair.tokens[-pair.scored :]))
            assert found.total == pytest.approx(sum(log_probs), abs=1e-4)


def test_what_pairs_share_is_read_once(tiny: EvaluatedModel) -> None:
    context = tuple(range(100))
    pairs = [Continuation((*context, choice, choice), 2) for choice in range(4)]
    reader = LikelihoodReader(tiny.model)
    reader.read(pairs)
    assert reader.tokens_read == 100 + 4
    reader.cache_prefix(context[:90])
    reader.read(pairs)
    reader.read(pairs)
    assert reader.tokens_read == 104 + 90 + 2 * (10 + 4)
    assert reader._scheduler.cache.kv.used_pages == -(
        -90 // likelihood.PAGE
    )  # the held prefix's own


def test_a_forbidden_token_is_passed_over_at_the_first_place_only(tiny: EvaluatedModel) -> None:
    context = (5, 6, 7, 8)
    decoder = tiny.model._decoder
    with torch.no_grad():
        order = decoder.logits(decoder(torch.tensor([context]))[0, -1]).argsort(descending=True)
    best, second = order[:2].tolist()
    reader = LikelihoodReader(tiny.model, forbidden=[best])
    first, other = reader.read(
        [Continuation((*context, best), 1), Continuation((*context, second), 1)]
    )
    assert (first.greedy, first.greedy_allowed) == (True, False)
    assert (other.greedy, other.greedy_allowed) == (False, True)
    with torch.no_grad():
        following = int(decoder.logits(decoder(torch.tensor([[*context, best]]))[0, -1]).argmax())
    assert following != best
    reader = LikelihoodReader(tiny.model, forbidden=[following])
    found = reader.read([Continuation((*context, best, following), 2)])[0]
    assert (found.greedy, found.greedy_allowed) == (True, True)


def test_contexts_end_where_the_text_does_and_spaces_go_with_the_answer(
    tiny: EvaluatedModel,
) -> None:
    for context, answer in [("The dog", " ran"), ("The dog ", "ran"), ("", " blue")]:
        pair = tiny.encode_pairs([(context, answer)])[0]
        tokenizer = tiny.tokenizer
        assert pair.tokens[0] == tokenizer.start_of_text
        assert tokenizer.decode(pair.tokens) == context + answer
        assert tokenizer.decode(pair.tokens[: -pair.scored]) == context.rstrip()


def test_a_long_context_loses_its_beginning(make_tiny: Callable[..., EvaluatedModel]) -> None:
    subject = make_tiny(context=16)
    text = "the river and the cat sat on the mat and the dog ran " * 4 + "far"
    pair = subject.encode_pairs([(text, " blue")])[0]
    whole = [subject.tokenizer.start_of_text, *subject.tokenizer.encode(text + " blue")]
    assert pair.truncated == len(whole) - 17
    assert list(pair.tokens) == whole[-17:]
    found = LikelihoodReader(subject.model).read([pair])[0]
    assert found.log_probs == pytest.approx(alone(subject, pair)[0], abs=1e-4)
    with pytest.raises(UserError, match="fills the context"):
        subject.encode_pairs([("a", text)])


def test_the_shared_prefix_ends_before_any_continuation(tiny: EvaluatedModel) -> None:
    common = tuple(range(50))
    pairs = [Continuation((*common, n, 9), 1) for n in (3, 4)]
    assert shared_prefix(pairs) == common
    assert shared_prefix([Continuation((*common, n), 1) for n in (3, 4)]) == common[:-1]
    assert shared_prefix([Continuation((n, *common), 1) for n in (3, 4)]) == ()
