"""How a model is asked: conversations as tokens."""

from __future__ import annotations

from lmsmith.corpus.messages import Message, validate_messages
from lmsmith.prompts.chat import encode_conversation, encode_prompt, fit_conversation
from lmsmith.prompts.prompt import FittedConversation, Prompt, PromptTooLong, room_for_reply

__all__ = [
    "FittedConversation",
    "Message",
    "Prompt",
    "PromptTooLong",
    "encode_conversation",
    "encode_prompt",
    "fit_conversation",
    "room_for_reply",
    "validate_messages",
]
