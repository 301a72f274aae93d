"""What an import of every kind does: find the part that each control token plays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.tokenizers.chat_format import PLAIN_TEMPLATE, ChatFormat
from lmsmith.tokenizers.template import ChatTemplate
from lmsmith.tokenizers.tokenizer import Tokenizer

_ENDS_OF_TEXT = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end▁of▁sentence|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
    "<|eos|>",
)
"""Where a chat model's ``eos_token`` ends a turn, one of these parts texts."""

_ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|eom_id|>")


def import_tokenizer(
    description: Mapping[str, Any],
    *,
    variables: Mapping[str, str],
    jinja: str = "",
    adds_start: bool = False,
    stops: Iterable[str] = (),
    cleaning: str = "",
) -> Tokenizer:
    """A tokenizer from outside, with the parts of its control tokens found out.

    What ends a turn is what the template writes after a reply; without a template it is the end
    of the text, and conversations are written in words (``User: …``).

    Args:
        description: contents of a ``tokenizer.json``.
        variables: its ``bos_token``, ``eos_token`` and others, as templates know them.
        jinja: the chat template.
        adds_start: whether a text begins with ``bos_token``.
        stops: more tokens at which a reply ends.
        cleaning: see `ChatFormat`.

    Raises:
        UserError: it names no token that ends a text.
    """
    eos = variables.get("eos_token") or variables.get("bos_token")
    if not eos:
        raise UserError(
            "the tokenizer names no eos_token, so that no text would ever end",
            'add it to tokenizer_config.json: {"eos_token": "</s>"} or what the model was given',
        )
    tokens = description.get("added_tokens") or []
    added = [token["content"] for token in tokens]
    end = next((name for name in (eos, *_ENDS_OF_TEXT) if name not in _ENDS_OF_TURN), eos)
    if eos in _ENDS_OF_TURN:
        end = next((name for name in _ENDS_OF_TEXT if name in added), eos)
    start = variables.get("bos_token") if adds_start else None
    chat_format = ChatFormat(
        start_of_text=start or end,
        end_of_text=end,
        end_of_turn=eos,
        stops=tuple(dict.fromkeys([eos, *stops])),
        jinja=jinja or PLAIN_TEMPLATE,
        variables=dict(variables) if jinja else {**variables, "eos_token": end},
        cleaning=cleaning,
    )
    specials = [token["content"] for token in tokens if token.get("special")]
    controls = list(dict.fromkeys([*specials, *chat_format.names]))
    turn = end_of_turn(chat_format, controls)
    return Tokenizer(description, replace(chat_format, end_of_turn=turn or eos))


def end_of_turn(chat_format: ChatFormat, controls: Sequence[str]) -> str | None:
    """The control token that the template writes after a reply; None if it writes none.

    A template may write it only where the user goes on, as the mark of the user's turn (GLM); it
    counts if the model stops there.
    """
    template = ChatTemplate(chat_format.jinja or "", chat_format.variables)
    talk = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    found = _after_reply(template, talk, controls)
    if found is None:
        found = _after_reply(template, [*talk, {"role": "user", "content": "more"}], controls)
        return found if found in chat_format.stops else None
    return found


def _after_reply(
    template: ChatTemplate, talk: Sequence[Mapping[str, str]], controls: Sequence[str]
) -> str | None:
    """The control token after message 1."""
    try:
        rendering = template.render(talk, ask=False, controls=controls)
    except UserError:
        return None
    for span in rendering.spans or []:
        after = span.end
        while after < len(rendering.text) and rendering.text[after].isspace():
            after += 1
        found = [rendering.text[s:e] for s, e in rendering.controls if s == after]
        if span.message == 1 and found:
            return found[0]
    return None
