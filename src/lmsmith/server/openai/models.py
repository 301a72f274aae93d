"""``/v1/models``, and their tokenizers: ``/tokenize``, ``/detokenize``, ``/tokenizer_info``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.server.auth import visitor_of
from lmsmith.server.encoders import ServedEncoder
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.errors import ApiError
from lmsmith.server.models import ServedModel, served_model
from lmsmith.server.requests import (
    Body,
    Messages,
    TokenIds,
    chat_tokens,
    check_characters,
    most_characters,
    plain_messages,
)
from lmsmith.server.stream import json_response, token_texts
from lmsmith.tokenizers import Tokenizer

router = APIRouter()
Result = TypeVar("Result")


class TokenizeBody(Body):
    """Either a text or messages."""

    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    tokens: TokenIds


def _model(request: Request, name: str | None) -> ServedModel:
    """The model of that name, whose tokens are known here."""
    model = served_model(request.app.state.engine.models, name)
    model.local("its tokens")
    return model


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    data = [_shown(request, model) for model in request.app.state.engine.models.values()]
    data += [_shown_encoder(each) for each in request.app.state.encoders.models.values()]
    return json_response({"object": "list", "data": data})


@router.get("/v1/models/{name:path}")
async def show_model(request: Request, name: str) -> Response:
    if (encoder := request.app.state.encoders.models.get(name)) is not None:
        return json_response(_shown_encoder(encoder))
    return json_response(_shown(request, served_model(request.app.state.engine.models, name)))


def _shown_encoder(model: ServedEncoder) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "lmsmith",
        "max_model_len": model.embedder.most_tokens,
        "embedding_width": model.embedder.width,
    }


def _shown(request: Request, model: ServedModel) -> dict[str, Any]:
    """``trial`` says whether some turns are answered by two versions: the page asks which ones."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "lmsmith",
        "max_model_len": model.shown_context,
        "remote": model.is_remote,
        "trial": model.name in request.app.state.engine.candidates,
        "advised": {"temperature": model.advised.temperature, "top_p": model.advised.top_p},
    }


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeBody) -> Response:
    """Token ids of a text, or of the prompt that messages make."""
    model, special = _model(request, body.model), body.add_special_tokens
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", param="prompt")
    if body.prompt is not None:
        count = check_characters(model, [body.prompt], "prompt")
        work = partial(_text_tokens, model.tokenizer, body.prompt, special is not False)
    else:
        messages = plain_messages(body.messages or [])
        count = check_characters(model, [each["content"] for each in messages], "messages")
        work = partial(chat_tokens, model, messages, special)
    tokens = await _in_thread(request, count, work)
    strings = None
    if body.return_token_strs:
        shown = partial(token_texts, model.tokenizer, tokens)
        strings = await _in_thread(request, len(tokens), shown)
    found = {"count": len(tokens), "max_model_len": model.context}
    return json_response({**found, "tokens": tokens, "token_strs": strings})


async def _in_thread(request: Request, size: int, work: Callable[[], Result]) -> Result:
    engine: AsyncEngine = request.app.state.engine
    return await engine.texts.run(visitor_of(request).cache_salt, size, work)


def _text_tokens(tokenizer: Tokenizer, text: str, special: bool) -> list[int]:
    """A text's tokens; no text spells a control token, except that the name alone of the token
    that begins or separates texts gives its id, for programs that need it."""
    for token in (tokenizer.end_of_text, tokenizer.start_of_text):
        if text == tokenizer.control_tokens.get(token):
            return [token]
    return [*(tokenizer.text_start if special else ()), *tokenizer.encode(text)]


@router.post("/detokenize")
async def detokenize(request: Request, body: DetokenizeBody) -> Response:
    """The text of token ids; control tokens appear by name."""
    model = _model(request, body.model)
    tokenizer, most = model.tokenizer, most_characters(model)
    if len(body.tokens) > most:
        problem = f"tokens: at most {most:,} ids, not {len(body.tokens):,}; send them in parts"
        raise ApiError(400, problem, param="tokens")
    known = tokenizer.vocabulary_size
    if body.tokens and max(body.tokens) >= known:
        raise ApiError(400, f"tokens: the ids are below {known}", param="tokens")
    work = partial(tokenizer.decode, body.tokens, special=True)
    text = await _in_thread(request, len(body.tokens), work)
    return json_response({"prompt": text})


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request, model: str | None = None) -> Response:
    """Control tokens and template, for clients that write prompts themselves."""
    served = _model(request, model)
    tokenizer, names = served.tokenizer, served.tokenizer.control_tokens
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
