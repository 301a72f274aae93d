"""A process of its own that runs the tiny stages: ``run_tiny.py FOLDER [TABLE.KEY=VALUE …]``."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import tiny_stages as tiny

from lmsmith import cli
from lmsmith.core.config import apply_overrides, decode
from lmsmith.core.progress import LineProgress
from lmsmith.core.recipe import Recipe
from lmsmith.stages.pipeline import run_recipe


def run(folder: str, overrides: list[str]) -> int:
    tables = apply_overrides({"make": {}, "grow": {}, "measure": {}}, overrides)
    limit = int(tables.pop("limit", 0))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    settings: dict[str, object] = {
        name: decode(tiny.TinyConfig, table, name)[0] for name, table in tables.items()
    }
    recipe = Recipe("tiny", "", 1, stages=settings)
    run_recipe(
        recipe,
        Path(folder),
        progress=LineProgress(0),
        stages=tiny.STAGES,
        prepare=tiny.prepare,
    )
    return 0


def entry(words: list[str]) -> int:
    """Through the command line's own error handling."""
    original = cli._dispatch
    cli._dispatch = lambda *_: run(words[0], words[1:])
    try:
        return cli.main([])
    finally:
        cli._dispatch = original


if __name__ == "__main__":
    sys.exit(entry(sys.argv[1:]))
