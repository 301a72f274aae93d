"""Whether a stage compiles its model: decided once a run, whatever the machine does meanwhile."""

from __future__ import annotations

import contextlib
from pathlib import Path

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, write_json
from lmsmith.training.machine import ResolvedMachine, worth_compiling


def choose_compiling(machine: ResolvedMachine, planned_flops: float, folder: Path) -> bool:
    """`worth_compiling`, which measures the machine, asked only at a stage's first start.

    Compiled code rounds differently, so a run that is continued while the machine is slower or
    faster must not choose anew. ``auto``'s choice is kept in ``folder / "compiled.json"``.

    Args:
        folder: the stage's checkpoints.
    """
    if machine.compile != "auto":
        return machine.compile == "on"
    path = folder / "compiled.json"
    if path.exists():
        with contextlib.suppress(UserError):
            kept = read_json(path)
            if isinstance(kept, bool):
                return kept
    chosen = worth_compiling(machine, planned_flops)
    write_json(path, chosen)
    return chosen
