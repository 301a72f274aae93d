"""A PostgreSQL of the test's own: in a temporary folder, on a socket, and gone at the end."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

SETTINGS = (
    "listen_addresses=", "max_connections=30", "shared_buffers=16MB",
    "recovery_init_sync_method=syncfs",
)  # fmt: skip
"""No port: whoever may read the folder may connect."""


class Postgres:
    """A server that can be killed and started again.

    Args:
        folder: an empty one; the server's data, its log and its socket stand there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, itertools.count()
        # The server refuses to be root.
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        made = subprocess.run(
            [_program("initdb"), "-D", folder / "data", "-U", "tester", "-A", "trust",
             "-E", "UTF8", "--no-locale", "--no-sync"],
            cwd=folder, capture_output=True, text=True, check=False, **self._as,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        self.start()

    def start(self) -> None:
        """Return once it answers."""
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_program("postgres"), "-D", self._folder / "data", "-k", self._folder, *settings],
                cwd=self._folder, stdout=log, stderr=log, **self._as,
            )  # fmt: skip
        until = time.monotonic() + 30
        while True:
            try:
                self._run("select 1")
                return
            except Exception:
                if time.monotonic() > until or self._process.poll() is not None:
                    print((self._folder / "log").read_text())
                    raise
                time.sleep(0.05)

    def kill(self) -> None:
        """All of its processes at once, as when the power fails."""
        assert self._process is not None
        parent = self._process.pid
        self._process.send_signal(signal.SIGSTOP)  # so that it starts none again
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for process in [*map(int, children), parent]:  # each has a group of its own
            os.kill(process, signal.SIGKILL)
        self._process.wait()
        (self._folder / "data/postmaster.pid").unlink(missing_ok=True)

    def new_database(self) -> str:
        """The URL of an empty one."""
        name = f"test{next(self._numbers)}"
        self._run(f"create database {name}")
        return f"postgresql://tester@/{name}?host={self._folder}"

    def _run(self, command: str) -> None:
        import psycopg

        where = f"host={self._folder} user=tester dbname=postgres"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(command.encode())


def made() -> Postgres:
    """A new server, or the test is skipped with what is missing."""
    if _program("initdb") is None:
        pytest.skip("PostgreSQL is not here: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not here: pip install 'lmsmith[postgres]'")
    memory = Path("/dev/shm")  # where there is one with room: nothing waits for a disk
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 2 << 30
    return Postgres(
        Path(tempfile.mkdtemp(prefix="lmsmith-postgres-", dir=memory if has_room else None))
    )


def removed(server: Postgres) -> None:
    """Leave nothing of it."""
    server.kill()
    shutil.rmtree(server._folder)


def _program(name: str) -> Any:
    """Debian keeps the server's programs out of the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (found[-1] if found else None)
