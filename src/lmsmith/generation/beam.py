"""Beam search, as GPT-3 answered free-form tasks: width 4, length penalty 0.6.

Brown et al. 2020, section 2.4: "beam search with the same parameters as [T5]: a beam width of 4 and
a length penalty of α = 0.6". A finished beam's score is its summed log-probability divided by its
length to the power of α, as `transformers` has it and counts it: the reply's tokens with the stop
token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmsmith.core.config import Problem, SettingsError
from lmsmith.generation.engine import ready
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.kv_cache import PagedCache
from lmsmith.generation.requests import Request, check_requests
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import vocabulary_of
from lmsmith.models.decoder import Decoder
from lmsmith.tokenizers import Tokenizer


@dataclass(frozen=True)
class BeamSettings:
    """Settings of beam search.

    Attributes:
        width: beams kept.
        length_penalty: α; 0 prefers short replies, 1 the mean log-probability of a token.
        max_new_tokens: longest reply.
        stop_tokens: a beam ends with the first of these.
    """

    width: int = 4
    length_penalty: float = 0.6
    max_new_tokens: int = 128
    stop_tokens: tuple[int, ...] = ()

    def check(self) -> list[Problem]:
        """Settings out of range."""
        wrong = Problem("width", self.width, "1 or more", "1 is greedy search")
        return [wrong] if self.width < 1 else []


@dataclass(frozen=True)
class Beam:
    """A reply.

    Attributes:
        tokens: its stop token included.
        score: Σ log p / length^α.
        log_probs: of each token, by the model alone.
    """

    tokens: tuple[int, ...]
    score: float
    log_probs: tuple[float, ...]


def beam_search(
    decoder: Decoder | InferenceDecoder,
    prompt: Sequence[int],
    settings: BeamSettings,
    *,
    tokenizer: Tokenizer | None = None,
) -> list[Beam]:
    """The best replies, at most ``settings.width``, the best first.

    The search ends once the best unfinished beam, were it to end now, would score less than the
    worst of ``width`` finished ones (`transformers`' ``early_stopping=False``).

    Args:
        decoder: the model.
        prompt: token ids.
        settings: of the search.
        tokenizer: ids without a token are in no beam; without it all ids may be. The bytes of a
            beam's text may be anything, as at temperature 0.

    Raises:
        UserError: settings out of range, or a prompt that cannot be answered.
    """
    if problems := settings.check():
        raise SettingsError(problems)
    model = ready(decoder)
    plain = SamplingSettings(settings.max_new_tokens, stop_tokens=settings.stop_tokens)
    check_requests(model.config, [Request(prompt, plain, "the prompt")], tokenizer)
    vocabulary = vocabulary_of(tokenizer, model.config.vocabulary_size)
    longest = min(settings.max_new_tokens, model.config.context - len(prompt))
    cache = model.new_cache(2 * settings.width, len(prompt) + longest)
    row = cache.open()
    logits_bv = model.logits(model.read([(row, list(prompt))], cache)[-1:])
    alive = [_Alive((), (), 0.0, row)]
    finished: list[Beam] = []
    for step in range(1, longest + 1):
        log_probs_bv = vocabulary.of_tokens(logits_bv.log_softmax(dim=-1))
        stays, ends = _expand(alive, log_probs_bv, settings)
        finished += [beam.end(settings) for beam in ends]
        finished = sorted(finished, key=lambda beam: -beam.score)[: settings.width]
        if step == longest:
            # As many as are among the ``width`` best.
            finished += [beam.end(settings) for beam in stays[: settings.width - len(ends)]]
            break
        if len(finished) == settings.width and stays[0].end(settings).score <= finished[-1].score:
            break
        alive = _move(alive, stays, cache)
        hidden_bd = model.read([(beam.row, [beam.tokens[-1]]) for beam in alive], cache)
        logits_bv = model.logits(hidden_bd)
    return sorted(finished, key=lambda beam: -beam.score)[: settings.width]


@dataclass(frozen=True)
class _Alive:
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float  # their sum
    row: int  # of the cache; of its parent until `_move`

    def end(self, settings: BeamSettings) -> Beam:
        """The beam, were it to end here."""
        score = self.score / len(self.tokens) ** settings.length_penalty
        return Beam(self.tokens, score, self.log_probs)


def _expand(
    alive: Sequence[_Alive], log_probs_bv: Tensor, settings: BeamSettings
) -> tuple[list[_Alive], list[_Alive]]:
    """The ``width`` best continuations without a stop token, and those of the ``width`` best
    candidates with one."""
    scores_bv = log_probs_bv + torch.tensor([[beam.score] for beam in alive])
    stops = set(settings.stop_tokens)
    count = min(settings.width * max(2, 1 + len(stops)), scores_bv.numel())
    values_c, places_c = scores_bv.flatten().topk(count)
    steps_c = log_probs_bv.flatten()[places_c]
    stays: list[_Alive] = []
    ends: list[_Alive] = []
    candidates = zip(values_c.tolist(), steps_c.tolist(), places_c.tolist(), strict=True)
    for rank, (score, log_prob, place) in enumerate(candidates):
        parent, token = divmod(place, scores_bv.shape[1])
        before = alive[parent]
        beam = _Alive((*before.tokens, token), (*before.log_probs, log_prob), score, before.row)
        if token in stops:
            if rank < settings.width:
                ends.append(beam)
        elif len(stays) < settings.width:
            stays.append(beam)
    return stays, ends


def _move(before: Sequence[_Alive], stays: Sequence[_Alive], cache: PagedCache) -> list[_Alive]:
    """Give every beam its own row with its parent's tokens; pages are shared, not copied."""
    taken: set[int] = set()
    moved = []
    for beam in stays:
        row = cache.fork(beam.row) if beam.row in taken else beam.row
        taken.add(beam.row)
        moved.append(replace(beam, row=row))
    for beam in before:
        if beam.row not in taken:
            cache.close(beam.row)
    return moved
