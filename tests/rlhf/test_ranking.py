"""Rankings as rows, their scores and gradients."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.rows import Ranking
from lmsmith.models.batching import activation_bytes
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.prompts import encode_prompt
from lmsmith.rlhf.objective import pair_accuracy, ranking_loss
from lmsmith.rlhf.ranking import (
    EncodedRanking,
    EncodedThumb,
    accumulate_ranking_gradients,
    candidate_batch,
    candidate_scores,
    encode_rankings,
    encode_responses,
    rankings_warnings,
    score_rankings,
    score_table,
)
from lmsmith.rlhf.rollout import score_sequences
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine

MACHINE = resolve_machine(MachineConfig(precision="fp32"))
TOKENIZER = Tokenizer.train(["where are you? I am here, and you are there."] * 4, 280)


def scalar_model(seed: int, context: int = 48) -> ScalarModel:
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(ModelConfig(2, 16, 2, context, TOKENIZER.vocabulary_size))
    decoder.initialise(generator)
    for parameter in decoder.parameters():  # far from zero, so that a wrong mask shows
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    model = ScalarModel(decoder)
    model.initialise_head(generator)
    return model.eval()


def random_rankings(seed: int, count: int) -> list[EncodedRanking]:
    generator = torch.Generator().manual_seed(seed)

    def tokens(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most, (), generator=generator))
        return torch.randint(0, TOKENIZER.vocabulary_size, (length,), generator=generator).tolist()

    return [
        EncodedRanking(tokens(1, 20), [tokens(1, 15) for _ in range(k)], list(range(1, k + 1)))
        for k in torch.randint(2, 6, (count,), generator=generator).tolist()
    ]


def test_scores_equal_those_of_separate_rows() -> None:
    seed = int(torch.randint(0, 1 << 30, ()))
    model = scalar_model(seed)
    model.shift.fill_(0.3)
    rankings = random_rankings(seed, 9)
    scores = score_rankings(model, rankings, MACHINE)
    for ranking, row in zip(rankings, scores, strict=True):
        alone = score_sequences(model, [ranking.prompt + r for r in ranking.responses], MACHINE)
        torch.testing.assert_close(torch.tensor(row), alone, atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_separate_rows() -> None:
    model = scalar_model(1)
    rankings = random_rankings(2, 4)
    batch = candidate_batch(rankings)
    together = ranking_loss(candidate_scores(model, batch), batch.ranks_bk)
    gradients = torch.autograd.grad(together, list(model.parameters())[:-1])

    rows = [
        torch.stack([model(torch.tensor([r.prompt + s]))[0, -1] for s in r.responses])
        for r in rankings
    ]
    scores_bk = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    apart = ranking_loss(scores_bk, batch.ranks_bk)
    torch.testing.assert_close(together, apart)
    for one, other in zip(
        gradients, torch.autograd.grad(apart, list(model.parameters())[:-1]), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_every_response_follows_the_same_prompt_within_the_context() -> None:
    prompt = [
        {"role": "user", "content": "where are you? " * 4},
        {"role": "assistant", "content": "here"},
        {"role": "user", "content": "where?"},
    ]
    texts = ["I am here", "there " * 60, "", "and you?"]
    tokens, responses = encode_responses(TOKENIZER, prompt, texts, 48)
    assert tokens == encode_prompt(TOKENIZER, prompt, 48 - max(map(len, responses))).tokens
    assert all(len(tokens) + len(response) <= 48 for response in responses)
    assert all(response[-1] == TOKENIZER.end_of_turn for response in responses)
    assert responses[0][:-1] == TOKENIZER.encode(texts[0])
    assert len(responses[1]) == 36
    assert responses[2] == [TOKENIZER.end_of_turn]


def test_rankings_that_teach_nothing_are_left_out() -> None:
    ask = [{"role": "user", "content": "where?"}]
    long = [{"role": "user", "content": "where are you " * 40}]
    rankings = [
        Ranking("tied", ask, ["a", "b"], [1, 1]),
        Ranking("good", ask, ["a", "b", "c"], [2, 1, 2]),
        Ranking("too long", long, ["a", "b"], [1, 2]),
    ]
    encoded, kept = encode_rankings(TOKENIZER, rankings, 48)
    assert kept == [1]
    assert encoded[0].best == [1]
    with pytest.raises(UserError):
        encode_responses(TOKENIZER, long, ["a"], 48)


def test_table_of_scores() -> None:
    rankings = [EncodedRanking([1], [[2], [3]], [2, 1]), EncodedRanking([1], [[2]] * 3, [1, 1, 2])]
    scores_bk, ranks_bk = score_table(rankings, [[0.5, 1.5], [1.0, 2.0, 3.0]])
    assert scores_bk.tolist() == [[0.5, 1.5, 0.0], [1.0, 2.0, 3.0]]
    assert ranks_bk.tolist() == [[2, 1, 0], [1, 1, 2]]
    assert (ranks_bk > 0).tolist() == [[True, True, False], [True, True, True]]


def ranked(responses: list[str], ranks: list[int], prompt: str = "so") -> Ranking:
    return Ranking("r", [{"role": "user", "content": prompt}], responses, ranks)


@pytest.mark.parametrize(
    ("responses", "ranks", "places"),
    [
        (["a", "a", "b"], [1, 2, 3], [0, 2]),  # twins that both stand above the rest
        (["b", "a", "a"], [1, 2, 2], [0, 1]),
        (["a", "b", "a", "c"], [1, 2, 3, 4], [1, 3]),  # twins that say opposite things of "b"
        (["a", "", "b"], [1, 2, 3], [0, 2]),
        (["a", "b", "c"], [1, 1, 2], [0, 1, 2]),
    ],
)
def test_only_different_responses_are_compared(
    responses: list[str], ranks: list[int], places: list[int]
) -> None:
    ((each,), _) = encode_rankings(TOKENIZER, [ranked(responses, ranks)], 48)
    assert each.places == places
    assert each.ranks == [ranks[place] for place in places]
    assert len({tuple(response) for response in each.responses}) == len(places)


def test_rankings_that_teach_nothing_are_left_out_for_a_reason() -> None:
    long = "so it goes " * 30
    rankings = [
        ranked(["a", "b"], [1, 2]),
        ranked([long + "a", long + "b"], [1, 2]),  # equal once they are cut
        ranked(["a", "a"], [1, 2]),
        ranked(["a", "b", "a"], [1, 2, 3]),
        ranked(["a", " "], [1, 2]),
        ranked(["a", "b"], [1, 2], prompt=" "),
        ranked(["a", "b"], [1, 1]),
        ranked(["a", "b", ""], [1, 1, 2]),
        ranked(["a", "b"], [1, 2], prompt=long * 3),
        ranked(["c", "d"], [1, 2]),
        ranked(["d", "c"], [1, 2]),  # the labelers cancel each other out
        ranked(["e", "f"], [1, 2]),
        ranked(["e", "f"], [1, 2]),
        ranked(["f", "e"], [1, 2]),  # but these do not: all three are learnt from
        ranked([long, "b"], [1, 2]),
    ]
    counts: Counter[str] = Counter()
    encoded, kept = encode_rankings(TOKENIZER, rankings, 48, counts)
    assert kept == [0, 11, 12, 13, 14]
    assert len(encoded) == 5
    left_out = {"tied": 2, "empty": 2, "equal": 3, "too_long": 1, "contradicted": 2}
    assert {name: counts[name] for name in left_out} == left_out
    assert counts["responses_cut"] == 1
    told = rankings_warnings(counts, 48)
    assert told[0].startswith("10 of 15 rankings left out: 2 with all responses tied, ")
    assert counts["disputed"] == 3
    assert told[1].startswith("3 of 15 rankings are learnt from though others reverse their order")
    assert told[2] == "1 of 14 responses lose their end, being longer than 35 tokens"
    assert rankings_warnings(Counter(rankings=3, responses=9), 48) == []


CONFIG = ModelConfig(2, 16, 2, 96, 50)


def world(seed: int, count: int = 7) -> tuple[ScalarModel, list[EncodedRanking]]:
    """A model and rankings of 2 to 4 responses, some of them tied, of very different lengths."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(CONFIG)
    decoder.initialise(generator)
    model = ScalarModel(decoder)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)

    def tokens(most: int) -> list[int]:
        length = int(torch.randint(1, most, (), generator=generator))
        return torch.randint(0, 50, (length,), generator=generator).tolist()

    ranks = [[1, 2], [2, 1, 2], [1, 1, 2, 3]]
    rankings = [
        EncodedRanking(tokens(30), [tokens(16) for _ in places], places)
        for places in itertools.islice(itertools.cycle(ranks), count)
    ]
    return model, rankings


def gradients(model: ScalarModel) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_parts_add_up_to_the_whole(rows: int) -> None:
    model, rankings = world(int(torch.randint(0, 1 << 30, ())))
    batch = candidate_batch(rankings)
    scores_bk = candidate_scores(model, batch)
    whole = ranking_loss(scores_bk, batch.ranks_bk)
    whole.backward()
    expected = gradients(model)
    longest = max(ranking.length for ranking in rankings)
    most = activation_bytes(CONFIG, rows, longest)
    loss, accuracy, tokens = accumulate_ranking_gradients(model, rankings, MACHINE, most)
    found = gradients(model)
    assert loss == pytest.approx(whole.item(), abs=1e-5)
    assert accuracy == pytest.approx(pair_accuracy(scores_bk.detach(), batch.ranks_bk))
    assert tokens < batch.tokens_bt.numel()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_rankings_of_one_prompt_are_computed_together(seed: int) -> None:
    """Six comparisons of four responses are one row, with the scores and gradient of six."""
    whole, other = [each for each in random_rankings(seed, 40) if len(each.responses) >= 4][:2]
    model = scalar_model(seed, context=128)
    pairs = [
        EncodedRanking(whole.prompt, [whole.responses[a], whole.responses[b]], [1, 2])
        for a, b in itertools.combinations(range(4), 2)
    ]
    found = score_rankings(model, [*pairs, other], MACHINE)
    alone = [score_rankings(model, [each], MACHINE)[0] for each in (*pairs, other)]
    for ours, theirs in zip(found, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    batch = candidate_batch(pairs)
    expected = ranking_loss(candidate_scores(model, batch), batch.ranks_bk)
    expected.backward()
    wanted = gradients(model)
    loss, _, tokens = accumulate_ranking_gradients(model, pairs, MACHINE)
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert tokens == len(whole.prompt) + sum(map(len, whole.responses[:4]))
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-4)


def test_weights_and_thumbs_add_their_own_losses() -> None:
    """Against autograd on the whole batch at once, in float32."""
    model, rankings = world(5)
    weighted = [replace(each, weight=w) for each, w in zip(rankings, itertools.cycle((0.5, 1.5)))]
    thumbs = [
        EncodedThumb(each.prompt, each.responses[0], bool(n % 2), 1.0 + n)
        for n, each in enumerate(rankings)
    ]
    batch = candidate_batch(rankings)
    scores_bk = candidate_scores(model, batch)
    weights_b = torch.tensor([each.weight for each in weighted])
    per_prompt = torch.stack(
        [
            ranking_loss(scores_bk[n : n + 1], batch.ranks_bk[n : n + 1])
            for n in range(len(rankings))
        ]
    )
    ranked = (per_prompt * weights_b).mean()
    reference = float(scores_bk.detach().sum() / (batch.ranks_bk > 0).sum())
    alone = [candidate_batch([EncodedRanking(t.prompt, [t.response], [1])]) for t in thumbs]
    scored_b = torch.stack([candidate_scores(model, each)[0, 0] for each in alone])
    liked = torch.nn.functional.softplus(-(scored_b - reference))
    disliked = torch.nn.functional.softplus(scored_b - reference)
    terms = [
        (liked if thumb.liked else disliked)[n] * thumb.weight for n, thumb in enumerate(thumbs)
    ]
    whole = ranked + 0.25 * torch.stack(terms).mean()
    whole.backward()
    expected = gradients(model)
    loss, _, _ = accumulate_ranking_gradients(
        model, weighted, MACHINE, thumbs=thumbs, thumbs_weight=0.25
    )
    assert loss == pytest.approx(whole.item(), abs=1e-5)
    found = gradients(model)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
