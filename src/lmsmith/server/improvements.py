"""Improvements of models: ``lmsmith improve`` in a process of its own, which outlives the server.

The process writes what it shows to ``improvement.log`` beside the versions and its result to
``improvement.json``. It holds the log's lock as long as it runs, which it inherits, so that no
number of a process is trusted: a server that starts again sees whether it still runs, and what came
of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url

from lmsmith.catalogue import versions
from lmsmith.core.files import storage_error

LOG_FILE, RESULT_FILE = "improvement.log", "improvement.json"
LABELLED_FILE = "labelled.log"
ROUND_FILE = "round.json"
"""As in `lmsmith.improve`: it is in the folder ``next`` while a round is under way."""
AT_WORK = ".improving/.lock"
"""As in `lmsmith.improve`: an improvement holds this lock, and its file names the process."""
NICE = 10
"""Added to the niceness of the server."""
LINES = 12
"""Lines of the log that are shown."""
LOG_BYTES = 1 << 16
"""The end of the log that is read."""
RECOUNT_SECONDS = 30.0
"""Judgements are counted again after this time at the earliest."""
WAIT_SECONDS = 5.0
"""Time that a request waits for a first count."""

_STAGE = re.compile(
    r"(data|base|pretrain|sft|previous_reward|reward|ppo|judge|gates):? (?!done in )"
)
_PROGRESS = re.compile(
    r"(?:.*? )?(?P<done>[\d,]+)/(?P<total>[\d,]+) .*?(?:, (?P<left>[^,]*) left)?$"
)
_DURATION = {" h": 3600.0, " min": 60.0, " s": 1.0}


class Improvements:
    """Starts improvements and says how they stand.

    Args:
        database: as commands name it; the server's own if empty.
        recipe: a .toml file of the rounds' settings; the shipped one if empty.
    """

    def __init__(self, database: str = "", recipe: str = "") -> None:
        self._database, self._environment = _database_options(database)
        self._options = [*self._database, *(["--recipe", recipe] if recipe else [])]
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._begun: dict[str, subprocess.Popen[bytes]] = {}
        self._counts: dict[str, dict[str, Any]] = {}
        self._counting: dict[str, asyncio.Task[None]] = {}
        self._counted: dict[str, float] = {}
        self._counted_since: dict[str, int] = {}

    def start(
        self, name: str, word: str, person: str, *, force: bool = False, restart: bool = False
    ) -> bool:
        """Start an improvement, or go on with one that was interrupted; False if one runs.

        Args:
            name: of the versions.
            word: the model that commands take, where it has no versions yet.
            person: who starts it.
            force: go on with little.
            restart: drop the one that was interrupted, and begin with the judgements of now.

        Raises:
            UserError: the folder cannot be written to.
        """
        self._reap()
        folder = versions.folder_of(name)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if self._is_running(folder):
            return False
        with _writing(folder), self._lock, (folder / LOG_FILE).open("ab") as said:
            try:
                fcntl.flock(said, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            said.truncate(0)
            with (folder / RESULT_FILE).open("wb") as result:
                words = ["improve", word, "--name", name, "--by", person, "--json"]
                chosen = {"--force": force, "--restart": restart}
                words += [*(word for word, is_on in chosen.items() if is_on), *self._options]
                process = self._run(words, stdout=result, stderr=said)
                self._processes.append(process)
                self._begun[name] = process
        self._counted.pop(name, None)
        return True

    def stop(self, name: str) -> bool:
        """Ask an improvement to stop: it saves, and can go on later; False if none runs.

        Also one that a command or an earlier server has begun.
        """
        self._reap()
        number = _holder(versions.folder_of(name) / AT_WORK)
        if number is None and name in self._begun:  # it has not begun its round yet
            number = self._begun[name].pid
        if number is None:
            return False
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(number, signal.SIGTERM)
        return True

    def state(self, name: str) -> dict[str, Any] | None:
        """How the last improvement of a name stands; None if there was none.

        ``begun`` says that a round is under way, with which the next improvement goes on.
        """
        self._reap()
        folder = versions.folder_of(name)
        running, begun = self._is_running(folder), (folder / versions.NEXT / ROUND_FILE).is_file()
        if not (running or begun or (folder / LOG_FILE).is_file()):
            return None
        lines = _last_lines(folder / LOG_FILE)
        made = None if begun else _made(folder / RESULT_FILE)
        state = "running" if running else "done" if made else "failed"
        shown = {"log": lines[-LINES:], "version": made, "begun": begun}
        return {"state": state, **_progress(lines), **shown}

    def ask_labelers(self, candidate: str, current: str, count: int) -> None:
        """Put both versions' answers to messages that people sent into the labelling queue.

        A process of its own writes them (`lmsmith feedback sample`); what it says is in
        ``labelled.log``.

        Args:
            candidate, current: versions, such as ``ours@2``.
            count: of the messages, drawn at random.

        Raises:
            UserError: the folder cannot be written to.
        """
        self._reap()
        name, _ = versions.split_version(candidate)
        words = ["feedback", "sample", candidate, current, "--logged", "--answers", "2"]
        words += ["--count", str(count), "--quiet", *self._database]
        folder = versions.folder_of(name)
        with _writing(folder), (folder / LABELLED_FILE).open("wb") as said:
            self._processes.append(self._run(words, stdout=said, stderr=said))

    async def judged(self, name: str, word: str) -> dict[str, Any] | None:
        """What there is to learn from, as ``lmsmith improve --dry-run`` counts it.

        A process of its own counts; what it found before is given meanwhile. None until the first
        count since the newest version was made. If it fails, ``too_little`` has the reason.
        """
        newest = await asyncio.to_thread(_newest, name)
        if self._counted_since.get(name) != newest:
            self._counts.pop(name, None)
        due = time.monotonic() - self._counted.get(name, -RECOUNT_SECONDS) >= RECOUNT_SECONDS
        if (due or name not in self._counts) and name not in self._counting:
            task = asyncio.ensure_future(self._count(name, word, newest))
            self._counting[name] = task
            task.add_done_callback(lambda _: self._counting.pop(name, None))
        if name not in self._counts and name in self._counting:
            await asyncio.wait({self._counting[name]}, timeout=WAIT_SECONDS)
        return self._counts.get(name)

    async def _count(self, name: str, word: str, newest: int) -> None:
        words = ["improve", word, "--name", name, "--dry-run", "--json", *self._options]
        process = self._run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        found, said = await asyncio.to_thread(process.communicate)
        self._counted[name], self._counted_since[name] = time.monotonic(), newest
        try:
            self._counts[name] = json.loads(found)
        except ValueError:  # such as that nobody has judged anything
            reason = said.decode(errors="replace").strip().splitlines()[-LINES:]
            nothing = {"counts": {}, "people": {}, "new": 0, "too_little": reason}
            self._counts[name] = nothing

    def _run(self, words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "lmsmith", *words],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self._environment},
            start_new_session=True,  # Ctrl-C is for the server
            **options,
        )
        with contextlib.suppress(OSError):  # it may have ended
            least = os.getpriority(os.PRIO_PROCESS, 0) + NICE
            os.setpriority(os.PRIO_PROCESS, process.pid, least)
            # Linux may share processors out by session: niceness counts within one alone.
            group = Path(f"/proc/{process.pid}/autogroup")
            if group.exists():
                group.write_text(str(min(least, 19)))
        return process

    def _is_running(self, folder: Path) -> bool:
        """Whether an improvement runs that this server, an earlier one or a command has begun."""
        with self._lock:  # looking takes the log's lock for a moment
            return _is_locked(folder / LOG_FILE) or _holder(folder / AT_WORK) is not None

    def _reap(self) -> None:
        self._processes = [each for each in self._processes if each.poll() is None]
        self._begun = {name: each for name, each in self._begun.items() if each.poll() is None}


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say what is wrong where a folder cannot be written to."""
    try:
        yield
    except OSError as error:
        raise storage_error(folder, error) from error


def _newest(name: str) -> int:
    """The number of the newest version of a name; 0 if there is none."""
    numbers = (each.name for each in versions.folder_of(name).glob("*"))
    return max((int(each) for each in numbers if each.isdecimal()), default=0)


def _database_options(database: str) -> tuple[list[str], dict[str, str]]:
    """Options that name a database, and its password for PostgreSQL's library, which others of
    this machine do not see."""
    if not database:
        return [], {}
    if "://" not in database:
        return ["--database", database], {}
    url = make_url(database)
    password = {"PGPASSWORD": str(url.password)} if url.password else {}
    plain = URL.create(
        url.drivername, url.username, None, url.host, url.port, url.database, url.query
    )
    return ["--database", plain.render_as_string(hide_password=False)], password


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _holder(lock: Path) -> int | None:
    """The process that holds a lock, which its file names; None if nobody does."""
    try:
        number = int(lock.read_text().strip())
        os.kill(number, 0)
    except PermissionError:  # another user's
        pass
    except (OSError, ValueError):  # none is there: looking must not hinder one that begins
        return None
    return number if _is_locked(lock) else None


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _made(path: Path) -> str | None:
    """The version that an improvement has made; None if it has not."""
    try:
        found = json.loads(path.read_bytes())
        return str(found["version"]["word"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _progress(lines: list[str]) -> Mapping[str, Any]:
    """The stage of the last line that names one, its units done and of all, and seconds left."""
    stage = ""
    found: dict[str, float | None] = {"done": 0, "total": 0, "eta_seconds": None}
    for line in lines:
        named = _STAGE.match(line)
        if named is None:
            continue
        if named[1] != stage:
            stage, found = named[1], {"done": 0, "total": 0, "eta_seconds": None}
        match = _PROGRESS.match(line[named.end() :])
        if match is not None:
            done, total = (int(match[part].replace(",", "")) for part in ("done", "total"))
            left = sum(_parts(match["left"])) if match["left"] else None
            found = {"done": done, "total": total, "eta_seconds": left}
    return {"stage": stage, **found}


def _parts(duration: str) -> Iterator[float]:
    """The seconds of each part of ``2 h 05 min``."""
    for number, unit in re.findall(r"([\d.]+)( h| min| s)", duration):
        yield float(number) * _DURATION[unit]
