"""Beam search, as GPT-3 answered free-form tasks: width 4, length penalty 0.6.

Brown et al. 2020, section 2.4: "beam search with the same parameters as [T5]: a beam width of 4 and
a length penalty of α = 0.6". A finished beam's score is its summed log-probability divided by its
length to the power of α, as `transformers` has it and counts it: the reply's tokens with the stop
token. Wu et al. 2016, whom the Transformer followed, divide by ((5 + length) / 6)^α.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
        length_offset: tokens added to every length, 5 in Wu et al. 2016, equation 14.
    """

    width: int = 4
    length_penalty: float = 0.6
    max_new_tokens: int = 128
    stop_tokens: tuple[int, ...] = ()
    length_offset: int = 0

    def check(self) -> list[Problem]:
        """Settings out of range."""
        wrong = Problem("width", self.width, "1 or more", "1 is greedy search")
        return [wrong] if self.width < 1 else []

    def normalised(self, log_prob: float, length: int) -> float:
        """Σ log p / ((offset + length) / (offset + 1))^α."""
        offset = self.length_offset
        return log_prob / math.pow((offset + length) / (offset + 1), self.length_penalty)


@dataclass(frozen=True)
class Beam:
    """A reply.

    Attributes:
        tokens: its stop token included.
        score: its log-probability, divided as the settings say.
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
    rows, search = [cache.open()], BeamSearch(settings, longest)
    hidden_bd = model.read([(rows[0], list(prompt))], cache)[-1:]
    while parents := search.advance(
        vocabulary.of_tokens(model.logits(hidden_bd).log_softmax(dim=-1))
    ):
        rows = _move(rows, parents, cache)
        last = [[token] for token in search.last_tokens]
        hidden_bd = model.read(list(zip(rows, last, strict=True)), cache)
    return search.finished


@dataclass(frozen=True)
class _Alive:
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float  # their sum
    parent: int  # the beam that it goes on from, among those before

    def end(self, settings: BeamSettings) -> Beam:
        """The beam, were it to end here."""
        score = settings.normalised(self.score, len(self.tokens))
        return Beam(self.tokens, score, self.log_probs)


class BeamSearch:
    """The search for one reply, without the model: its caller reads the tokens.

    Args:
        settings: of the search.
        longest: most tokens of a reply.

    Attributes:
        finished: the best replies so far, at most ``settings.width``, the best first.
    """

    def __init__(self, settings: BeamSettings, longest: int) -> None:
        self.finished: list[Beam] = []
        self._settings, self._longest = settings, longest
        self._alive = [_Alive((), (), 0.0, 0)]
        self._steps = 0

    @property
    def last_tokens(self) -> list[int]:
        """The token to read next for each beam."""
        return [beam.tokens[-1] for beam in self._alive]

    def advance(self, log_probs_bv: Tensor) -> list[int]:
        """Lengthen the beams by a token.

        Args:
            log_probs_bv: of the next token after each beam; at first there is one without tokens.

        Returns:
            For each beam that goes on, the number of the one before that it continues; none if the
            search has ended.
        """
        settings = self._settings
        self._steps += 1
        stays, ends = _expand(self._alive, log_probs_bv, settings)
        self._finish(ends)
        if self._steps == self._longest:
            # As many as are among the ``width`` best.
            self._finish(stays[: settings.width - len(ends)])
            return []
        if not stays:
            return []
        worst = self.finished[-1].score if len(self.finished) == settings.width else None
        if worst is not None and stays[0].end(settings).score <= worst:
            return []
        self._alive = stays
        return [beam.parent for beam in stays]

    def _finish(self, ends: Sequence[_Alive]) -> None:
        found = self.finished + [beam.end(self._settings) for beam in ends]
        self.finished = sorted(found, key=lambda beam: -beam.score)[: self._settings.width]


def _expand(
    alive: Sequence[_Alive], log_probs_bv: Tensor, settings: BeamSettings
) -> tuple[list[_Alive], list[_Alive]]:
    """The ``width`` best continuations without a stop token, and those of the ``width`` best
    candidates with one."""
    scores_bv = log_probs_bv + torch.tensor(
        [[beam.score] for beam in alive], device=log_probs_bv.device
    )
    stops = set(settings.stop_tokens)
    count = min(settings.width * max(2, 1 + len(stops)), scores_bv.numel())
    values_c, places_c = scores_bv.flatten().topk(count)
    steps_c = log_probs_bv.flatten()[places_c]
    stays: list[_Alive] = []
    ends: list[_Alive] = []
    candidates = zip(values_c.tolist(), steps_c.tolist(), places_c.tolist(), strict=True)
    for rank, (score, log_prob, place) in enumerate(candidates):
        if score == -math.inf:
            break  # only tokens that may not be are left
        parent, token = divmod(place, scores_bv.shape[1])
        before = alive[parent]
        beam = _Alive((*before.tokens, token), (*before.log_probs, log_prob), score, parent)
        if token in stops:
            if rank < settings.width:
                ends.append(beam)
        elif len(stays) < settings.width:
            stays.append(beam)
    return stays, ends


def _move(rows: Sequence[int], parents: Sequence[int], cache: PagedCache) -> list[int]:
    """Rows of the cache for beams that go on from others; pages are shared, not copied."""
    taken: set[int] = set()
    moved = []
    for parent in parents:
        row = rows[parent]
        moved.append(cache.fork(row) if row in taken else row)
        taken.add(row)
    for row in rows:
        if row not in taken:
            cache.close(row)
    return moved
