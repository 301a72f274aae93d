"""The prompts of a database: the turns that lead to a message, from the beginning.

Thousands of judgements may be of one long conversation, and each has a prompt of its own. So a turn
is one object in all prompts, and a conversation's prompts have `MOST_CHARACTERS` in total.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from lmsmith.feedback.tables import Conversation, Message

log = logging.getLogger("lmsmith.feedback")

MOST_CHARACTERS = 100_000_000
"""Most characters of all prompts of a conversation together; a warning tells of those left out."""

OF_MESSAGE = 100
"""Characters that a message counts for beside its text: its part of a file, and of a list."""


@dataclass(frozen=True)
class Said:
    """A message, as much of it as judgements need.

    Attributes:
        turn: its role and its content.
        person: who asked; nobody in the importer's conversations.
        length: characters of the prompt that ends with it.
    """

    parent: int | None
    turn: dict[str, str]
    model: str
    conversation: str
    person: str
    created: datetime
    length: int

    @property
    def role(self) -> str:
        return self.turn["role"]

    @property
    def content(self) -> str:
        return self.turn["content"]


class Paths(Mapping[int, Said]):
    """All messages of a database, by id.

    Args:
        importer: a person whose messages are nobody's.
    """

    def __init__(self, session: Session, importer: str | None = None) -> None:
        query = select(
            Message.id,
            Message.parent_id,
            Message.role,
            Message.content,
            Message.model,
            Message.conversation_id,
            Conversation.person_id,
            Message.created,
        ).join(Conversation, Message.conversation_id == Conversation.id)
        self._said: dict[int, Said] = {}
        self._given = Counter[str]()
        for number, parent, role, text, model, name, person, created in session.execute(
            query.order_by(Message.id)  # a parent is older than its children
        ):
            before = 0 if parent is None else self._said[parent].length
            length, asker = before + len(text) + OF_MESSAGE, "" if person == importer else person
            turn = {"role": role, "content": text}
            self._said[number] = Said(parent, turn, model, name, asker, created, length)

    def __getitem__(self, number: int) -> Said:
        return self._said[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._said)

    def __len__(self) -> int:
        return len(self._said)

    def prompt(self, number: int | None) -> list[dict[str, str]] | None:
        """The turns from the first message to this one, as the model read them; None if the
        prompts of its conversation are too long together."""
        path: list[Said] = []
        if number is not None:
            last = self._said[number]
            if self._given[last.conversation] + last.length > MOST_CHARACTERS:
                self._warn(last.conversation)
                return None
            self._given[last.conversation] += last.length
        while number is not None:
            path.append(self._said[number])
            number = path[-1].parent
        return list(_turns(path[::-1]))

    def _warn(self, conversation: str) -> None:
        if self._given[conversation] <= MOST_CHARACTERS:
            self._given[conversation] = MOST_CHARACTERS + 1  # and no later one fits
            log.warning(
                "conversation %s: its prompts have more than %d characters together; "
                "judgements and prompts beyond them are left out",
                conversation,
                MOST_CHARACTERS,
            )


def _turns(path: list[Said]) -> Iterator[dict[str, str]]:
    """As `store.as_turns`, but a turn of one message is the message's own in all prompts."""
    for role, same in itertools.groupby(path, lambda each: each.role):
        first, *others = same
        text = "\n\n".join([first.content, *(each.content for each in others)])
        yield {"role": role, "content": text} if others else first.turn
