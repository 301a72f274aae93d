"""A finished stage's outputs are compared with the SHA-256 in its record before they are used.

A file is read for this once: its size, times and inode are kept in the cache folder, and while they
stay, its hash is taken for right.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_json, sha256_file, write_json
from lmsmith.core.paths import cache_folder, versions_folder
from lmsmith.runs.folders import stage_of
from lmsmith.runs.records import read_record

RECORD = "stage.json"

_EDITABLE = ("card.json", "chat.json")
"""Files of a model that people may change by hand: notes, and the chat template."""

_DEPTH = 3
"""Folders between a stage's folder and a model in it, at most."""


def check_inputs(stage_folder: Path, patterns: Iterable[str]) -> None:
    """Check those outputs of a stage that match a pattern, cards excepted.

    Raises:
        UserError: one is not as its stage wrote it.
    """
    chosen = list(patterns)

    def wanted(name: str) -> bool:
        return any(fnmatchcase(name, each) for each in chosen)

    _check(stage_folder, wanted, _EDITABLE[:1])


def check_shown(stage_folder: Path, patterns: Iterable[str], needed: Iterable[str]) -> None:
    """Check those outputs of a stage that a report shows; what people may edit is let through.

    Args:
        needed: names of outputs that may not be missing.

    Raises:
        UserError: one is not as its stage wrote it, or is missing.
    """
    chosen = list(patterns)
    _check(stage_folder, lambda name: any(fnmatchcase(name, each) for each in chosen), _EDITABLE)
    outputs = (finished_record(stage_folder) or {}).get("outputs") or {}
    for name in needed:
        if name in outputs and not (stage_folder / name).is_file():
            problem = f"{stage_folder / name}: missing; the stage {stage_of(stage_folder)} wrote it"
            raise UserError(problem, f"put back a copy of the file, or {remedy(stage_folder)}")


def is_whole(stage_folder: Path) -> bool:
    """Whether a stage is finished and all its outputs are there as it wrote them."""
    try:
        check_inputs(stage_folder, ["*"])
        record = finished_record(stage_folder)
    except UserError:
        return False
    return record is not None and all((stage_folder / name).is_file() for name in record["outputs"])


def finished_record(stage_folder: Path) -> dict[str, Any] | None:
    """The record of a finished stage; None if there is none.

    Raises:
        UserError: it is damaged: nothing that the stage wrote can be held against it.
    """
    path = stage_folder / RECORD
    record = read_record(path)
    if record is None and (path.exists() or path.is_symlink()):
        raise UserError(
            f"{path}: damaged, so that nothing shows whether the outputs of the stage "
            f"{stage_of(stage_folder)} are whole",
            f"put back a copy of the file, or {remedy(stage_folder)}",
        )
    return record


def check_folder(folder: Path) -> None:
    """Check the files in a folder that is a finished stage's or lies in one; else do nothing.

    Raises:
        UserError: one is not as its stage wrote it.
    """
    with contextlib.suppress(OSError, RuntimeError):  # a circle of links
        folder = folder.resolve()
    places = (each for each in (folder, *folder.parents[:_DEPTH]) if (each / RECORD).is_file())
    if (stage_folder := next(places, None)) is not None:
        inside = folder.relative_to(stage_folder)
        _check(stage_folder, lambda name: Path(name).is_relative_to(inside), _EDITABLE)


def _check(stage_folder: Path, wanted: Callable[[str], bool], passed_over: tuple[str, ...]) -> None:
    outputs = (finished_record(stage_folder) or {}).get("outputs") or {}
    known = _read_known(stage_folder)
    checked: dict[str, list[object]] = {}
    for name, expected in outputs.items():
        if not wanted(name) or Path(name).name in passed_over:
            continue
        path = stage_folder / name
        try:
            state = [*_state(path), expected]
        except OSError:
            continue  # its reader names a file that is missing
        if known.get(name) == state:
            continue
        if sha256_file(path) != expected:
            raise UserError(
                f"{path}: damaged: it is not what the stage {stage_of(stage_folder)} wrote (its "
                "SHA-256 is another than in stage.json)",
                f"put back a copy of the file, or {remedy(stage_folder)}",
            )
        checked[name] = state
    if checked:
        with contextlib.suppress(UserError, OSError):  # then it is read again next time
            write_json(_known_file(stage_folder), known | checked)


def _state(path: Path) -> list[object]:
    """Whatever changes when a file does; all but a repair of the disk changes the last one."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns]


def _known_file(stage_folder: Path) -> Path:
    return cache_folder() / "checked" / f"{fingerprint(str(stage_folder.absolute()))}.json"


def _read_known(stage_folder: Path) -> dict[str, Any]:
    with contextlib.suppress(UserError, OSError):
        content = read_json(_known_file(stage_folder))
        return content if isinstance(content, dict) else {}
    return {}


def remedy(stage_folder: Path) -> str:
    """How a stage is made again, in the imperative."""
    run, stage = stage_folder.parent, stage_of(stage_folder)
    with contextlib.suppress(ValueError):
        name = run.absolute().relative_to(versions_folder().absolute()).parts[0]
        if run.name == "next":
            return f"begin the round again: lmsmith improve {name} --restart"
        return f"promote another version (`lmsmith models lineage {name}` lists them)"
    return f"make it again: {redo_command(run)} --redo {stage}"


def redo_command(run: Path) -> str:
    """The command that a run was made by, as its recipe.json has it; a copy has its own folder."""
    with contextlib.suppress(UserError, OSError):
        content = read_json(run / "recipe.json")
        words = content.get("command") if isinstance(content, dict) else None
        if isinstance(words, list) and all(isinstance(word, str) for word in words) and words:
            return shlex.join([*words, "--folder", str(run.absolute())])
    return "lmsmith run RECIPE"
