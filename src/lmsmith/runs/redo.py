"""Stages that are made again though nothing changed: ``lmsmith run RECIPE --redo STAGE``.

The run's folder keeps the list until it is done, so that a run that is cut off goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, write_json
from lmsmith.runs.integrity import redo_command

REDO_FILE = ".redo.json"


class _Lists(msgspec.Struct):
    asked: list[str]
    left: list[str]


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
        """The list that an earlier command left in a run; empty if there is none.

        Raises:
            UserError: it is damaged.
        """
        file = run / REDO_FILE
        if not file.exists() and not file.is_symlink():
            return cls(file)
        try:
            table = msgspec.convert(read_json(file), _Lists)
        except (UserError, msgspec.ValidationError) as error:
            raise UserError(
                f"{file}: damaged, so that it is not known what is still to be made again",
                f"remove it, then name the stages again: {redo_command(run)} --redo STAGE",
            ) from error
        return cls(file, table.asked, table.left)

    def goes_on(self, stage: str) -> bool:
        """Whether the last command that was cut off asked for this stage, and has made it."""
        return bool(self.left) and self.asked[-1:] == [stage] and stage not in self.left

    def add(self, stage: str, reads: Mapping[str, Iterable[str]]) -> None:
        """Ask for a stage, and for all that read it, directly or through others.

        Args:
            reads: stage → the stages that it reads, in the order in which they run.
        """
        closure = {stage}
        for name, sources in reads.items():
            if closure & set(sources):
                closure.add(name)
        self.asked = [*(name for name in self.asked if name != stage), stage]
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
