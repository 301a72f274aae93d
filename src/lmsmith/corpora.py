"""Python functions of ``lmsmith corpus``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith.api import Recorded
from lmsmith.core.errors import UserError
from lmsmith.core.progress import choose_progress
from lmsmith.options import documented

if TYPE_CHECKING:
    from lmsmith.corpus.build.decontaminate import DecontaminateConfig, TaskGrams
    from lmsmith.corpus.build.harmful import HarmfulConfig, Scorer
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

        with _named("shards.tokenizer"):
            _load(loaded.shards.tokenizer, loaded.folder)
            files = tokenizer_files(_tokenizer(loaded.shards.tokenizer, loaded.folder))
            identity = [sha256_file(path) for path in files]
    title = f"corpus {loaded.name}: {loaded.description}".removesuffix(": ")
    progress = choose_progress(title, quiet)
    tasks = _tasks(loaded.decontaminate, loaded.folder)
    harm = _harm(loaded.harmful, loaded.folder)

    def load(name: str) -> Tokenizer:
        return _load(name, loaded.folder)

    record = build(loaded, load, progress, identity, tasks, harm)
    from lmsmith.report.corpus.page import build_corpus_page

    page = build_corpus_page(loaded.place)
    return BuiltCorpus(folder=loaded.place, record=record, report=page)


def _tasks(config: DecontaminateConfig, folder: str) -> TaskGrams | None:
    """What the tasks ask that the recipe keeps out of the corpus."""
    from lmsmith.core.files import beside
    from lmsmith.corpus.build.decontaminate import task_grams
    from lmsmith.evaluation.contamination import task_texts

    if not config.tasks:
        return None
    folders = [beside(folder, each) for each in config.data]
    names = [_place(name, folder) for name in config.tasks]
    try:
        return task_grams(task_texts(names, folders), config.words)
    except UserError as error:
        fix = error.fix.replace("--data FOLDER", "decontaminate.data")
        raise UserError(f"decontaminate.tasks: {error.problem}", fix) from error


def _harm(config: HarmfulConfig, folder: str) -> Scorer | None:
    """The fine-tuned classifier of harmful text that the recipe names."""
    if not config.classifier:
        return None
    from lmsmith.evaluation.harmful_text import fine_tuned_scorer

    with _named("harmful.classifier"):
        return fine_tuned_scorer(_place(config.classifier, folder), config.label)


@documented
def look_at_corpus(corpus: str, *, at: int, tokens: int = 200, source: str = "") -> dict[str, Any]:
    """Show what a model sees around a position of a finished corpus.

    The tokens are decoded, with the document, source and id that they are of. Positions count
    tokens, the frames of documents included, over all sources in their order.

    Args:
        corpus: The folder that lmsmith corpus build printed, or its address in object storage.
        at: Position of a token, from 0.
        tokens: Size of the window, with the position in its middle.
        source: Count and show the tokens of this source alone.

    Returns:
        ``documents``: a row for each document in the window, with its id, source and text.

    Raises:
        UserError: no finished corpus, or the position is outside.

    >>> lmsmith.look_at_corpus("corpora/mine", at=12345)["documents"]       # doctest: +SKIP
    """
    from lmsmith.corpus.inspect.documents import CorpusDocuments
    from lmsmith.corpus.inspect.look import look

    _at_least(1, tokens=tokens)
    return look(CorpusDocuments.open(corpus, source), at, tokens)


@documented
def search_corpus(
    corpus: str,
    phrase: str,
    *,
    limit: int = 20,
    source: str = "",
    ignore_case: bool = False,
    ids: bool = False,
) -> dict[str, Any]:
    """Find a phrase in the documents of a finished corpus, and count it.

    The phrase is searched in the decoded text as it is written, white space included. Held-out
    documents are searched too; their hits have no position.

    Args:
        corpus: The folder that lmsmith corpus build printed, or its address in object storage.
        phrase: Words to find, or token ids with --ids.
        limit: How many places to list; all are counted.
        source: Search this source alone.
        ignore_case: Large and small letters are the same.
        ids: The phrase is token ids, such as "17 402".

    Returns:
        ``found`` (places), ``documents``, ``held_out`` (those of them that are held out),
        ``sources``, and ``hits`` with position and context.

    Raises:
        UserError: no finished corpus, an empty phrase, or no token ids.

    >>> lmsmith.search_corpus("corpora/mine", "to be or not")["found"]      # doctest: +SKIP
    """
    from lmsmith.corpus.inspect.documents import CorpusDocuments
    from lmsmith.corpus.inspect.search import search

    _at_least(0, limit=limit)
    opened = CorpusDocuments.open(corpus, source)
    return search(opened, phrase, limit, ignore_case=ignore_case, ids=ids)


@documented
def corpus_statistics(corpus: str, *, source: str = "") -> dict[str, Any]:
    """Count documents, bytes, tokens, languages and scripts of a finished corpus by source.

    Args:
        corpus: The folder that lmsmith corpus build printed, or its address in object storage.
        source: Count this source alone.

    Returns:
        ``sources``: name → figures; ``vocabulary``: how much of it the corpus uses.

    Raises:
        UserError: no finished corpus, or no such source.

    >>> lmsmith.corpus_statistics("corpora/mine")["sources"]                # doctest: +SKIP
    """
    from lmsmith.corpus.inspect.documents import CorpusDocuments
    from lmsmith.corpus.inspect.stats import statistics

    return statistics(CorpusDocuments.open(corpus, source))


@documented
def compare_corpora(before: Path, after: Path, *, limit: int = 20) -> dict[str, Any]:
    """Say which documents another corpus adds, removes and changes, and for what reason.

    Documents are the same by their id: source, file and place in it.

    Args:
        before: A finished corpus.
        after: Another one, such as that of a changed recipe.
        limit: How many documents to list of each kind; all are counted.

    Returns:
        ``added``, ``removed``, ``changed``: by source and reason; ``settings`` that differ.

    Raises:
        UserError: one of them is no finished corpus.

    >>> lmsmith.compare_corpora("corpora/mine", "corpora/strict")           # doctest: +SKIP
    """
    from lmsmith.corpus.inspect.difference import difference
    from lmsmith.corpus.inspect.documents import CorpusDocuments

    _at_least(0, limit=limit)
    one, other = (CorpusDocuments.open(Path(each)) for each in (before, after))
    return difference(one, other, limit)


def _at_least(least: int, **options: int) -> None:
    from lmsmith.core.errors import UserError

    for name, value in options.items():
        if value < least:
            raise UserError(f"--{name} {value}: too few", f"Write {least} or more.")


def _load(name: str, folder: str) -> Tokenizer:
    from lmsmith.catalogue.reading import load_any_tokenizer

    return load_any_tokenizer(_tokenizer(name, folder))


def _tokenizer(name: str, folder: str) -> str:
    """Where the tokenizer of a recipe is: a folder or file of one, or that of a model."""
    from lmsmith.catalogue.reading import tokenizer_files
    from lmsmith.catalogue.resolve import resolve

    place = _place(name, folder)
    if any(file.is_file() for file in tokenizer_files(place)):
        return place
    return str(resolve(place).path)


@contextlib.contextmanager
def _named(setting: str) -> Iterator[None]:
    """Errors inside name the setting."""
    try:
        yield
    except UserError as error:
        if error.problem.startswith(setting):
            raise
        raise UserError(f"{setting}: {error.problem}", error.fix) from error


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
