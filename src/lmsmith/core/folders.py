"""What a run folder holds: a stage's outputs, what may be removed, and what is somebody else's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from lmsmith.core.errors import UserError
from lmsmith.core.files import remove_partials

_NOT_OUTPUTS = {"stage.json", "started.json", "metrics.jsonl"}


def stage_outputs(folder: Path) -> Iterator[str]:
    """The files a stage made, as paths relative to its folder."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] != "checkpoints" and str(name) not in _NOT_OUTPUTS:
            yield name.as_posix()


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run left half written or half removed in a run folder."""
    remove_partials(folder, inside=False)
    for left in folder.glob(".*.removed"):
        shutil.rmtree(left, ignore_errors=True)


def clean_up_stage(folder: Path) -> None:
    """Remove what a stage that is done needs no longer."""
    (folder / "started.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def remove_stage(folder: Path) -> None:
    """Remove a stage's folder; renamed first, so that a kill leaves no half of it in place."""
    if folder.exists():
        removed = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        folder.rename(removed)
        shutil.rmtree(removed)


def refuse_foreign_folder(folder: Path) -> None:
    """Never remove what lmsmith did not make: such a folder has neither of its records.

    Raises:
        UserError: something else is where a stage's folder would be.
    """
    if folder.is_dir():
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if not names or names & {"stage.json", "started.json"}:
            return
    elif not folder.exists():
        return
    raise UserError(
        f"{folder}: is in the way; lmsmith did not make it", "Choose another --folder, or move it."
    )
