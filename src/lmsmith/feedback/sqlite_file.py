"""SQLite's files: private, and those that the connection opened, whenever anything is saved."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

log = logging.getLogger("lmsmith.feedback")

REMOVED = "the database file was removed or replaced"
"""In errors of transactions that are lost with the file."""

_SUFFIXES = ("", "-wal", "-shm", "-journal")


def make_private(path: Path) -> None:
    """Create a file that is missing, and let nobody but its owner read one that is there.

    SQLite gives the files beside it the same permissions.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    for suffix in _SUFFIXES:
        file = Path(f"{path}{suffix}")
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(file.stat().st_mode)
            if not stat.S_ISREG(file.stat().st_mode) or not mode & 0o077:
                continue
            try:
                file.chmod(mode & 0o700)
            except OSError as error:
                log.warning("%s: others on this machine may read it (%s)", file, error.strerror)
            else:
                log.warning("%s: others on this machine could read it; they no longer can", file)


class SqliteFile:
    """A database's file, which must stay where it is as long as it is used.

    When it is removed or replaced, nothing is read or saved until it is back, or the program is
    started again: a log that belongs to another file would damage both.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: _Identity = ()

    def connect(self) -> sqlite3.Connection:
        """Open the file; SQLite alone would make an empty one in place of a removed one, and delete
        the log beside an empty one."""
        if self._now()[:1] != (self._opened or self._now()[:1]):
            raise sqlite3.OperationalError(f"{self._path}: {REMOVED}; nothing was saved")
        address = f"file:{quote(str(self._path))}?mode=rw"
        made = sqlite3.connect(address, uri=True, check_same_thread=False, factory=_Connection)
        try:
            # Write-ahead log; every commit is on the disk; deleted data is overwritten.
            made.executescript(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;"
                "PRAGMA busy_timeout = 10000; PRAGMA secure_delete = ON"
            )
            made.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log
            self._opened = self._opened or self._now()[:1]
            made.check = partial(self._check, self._opened + self._now()[1:])
            made.check()
        except BaseException:
            made.close()
            raise
        return made

    def _check(self, opened: _Identity) -> None:
        if self._now() != opened:
            raise sqlite3.OperationalError(f"{self._path}: {REMOVED}; nothing was saved")

    def _now(self) -> _Identity:
        """Device and inode of the database and of its log."""
        return tuple(map(_identity, (self._path, Path(f"{self._path}-wal"))))


_Identity = tuple[tuple[int, int] | None, ...]


class _Connection(sqlite3.Connection):
    """A connection that acknowledges nothing in a file that has no name any more.

    Raises:
        sqlite3.OperationalError: from `commit` and `check`, if the file was removed or replaced,
            or its write-ahead log.
    """

    check: Callable[[], None]

    def commit(self) -> None:
        super().commit()
        self.check()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
