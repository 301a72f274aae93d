"""Stage 1, data: what people wrote becomes the disjoint sets that the other stages read.

Conversations are cleaned, those without real exchange and duplicates are dropped (and counted),
and the rest are split by a hash of their ids. Pretraining reads the plain text of all splits but
judge, validation and test, beside the user's own documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lmsmith.core.errors import UserError
from lmsmith.core.files import write_json, write_jsonl
from lmsmith.core.runs import StageFolder
from lmsmith.corpus.cleaning import UnicodeForm, clean_text, text_key
from lmsmith.corpus.rows import Conversation, Document
from lmsmith.corpus.sources import conversations_of, documents_of, files_of, rankings_of
from lmsmith.corpus.splits import split_of

FROM_CONVERSATIONS = "data.conversations"
"""The `source` of documents made from conversations."""

HELD_OUT = ("validation", "test")
"""Splits that are only measured on; their text has files of its own."""


@dataclass(frozen=True)
class DocumentSource:
    """The user's own text for pretraining."""

    path: str
    """A .txt or .jsonl file, a folder of them, or a glob."""
    weight: float = 1.0
    """How often each of its documents is read, relative to `conversations_weight`."""


@dataclass(frozen=True)
class Splits:
    """Shares of the conversations, at most 1 in sum; the rest is for pretraining alone."""

    demonstrations: float = 0.36
    comparisons: float = 0.20
    prompts: float = 0.20
    judge: float = 0.12
    test: float = 0.08
    validation: float = 0.04

    def check(self) -> list[tuple[str, object, str, str]]:
        shares = asdict(self)
        problems: list[tuple[str, object, str, str]] = [
            (name, share, "must be between 0 and 1", "it is a share of the conversations")
            for name, share in shares.items()
            if not 0 <= share <= 1
        ]
        if not problems and sum(shares.values()) > 1 + 1e-9:
            total = sum(shares.values())
            largest = max(shares, key=lambda name: shares[name])
            problems.append(
                (largest, shares[largest], f"the shares add up to {total:.3g}", "1 is the most")
            )
        return problems


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from, what is kept of it and how it is divided."""

    conversations: tuple[str, ...] = ()
    """Sources: .jsonl files, folders, globs, or ``package:chitchat-dataset``."""
    documents: tuple[DocumentSource, ...] = ()
    rankings: tuple[str, ...] = ()
    """Sources of human rankings, used in place of the demo's labeler."""
    conversations_weight: float = 1.0
    """How often the conversations' text is read in pretraining, relative to documents'."""
    minimum_turns: int = 2
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

    def check(self) -> list[tuple[str, object, str, str]]:
        problems: list[tuple[str, object, str, str]] = []
        if not self.conversations and not self.documents:
            problems.append(
                ("conversations", [], "no text at all", "name conversations or documents")
            )
        if self.minimum_turns < 2:
            problems.append(
                ("minimum_turns", self.minimum_turns, "must be 2 or more", "an exchange has two")
            )
        if not self.turn_separator:
            problems.append(("turn_separator", "", "must not be empty", 'use "\\n"'))
        paths = [source.path for source in self.documents]
        problems += [
            (f"documents.{number}.path", path, "is named twice", "leave one out")
            for number, path in enumerate(paths)
            if path in paths[:number]
        ]
        weights = [("conversations_weight", self.conversations_weight)] + [
            (f"documents.{number}.weight", source.weight)
            for number, source in enumerate(self.documents)
        ]
        problems += [
            (name, weight, "must be 0 or more, and finite", "0 leaves the source out")
            for name, weight in weights
            if not 0 <= weight < float("inf")
        ]
        return problems

    def external_files(self) -> list[str]:
        """Every file that the stage will read, for the fingerprint of its inputs."""
        jsonl = [
            path
            for source in (*self.conversations, *self.rankings)
            for path in files_of(source, (".jsonl",))
        ]
        text = [
            path for source in self.documents for path in files_of(source.path, (".jsonl", ".txt"))
        ]
        return [str(path) for path in dict.fromkeys(jsonl + text)]


def run(config: DataConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Read everything, clean, drop, split and write.

    Writes `documents.jsonl`, `validation_documents.jsonl`, `test_documents.jsonl`, a file a split,
    `rankings.jsonl`, each only if it has rows, and `mixture.json`: source → weight.

    Raises:
        UserError: bad input (file and line are named), or nothing is left.
    """
    counts: Counter[str] = Counter()
    out.progress.begin("reading conversations", len(config.conversations), "sources")
    read: list[Conversation] = []
    for number, source in enumerate(config.conversations, start=1):
        read += conversations_of(source)
        out.progress.update(number)
    counts["conversations.read"] = len(read)
    cleaned = clean_conversations(read, config.unicode_form, counts)
    exchanges = drop_without_exchange(cleaned, config.minimum_turns, counts)
    conversations, keys = drop_duplicates(exchanges, counts)
    counts["conversations.kept"] = len(conversations)
    if config.conversations and not conversations:
        raise UserError(
            _why_none(config, counts), "Lower data.minimum_turns, or add conversations."
        )

    fractions = asdict(config.splits)
    splits: dict[str, list[Conversation]] = {name: [] for name in fractions}
    documents: dict[str, list[Document]] = {part: [] for part in ("", *HELD_OUT)}
    for conversation in conversations:
        split = split_of(conversation.id, fractions)
        if split is not None:
            splits[split].append(conversation)
        if split != "judge":
            part = split if split in HELD_OUT else ""
            documents[part].append(_as_document(conversation, config.turn_separator))
    for own in config.documents:
        for document in own_documents(own.path, config.unicode_form, keys, counts):
            part = split_of(document.id, {name: fractions[name] for name in HELD_OUT}) or ""
            documents[part].append(document)
    if not any(documents.values()) and not any(splits.values()):
        raise UserError("data: the documents hold no text", "Add text, or name conversations.")

    counts.update({f"splits.{name}": len(rows) for name, rows in splits.items()})
    _write_documents(documents, out, counts)
    for name, rows in splits.items():
        if config.either_side and name not in HELD_OUT:
            rows = [*rows, *filter(None, map(other_side, rows))]
        _write(out / f"{name}.jsonl", (conversation.row() for conversation in rows))
        counts[f"conversations.{name}"] = len(rows)
    empty = [name for name in splits if fractions[name] > 0 and not splits[name]]
    if conversations and empty:
        out.progress.say(f"data: no conversation fell into {', '.join(empty)}; there are too few")
    rankings = [ranking.row() for source in config.rankings for ranking in rankings_of(source)]
    _write(out / "rankings.jsonl", rankings)
    counts["rankings"] = len(rankings)
    weights = {own.path: own.weight for own in config.documents}
    write_json(out / "mixture.json", {FROM_CONVERSATIONS: config.conversations_weight, **weights})
    out.progress.end()
    return {name: float(count) for name, count in counts.items()}


def clean_conversations(
    conversations: Iterable[Conversation], unicode_form: UnicodeForm, counts: Counter[str]
) -> Iterator[Conversation]:
    """Clean every message; drop the empty ones, and join what then are neighbours of one role."""
    for conversation in conversations:
        messages: list[dict[str, str]] = []
        for message in conversation.messages:
            content = clean_text(message["content"], unicode_form)
            if not content:
                counts["dropped.empty_messages"] += 1
            elif messages and messages[-1]["role"] == message["role"]:
                messages[-1] = {**message, "content": messages[-1]["content"] + "\n" + content}
            else:
                messages.append({"role": message["role"], "content": content})
        yield Conversation(conversation.id, messages)


def drop_without_exchange(
    conversations: Iterable[Conversation], minimum_turns: int, counts: Counter[str]
) -> Iterator[Conversation]:
    """Keep conversations of both roles and of at least `minimum_turns` turns."""
    for conversation in conversations:
        turns = conversation.turns()
        if len({turn["role"] for turn in turns}) < 2:
            counts["dropped.one_sided"] += 1
        elif len(turns) < minimum_turns:
            counts["dropped.too_few_turns"] += 1
        else:
            yield conversation


def drop_duplicates(
    conversations: Iterable[Conversation], counts: Counter[str]
) -> tuple[list[Conversation], set[str]]:
    """Of those with nearly the same text, whoever says it, keep the one with the smallest id.

    So what is kept, and with it the split, does not depend on the order of reading.

    Returns:
        The conversations in their order, and the keys of their texts.
    """
    read = [
        (text_key("\n".join(turn["content"] for turn in conversation.turns())), conversation)
        for conversation in conversations
    ]
    smallest: dict[str, Conversation] = {}
    for key, conversation in read:
        if key not in smallest or conversation.id < smallest[key].id:
            smallest[key] = conversation
    kept = [conversation for key, conversation in read if smallest[key] is conversation]
    counts["dropped.duplicates"] = len(read) - len(kept)
    return kept, set(smallest)


def own_documents(
    source: str, unicode_form: UnicodeForm, seen: set[str], counts: Counter[str]
) -> Iterator[Document]:
    """The cleaned documents of a source that are not among the texts `seen`, which they join."""
    for document in documents_of(source):
        counts["documents.read"] += 1
        text = clean_text(document.text, unicode_form)
        key = text_key(text)
        if not text:
            counts["dropped.empty_documents"] += 1
        elif key in seen:
            counts["dropped.duplicate_documents"] += 1
        else:
            seen.add(key)
            yield Document(document.id, text, document.source)


def other_side(conversation: Conversation) -> Conversation | None:
    """The conversation with user and assistant exchanged, from the user's first message on.

    None if nothing of the assistant's is left, or if a system message says who is who.
    """
    exchanged = {"user": "assistant", "assistant": "user"}
    if conversation.messages[0]["role"] == "system":
        return None
    messages = [
        {"role": exchanged[message["role"]], "content": message["content"]}
        for message in conversation.messages
    ]
    if messages[0]["role"] == "assistant":
        messages.pop(0)
    if len(messages) < 2:
        return None
    return Conversation(f"{conversation.id}/other-side", messages)


def _as_document(conversation: Conversation, turn_separator: str) -> Document:
    """Plain text: the turns without their roles; a system message is nobody's speech."""
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


def _write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Write `rows` if there are any; a file that a run before left is removed otherwise."""
    rows = list(rows)
    if rows:
        write_jsonl(path, rows)
    else:
        path.unlink(missing_ok=True)


def _why_none(config: DataConfig, counts: Counter[str]) -> str:
    read = counts["conversations.read"]
    sources = ", ".join(config.conversations)
    if not read:
        return f"{sources}: no conversations in it"
    return (
        f"{sources}: none of {read} conversations is left: {counts['dropped.one_sided']} have one "
        f"side only, {counts['dropped.too_few_turns']} fewer than {config.minimum_turns} turns"
    )
