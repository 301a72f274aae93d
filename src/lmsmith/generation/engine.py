"""The synchronous front of the scheduler: requests in, replies out, in the caller's own thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lmsmith.core.errors import UserError
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.requests import Reply, Request, TokenEvent, check_requests
from lmsmith.generation.scheduler import Failed, Scheduler
from lmsmith.generation.settings import SamplingSettings
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


class Engine:
    """Requests in, tokens out, a step at a time: a `Scheduler` that reads prompts whole.

    It refuses only what no model could answer, keeps nothing of finished requests but a prefix that
    it is told to cache, and raises what fails.

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
        self.scheduler = Scheduler(
            ready(decoder, machine),
            tokenizer,
            cache_bytes=CACHE_BYTES if cache_bytes is None else cache_bytes,
            rows=ROWS_AT_ONCE if rows is None else rows,
            kept_rows=0,
            prompt_tokens=PROMPT_TOKENS_AT_ONCE,
            grows=True,
        )
        self.model = self.scheduler.model
        self.submit, self.submit_all = self.scheduler.submit, self.scheduler.submit_all
        self.cancel, self.cache_prefix = self.scheduler.cancel, self.scheduler.cache_prefix

    @property
    def busy(self) -> bool:
        """Whether a step would draw a token."""
        return self.scheduler.busy

    def step(self) -> list[TokenEvent]:
        """Read what is new and draw one token for every reply.

        Raises:
            UserError: the model's logits are not finite numbers.
        """
        events = self.scheduler.step()
        for event in events:
            if isinstance(event, Failed):
                raise event.error
        return [event for event in events if isinstance(event, TokenEvent)]


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
