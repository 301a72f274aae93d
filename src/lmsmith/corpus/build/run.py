"""The build of a corpus: what is done already, the steps, the finished folder and its record.

``OUT/corpus.json`` names the folder of the shards and everything in it with checksums. It is
written last and atomically: until then an earlier corpus in OUT stays as it was. Only what a build
made is ever removed.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmsmith.core.config import encode
from lmsmith.core.errors import UserError
from lmsmith.core.files import (
    disk_full_error,
    read_json,
    remove_partials,
    sha256_file,
    storage_error,
    write_json,
    write_jsonl,
)
from lmsmith.core.progress import RunProgress
from lmsmith.core.version import VERSION
from lmsmith.corpus.build.decontaminate import TaskGrams
from lmsmith.corpus.build.duplicate_ids import duplicate_id_warnings
from lmsmith.corpus.build.engine import FORMAT, Data, Engine, key_of
from lmsmith.corpus.build.engines import make_engine
from lmsmith.corpus.build.harmful import Scorer
from lmsmith.corpus.build.mix import check_mixture, mixture_of
from lmsmith.corpus.build.mixture import mixture_warnings
from lmsmith.corpus.build.quality import quality_warnings
from lmsmith.corpus.build.reading.plan import Item, find_files, format_of, make_items
from lmsmith.corpus.build.reading.read import reader
from lmsmith.corpus.build.recipe import CorpusRecipe
from lmsmith.corpus.build.removed import removed_file, write_all_removed
from lmsmith.corpus.build.results import discard, is_result, visible
from lmsmith.corpus.build.shards import (
    LoadTokenizer,
    held_out_share,
    hold_out,
    make_tokenizer,
    parts_of,
    write_part,
)
from lmsmith.corpus.build.steps import run_steps
from lmsmith.corpus.finished import (
    BUILD_FILE,
    CORPUS_FILE,
    TOKENIZER_FOLDER,
    VALIDATION_FILE,
)
from lmsmith.runs.locking import locked
from lmsmith.runs.signals import StopSignal
from lmsmith.runs.stage_folder import (
    describe_hardware,
    describe_versions,
    git_commit,
    peak_memory_bytes,
)

WORK_FOLDER = "work"

_FILES = "files.json"
_SHARDS = "shards-"
_OLD_SHARDS = re.compile(rf"{_SHARDS}[0-9a-f]{{16}}")
_OLD_REMOVED = re.compile(r"removed(-[0-9a-f]{16})?\.parquet")

_PASSING = ("out", "workers", "engine", "spark")
"""Settings that change no result."""


@dataclass
class _Build:
    """One call of `build_corpus`."""

    recipe: CorpusRecipe
    load_tokenizer: LoadTokenizer
    tokenizer_identity: object
    progress: RunProgress
    engine: Engine
    items: list[Item]
    files_key: str
    tasks: TaskGrams | None
    harm: Scorer | None
    stages: dict[str, dict[str, Any]]

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show a step, and take its time."""
        started = time.monotonic()
        self.progress.stage_begins(name, name)
        yield
        seconds = time.monotonic() - started
        self.stages[name] = {"wall_seconds": round(seconds, 3)}
        self.progress.stage_ends(name, seconds)

    def run(self) -> dict[str, Any]:
        recipe, engine = self.recipe, self.engine
        self.progress.plan(["read", "steps", "tokenizer", "shards"])
        with self.stage("read"):
            read = engine.read("read", self.items, reader(recipe), self.files_key)
        with self.stage("steps"):
            steps = run_steps(engine, read, recipe, self.tasks, self.harm)
        kept = steps.kept
        sizes = _sizes(engine, kept, recipe)
        documents = sum(count for count, _ in sizes.values())
        if not documents:
            raise UserError(*_nothing_left(engine, read))
        check_mixture(recipe, {name: size for name, (_, size) in sizes.items()})
        out = recipe.place
        with self.stage("tokenizer"):
            share = held_out_share(recipe.shards, documents)
            training, rows = hold_out(engine, kept, recipe.seed, share)
            total = sum(size for _, size in sizes.values())
            tokenizer = make_tokenizer(
                engine,
                training,
                recipe.shards,
                recipe.seed,
                total,
                out / WORK_FOLDER / TOKENIZER_FOLDER,
                self.load_tokenizer,
                self.tokenizer_identity,
            )
        parts = parts_of({name: size for name, (_, size) in sizes.items()}, recipe.shards.part_mib)
        key = key_of(training.key, parts, tokenizer)
        folder = out / f"{_SHARDS}{key}"
        with self.stage("shards"):
            written = engine.arrange(training, folder, parts, write_part, tokenizer)
            shutil.copytree(tokenizer.path, folder / TOKENIZER_FOLDER, dirs_exist_ok=True)
            write_jsonl(folder / VALIDATION_FILE, rows)
        return self.publish(folder, written, rows, [read, *steps.checkpoints], steps.figures)

    def publish(
        self,
        folder: Path,
        written: list[dict[str, Any]],
        rows: list[dict[str, str]],
        checkpoints: list[Data],
        figures: dict[str, Any],
    ) -> dict[str, Any]:
        """Write the corpus's record, and remove the shards that it no longer names."""
        out, steps = self.recipe.place, {}
        memory = 0
        for data in checkpoints:
            found = self.engine.record(data)
            memory = max(memory, found["peak_memory_bytes"])
            for step, counts in found["counts"].items():
                steps[step] = counts
                about = {
                    "seconds": round(found["seconds"].get(step, 0.0), 3),
                    "peak_memory_bytes": found["peak_memory_bytes"],
                }
                self.stages.setdefault(step, {}).update(about)
        sources = _by_source(written)
        table = mixture_of(self.recipe, {name: each["tokens"] for name, each in sources.items()})
        for warning in duplicate_id_warnings(figures["duplicate_ids"]):
            self.progress.say(f"read: {warning}")
        for warning in mixture_warnings(table):
            self.progress.say(f"mixture: {warning}")
        for warning in quality_warnings(steps.get("quality", {}), self.recipe.curated):
            self.progress.say(f"quality: {warning}")
        for part in table:
            if part.source in sources:
                sources[part.source]["weight"] = part.epochs
        beside = [folder / VALIDATION_FILE, *sorted((folder / TOKENIZER_FOLDER).iterdir())]
        name = removed_file(key_of([data.key for data in checkpoints]))
        record = {
            "format": FORMAT,
            "version": VERSION,
            "shards": folder.name,
            "recipe": _lasting(self.recipe),
            "sources": sources,
            "mixture": [asdict(part) for part in table],
            "validation_documents": len(rows),
            "steps": steps,
            "figures": figures,
            "parts": written,
            "files": {str(path.relative_to(folder)): sha256_file(path) for path in beside},
            "removed": name,
        }
        removed = (row for data in checkpoints for row in self.engine.removed(data))
        write_all_removed(out / name, removed)
        write_json(out / CORPUS_FILE, record)
        engine = self.engine.about()
        build = {
            "stages": self.stages,
            "operations": {name: round(took, 3) for name, took in self.engine.seconds.items()},
            "peak_memory_bytes_of_a_worker": max(memory, engine.get("peak_memory_bytes", 0)),
            "peak_memory_bytes": peak_memory_bytes(),
            "engine": engine,
            "git_commit": git_commit(),
            "versions": describe_versions(),
            "hardware": describe_hardware(),
        }
        write_json(out / BUILD_FILE, build)
        for old in out.iterdir():
            if old.name in (folder.name, name):
                continue
            with contextlib.suppress(OSError):  # the new corpus is whole
                if _OLD_SHARDS.fullmatch(old.name) and is_result(old):
                    discard(old)
                elif _OLD_REMOVED.fullmatch(old.name):
                    old.unlink()
        return {"folder": str(out), **record, "build": build}


def build_corpus(
    recipe: CorpusRecipe,
    load_tokenizer: LoadTokenizer,
    progress: RunProgress,
    tokenizer_identity: object = None,
    tasks: TaskGrams | None = None,
    harm: Scorer | None = None,
) -> dict[str, Any]:
    """Build a corpus, or go on with a build that was cut off.

    Args:
        recipe: read and checked.
        load_tokenizer: reads the tokenizer that the recipe names.
        progress: shows the steps.
        tokenizer_identity: fingerprint of that tokenizer's files.
        tasks: what the tasks ask that the recipe keeps out of the corpus.
        harm: the classifier of harmful text that the recipe names.

    Returns:
        The record in ``corpus.json``, its folder and the record of the build.

    Raises:
        UserError: a source has no file, no document is left, or the disk is full.
        Interrupted: a signal asked to stop; the same call goes on.
    """
    out = recipe.place
    _refuse_others(out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(out, progress))
        stack.enter_context(StopSignal())
        stack.callback(progress.close)
        work = out / WORK_FOLDER
        work.mkdir(exist_ok=True)
        remove_partials(out, inside=False)
        remove_partials(work, inside=False)
        files, problems, hashes = find_files(recipe, _known(work / _FILES))
        write_json(work / _FILES, hashes)
        items = make_items(recipe, files, problems)
        states = [[file.id, file.state, file.source] for file in files]
        key = key_of(states, [problem.id for problem in problems])
        size = sum(item.text_bytes for item in items)
        engine = make_engine(recipe, work, size, progress)
        stack.callback(engine.close)
        build = _Build(
            recipe,
            load_tokenizer,
            tokenizer_identity,
            progress,
            engine,
            items,
            key,
            tasks,
            harm,
            {},
        )
        try:
            return build.run()
        except OSError as error:
            if (full := disk_full_error(error, out)) is not None:
                raise full from error
            raise


def plan_corpus(recipe: CorpusRecipe) -> dict[str, Any]:
    """The files of each source, without reading them.

    Raises:
        UserError: a path names nothing.
    """
    if recipe.place.exists() and not recipe.place.is_dir():
        raise UserError(f"{recipe.place}: a file, no folder", "Name another in out.")
    _refuse_others(recipe.place)
    files, problems, _ = find_files(recipe, _known(recipe.place / WORK_FOLDER / _FILES))
    sources: dict[str, dict[str, Any]] = {}
    for file in files:
        about = sources.setdefault(file.source, {"files": 0, "bytes": 0, "formats": {}})
        about["files"] += 1
        about["bytes"] += file.size
        kind = format_of(file.place, recipe.sources[file.source])
        about["formats"][kind] = about["formats"].get(kind, 0) + 1
    said = [f"{problem.id}: {problem.reason}" for problem in problems]
    return {"folder": str(recipe.place), "plan": {"sources": sources, "problems": said}}


def _refuse_others(out: Path) -> None:
    """Refuse a folder with files of which none is an earlier build's.

    Raises:
        UserError: one of these files is named.
    """
    if _known(out / CORPUS_FILE).get("shards") or _known(out / WORK_FOLDER / _FILES):
        return
    try:
        empty = (out / WORK_FOLDER).is_dir() and not visible(out / WORK_FOLDER)
        names = [name for name in visible(out) if not (empty and name == WORK_FOLDER)]
    except OSError as error:
        raise storage_error(out, error) from error
    if names:
        problem = f"{out}: the folder has files that no build of a corpus made, such as {names[0]}"
        raise UserError(problem, "Name another folder in out.")


def _known(path: Path) -> Mapping[str, Any]:
    try:
        found: Any = read_json(path)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def _lasting(recipe: CorpusRecipe) -> dict[str, Any]:
    """The recipe without what changes no result."""
    found: dict[str, Any] = encode(recipe)
    return {name: value for name, value in found.items() if name not in _PASSING}


def _sizes(engine: Engine, kept: Data, recipe: CorpusRecipe) -> dict[str, tuple[int, int]]:
    """Source → documents and bytes of a checkpoint."""
    found = engine.sizes(kept)
    return {name: found[name] for name in recipe.sources if name in found}


def _by_source(written: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for part in written:
        about = found.setdefault(part["source"], {"documents": 0, "bytes": 0, "tokens": 0})
        for name in about:
            about[name] += part[name]
    return found


def _nothing_left(engine: Engine, read: Data) -> tuple[str, str]:
    """The problem that no document is left, with the most frequent reason of reading."""
    reasons: dict[str, float] = {}
    for sources in engine.record(read)["counts"].values():
        for counts in sources.values():
            for name, value in counts.items():
                if name.startswith("removed."):
                    reason = name.removeprefix("removed.")
                    reasons[reason] = reasons.get(reason, 0) + value
    why = max(reasons, key=lambda name: reasons[name], default="")
    said = f": {reasons[why]:,.0f} times {why}" if why else ""
    return f"no document is left{said}", "Check the sources, or loosen the steps."
