"""``POST /v1/embeddings``: texts as vectors, in the form of OpenAI's API."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.generation.embedding import Embedder
from lmsmith.server.auth import visitor_of
from lmsmith.server.encoders import Encoders
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.errors import ApiError, unsupported
from lmsmith.server.requests import (
    CHARACTERS_PER_TOKEN,
    MAX_MESSAGES,
    SHORTEST_LIMIT,
    Body,
    Int,
    Texts,
    TokenIds,
)
from lmsmith.server.stream import ClientGone, json_response, while_connected

router = APIRouter()

MAX_INPUTS = 2048
"""Texts of a request, as in OpenAI's API."""


class EmbeddingsBody(Body):
    """A text, several, a text's token ids, or several texts' token ids (without the frame)."""

    input: (
        str
        | Texts
        | TokenIds
        | Annotated[list[TokenIds], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Int | None = Field(None, ge=1)
    user: str | None = None


@router.post("/v1/embeddings")
async def embeddings(request: Request, body: EmbeddingsBody) -> Response:
    """A vector of length 1 for each text, as numbers or as base64 of little-endian float32."""
    engine: AsyncEngine = request.app.state.engine
    encoders: Encoders = request.app.state.encoders
    model = encoders.model(body.model, list(engine.models))
    embedder = model.embedder
    if body.dimensions not in (None, embedder.width):
        problem = f"dimensions: {model.name} makes vectors of {embedder.width} numbers alone"
        raise unsupported("dimensions", problem)
    given = _given(body)
    texts = [each for each in given if isinstance(each, str)]
    characters = _checked_characters(embedder, texts)
    if texts:
        salt = visitor_of(request).cache_salt
        sequences = await engine.texts.run(salt, characters, lambda: embedder.tokens(texts))
    else:
        sequences = [_framed(embedder, each, number) for number, each in enumerate(given)]
    _refuse_long(embedder, sequences, is_list=isinstance(body.input, list))
    try:
        work = encoders.embed(model, sequences)
        found = await while_connected(request.receive, work)
    except ClientGone:
        return Response(status_code=499)
    shown: list[Any] = found.vectors.tolist()
    if body.encoding_format == "base64":
        little = found.vectors.astype("<f4")
        shown = [base64.b64encode(each.tobytes()).decode() for each in little]
    data = [
        {"object": "embedding", "index": index, "embedding": each}
        for index, each in enumerate(shown)
    ]
    count = sum(found.tokens)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return json_response({"object": "list", "data": data, "model": model.name, "usage": usage})


def _given(body: EmbeddingsBody) -> Sequence[str | list[int]]:
    """The texts of a request; all are texts, or all are token ids."""
    given: Any = body.input
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not given:
        raise ApiError(400, "input: an empty list; give one text or more", param="input")
    if len(given) > MAX_INPUTS:
        problem = f"input: at most {MAX_INPUTS} at once, not {len(given)}"
        raise ApiError(400, problem, param="input")
    for number, each in enumerate(given):
        if not len(each):
            place = _place(number, isinstance(body.input, list))
            raise ApiError(400, f"{place}: it is empty", param=place, code="invalid_value")
    found: Sequence[str | list[int]] = given
    return found


def _place(number: int, is_list: bool) -> str:
    return f"input[{number}]" if is_list else "input"


def _checked_characters(embedder: Embedder, texts: Sequence[str]) -> int:
    """The characters of all texts; ApiError (400) for a text that cannot fit."""
    most = max(SHORTEST_LIMIT, CHARACTERS_PER_TOKEN * embedder.most_tokens)
    for number, text in enumerate(texts):
        if len(text) > most:
            problem = f"input[{number}]: {len(text):,} characters, and at most {most:,} are read"
            raise ApiError(400, problem, param="input", code="context_length_exceeded")
    return sum(map(len, texts))


def _framed(embedder: Embedder, tokens: Any, number: int) -> list[int]:
    """Token ids in the model's frame; ApiError (400) for ids that are no text's."""
    known, controls = embedder.tokenizer.vocabulary_size, embedder.tokenizer.control_tokens
    if max(tokens) >= known:
        raise ApiError(400, f"input[{number}]: the ids are below {known}", param="input")
    if wrong := [each for each in tokens if each in controls]:
        problem = f"input[{number}]: {wrong[0]} is the control token {controls[wrong[0]]}"
        raise ApiError(400, f"{problem}; give a text's tokens alone", param="input")
    return [embedder.frame.cls, *tokens, embedder.frame.sep]


def _refuse_long(embedder: Embedder, sequences: Sequence[Sequence[int]], is_list: bool) -> None:
    most = embedder.most_tokens
    for number, each in enumerate(sequences):
        if len(each) > most:
            place = _place(number, is_list)
            problem = f"{place}: {len(each):,} tokens, and the model reads {most:,}; shorten it"
            raise ApiError(400, problem, param=place, code="context_length_exceeded")
