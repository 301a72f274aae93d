"""One run at a time in a run folder: a lock that the system releases however a process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from lmsmith.core.errors import UserError
from lmsmith.core.files import storage_error
from lmsmith.core.progress import Progress

_locks: set[int] = set()  # descriptors of the run folders this process has locked


def _close_locks_in_child() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


# A forked worker that outlives a killed run would otherwise keep the folder locked.
os.register_at_fork(after_in_child=_close_locks_in_child)


@contextlib.contextmanager
def locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of ``folder``, which is made if need be.

    Raises:
        UserError: another process holds it (named), or the folder cannot be written to.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # No link is followed: the file is written to.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except FileNotFoundError as error:  # below /proc, say
        raise UserError(f"{folder}: no folder can be made there", "Choose another.") from error
    except OSError as error:
        raise storage_error(path, error) from error
    _locks.add(descriptor)
    holder = "unknown"
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(OSError):  # a pipe
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or holder
            raise UserError(
                f"{folder}: another process is at work here (process {holder})",
                "Wait for its end, stop it, or choose another folder.",
            ) from None
        except OSError as error:  # some network file systems know no locks
            progress.say(f"{folder} cannot be locked ({error.strerror}): start no second run in it")
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        if descriptor in _locks:
            _locks.discard(descriptor)
            os.close(descriptor)
