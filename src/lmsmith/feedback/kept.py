"""What all parts of the store have in common: the database, and what is not in it."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text
from sqlalchemy.orm import sessionmaker

from lmsmith.core.errors import UserError
from lmsmith.feedback.database import open_database


class NotThere(UserError):
    """There is no such thing, or it is another person's."""


class Kept:
    """A database.

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

    def scrub(self) -> None:
        """Leave nothing of what was deleted in SQLite's log."""
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as connection:
                connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
