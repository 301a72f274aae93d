"""Folders of the user's data: models, tasks, conversations and compiled kernels, in one place.

``LMSMITH_HOME`` names that place. Without it, data and cache go where the platform puts a
program's files (XDG on Linux, ``Library`` on macOS, ``LOCALAPPDATA`` on Windows). Earlier versions
kept models in ``LMSMITH_HOME`` itself and tasks in ``~/.local/share``: these are still read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import platformdirs

_NAME = "lmsmith"

_versions: ContextVar[Path | None] = ContextVar("versions", default=None)


def _home() -> Path | None:
    chosen = os.environ.get("LMSMITH_HOME")
    return Path(chosen).expanduser() if chosen else None


def data_folder() -> Path:
    """``LMSMITH_HOME``, or the platform's folder for a program's data."""
    return _home() or platformdirs.user_data_path(_NAME, appauthor=False)


def cache_folder() -> Path:
    """Files that can be made again, such as compiled kernels; ``LMSMITH_CACHE`` if it is set."""
    if chosen := os.environ.get("LMSMITH_CACHE"):
        return Path(chosen).expanduser()
    home = _home()
    return home / "cache" if home else platformdirs.user_cache_path(_NAME, appauthor=False)


def models_folder() -> Path:
    """Registered models, a folder each. No model's name can meet another file of the user's."""
    return data_folder() / "models"


def model_folders() -> list[Path]:
    """Folders in which registered models are found: today's, then that of earlier versions."""
    home = _home()
    return [models_folder(), home] if home else [models_folder()]


def versions_folder() -> Path:
    """Versions of models, a folder a name, a folder a version."""
    return _versions.get() or data_folder() / "versions"


@contextlib.contextmanager
def versions_in(folder: Path) -> Iterator[None]:
    """Keep versions in another folder for a while: those of a simulation are not the user's."""
    before = _versions.set(folder)
    try:
        yield
    finally:
        _versions.reset(before)


def tasks_folder() -> Path:
    """The user's own tasks."""
    return data_folder() / "tasks"


def task_folders() -> list[Path]:
    """Folders in which the user's tasks are found; of equal names the last one's counts."""
    earlier = Path.home() / ".local/share" / _NAME / "tasks"
    return [tasks_folder()] if _home() else list(dict.fromkeys([earlier, tasks_folder()]))


def database_file() -> Path:
    """Conversations and judgements."""
    file = data_folder() / "conversations.db"
    # Earlier versions put it beside an LMSMITH_HOME called models.
    beside = file.parents[1] / file.name
    if file.parent.name == "models" and beside.is_file() and not file.exists():
        return beside
    return file
