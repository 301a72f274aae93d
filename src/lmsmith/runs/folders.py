"""The stages' folders in a run: where a stage works, its outputs, and what may be removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from lmsmith.core.errors import UserError
from lmsmith.core.files import remove_partials

_NOT_OUTPUTS = {"stage.json", "started.json", "metrics.jsonl"}

_NEXT = ".next"


def working_folder(folder: Path) -> Path:
    """Where a stage works: its folder, or one beside it that keeps finished outputs until then.

    It is as deep as the stage's folder: models with adapters name their base by a relative path.
    """
    return folder.with_name(f".{folder.name}{_NEXT}") if _finished(folder) else folder


def stage_of(working: Path) -> str:
    """The name of the stage that works in the folder."""
    return working.name.removeprefix(".").removesuffix(_NEXT)


def _finished(folder: Path) -> bool:
    return (folder / "stage.json").exists()


def stage_outputs(folder: Path) -> Iterator[str]:
    """The files a stage made, as paths relative to its folder."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] != "checkpoints" and str(name) not in _NOT_OUTPUTS:
            yield name.as_posix()


def remove_leftovers(folder: Path) -> None:
    """Finish or remove what a killed run left half moved, written or removed."""
    remove_partials(folder, inside=False)
    for working in folder.glob(f".*{_NEXT}"):
        place = folder / stage_of(working)
        if _finished(working) or not place.exists():
            put_in_place(working, place)
    for left in folder.glob(".*.removed"):
        shutil.rmtree(left, ignore_errors=True)


def clean_up_stage(folder: Path) -> None:
    """Remove what only a stage that runs needs."""
    (folder / "started.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if (working := working_folder(folder)) != folder:
        shutil.rmtree(working, ignore_errors=True)


def put_in_place(working: Path, folder: Path) -> None:
    """Replace ``folder`` by the finished outputs in ``working``."""
    if working != folder:
        removed = _move_away(folder)
        working.rename(folder)
        _remove(removed)


def remove_stage(folder: Path) -> None:
    """Remove a stage's folder; renamed first, so that a kill leaves no half of it in place."""
    _remove(_move_away(folder))


def _move_away(folder: Path) -> Path:
    """Rename the folder, so that a later run would remove it; return its new name."""
    removed = folder.with_name(f".{folder.name.removeprefix('.')}.removed")
    _remove(removed)
    if folder.exists() or folder.is_symlink():
        folder.rename(removed)
    return removed


def _remove(folder: Path) -> None:
    """Remove a folder, or a link to one, whose files then stay."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def refuse_foreign_folder(folder: Path) -> None:
    """Protect what lmsmith did not make: a folder that has neither of its records.

    Raises:
        UserError: something else is where a stage's folder would be.
    """
    if folder.is_dir():
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        foreign = bool(names) and not names & {"stage.json", "started.json"}
    else:
        foreign = folder.exists() or folder.is_symlink()
    if foreign:
        fix = "Choose another --folder, or move it."
        raise UserError(f"{folder}: is in the way; lmsmith did not make it", fix)
