"""Bodies of requests, as OpenAI's API has them. Unknown fields are ignored; null is left out."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat


def _no_truth_value(given: object) -> object:
    if isinstance(given, bool):
        raise ValueError(f"a number is expected, not {str(given).lower()}")
    return given


Whole = Annotated[int, BeforeValidator(_no_truth_value)]
Real = Annotated[FiniteFloat, BeforeValidator(_no_truth_value)]
Tokens = list[Annotated[Whole, Field(ge=0, lt=2**31)]]
Number = Annotated[Real, Field(ge=-100, le=100)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class StreamOptions(_Body):
    include_usage: bool | None = None


class SamplingBody(_Body):
    """What chat and completions have in common; from ``top_k`` on, not OpenAI's."""

    model: str | None = None
    n: Whole | None = Field(None, ge=1)
    max_tokens: Whole | None = Field(None, ge=0)
    temperature: Real | None = Field(None, ge=0, le=100)
    top_p: Real | None = Field(None, ge=0, le=1)
    stop: str | list[str] | None = None
    seed: Whole | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: Whole | None = Field(None, ge=-1)
    min_p: Real | None = None
    repetition_penalty: Real | None = Field(None, ge=0.01, le=100)
    ignore_eos: bool | None = None
    add_special_tokens: bool | None = None


class ChatMessage(_Body):
    role: str
    content: str | list[Any] | None = None
    tool_calls: Any = None
    function_call: Any = None


class ChatBody(SamplingBody):
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: Whole | None = Field(None, ge=1)
    max_completion_tokens: Whole | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None


class CompletionBody(SamplingBody):
    prompt: str | list[str] | Tokens | list[Tokens] | None = None
    logprobs: Whole | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: Whole | None = None
    suffix: str | None = None


class TokenizeBody(_Body):
    """Either a text or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TaskBody(_Body):
    """Either one text or several."""

    model: str | None = None
    input: str | None = None
    inputs: list[str] | None = Field(None, min_length=1)


class DetokenizeBody(_Body):
    model: str | None = None
    tokens: Tokens
