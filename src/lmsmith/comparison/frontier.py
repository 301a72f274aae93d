"""The snapshots PPO left on its way from SFT: which there are, and where the way ends."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lmsmith.core.files import read_json


def find_snapshots(ppo: Path | None, most: int) -> list[tuple[int, Path]]:
    """(step, model folder) of PPO's snapshots, at most so many, evenly spread."""
    folder = ppo / "snapshots" if ppo is not None else None
    if folder is None or not folder.is_dir() or most == 0:
        return []
    found = []
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"step-(\d+)", path.name)
        inner = path / "model" if (path / "model").is_dir() else path
        if match and (inner / "config.json").is_file():
            found.append((int(match[1]), inner))
    found.sort()
    if len(found) <= most:
        return found
    return [found[int((index + 0.5) * len(found) / most)] for index in range(most)]


def final_step(ppo: Path, least: int) -> int:
    """How many iterations PPO ran, by its model's card; one after ``least`` if it does not say."""
    card: Any = read_json(ppo / "model" / "card.json")
    for place in ("metrics", "settings"):
        steps = (card.get(place) or {}).get("iterations")
        if isinstance(steps, int | float):
            return int(steps)
    return least + 1
