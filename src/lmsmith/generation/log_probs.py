"""How likely the model finds tokens: those it writes, those of a prompt, and given ones.

Whatever only reads gets its log-probabilities here, through the scheduler: generation, the server,
evaluation. Two more readers compute the same numbers where these cannot serve:
`lmsmith.models.batching.response_log_probs` for PPO, with gradients and a temperature, and
`lmsmith.training.losses` for the loss over documents, with gradients too.

What is given is log p = logit − log Σ exp(logits) of the model's raw logits, in nats. Bias,
penalties, temperature, truncation and what UTF-8 forbids decide which token is drawn, and change
nothing of it. Ids without a token have their part in the sum, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import Vocabulary

LOGITS_AT_ONCE = 256
"""Places of a prompt whose logits are held together."""


@dataclass(frozen=True)
class TokenLogProb:
    """A token's log-probability, and those of what could stand in its place.

    Attributes:
        token: its id.
        log_prob: log p(token | what is before it).
        top: (token, log-probability) of the likeliest there, the likeliest first.
        greedy: of a given token, whether it is the likeliest in its place.
        greedy_allowed: the same among those that the request's ``logit_bias`` does not forbid.
    """

    token: int
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()
    greedy: bool | None = None
    greedy_allowed: bool | None = None


def token_log_probs(
    logits_nv: Tensor, tokens: Sequence[int], top: Sequence[int], vocabulary: Vocabulary
) -> list[TokenLogProb]:
    """Log-probabilities of tokens, and of the likeliest at each place.

    Args:
        logits_nv: the model's own, float32.
        tokens: the n tokens.
        top: how many of the likeliest, at each place.
        vocabulary: ids without a token are not among the likeliest.
    """
    log_probs_nv = logits_nv.log_softmax(dim=-1)
    chosen_n = log_probs_nv.gather(1, torch.tensor(list(tokens))[:, None])[:, 0].tolist()
    most = max(top, default=0)
    likeliest: list[list[tuple[int, float]]] = [[] for _ in tokens]
    if most:
        values_nk, tokens_nk = vocabulary.of_tokens(log_probs_nv).topk(most, dim=-1)
        likeliest = [
            list(zip(ids, values, strict=True))
            for ids, values in zip(tokens_nk.tolist(), values_nk.tolist(), strict=True)
        ]
    return [
        TokenLogProb(token, log_prob, tuple(found[:number]))
        for token, log_prob, found, number in zip(tokens, chosen_n, likeliest, top, strict=True)
    ]


def prompt_log_probs(
    model: InferenceDecoder,
    prompt: Sequence[int],
    hidden_td: Tensor,
    top: int,
    vocabulary: Vocabulary,
) -> tuple[TokenLogProb, ...]:
    """Log-probabilities of a prompt's tokens; the first has none.

    Args:
        model: whose logits are taken, of a part of the prompt at a time.
        prompt: its t tokens.
        hidden_td: the states that the model has after each.
        top: how many of the likeliest, at each place.
        vocabulary: of the model.
    """
    targets = list(prompt)[1:]
    found: list[TokenLogProb] = []
    for start in range(0, len(targets), LOGITS_AT_ONCE):
        part = targets[start : start + LOGITS_AT_ONCE]
        logits_nv = model.logits(hidden_td[start : start + len(part)])
        found += token_log_probs(logits_nv, part, [top] * len(part), vocabulary)
    return tuple(found)


@torch.inference_mode()
def given_log_probs(
    model: InferenceDecoder,
    hidden_nd: Tensor,
    given: Sequence[tuple[int, int]],
    settings: Sequence[SamplingSettings],
    vocabulary: Vocabulary,
) -> list[TokenLogProb]:
    """Log-probabilities of given tokens; a state that several follow is multiplied out once.

    Args:
        model: whose logits are taken, of a part of the states at a time.
        hidden_nd: states.
        given: (state, token that follows it), in the order of the states.
        settings: of each token's request: ``top_log_probs``, and what ``logit_bias`` forbids.
        vocabulary: of the model.
    """
    found: list[TokenLogProb] = []
    for start in range(0, len(hidden_nd), LOGITS_AT_ONCE):
        logits_pv = model.raw_logits(hidden_nd[start : start + LOGITS_AT_ONCE])
        log_sum_p, best_p = model.kernels.log_sums(logits_pv)
        first = len(found)
        part = [each for each in given[first:] if each[0] < start + LOGITS_AT_ONCE]
        rows_n = torch.tensor([state - start for state, _ in part])
        tokens_n = torch.tensor([token for _, token in part])
        log_prob_n = logits_pv[rows_n, tokens_n].float() - log_sum_p[rows_n]
        best_n = (best_p[rows_n] == tokens_n).tolist()
        found += [
            TokenLogProb(token, log_prob, (), best, best)
            for (_, token), log_prob, best in zip(part, log_prob_n.tolist(), best_n, strict=True)
        ]
        asked = list(enumerate(settings[first : first + len(part)]))
        for each in {id(each): each for _, each in asked}.values():
            places = [place for place, own in asked if own is each]
            if each.forbids:
                forbidden = [t for t, bias in each.logit_bias.items() if bias == -torch.inf]
                allowed_nv = logits_pv[rows_n[places]]
                allowed_nv[:, forbidden] = -torch.inf
                for place, best in zip(places, allowed_nv.argmax(dim=-1).tolist(), strict=True):
                    at = found[first + place]
                    found[first + place] = replace(at, greedy_allowed=best == at.token)
            if each.top_log_probs:
                tokens = [part[place][1] for place in places]
                logits_nv = logits_pv[rows_n[places]].float()
                tops = [each.top_log_probs] * len(places)
                listed = token_log_probs(logits_nv, tokens, tops, vocabulary)
                for place, one in zip(places, listed, strict=True):
                    found[first + place] = replace(found[first + place], top=one.top)
    return found
