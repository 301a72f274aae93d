"""lmsmith's side of corpus.py on a planted JSONL file: what each step removed, and its seconds.

    python corpus_ours.py CORPUS.jsonl FOLDER --workers 1 --steps near

Prints a line of JSON: seconds of wall and processor by step, peak memory, ids by step and reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro
from corpus_peers import SHINGLE, Clock, peak_memory
from corpus_rows import read_rows, row_parts

from lmsmith.corpus.build.chunks import read_removed
from lmsmith.corpus.build.decontaminate import (
    DecontaminateConfig,
    TaskText,
    remove_tasks,
    task_grams,
)
from lmsmith.corpus.build.engine import Data
from lmsmith.corpus.build.exact import remove_exact
from lmsmith.corpus.build.gopher import GopherConfig
from lmsmith.corpus.build.lines import LinesConfig, remove_lines
from lmsmith.corpus.build.local import LocalEngine
from lmsmith.corpus.build.minhash import MinHashConfig
from lmsmith.corpus.build.near_duplicates import find_near_duplicates, remove_near_duplicates
from lmsmith.corpus.build.quality import QualityConfig, apply_rules


def steps_of(
    engine: LocalEngine, items: list[str], bands: int, rows: int
) -> dict[str, Callable[[Data], Data]]:
    """The steps by name, in their order."""
    quality = QualityConfig(gopher=GopherConfig(enabled=True, drop=("stop words",)))
    near = MinHashConfig(words=SHINGLE, bands=bands, rows=rows)
    grams = task_grams([TaskText("planted", str(n), text) for n, text in enumerate(items)])
    return {
        "gopher": lambda data: apply_rules(engine, data, quality, ()),
        "exact": lambda data: remove_exact(engine, data, ()),
        "paragraphs": lambda data: remove_lines(engine, data, LinesConfig(), ()),
        "near-duplicates": lambda data: remove_near_duplicates(
            engine, data, find_near_duplicates(engine, data, near, (), 0)
        ),
        "decontaminate": lambda data: remove_tasks(engine, data, grams, DecontaminateConfig()),
    }


def main(
    corpus: Path,
    folder: Path,
    items: Path,
    workers: int = 1,
    steps: Literal["all", "near"] = "all",
    bands: int = 14,
    rows: int = 8,
) -> None:
    """Run the steps, and print what they found.

    Args:
        corpus: JSONL of planted.py.
        folder: of the engine's files; empty.
        items: JSON list of the texts of the task.
        workers: processes.
        steps: All, or near-duplicates alone, as the peers do.
        bands: of MinHash.
        rows: of MinHash.
    """
    engine = LocalEngine(folder, workers)
    clock = Clock()
    data = engine.read("read", row_parts(corpus), read_rows, "planted")
    clock.part("read")
    found = steps_of(engine, json.loads(items.read_text("utf-8")), bands, rows)
    removed: dict[str, list[tuple[str, str]]] = {}
    for name in found if steps == "all" else ("near-duplicates",):
        data = engine.checkpoint(found[name](data), f"after-{name}")
        clock.part(name)
        files = sorted((folder / f"after-{name}").glob("*.removed.parquet"))
        removed[name] = [(each.id, each.reason) for file in files for each in read_removed(file)]
        clock.part("count")
    engine.close()
    seconds = {name: spent for name, spent in clock.parts.items() if name != "count"}
    memory = peak_memory()
    print(json.dumps({"seconds": seconds, "peak_memory_bytes": memory, "removed": removed}))


if __name__ == "__main__":
    tyro.cli(main)
