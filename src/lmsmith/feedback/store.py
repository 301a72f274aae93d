"""What people say and judge, written so that it is safe once a function has returned.

Every query names the person it is for: nobody reaches what is another's, whatever ids they guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import delete, func, or_, select, text
from sqlalchemy.orm import Session, sessionmaker

from lmsmith.core.errors import UserError
from lmsmith.corpus.messages import validate_messages
from lmsmith.feedback.database import open_database
from lmsmith.feedback.tables import (
    ROLES,
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

Judgement = TypeVar("Judgement", Rating, BetterAnswer, Comparison)

_AFTER = {"system": (None,), "user": (None, "system", "assistant"), "assistant": ("user",)}
"""Whom a role may follow; None is the beginning."""


class NotThere(UserError):
    """There is no such thing, or it is another person's."""


class Store:
    """The database of one server, or of one file.

    Args:
        where: a file, or a database's URL.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, where: str | Path) -> None:
        self.engine = open_database(where)
        self.session = sessionmaker(self.engine, expire_on_commit=False)

    def close(self) -> None:
        self.engine.dispose()

    # People

    def person(self, name: str, role: str = "user") -> Person:
        """The person of that name, who is added if new."""
        if not name.strip() or len(name) > 200 or role not in ROLES:
            expected = f"a name of 1 to 200 characters, and a role of {', '.join(ROLES)}"
            raise UserError(f"{name!r}, {role!r}: expected {expected}")
        with self.session.begin() as session:
            found = session.scalar(select(Person).where(Person.name == name))
            if found is None:
                found = Person(name=name, role=role)
                session.add(found)
            return found

    def delete_person(self, person: str) -> None:
        """A person and all that is theirs is gone, also from what is exported later."""
        with self.session.begin() as session:
            session.execute(delete(Person).where(Person.id == person))
        self._scrub()

    # Conversations

    def begin(self, person: str, title: str = "") -> Conversation:
        """A new conversation."""
        with self.session.begin() as session:
            made = Conversation(person_id=person, title=title)
            session.add(made)
            return made

    def conversations(self, person: str, search: str = "") -> list[Conversation]:
        """A person's, the last used first; with ``search``, those in which it is said."""
        query = select(Conversation).where(Conversation.person_id == person)
        if search:
            said = select(Message.id).where(
                Message.conversation_id == Conversation.id,
                Message.content.icontains(search, autoescape=True),
            )
            query = query.where(
                or_(Conversation.title.icontains(search, autoescape=True), said.exists())
            )
        with self.session() as session:
            return list(session.scalars(query.order_by(Conversation.updated.desc())))

    def rename(self, person: str, conversation: str, title: str) -> None:
        with self.session.begin() as session:
            _conversation(session, person, conversation).title = title

    def delete(self, person: str, conversation: str) -> None:
        """A conversation and all judgements of it are gone."""
        with self.session.begin() as session:
            session.delete(_conversation(session, person, conversation))
        self._scrub()

    # Messages

    def say(
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
            UserError: one of this role does not follow there.
        """
        with self.session.begin() as session:
            _conversation(session, person, conversation).updated = now()
            before = None
            if parent is not None:
                found = _message(session, person, parent)
                if found.conversation_id != conversation:
                    raise NotThere(f"message {parent} is in another conversation")
                before = found.role
            if before not in _AFTER.get(role, ()):
                after = before or "the beginning"
                raise UserError(f"a message of {role!r} cannot follow {after}")
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

    def path(self, person: str, message: int) -> list[Message]:
        """The messages from the beginning to this one."""
        with self.session() as session:
            return path_to(session, _message(session, person, message))

    # Judgements

    def rate(
        self,
        person: str,
        message: int,
        value: int,
        reasons: Sequence[str] = (),
        comment: str = "",
    ) -> Rating:
        """Thumbs up or down; a second one by the same person takes the first one's place."""
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
            return _in_place(session, made, Rating.message_id == message)

    def improve(self, person: str, message: int, content: str) -> BetterAnswer:
        """Say what would have been better than an answer."""
        if not content.strip():
            raise UserError("a better answer must not be empty")
        with self.session.begin() as session:
            _answer(session, person, message)
            made = BetterAnswer(message_id=message, person_id=person, content=content)
            return _in_place(session, made, BetterAnswer.message_id == message)

    def compare(self, person: str, left: int, right: int, verdict: str) -> Comparison:
        """Say which of two answers to one message is better.

        Raises:
            UserError: they are not two answers to one message, or there is no such verdict.
        """
        if verdict not in VERDICTS:
            raise UserError(f"verdict {verdict!r}: expected one of {', '.join(VERDICTS)}")
        with self.session.begin() as session:
            first, second = _answer(session, person, left), _answer(session, person, right)
            if left == right or first.parent_id != second.parent_id:
                raise UserError(f"{left} and {right} are not two answers to one message")
            made = Comparison(left_id=left, right_id=right, person_id=person, verdict=verdict)
            same = Comparison.left_id == left, Comparison.right_id == right
            return _in_place(session, made, *same)

    def rank(
        self,
        person: str,
        prompt: Sequence[dict[str, str]],
        responses: Sequence[str],
        ranks: Sequence[int],
        models: Sequence[str] = (),
        shown: Sequence[int] = (),
    ) -> RankedAnswers:
        """Say in what order answers to a prompt are good, 1 for the best; ties are equal numbers.

        Raises:
            UserError: it is no ranking of two or more answers to a user's message.
        """
        messages = validate_messages([dict(message) for message in prompt], "the prompt")
        if messages[-1]["role"] != "user":
            raise UserError("the prompt must end with the user's message")
        if len(responses) < 2 or len(ranks) != len(responses) or min(ranks) < 1:
            raise UserError(f"{len(responses)} answers, ranks {list(ranks)}: one from 1 for each")
        with self.session.begin() as session:
            made = RankedAnswers(
                person_id=person,
                prompt=messages,
                responses=list(responses),
                ranks=list(ranks),
                models=list(models),
                shown=list(shown),
            )
            session.add(made)
            return made

    def judgements(self, person: str, conversation: str) -> dict[int, dict[str, Any]]:
        """A person's judgements of the answers in a conversation, by message."""
        found: dict[int, dict[str, Any]] = {}
        with self.session() as session:
            _conversation(session, person, conversation)
            inside = select(Message.id).where(Message.conversation_id == conversation)
            for rating in session.scalars(
                select(Rating).where(Rating.person_id == person, Rating.message_id.in_(inside))
            ):
                found.setdefault(rating.message_id, {})["rating"] = {
                    "value": rating.value,
                    "reasons": rating.reasons,
                    "comment": rating.comment,
                }
            for better in session.scalars(
                select(BetterAnswer).where(
                    BetterAnswer.person_id == person, BetterAnswer.message_id.in_(inside)
                )
            ):
                found.setdefault(better.message_id, {})["better"] = better.content
            for compared in session.scalars(
                select(Comparison).where(
                    Comparison.person_id == person, Comparison.left_id.in_(inside)
                )
            ):
                verdict = {"left": compared.left_id, "right": compared.right_id}
                for message in verdict.values():
                    compared_with = found.setdefault(message, {}).setdefault("comparisons", [])
                    compared_with.append({**verdict, "verdict": compared.verdict})
        return found

    def counts(self) -> dict[str, int]:
        """How much there is of everything."""
        tables = (Person, Conversation, Message, Rating, BetterAnswer, Comparison, RankedAnswers)
        with self.session() as session:
            return {
                table.__tablename__: session.scalar(select(func.count()).select_from(table)) or 0
                for table in tables
            }

    def _scrub(self) -> None:
        """Leave nothing of what was deleted in SQLite's log."""
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as connection:
                connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))


def path_to(session: Session, message: Message) -> list[Message]:
    """A message, after those that it follows."""
    path = [message]
    while path[0].parent_id is not None:
        path.insert(0, session.get_one(Message, path[0].parent_id))
    return path


def _conversation(session: Session, person: str, conversation: str) -> Conversation:
    query = select(Conversation).where(
        Conversation.id == conversation, Conversation.person_id == person
    )
    found = session.scalar(query)
    if found is None:
        raise NotThere(f"there is no conversation {conversation}")
    return found


def _message(session: Session, person: str, message: int) -> Message:
    query = (
        select(Message)
        .join(Conversation, Message.conversation_id == Conversation.id)
        .where(Message.id == message, Conversation.person_id == person)
    )
    found = session.scalar(query)
    if found is None:
        raise NotThere(f"there is no message {message}")
    return found


def _answer(session: Session, person: str, message: int) -> Message:
    found = _message(session, person, message)
    if found.role != "assistant":
        raise UserError(f"message {message} is no answer of a model")
    return found


def _in_place(session: Session, made: Judgement, *same: Any) -> Judgement:
    """Add a judgement in the place of this person's earlier one of the same."""
    table = type(made)
    session.execute(delete(table).where(table.person_id == made.person_id, *same))
    session.add(made)
    return made
