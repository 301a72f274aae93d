"""The one scheduler: it answers requests that come and go, for the command line, PPO, the server
and evaluation.

A step reads one packed list: the last token of every reply under way, and prompts that are still to
be read, whole or in pieces, so that a long prompt does not keep the others waiting. Then it draws
one token for each reply. A prompt that begins as an earlier one did is read from there on only, and
waits while another one reads what both begin with. A likelihood is a request whose tokens are
given: they are read like a prompt, and their log-probabilities are its reply. What fails, fails for
the request that caused it; the others go on.

What is drawn is a function of the request alone, up to the limits of rounding that
docs/generation.md names: its chance is keyed by its seed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.generation.inference import InferenceDecoder, Span
from lmsmith.generation.kv_cache import PAGE
from lmsmith.generation.log_probs import TokenLogProb, given_log_probs, prompt_log_probs
from lmsmith.generation.prefix_cache import SHORTEST, CachedPrefix, PrefixCache, longest_prefix
from lmsmith.generation.requests import Request, TokenEvent, check_requests
from lmsmith.generation.sequences import RunningSequence, draw_tokens, new_sequences
from lmsmith.generation.vocabulary import vocabulary_of
from lmsmith.tokenizers import Tokenizer

PIECE = 128
"""Prompts are read in pieces that end at multiples of this many tokens, or with the prompt."""

TOKENS_BESIDE, TOKENS_ALONE = 256, 1024
"""Prompt tokens read in one step, about: while replies are under way, and while none is."""

KEPT_ROWS = 64
"""Most finished conversations whose keys and values are kept for their next turn."""

Failures = dict[int, Exception]
"""Request → why it cannot go on."""


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


@dataclass(eq=False)
class _Reading:
    """Tokens of a request that wait or are being read: its prompt, and what it is given to write.

    Several given replies to one prompt are readings of their own once the prompt is read.

    Attributes:
        tokens: to be read.
        max_tokens: that each reply may get.
        row: of the cache, once it has joined.
        done: tokens that the row holds.
        sequences: the replies, once the prompt is read, where they are given.
    """

    number: int
    request: Request
    tokens: list[int]
    max_tokens: int
    row: int = -1
    done: int = 0
    log_probs: list[TokenLogProb] = field(default_factory=list)
    sequences: list[RunningSequence] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return len(self.sequences) or self.request.settings.samples


@dataclass
class _Step:
    """What comes of one step's reading.

    Attributes:
        ends: states after which tokens are drawn.
        drawing: the replies, with the place of their state among the ends.
        states: those after which given tokens stand, of each span.
        given: the replies, with the place of their state among the states.
    """

    failures: Failures = field(default_factory=dict)
    ends: list[Tensor] = field(default_factory=list)
    drawing: list[tuple[int, RunningSequence]] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    given: list[tuple[int, RunningSequence, int]] = field(default_factory=list)


class Scheduler:
    """Requests in, events out, a step at a time.

    Args:
        model: the weights.
        tokenizer: turns tokens into the text of events, and says which may follow.
        cache_bytes: memory of the cache.
        rows: most replies written together.
        kept_rows: most finished sequences that are kept; 0 reuses nothing.
        prompt_tokens: prompts are read whole, about so many tokens of them in a step; in pieces if
            None.
        page: tokens of a page of the cache.
        grows: whether the cache takes its memory as it is needed, and a request that would never
            fit is answered alone; else that is refused.

    Attributes:
        tokens_read: since it was made.

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
        prompt_tokens: int | None = None,
        page: int = PAGE,
        grows: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.most_rows = model, tokenizer, rows
        self.vocabulary = vocabulary_of(tokenizer, model.config.vocabulary_size)
        # Frequencies that depend on the length of what is read: a prompt is read whole.
        self._dynamic = model.config.rope_scaling.method == "dynamic"
        self._prompt_tokens = TOKENS_ALONE if self._dynamic else None
        self._prompt_tokens = prompt_tokens or self._prompt_tokens
        self._cache_bytes, self._kept_rows = cache_bytes, 0 if self._dynamic else kept_rows
        self._page, self._grows = page, grows
        self._next = self.tokens_read = 0
        self._start_anew()

    def _start_anew(self) -> None:
        self.cache = PrefixCache(
            self.model,
            self._cache_bytes,
            self.most_rows,
            self._kept_rows,
            page=self._page,
            grows=self._grows,
        )
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
        if self._grows:
            return
        samples = request.settings.samples
        if samples > self.most_rows:
            raise UserError(
                f"samples = {samples}: at most {self.most_rows} replies are written together",
                "ask for fewer",
            )
        if self._pages_to_come(self._new_reading(-1, request)) > self.cache.pages:
            raise UserError(
                f"{request.name or 'the request'}: prompt and replies may come to more tokens than "
                f"the cache's {self.cache.tokens:,}",
                "ask for fewer or shorter replies, or give the cache more memory",
            )

    def submit(self, request: Request) -> int:
        """Let a request wait for the next step; returns its number.

        Raises:
            UserError: it cannot be answered.
        """
        self.check(request)
        return self._queue(request)

    def submit_all(self, requests: Sequence[Request]) -> list[int]:
        """`submit` each to a cache that grows, or none if there is anything wrong with one."""
        check_requests(self.model.config, requests, self.tokenizer)
        return [self._queue(request) for request in requests]

    def _queue(self, request: Request) -> int:
        number, self._next = self._next, self._next + 1
        self._waiting.append(self._new_reading(number, request))
        return number

    def cache_prefix(self, prefix: Sequence[int]) -> None:
        """Read once what many prompts to come begin with, in place of the one before, if any.

        Raises:
            UserError: it fills the model's context, or requests are under way.
        """
        if self.busy:
            raise UserError("replies are being written", "cache a prefix before, or after them")
        if len(prefix) >= self.model.config.context:
            raise UserError(
                f"a prefix of {len(prefix)} tokens fills the context",
                f"the model reads {self.model.config.context}",
            )
        self.cache.unpin()
        if not prefix or self._dynamic:
            return
        self.cache.reserve(4 * self.cache.pages_to_come(0, len(prefix)))
        row, _ = self.cache.open(prefix, (), 0, reuse=False, alone=True)
        self._read([(row, prefix)])
        self.cache.pin(row, prefix)

    def forget(self) -> None:
        """Keep nothing of finished requests."""
        while self.cache.forget_oldest():
            pass

    def cancel(self, number: int) -> None:
        """End a request; what was read of it is kept for the next one that begins so."""
        self._lacks_pages = False
        self._waiting = deque(each for each in self._waiting if each.number != number)
        for reading in [each for each in self._reading if each.number == number]:
            self._reading.remove(reading)
            self._give_back(reading.row, reading.tokens, reading.request.keep)
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
        joined = self._admit()
        replies, pieces, step = list(self._writing), self._pieces(), _Step()
        work: list[tuple[int, Span]] = [
            (reply.request, (reply.row, reply.tokens[-1:])) for reply in replies
        ]
        work += [(reading.number, span) for reading, span in pieces]
        if not work:
            return joined
        hidden = self._read_apart(work, step.failures)
        for reply, end in zip(replies, hidden, strict=False):
            if end is not None:
                step.drawing.append((len(step.ends), reply))
                step.ends.append(end)
        for (reading, _), hidden_nd in zip(pieces, hidden[len(replies) :], strict=True):
            if hidden_nd is not None:
                self._take_in(reading, hidden_nd, step)
        scored = self._score(step)
        return [*joined, *scored, *self._draw(step), *self._fail(step.failures)]

    # Joining

    def _new_reading(self, number: int, request: Request) -> _Reading:
        """Where one reply alone is given, it is read with its prompt."""
        given = request.forced[0][:-1] if len(request.forced) == 1 else ()
        max_tokens = max(map(len, request.forced), default=0)
        max_tokens = max_tokens or request.max_tokens(self.model.config.context)
        return _Reading(number, request, [*request.prompt, *given], max_tokens)

    def _pages_to_come(self, reading: _Reading) -> int:
        """Most pages that a request may take from now on, for all of its replies."""
        prompt = len(reading.request.prompt)
        own = self.cache.pages_to_come(reading.done, prompt + reading.max_tokens)
        more = self.cache.pages_to_come(prompt, prompt + reading.max_tokens)
        return own + (reading.samples - 1) * more

    def _promised(self) -> int:
        """Most pages that those who have joined may still take."""
        writing = (
            self.cache.pages_to_come(
                self.cache.read_tokens(reply.row), len(reply.tokens) + reply.tokens_left
            )
            for reply in self._writing
        )
        return sum(map(self._pages_to_come, self._reading)) + sum(writing)

    def _admit(self) -> list[Event]:
        """Requests join in turn, as far as rows and pages go."""
        joined: list[Event] = []
        self._lacks_pages = False
        if not self._waiting:
            return joined
        promised, active = self._promised(), self.active
        if not active:
            self.cache.reserve(sum(map(self._pages_to_come, self._waiting)))
        for first in list(self._waiting):
            if active and active + first.samples > self.most_rows:
                break
            scored, salt = first.request.settings.prompt_log_probs, first.request.salt
            live = () if scored or not self.cache.reuses else self._live()
            if live and self._awaits_prefix(first, live):
                continue
            row, done = self.cache.open(
                first.request.prompt,
                live,
                promised + self._pages_to_come(first),
                reuse=not scored,
                salt=salt,
                alone=not active,
            )
            if row < 0:
                self._lacks_pages = True
                break
            first.row, first.done = row, done
            self._waiting.remove(first)
            self._reading.append(first)
            active, promised = active + first.samples, promised + self._pages_to_come(first)
            joined.append(Joined(first.number, done))
        return joined

    def _live(self) -> list[CachedPrefix]:
        """Rows in use, and what they have read."""
        rows: list[CachedPrefix] = [
            (reply.row, reply.tokens, self.cache.read_tokens(reply.row)) for reply in self._writing
        ]
        return rows + [(each.row, each.tokens, each.done) for each in self._reading]

    def _awaits_prefix(self, reading: _Reading, live: Sequence[CachedPrefix]) -> bool:
        """Whether somebody is about to have read more of the prompt than anybody has."""
        prompt, salt = reading.request.prompt, reading.request.salt
        others = [
            (each.row, each.tokens, len(each.tokens))
            for each in self._reading
            if each.request.salt == salt and each.done < len(each.tokens)
        ]
        coming = longest_prefix(others, prompt, whole_rows=self.cache.banded)
        if coming is None:
            return False
        found = self.cache.longest(prompt, live, salt)
        return coming[1] >= SHORTEST + (0 if found is None else found[1])

    # Reading

    def _pieces(self) -> list[tuple[_Reading, Span]]:
        """What is read of prompts in this step: of each in turn a fair share, in one span."""
        pieces: list[tuple[_Reading, Span]] = []
        if self._prompt_tokens is not None:
            size = 0
            for reading in self._reading:
                size += len(reading.tokens) - reading.done
                if pieces and size > self._prompt_tokens:
                    break
                pieces.append((reading, (reading.row, reading.tokens[reading.done :])))
            return pieces
        left = TOKENS_BESIDE if self._writing else TOKENS_ALONE
        for number, reading in enumerate(self._reading):
            if left <= 0:
                break
            share = max(1, left // (len(self._reading) - number) // PIECE) * PIECE
            start, tokens = reading.done, reading.tokens
            end = min(len(tokens), (start + share) // PIECE * PIECE)
            pieces.append((reading, (reading.row, tokens[start:end])))
            left -= end - start
        self._reading.rotate(-1)
        return pieces

    def _read(self, spans: Sequence[Span]) -> Tensor:
        self.tokens_read += sum(len(tokens) for _, tokens in spans)
        return self.model.read(spans, self.cache.kv)

    def _read_apart(
        self, work: Sequence[tuple[int, Span]], failures: Failures
    ) -> list[Tensor | None]:
        """Hidden states (tokens, width) of each request's span; None where it failed.

        What fails together is read again one by one, so that one request's failure is its own.
        """
        before = {row: self.cache.read_tokens(row) for _, (row, _) in work}
        try:
            hidden_nd = self._read([span for _, span in work])
            return list(torch.split(hidden_nd, [len(tokens) for _, (_, tokens) in work]))
        except Exception as error:
            for row, length in before.items():
                self.cache.kv.truncate(row, length)
            if len(work) == 1:
                failures[work[0][0]] = error
                return [None]
        return [found for each in work for found in self._read_apart([each], failures)]

    def _take_in(self, reading: _Reading, hidden_nd: Tensor, step: _Step) -> None:
        """Go on in a prompt or in given tokens."""
        request, start = reading.request, reading.done
        settings, last = request.settings, len(request.prompt) - 1
        reading.done += len(hidden_nd)
        if settings.prompt_log_probs and start <= last:
            part = request.prompt[start : reading.done + 1]
            try:
                reading.log_probs += prompt_log_probs(
                    self.model, part, hidden_nd, settings.top_log_probs, self.vocabulary
                )
            except Exception as error:
                step.failures[reading.number] = error
                return
        if reading.done <= last:
            return
        if not reading.sequences:
            reading.sequences = new_sequences(
                request,
                reading.number,
                [reading.row] * settings.samples,
                max_tokens=reading.max_tokens,
                vocabulary=self.vocabulary,
                tokenizer=self.tokenizer,
                prompt_log_probs=tuple(reading.log_probs),
            )
        if not request.forced:
            self._begin_writing(reading, hidden_nd[-1:], step)
            return
        first = max(start, last)
        at = sum(map(len, step.states))
        step.states.append(hidden_nd[first - start :])
        step.given += [
            (at + place - first, reply, reply.forced[place - last])
            for place in range(first, reading.done)
            for reply in reading.sequences
        ]
        if reading.done == len(reading.tokens):
            self._end_given(reading)

    def _begin_writing(self, reading: _Reading, end: Tensor, step: _Step) -> None:
        self._reading.remove(reading)
        for reply in reading.sequences[1:]:
            reply.row = self.cache.fork(reading.row)
        step.drawing += [(len(step.ends), reply) for reply in reading.sequences]
        step.ends.append(end)
        self._writing += reading.sequences

    def _end_given(self, reading: _Reading) -> None:
        """All is read; where several replies are given, each goes on from the prompt's end."""
        self._reading.remove(reading)
        several = reading.sequences if len(reading.sequences) > 1 else []
        for reply in reversed([each for each in several if len(each.forced) > 1]):
            part = replace(
                reading,
                request=replace(reading.request, keep=False),
                tokens=[*reading.tokens, *reply.forced[:-1]],
                row=self.cache.fork(reading.row),
                max_tokens=len(reply.forced),
                sequences=[reply],
            )
            self._reading.appendleft(part)
        self._give_back(reading.row, reading.tokens, reading.request.keeps)

    # Writing

    def _score(self, step: _Step) -> list[Event]:
        """The given tokens, with their log-probabilities."""
        given = [each for each in step.given if each[1].request not in step.failures]
        if not given:
            return []
        found = given_log_probs(
            self.model,
            torch.cat(step.states),
            [(state, token) for state, _, token in given],
            [reply.settings for _, reply, _ in given],
            self.vocabulary,
        )
        events: list[Event] = []
        for (_, reply, token), log_prob in zip(given, found, strict=True):
            if not reply.finished:
                wanted = log_prob if reply.settings.wants_log_probs else None
                self._go_on(reply, token, wanted, events, step.failures)
        return events

    def _draw(self, step: _Step) -> list[Event]:
        """A token for every reply; replies that are done leave."""
        if not step.drawing:
            return []
        logits_bv = self.model.logits(torch.cat(step.ends))
        events: list[Event] = []
        for reply, token, log_prob in self._choose(logits_bv, step.drawing, step.failures):
            if self._go_on(reply, token, log_prob, events, step.failures) and reply.finished:
                self._leave(reply)
        return events

    def _go_on(
        self,
        reply: RunningSequence,
        token: int,
        log_prob: TokenLogProb | None,
        events: list[Event],
        failures: Failures,
    ) -> bool:
        """A reply's next token; False if it fails."""
        try:
            events.append(reply.append(token, log_prob))
        except Exception as error:
            failures[reply.request] = error
            return False
        return True

    def _choose(
        self,
        logits_bv: Tensor,
        drawing: Sequence[tuple[int, RunningSequence]],
        failures: Failures,
    ) -> list[tuple[RunningSequence, int, TokenLogProb | None]]:
        """The next token of each reply, by the row of logits it goes by; apart if they fail."""
        drawing = [each for each in drawing if each[1].request not in failures]
        places = [place for place, _ in drawing]
        if places != list(range(len(logits_bv))):
            logits_bv = logits_bv[torch.tensor(places, dtype=torch.long)]
        replies = [reply for _, reply in drawing]
        if not replies:
            return []
        try:
            drawn = draw_tokens(logits_bv, replies, self.model.kernels)
            return [(reply, *found) for reply, found in zip(replies, drawn, strict=True)]
        except Exception as error:
            if len(replies) == 1:
                failures[replies[0].request] = error
                return []
        return [
            found
            for place, reply in enumerate(replies)
            for found in self._choose(logits_bv[place : place + 1], [(0, reply)], failures)
        ]

    # Leaving

    def _leave(self, reply: RunningSequence) -> None:
        self._writing.remove(reply)
        self._give_back(reply.row, reply.tokens, reply.keep)

    def _give_back(self, row: int, tokens: Sequence[int], keep: bool) -> None:
        if keep:
            self.cache.keep(row, tokens)
        else:
            self.cache.close(row)

    def _fail(self, failures: Failures) -> list[Event]:
        """End what failed; nothing of it is kept."""
        for number in failures:
            for reading in [each for each in self._reading if each.number == number]:
                self._reading.remove(reading)
                self.cache.close(reading.row)
            for reply in [each for each in self._writing if each.request == number]:
                self._writing.remove(reply)
                self.cache.close(reply.row)
        return [Failed(number, error) for number, error in failures.items()]
