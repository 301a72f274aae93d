"""Folders of results: whose key they have, whether they are whole, the parts of the shards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np

from lmsmith.core.errors import UserError
from lmsmith.core.files import PARTIAL_SUFFIX, read_json, remove_partials, write_json

KEY_FILE, DONE_FILE = "key.json", "done.json"

NumberedParts: TypeAlias = "list[tuple[Path, str, int]]"
"""(folder, source, number in the source) of all parts of the shards, in order."""


class Recorded:
    """What both engines read from the folder of a checkpoint."""

    def record(self, data: Any) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode((data.folder / DONE_FILE).read_bytes())
        return found

    def sizes(self, data: Any) -> dict[str, tuple[int, int]]:
        found = self.record(data)["sizes"]
        return {source: (count, size) for source, (count, size) in found.items()}

    def bytes_of(self, data: Any) -> int:
        """Bytes of text of a checkpoint."""
        return sum(size for _, size in self.sizes(data).values())


def is_done(folder: Path, key: str) -> bool:
    """Whether the folder holds the whole result of a key."""
    return (folder / DONE_FILE).is_file() and key_in(folder) == key


def begin(folder: Path, key: str) -> None:
    """An empty folder, or the one in which a killed build made the same.

    Raises:
        UserError: the folder has files, and no build made it.
    """
    if key_in(folder) == key:
        remove_partials(folder)
        return
    if is_result(folder):
        discard(folder)
    elif names := visible(folder):
        problem = f"{folder}: no build made this folder, and {names[0]} is in it"
        raise UserError(problem, "Move it away, or name another folder in out.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / KEY_FILE, {"key": key})


def is_result(folder: Path) -> bool:
    """Whether a build made the folder."""
    return (folder / KEY_FILE).is_file()


def visible(folder: Path) -> list[str]:
    """The names of what is in a folder, in order; hidden files, such as partial ones, left out."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def discard(folder: Path) -> None:
    """Remove a result; what a kill leaves of it is hidden, and goes the next time."""
    hidden = folder.with_name(f".{folder.name}{PARTIAL_SUFFIX}")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def key_in(folder: Path) -> str | None:
    """The key of the folder's result, whole or not."""
    try:
        found: Any = read_json(folder / KEY_FILE)
        return str(found["key"])
    except (UserError, KeyError, TypeError):
        return None


def has_part(place: Path) -> bool:
    """Whether a part of the shards is there with its record."""
    return place.is_dir() and _record_place(place).is_file()


def write_part_record(place: Path, source: str, part: int, record: dict[str, Any]) -> None:
    """The record of a part, beside its folder."""
    write_json(_record_place(place), {"source": source, "part": part, **record})


def part_record(place: Path) -> dict[str, Any]:
    """The record of a part, with the name of its folder."""
    record: Any = read_json(_record_place(place))
    return {**record, "folder": f"{place.parent.name}/{place.name}"}


def arranged(
    folder: Path, key: str, parts: dict[str, int], make: Callable[[NumberedParts], None]
) -> list[dict[str, Any]]:
    """The records of all parts of the shards, in order; made if they are not there already.

    Args:
        parts: number of parts of each source.
        make: writes the folder and the record of each part, in a folder that has begun or is empty.
    """
    numbered = [
        (folder / source / f"{part:05d}", source, part)
        for source in sorted(parts)
        for part in range(parts[source])
    ]
    broken = [place for place, _, _ in numbered if has_part(place) and not _is_whole(place)]
    for place in broken:
        _record_place(place).unlink()
        shutil.rmtree(place)
    if not all(has_part(place) for place, _, _ in numbered):
        (folder / DONE_FILE).unlink(missing_ok=True)
    if not is_done(folder, key):
        make(numbered)
        write_json(folder / DONE_FILE, {"files": len(numbered)})
    return [part_record(place) for place, _, _ in numbered]


def _is_whole(place: Path) -> bool:
    """Whether all files of a part are there in their length; their content is not read."""
    try:
        for name in part_record(place)["files"]:
            if name.endswith(".npy"):
                np.load(place / name, mmap_mode="r", allow_pickle=False)
            elif not (place / name).is_file():
                return False
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _record_place(place: Path) -> Path:
    return place.with_name(f"{place.name}.json")
