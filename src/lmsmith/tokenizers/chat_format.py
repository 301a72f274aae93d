"""A tokenizer's control tokens by role, and its chat template."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json
from lmsmith.tokenizers.description import MOST_SMALL_BYTES

END_OF_TEXT = "<|endoftext|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END_OF_TURN = "<|end|>"

SPECIAL_TOKENS: tuple[str, ...] = (END_OF_TEXT, SYSTEM, USER, ASSISTANT, END_OF_TURN)
"""In the order of their ids, which are the lowest: ``SPECIAL_TOKENS[i]`` has id ``i``."""

ROLE_TOKENS: dict[str, str] = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}

TEMPLATE_NAME = "lmsmith-1"

JINJA_TEMPLATE = (
    "{{ '" + END_OF_TEXT + "' }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '" + END_OF_TURN + "' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)
"""Equal to ``lmsmith.prompts.chat`` (a test renders both), for programs that read Jinja."""


CHAT_DESCRIPTION: dict[str, str] = {
    "template": TEMPLATE_NAME,
    "end_of_text": END_OF_TEXT,
    **ROLE_TOKENS,
    "end_of_turn": END_OF_TURN,
    "jinja": JINJA_TEMPLATE,
}
"""Contents of our own ``chat.json``: the template's name, its tokens, and its Jinja form."""


CHAT_FILE = "chat.json"

IMPORTED_NAME = "jinja"
"""The template's name in the ``chat.json`` of a model from outside."""

PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- message['role'] | capitalize + ':\n' + message['content'] | trim -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{{- '\n\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:\n' -}}{%- endif -%}"
)
"""For models that have no template: roles in words, since they have no tokens for them."""


def plain_template(text_start: Sequence[str]) -> str:
    """`PLAIN_TEMPLATE` after what goes before every text prompt."""
    start = json.dumps("".join(text_start), ensure_ascii=False)
    return ("{{- " + start + " -}}" if text_start else "") + PLAIN_TEMPLATE


REMAKE = "train it again with `lmsmith run RECIPE --only tokenizer`, or name another folder"


MOST_START = 64
"""Tokens before a text; published models have up to four."""


@dataclass(frozen=True)
class ChatFormat:
    """Control tokens by their names, and how a conversation is written with them.

    Attributes:
        start_of_text: stands before a text that needs a token before it.
        end_of_text: separates one text from the next.
        end_of_turn: ends the assistant's reply.
        stops: further tokens at which a reply ends.
        jinja: the chat template; None for lmsmith's own format (`lmsmith.prompts.chat`).
        variables: input of the template besides messages (``bos_token``, ``eos_token``).
        cleaning: applied to text first: nothing, or ``"ftfy"``.
        text_start: goes before every text prompt, as the tokenizer's files say; often nothing.
        markers: further tokens that no text makes, though they are text when the model writes them.
    """

    start_of_text: str
    end_of_text: str
    end_of_turn: str
    stops: tuple[str, ...] = ()
    jinja: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    cleaning: str = ""
    text_start: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Every token with a role, once."""
        ends = (self.start_of_text, self.end_of_text, self.end_of_turn, *self.stops)
        return list(dict.fromkeys((*ends, *self.text_start)))

    def description(self) -> dict[str, object]:
        """Contents of ``chat.json``."""
        if self.jinja is None:
            return dict(CHAT_DESCRIPTION)
        return {"template": IMPORTED_NAME, **dataclasses.asdict(self)}


OWN_FORMAT = ChatFormat(
    END_OF_TEXT, END_OF_TEXT, END_OF_TURN, (SYSTEM, USER, ASSISTANT), text_start=(END_OF_TEXT,)
)
"""Format of the tokenizers that are trained here; its tokens are ``SPECIAL_TOKENS``.

Models are trained here on documents that begin with ``<|endoftext|>``, so text prompts do too.
"""


def read_chat_format(path: Path) -> ChatFormat:
    """Read a ``chat.json``.

    Raises:
        UserError: it is missing, damaged, or describes neither our format nor a template.
    """
    chat = read_json(path, MOST_SMALL_BYTES)
    if chat == CHAT_DESCRIPTION:
        return OWN_FORMAT
    name = chat.get("template") if isinstance(chat, dict) else None
    if isinstance(chat, dict) and name == IMPORTED_NAME:
        return _imported(chat, path)
    raise UserError(
        f"{path}: expected the chat template {TEMPLATE_NAME!r} as lmsmith writes it, or "
        f"{IMPORTED_NAME!r}, found {name!r}"
        + (" with other contents" if name == TEMPLATE_NAME else ""),
        REMAKE,
    )


def _imported(chat: Mapping[str, object], path: Path) -> ChatFormat:
    # Older files have no such lists: their start_of_text was another token than end_of_text
    # where one goes before every text.
    start, end = chat.get("start_of_text"), chat.get("end_of_text")
    chat = {"text_start": [start] if start != end else [], "markers": [], **chat}
    kinds = typing.get_type_hints(ChatFormat) | {"jinja": str, "cleaning": Literal["", "ftfy"]}
    wrong = []
    for name, kind in kinds.items():
        try:
            msgspec.convert(chat.get(name), kind)
        except msgspec.ValidationError:
            wrong.append(name)
    if wrong:
        raise UserError(
            f"{path}: {', '.join(wrong)} missing or of the wrong kind", "import the model again"
        )
    found = msgspec.convert(chat, ChatFormat)
    if len(found.text_start) > MOST_START:
        problem = (
            f"{path}: text_start has {len(found.text_start):,} tokens, and may have {MOST_START}"
        )
        raise UserError(problem, "import the model again")
    return found
