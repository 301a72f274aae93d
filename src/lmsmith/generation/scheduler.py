"""The scheduler of the command line, PPO, the server and evaluation: continuous batching.

A step is one forward pass over a packed list: the last token of every reply in progress (decode),
and prompts (prefill), whole or in chunks, so that a long prompt does not delay the others. Then one
token is drawn for each reply. A prompt reuses its longest prefix in the cache, and waits while
another request reads a longer one. A likelihood is a request with forced tokens: they are read like
a prompt, and their log-probabilities are its reply. An error ends the request that caused it.

A reply is a function of its request alone, up to the limits of rounding that docs/generation.md
names.

With a drafter, a reply's span is its last token and guesses. Each place's token is drawn from the
model as ever; the next place counts only if the token is the guess.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.generation.fair_share import (
    Prefill,
    Usage,
    WaitingQueue,
    owners_in_turn,
    to_put_back,
)
from lmsmith.generation.inference import InferenceDecoder, Span
from lmsmith.generation.kv_cache import PAGE
from lmsmith.generation.log_probs import drawn_log_probs, forced_log_probs, prompt_log_probs
from lmsmith.generation.prefix_cache import SHORTEST, CachedPrefix, PrefixCache, longest_prefix
from lmsmith.generation.requests import (
    Counted,
    Request,
    RunningSequence,
    TokenEvent,
    TokenLogProb,
    check_requests,
)
from lmsmith.generation.speculative import MAX_GUESSED_REPLIES, Drafter
from lmsmith.generation.vocabulary import vocabulary_of
from lmsmith.tokenizers import Tokenizer

CHUNK = 128
"""Chunks of a prompt end at multiples of this many tokens, or with the prompt."""

PREFILL_BESIDE_DECODE, PREFILL_ALONE = 256, 1024
"""Prompt tokens of one step, about: while replies are in progress, and while none is."""

KEPT_ROWS = 64
"""Maximum number of finished conversations whose keys and values are kept for their next turn."""


@dataclass(frozen=True)
class Admitted:
    """A request waits no longer; ``cached`` tokens of its prompt are in the cache already."""

    request: int
    cached: int


@dataclass(frozen=True)
class Failed:
    """A request is over without all of its replies."""

    request: int
    error: Exception


Event = TokenEvent | Admitted | Counted | Failed


@dataclass
class _Step:
    """Results of one forward pass: errors by request; states after which tokens are drawn, and the
    index of each reply's first; states of forced tokens, and (index of state, reply, token)."""

    failures: dict[int, Exception] = field(default_factory=dict)
    last_states: list[Tensor] = field(default_factory=list)
    drawing: list[tuple[int, RunningSequence]] = field(default_factory=list)
    forced_states: list[Tensor] = field(default_factory=list)
    forced: list[tuple[int, RunningSequence, int]] = field(default_factory=list)

    last_count: int = 0

    def draw_after(self, states_nd: Tensor, replies: Sequence[RunningSequence]) -> None:
        self.drawing += [(self.last_count, reply) for reply in replies]
        self.last_states.append(states_nd)
        self.last_count += states_nd.shape[0]


class Scheduler:
    """Requests in, events out, a step at a time.

    Args:
        model: the weights.
        tokenizer: turns tokens into the text of events, and says which may follow.
        cache_bytes: memory of the cache.
        rows: maximum number of replies in progress.
        kept_rows: maximum number of finished sequences that are kept; 0 reuses nothing.
        prompt_tokens: prompts are read whole, about so many tokens a step; in chunks if None.
        page: tokens of a page of the cache.
        grows: whether the cache allocates memory as it is needed, and a request that would never
            fit is answered alone; else such a request is refused.
        drafter: guesses the next tokens, while few replies are in progress; it changes no reply.
            It is not used with `dynamic` rotary scaling, where a token's state depends on how many
            are read with it.
        guesses: maximum number of tokens guessed at once for a reply.

    Attributes:
        tokens_read: tokens of all forward passes.
        guessed, accepted: guessed tokens that were read, and those of them that were drawn.
        active: replies in progress, and those whose prompts are being read, after the last step;
            any thread may read it.

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
        drafter: Drafter | None = None,
        guesses: int = 4,
    ) -> None:
        self.model, self.tokenizer, self.max_rows = model, tokenizer, rows
        self.vocabulary = vocabulary_of(tokenizer, model.config.vocabulary_size)
        # Frequencies that depend on the length of what is read: a prompt is read whole.
        self._dynamic = model.config.rope_scaling.method == "dynamic"
        self._prompt_tokens = prompt_tokens or (PREFILL_ALONE if self._dynamic else None)
        kept_rows = 0 if self._dynamic else kept_rows
        self._new_cache = partial(PrefixCache, model, cache_bytes, rows, kept_rows, page, grows)
        self._drafter, self._max_guesses = None if self._dynamic else drafter, guesses
        self._next = self.tokens_read = self.guessed = self.accepted = 0
        self._decoding: list[RunningSequence] = []
        self._reset()

    def _reset(self) -> None:
        self.cache = self._new_cache()
        self._waiting = WaitingQueue()
        self._prefilling: deque[Prefill] = deque()
        for reply in self._decoding:
            self._forget_draft(reply)
        self._decoding = []
        self._out_of_pages = False  # for the first that waits
        self.active = 0

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._decoding or self._prefilling or self._waiting)

    has_work = busy
    """Whether `step` has anything to do now."""

    @property
    def will_prefill(self) -> bool:
        """Whether the next step would read of prompts, as far as is known; it takes longer."""
        if self._prefilling or not self._waiting or self._out_of_pages:
            return bool(self._prefilling)
        return self._in_progress() + next(iter(self._waiting)).fewest_rows <= self.max_rows

    def _in_progress(self) -> int:
        """Replies in progress, and those whose prompts are being read."""
        return len(self._decoding) + sum(each.samples for each in self._prefilling)

    def check(self, request: Request) -> None:
        """Raises UserError with all that is wrong with a request; safe in any thread."""
        check_requests(self.model.config, [request], self.tokenizer)
        self._check_adapters([request])
        if self.cache.grows:
            return
        samples = request.settings.samples
        if samples > self.max_rows:
            raise UserError(
                f"samples = {samples}: at most {self.max_rows} replies are written together",
                "ask for fewer",
            )
        if self._max_pages(self._new_prefill(-1, request)) > self.cache.pages:
            raise UserError(
                f"{request.name or 'the request'}: prompt and replies may come to more tokens than "
                f"the cache's {self.cache.tokens:,}",
                "ask for fewer or shorter replies, or give the cache more memory",
            )

    def submit(self, request: Request) -> int:
        """Queue a request for the next step; returns its number.

        Raises:
            UserError: it cannot be answered.
        """
        self.check(request)
        return self._queue(request)

    def submit_all(self, requests: Sequence[Request]) -> list[int]:
        """`submit` each to a cache that grows, or none if there is anything wrong with one."""
        check_requests(self.model.config, requests, self.tokenizer)
        self._check_adapters(requests)
        return [self._queue(request) for request in requests]

    def _check_adapters(self, requests: Sequence[Request]) -> None:
        known = self.model.adapters
        unknown = next((each for each in requests if each.adapter not in ("", *known)), None)
        if unknown is not None:
            there = f"there is: {', '.join(known)}" if known else "the model has none"
            name = unknown.name or "the request"
            raise UserError(f"{name}: no adapter is called {unknown.adapter!r}", there)

    def _queue(self, request: Request) -> int:
        number, self._next = self._next, self._next + 1
        self._waiting.append(self._new_prefill(number, request))
        return number

    def cache_prefix(self, prefix: Sequence[int]) -> None:
        """Read once what many prompts to come begin with; it replaces the one before.

        Raises:
            UserError: it fills the model's context, or requests are in progress.
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
        self.cache.reserve(4 * self.cache.max_pages(0, len(prefix)))
        row, _ = self.cache.open(prefix, (), 0, reuse=False, alone=True)
        self._forward([(row, prefix)], [""])
        self.cache.pin(row, prefix)

    def forget(self) -> None:
        """Keep nothing of finished requests."""
        while self.cache.forget_oldest():
            pass

    def cancel(self, number: int) -> None:
        """End a request; what was read of it is kept for the next one that begins so."""
        self._out_of_pages = False
        self._end(number, keep=True)
        self.active = self._in_progress()

    def fail_all(self, error: Exception) -> list[Event]:
        """End every request and forget every conversation."""
        numbers = {each.number for each in (*self._waiting, *self._prefilling)}
        numbers |= {reply.request for reply in self._decoding}
        self._reset()
        return [Failed(number, error) for number in sorted(numbers)]

    def step(self) -> list[Event]:
        """Admit requests, run one forward pass, and draw the next tokens of every reply."""
        events = self._step()
        self.active = self._in_progress()
        return events

    def _step(self) -> list[Event]:
        admitted = self._admit()
        self.active = self._in_progress()
        replies, chunks, step = list(self._decoding), self._chunks(), _Step()
        self._guess(replies)
        work: list[tuple[int, Span, str]] = [
            (each.request, (each.row, [each.tokens[-1], *each.guesses]), each.source.adapter)
            for each in replies
        ]
        work += [(prefill.number, span, prefill.request.adapter) for prefill, span in chunks]
        if not work:
            return admitted
        hidden = self._forward_isolated(work, step)
        for reply, states_nd in zip(replies, hidden, strict=False):
            if states_nd is not None:
                step.draw_after(states_nd, [reply])
        for (prefill, _), hidden_nd in zip(chunks, hidden[len(replies) :], strict=True):
            if hidden_nd is not None:
                self._prefill(prefill, hidden_nd, step)
        scored = self._score(step)
        return [*admitted, *scored, *self._decode(step), *self._fail(step)]

    # Admission

    def _new_prefill(self, number: int, request: Request) -> Prefill:
        """One forced reply is read with its prompt."""
        forced = request.forced[0][:-1] if len(request.forced) == 1 else ()
        max_tokens = max(map(len, request.forced), default=0)
        max_tokens = max_tokens or request.max_tokens(self.model.config.context)
        return Prefill(number, request, [*request.prompt, *forced], max_tokens)

    def _max_pages(self, prefill: Prefill) -> int:
        """Maximum number of pages that a request may still take, for all of its replies."""
        prompt = len(prefill.request.prompt)
        own = self.cache.max_pages(prefill.done, prompt + prefill.max_tokens)
        more = self.cache.max_pages(prompt, prompt + prefill.max_tokens)
        return own + (prefill.samples - 1) * more

    def _promised(self) -> int:
        """Maximum number of pages that the admitted requests may still take."""
        decoding = (
            self.cache.max_pages(
                self.cache.kv.lengths[reply.row], len(reply.tokens) + reply.tokens_left
            )
            for reply in self._decoding
        )
        return sum(map(self._max_pages, self._prefilling)) + sum(decoding)

    def _admit(self) -> list[Event]:
        """Admit requests, as far as rows and pages go: owners take turns by what they use."""
        admitted: list[Event] = []
        self._out_of_pages = False
        if self._waiting and not self._in_progress():
            self.cache.reserve(sum(map(self._max_pages, self._waiting)))
        for first in self._waiting.in_turn(self._usage):
            if not self._has_rows(first):
                break
            scored = first.request.settings.prompt_log_probs and not first.goes_on
            live = () if scored or not self.cache.reuses else self._live()
            if live and self._awaits_prefix(first, live):
                continue
            if not self._open(first, live, reuse=not scored):
                self._out_of_pages = True
                break
            self._waiting.remove(first)
            self._prefilling.append(first)
            if not first.goes_on:
                admitted.append(Admitted(first.number, first.done))
        return admitted

    def _has_rows(self, first: Prefill) -> bool:
        """Whether there are rows for a request, perhaps after others' replies have made room."""
        while (active := self._in_progress()) and active + first.fewest_rows > self.max_rows:
            if not self._make_room(first):
                return False
        return True

    def _open(self, first: Prefill, live: Sequence[CachedPrefix], *, reuse: bool) -> bool:
        """Open a row of the cache for a request; False if there are no pages for it."""
        if first.may_split:
            first.granted = min(first.samples, max(1, self.max_rows - self._in_progress()))
        while first.row < 0:
            first.row, first.done = self.cache.open(
                first.prompt,
                live,
                self._promised() + self._max_pages(first),
                reuse=reuse,
                key=first.request.cache_key,
                alone=not self._in_progress(),
            )
            if first.row >= 0:
                return True
            if first.granted > 1:
                first.granted = 1
            elif not self._make_room(first):
                break
            live = self._live() if live else ()
        first.granted, first.done = 0, 0
        return False

    def _make_room(self, first: Prefill) -> bool:
        """Return a reply of a person above the fair share to the queue, if there is one.

        What it has read is kept as long as nobody needs the pages. With `dynamic` rotary scaling
        none makes room: a token's state depends on how many are read with it.
        """
        if self._dynamic:
            return False
        reply = to_put_back(
            first, self._decoding, self._waiting.keys, self._usage(), self._most_pages
        )
        if reply is None:
            return False
        self._finish(reply, keep=self.cache.reuses)
        self._put_back(reply)
        return True

    def _put_back(self, reply: RunningSequence) -> None:
        request, most = reply.source, len(reply.tokens) + reply.tokens_left
        prefill = Prefill(reply.request, request, list(reply.tokens), most - len(request.prompt))
        prefill.sequences = [reply]
        self._waiting.put_back(prefill)

    def _most_pages(self, reply: RunningSequence) -> int:
        return self.cache.max_pages(0, len(reply.tokens) + reply.tokens_left)

    def _usage(self) -> Usage:
        """Rows and pages in progress, by owner and group."""
        usage = Usage(self.max_rows, max(1, self.cache.pages))
        for reply in self._decoding:
            usage.add(reply.key, 1, self._most_pages(reply))
        for prefill in self._prefilling:
            usage.add(prefill.key, prefill.samples, self._max_pages(prefill))
        return usage

    def _live(self) -> list[CachedPrefix]:
        """Rows in use, and what they have read."""
        rows: list[CachedPrefix] = [
            (reply.row, reply.tokens, self.cache.kv.lengths[reply.row]) for reply in self._decoding
        ]
        return rows + [(each.row, each.tokens, each.done) for each in self._prefilling]

    def _awaits_prefix(self, waiting: Prefill, live: Sequence[CachedPrefix]) -> bool:
        """Whether a prefill in progress will hold more of the prompt than any row holds now."""
        prompt, key = waiting.prompt, waiting.request.cache_key
        coming = longest_prefix(
            [
                (each.row, each.tokens, len(each.tokens))
                for each in self._prefilling
                if each.request.cache_key == key and each.done < len(each.tokens)
            ],
            prompt,
            whole_rows=self.cache.banded,
        )
        if coming is None:
            return False
        found = self.cache.longest(prompt, live, key)
        return coming[1] >= SHORTEST + (0 if found is None else found[1])

    # Prefill

    def _chunks(self) -> list[tuple[Prefill, Span]]:
        """The prompt tokens of this step: of each prompt in turn a fair share, in one span."""
        chunks: list[tuple[Prefill, Span]] = []
        prefilling = owners_in_turn(self._prefilling, lambda each: each.request.salt)
        if self._prompt_tokens is not None:
            size = 0
            for prefill in prefilling:
                size += len(prefill.tokens) - prefill.done
                if chunks and size > self._prompt_tokens:
                    break
                chunks.append((prefill, (prefill.row, prefill.tokens[prefill.done :])))
            return chunks
        left = PREFILL_BESIDE_DECODE if self._decoding else PREFILL_ALONE
        for number, prefill in enumerate(prefilling):
            if left <= 0:
                break
            share = max(1, left // (len(prefilling) - number) // CHUNK) * CHUNK
            start, tokens = prefill.done, prefill.tokens
            end = min(len(tokens), (start + share) // CHUNK * CHUNK)
            chunks.append((prefill, (prefill.row, tokens[start:end])))
            left -= end - start
        self._prefilling.rotate(-1)
        return chunks

    def _forward(self, spans: Sequence[Span], adapters: Sequence[str]) -> Tensor:
        self.tokens_read += sum(len(tokens) for _, tokens in spans)
        return self.model.read(spans, self.cache.kv, adapters)

    def _forward_isolated(
        self, work: Sequence[tuple[int, Span, str]], step: _Step
    ) -> list[Tensor | None]:
        """Hidden states (tokens, width) of each request's span, read by its adapter; None where it
        failed.

        If the batch fails, its spans are read again one by one to find the request at fault.
        """
        before = {row: self.cache.kv.lengths[row] for _, (row, _), _ in work}
        try:
            spans = [span for _, span, _ in work]
            hidden_nd = self._forward(spans, [adapter for _, _, adapter in work])
            return list(torch.split(hidden_nd, [len(tokens) for _, tokens in spans]))
        except Exception as error:
            for row, length in before.items():
                self.cache.kv.truncate(row, length)
            if len(work) == 1:
                step.failures[work[0][0]] = error
                return [None]
        return [found for each in work for found in self._forward_isolated([each], step)]

    def _prefill(self, prefill: Prefill, hidden_nd: Tensor, step: _Step) -> None:
        """Take the states of a prompt's next chunk, or of forced tokens."""
        request, start = prefill.request, prefill.done
        settings, last = request.settings, len(prefill.prompt) - 1
        prefill.done += len(hidden_nd)
        if settings.prompt_log_probs and start <= last and not prefill.goes_on:
            part = request.prompt[start : prefill.done + 1]
            try:
                prefill.log_probs += prompt_log_probs(
                    self.model, part, hidden_nd, settings.top_log_probs, self.vocabulary
                )
            except Exception as error:
                step.failures[prefill.number] = error
                return
        if prefill.done <= last:
            return
        if not prefill.sequences:
            row, most, log_probs = prefill.row, prefill.max_tokens, tuple(prefill.log_probs)
            vocabulary, tokenizer, number = self.vocabulary, self.tokenizer, prefill.number
            prefill.sequences = [
                RunningSequence(
                    request, number, sample, row, most, vocabulary, tokenizer, log_probs
                )
                for sample in range(settings.samples)
            ]
        if not request.forced:
            self._start_decoding(prefill, hidden_nd[-1:], step)
            return
        first = max(start, last)
        offset = sum(map(len, step.forced_states)) - first
        step.forced_states.append(hidden_nd[first - start :])
        step.forced += [
            (offset + place, reply, reply.forced[place - last])
            for place in range(first, prefill.done)
            for reply in prefill.sequences
        ]
        if prefill.done == len(prefill.tokens):
            self._finish_forced(prefill)

    def _start_decoding(self, prefill: Prefill, last_state: Tensor, step: _Step) -> None:
        self._prefilling.remove(prefill)
        granted = prefill.granted or len(prefill.sequences)
        begun, later = prefill.sequences[:granted], prefill.sequences[granted:]
        begun[0].row, begun[0].since_admitted = prefill.row, 0
        for reply in begun[1:]:
            reply.row = self.cache.fork(prefill.row)
        step.draw_after(last_state, begun)
        self._decoding += begun
        for reply in reversed(later):  # samples for which there is no row yet
            self._put_back(reply)

    def _finish_forced(self, prefill: Prefill) -> None:
        """End a prefill; several forced replies are read from its end on, each by itself."""
        self._prefilling.remove(prefill)
        several = prefill.sequences if len(prefill.sequences) > 1 else []
        for reply in reversed([each for each in several if len(each.forced) > 1]):
            part = replace(
                prefill,
                request=replace(prefill.request, keep=False),
                tokens=[*prefill.tokens, *reply.forced[:-1]],
                row=self.cache.fork(prefill.row),
                max_tokens=len(reply.forced),
                sequences=[reply],
            )
            self._prefilling.appendleft(part)
        self.cache.release(prefill.row, prefill.tokens, keep=prefill.request.keeps)

    # Decode

    def _guess(self, replies: Sequence[RunningSequence]) -> None:
        """Set the guesses of replies, if they are few; a wrong guess makes the next ones fewer."""
        if self._drafter is None:
            return
        few = replies if len(replies) <= MAX_GUESSED_REPLIES else []
        most = self._max_guesses
        counts = [min(reply.accepted + 1, reply.tokens_left - 1, most) for reply in few]
        for reply, guesses in zip(few, self._drafter.guess(few, counts), strict=True):
            reply.guesses = guesses
            reply.accepted = 0 if guesses else reply.accepted
            self.guessed += len(guesses)

    def _forget_draft(self, reply: RunningSequence) -> None:
        if self._drafter is not None:
            self._drafter.forget(reply)

    def _score(self, step: _Step) -> list[Event]:
        """The forced tokens, with their log-probabilities."""
        forced = [each for each in step.forced if each[1].request not in step.failures]
        if not forced:
            return []
        found = forced_log_probs(
            self.model,
            torch.cat(step.forced_states),
            [(state, token) for state, _, token in forced],
            [reply.settings for _, reply, _ in forced],
            self.vocabulary,
        )
        events: list[Event] = []
        for (_, reply, token), log_prob in zip(forced, found, strict=True):
            if not reply.finished:
                wanted = log_prob if reply.settings.wants_log_probs else None
                events += self._append(reply, token, wanted, step)
        return events

    def _decode(self, step: _Step) -> list[Event]:
        """A token for every reply, and more while they are as guessed; finished replies leave."""
        if not step.drawing:
            return []
        logits_bv = self.model.logits(torch.cat(step.last_states))
        events: list[Event] = []
        drawing = step.drawing
        while drawing:
            places = {reply: place for place, reply in drawing}
            drawn, drawing = self._draw(logits_bv, drawing, step), []
            for reply, token, log_prob in drawn:
                events += self._append(reply, token, log_prob, step)
                if reply.guesses and reply.guesses.pop(0) == token:
                    reply.accepted, self.accepted = reply.accepted + 1, self.accepted + 1
                    if not reply.finished:
                        drawing.append((places[reply] + 1, reply))
                        continue
                reply.guesses = []
                if self.cache.kv.lengths[reply.row] >= len(reply.tokens):
                    self.cache.kv.truncate(reply.row, len(reply.tokens) - 1)
                if reply.finished:
                    self._finish(reply)
        return events

    def _append(
        self, reply: RunningSequence, token: int, log_prob: TokenLogProb | None, step: _Step
    ) -> list[Event]:
        """The event of a reply's next token; none if it fails."""
        try:
            return [reply.append(token, log_prob)]
        except Exception as error:
            step.failures[reply.request] = error
            return []

    def _draw(
        self, logits_bv: Tensor, drawing: Sequence[tuple[int, RunningSequence]], step: _Step
    ) -> list[tuple[RunningSequence, int, TokenLogProb | None]]:
        """The next token of each reply, from its row of the logits; one by one if they fail."""
        drawing = [each for each in drawing if each[1].request not in step.failures]
        places, replies = [place for place, _ in drawing], [reply for _, reply in drawing]
        if not replies:
            return []
        if places != list(range(len(logits_bv))):
            logits_bv = logits_bv[torch.tensor(places)]
        try:
            tokens = self.model.draw(logits_bv, replies)
            log_probs = drawn_log_probs(logits_bv, replies, tokens)
            return list(zip(replies, tokens, log_probs, strict=True))
        except Exception as error:
            if len(replies) == 1:
                step.failures[replies[0].request] = error
                return []
        return [
            found
            for place, reply in enumerate(replies)
            for found in self._draw(logits_bv[place : place + 1], [(0, reply)], step)
        ]

    # Finish

    def _finish(self, reply: RunningSequence, *, keep: bool = True) -> None:
        self._decoding.remove(reply)
        self._forget_draft(reply)
        self.cache.release(reply.row, reply.tokens, keep=keep and reply.keep)

    def _end(self, number: int, *, keep: bool) -> None:
        self._waiting.remove_request(number)
        for prefill in [each for each in self._prefilling if each.number == number]:
            self._prefilling.remove(prefill)
            self.cache.release(prefill.row, prefill.tokens, keep=keep and prefill.request.keep)
        for reply in [each for each in self._decoding if each.request == number]:
            self._finish(reply, keep=keep)

    def _fail(self, step: _Step) -> list[Event]:
        """End the requests that failed; nothing of them is kept."""
        for number in step.failures:
            self._end(number, keep=False)
        return [Failed(number, error) for number, error in step.failures.items()]
