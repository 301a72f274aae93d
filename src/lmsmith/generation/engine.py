"""A synchronous interface to the scheduler: requests in, replies out, in the caller's thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lmsmith.catalogue.remote import RemoteModel
from lmsmith.core.errors import UserError
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.remote import RemoteScheduler
from lmsmith.generation.requests import Reply, Request, TokenEvent, check_requests
from lmsmith.generation.scheduler import Failed, Scheduler
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.speculative import Drafter
from lmsmith.generation.vllm import VLLMModel, VLLMScheduler
from lmsmith.models.decoder import Decoder
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine

__all__ = ["Engine", "InferenceDecoder", "Request", "SamplingSettings", "generate", "stream"]

CACHE_BYTES = 512 << 20
"""Memory of the cache."""

ROWS_AT_ONCE = 128
"""Maximum number of replies in progress: more share the weights but read more of the cache."""

REMOTE_AT_ONCE = 32
"""Maximum number of requests to another server at a time."""

PROMPT_TOKENS_AT_ONCE = 4096
"""Prompt tokens of one step, which delay the replies in progress."""


class Engine:
    """A `Scheduler` that reads prompts whole, lets its cache grow, and raises what fails.

    It keeps nothing of finished requests but the prefix of `cache_prefix`.

    >>> engine = Engine(decoder)                                        # doctest: +SKIP
    >>> engine.submit(Request([1, 2, 3], SamplingSettings(seed=7)))     # doctest: +SKIP
    >>> while engine.busy:                                              # doctest: +SKIP
    ...     for event in engine.step():
    ...         print(event.token)

    Args:
        decoder: the model; behind another server, it takes fewer settings and gives no tokens; on
            vLLM's it gives tokens too.
        machine: gives the precision of matrix products; float32 if None.
        tokenizer: turns tokens into the text of events, which stop texts need, and says which
            may follow (`lmsmith.generation.vocabulary`).
        cache_bytes, rows: memory of the cache, and maximum number of replies in progress;
            `CACHE_BYTES` and `ROWS_AT_ONCE` if None.
        drafter: guesses tokens, which changes the speed and no reply.
    """

    def __init__(
        self,
        decoder: Decoder | InferenceDecoder | RemoteModel | VLLMModel,
        *,
        machine: ResolvedMachine | None = None,
        tokenizer: Tokenizer | None = None,
        cache_bytes: int | None = None,
        rows: int | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.scheduler: Scheduler | RemoteScheduler
        if isinstance(decoder, RemoteModel):
            self.scheduler = RemoteScheduler(decoder, rows=rows or REMOTE_AT_ONCE, waits=True)
        elif isinstance(decoder, VLLMModel):
            self.scheduler = VLLMScheduler(decoder, tokenizer, waits=True)
        else:
            self.scheduler = Scheduler(
                ready(decoder, machine),
                tokenizer,
                cache_bytes=CACHE_BYTES if cache_bytes is None else cache_bytes,
                rows=ROWS_AT_ONCE if rows is None else rows,
                kept_rows=0,
                prompt_tokens=PROMPT_TOKENS_AT_ONCE,
                grows=True,
                drafter=drafter,
            )
        self.submit, self.submit_all = self.scheduler.submit, self.scheduler.submit_all
        self.cancel, self.cache_prefix = self.scheduler.cancel, self.scheduler.cache_prefix

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return self.scheduler.busy

    def step(self) -> list[TokenEvent]:
        """Read prompts, and draw a token for every reply in progress.

        Raises:
            UserError: the model's logits are not finite numbers, or its server fails.
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
        UserError: one of them cannot be answered; nothing has been written then.
    """
    numbers = engine.submit_all(requests)
    replies = {
        number: [Reply() for _ in range(request.settings.samples)]
        for number, request in zip(numbers, requests, strict=True)
    }
    while engine.busy:
        for event in engine.step():
            replies[event.request][event.sample].add(event)
            if on_event is not None:
                on_event(event)
    return list(replies.values())


def generate(
    decoder: Decoder | InferenceDecoder | VLLMModel,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    *,
    machine: ResolvedMachine | None = None,
    tokenizer: Tokenizer | None = None,
    on_token: Callable[[int, int], None] | None = None,
    numbers: Sequence[int] | None = None,
) -> list[list[int]]:
    """Write a reply to each prompt.

    A reply ends with its stop token, which is part of it, after ``max_new_tokens``, or where
    prompt and reply fill the context. Each row has its own random numbers, keyed by (seed, row):
    its reply does not depend on the other rows.

    Args:
        decoder: the model; without dropout.
        prompts: token ids.
        settings: one sample a prompt.
        machine: gives the precision of matrix products; float32 if None.
        tokenizer: says which tokens may follow; without it all may, whatever their bytes are.
        on_token: called with (row, token) for every token, in the order they are drawn.
        numbers: of the rows, which key their random numbers; 0, 1, … if None. So a part of the
            prompts gets the replies that it has among all.

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
    model = decoder if isinstance(decoder, VLLMModel) else ready(decoder, machine)
    engine = Engine(model, tokenizer=tokenizer)
    requests = [
        Request(
            prompt,
            settings,
            "the prompt" if len(prompts) == 1 else f"prompt {row + 1}",
            row if numbers is None else numbers[row],
        )
        for row, prompt in enumerate(prompts)
    ]
    # Long prompts first: the last replies are short, and fewer rows are left alone.
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    check_requests(model.config, requests, tokenizer)  # in the caller's order
    replies = answer(
        engine,
        [requests[row] for row in order],
        None if on_token is None else lambda event: on_token(order[event.request], event.token),
    )
    by_row = {row: reply.tokens for row, (reply,) in zip(order, replies, strict=True)}
    return [by_row[row] for row in range(len(prompts))]


def stream(
    decoder: Decoder | InferenceDecoder,
    prompt: Sequence[int],
    settings: SamplingSettings,
    *,
    tokenizer: Tokenizer | None = None,
    drafter: Drafter | None = None,
    adapter: str = "",
) -> Iterator[int]:
    """The tokens of ``generate(decoder, [prompt], settings)[0]``, each as soon as it is drawn.

    The prompt is checked and read with the first token.
    """
    engine = Engine(decoder, tokenizer=tokenizer, rows=1, drafter=drafter)
    engine.submit(Request(prompt, settings, "the prompt", adapter=adapter))
    while engine.busy:
        for event in engine.step():
            yield event.token


def ready(
    decoder: Decoder | InferenceDecoder, machine: ResolvedMachine | None = None
) -> InferenceDecoder:
    """An `InferenceDecoder` of the decoder, if it is none."""
    return decoder if isinstance(decoder, InferenceDecoder) else InferenceDecoder(decoder, machine)
