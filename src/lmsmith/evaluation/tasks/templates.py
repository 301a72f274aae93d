"""Templates and regular expressions of task files, evaluated within limits of time and memory."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.core.worker import Worker
from lmsmith.evaluation.tasks import text_worker

SECONDS = 2.0
"""Longest time of the processor for one document or text."""

WAITED = 30.0
"""Longest wall-clock time for one, and for a batch."""

SLOW_SECONDS = 60.0
"""Longest time that documents may take together beyond `FAIR_SECONDS` each."""
FAIR_SECONDS = 0.05

BATCH = 256
BATCH_BYTES = 16 << 20
"""Most documents, and bytes of them, that the worker gets at once."""

Source = tuple[str, bool]
"""A template (False) or an expression (True)."""

Result = dict[str, Any]
"""See `text_worker.evaluate`."""

WORKER = Worker(Path(text_worker.__file__), "jinja2")

TOGETHER = f"takes too long: more than {SLOW_SECONDS:g} seconds for the documents so far"

FIX_PATTERN = "write a regular expression without repetitions inside repetitions"

_debt = 0.0
"""Seconds that all work took beyond what is fair."""


def _ask(request: Mapping[str, Any], count: int) -> list[Any] | str:
    """The worker's answers for ``count`` documents, or the limit that they reached."""
    global _debt
    packed = pickle.dumps({**request, "seconds": SECONDS})
    started = time.monotonic()
    line = WORKER.ask(len(packed).to_bytes(8, "big") + packed, WAITED)
    _debt = max(0.0, _debt + time.monotonic() - started - count * FAIR_SECONDS)
    if _debt > SLOW_SECONDS:
        _debt = 0.0
        return TOGETHER
    if not line:
        memory = text_worker.MEMORY >> 30
        return f"needs more than {SECONDS:g} seconds of the processor, or {memory} GiB of memory"
    answers: list[Any] = json.loads(line)
    return answers


def evaluate(source: Source, fields: Mapping[str, Any]) -> Result:
    """The result of one template for one document; a limit that is reached is its ``error``."""
    try:
        packed = pickle.dumps(fields)
    except RecursionError:
        return {"error": "the document is nested too deep"}
    answers = _ask({"documents": [packed], "sources": [source]}, 1)
    if isinstance(answers, str):
        return {"error": f"the template {answers}"}
    result: Result = answers[0]
    return result


def evaluate_all(
    sources: Sequence[Source], documents: Iterable[tuple[Mapping[str, Any], dict[Source, Result]]]
) -> None:
    """Put each document's results into its dictionary, many documents at once.

    Those that the worker could not do at once are left out: `evaluate` says which one it is.
    """
    for part in _batches(documents):
        packed = [each for each, _ in part]
        answers = _ask({"documents": packed, "sources": sources}, len(part))
        if isinstance(answers, str):
            return
        found = iter(answers)
        for _, known in part:
            known.update((source, next(found)) for source in sources)


def _batches(
    documents: Iterable[tuple[Mapping[str, Any], dict[Source, Result]]],
) -> Iterator[list[tuple[bytes, dict[Source, Result]]]]:
    part: list[tuple[bytes, dict[Source, Result]]] = []
    size = 0
    for fields, known in documents:
        try:
            packed = pickle.dumps(fields)
        except RecursionError:
            continue
        if part and (len(part) == BATCH or size + len(packed) > BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append((packed, known))
        size += len(packed)
    if part:
        yield part


class TaskTextError(UserError):
    """A task's template or regular expression failed; the message does not name the task yet."""


def write(template: str, fields: Mapping[str, str], where: str) -> str:
    """A template's text.

    Args:
        where: the setting, for messages.

    Raises:
        TaskTextError: it fails, or reaches a limit.
    """
    result = evaluate((template, False), fields)
    if "error" in result:
        *first, last = fields
        named = [*([", ".join(first)] if first else []), last]
        raise TaskTextError(f"{where}: {result['error']}", f"it may name {' and '.join(named)}")
    text: str = result["value"]
    return text


class SlowPattern(TaskTextError):
    """A regular expression reached a limit on the text of this number."""

    def __init__(self, text: str, number: int, limit: str) -> None:
        problem = f"on a text of {len(text):,} characters, the regular expression {limit}"
        super().__init__(problem, FIX_PATTERN)
        self.number = number


def find_all(pattern: str, texts: Sequence[str]) -> list[list[str | None]]:
    """The first groups of a regular expression's matches in each text.

    Raises:
        SlowPattern: a text reaches a limit.
    """
    found: list[list[str | None]] = []
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        answers = _ask({"pattern": pattern, "texts": part}, len(part))
        found += _one_by_one(pattern, part, start) if isinstance(answers, str) else answers
    return found


def _one_by_one(pattern: str, texts: Sequence[str], start: int) -> Iterator[list[str | None]]:
    for number, text in enumerate(texts, start):
        answers = _ask({"pattern": pattern, "texts": [text]}, 1)
        if isinstance(answers, str):
            raise SlowPattern(text, number, answers)
        yield answers[0]
