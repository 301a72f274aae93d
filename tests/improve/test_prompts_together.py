"""Rankings of several people of one prompt: separate rows, and the gradient of one element."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

from improve.tiny_round import make_model
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.rows import Ranking
from lmsmith.models.folder import load_decoder, load_tokenizer
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.ranking import (
    EncodedRanking,
    accumulate_ranking_gradients,
    candidate_batch,
    candidate_scores,
    encode_rankings,
)
from lmsmith.stages.reward import share_weights
from lmsmith.training.machine import resolve_machine


def gradient(model: ScalarModel) -> torch.Tensor:
    found = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


def one_element_a_prompt(model: ScalarModel, rankings: list[EncodedRanking]) -> torch.Tensor:
    """Ouyang et al. 2022, section 3.5, by hand: each response of a prompt is scored once, and the
    loss of the prompt is the mean of −log σ(better − worse) over all pairs that people ordered."""
    losses = []
    prompts = dict.fromkeys(tuple(each.prompt) for each in rankings)
    for prompt in prompts:
        mine = [each for each in rankings if tuple(each.prompt) == prompt]
        texts = list(dict.fromkeys(tuple(text) for each in mine for text in each.responses))
        merged = EncodedRanking(list(prompt), [list(text) for text in texts], [1] * len(texts))
        scores = dict(
            zip(texts, candidate_scores(model, candidate_batch([merged]))[0], strict=True)
        )
        pairs = []
        for each in mine:
            ranked = zip(each.ranks, map(tuple, each.responses), strict=True)
            for (one, a), (other, b) in combinations(ranked, 2):
                if one != other:
                    better, worse = (a, b) if one < other else (b, a)
                    pairs.append(-torch.nn.functional.logsigmoid(scores[better] - scores[worse]))
        losses.append(torch.stack(pairs).mean())
    torch.stack(losses).mean().backward()
    return gradient(model)


def test_shared_weights_have_the_gradient_of_one_element_a_prompt(
    tmp_path: Path, seed: int
) -> None:
    """Two people ranked the same four responses in different orders, one with a tie; one
    compared two of them."""
    folder = Path(make_model(tmp_path / "model"))
    tokenizer = load_tokenizer(folder)
    model = ScalarModel(load_decoder(folder))
    model.initialise_head(torch.Generator().manual_seed(seed))
    model.decoder.attend_explicitly()
    asked = [[{"role": "user", "content": text}] for text in ("Where is the cat?", "Why blue?")]
    said = ["on the mat", "blue blue", "the cat sat", "far away"]
    rankings = [
        Ranking("a", asked[0], said, [1, 2, 3, 4], "p"),
        Ranking("b", asked[0], said, [2, 1, 3, 3], "q"),
        Ranking("c", asked[0], said[:2], [2, 1], "r"),
        Ranking("d", asked[1], said[1:], [3, 1, 2], "p"),
    ]
    encoded, _ = encode_rankings(tokenizer, rankings, model.decoder.config.context)
    assert len(encoded) == 4
    expected = one_element_a_prompt(model, encoded)
    accumulate_ranking_gradients(
        model, share_weights(encoded), resolve_machine(MachineConfig(precision="fp32"))
    )
    found = gradient(model)
    assert float(expected.norm()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    accumulate_ranking_gradients(model, encoded, resolve_machine(MachineConfig(precision="fp32")))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(gradient(model), expected, rtol=1e-4, atol=1e-6)
