"""Stages that are made again though nothing changed: ``lmsmith run RECIPE --redo STAGE``.

The run's folder keeps the list until it is done, so that a run that is cut off goes on with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, write_json

REDO_FILE = ".redo.json"


@dataclass
class Redo:
    """What is still to be made again in a run.

    Attributes:
        asked: the stages that were named.
        left: of these and of those that depend on them, the ones that are not made again yet.
    """

    file: Path
    asked: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, run: Path) -> Redo:
        """The list that an earlier command left in a run; empty if there is none."""
        found = cls(run / REDO_FILE)
        if not found.file.is_file():
            return found
        with contextlib.suppress(UserError, msgspec.ValidationError):
            table = msgspec.convert(read_json(found.file), dict[str, list[str]])
            found.asked, found.left = table.get("asked", []), table.get("left", [])
        return found

    def add(self, stage: str, reads: Mapping[str, Iterable[str]]) -> None:
        """Ask for a stage, and for all that read it, directly or through others.

        Args:
            reads: stage → the stages that it reads, in the order in which they run.
        """
        if stage in self.asked and self.left:
            return  # the same command again: it goes on
        closure = {stage}
        for name, sources in reads.items():
            if closure & set(sources):
                closure.add(name)
        self.asked.append(stage)
        self.left = [name for name in reads if name in closure | set(self.left)]

    def reason(self, stage: str) -> str:
        """Why a stage is made again; empty if it is not."""
        if stage not in self.left:
            return ""
        if stage in self.asked:
            return "asked for by --redo"
        return f"{' and '.join(self.asked)} was asked for by --redo"

    def done(self, stage: str) -> None:
        """Take a stage off the list."""
        if stage in self.left:
            self.left.remove(stage)
            self.save()

    def save(self) -> None:
        """Write the list, or remove its file where nothing is left."""
        if self.left:
            write_json(self.file, {"asked": self.asked, "left": self.left})
        else:
            self.asked = []
            self.file.unlink(missing_ok=True)
