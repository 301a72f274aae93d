"""Python function of ``lmsmith corpus build``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith.api import Recorded
from lmsmith.core.progress import choose_progress
from lmsmith.options import documented

if TYPE_CHECKING:
    from lmsmith.corpus.build.decontaminate import DecontaminateConfig, TaskGrams
    from lmsmith.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class BuiltCorpus(Recorded):
    """A finished corpus: its folder, which a run's ``[data] shards`` names."""

    folder: Path


@documented
def build_corpus(
    recipe: str, *, set: Sequence[str] = (), dry_run: bool = False, quiet: bool = False
) -> BuiltCorpus:
    """Make a corpus of token shards from raw files, to pretrain on.

    Files are read, duplicates removed, and the rest tokenized. Run it again after anything (Ctrl-C,
    kill, a full disk): what is done is not made again, and a changed setting makes again only what
    depends on it. A file that cannot be read is skipped, counted and listed.

    Args:
        recipe: A .toml file with a table [sources.NAME] for each source; paths in it are relative
            to that file.
        set: Change a setting, e.g. workers=8, shards.vocabulary_size=16000.
        dry_run: Find the files and count them, and read nothing.
        quiet: Show no progress, only warnings.

    Raises:
        UserError: the recipe has problems (all are named), a source has no file, or nothing is
            left.
        Interrupted: after Ctrl-C, once everything is saved.

    >>> lmsmith.build_corpus("corpus.toml").folder                          # doctest: +SKIP
    """
    from lmsmith.core.files import sha256_file
    from lmsmith.corpus.build.recipe import load_corpus_recipe
    from lmsmith.corpus.build.run import build_corpus as build
    from lmsmith.corpus.build.run import plan_corpus

    loaded = load_corpus_recipe(recipe, set)
    if dry_run:
        return BuiltCorpus(folder=loaded.place, record=plan_corpus(loaded))
    identity: list[str] = []
    if loaded.shards.tokenizer:
        from lmsmith.catalogue.reading import tokenizer_files

        named = _place(loaded.shards.tokenizer, loaded.folder)
        identity = [sha256_file(path) for path in tokenizer_files(named)]
    title = f"corpus {loaded.name}: {loaded.description}".removesuffix(": ")
    progress = choose_progress(title, quiet)
    tasks = _tasks(loaded.decontaminate, loaded.folder)
    record = build(loaded, lambda name: _load(name, loaded.folder), progress, identity, tasks)
    return BuiltCorpus(folder=loaded.place, record=record)


def _tasks(config: DecontaminateConfig, folder: str) -> TaskGrams | None:
    """What the tasks ask that the recipe keeps out of the corpus."""
    from lmsmith.core.files import beside
    from lmsmith.corpus.build.decontaminate import task_grams
    from lmsmith.evaluation.contamination import task_texts

    if not config.tasks:
        return None
    folders = [beside(folder, each) for each in config.data]
    names = [_place(name, folder) for name in config.tasks]
    return task_grams(task_texts(names, folders), config.words)


def _load(name: str, folder: str) -> Tokenizer:
    from lmsmith.catalogue.reading import load_any_tokenizer

    return load_any_tokenizer(_place(name, folder))


def _place(name: str, folder: str) -> str:
    """A path relative to the recipe's folder, or a registered name."""
    from lmsmith.core.files import beside, is_there

    place = beside(folder, name)
    return place if is_there(place) else name


def figures(record: dict[str, Any]) -> list[tuple[str, int, int, int, int]]:
    """A row a source: its name, documents read and kept, bytes and tokens kept."""
    rows = []
    for name, about in record["sources"].items():
        read = record["steps"].get("read", {}).get(name, {}).get("documents_out", 0)
        rows.append((name, int(read), about["documents"], about["bytes"], about["tokens"]))
    return rows
