"""Translation: beam search over an encoder–decoder, many sentences at once.

The encoder reads a batch once. Its keys and values, and those of the tokens written so far, are
kept for every beam (Vaswani et al. 2017, section 6.1: width 4, length penalty 0.6).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.corpus.parallel import padded
from lmsmith.device import device_of, moved
from lmsmith.generation.beam import Beam, BeamSearch, BeamSettings
from lmsmith.models.attention import KeptKeys
from lmsmith.models.batching import length_batches
from lmsmith.models.encoder_decoder import EncoderDecoder
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine, evaluation_mode

MORE_TOKENS = 50
"""Longest translation: the source's tokens and so many more (section 6.1)."""

BATCH_TOKENS = 4096
"""Tokens of the sources that are translated together, times beams."""

PAPER_BEAMS = BeamSettings(width=4, length_penalty=0.6, max_new_tokens=sys.maxsize, length_offset=5)
"""Wu et al. 2016's length penalty, which the Transformer's paper takes; only `MORE_TOKENS` and the
context limit a translation."""


class TooLong(UserError):
    """A text does not fit the model's context."""


@dataclass(frozen=True)
class Translation:
    """A text's translation.

    Attributes:
        source: the text.
        text: its translation.
        tokens: of the translation, the end token included if it ended by itself.
        score: Σ log p, divided as the length penalty says.
    """

    source: str
    text: str
    tokens: tuple[int, ...]
    score: float


class Translator:
    """A model with its tokenizer as a function from texts to texts.

    Args:
        model: in evaluation mode or not; it is put back as it was.
        tokenizer: of both languages.
        machine: gives the precision.
    """

    def __init__(
        self, model: EncoderDecoder, tokenizer: Tokenizer, machine: ResolvedMachine
    ) -> None:
        self.model, self.tokenizer, self._machine = machine.put(model), tokenizer, machine
        config = model.config
        allowed = torch.zeros(config.model.vocabulary_size, dtype=torch.bool)
        allowed[: tokenizer.vocabulary_size] = True
        allowed[list(tokenizer.control_tokens)] = False
        allowed[config.end_token] = True
        self._forbidden = (~allowed).to(machine.place)

    def encode(self, text: str) -> list[int]:
        """The tokens of a source, with the end token.

        Raises:
            TooLong: the model's context holds no more.
        """
        tokens = [*self.tokenizer.encode(text), self.model.config.end_token]
        context = self.model.config.model.context
        if len(tokens) > context:
            raise TooLong(
                f"a text of {len(tokens):,} tokens, and the model reads at most {context:,}: "
                f"{text[:60]!r} …",
                "translate it sentence by sentence",
            )
        return tokens

    def __call__(
        self,
        texts: Sequence[str],
        settings: BeamSettings = PAPER_BEAMS,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> list[Translation]:
        """The best translation of each text; an empty text's is empty.

        Args:
            texts: one sentence each, as the model learnt them.
            settings: of the search; its longest reply and stop tokens are the model's own.
            on_batch: is called with the number of texts that are done.

        Raises:
            TooLong: a text does not fit the context.
        """
        sources = [self.encode(text) for text in texts]
        found = [Translation(text, "", (), 0.0) for text in texts]
        full = [place for place, text in enumerate(texts) if text.strip()]
        lengths = [len(sources[place]) for place in full]
        most, done = max(1, BATCH_TOKENS // settings.width), len(texts) - len(full)
        for group in length_batches(lengths, most):
            places = [full[index] for index in group]
            beams = self._best([sources[place] for place in places], settings)
            for place, beam in zip(places, beams, strict=True):
                text = self.tokenizer.decode(beam.tokens).strip()
                found[place] = Translation(texts[place], text, beam.tokens, beam.score)
            done += len(places)
            on_batch(done)
        return found

    def _best(self, sources: Sequence[Sequence[int]], settings: BeamSettings) -> list[Beam]:
        with self._machine.reading(self.model):
            found = list(beam_translate(self.model, sources, settings, self._forbidden))
        return [beams[0] for beams in found]

    def attention(self, translation: Translation) -> Attended:
        """The attention between the two texts, of the last layer, a mean of its heads; an empty
        translation has none."""
        source = self.encode(translation.source)
        with evaluation_mode(self.model):
            layers = self.model.attention_weights(source, translation.tokens)
        return Attended(
            [self._piece(token) for token in source],
            [self._piece(token) for token in translation.tokens],
            layers[-1].mean(dim=0)[: len(translation.tokens)].tolist(),
        )

    def _piece(self, token: int) -> str:
        if token == self.model.config.end_token:
            return "⏎"
        return self.tokenizer.decode([token], special=True)


@dataclass(frozen=True)
class Attended:
    """Pieces of two texts, and each target piece's weights of the source's, which sum to 1."""

    source: list[str]
    target: list[str]
    weights: list[list[float]]


def beam_translate(
    model: EncoderDecoder,
    sources: Sequence[Sequence[int]],
    settings: BeamSettings,
    forbidden_v: Tensor | None = None,
) -> Iterator[list[Beam]]:
    """The best translations of each source, at most ``settings.width``, the best first.

    Args:
        model: in evaluation mode, without gradients.
        sources: token ids, each with the end token.
        settings: its stop token is the model's; a translation has `MORE_TOKENS` more than its
            source at most, and no more than ``max_new_tokens`` or the context.
        forbidden_v: True for ids that are in no translation.
    """
    config = model.config
    settings = replace(settings, stop_tokens=(config.end_token,))
    table, lengths = padded(sources, 0)
    device = device_of(model)
    lengths_n, table_nt = (moved(torch.from_numpy(each), device) for each in (lengths, table))
    same = bool((lengths == table.shape[1]).all())
    memory = whole = model.encode(table_nt, None if same else lengths_n)
    most = min(settings.max_new_tokens, config.model.context)
    searches = [BeamSearch(settings, min(most, len(each) + MORE_TOKENS)) for each in sources]
    owners = list(range(len(sources)))  # the source of each row
    kept = [KeptKeys() for _ in range(config.resolved_decoder_layers)]
    tokens, position = [config.start_token] * len(sources), 0
    while owners:
        tokens_r1 = torch.tensor(tokens, device=device)[:, None]
        hidden_rd = model.decode(tokens_r1, memory, kept, position)[:, 0]
        log_probs_rv = model.logits(hidden_rd).float().log_softmax(dim=-1)
        if forbidden_v is not None:
            log_probs_rv = log_probs_rv.masked_fill(forbidden_v, float("-inf"))
        rows: list[int] = []
        after: list[int] = []
        tokens, first = [], 0
        for owner in dict.fromkeys(owners):
            count = owners.count(owner)
            parents = searches[owner].advance(log_probs_rv[first : first + count])
            rows += [first + parent for parent in parents]
            after += [owner] * len(parents)
            tokens += searches[owner].last_tokens if parents else []
            first += count
        rows_r = torch.tensor(rows, dtype=torch.long, device=device)
        for each in kept:
            each.select(rows_r)
        if after != owners:
            owners = after
            memory = whole.select(torch.tensor(after, dtype=torch.long, device=device))
        position += 1
    for search in searches:
        yield search.finished
