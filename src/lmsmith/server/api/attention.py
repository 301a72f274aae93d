"""``POST /api/attention``: which tokens of a conversation a model's heads attend to."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import torch
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor
from torch.nn import functional as F

from lmsmith.device import HOST
from lmsmith.server.auth import visitor_of
from lmsmith.server.errors import ApiError
from lmsmith.server.models import ServedModel, served_model
from lmsmith.server.requests import Messages, chat_tokens, check_characters, plain_messages
from lmsmith.server.stream import json_response, token_texts
from lmsmith.server.turns import Turns
from lmsmith.training.machine import compute_aside

router = APIRouter()

MAX_SHOWN = 128  # tokens, the last ones
MAX_TOKENS = 2048  # of a conversation
THUMBNAIL = 32  # rows and columns of a head's picture among all heads

_one_at_a_time, _turns = asyncio.Lock(), Turns(1)


class AttentionBody(BaseModel):
    """A conversation; with a layer and a head, counted from 0, that head's numbers alone."""

    model: str | None = None
    messages: Messages = Field(min_length=1)
    layer: int | None = Field(None, ge=0)
    head: int | None = Field(None, ge=0)


@router.post("/api/attention")
async def attention(request: Request, body: AttentionBody) -> Response:
    """Pictures of all heads, or the weights of one."""
    model = served_model(request.app.state.engine.models, body.model)
    config = model.local("attention").model.config
    numbers = (("layer", body.layer, config.layers), ("head", body.head, config.heads))
    for name, given, most in numbers:
        if given is not None and given >= most:
            raise ApiError(400, f"{name} = {given}: 0 to {most - 1}", param=name)
    if (body.layer is None) != (body.head is None):
        raise ApiError(400, "give both layer and head, or neither", param="layer")
    messages = plain_messages(body.messages)
    check_characters(model, [each["content"] for each in messages], "messages")
    async with _turns.of(visitor_of(request).id), _one_at_a_time:
        found = await asyncio.to_thread(
            compute_aside, lambda: _attention(model, messages, body.layer, body.head)
        )
    return json_response(found)


def _attention(
    model: ServedModel, messages: list[dict[str, str]], layer: int | None, head: int | None
) -> dict[str, Any]:
    tokens = _tokens(model, messages)
    shown = tokens[-MAX_SHOWN:]
    inference = model.local("attention").model
    decoder = inference.merged(model.adapter)
    weights = decoder.attention_weights(tokens, len(shown))
    config = inference.config
    about: dict[str, Any] = {
        "tokens": token_texts(model.tokenizer, tokens)[-MAX_SHOWN:],
        "count": len(tokens),
        "layers": config.layers,
        "heads": config.heads,
    }
    if layer is not None and head is not None:
        weights_qt = weights[layer][head]
        return about | {"layer": layer, "head": head, **_numbers(weights_qt, len(shown))}
    pictures = torch.cat([thumbnails(each, len(shown)) for each in weights])
    packed = base64.b64encode(pictures.to(HOST).numpy().tobytes()).decode()
    return about | {"size": pictures.shape[-1], "thumbnails": packed}


def _tokens(model: ServedModel, messages: list[dict[str, str]]) -> list[int]:
    """The conversation as the model reads it; a reply at its end without its stop token."""
    reply: list[int] = []
    if messages[-1]["role"] == "assistant":
        reply = model.tokenizer.encode(messages[-1]["content"])
        messages = messages[:-1]
    tokens = [*chat_tokens(model, messages), *reply]
    most = min(MAX_TOKENS, model.context)
    if len(tokens) > most:
        problem = f"messages: {len(tokens)} tokens; attention is shown of {most} at most"
        raise ApiError(400, problem, param="messages", code="context_length_exceeded")
    return tokens


def _numbers(weights_qt: Tensor, shown: int) -> dict[str, Any]:
    """A head's weights among the shown tokens, each row as far as it sees, and the total weight of
    earlier tokens."""
    inside_qq = weights_qt[:, -shown:]
    rows = [[round(value, 4) for value in row[: n + 1]] for n, row in enumerate(inside_qq.tolist())]
    before = (1 - inside_qq.sum(dim=-1)).clamp(min=0).tolist()
    return {"weights": rows, "before": [round(value, 4) for value in before]}


def thumbnails(weights_hqt: Tensor, shown: int) -> Tensor:
    """Pictures (heads, size, size), 8 bits: 255 √(the largest weight that falls on a point)."""
    pooled = F.adaptive_max_pool2d(weights_hqt[:, :, -shown:], min(THUMBNAIL, shown))
    return (pooled.sqrt() * 255).round().to(torch.uint8)
