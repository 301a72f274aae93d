"""What people say and judge, written so that it is safe once a function has returned.

Every query names the person it is for: nobody reaches what is another's, whatever ids they guess.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError

from lmsmith.core.errors import UserError
from lmsmith.core.files import missing
from lmsmith.feedback.conversations import Conversations
from lmsmith.feedback.database import NotThere, default_database
from lmsmith.feedback.judgements import Judgements
from lmsmith.feedback.names import find_person, person_name
from lmsmith.feedback.tables import (
    ROLES,
    BetterAnswer,
    Comparison,
    Conversation,
    Message,
    Person,
    RankedAnswers,
    Rating,
)

__all__ = ["NotThere", "Store", "check_role", "open_store"]


def check_role(role: str) -> None:
    """Raises UserError if there is no such role."""
    if role not in ROLES:
        raise UserError(f"role {role!r}: expected one of {', '.join(ROLES)}")


class Store(Conversations, Judgements):
    """The database of one server, or of one file: people, and all that is theirs."""

    def person(self, name: str, role: str = "user") -> Person:
        """The person of that name, who is added if new."""
        check_role(role)
        try:
            with self.session.begin() as session:
                found = find_person(session, name)
                if found is None:
                    found = Person(name=person_name(name), role=role)
                    session.add(found)
                return found
        except IntegrityError:  # somebody else has added them meanwhile
            with self.session() as session:
                named = select(Person).where(Person.name == person_name(name))
                return session.scalars(named).one()

    def delete_person(self, person: str) -> None:
        """A person and all that is theirs is gone, also from what is exported later."""
        with self.session.begin() as session:
            session.execute(delete(Person).where(Person.id == person))
        self.scrub()

    def counts(self) -> dict[str, int]:
        """How much there is of everything."""
        tables = (Person, Conversation, Message, Rating, BetterAnswer, Comparison, RankedAnswers)
        with self.session() as session:
            return {
                table.__tablename__: session.scalar(select(func.count()).select_from(table)) or 0
                for table in tables
            }


@contextlib.contextmanager
def open_store(database: str = "", *, new: bool = False) -> Iterator[Store]:
    """Open a database, and close it at the end.

    Args:
        database: a file, or a URL such as postgresql://host/name; the server's if empty.
        new: whether a file that is missing is made.

    Raises:
        UserError: there is none.
    """
    database = database or default_database()
    if not new and "://" not in database and not Path(database).is_file():
        raise UserError(
            missing(database),
            "name the database that the server prints when it starts: --database FILE",
        )
    with contextlib.closing(Store(database)) as store:
        yield store
