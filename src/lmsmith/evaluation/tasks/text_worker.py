"""A process of its own for the templates and regular expressions of task files.

Started by path, it imports nothing of lmsmith. A request is eight bytes for its size and a pickled
dictionary; the answer is a line of JSON. Its memory is limited here, and so is the processor's time
for each document: the kernel ends the process.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import pickle
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MEMORY = 1 << 30
"""Most bytes of address space."""

MOST_CHARACTERS = 1_000_000
"""Most characters that a template makes of a document, besides four times its own."""

MOST_VALUES = 10_000
"""Most values of a list that an expression gives, inner lists included."""


def no_text(value: object, *, lists: bool = False) -> str:
    """Why a value cannot be written as a text, or a list of texts; else empty."""
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    if isinstance(value, Mapping):
        return "an object"
    if not isinstance(value, list | tuple):
        return ""
    if not lists:
        return "a list"
    return next((f"a list with {what}" for each in value if (what := no_text(each))), "")


class _NoText(Exception):
    """A value that a prompt cannot show."""


class _TooMuch(Exception):
    """A template gives more than a prompt needs."""


def _written(value: Any) -> Any:
    """The value of a template's expression; null, NaN, lists and objects are refused."""
    if what := no_text(value):
        raise _NoText(f"a value is {what}")
    return value


@functools.cache
def _jinja() -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_written
    )


@functools.lru_cache(maxsize=256)
def _template(source: str) -> Any:
    return _jinja().from_string(source)


@functools.lru_cache(maxsize=256)
def _expression(source: str) -> Any:
    return _jinja().compile_expression(source, undefined_to_none=False)


def evaluate(
    source: str, is_expression: bool, fields: Mapping[str, Any], most: int = MOST_CHARACTERS
) -> dict[str, Any]:
    """The text that a template or an expression makes of a document.

    Args:
        most: characters of a template's text.

    Returns:
        ``value`` (a text, or plain data) or ``error``. Both may come with ``unfit``, the names of
        fields that are no texts and what they are, if the value holds something that is no text.
    """
    try:
        if not is_expression:
            return {"value": _text(source, fields, most)}
        value = _plain(_expression(source)(fields), iter(range(MOST_VALUES)))
    except _NoText as error:
        return {"error": str(error), "unfit": _unfit(source, fields, lists=False)}
    except MemoryError:
        return {"error": "the template needs more memory than it may"}
    except RecursionError:
        return {"error": "the template is nested too deep"}
    except Exception as error:
        known = isinstance(error, _TooMuch | TypeError | ValueError) or _is_jinjas(error)
        return {"error": str(error) if known else f"{type(error).__name__}: {error}"}
    if any(no_text(each) for each in _flat(value)):
        return {"value": value, "unfit": _unfit(f"{{{{ {source} }}}}", fields, lists=True)}
    return {"value": value}


def _is_jinjas(error: Exception) -> bool:
    import jinja2

    return isinstance(error, jinja2.TemplateError)


def _text(source: str, fields: Mapping[str, Any], most: int) -> str:
    pieces, length = [], 0
    for piece in _template(source).generate(fields):
        pieces.append(piece)
        length += len(piece)
        if length > most:
            raise _TooMuch(f"the template writes more than {most:,} characters")
    return "".join(pieces)


def _plain(value: Any, left: Iterator[int]) -> Any:
    """A value as JSON holds it: an object without its contents, anything unknown as its text.

    Args:
        left: ends when there are too many values.
    """
    if next(left, None) is None:
        raise _TooMuch(f"the expression gives more than {MOST_VALUES:,} values")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_plain(each, left) for each in value]
    return str(value)  # of what is undefined, this is an error


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def _unfit(source: str, fields: Mapping[str, Any], *, lists: bool) -> list[tuple[str, str]]:
    import jinja2.meta

    names = sorted(jinja2.meta.find_undeclared_variables(_jinja().parse(source)))
    found = [(name, no_text(fields.get(name, ""), lists=lists)) for name in names]
    return [(name, what) for name, what in found if what]


def find(pattern: str, text: str) -> list[str | None]:
    """The first group of each match."""
    return [match[1] for match in re.finditer(pattern, text)]


def _answers(request: Mapping[str, Any]) -> Iterator[str]:
    """An answer in JSON for each document or text of a request, each in its own time."""
    seconds = request["seconds"]
    if "pattern" in request:
        for text in request["texts"]:
            with _limited(seconds):
                yield json.dumps(find(request["pattern"], text))
        return
    for packed in request["documents"]:
        fields, most = pickle.loads(packed), MOST_CHARACTERS + 4 * len(packed)
        for source, is_expression in request["sources"]:
            with _limited(seconds):
                found = json.dumps(evaluate(source, is_expression, fields, most))
            if len(found) > 6 * most:  # as JSON writes a character at most
                found = json.dumps({"error": f"gives more than {most:,} characters"})
            yield found


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """End the process after so much time of the processor, where the system can."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Answer until the other side closes."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    while size := int.from_bytes(sys.stdin.buffer.read(8), "big"):
        request = pickle.loads(sys.stdin.buffer.read(size))
        print(f"[{','.join(_answers(request))}]", flush=True)


if __name__ == "__main__":
    main()
