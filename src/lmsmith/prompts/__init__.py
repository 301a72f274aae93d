"""Conversations as tokens: prompts to be answered, and rows to be learnt."""

from __future__ import annotations

from lmsmith.corpus.messages import Message, validate_messages
from lmsmith.prompts.chat import Prompt, PromptTooLong, encode_prompt, room_for_reply

__all__ = [
    "Message",
    "Prompt",
    "PromptTooLong",
    "encode_prompt",
    "room_for_reply",
    "validate_messages",
]
