"""Imports of every kind: find the role of each control token."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.tokenizers.chat_format import ChatFormat, plain_template
from lmsmith.tokenizers.description import check_description
from lmsmith.tokenizers.template import ChatTemplate, Endless, Rendering
from lmsmith.tokenizers.tokenizer import Tokenizer, vocabulary_of

_ENDS_OF_TEXT = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end▁of▁sentence|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
    "<|eos|>",
)
"""Where a chat model's ``eos_token`` ends a turn, one of these separates texts."""

_ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|eom_id|>")


def import_tokenizer(
    description: Mapping[str, Any],
    *,
    variables: Mapping[str, str],
    jinja: str = "",
    text_start: Sequence[str] = (),
    stops: Iterable[str] = (),
    cleaning: str = "",
    size: int = 0,
) -> Tokenizer:
    """A tokenizer from outside; the roles of its control tokens are found by its template.

    The end of a turn is what the template writes after a reply; without a template it is the end
    of the text, and conversations are written in words (``User: …``).

    Args:
        description: contents of a ``tokenizer.json``.
        variables: its ``bos_token``, ``eos_token`` and others, as templates know them.
        stops: more tokens at which a reply ends.
        text_start, cleaning: see `ChatFormat`.
        size: see `check_description`.

    Raises:
        UserError: it names no token that ends a text, or is damaged; or its template does not end.
    """
    check_description(description, size)
    eos = variables.get("eos_token") or variables.get("bos_token")
    if not eos:
        raise UserError(
            "the tokenizer names no eos_token, so that no text would ever end",
            'add it to tokenizer_config.json: {"eos_token": "</s>"} or what the model was given',
        )
    tokens = description.get("added_tokens") or []
    added = dict.fromkeys(token["content"] for token in tokens)
    ends = [name for name in _ENDS_OF_TEXT if name in added]
    end = ends[0] if ends and eos in _ENDS_OF_TURN else eos
    bos = variables.get("bos_token")
    chat_format = ChatFormat(
        start_of_text=bos if bos is not None and bos in vocabulary_of(description) else end,
        end_of_text=end,
        end_of_turn=eos,
        stops=tuple(dict.fromkeys([eos, *stops])),
        jinja=jinja or plain_template(text_start),
        variables=dict(variables) if jinja else {**variables, "eos_token": end},
        cleaning=cleaning,
        text_start=tuple(text_start),
    )
    specials = dict.fromkeys(token["content"] for token in tokens if token.get("special"))
    # What the template writes of these is a marker: typed by a user, it must not split messages.
    possible = [name for name in added if name not in specials and _may_be_marker(name)]
    template = ChatTemplate(chat_format.jinja or "", chat_format.variables)
    controls = list(dict.fromkeys([*specials, *chat_format.names, *possible]))
    plain = _rendered(template, _TALK, controls)
    written = _written(plain)
    if plain is not None:
        written |= _written(_rendered(template, _TALK[:1], controls, ask=True))
        for talk in ([_SYSTEM, *_TALK], [*_TALK, _TOOL]):
            written |= _written(_rendered(template, talk, controls))
    turn = _end_of_turn(template, plain, controls, chat_format.stops)
    markers = [name for name in possible if name in written or _PIPED.fullmatch(name)]
    return Tokenizer(
        description, replace(chat_format, end_of_turn=turn or eos, markers=tuple(markers))
    )


_SYSTEM = {"role": "system", "content": "rule"}
_TOOL = {"role": "tool", "content": "result"}
_TALK = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]

_PIPED = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
"""Nobody writes so but to name a control token."""


def _may_be_marker(name: str) -> bool:
    """Whether an added token that is not special is more than a word, spaces or punctuation."""
    bare = "".join(name.split())
    return any(map(str.isalnum, bare)) and not bare.isalnum()


def _rendered(
    template: ChatTemplate,
    talk: Sequence[Mapping[str, str]],
    controls: Sequence[str],
    *,
    ask: bool = False,
) -> Rendering | None:
    try:
        return template.render(talk, ask=ask, controls=controls)
    except Endless:
        raise
    except UserError:
        return None


def _written(rendering: Rendering | None) -> set[str]:
    """The control tokens in a rendered conversation."""
    return {rendering.text[start:end] for start, end in rendering.controls} if rendering else set()


def _end_of_turn(
    template: ChatTemplate,
    plain: Rendering | None,
    controls: Sequence[str],
    stops: Sequence[str],
) -> str | None:
    """The control token that the template writes after a reply; None if it writes none.

    A template may write it only where the user goes on, as the mark of the user's turn (GLM); it
    counts if the model stops there.
    """
    found = _after_reply(plain)
    if plain is None or found is not None:
        return found
    found = _after_reply(
        _rendered(template, [*_TALK, {"role": "user", "content": "more"}], controls)
    )
    return found if found in stops else None


def _after_reply(rendering: Rendering | None) -> str | None:
    """The control token after message 1."""
    if rendering is None:
        return None
    for span in rendering.spans or []:
        after = rendering.after_spaces(span.end)
        found = [rendering.text[s:e] for s, e in rendering.controls if s == after]
        if span.message == 1 and found:
            return found[0]
    return None
