"""Bodies of requests, as OpenAI's API has them. Unknown fields are ignored; null is left out."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Tokens = list[Annotated[int, Field(ge=0, lt=2**31)]]
Number = Annotated[FiniteFloat, Field(ge=-100, le=100)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class StreamOptions(_Body):
    include_usage: bool | None = None


class SamplingBody(_Body):
    """What chat and completions have in common; the last five are not OpenAI's."""

    model: str | None = None
    n: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=0)
    temperature: FiniteFloat | None = Field(None, ge=0, le=100)
    top_p: FiniteFloat | None = Field(None, ge=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: FiniteFloat | None = None
    repetition_penalty: FiniteFloat | None = Field(None, ge=0.01, le=100)
    ignore_eos: bool | None = None


class ChatMessage(_Body):
    role: str
    content: str | list[Any] | None = None
    tool_calls: Any = None
    function_call: Any = None


class ChatBody(SamplingBody):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None


class CompletionBody(SamplingBody):
    prompt: str | list[str] | Tokens | list[Tokens] | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class TokenizeBody(_Body):
    """Either a text or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class TaskBody(_Body):
    """Either one text or several."""

    model: str | None = None
    input: str | None = None
    inputs: list[str] | None = Field(None, min_length=1)


class DetokenizeBody(_Body):
    model: str | None = None
    tokens: Tokens
