"""What all parts of the store have in common: the database, and what is not in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from lmsmith.core.errors import UserError
from lmsmith.feedback.database import open_database, option_of


class NotThere(UserError):
    """There is no such thing, or it is another person's."""


NAMES_A_QUERY = 500
"""That are looked up at once; SQLite takes no more than so many thousands of variables."""


class Kept:
    """A database.

    Args:
        where: a file, or a database's URL.

    Attributes:
        option: how a command line names it, for commands that messages advise; empty for the
            server's own database, which commands open anyway.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, where: str | Path) -> None:
        self.option = option_of(where)
        self.engine = open_database(where)
        self.session = sessionmaker(self.engine, expire_on_commit=False)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def exclusive(self, lock: int) -> Iterator[Session]:
        """A transaction beside which none runs that holds the same lock.

        Args:
            lock: PostgreSQL's advisory lock; SQLite has one writer, whatever it does.
        """
        with self.session.begin() as session:
            if self.engine.dialect.name == "sqlite":
                session.execute(text("BEGIN IMMEDIATE"))
            else:
                session.execute(text(f"SELECT pg_advisory_xact_lock({lock:d})"))
            yield session

    def scrub(self) -> None:
        """Leave nothing of what was deleted in SQLite's log."""
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as connection:
                connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
