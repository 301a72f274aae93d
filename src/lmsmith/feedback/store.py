"""The store: conversations as trees of messages, and judgements of their answers.

Every query names the person it is for: nobody reaches what is another's, whatever ids they guess.
What is written is safe once a function has returned.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy import delete, func, literal, or_, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from lmsmith.core.errors import UserError
from lmsmith.core.files import missing
from lmsmith.corpus.messages import validate_messages
from lmsmith.feedback.database import NAMES_A_QUERY, default_database, failed, make_safe
from lmsmith.feedback.database import NotThere as NotThere
from lmsmith.feedback.deletion import delete_conversation
from lmsmith.feedback.people import PersonStore
from lmsmith.feedback.tables import (
    VERDICTS,
    BetterAnswer,
    Comparison,
    Conversation,
    Message,
    Person,
    RankedAnswers,
    Rating,
    now,
)

_AFTER = {
    "system": (None,),
    "user": (None, "system", "user", "assistant"),
    "assistant": ("user",),
}
"""Roles that a role may follow; None is the beginning. A user may go on after a message without an
answer."""

MOST_MESSAGES, MOST_CHARACTERS = 20_000, 20_000_000
"""Limits of a conversation, which is read as a whole."""

TOO_LARGE = (
    f"a conversation has {MOST_MESSAGES:,} messages and {MOST_CHARACTERS:,} characters at most"
)

Judgement = TypeVar("Judgement", Rating, BetterAnswer, Comparison)


class Store(PersonStore):
    """The database of one server, or of one file: people, conversations, judgements."""

    # People

    def names(self, people: Iterable[str]) -> dict[str, str]:
        """Names by id, of those who are there."""
        wanted, found = list(people), dict[str, str]()
        with self.session() as session:
            for first in range(0, len(wanted), NAMES_A_QUERY):
                part = Person.id.in_(wanted[first : first + NAMES_A_QUERY])
                query = select(Person.id, Person.name).where(part)
                found |= {row.id: row.name for row in session.execute(query)}
        return found

    def compares(self, person: str) -> bool:
        """Whether a person is shown two versions of a model side by side."""
        with self.session() as session:
            return session.get_one(Person, person).compares

    def set_compares(self, person: str, compares: bool) -> None:
        """Opt in or out of being shown two versions."""
        with self.session.begin() as session:
            session.get_one(Person, person).compares = compares

    # Conversations

    def begin(self, person: str, title: str = "") -> Conversation:
        """A new conversation."""
        with self.session.begin() as session:
            made = Conversation(person_id=person, title=title)
            session.add(made)
            return made

    def conversations(self, person: str, search: str = "") -> list[Conversation]:
        """A person's, the last used first; with ``search``, those that contain this text."""
        query = select(Conversation).where(Conversation.person_id == person)
        if search:
            found = select(Message.id).where(
                Message.conversation_id == Conversation.id,
                Message.content.icontains(search, autoescape=True),
            )
            query = query.where(
                or_(Conversation.title.icontains(search, autoescape=True), found.exists())
            )
        with self.session() as session:
            return list(session.scalars(query.order_by(Conversation.updated.desc())))

    def rename(self, person: str, conversation: str, title: str) -> None:
        with self.session.begin() as session:
            _conversation(session, person, conversation).title = title

    def delete(self, person: str, conversation: str) -> None:
        """Delete a conversation and all judgements of it."""
        with self.session.begin() as session:
            delete_conversation(session, _conversation(session, person, conversation).id)
        self.scrub()

    def add_message(
        self,
        person: str,
        conversation: str,
        parent: int | None,
        role: str,
        content: str,
        *,
        model: str = "",
        settings: dict[str, Any] | None = None,
        finish: str = "",
    ) -> Message:
        """Add a message after another; several after one are siblings.

        Raises:
            NotThere: the conversation or the parent is not this person's.
            UserError: a message of this role cannot follow the parent, or there are too many.
        """
        with self.session.begin() as session:
            _conversation(session, person, conversation).updated = now()
            _check_room(session, conversation, 1, len(content))
            before = None
            if parent is not None:
                found = _message(session, person, parent)
                if found.conversation_id != conversation:
                    raise NotThere(f"message {parent} is in another conversation")
                before = found.role
            check_order(role, before)
            made = Message(
                conversation_id=conversation,
                parent_id=parent,
                role=role,
                content=content,
                model=model,
                settings=settings or {},
                finish=finish,
            )
            session.add(made)
            return made

    def tree(self, person: str, conversation: str) -> list[Message]:
        """All messages, each after its parent, siblings in the order they were said."""
        with self.session() as session:
            _conversation(session, person, conversation)
            query = select(Message).where(Message.conversation_id == conversation)
            return list(session.scalars(query.order_by(Message.id)))

    def check_room(self, person: str, conversation: str, messages: int) -> None:
        """Raises UserError if a conversation cannot take so many messages more."""
        with self.session() as session:
            _conversation(session, person, conversation)
            _check_room(session, conversation, messages, 1)

    def path(self, person: str, message: int) -> list[Message]:
        """The messages from the beginning to this one."""
        with self.session() as session:
            return path_to(session, _message(session, person, message))

    # Judgements

    def rate(
        self, person: str, message: int, value: int, reasons: Sequence[str] = (), comment: str = ""
    ) -> Rating:
        """Thumbs up or down; a second one by the same person replaces the first."""
        if value not in (-1, 1):
            raise UserError(f"value = {value}: 1 is thumbs up, -1 thumbs down")
        with self.session.begin() as session:
            _answer(session, person, message)
            made = Rating(
                message_id=message,
                person_id=person,
                value=value,
                reasons=list(reasons),
                comment=comment,
            )
            return _replace(session, made, Rating.message_id == message)

    def improve(self, person: str, message: int, content: str) -> BetterAnswer:
        """Save a better answer than a model's."""
        if not content.strip():
            raise UserError("a better answer must not be empty")
        with self.session.begin() as session:
            _answer(session, person, message)
            made = BetterAnswer(message_id=message, person_id=person, content=content)
            return _replace(session, made, BetterAnswer.message_id == message)

    def compare(self, person: str, left: int, right: int, verdict: str) -> Comparison:
        """Judge two answers to one message; raises UserError if they are not, and for a verdict
        other than `VERDICTS`."""
        if verdict not in VERDICTS:
            raise UserError(f"verdict {verdict!r}: expected one of {', '.join(VERDICTS)}")
        with self.session.begin() as session:
            first, second = _answer(session, person, left), _answer(session, person, right)
            if left == right or first.parent_id != second.parent_id:
                raise UserError(f"{left} and {right} are not two answers to one message")
            made = Comparison(left_id=left, right_id=right, person_id=person, verdict=verdict)
            same = Comparison.left_id == left, Comparison.right_id == right
            return _replace(session, made, *same)

    def judgements(self, person: str, conversation: str) -> dict[int, dict[str, Any]]:
        """A person's judgements of the answers in a conversation, by message."""
        found: dict[int, dict[str, Any]] = {}
        with self.session() as session:
            _conversation(session, person, conversation)
            inside = select(Message.id).where(Message.conversation_id == conversation)

            def judged(table: type[Judgement], message: Any) -> Iterator[Judgement]:
                query = select(table).where(table.person_id == person, message.in_(inside))
                return iter(session.scalars(query))

            for each in judged(Rating, Rating.message_id):
                rating = {"value": each.value, "reasons": each.reasons, "comment": each.comment}
                found.setdefault(each.message_id, {})["rating"] = rating
            for better in judged(BetterAnswer, BetterAnswer.message_id):
                found.setdefault(better.message_id, {})["better"] = better.content
            for compared in judged(Comparison, Comparison.left_id):
                pair = {"left": compared.left_id, "right": compared.right_id}
                for message in pair.values():
                    comparisons = found.setdefault(message, {}).setdefault("comparisons", [])
                    comparisons.append({**pair, "verdict": compared.verdict})
        return found


@contextlib.contextmanager
def open_store(database: str = "", *, new: bool = False) -> Iterator[Store]:
    """Open a database, and close it at the end.

    Args:
        database: a file, or a URL such as postgresql://host/name; the server's if empty.
        new: whether a file that is missing is made.

    Raises:
        UserError: there is none, or it fails within the block.
    """
    database = database or default_database()
    if not new and "://" not in database and not Path(database).is_file():
        raise UserError(
            missing(database),
            "name the database that the server prints when it starts: --database FILE",
        )
    with contextlib.closing(Store(database)) as store:
        try:
            yield store
        except DatabaseError as error:
            if not failed(error):
                raise
            name = make_safe(database) if "://" in database else database
            raise UserError(
                f"{name}: the database failed ({error.orig})",
                "see to its disk and its permissions, then run the same command again",
            ) from error


def check_order(role: str, before: str | None, where: str = "") -> None:
    """Raises UserError if a message may not follow one of another role, or None, the beginning."""
    if before not in _AFTER.get(role, ()):
        after = before or "the beginning"
        raise UserError(f"{where}a message of {role!r} cannot follow {after}")


def path_to(session: Session, message: Message) -> list[Message]:
    """A message, after those that it follows, in one query however many there are."""
    up = (
        select(Message.id, Message.parent_id, literal(0).label("above"))
        .where(Message.id == message.id)
        .cte("up", recursive=True)
    )
    before = select(Message.id, Message.parent_id, up.c.above + 1)
    up = up.union_all(before.join(up, Message.id == up.c.parent_id))
    query = select(Message).join(up, Message.id == up.c.id).order_by(up.c.above.desc())
    return list(session.scalars(query))


class Said(Protocol):
    """A message, as much of it as a model reads."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


def as_turns(path: Sequence[Said]) -> list[dict[str, str]]:
    """Messages as models and recipes read them: consecutive ones of one role are one turn."""
    return [
        {"role": role, "content": "\n\n".join(message.content for message in turn)}
        for role, turn in itertools.groupby(path, lambda message: message.role)
    ]


def new_ranking(
    person: str,
    prompt: Sequence[dict[str, str]],
    responses: Sequence[str],
    ranks: Sequence[int],
    origin: str | None = None,
) -> RankedAnswers:
    """A ranking that is in no database yet; rank 1 is the best, equal numbers are ties.

    Raises:
        UserError: it is no ranking of two or more answers to a user's message.
    """
    messages = validate_messages([dict(message) for message in prompt], "the prompt")
    if messages[-1]["role"] != "user":
        raise UserError("the prompt must end with the user's message")
    if len(responses) < 2 or len(ranks) != len(responses) or min(ranks) < 1:
        raise UserError(f"{len(responses)} answers, ranks {list(ranks)}: one from 1 for each")
    return RankedAnswers(
        person_id=person,
        prompt=messages,
        responses=list(responses),
        ranks=list(ranks),
        origin=origin,
    )


def _conversation(session: Session, person: str, conversation: str) -> Conversation:
    query = select(Conversation).where(
        Conversation.id == conversation, Conversation.person_id == person
    )
    if (found := session.scalar(query)) is None:
        raise NotThere(f"there is no conversation {conversation}")
    return found


def _check_room(session: Session, conversation: str, messages: int, characters: int) -> None:
    query = select(func.count(), func.coalesce(func.sum(func.length(Message.content)), 0))
    found = session.execute(query.where(Message.conversation_id == conversation)).one()
    if found[0] + messages > MOST_MESSAGES or found[1] + characters > MOST_CHARACTERS:
        raise UserError(TOO_LARGE, "begin another one")


def _message(session: Session, person: str, message: int) -> Message:
    query = (
        select(Message)
        .join(Conversation, Message.conversation_id == Conversation.id)
        .where(Message.id == message, Conversation.person_id == person)
    )
    if (found := session.scalar(query)) is None:
        raise NotThere(f"there is no message {message}")
    return found


def _answer(session: Session, person: str, message: int) -> Message:
    found = _message(session, person, message)
    if found.role != "assistant":
        raise UserError(f"message {message} is not an answer of a model")
    return found


def _replace(session: Session, made: Judgement, *same: Any) -> Judgement:
    """Add a judgement, and delete this person's earlier one of the same."""
    table = type(made)
    session.execute(delete(table).where(table.person_id == made.person_id, *same))
    session.add(made)
    return made
