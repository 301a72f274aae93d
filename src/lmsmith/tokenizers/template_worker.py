"""A process of its own that renders chat templates, which are other people's programs.

It reads one JSON request a line and answers with one; it is started by path and imports nothing
of lmsmith. Its memory is limited here, its time by `template`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 1 << 29
"""Most bytes of address space."""


class Refusal(Exception):
    """The template called ``raise_exception``."""


class Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's words; they are just kept."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment(now: datetime) -> ImmutableSandboxedEnvironment:
    """What transformers gives a chat template; no more."""
    result = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )

    def to_json(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def raise_exception(message: object) -> None:
        raise Refusal(str(message))

    result.filters["tojson"] = to_json
    result.globals["raise_exception"] = raise_exception
    result.globals["strftime_now"] = lambda form: now.strftime(form)
    return result


def compared_constants(template: nodes.Template) -> Iterator[str]:
    """Texts that the template looks for in others: what it compares, splits or strips by."""
    for call in template.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr):
            for argument in call.args:
                yield from _texts_in(argument)
    for comparison in template.find_all(nodes.Compare):
        yield from _texts_in(comparison)
    for chosen in template.find_all(nodes.Filter):
        for argument in chosen.args:
            yield from _texts_in(argument)


def _texts_in(node: nodes.Node) -> Iterator[str]:
    for constant in [node, *node.find_all(nodes.Const)]:
        if isinstance(constant, nodes.Const) and isinstance(constant.value, str):
            yield constant.value


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """``constants`` and, for each of the ``contexts``, a text of at most ``most`` characters."""
    jinja = environment(datetime.now())
    try:
        source = request["template"]
        parsed = jinja.parse(source)
        if not request["contexts"]:
            return {"constants": sorted(set(compared_constants(parsed)))}
        template = jinja.from_string(source)
        texts = []
        for context in request["contexts"]:
            text = ""
            for piece in template.generate(**context):
                text += piece
                if len(text) > request["most"]:
                    return {"error": f"writes more than {request['most']:,} characters"}
            texts.append(text)
        return {"texts": texts}
    except Refusal as error:
        return {"error": f"refuses this conversation: {error}"}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"is not valid Jinja: line {error.lineno}: {error.message}"}
    except SecurityError as error:
        return {"error": f"reaches for what a template may not: {error}"}
    except MemoryError:
        return {"error": "needs more memory than a template may"}
    except RecursionError:
        return {"error": "is nested too deep"}
    except Exception as error:
        return {"error": f"fails: {type(error).__name__}: {error}"}


def main() -> None:
    """Answer until the other side closes."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
