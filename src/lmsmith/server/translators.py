"""Served translators: encoder–decoders as tasks of ``/v1/tasks``.

A translator has no conversation and no cache between requests, so it needs no scheduler: one
request is translated at a time, in a thread, and others wait for their turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from lmsmith.catalogue.resolve import resolve
from lmsmith.catalogue.translators import is_translator, read_translator
from lmsmith.core.errors import UserError
from lmsmith.generation.translation import TooLong, Translation, Translator
from lmsmith.server.errors import bad_request
from lmsmith.server.models import name_and_model
from lmsmith.server.one_at_a_time import MOST_CHARACTERS, OneAtATime
from lmsmith.server.requests import Limits
from lmsmith.training.machine import ResolvedMachine


class ServedTranslator:
    """A translator under a name, and the queue before it."""

    def __init__(self, name: str, translator: Translator) -> None:
        self.name, self.translator = name, translator
        self._queue = OneAtATime(name)

    async def translate(
        self, texts: Sequence[str], limits: Limits, *, is_list: bool
    ) -> tuple[list[dict[str, Any]], tuple[int, int]]:
        """A result for each text, and the numbers of tokens read and written.

        Raises:
            ApiError: a text is too long (400), the queue is full (429), or the time is over (504).
        """
        work = partial(self._translated, texts, is_list)
        found, read = await self._queue.run(limits, work)
        written = sum(len(each.tokens) for each in found)
        results = [
            {"input": each.source, "output": each.text, "score": round(each.score, 6)}
            for each in found
        ]
        return results, (read, written)

    def _translated(self, texts: Sequence[str], is_list: bool) -> tuple[list[Translation], int]:
        read, most = 0, MOST_CHARACTERS * self.translator.model.config.model.context
        for number, text in enumerate(texts):
            param = f"inputs[{number}]" if is_list else "input"
            try:
                if len(text) > most:
                    raise TooLong(f"a text of {len(text):,} characters", "shorten the text")
                read += len(self.translator.encode(text))
            except TooLong as error:
                raise bad_request(error, param, "context_length_exceeded") from error
        return self.translator(texts), read


def divide(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Models that write text, and translators."""
    translating = [word for word in words if _is_translator(word)]
    return [word for word in words if word not in translating], translating


def _is_translator(word: str) -> bool:
    try:
        return is_translator(resolve(name_and_model(word)[1]))
    except UserError:
        return False  # its reader says what is wrong


def read_translators(
    words: Iterable[str], machine: ResolvedMachine, taken: Iterable[str]
) -> dict[str, ServedTranslator]:
    """Translators by the name of their task.

    Args:
        taken: names of other models.

    Raises:
        UserError: one cannot be read, or its name is taken.
    """
    found: dict[str, ServedTranslator] = {}
    names = set(taken)
    for word in words:
        name, model = name_and_model(word)
        if name in names:
            raise UserError(f"two models are called {name}", f"name one: other={model}")
        names.add(name)
        read = read_translator(model)
        found[name] = ServedTranslator(name, Translator(read.model, read.tokenizer, machine))
    return found
