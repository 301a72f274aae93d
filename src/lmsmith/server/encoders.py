"""The served encoders: read, named, and computing in a thread of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lmsmith.catalogue.encoders import is_encoder, read_encoder
from lmsmith.catalogue.resolve import resolve
from lmsmith.core.errors import UserError
from lmsmith.core.terminal import in_one_line
from lmsmith.generation.embedding import Embedded, Embedder
from lmsmith.server.errors import ApiError
from lmsmith.server.models import name_and_model
from lmsmith.training.machine import ResolvedMachine

PART_TOKENS = 8192
"""Tokens that a request computes before others have their turn."""

_thread = ThreadPoolExecutor(1, "encoders")


@dataclass(eq=False)
class ServedEncoder:
    """An encoder and the name that clients use."""

    name: str
    embedder: Embedder
    created: int = field(default_factory=lambda: int(time.time()))

    def description(self) -> str:
        """Its sizes, in one line."""
        embedder = self.embedder
        return (
            f"{in_one_line(self.name)}: vectors of {embedder.width} numbers, texts of "
            f"{embedder.most_tokens} tokens (/v1/embeddings)"
        )


class Encoders:
    """All served encoders. Their requests take turns, a part of each at a time.

    Args:
        models: the first is the default.
        queue: requests that may wait or compute together.
    """

    def __init__(self, models: Sequence[ServedEncoder] = (), queue: int = 128) -> None:
        self.models: Mapping[str, ServedEncoder] = {each.name: each for each in models}
        self._queue, self._running = queue, 0

    def model(self, name: str | None, writers: Sequence[str]) -> ServedEncoder:
        """The encoder of that name, or the first one.

        Raises:
            ApiError: there is none (404), or the name is of a model that writes (400).
        """
        if name is None and self.models:
            return next(iter(self.models.values()))
        if name is not None and name in self.models:
            return self.models[name]
        if name is not None and name in writers:
            problem = f"{name!r} writes text; embeddings need an encoder"
            raise ApiError(400, problem, param="model", code="model_not_supported")
        there = f"there is: {', '.join(self.models)}" if self.models else "this server has none"
        problem = f"there is no encoder {name!r} here; {there}" if name else f"no encoder: {there}"
        raise ApiError(404, problem, param="model", code="model_not_found")

    async def embed(self, model: ServedEncoder, sequences: Sequence[Sequence[int]]) -> Embedded:
        """The vectors of tokenized texts.

        Raises:
            ApiError: too many requests wait (429).
        """
        if self._running >= self._queue:
            raise ApiError(
                429,
                f"{self._running} requests for embeddings wait already; try again in a second",
                "rate_limit_error",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        self._running += 1
        try:
            loop, found = asyncio.get_running_loop(), list[Embedded]()
            for part in _parts(sequences):
                found.append(await loop.run_in_executor(_thread, model.embedder.embed_tokens, part))
            return Embedded.joined(found)
        finally:
            self._running -= 1


def _parts(sequences: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """The texts in parts of about `PART_TOKENS` tokens, in their order."""
    parts: list[list[Sequence[int]]] = []
    size = 0
    for each in sequences:
        if not parts or size + len(each) > PART_TOKENS:
            parts.append([])
            size = 0
        parts[-1].append(each)
        size += len(each)
    return parts


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The models of a server's command line: those that write, and encoders.

    Raises:
        UserError: one is not there.
    """
    encoders = [word for word in words if _is_encoder(word)]
    return [word for word in words if word not in encoders], encoders


def _is_encoder(word: str) -> bool:
    _, model = name_and_model(word)
    return is_encoder(resolve(model))


def read_encoders(
    words: Sequence[str], machine: ResolvedMachine, taken: Sequence[str] = ()
) -> list[ServedEncoder]:
    """The encoders of a server.

    Raises:
        UserError: one cannot be read, or two models have one name.
    """
    found: list[ServedEncoder] = []
    for word in words:
        name, model = name_and_model(word)
        if name in taken or name in [each.name for each in found]:
            raise UserError(f"two models are called {name}", f"name one: other={word}")
        read = read_encoder(model)
        machine.put(read.model)
        found.append(ServedEncoder(name, Embedder(read)))
    return found
