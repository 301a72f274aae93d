"""Stage: people's texts become the disjoint sets that the other stages read.

Conversations are cleaned; those without real exchange and duplicates are dropped and counted. The
rest are split by a hash of their ids; those made of rankings by a hash of how they begin, so that
a dialogue's rankings stay together. Pretraining reads the plain text of all splits but judge,
validation and test, and the user's own documents.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from lmsmith.core.config import NOT_A_SETTING, Fraction, NonNegativeFloat, Problem
from lmsmith.core.errors import UserError
from lmsmith.core.files import beside, is_remote, write_json, write_jsonl
from lmsmith.core.progress import Progress
from lmsmith.corpus.cleaning import (
    UnicodeForm,
    clean_conversations,
    clean_messages,
    clean_text,
    drop_duplicates,
    drop_without_exchange,
    empty_splits_warning,
    left_out_warnings,
    other_side,
    text_key,
    why_none_is_left,
)
from lmsmith.corpus.finished import CORPUS_FILE, CORPUS_SHARDS_FILE, FinishedCorpus
from lmsmith.corpus.remote import copy_corpus, fetch_record
from lmsmith.corpus.rows import Conversation, Document, Ranking, read_documents
from lmsmith.corpus.sources import (
    PACKAGE_PREFIX,
    ROWS,
    ROWS_OR_TEXT,
    TALKS,
    FilesOnce,
    conversations_of,
    documents_of,
    files_of,
)
from lmsmith.corpus.splits import assign_splits, hold_out_text, opening_key, split_of
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.human_rankings import (
    best_conversations,
    divide_rankings,
    read_human_rankings,
)

FROM_CONVERSATIONS = "data.conversations"
"""Source of the documents made from conversations."""

COPIED_CORPUS = "corpus"
"""In the stage's folder: the copy of a finished corpus elsewhere."""

HELD_OUT = ("validation", "test")
"""Splits for measuring only; their text has its own files."""


@dataclass(frozen=True)
class DocumentSource:
    """The user's own text for pretraining."""

    path: str
    """A .txt, .jsonl or .jsonl.gz file, a folder of them, or a glob."""
    weight: NonNegativeFloat = 1.0
    """How often each document is read, relative to `conversations_weight`; 0 leaves it out."""

    @classmethod
    def from_text(cls, path: str) -> DocumentSource:
        """A recipe may name the path alone."""
        return cls(path)


@dataclass(frozen=True)
class Splits:
    """Shares of the conversations, at most 1 in sum; the rest is for pretraining alone."""

    demonstrations: Fraction = 0.36
    """Share for supervised fine-tuning."""
    comparisons: Fraction = 0.20
    """Share that the reward model's rankings are made from."""
    prompts: Fraction = 0.20
    """Share whose prompts PPO answers."""
    judge: Fraction = 0.12
    """Share that the judge's rankings are made from; no other stage sees it."""
    test: Fraction = 0.08
    """Share that the report's figures are measured on."""
    validation: Fraction = 0.04
    """Share held out to see when a stage overfits."""

    def check(self) -> list[Problem]:
        """Shares above 1 in sum."""
        shares = asdict(self)
        total, largest = sum(shares.values()), max(shares, key=lambda name: shares[name])
        if total <= 1 + 1e-9 or not all(0 <= share <= 1 for share in shares.values()):
            return []
        expected = f"the shares add up to {total:.3g}"
        return [Problem(largest, shares[largest], expected, "1 is the most")]


@dataclass(frozen=True)
class DataConfig:
    """Settings of the data: sources, cleaning and splits."""

    conversations: tuple[str, ...] = ()
    """Sources: .jsonl, .jsonl.gz or .json files, folders, globs, or ``package:chitchat-dataset``.

    Rows have ``messages``, or are of ShareGPT, Alpaca, ChatGPT's export (conversations.json) or
    Open Assistant."""
    documents: tuple[DocumentSource, ...] = ()
    """Text of your own for pretraining, each a path or a table."""
    shards: str = ""
    """A finished corpus (`lmsmith corpus build`), read in pretraining beside the documents. Its
    tokenizer is that of the run, and its held-out documents join the validation split's.

    A folder, or an address that fsspec reads, such as ``s3://bucket/corpus``: its tokens stay
    there, and pretraining reads those of its batches."""
    rankings: tuple[str, ...] = ()
    """Sources of human rankings, used in place of the demo's labeler: files of own rows, of pairs
    (``chosen``, ``rejected``) or of Open Assistant's trees."""
    rankings_as_conversations: bool = False
    """The best response of every ranking makes a conversation, for those who have no others.

    Then `splits` divides the rankings too, all that begin alike together: those in comparisons
    train the reward model, those in validation and test measure it, and the others are
    conversations only."""
    conversations_weight: NonNegativeFloat = 1.0
    """How often the conversations' text is read in pretraining, relative to documents'."""
    min_turns: Annotated[int, msgspec.Meta(ge=2)] = 2
    """Conversations with fewer turns (messages of user and assistant) are dropped."""
    either_side: bool = False
    """Both sides are people: use each conversation once more with the roles exchanged.

    Of the exchanged one, a first message by the assistant is dropped. The validation and test
    splits are used as they are."""
    unicode_form: UnicodeForm = "none"
    """``NFC`` or ``NFKC`` rewrite characters to that form."""
    turn_separator: str = "\n\n"
    """Stands between two turns in the plain text for pretraining."""
    splits: Splits = field(default_factory=Splits)
    """How the conversations are divided."""
    folder: str = field(default="", metadata=NOT_A_SETTING)
    """Relative paths begin at this folder, the recipe's."""

    def check(self) -> list[Problem]:
        """Missing, empty and doubled sources."""
        problems: list[Problem] = []
        if self.rankings_as_conversations and not self.rankings:
            fix = "name files of rankings, or set rankings_as_conversations to false"
            expected = "there are none to make conversations of"
            problems.append(Problem("rankings", [], expected, fix))
        if self.rankings_as_conversations and self.either_side:
            expected = "rankings_as_conversations is on, and only one side was ranked"
            problems.append(Problem("either_side", True, expected, "set one of the two to false"))
        text = self.rankings_as_conversations or self.conversations or self.documents
        if not (text or self.shards):
            fix = "name conversations, documents or shards"
            problems.append(Problem("conversations", [], "no text at all", fix))
        if not self.turn_separator:
            problems.append(Problem("turn_separator", "", "must not be empty", 'use "\\n"'))
        paths = [source.path for source in self.documents]
        named = {"conversations": self.conversations, "rankings": self.rankings, "documents": paths}
        fix = 'write a path, or [] for none; "." is a folder'
        problems += [
            Problem(f"{key}.{number}", "", "names no file", fix)
            for key, sources in named.items()
            for number, source in enumerate(sources)
            if not source.strip()
        ]
        problems += [
            Problem(f"documents.{number}.path", path, "is named twice", "leave one out")
            for number, path in enumerate(paths)
            if path in paths[:number]
        ]
        return problems

    def external_files(self) -> list[str]:
        """Every file that the stage reads, for the fingerprint of its inputs."""
        rows = [path for source in self.conversations for path in self._files(source, TALKS)]
        rows += [path for source in self.rankings for path in self._files(source, ROWS)]
        text = [path for own in self.documents for path in self._files(own.path, ROWS_OR_TEXT)]
        built = []
        if self.shards:
            place, remote = self.place(self.shards), is_remote(self.shards)
            built = [fetch_record(place) if remote else Path(place) / CORPUS_FILE]
        return [str(path) for path in dict.fromkeys(rows + text + built)]

    def place(self, source: str) -> str:
        """The place of a source that the recipe names."""
        return source if source.startswith(PACKAGE_PREFIX) else beside(self.folder, source)

    def _files(self, source: str, suffixes: tuple[str, ...]) -> list[Path]:
        try:
            return files_of(self.place(source), suffixes)
        except UserError as error:
            found: list[Path] = []
            with contextlib.suppress(UserError):
                found = files_of(source, suffixes)
            if not found or self.place(source) == source:
                raise
            there = os.path.relpath(source, self.folder)
            fix = f"Paths in a recipe are relative to its file: write {there}."
            raise UserError(error.problem, fix) from error


def run(config: DataConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Read everything, clean, drop, split and write.

    `documents.jsonl`, `validation_documents.jsonl`, `test_documents.jsonl`, `rankings.jsonl` and a
    file a split are written only if they have rows; `mixture.json` is source → weight.

    Raises:
        UserError: bad input (file and line are named), or nothing is left.
    """
    counts, left_out = Counter[str](), Counter[str]()
    talks, texts = FilesOnce(), FilesOnce()
    read, rankings = _read_sources(config, talks, counts, left_out, out.progress)
    ranked_first = config.rankings_as_conversations
    openings = [
        opening_key(clean_messages(ranking.prompt, config.unicode_form, Counter()))
        for ranking in (rankings if ranked_first else ())
    ]
    if ranked_first:
        read += best_conversations(rankings, read, counts)
    conversations, keys = _clean(config, read, counts)

    fractions = asdict(config.splits)
    ranked_openings = set(openings)
    names = [_split_name(conversation, ranked_openings) for conversation in conversations]
    assigned = assign_splits([*names, *openings], fractions, list(fractions))
    if ranked_first:
        rankings = divide_rankings(rankings, [assigned[name] for name in openings], counts)
        if fractions["comparisons"] > 0 and not counts["rankings.train"]:
            out.progress.say("data: no ranking fell into comparisons; there are too few")
    splits: dict[str, list[Conversation]] = {name: [] for name in fractions}
    for name, conversation in zip(names, conversations, strict=True):
        if (split := assigned[name]) is not None:
            splits[split].append(conversation)
    documents = _documents(config, conversations, [assigned[n] for n in names], keys, counts, texts)
    corpus = _finished_corpus(config, out)
    if corpus is not None:
        documents["validation"] += _built_validation(corpus, counts, out.progress)
    if not any(documents.values()) and not any(splits.values()) and corpus is None:
        raise UserError("data: the documents hold no text", "Add text, or name conversations.")
    shares = {name: fractions[name] for name in HELD_OUT}
    if documents[""] or corpus is None:
        for note in hold_out_text(documents, shares, FROM_CONVERSATIONS):
            out.progress.note(f"data: {note}")

    for note in (*talks.notes(), *texts.notes(), *left_out_warnings(counts, config.min_turns)):
        out.progress.say(f"data: {note}")
    if parts := ", ".join(f"{count:,} {what}" for what, count in (+left_out).most_common()):
        out.progress.say(f"data: left out of the conversations: {parts}")
    counts.update({f"splits.{name}": len(rows) for name, rows in splits.items()})
    empty = [name for name in splits if fractions[name] > 0 and not splits[name]]
    if conversations and empty:
        warning = empty_splits_warning(empty, fractions, len(conversations))
        out.progress.say(f"data: {warning}")
    if rankings:
        _use_comparisons(splits, ranked_openings, out.progress)

    _write_documents(documents, out, counts)
    _write_splits(splits, config.either_side, out, counts)
    _write(out / "rankings.jsonl", (ranking.row() for ranking in rankings))
    counts["rankings"] = len(rankings)
    weights = {own.path: own.weight for own in config.documents}
    built = {name: about["weight"] for name, about in corpus.sources.items()} if corpus else {}
    mixture = {FROM_CONVERSATIONS: config.conversations_weight, **weights, **built}
    write_json(out / "mixture.json", mixture)
    _write_built(corpus, out)
    out.progress.end()
    return {name: float(count) for name, count in counts.items()}


def _read_sources(
    config: DataConfig,
    files: FilesOnce,
    counts: Counter[str],
    left_out: Counter[str],
    progress: Progress,
) -> tuple[list[Conversation], list[Ranking]]:
    """The conversations and people's rankings of all sources."""
    sources = len(config.conversations) + len(config.rankings)
    progress.begin("reading", sources, "sources")
    read: list[Conversation] = []
    for number, source in enumerate(config.conversations, start=1):
        read += conversations_of(config.place(source), left_out, files)
        progress.update(number)
    places = [config.place(source) for source in config.rankings]
    needed = config.rankings_as_conversations
    rankings = read_human_rankings(places, config.unicode_form, progress, counts, needed)
    progress.update(sources)
    return read, rankings


def _clean(
    config: DataConfig, read: Sequence[Conversation], counts: Counter[str]
) -> tuple[list[Conversation], set[str]]:
    """The conversations that are left, and the keys of their texts."""
    counts["conversations.read"] = len(read)
    cleaned = clean_conversations(read, config.unicode_form, counts)
    exchanges = drop_without_exchange(cleaned, config.min_turns, counts)
    conversations, keys = drop_duplicates(exchanges, counts)
    counts["conversations.kept"] = len(conversations)
    ranked = config.rankings if config.rankings_as_conversations else ()
    if (named := ", ".join((*config.conversations, *ranked))) and not conversations:
        raise UserError(*why_none_is_left(named, counts, config.min_turns))
    return conversations, keys


def _documents(
    config: DataConfig,
    conversations: Sequence[Conversation],
    splits: Sequence[str | None],
    keys: set[str],
    counts: Counter[str],
    files: FilesOnce,
) -> dict[str, list[Document]]:
    """Text for pretraining (the part "") and of each held-out split; the judge's is left out."""
    documents: dict[str, list[Document]] = {part: [] for part in ("", *HELD_OUT)}
    for conversation, split in zip(conversations, splits, strict=True):
        if split != "judge":
            part = split if split in HELD_OUT else ""
            documents[part].append(_as_document(conversation, config.turn_separator))
    shares = {name: getattr(config.splits, name) for name in HELD_OUT}
    for own in config.documents:
        for document in own_documents(own.path, config, keys, counts, files):
            documents[split_of(document.id, shares) or ""].append(document)
    return documents


def _finished_corpus(config: DataConfig, out: StageFolder) -> FinishedCorpus | None:
    """The corpus of ``shards``; one elsewhere is copied into the stage, without its tokens."""
    if not config.shards:
        return None
    place = config.place(config.shards)
    if is_remote(place):
        place = str(copy_corpus(place, out / COPIED_CORPUS, out.progress))
    return FinishedCorpus.load(Path(place))


def _built_validation(
    corpus: FinishedCorpus, counts: Counter[str], progress: Progress
) -> list[Document]:
    """The held-out documents of a finished corpus, every file of which is checked."""
    corpus.check()
    for name, about in corpus.sources.items():
        for figure in ("documents", "tokens", "bytes"):
            counts[f"shards.{figure}"] += round(about[figure])
        progress.note(f"data: shards of {name}: {about['tokens']:,.0f} tokens")
    path = corpus.validation
    return list(read_documents(path)) if path.stat().st_size else []


def _write_built(corpus: FinishedCorpus | None, out: StageFolder) -> None:
    """Where pretraining finds the shards of a finished corpus: relative to here, if copied."""
    place = out / CORPUS_SHARDS_FILE
    if corpus is None:
        place.unlink(missing_ok=True)
        return
    here = out.path.absolute()
    folder, tokenizer = (
        str(each.relative_to(here) if each.is_relative_to(here) else each)
        for each in (corpus.folder, corpus.tokenizer)
    )
    about = {"folder": folder, "sources": corpus.sources, "tokenizer": tokenizer}
    write_json(place, about)


def _split_name(conversation: Conversation, ranked_openings: Collection[str]) -> str:
    """The key of a conversation's split: its id, or its opening if rankings open so."""
    opening = opening_key(conversation.messages) if ranked_openings else ""
    return opening if opening in ranked_openings else conversation.id


def _use_comparisons(
    splits: Mapping[str, list[Conversation]], ranked_openings: Collection[str], progress: Progress
) -> None:
    """Where people's rankings train the reward model, comparisons' conversations give prompts."""
    comparisons = splits["comparisons"]
    free = [each for each in comparisons if _split_name(each, ranked_openings) == each.id]
    splits["prompts"].extend(free)
    if free:
        progress.say(
            f"data: your rankings train the reward model, so {len(free):,} conversations of the "
            "split comparisons give prompts for PPO; to fine-tune on them as well, set "
            "data.splits.comparisons to 0 and raise demonstrations"
        )


def own_documents(
    source: str,
    config: DataConfig,
    seen: set[str],
    counts: Counter[str],
    files: FilesOnce,
) -> Iterator[Document]:
    """The cleaned documents of a source that are not in `seen`, which gets their keys."""
    for document in documents_of(config.place(source), files):
        counts["documents.read"] += 1
        text = clean_text(document.text, config.unicode_form)
        key = text_key(text)
        if not text:
            counts["dropped.empty_documents"] += 1
        elif key in seen:
            counts["dropped.duplicate_documents"] += 1
        else:
            seen.add(key)
            yield Document(document.id, text, source)


def _as_document(conversation: Conversation, turn_separator: str) -> Document:
    """Plain text: the turns without their roles, and no system message."""
    text = turn_separator.join(turn["content"] for turn in conversation.turns())
    return Document(conversation.id, text, FROM_CONVERSATIONS)


def _write_documents(
    documents: Mapping[str, Sequence[Document]], out: StageFolder, counts: Counter[str]
) -> None:
    for held_out, rows in documents.items():
        name = f"{held_out}_documents" if held_out else "documents"
        _write(out / f"{name}.jsonl", (document.row() for document in rows))
        counts[name] = len(rows)
        counts[f"{name}.bytes"] = sum(len(document.text.encode()) for document in rows)


def _write_splits(
    splits: Mapping[str, Sequence[Conversation]],
    either_side: bool,
    out: StageFolder,
    counts: Counter[str],
) -> None:
    exchanged = 0
    for split, rows in splits.items():
        if either_side and split not in HELD_OUT:
            others = [other for row in rows if (other := other_side(row)) is not None]
            rows, exchanged = [*rows, *others], exchanged + len(others)
        _write(out / f"{split}.jsonl", (conversation.row() for conversation in rows))
        counts[f"conversations.{split}"] = len(rows)
    if exchanged:
        out.progress.say(
            f"data: {exchanged:,} conversations are used a second time with user and assistant "
            "exchanged, as both sides are people (data.either_side = true); set it to false where "
            "the assistant alone is to be learnt from"
        )


def _write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Write `rows` if there are any; remove the file of an earlier run otherwise."""
    rows = list(rows)
    if rows:
        write_jsonl(path, rows)
    else:
        path.unlink(missing_ok=True)
