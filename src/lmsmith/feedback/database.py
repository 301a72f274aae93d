"""The database: opened, brought up to date, and safe against a kill; its transactions."""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from lmsmith.core.errors import UserError
from lmsmith.core.files import storage_error
from lmsmith.core.paths import database_file
from lmsmith.feedback.sqlite_file import SqliteFile, make_private


class NotThere(UserError):
    """There is no such thing, or it is another person's."""


NAMES_A_QUERY = 500
"""Names looked up at once; SQLite limits the variables of a query."""


class Database:
    """A database, a file or a URL; raises UserError if it cannot be opened.

    Attributes:
        option: names it in commands that messages advise; empty for the default one.
    """

    def __init__(self, where: str | Path) -> None:
        self.option = option_of(where)
        self.engine = open_database(where)
        self.session = sessionmaker(self.engine, expire_on_commit=False)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def exclusive(self, lock: int) -> Iterator[Session]:
        """A transaction that holds PostgreSQL's advisory lock; SQLite has one writer anyway."""
        with self.session.begin() as session:
            if self.engine.dialect.name == "sqlite":
                session.execute(text("BEGIN IMMEDIATE"))
            else:
                session.execute(text(f"SELECT pg_advisory_xact_lock({lock:d})"))
            yield session

    def scrub(self) -> None:
        """Remove what was deleted from SQLite's log."""
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as connection:
                connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))


def failed(error: DatabaseError) -> bool:
    """Whether the database is out of reach or damaged; otherwise a statement of ours is wrong."""
    return type(error) in (OperationalError, DatabaseError)


def default_database() -> str:
    """The database that commands use if none is named."""
    return str(database_file())


def open_database(where: str | Path) -> Engine:
    """A database with the current tables; a file is made if it is missing.

    Raises:
        UserError: it cannot be opened, or was made by a later lmsmith.
    """
    url = str(where) if "://" in str(where) else f"sqlite:///{Path(where).absolute()}"
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {}
    if (file := _file_of(url)) is not None:
        options["creator"] = SqliteFile(file).connect
        try:
            make_private(file)
        except OSError as error:
            raise storage_error(file, error) from error
    try:
        # A database server may restart: connections are tried before they are used.
        # Parameters, which hold what people said, stay out of errors and logs.
        engine = create_engine(
            _with_driver(url),
            pool_pre_ping=not url.startswith("sqlite"),
            hide_parameters=True,
            **options,
        )
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        problem = f"{make_safe(url)}: no database that can be opened ({error})"
        raise UserError(problem, "name a file, or a URL such as postgresql://host/name") from error
    if file is not None:
        event.listen(engine, "checkout", _check_file)
    elif engine.dialect.name == "sqlite":  # in memory
        event.listen(engine, "connect", _prepare_sqlite)
    if engine.dialect.name == "postgresql":
        event.listen(engine, "before_cursor_execute", _without_nul, retval=True)
    try:
        with engine.begin() as connection:
            _bring_up_to_date(connection, make_safe(url))
    except DatabaseError as error:
        engine.dispose()
        raise UserError(
            f"{make_safe(url)}: cannot be used as a database ({error.orig})",
            "name another file, or none to make one",
        ) from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def make_safe(url: str) -> str:
    """A URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "the URL"


def option_of(where: str | Path) -> str:
    """The command-line option that names a database; empty for the default one."""
    name = str(where)
    if name == default_database():
        return ""
    return f" --database {shlex.quote(make_safe(name) if '://' in name else name)}"


def _with_driver(url: str) -> str:
    """PostgreSQL by psycopg 3."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}+psycopg{separator}{rest}" if scheme == "postgresql" else url


def _without_nul(
    _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: object
) -> tuple[str, Any]:
    """PostgreSQL has no character U+0000 in its texts; U+FFFD replaces it."""

    def replaced(values: Any) -> Any:
        if isinstance(values, list | tuple):
            return type(values)(map(replaced, values))
        if isinstance(values, dict):
            return {name: replaced(value) for name, value in values.items()}
        return values.replace("\0", "\ufffd") if isinstance(values, str) else values

    return statement, replaced(parameters)


def _file_of(url: str) -> Path | None:
    """The file of an SQLite database; None for another one, or one in memory."""
    try:
        parts = make_url(url)
    except ArgumentError:
        return None
    if parts.get_backend_name() != "sqlite" or parts.database in (None, "", ":memory:"):
        return None
    name = str(parts.database)
    return None if name.startswith("file:") else Path(name).absolute()


def _check_file(connection: Any, *_: object) -> None:
    try:
        connection.check()
    except sqlite3.OperationalError as error:
        raise OperationalError("", {}, error) from error


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


def _bring_up_to_date(connection: Connection, name: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current == scripts.get_current_head():
        return
    known = {script.revision for script in scripts.walk_revisions()}
    if current is not None and current not in known:
        raise UserError(
            f"{name} was made by a later lmsmith (tables of version {current})",
            "update lmsmith, or name another database",
        )
    command.upgrade(config, "head")
