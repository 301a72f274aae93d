"""The control tokens of a conversation, and the description of them that travels with a model."""

from __future__ import annotations

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


def chat_description() -> dict[str, str]:
    """What ``chat.json`` holds: the template's name, its tokens, and its Jinja form."""
    return {
        "template": TEMPLATE_NAME,
        "end_of_text": END_OF_TEXT,
        "system": SYSTEM,
        "user": USER,
        "assistant": ASSISTANT,
        "end_of_turn": END_OF_TURN,
        "jinja": JINJA_TEMPLATE,
    }
