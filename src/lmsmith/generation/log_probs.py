"""Log-probabilities of tokens: drawn ones, those of a prompt, and forced ones.

Generation, the server and evaluation get their log-probabilities here, through the scheduler. Two
more readers compute the same numbers: `lmsmith.rlhf.rollout.response_log_probs` for PPO, with
gradients and a temperature, and `lmsmith.training.losses` for the loss over documents, with
gradients.

log p = logit − log Σ exp(logits) of the model's raw logits, in nats. Bias, penalties, temperature,
truncation and UTF-8 masks decide which token is drawn, and do not change its log-probability. Ids
without a token are part of the sum, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.requests import RunningSequence, TokenLogProb
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import Vocabulary

LOGITS_AT_ONCE = 256
"""Places of a prompt whose logits are held together."""


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
    index_n1 = torch.tensor(list(tokens), device=logits_nv.device)[:, None]
    chosen_n = log_probs_nv.gather(1, index_n1)[:, 0].tolist()
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


def drawn_log_probs(
    logits_bv: Tensor, sequences: Sequence[RunningSequence], tokens: Sequence[int]
) -> list[TokenLogProb | None]:
    """Log-probability of each sequence's drawn token; None where it is not requested."""
    if not any(each.settings.wants_log_probs for each in sequences):
        return [None] * len(tokens)
    found: list[TokenLogProb | None] = []
    for logits_v, each, token in zip(logits_bv, sequences, tokens, strict=True):
        asked, top = each.settings.wants_log_probs, [each.settings.top_log_probs]
        one = token_log_probs(logits_v[None], [token], top, each.vocabulary) if asked else [None]
        found += one
    return found


def prompt_log_probs(
    model: InferenceDecoder,
    prompt: Sequence[int],
    hidden_td: Tensor,
    top: int,
    vocabulary: Vocabulary,
) -> tuple[TokenLogProb, ...]:
    """Log-probabilities of a prompt's tokens; the first has none.

    Args:
        model: computes logits, of a part of the prompt at a time.
        prompt: its t tokens.
        hidden_td: the model's states after each.
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
def forced_log_probs(
    model: InferenceDecoder,
    hidden_nd: Tensor,
    forced: Sequence[tuple[int, int]],
    settings: Sequence[SamplingSettings],
    vocabulary: Vocabulary,
) -> list[TokenLogProb]:
    """Log-probabilities of forced tokens; the logits of a state are computed once.

    Args:
        model: computes logits, of a part of the states at a time.
        hidden_nd: states.
        forced: (state, token that follows it), in the order of the states.
        settings: of each token's request: ``top_log_probs``, and what ``logit_bias`` forbids.
        vocabulary: of the model.
    """
    found: list[TokenLogProb] = []
    for start in range(0, len(hidden_nd), LOGITS_AT_ONCE):
        logits_pv, log_sum_p, best_p = model.scored_logits(
            hidden_nd[start : start + LOGITS_AT_ONCE]
        )
        first = len(found)
        part = [each for each in forced[first:] if each[0] < start + LOGITS_AT_ONCE]
        rows_n = torch.tensor([state - start for state, _ in part], device=best_p.device)
        tokens_n = torch.tensor([token for _, token in part], device=best_p.device)
        log_prob_n = logits_pv[rows_n, tokens_n].float() - log_sum_p[rows_n]
        best_n = (best_p[rows_n] == tokens_n).tolist()
        found += [
            TokenLogProb(token, log_prob, (), best, best)
            for (_, token), log_prob, best in zip(part, log_prob_n.tolist(), best_n, strict=True)
        ]
        by_settings: dict[int, list[int]] = {}
        for place in range(len(part)):
            by_settings.setdefault(id(settings[first + place]), []).append(place)
        for places in by_settings.values():
            asked = settings[first + places[0]]
            if asked.forbids:
                forbidden = [t for t, bias in asked.logit_bias.items() if bias == -torch.inf]
                allowed_nv = logits_pv[rows_n[places]]
                allowed_nv[:, forbidden] = -torch.inf
                for place, best in zip(places, allowed_nv.argmax(dim=-1).tolist(), strict=True):
                    at = found[first + place]
                    found[first + place] = replace(at, greedy_allowed=best == at.token)
            if asked.top_log_probs:
                tokens = [part[place][1] for place in places]
                tops = [asked.top_log_probs] * len(places)
                listed = token_log_probs(
                    logits_pv[rows_n[places]].float(), tokens, tops, vocabulary
                )
                for place, one in zip(places, listed, strict=True):
                    found[first + place] = replace(found[first + place], top=one.top)
    return found
