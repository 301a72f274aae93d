"""Text by an encoder that fills masks: one at a time, and each again (Wang and Cho 2019).

BERT learns p(token | all others), which is no distribution over texts. The known way round it is
Gibbs sampling: begin with masks, draw one place from the model, put it in, go on; then hide each
place again and redraw it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsmith.core.config import NonNegativeInt, PositiveFloat, PositiveInt
from lmsmith.core.errors import UserError
from lmsmith.models.masked_lm import MaskedLM
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.word_piece import Frame


@dataclass(frozen=True)
class MaskWriting:
    """How an encoder's masks become a text."""

    new_tokens: PositiveInt = 24
    """Masks after the beginning; the length is fixed before a word is chosen."""
    sweeps: NonNegativeInt = 4
    """How often every place is hidden and drawn again, after all were drawn once."""
    temperature: PositiveFloat = 1.0
    """Divides the logits."""
    seed: int = 0
    """Seed of the order of the places and of the drawn tokens."""


@torch.inference_mode()
def write_by_masks(
    model: MaskedLM, tokenizer: Tokenizer, beginning: str, settings: MaskWriting
) -> str:
    """Text that the encoder writes after a beginning, with a given number of tokens.

    Raises:
        UserError: beginning and masks are longer than the model's context.
    """
    frame, generator = Frame.of(tokenizer), torch.Generator().manual_seed(settings.seed)
    before = [frame.cls, *tokenizer.encode(beginning)]
    count, context = settings.new_tokens, model.config.model.context
    if len(before) + count + 1 > context:
        raise UserError(
            f"the beginning and {count} masks are {len(before) + count + 1} tokens, and the model "
            f"reads {context}",
            "write fewer tokens, or a shorter beginning",
        )
    tokens_t = torch.tensor([*before, *[frame.mask] * count, frame.sep])
    excluded = torch.tensor(sorted(tokenizer.control_tokens))
    for _ in range(1 + settings.sweeps):
        for place in (len(before) + torch.randperm(count, generator=generator)).tolist():
            tokens_t[place] = frame.mask
            logits_v = model.logits(model.encoder(tokens_t[None])[0, place])
            logits_v[tokenizer.vocabulary_size :] = -math.inf
            tokens_t[place] = _drawn(logits_v, excluded, settings.temperature, generator)
    return tokenizer.decode(tokens_t[len(before) : -1].tolist()).strip()


def _drawn(
    logits_v: Tensor, excluded: Tensor, temperature: float, generator: torch.Generator
) -> Tensor:
    logits_v[excluded] = -math.inf
    chances_v = (logits_v.double() / temperature).softmax(dim=0)
    return torch.multinomial(chances_v, 1, generator=generator)[0]
