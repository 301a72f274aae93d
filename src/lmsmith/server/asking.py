"""From the body of a request to what the engine is asked, and what is refused on the way."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.generation.requests import Request
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.vocabulary import Vocabulary
from lmsmith.prompts import encode_prompt
from lmsmith.prompts.prompt import TextPrompt, encode_text_prompts
from lmsmith.server.errors import ApiError, refused, unsupported
from lmsmith.server.limits import Limits
from lmsmith.server.protocol import ChatBody, ChatMessage, CompletionBody, SamplingBody
from lmsmith.server.served import ServedModel

MOST_STOPS = 4
TEXT_PARTS = ("text", "input_text", "output_text")


def refuse_unsupported(body: ChatBody) -> None:
    """Raises ApiError for what would change the answer and is not done here."""
    for param in ("tools", "functions"):
        if getattr(body, param):
            raise unsupported(param, f"{param} are not supported; leave them out")
    if body.tool_choice not in (None, "none", "auto") or body.function_call not in (None, "none"):
        raise unsupported("tool_choice", "tools are not supported; leave tool_choice out")
    wanted = body.response_format
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if kind not in (None, "text"):
        raise unsupported("response_format", "only the response_format {'type': 'text'} is there")
    if body.audio is not None or (body.modalities or ["text"]) != ["text"]:
        raise unsupported("modalities", "only text comes out; leave modalities and audio out")


def plain_messages(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Messages as lmsmith has them: text alone, a system message only first, turns in turn.

    Messages in a row by one role are joined by an empty line; ``developer`` is the system.

    Raises:
        ApiError: a role, or a part of a content, that is not supported.
    """
    found: list[dict[str, str]] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if message.tool_calls or message.function_call or message.role in ("tool", "function"):
            raise unsupported(where, f"{where}: tools are not supported; leave such messages out")
        role = "system" if message.role == "developer" else message.role
        if role not in ("system", "user", "assistant"):
            problem = f"{where}: role {message.role!r}; expected system, user or assistant"
            raise ApiError(400, problem, param=f"{where}.role", code="invalid_value")
        content = _text(message.content, f"{where}.content")
        if found and found[-1]["role"] == role:
            found[-1]["content"] += f"\n\n{content}"
        elif role == "system" and found:
            problem = f"{where}: a system message after the conversation has begun; put it first"
            raise ApiError(400, problem, param=f"{where}.role", code="invalid_value")
        else:
            found.append({"role": role, "content": content})
    return found


def _text(content: str | list[Any] | None, where: str) -> str:
    if content is None:
        problem = f"{where}: null; expected a text, which may be empty"
        raise ApiError(400, problem, param=where, code="invalid_value")
    if not isinstance(content, list):
        return content
    parts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if kind in TEXT_PARTS else None
        if isinstance(part, str):
            text = part
        if not isinstance(text, str):
            problem = f"{where}[{number}]: only parts of type text are supported, not {kind!r}"
            raise unsupported(f"{where}[{number}]", problem)
        parts.append(text)
    return "".join(parts)


def chat_tokens(
    model: ServedModel,
    messages: Sequence[dict[str, str]],
    *,
    add_special_tokens: bool | None = None,
) -> list[int]:
    """The conversation as a prompt; nothing of it is left out.

    Args:
        add_special_tokens: put what begins texts before it, beside what the template writes.

    Raises:
        ApiError: it cannot be written by the model's template, or is too long.
    """
    try:
        tokens = encode_prompt(model.tokenizer, messages).tokens
    except UserError as error:
        raise refused(error, "messages") from error
    if add_special_tokens:
        tokens = [*model.tokenizer.text_start, *tokens]
    check_length(model, len(tokens), "messages")
    return tokens


def check_length(model: ServedModel, count: int, param: str) -> None:
    """Raises ApiError if a prompt leaves no room for a token."""
    if count >= model.context:
        raise ApiError(
            400,
            f"this model's maximum context length is {model.context} tokens, and the {param} "
            f"resulted in {count}, which leaves no room for a reply; shorten the {param}",
            param=param,
            code="context_length_exceeded",
        )


def completion_prompts(model: ServedModel, body: CompletionBody) -> list[TextPrompt]:
    """Each prompt as tokens; a text's begin as `lmsmith.prompts.prompt` says.

    Raises:
        ApiError: one is empty, too long, or of tokens that the model does not have.
    """
    given = body.prompt if body.prompt is not None else ""
    prompts: list[Any] = [given] if isinstance(given, str) else given or [""]
    if isinstance(prompts[0], int):
        prompts = [prompts]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(
        encode_text_prompts(
            model.tokenizer, texts, add_special_tokens=body.add_special_tokens is not False
        )
    )
    found = [
        next(encoded) if isinstance(prompt, str) else TextPrompt(list(prompt), 0)
        for prompt in prompts
    ]
    known = model.tokenizer.vocabulary_size
    for each in found:
        tokens = each.tokens
        check_length(model, len(tokens), "prompt")
        if not tokens or max(tokens) >= known:
            problem = "a prompt is empty" if not tokens else f"a token id is {known} or more"
            raise ApiError(400, f"{problem}; encode texts by /tokenize", param="prompt")
    return found


def sampling(
    body: SamplingBody,
    model: ServedModel,
    limits: Limits,
    *,
    longest: int | None,
    log_probs: int | None,
    prompt_log_probs: bool = False,
) -> SamplingSettings:
    """How the replies are drawn.

    Args:
        body: what is asked.
        model: whose replies end at its tokenizer's stop tokens.
        limits: of ``n`` and of a reply's length.
        longest: a reply, in tokens; None is as long as the context allows.
        log_probs: how many alternatives are given with each token; None gives no probabilities.
        prompt_log_probs: whether those of the prompt are given.

    Raises:
        ApiError: one of them is out of range.
    """
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > MOST_STOPS:
        raise ApiError(400, f"stop: at most {MOST_STOPS} texts, not {len(stops)}", param="stop")
    samples = body.n or 1
    if samples > limits.samples:
        raise ApiError(400, f"n = {samples}: at most {limits.samples} here", param="n")
    most = limits.tokens or model.context
    return SamplingSettings(
        max_new_tokens=max(1, most if longest is None else min(longest, most)),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(0, body.top_k or 0),  # −1 means all in other servers
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-9),
        min_p=body.min_p or 0.0,
        stop_tokens=() if body.ignore_eos else model.tokenizer.stop_tokens,
        seed=secrets.randbelow(2**63) if body.seed is None else body.seed % 2**64,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_biases(body.logit_bias or {}, model.scheduler.vocabulary),
        stop=tuple(stop for stop in stops if stop),
        samples=samples,
        log_probs=log_probs is not None,
        top_log_probs=log_probs or 0,
        prompt_log_probs=prompt_log_probs,
    )


def _biases(given: dict[str, float], vocabulary: Vocabulary) -> dict[int, float]:
    try:
        found = {int(token): bias for token, bias in given.items()}
    except ValueError:
        problem = "logit_bias: the keys are token ids, as /tokenize gives them"
        raise ApiError(400, problem, param="logit_bias") from None
    if unknown := vocabulary.unknown(found):
        problem = f"logit_bias: {unknown[:3]}: the keys are {vocabulary.described}"
        raise ApiError(400, problem, param="logit_bias")
    return found


def requests_for(
    prompts: Sequence[list[int]], settings: SamplingSettings, *, is_message: bool = False
) -> list[Request]:
    """One for each prompt, each with chance of its own."""
    return [
        Request(
            prompt,
            settings,
            f"prompt {n + 1}" if len(prompts) > 1 else "the prompt",
            n << 16,
            is_message=is_message,
        )
        for n, prompt in enumerate(prompts)
    ]
