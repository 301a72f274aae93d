"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``: the model's tokenizer for clients."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.server import asking
from lmsmith.server.answering import Serving
from lmsmith.server.errors import ApiError
from lmsmith.server.protocol import DetokenizeBody, TokenizeBody
from lmsmith.server.responses import json_response
from lmsmith.server.served import ServedModel
from lmsmith.server.token_text import token_texts

router = APIRouter()


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeBody) -> Response:
    """Token ids of a text, or of the prompt that messages make."""
    serving: Serving = request.app.state.serving
    model = serving.model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", param="prompt")
    if body.prompt is not None:
        text, special = body.prompt, body.add_special_tokens
        tokens = await asyncio.to_thread(_text_tokens, model, text, special is not False)
    else:
        messages = asking.plain_messages(body.messages or [])
        tokens = await asyncio.to_thread(
            asking.chat_tokens, model, messages, add_special_tokens=body.add_special_tokens
        )
    result: dict[str, Any] = {
        "count": len(tokens),
        "max_model_len": model.context,
        "tokens": tokens,
        "token_strs": None,
    }
    if body.return_token_strs:
        result["token_strs"] = token_texts(model.tokenizer, tokens)
    return json_response(result)


def _text_tokens(model: ServedModel, text: str, special: bool) -> list[int]:
    """A text is text, whatever it spells, with one exception for programs that ask for its id:
    the name of what begins or parts texts, and nothing beside it."""
    tokenizer = model.tokenizer
    for token in (tokenizer.end_of_text, tokenizer.start_of_text):
        if text == tokenizer.control_tokens.get(token):
            return [token]
    return [*(tokenizer.text_start if special else ()), *tokenizer.encode(text)]


@router.post("/detokenize")
async def detokenize(request: Request, body: DetokenizeBody) -> Response:
    """The text of token ids, control tokens by their names."""
    serving: Serving = request.app.state.serving
    model = serving.model(body.model)
    known = model.tokenizer.vocabulary_size
    if body.tokens and max(body.tokens) >= known:
        raise ApiError(400, f"tokens: the ids are below {known}", param="tokens")
    text = await asyncio.to_thread(model.tokenizer.decode, body.tokens, special=True)
    return json_response({"prompt": text})


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request, model: str | None = None) -> Response:
    """What a client must know to write prompts itself."""
    serving: Serving = request.app.state.serving
    served = serving.model(model)
    tokenizer = served.tokenizer
    names = tokenizer.control_tokens
    return json_response(
        {
            "model": served.name,
            "tokenizer_class": "lmsmith",
            "vocab_size": tokenizer.vocabulary_size,
            "model_max_length": served.context,
            "bos_token": names.get(tokenizer.start_of_text),
            "bos_token_id": tokenizer.start_of_text,
            "add_bos_token": bool(tokenizer.text_start),
            "eos_token": names.get(tokenizer.end_of_text),
            "eos_token_id": tokenizer.end_of_text,
            "pad_token": names.get(tokenizer.end_of_text),
            "end_of_turn_token": names.get(tokenizer.end_of_turn),
            "chat_template": tokenizer.format.description().get("jinja"),
        }
    )
