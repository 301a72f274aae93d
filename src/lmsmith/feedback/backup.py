"""A database's backup in one file, and its way back, while a server reads and writes.

SQLite copies by its own online backup: the copy is the database as it was at one moment, and the
way back is one transaction. PostgreSQL has programs for both.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import make_url

from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_file, missing
from lmsmith.feedback.database import default_database, open_database
from lmsmith.feedback.sqlite_file import SqliteFile, make_private

COUNTED = ("people", "conversations", "messages")
"""Tables whose rows a message tells."""

NOT_OURS = "this is no backup of a lmsmith database"


@dataclass(frozen=True)
class DatabaseCopy:
    """What was copied.

    Attributes:
        database: the database.
        file: the backup.
        bytes: its size.
        rows: of `COUNTED` tables.
        before: where the earlier content went, after a restore over one.
    """

    database: str
    file: Path
    bytes: int
    rows: dict[str, int]
    before: Path | None = None

    def as_dict(self) -> dict[str, object]:
        before = {"before": str(self.before)} if self.before else {}
        found = {"database": self.database, "file": str(self.file), "bytes": self.bytes}
        return {**found, "rows": self.rows, **before}


def back_up(database: str, file: Path) -> DatabaseCopy:
    """Write a database's content at this moment into a new file, which its owner alone reads.

    Args:
        database: an SQLite file; the server's if empty.

    Raises:
        UserError: there is no such database, it is PostgreSQL's or damaged, or ``file`` is there.
    """
    path = _sqlite_path(database, "pg_dump --format=custom --file={file} {url}", file)
    if not path.is_file():
        raise UserError(missing(path), "name the server's database: --database FILE")
    if file.exists():
        raise UserError(f"{file}: is there already", "give a new name; no backup is overwritten")
    with _failing_as(path), contextlib.closing(SqliteFile(path).connect()) as source:
        rows = _copied(source, path, file)
    return DatabaseCopy(str(path), file, file.stat().st_size, rows)


def restore(database: str, file: Path) -> DatabaseCopy:
    """Put a backup in a database's place, in one transaction, and bring its tables up to date.

    A server may run: its requests see the earlier content before, and the backup's after. What the
    database held is backed up beside it first.

    Args:
        database: an SQLite file, made if it is missing; the server's if empty.

    Raises:
        UserError: ``file`` is no backup or is damaged, or the database is PostgreSQL's.
    """
    path = _sqlite_path(database, "pg_restore --clean --if-exists --dbname={url} {file}", file)
    if not file.is_file():
        raise UserError(missing(file), "give a file that lmsmith feedback backup has written")
    if path.exists() and file.samefile(path):
        raise UserError(f"{file}: this is the database itself", "give a backup of it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=path.parent) as folder:
        present = Path(folder) / "present.db"
        with _failing_as(file, NOT_OURS), contextlib.closing(_read_only(file)) as source:
            rows = _copied(source, file, present)
        try:
            open_database(present).dispose()  # one of an earlier version gets the present tables
        except UserError as error:
            problem = error.problem.replace(f"sqlite:///{present}", str(file))
            raise UserError(problem, error.fix) from error
        before = _kept(path)
        make_private(path)
        with (
            _failing_as(path),
            contextlib.closing(SqliteFile(path).connect()) as target,
            contextlib.closing(SqliteFile(present).connect()) as source,
        ):
            source.backup(target)
    return DatabaseCopy(str(path), file, file.stat().st_size, rows, before)


def _kept(path: Path) -> Path | None:
    """A backup of what a restore is about to replace; None where there is nothing."""
    if not path.is_file() or not path.stat().st_size:
        return None
    time = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    kept = path.with_name(f"{path.name}.before-restore-{time}")
    with _failing_as(path), contextlib.closing(SqliteFile(path).connect()) as source:
        _copied(source, path, kept, check=False)
    return kept


def _copied(
    source: sqlite3.Connection, path: Path, file: Path, *, check: bool = True
) -> dict[str, int]:
    """Write one file that needs no other beside it; returns its counts."""
    with atomic_file(file) as unfinished:
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with contextlib.closing(sqlite3.connect(unfinished)) as target:
            source.backup(target)  # all pages in one step: a snapshot, which no writer restarts
            target.execute("PRAGMA journal_mode = DELETE")
            return _checked(target, path) if check else {}


def _read_only(file: Path) -> sqlite3.Connection:
    """A file as it stands; a log beside it is read too."""
    alone = "" if Path(f"{file}-wal").exists() else "&immutable=1"
    return sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=ro{alone}", uri=True)


def _checked(connection: sqlite3.Connection, path: Path) -> dict[str, int]:
    """The counts of a database that is whole, and of lmsmith.

    Raises:
        UserError: it is damaged or another program's.
    """
    problems = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
    if problems != ["ok"]:
        raise UserError(f"{path}: the database is damaged ({'; '.join(problems)[:200]})", RESTORE)
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    if not {"alembic_version", *COUNTED} <= names:
        raise UserError(
            f"{path}: {NOT_OURS}", "give a file that lmsmith feedback backup has written"
        )
    counts = [connection.execute(f"SELECT count(*) FROM {name}") for name in COUNTED]
    return {name: int(count.fetchone()[0]) for name, count in zip(COUNTED, counts, strict=True)}


RESTORE = "put an earlier backup in its place: lmsmith feedback restore FILE"


@contextlib.contextmanager
def _failing_as(path: Path, problem: str = "cannot be used as a database") -> Iterator[None]:
    """SQLite's errors as a message that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        fix = "free space, then run it again" if "is full" in str(error) else RESTORE
        raise UserError(f"{path}: {problem} ({error})", fix) from error


def _sqlite_path(database: str, otherwise: str, file: Path) -> Path:
    """The file of a database; raises UserError with PostgreSQL's command if it is a server's."""
    name = database or default_database()
    if "://" not in name:
        return Path(name)
    url = make_url(name)
    if url.get_backend_name() == "sqlite" and url.database:
        return Path(url.database)
    plain = url._replace(drivername="postgresql", password=None).render_as_string()
    command = otherwise.format(file=shlex.quote(str(file)), url=shlex.quote(plain))
    raise UserError(
        f"{plain}: PostgreSQL has its own programs for this",
        f"run: {command} (the password comes from ~/.pgpass or PGPASSWORD)",
    )
