"""How likely a model finds tokens: those that it wrote, and the alternatives to them.

One forward pass in float32; what was drawn in bf16 may differ from it in the third digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lmsmith.models.decoder import Decoder


@dataclass(frozen=True)
class TokenChoice:
    """A token, and what could have stood in its place.

    Attributes:
        token: its id.
        log_prob: natural logarithm of its probability, before temperature and top-p.
        alternatives: (id, log-probability) of the likeliest tokens there, the first first.
    """

    token: int
    log_prob: float
    alternatives: list[tuple[int, float]]


@torch.inference_mode()
def token_choices(
    decoder: Decoder, prompt: Sequence[int], reply: Sequence[int], top: int
) -> list[TokenChoice]:
    """The choice at each token of a reply."""
    if not reply:
        return []
    tokens_1t = torch.tensor([[*prompt, *reply]])[:, :-1]
    hidden_td = decoder(tokens_1t)[0, len(prompt) - 1 :]
    log_probs_tv = decoder.logits(hidden_td).float().log_softmax(dim=-1)
    chosen_t = log_probs_tv.gather(1, torch.tensor(reply)[:, None])[:, 0]
    best = log_probs_tv.topk(min(top, log_probs_tv.shape[1]), dim=-1)
    rows = zip(reply, chosen_t.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenChoice(token, log_prob, list(zip(ids, values, strict=True)))
        for token, log_prob, ids, values in rows
    ]


@torch.inference_mode()
def next_token_alternatives(
    decoder: Decoder, tokens: Sequence[int], top: int
) -> list[tuple[int, float]]:
    """(id, log-probability) of the likeliest tokens to come next, the first first."""
    hidden_d = decoder(torch.tensor([list(tokens)]))[0, -1]
    best = decoder.logits(hidden_d).float().log_softmax(dim=-1).topk(top)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
