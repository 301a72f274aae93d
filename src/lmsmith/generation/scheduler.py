"""Answer requests that come and go, for hours: what a server needs beyond `Engine`.

A step reads one packed list: the last token of every reply under way, and pieces of the prompts
that are still to be read, so that a long prompt does not keep the others waiting. A prompt that
begins as an earlier conversation did is read from there on only. What fails, fails for the request
that caused it; the others go on.

What is drawn is what `Engine` draws: a function of the request alone, up to the limits of rounding
that docs/generation.md names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.generation import isolating
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.isolating import Failures, Work
from lmsmith.generation.log_probs import TokenLogProb, prompt_log_probs
from lmsmith.generation.prefix_cache import CachedPrefix, PrefixCache
from lmsmith.generation.requests import Request, TokenEvent, check_requests
from lmsmith.generation.sequences import RunningSequence, new_sequences
from lmsmith.generation.vocabulary import vocabulary_of
from lmsmith.tokenizers import Tokenizer

PIECE = 128
"""Prompts are read in pieces that end at multiples of this many tokens, or with the prompt."""

TOKENS_BESIDE, TOKENS_ALONE = 256, 1024
"""Prompt tokens read in one step, about: while replies are under way, and while none is."""

KEPT_ROWS = 64
"""Most finished conversations whose keys and values are kept for their next turn."""


@dataclass(frozen=True)
class Joined:
    """A request waits no longer; ``reused`` tokens of its prompt need not be read again."""

    request: int
    reused: int


@dataclass(frozen=True)
class Failed:
    """A request is over without all of its replies."""

    request: int
    error: Exception


Event = TokenEvent | Joined | Failed


@dataclass
class _Reading:
    """A request whose prompt is waiting or being read.

    Attributes:
        max_tokens: that each reply may get.
        row: of the cache, once it has joined.
        done: tokens of the prompt that the row holds.
    """

    number: int
    request: Request
    max_tokens: int
    row: int = -1
    done: int = 0
    log_probs: list[TokenLogProb] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return self.request.settings.samples

    @property
    def prompt(self) -> Sequence[int]:
        return self.request.prompt


class Scheduler:
    """Requests in, events out, a step at a time.

    Args:
        model: the weights.
        tokenizer: turns tokens into the text of events, and says which may follow.
        cache_bytes: memory of the cache, which is never exceeded.
        rows: most replies written together.
        kept_rows: most finished conversations that are kept; 0 reuses nothing.

    Raises:
        UserError: the cache is too small for anything.
    """

    def __init__(
        self,
        model: InferenceDecoder,
        tokenizer: Tokenizer | None,
        *,
        cache_bytes: int,
        rows: int,
        kept_rows: int = KEPT_ROWS,
    ) -> None:
        self.model, self.tokenizer, self.most_rows = model, tokenizer, rows
        self.vocabulary = vocabulary_of(tokenizer, model.config.vocabulary_size)
        # Frequencies that depend on the length of what is read: a prompt is read whole.
        self._whole = model.config.rope_scaling.method == "dynamic"
        self._cache_bytes, self._kept_rows = cache_bytes, 0 if self._whole else kept_rows
        self._next = 0
        self._start_anew()

    def _start_anew(self) -> None:
        self.rows = PrefixCache(self.model, self._cache_bytes, self.most_rows, self._kept_rows)
        self._waiting: deque[_Reading] = deque()
        self._reading: deque[_Reading] = deque()
        self._writing: list[RunningSequence] = []
        self._lacks_pages = False  # of the cache, for the first who waits

    @property
    def busy(self) -> bool:
        """Whether a step would read something."""
        return bool(self._writing or self._reading or self._waiting)

    @property
    def will_read(self) -> bool:
        """Whether a step would read of prompts, as far as is known; it takes longer then."""
        if self._reading or not self._waiting or self._lacks_pages:
            return bool(self._reading)
        return self.active + self._waiting[0].samples <= self.most_rows

    @property
    def waiting(self) -> int:
        """Requests that have not joined."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Replies being written, and those whose prompts are being read."""
        return len(self._writing) + sum(reading.samples for reading in self._reading)

    def check(self, request: Request) -> None:
        """Raises UserError with all that is wrong with a request; safe in any thread."""
        check_requests(self.model.config, [request], self.tokenizer)
        samples = request.settings.samples
        if samples > self.most_rows:
            raise UserError(
                f"samples = {samples}: at most {self.most_rows} replies are written together",
                "ask for fewer",
            )
        if self._pages_to_come(self._new_reading(-1, request)) > self.rows.pages:
            raise UserError(
                f"{request.name or 'the request'}: prompt and replies may come to more tokens than "
                f"the cache's {self.rows.tokens:,}",
                "ask for fewer or shorter replies, or give the cache more memory",
            )

    def submit(self, request: Request) -> int:
        """Let a request wait for the next step; returns its number.

        Raises:
            UserError: it cannot be answered.
        """
        self.check(request)
        number, self._next = self._next, self._next + 1
        self._waiting.append(self._new_reading(number, request))
        return number

    def cancel(self, number: int) -> None:
        """End a request; what was read of it is kept for the next one that begins so."""
        self._lacks_pages = False
        self._waiting = deque(each for each in self._waiting if each.number != number)
        for reading in [each for each in self._reading if each.number == number]:
            self._reading.remove(reading)
            if reading.request.keep:
                self.rows.keep(reading.row, reading.prompt)
            else:
                self.rows.close(reading.row)
        for reply in [each for each in self._writing if each.request == number]:
            self._leave(reply)

    def fail_all(self, error: Exception) -> list[Event]:
        """End every request and forget every conversation."""
        numbers = {each.number for each in (*self._waiting, *self._reading)}
        numbers |= {reply.request for reply in self._writing}
        self._start_anew()
        return [Failed(number, error) for number in sorted(numbers)]

    def step(self) -> list[Event]:
        """Read what is new, and draw a token for every reply."""
        failures: Failures = {}
        joined = self._admit()
        replies, pieces = list(self._writing), self._pieces()
        work = [Work(reply.request, (reply.row, reply.tokens[-1:])) for reply in replies]
        work += [piece for _, piece in pieces]
        if not work:
            return joined
        hidden = isolating.read(self.model, self.rows, work, failures)
        ends = hidden[: len(replies)]
        for (reading, _), hidden_nd in zip(pieces, hidden[len(replies) :], strict=True):
            if hidden_nd is None or not self._take_in(reading, hidden_nd, failures):
                continue
            begun = self._begin_writing(reading)
            replies += begun
            ends += [hidden_nd[-1:]] * len(begun)
        return [*joined, *self._draw(replies, ends, failures), *self._fail(failures)]

    # Joining

    def _new_reading(self, number: int, request: Request) -> _Reading:
        return _Reading(number, request, request.max_tokens(self.model.config.context))

    def _pages_to_come(self, reading: _Reading) -> int:
        """Most pages that a request may take from now on, for all of its replies."""
        prompt = len(reading.prompt)
        own = self.rows.pages_to_come(reading.done, prompt + reading.max_tokens)
        more = self.rows.pages_to_come(prompt, prompt + reading.max_tokens)
        return own + (reading.samples - 1) * more

    def _promised(self) -> int:
        """Most pages that those who have joined may still take."""
        writing = (
            self.rows.pages_to_come(
                self.rows.read_tokens(reply.row), len(reply.tokens) + reply.tokens_left
            )
            for reply in self._writing
        )
        return sum(map(self._pages_to_come, self._reading)) + sum(writing)

    def _admit(self) -> list[Event]:
        """Requests join in turn, as far as rows and pages go."""
        joined: list[Event] = []
        self._lacks_pages = False
        while self._waiting and self.active + self._waiting[0].samples <= self.most_rows:
            first = self._waiting[0]
            scored = first.request.settings.prompt_log_probs
            pages = self._promised() + self._pages_to_come(first)
            row, done = self.rows.open(
                first.prompt, self._live(), pages, reuse=not scored, salt=first.request.salt
            )
            if row < 0:
                self._lacks_pages = True
                break
            first.row, first.done = row, done
            self._reading.append(self._waiting.popleft())
            joined.append(Joined(first.number, done))
        return joined

    def _live(self) -> list[CachedPrefix]:
        """Rows in use, and what they have read."""
        rows: list[CachedPrefix] = [
            (reply.row, reply.tokens[: self.rows.read_tokens(reply.row)]) for reply in self._writing
        ]
        return rows + [(each.row, each.prompt[: each.done]) for each in self._reading]

    # Reading

    def _pieces(self) -> list[tuple[_Reading, Work]]:
        """What is read of prompts in this step: of each in turn a fair share, in one span."""
        left = TOKENS_BESIDE if self._writing else TOKENS_ALONE
        pieces: list[tuple[_Reading, Work]] = []
        for number, reading in enumerate(self._reading):
            if left <= 0:
                break
            share = max(1, left // (len(self._reading) - number) // PIECE) * PIECE
            start, prompt = reading.done, reading.prompt
            end = (start + share) // PIECE * PIECE
            end = len(prompt) if self._whole else min(len(prompt), end)
            pieces.append((reading, Work(reading.number, (reading.row, list(prompt[start:end])))))
            left -= end - start
        self._reading.rotate(-1)
        return pieces

    def _take_in(self, reading: _Reading, hidden_nd: Tensor, failures: Failures) -> bool:
        """Go on in a prompt; whether its replies may begin."""
        start, settings = reading.done, reading.request.settings
        reading.done += len(hidden_nd)
        if settings.prompt_log_probs:
            part = reading.prompt[start : reading.done + 1]
            top = settings.top_log_probs
            try:
                reading.log_probs += prompt_log_probs(
                    self.model, part, hidden_nd, top, self.vocabulary
                )
            except Exception as error:
                failures[reading.number] = error
                return False
        return reading.done == len(reading.prompt)

    # Writing

    def _begin_writing(self, reading: _Reading) -> list[RunningSequence]:
        self._reading.remove(reading)
        rows = [reading.row]
        rows += [self.rows.fork(reading.row) for _ in range(reading.samples - 1)]
        begun = new_sequences(
            reading.request,
            reading.number,
            rows,
            max_tokens=reading.max_tokens,
            vocabulary=self.vocabulary,
            tokenizer=self.tokenizer,
            prompt_log_probs=tuple(reading.log_probs),
        )
        self._writing += begun
        return begun

    def _draw(
        self, replies: list[RunningSequence], ends: list[Tensor | None], failures: Failures
    ) -> list[Event]:
        """A token for every reply whose last hidden state is there; replies that are done leave."""
        there = [(reply, end) for reply, end in zip(replies, ends, strict=True) if end is not None]
        if not there:
            return []
        logits_bv = self.model.logits(torch.cat([end for _, end in there]))
        events: list[Event] = []
        for reply, token, log_prob in isolating.choose(
            logits_bv, [reply for reply, _ in there], failures, self.model.kernels
        ):
            try:
                event = reply.append(token, log_prob)
            except Exception as error:
                failures[reply.request] = error
                continue
            events.append(event)
            if event.finish is not None:
                self._leave(reply)
        return events

    # Leaving

    def _leave(self, reply: RunningSequence) -> None:
        self._writing.remove(reply)
        if reply.keep:
            self.rows.keep(reply.row, reply.tokens)
        else:
            self.rows.close(reply.row)

    def _fail(self, failures: Failures) -> list[Event]:
        """End what failed; nothing of it is kept."""
        for number in failures:
            for reading in [each for each in self._reading if each.number == number]:
                self._reading.remove(reading)
                self.rows.close(reading.row)
            for reply in [each for each in self._writing if each.request == number]:
                self._writing.remove(reply)
                self.rows.close(reply.row)
        return [Failed(number, error) for number, error in failures.items()]
