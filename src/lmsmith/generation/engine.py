"""Answer many requests at once: they join and leave between steps, and share every step's reading.

A step reads, in one packed list, the prompts of the requests that join and the last token of every
reply that goes on; then it draws one token for each. Requests join as soon as there are rows and
memory for them. What is drawn depends on the request alone: its chance is keyed by its seed, and
the kernels sum in an order that the batch does not change (see docs/generation.md for the limits).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.kv_cache import PAGE, PagedCache, pages_for
from lmsmith.generation.log_probs import TokenLogProb, prompt_log_probs
from lmsmith.generation.requests import Reply, Request, TokenEvent, check_requests
from lmsmith.generation.sequences import RunningSequence, draw_tokens, new_sequences
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import vocabulary_of
from lmsmith.models.decoder import Decoder
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine

__all__ = ["Engine", "InferenceDecoder", "Request", "SamplingSettings", "generate", "stream"]

CACHE_BYTES = 512 << 20
"""Memory of the cache; requests that do not fit wait."""

ROWS_AT_ONCE = 128
"""Most replies written together: more would share weights' reading but read more of the past."""

PROMPT_TOKENS_AT_ONCE = 4096
"""Prompt tokens read in one step: what a joining request makes the others wait for."""


@dataclass
class _Asked:
    """A request that waits, with the pages it may come to need.

    Attributes:
        done: tokens of its prompt that it finds in the cache.
    """

    number: int
    request: Request
    pages: int
    max_tokens: int
    done: int = 0
    rows: list[int] = field(default_factory=list)


class Engine:
    """Requests in, tokens out, a step at a time.

    >>> engine = Engine(decoder)                                        # doctest: +SKIP
    >>> engine.submit(Request([1, 2, 3], SamplingSettings(seed=7)))     # doctest: +SKIP
    >>> while engine.busy:                                              # doctest: +SKIP
    ...     for event in engine.step():
    ...         print(event.token)

    Args:
        decoder: a decoder, made ready here, or one that is.
        machine: gives the precision of matrix products; float32 if None.
        tokenizer: turns tokens into the text of events, which stop texts need, and says which
            may follow (`lmsmith.generation.vocabulary`).
        cache_bytes: memory of the cache.
        rows: most replies written together.
    """

    def __init__(
        self,
        decoder: Decoder | InferenceDecoder,
        *,
        machine: ResolvedMachine | None = None,
        tokenizer: Tokenizer | None = None,
        cache_bytes: int | None = None,
        rows: int | None = None,
    ) -> None:
        self.model = ready(decoder, machine)
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary_of(tokenizer, self.model.config.vocabulary_size)
        self.most_rows = ROWS_AT_ONCE if rows is None else rows
        config = self.model.config
        page_bytes = config.cache_bytes_per_token(self.model.dtype.itemsize) * PAGE
        budget = CACHE_BYTES if cache_bytes is None else cache_bytes
        self._most_pages = max(1, budget // page_bytes)
        self._cache: PagedCache | None = None
        self._waiting: deque[_Asked] = deque()
        self._rows: list[RunningSequence] = []
        self._reserved: dict[int, int] = {}  # request → pages
        self._left: dict[int, int] = {}  # request → replies not finished
        self._next = 0
        self._held: tuple[int, ...] = ()
        self._held_row = -1

    @property
    def busy(self) -> bool:
        """Whether a step would draw a token."""
        return bool(self._rows or self._waiting)

    def submit(self, request: Request) -> int:
        """Let a request wait for the next step; returns its number.

        Raises:
            UserError: it cannot be answered; all that is wrong with it.
        """
        check_requests(self.model.config, [request], self.tokenizer)
        return self._queue(request)

    def submit_all(self, requests: Sequence[Request]) -> list[int]:
        """`submit` each, or none of them if there is anything wrong with one."""
        check_requests(self.model.config, requests, self.tokenizer)
        return [self._queue(request) for request in requests]

    def cache_prefix(self, prefix: Sequence[int]) -> None:
        """Read once what many prompts to come begin with; each is read from there on.

        It takes the place of what was held before; an empty one is let go. Prompts that begin
        otherwise, are no longer, or whose own log-probabilities are asked for are read whole.

        Raises:
            UserError: it fills the model's context, or replies are being written.
        """
        if self.busy:
            raise UserError("replies are being written", "hold a prefix before, or after them")
        if len(prefix) >= self.model.config.context:
            raise UserError(
                f"a prefix of {len(prefix)} tokens fills the context",
                f"the model reads {self.model.config.context}",
            )
        if self._held and self._cache is not None:
            self._cache.close(self._held_row)
        self._held = tuple(prefix)
        if not self._held:
            return
        if self._cache is None:
            pages = min(self._most_pages, 4 * pages_for(len(prefix)))
            self._cache = PagedCache(self.model.config, self.most_rows + 1, pages, self.model.dtype)
        self._held_row = self._cache.open()
        self.model.read([(self._held_row, self._held)], self._cache)

    def cancel(self, number: int) -> None:
        """Stop writing a request's replies; nothing happens if it is done."""
        self._waiting = deque(asked for asked in self._waiting if asked.number != number)
        for row in [row for row in self._rows if row.request == number]:
            self._leave(row)

    def step(self) -> list[TokenEvent]:
        """Read what is new and draw one token for every reply.

        Raises:
            UserError: the model's logits are not finite numbers.
        """
        joining = self._admit()
        going = list(self._rows)
        if not (joining or going):
            return []
        assert self._cache is not None
        spans = [(row.row, row.tokens[-1:]) for row in going]
        spans += [(asked.rows[0], list(asked.request.prompt[asked.done :])) for asked in joining]
        hidden_nd = self.model.read(spans, self._cache)
        ends = torch.tensor([len(tokens) for _, tokens in spans]).cumsum(0) - 1
        logits_bv = self.model.logits(hidden_nd[ends])
        if joining:
            logits_bv = self._fan_out(joining, going, hidden_nd, logits_bv)
        return self._draw(logits_bv)

    def _queue(self, request: Request) -> int:
        number, self._next = self._next, self._next + 1
        settings = request.settings
        max_tokens = request.max_tokens(self.model.config.context)
        own = pages_for(len(request.prompt) + max_tokens)
        # Samples share the prompt's whole pages and have the rest for themselves.
        more = own - len(request.prompt) // PAGE
        pages = own + (settings.samples - 1) * more
        self._waiting.append(_Asked(number, request, pages, max_tokens))
        return number

    def _admit(self) -> list[_Asked]:
        """Requests that join this step: in turn, as far as rows, pages and its tokens go."""
        joining: list[_Asked] = []
        rows, tokens = len(self._rows), 0
        reserved = sum(self._reserved.values())
        while self._waiting:
            asked = self._waiting[0]
            asked.done = self._done(asked.request)
            samples, length = asked.request.settings.samples, len(asked.request.prompt) - asked.done
            full = rows + samples > self.most_rows or reserved + asked.pages > self._most_pages
            # One that would never fit is answered alone.
            if rows and (full or (tokens and tokens + length > PROMPT_TOKENS_AT_ONCE)):
                break
            joining.append(self._waiting.popleft())
            rows, tokens, reserved = rows + samples, tokens + length, reserved + asked.pages
        if joining:
            self._make_room(rows, reserved)
        for asked in joining:
            assert self._cache is not None
            self._reserved[asked.number] = asked.pages
            self._left[asked.number] = asked.request.settings.samples
            cache, done = self._cache, asked.done
            asked.rows = [cache.fork(self._held_row) if done else cache.open()]
        return joining

    def _done(self, request: Request) -> int:
        """Tokens of its prompt that are held."""
        held, prompt = self._held, request.prompt
        if not held or len(prompt) <= len(held) or request.settings.prompt_log_probs:
            return 0
        return len(held) if tuple(prompt[: len(held)]) == held else 0

    def _make_room(self, rows: int, pages: int) -> None:
        """A cache for the first requests; it grows when more come than it was made for."""
        if self._cache is not None and (self._rows or self._held or self._cache.rows >= rows):
            return
        pages += sum(asked.pages for asked in self._waiting)
        rows = max(rows, self.most_rows)
        self._cache = PagedCache(
            self.model.config, rows, min(self._most_pages, pages), self.model.dtype
        )

    def _fan_out(
        self,
        joining: list[_Asked],
        going: list[RunningSequence],
        hidden_nd: Tensor,
        logits_bv: Tensor,
    ) -> Tensor:
        """Make the joining requests' rows, all samples of one with its prompt's logits."""
        assert self._cache is not None
        index = list(range(len(going)))
        at = len(going)
        for place, asked in enumerate(joining, start=len(going)):
            prompt, settings = asked.request.prompt, asked.request.settings
            log_probs: tuple[TokenLogProb, ...] = ()
            if settings.prompt_log_probs:
                hidden_td = hidden_nd[at : at + len(prompt)]
                log_probs = prompt_log_probs(
                    self.model, prompt, hidden_td, settings.top_log_probs, self.vocabulary
                )
            at += len(prompt) - asked.done
            asked.rows += [self._cache.fork(asked.rows[0]) for _ in range(settings.samples - 1)]
            self._rows += new_sequences(
                asked.request,
                asked.number,
                asked.rows,
                max_tokens=asked.max_tokens,
                vocabulary=self.vocabulary,
                tokenizer=self.tokenizer,
                prompt_log_probs=log_probs,
            )
            index += [place] * len(asked.rows)
        return logits_bv[torch.tensor(index)]

    def _draw(self, logits_bv: Tensor) -> list[TokenEvent]:
        """Draw a token for every row; rows that are done leave."""
        rows = list(self._rows)
        drawn = draw_tokens(logits_bv, rows, self.model.kernels)
        events = [row.append(*found) for row, found in zip(rows, drawn, strict=True)]
        for row, event in zip(rows, events, strict=True):
            if event.finish is not None:
                self._leave(row)
        return events

    def _leave(self, row: RunningSequence) -> None:
        assert self._cache is not None
        self._cache.close(row.row)
        self._rows.remove(row)
        self._left[row.request] -= 1
        if not self._left[row.request]:
            del self._left[row.request], self._reserved[row.request]


def answer(
    engine: Engine,
    requests: Sequence[Request],
    on_event: Callable[[TokenEvent], None] | None = None,
) -> list[list[Reply]]:
    """All replies to requests, a list a request.

    Raises:
        UserError: something is wrong with one of them; nothing has been written then.
    """
    numbers = engine.submit_all(requests)
    place = {number: index for index, number in enumerate(numbers)}
    replies = [[Reply() for _ in range(request.settings.samples)] for request in requests]
    while engine.busy:
        for event in engine.step():
            replies[place[event.request]][event.sample].add(event)
            if on_event is not None:
                on_event(event)
    return replies


def generate(
    decoder: Decoder | InferenceDecoder,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    *,
    machine: ResolvedMachine | None = None,
    tokenizer: Tokenizer | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Write a reply to each prompt.

    A reply ends with its stop token, which is part of it, after ``max_new_tokens``, or where
    prompt and reply together fill the context. Chance is drawn from a stream of each row's own,
    keyed by (seed, row): a row's reply does not depend on the other rows.

    Args:
        decoder: its dropout is off here, whatever its mode.
        prompts: token ids.
        settings: how tokens are drawn; one sample a prompt.
        machine: gives the precision of matrix products; float32 if None.
        tokenizer: says which tokens may follow; without it all may, whatever their bytes are.
        on_token: called with (row, token) for every token, in the order they are drawn.

    Returns:
        Token ids, one list for each prompt.

    Raises:
        UserError: settings out of range, a prompt that is empty or leaves no room in the context,
            or a model whose logits are not finite.
    """
    if settings.samples != 1:
        raise UserError(
            f"samples = {settings.samples}: generate writes one reply a prompt",
            "repeat the prompt, or use Engine",
        )
    engine = Engine(decoder, machine=machine, tokenizer=tokenizer)
    requests = [
        Request(prompt, settings, "the prompt" if len(prompts) == 1 else f"prompt {row + 1}", row)
        for row, prompt in enumerate(prompts)
    ]
    # Long prompts first: what is written last is short, and fewer rows are left alone.
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
    check_requests(engine.model.config, requests, tokenizer)
    replies = answer(
        engine,
        [requests[row] for row in order],
        None if on_token is None else lambda event: on_token(order[event.request], event.token),
    )
    by_row = {row: replies[place][0].tokens for place, row in enumerate(order)}
    return [by_row[row] for row in range(len(prompts))]


def stream(
    decoder: Decoder | InferenceDecoder,
    prompt: Sequence[int],
    settings: SamplingSettings,
    *,
    machine: ResolvedMachine | None = None,
    tokenizer: Tokenizer | None = None,
) -> Iterator[int]:
    """The tokens of ``generate(decoder, [prompt], settings)[0]``, each as soon as it is drawn.

    The prompt is checked and read at the first token asked for.
    """
    engine = Engine(decoder, machine=machine, tokenizer=tokenizer, rows=1)
    engine.submit(Request(prompt, settings, "the prompt"))
    while engine.busy:
        for event in engine.step():
            yield event.token


def ready(decoder: Decoder | InferenceDecoder, machine: ResolvedMachine | None) -> InferenceDecoder:
    """The decoder made ready for reading, if it is not."""
    if isinstance(decoder, InferenceDecoder):
        return decoder
    return InferenceDecoder(decoder, machine)
