"""Request bodies, checked and parsed into requests for the engine."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat

from lmsmith.core.errors import UserError
from lmsmith.generation.requests import Request
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import Vocabulary
from lmsmith.prompts import encode_prompt
from lmsmith.prompts.chat import TextPrompt, encode_text_prompts
from lmsmith.server.errors import ApiError, bad_request, unsupported
from lmsmith.server.models import ServedModel, served_model
from lmsmith.server.turns import TextThreads

MAX_STOPS, MAX_STOP_CHARACTERS = 4, 1000
MAX_BIASES = 1024
MAX_MESSAGES = 4096
"""Most messages of a conversation, and most parts of a message."""

MAX_TOKEN_IDS = 600_000
MAX_LOG_PROBS = 2_000_000
"""Most log-probabilities of a response, alternatives included; each takes some hundred bytes."""

CHARACTERS_PER_TOKEN, SHORTEST_LIMIT = 16, 65_536
"""A text of more characters than 16 for each token of the context, and this many, cannot fit."""

BATCH_CHARACTERS = 262_144
"""Characters of texts that are tokenized together."""

TEXT_PARTS = ("text", "input_text", "output_text")
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's


@dataclass(frozen=True)
class Limits:
    """The server's limits."""

    streams: int = 64  # replies generated together, of each model
    queue: int = 128  # requests that wait; beyond it, 429
    seconds: float = 600.0  # from request to last token
    body_bytes: int = 4 << 20
    samples: int = 16  # replies to one prompt (``n``)
    prompts: int = 256  # of one completion request
    tokens: int = 0  # of a reply; 0 is the context
    drain_seconds: float = 30.0  # that running requests have to finish at shutdown
    unread_seconds: float = 300.0  # of generating an answer in a conversation without a reader

    def out_of_range(self) -> list[tuple[str, float, float]]:
        """Limit, its value and the least that it can be, of values out of range."""
        least = {"seconds": 0.001, "tokens": 0, "drain_seconds": 0, "unread_seconds": 0}
        return [
            (name, value, least.get(name, 1))
            for name, value in vars(self).items()
            if not value >= least.get(name, 1)
        ]


@dataclass(frozen=True, kw_only=True)
class ParsedRequest:
    """A request for the engine.

    Attributes:
        id: sent back as ``x-request-id``.
        model: generates the replies.
        prompts: one generation request each; they succeed or fail together.
        cache_salt: the visitor's `lmsmith.server.auth.Visitor.cache_salt`, which the engine gives
            to every prompt: only requests of the same salt share the prefix cache.
        prefixes: for each prompt, how many of its first tokens the client did not write.
    """

    id: str
    model: ServedModel
    prompts: Sequence[Request]
    cache_salt: str
    prefixes: Sequence[int] = ()


def new_id(kind: str) -> str:
    """A request's id, such as ``chatcmpl-3f…``."""
    return f"{kind}-{secrets.token_hex(12)}"


# Bodies, as OpenAI's API has them. Unknown fields are ignored; null is the default.


def _no_bool(given: object) -> object:
    if isinstance(given, bool):
        raise ValueError(f"a number is expected, not {str(given).lower()}")
    return given


def _few_biases(given: object) -> object:
    if isinstance(given, dict) and len(given) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} tokens may have a bias, not {len(given)}")
    return given


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[FiniteFloat, BeforeValidator(_no_bool)]
Penalty = Annotated[Float, Field(ge=-100, le=100)]
TokenIds = Annotated[  # strict, which needs no function of Python's for each
    list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]],
    Field(max_length=MAX_TOKEN_IDS, fail_fast=True),
]
Texts = Annotated[list[str], Field(max_length=MAX_MESSAGES, fail_fast=True)]


class Body(BaseModel):
    model: str | None = Field(None, max_length=1000)


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class SamplingBody(Body):
    """Fields of chat and completions; from ``top_k`` on, not OpenAI's."""

    n: Int | None = Field(None, ge=1)
    max_tokens: Int | None = Field(None, ge=0)
    temperature: Float | None = Field(None, ge=0, le=100)
    top_p: Float | None = Field(None, ge=0, le=1)
    stop: str | Texts | None = None
    seed: Int | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Penalty], BeforeValidator(_few_biases)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: Int | None = Field(None, ge=-1)
    min_p: Float | None = None
    repetition_penalty: Float | None = Field(None, ge=0.01, le=100)
    ignore_eos: bool | None = None
    add_special_tokens: bool | None = None


class ChatMessage(BaseModel):
    role: str = Field(max_length=100)
    content: str | Annotated[list[Any], Field(max_length=MAX_MESSAGES)] | None = None
    tool_calls: Any = None
    function_call: Any = None


Messages = Annotated[list[ChatMessage], Field(max_length=MAX_MESSAGES, fail_fast=True)]


class ChatBody(SamplingBody):
    messages: Messages = Field(min_length=1)
    max_tokens: Int | None = Field(None, ge=1)
    max_completion_tokens: Int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Int | None = Field(None, ge=0, le=20)
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None


class CompletionBody(SamplingBody):
    prompt: (
        str
        | Texts
        | TokenIds
        | Annotated[list[TokenIds], Field(max_length=MAX_MESSAGES, fail_fast=True)]
        | None
    ) = None
    logprobs: Int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: Int | None = None
    suffix: str | None = None


# Parsing


async def parse_chat(
    body: ChatBody,
    models: Mapping[str, ServedModel],
    limits: Limits,
    cache_salt: str,
    texts: TextThreads,
) -> ParsedRequest:
    """A chat request; raises ApiError (400 or 404) for a field that is unsupported or wrong, or a
    prompt that does not fit."""
    _refuse_unsupported(body)
    model = served_model(models, body.model)
    messages = plain_messages(body.messages)
    count = check_characters(model, [each["content"] for each in messages], "messages")
    work = partial(chat_tokens, model, messages, body.add_special_tokens)
    tokens = await texts.run(cache_salt, count, work)
    longest = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    log_probs = (body.top_logprobs or 0) if body.logprobs or body.top_logprobs else None
    settings = sampling_settings(body, model, limits, max_new_tokens=longest, log_probs=log_probs)
    prompts = [message_request(tokens, settings)]
    _check_log_probs(prompts, model)
    return ParsedRequest(id=new_id("chatcmpl"), model=model, prompts=prompts, cache_salt=cache_salt)


async def parse_completion(
    body: CompletionBody,
    models: Mapping[str, ServedModel],
    limits: Limits,
    cache_salt: str,
    texts: TextThreads,
) -> ParsedRequest:
    """A completion request, of one prompt or several; raises ApiError as `parse_chat`."""
    if body.suffix:
        raise unsupported("suffix", "suffix is not supported; leave it out")
    if body.best_of not in (None, body.n or 1):
        raise unsupported("best_of", "best_of is not supported; ask for n and choose")
    model = served_model(models, body.model)
    given = _given_prompts(body)
    if len(given) > limits.prompts:
        problem = f"prompt: at most {limits.prompts} at once, not {len(given)}"
        raise ApiError(400, problem, param="prompt")
    text = [each for each in given if isinstance(each, str)]
    for each in text:
        check_characters(model, [each], "prompt")
    work = partial(_completion_prompts, model, given, body.add_special_tokens is not False)
    prompts = await texts.run(cache_salt, sum(map(len, text)), work)
    longest = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    if longest == 0 and not body.echo:
        raise ApiError(400, "max_tokens = 0 needs echo", param="max_tokens")
    settings = sampling_settings(
        body,
        model,
        limits,
        max_new_tokens=longest,
        log_probs=body.logprobs,
        prompt_log_probs=bool(body.echo) and body.logprobs is not None,
    )
    requests = [
        # Each prompt draws from random numbers of its own.
        Request(each.tokens, settings, f"prompt {n + 1}" if prompts[1:] else "the prompt", n << 16)
        for n, each in enumerate(prompts)
    ]
    _check_log_probs(requests, model)
    return ParsedRequest(
        id=new_id("cmpl"),
        model=model,
        prompts=requests,
        cache_salt=cache_salt,
        prefixes=[each.start for each in prompts],
    )


def message_request(tokens: list[int], settings: SamplingSettings) -> Request:
    """A conversation whose reply is a message."""
    return Request(tokens, settings, "the prompt", is_message=True)


def _refuse_unsupported(body: ChatBody) -> None:
    """Raises ApiError for unsupported fields that would change the reply."""
    for param in ("tools", "functions"):
        if getattr(body, param):
            raise unsupported(param, f"{param} are not supported; leave them out")
    if body.tool_choice not in (None, "none", "auto") or body.function_call not in (None, "none"):
        raise unsupported("tool_choice", "tools are not supported; leave tool_choice out")
    wanted = body.response_format
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if kind not in (None, "text"):
        raise unsupported("response_format", "response_format: only {'type': 'text'} is supported")
    if body.audio is not None or (body.modalities or ["text"]) != ["text"]:
        raise unsupported("modalities", "only text is supported; leave modalities and audio out")


def plain_messages(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Messages of text alone, a system message only first, roles in turn.

    Consecutive messages of one role are joined by an empty line; ``developer`` is the system.
    Raises ApiError for an unsupported role or part of a content.
    """
    found: list[tuple[str, list[str]]] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if message.tool_calls or message.function_call or message.role in ("tool", "function"):
            raise unsupported(where, f"{where}: tools are not supported; leave such messages out")
        role = "system" if message.role == "developer" else message.role
        if role not in ("system", "user", "assistant"):
            problem = f"{where}: role {message.role!r}; expected system, user or assistant"
            raise ApiError(400, problem, param=f"{where}.role", code="invalid_value")
        content = _text(message.content, f"{where}.content")
        if found and found[-1][0] == role:
            found[-1][1].append(content)
        elif role == "system" and found:
            problem = f"{where}: a system message after the conversation has begun; put it first"
            raise ApiError(400, problem, param=f"{where}.role", code="invalid_value")
        else:
            found.append((role, [content]))
    return [{"role": role, "content": "\n\n".join(parts)} for role, parts in found]


def _text(content: str | list[Any] | None, where: str) -> str:
    if content is None:
        problem = f"{where}: null; expected a text, which may be empty"
        raise ApiError(400, problem, param=where, code="invalid_value")
    if not isinstance(content, list):
        return content
    parts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if kind in TEXT_PARTS else part
        if not isinstance(text, str):
            shown = f"{kind[:100]!r}" if isinstance(kind, str) else "one without a type"
            problem = f"{where}[{number}]: only parts of type text are supported, not {shown}"
            raise unsupported(f"{where}[{number}]", problem)
        parts.append(text)
    return "".join(parts)


def chat_tokens(
    model: ServedModel, messages: Sequence[dict[str, str]], add_special_tokens: bool | None = None
) -> list[int]:
    """`plain_messages` as a prompt, by the template of the model's tokenizer.

    Args:
        add_special_tokens: put the tokens that begin texts before those of the template.

    Raises:
        ApiError: the template refuses it, or it is too long.
    """
    try:
        tokens = encode_prompt(model.tokenizer, messages).tokens
    except UserError as error:
        raise bad_request(error, "messages") from error
    if add_special_tokens:
        tokens = [*model.tokenizer.text_start, *tokens]
    _check_length(model, len(tokens), "messages")
    return tokens


def _check_length(model: ServedModel, count: int, param: str) -> None:
    """Raises ApiError if a prompt leaves no room for a token."""
    if count >= model.context and not model.is_remote:  # whose server counts its own tokens
        raise ApiError(
            400,
            f"this model's maximum context length is {model.context} tokens, and the {param} "
            f"resulted in {count}, which leaves no room for a reply; shorten the {param}",
            param=param,
            code="context_length_exceeded",
        )


def most_characters(model: ServedModel) -> int:
    """Characters beyond which a prompt cannot fit, and is not tokenized."""
    return max(SHORTEST_LIMIT, CHARACTERS_PER_TOKEN * model.context)


def check_characters(model: ServedModel, texts: Sequence[str], param: str) -> int:
    """The number of characters of a prompt; raises ApiError if they are too many to be read."""
    count, most = sum(map(len, texts)), most_characters(model)
    if count > most:
        raise ApiError(
            400,
            f"this model's maximum context length is {model.context} tokens, and the {param} "
            f"resulted in {count:,} characters, of which {most:,} are read; shorten the {param}",
            param=param,
            code="context_length_exceeded",
        )
    return count


def _check_log_probs(requests: Sequence[Request], model: ServedModel) -> None:
    """Raises ApiError if the log-probabilities of the replies would fill the memory."""
    count = 0
    for each in requests:
        settings = each.settings
        most = each.max_tokens(model.context) * settings.samples if settings.wants_log_probs else 0
        prompt = len(each.prompt) * settings.samples if settings.prompt_log_probs else 0
        count += (most + prompt) * (1 + settings.top_log_probs)
    if count > MAX_LOG_PROBS:
        problem = f"logprobs: up to {count:,} of them; {MAX_LOG_PROBS:,} are returned at most"
        raise ApiError(
            400, f"{problem}; ask for fewer or shorter replies, or set max_tokens", param="logprobs"
        )


def _given_prompts(body: CompletionBody) -> list[Any]:
    """Texts, or lists of token ids."""
    given = body.prompt if body.prompt is not None else ""
    prompts: list[Any] = [given] if isinstance(given, str) else given or [""]
    return [prompts] if isinstance(prompts[0], int) else prompts


def _completion_prompts(
    model: ServedModel, prompts: Sequence[Any], special: bool
) -> list[TextPrompt]:
    """Each prompt as tokens."""
    if isinstance(prompts[0], str):
        found = list[TextPrompt]()
        for part in _in_batches(prompts):
            found += encode_text_prompts(model.tokenizer, part, add_special_tokens=special)
    else:
        model.local("its tokens; send the prompt as a text")
        found = [TextPrompt(prompt, 0) for prompt in prompts]
    known = model.tokenizer.vocabulary_size
    for each in found:
        _check_length(model, len(each.tokens), "prompt")
        if not each.tokens or max(each.tokens) >= known:
            problem = f"a token id is {known} or more" if each.tokens else "a prompt is empty"
            raise ApiError(400, f"{problem}; encode texts by /tokenize", param="prompt")
    return found


def _in_batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts of about `BATCH_CHARACTERS` together: a tokenizer takes much memory for each."""
    batch: list[str] = []
    for text in texts:
        if batch and sum(map(len, batch)) + len(text) > BATCH_CHARACTERS:
            yield batch
            batch = []
        batch.append(text)
    yield batch


def sampling_settings(
    body: SamplingBody,
    model: ServedModel,
    limits: Limits,
    *,
    max_new_tokens: int | None,
    log_probs: int | None = None,
    prompt_log_probs: bool = False,
) -> SamplingSettings:
    """The sampling settings of the replies.

    Args:
        body: the request's.
        model: replies end at its tokenizer's stop tokens.
        limits: of ``n`` and of a reply's length.
        max_new_tokens: of a reply; None is as many as the context allows.
        log_probs: number of alternatives with each token; None gives no log-probabilities.
        prompt_log_probs: whether the prompt's are given.

    Raises:
        ApiError: a setting is out of range.
    """
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > MAX_STOPS:
        raise ApiError(400, f"stop: at most {MAX_STOPS} texts, not {len(stops)}", param="stop")
    if any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        problem = f"stop: a text may have {MAX_STOP_CHARACTERS} characters at most"
        raise ApiError(400, problem, param="stop")
    samples = body.n or 1
    if samples > limits.samples:
        raise ApiError(400, f"n = {samples}: at most {limits.samples} here", param="n")
    most = limits.tokens or model.context
    return SamplingSettings(
        max_new_tokens=max(1, most if max_new_tokens is None else min(max_new_tokens, most)),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(0, body.top_k or 0),  # −1 means all in other servers
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-9),
        min_p=body.min_p or 0.0,
        stop_tokens=() if body.ignore_eos else model.tokenizer.stop_tokens,
        seed=secrets.randbelow(2**63) if body.seed is None else body.seed % 2**64,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(body.logit_bias or {}, model.scheduler.vocabulary),
        stop=tuple(stop for stop in stops if stop),
        samples=samples,
        log_probs=log_probs is not None,
        top_log_probs=log_probs or 0,
        prompt_log_probs=prompt_log_probs,
    )


def _logit_bias(given: dict[str, float], vocabulary: Vocabulary) -> dict[int, float]:
    try:
        found = {int(token): bias for token, bias in given.items()}
    except ValueError:
        problem = "logit_bias: the keys are token ids, as /tokenize gives them"
        raise ApiError(400, problem, param="logit_bias") from None
    if unknown := vocabulary.unknown(found):
        problem = f"logit_bias: {unknown[:3]}: the keys are {vocabulary.described}"
        raise ApiError(400, problem, param="logit_bias")
    return found
