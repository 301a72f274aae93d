"""The likeliest tokens in the place of masks (Devlin et al. 2018, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lmsmith.core.errors import UserError
from lmsmith.device import device_of
from lmsmith.models.masked_lm import MaskedLM
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.word_piece import MASK, Frame


@dataclass(frozen=True)
class Candidate:
    """A token that may stand in a mask's place, and its probability."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class Filled:
    """The likeliest tokens in a mask's place, the first the likeliest."""

    position: int
    candidates: list[Candidate]


def masked_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text in BERT's frame, with the mask token where the text names it.

    The name of the mask is the one control token that a text can write here, and only here.
    """
    frame = Frame.of(tokenizer)
    name = tokenizer.control_tokens[frame.mask]
    tokens = [frame.cls]
    for number, part in enumerate(text.replace(MASK, name).split(name)):
        tokens += [frame.mask] * (number > 0) + tokenizer.encode(part)
    return [*tokens, frame.sep]


@torch.inference_mode()
def filled(model: MaskedLM, tokenizer: Tokenizer, text: str, top: int) -> list[Filled]:
    """The ``top`` likeliest tokens of every mask in a text, control tokens left out.

    Probabilities are of the whole vocabulary, control tokens included.

    Raises:
        UserError: the text has no mask, or is longer than the model's context.
    """
    frame, tokens = Frame.of(tokenizer), masked_tokens(tokenizer, text)
    places = [place for place, token in enumerate(tokens) if token == frame.mask]
    if not places:
        name = tokenizer.control_tokens[frame.mask]
        raise UserError("the text has no mask", f"write {name} where a word is to be found")
    if len(tokens) > model.config.model.context:
        raise UserError(
            f"the text has {len(tokens)} tokens, and the model reads {model.config.model.context}",
            "shorten it",
        )
    hidden_1td = model.eval().encoder(torch.tensor([tokens], device=device_of(model)))
    probabilities_nv = model.logits(hidden_1td[0, places]).softmax(dim=-1)
    shown_nv = probabilities_nv[:, : tokenizer.vocabulary_size].clone()
    shown_nv[:, list(tokenizer.control_tokens)] = -1.0
    best = shown_nv.topk(min(top, shown_nv.shape[1] - len(tokenizer.control_tokens)))
    return [
        Filled(
            place,
            [
                Candidate(token, _shown(tokenizer, token), probability)
                for probability, token in zip(values, ids, strict=True)
            ],
        )
        for place, values, ids in zip(
            places, best.values.tolist(), best.indices.tolist(), strict=True
        )
    ]


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """A token's text: a word, or the continuation of one, such as ``##ing``."""
    text = tokenizer.token_bytes(token).decode("utf-8", errors="replace")
    return text[1:] if text.startswith(" ") else f"##{text}"
