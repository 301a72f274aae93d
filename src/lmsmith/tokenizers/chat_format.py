"""What a tokenizer knows of conversations: its control tokens by role, and its template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json
from lmsmith.tokenizers.special import (
    ASSISTANT,
    END_OF_TEXT,
    END_OF_TURN,
    SPECIAL_TOKENS,
    SYSTEM,
    TEMPLATE_NAME,
    USER,
    chat_description,
)

CHAT_FILE = "chat.json"

IMPORTED_NAME = "jinja"
"""What ``chat.json`` calls the template of a model from outside."""

PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- message['role'] | capitalize + ':\n' + message['content'] | trim -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{{- '\n\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:\n' -}}{%- endif -%}"
)
"""For models that have no template: roles in words, since they have no tokens for them."""

_REMAKE = "train it again with `lmsmith run RECIPE --only tokenizer`, or name another folder"


@dataclass(frozen=True)
class ChatFormat:
    """Control tokens by their names, and how a conversation is written with them.

    Attributes:
        start_of_text: what a text begins with.
        end_of_text: what parts one text from the next.
        end_of_turn: what the assistant ends its reply with.
        stops: further tokens at which a reply ends.
        jinja: the chat template; None for lmsmith's own format (`lmsmith.prompts.chat`).
        variables: what the template is given besides messages (``bos_token``, ``eos_token``).
        cleaning: what is done to text first: nothing, or ``"ftfy"``.
    """

    start_of_text: str
    end_of_text: str
    end_of_turn: str
    stops: tuple[str, ...] = ()
    jinja: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    cleaning: str = ""

    @property
    def names(self) -> list[str]:
        """Every token with a part to play, once."""
        parts = (self.start_of_text, self.end_of_text, self.end_of_turn, *self.stops)
        return list(dict.fromkeys(parts))

    def description(self) -> dict[str, object]:
        """What ``chat.json`` holds."""
        if self.jinja is None:
            return dict(chat_description())
        return {
            "template": IMPORTED_NAME,
            "start_of_text": self.start_of_text,
            "end_of_text": self.end_of_text,
            "end_of_turn": self.end_of_turn,
            "stops": list(self.stops),
            "variables": dict(self.variables),
            "cleaning": self.cleaning,
            "jinja": self.jinja,
        }


OWN_FORMAT = ChatFormat(END_OF_TEXT, END_OF_TEXT, END_OF_TURN, (SYSTEM, USER, ASSISTANT))
"""Of the tokenizers that are trained here; its tokens are ``SPECIAL_TOKENS``."""

assert set(OWN_FORMAT.names) == set(SPECIAL_TOKENS)


def read_chat_format(path: Path) -> ChatFormat:
    """Read a ``chat.json``.

    Raises:
        UserError: it is missing, damaged, or describes neither our format nor a template.
    """
    chat = read_json(path)
    if isinstance(chat, dict) and chat == chat_description():
        return OWN_FORMAT
    if isinstance(chat, dict) and chat.get("template") == IMPORTED_NAME:
        return _imported(chat, path)
    name = chat.get("template") if isinstance(chat, dict) else None
    raise UserError(
        f"{path}: expected the chat template {TEMPLATE_NAME!r} as lmsmith writes it, or "
        f"{IMPORTED_NAME!r}, found {name!r}"
        + (" with other contents" if name == TEMPLATE_NAME else ""),
        _REMAKE,
    )


def _imported(chat: Mapping[str, object], path: Path) -> ChatFormat:
    texts = ("start_of_text", "end_of_text", "end_of_turn", "jinja", "cleaning")
    wrong = [key for key in texts if not isinstance(chat.get(key), str)]
    stops, variables = chat.get("stops"), chat.get("variables")
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        wrong.append("stops")
    if not isinstance(variables, dict) or not all(isinstance(v, str) for v in variables.values()):
        wrong.append("variables")
    if chat.get("cleaning") not in ("", "ftfy"):
        wrong.append("cleaning")
    if wrong:
        raise UserError(
            f"{path}: {', '.join(dict.fromkeys(wrong))} missing or of the wrong kind",
            "import the model again",
        )
    assert isinstance(stops, list)
    assert isinstance(variables, dict)
    start, end, turn, jinja, cleaning = (str(chat[key]) for key in texts)
    return ChatFormat(start, end, turn, tuple(stops), jinja, variables, cleaning)
