"""Rows that users bring and stages pass on: conversations, rankings, documents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_rows, read_text
from lmsmith.corpus.annotations import Annotated, AnnotationReader, is_annotated
from lmsmith.corpus.formats import (
    IrregularPair,
    Ranked,
    id_of,
    is_tree,
    messages_of,
    name_of,
    read_pair,
    require_keys,
    text_of,
    tree_rankings,
)
from lmsmith.corpus.messages import validate_prompt

LONG_TEXT_CHARACTERS = 16_384
"""A .txt file longer than this is read as several documents, so that a split can divide it."""

WORST_RANK = 1_000_000
"""Far more than responses can have."""

RANKING_SPLITS = ("train", "validation", "test")

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, as `validate_messages` accepts them, and their id.

    Attributes:
        labeler, asker: who wrote the last answer, or liked it, and who asked, where that is known.
    """

    id: str
    messages: list[dict[str, str]]
    labeler: str = ""
    asker: str = ""

    def row(self) -> dict[str, object]:
        """The row of a JSONL file that `read_conversations` reads back."""
        return {
            "messages": self.messages,
            "id": self.id,
            **({"labeler": self.labeler} if self.labeler else {}),
            **({"asker": self.asker} if self.asker else {}),
        }

    def turns(self) -> list[dict[str, str]]:
        """The messages without the system's."""
        return [message for message in self.messages if message["role"] != "system"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """K responses to one prompt in a labeler's order.

    Attributes:
        prompt: ends with the user's message.
        responses: K >= 2.
        ranks: 1 is best, equal numbers are ties.
        split: one of `RANKING_SPLITS` if it is decided already.
        weight: of its loss, 1 on average.
        asker: who sent the prompt, where that is known.
    """

    id: str
    prompt: list[dict[str, str]]
    responses: list[str]
    ranks: list[int]
    labeler: str = ""
    source: str = ""
    split: str | None = None
    weight: float = 1.0
    asker: str = ""

    def row(self) -> dict[str, object]:
        """The row of a JSONL file that `read_rankings` reads back."""
        return {
            "prompt": self.prompt,
            "responses": self.responses,
            "ranks": self.ranks,
            "labeler": self.labeler,
            "source": self.source,
            "id": self.id,
            **({"split": self.split} if self.split else {}),
            **({"weight": self.weight} if self.weight != 1 else {}),
            **({"asker": self.asker} if self.asker else {}),
        }


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text for pretraining; `source` names the part of the mixture it belongs to."""

    id: str
    text: str
    source: str

    def row(self) -> dict[str, object]:
        """The row of a JSONL file that `read_documents` reads back."""
        return {"text": self.text, "id": self.id, "source": self.source}


def read_conversations(path: Path, left_out: Counter[str] | None = None) -> Iterator[Conversation]:
    """Conversations of a file, in any form of `messages_of`; the default id is a hash of them.

    Args:
        left_out: counts the parts of rows that are no message of user or assistant.

    Raises:
        UserError: naming the file and the row.
    """
    left_out = Counter() if left_out is None else left_out
    annotations = AnnotationReader()
    for where, row in read_rows(path):
        if is_annotated(row):
            for each in annotations.of(row, where):
                if each.kind == "demonstration":
                    said = {"role": "assistant", "content": each.responses[0]}
                    yield Conversation(each.id, [*each.prompt, said], each.labeler)
            continue
        messages = messages_of(row, where, left_out)
        if messages is not None:
            labeler, asker = (text_of(row, key, where, default="") for key in ("labeler", "asker"))
            name = name_of(row, where) or fingerprint(messages)
            yield Conversation(name, messages, labeler, asker)


def rows_of_split(read: Callable[[Path], Iterator[Row]], path: Path) -> Iterator[Row]:
    """The rows of a file of the data stage, which exists only if the split has rows."""
    return read(path) if path.is_file() else iter(())


def read_documents(path: Path, source: str | None = None) -> Iterator[Document]:
    """Documents of a JSONL file (``text``, and ``id`` and ``source`` where given) or a .txt file.

    A .txt file is one document; a long one is several, cut at blank lines.

    Args:
        source: overrules what the rows say, and names the file where they say nothing.

    Raises:
        UserError: naming the file and the line.
    """
    if path.suffix.lower() == ".txt":
        for number, piece in enumerate(_cut_at_blank_lines(read_text(path))):
            yield Document(f"{path.name}#{number}", piece, source or path.name)
        return
    for where, row in read_rows(path):
        require_keys(row, ("text",), where)
        text = text_of(row, "text", where)
        part = source or text_of(row, "source", where, default=path.name)
        yield Document(id_of(row, where) or fingerprint(text), text, part)


def read_rankings(path: Path, left_out: list[IrregularPair] | None = None) -> Iterator[Ranking]:
    """Rankings of a file of rows, of four kinds.

    - ``prompt``, ``responses`` and ``ranks``, as `Ranking.row` writes them.
    - ``chosen`` and ``rejected``, a ranking of two: texts that answer ``prompt`` (messages, or the
      text of one user's message), or whole conversations (messages, or the text of the hh-rlhf
      data, ``"\\n\\nHuman: …\\n\\nAssistant: …"``) that differ in their last message.
    - Open Assistant's trees, each of which holds several rankings.
    - records of Argilla, tasks of Label Studio, questions of QA-Feedback
      (`lmsmith.corpus.annotations`); demonstrations in them are passed over.

    Args:
        left_out: gets the irregular pairs, in place of an error.

    Raises:
        UserError: naming the file and the line.
    """
    annotations = AnnotationReader()
    for where, row in read_rows(path):
        if is_annotated(row):
            yield from _rankings(annotations.of(row, where), path.name)
            continue
        labeler = text_of(row, "labeler", where, default="")
        source = text_of(row, "source", where, default=path.name)
        if is_tree(row):
            for name, ranked in tree_rankings(row, where):
                yield Ranking(name, *ranked, labeler, source)
            continue
        try:
            ranked = _read_ranked(row, where)
        except IrregularPair as irregular:
            if left_out is None:
                raise
            left_out.append(irregular)
            continue
        name = id_of(row, where) or fingerprint(ranked)
        weight, asker = _weight_of(row, where), text_of(row, "asker", where, default="")
        yield Ranking(name, *ranked, labeler, source, _split_of(row, where), weight, asker)
    yield from _rankings(annotations.rest(), path.name)


def _rankings(annotated: Iterable[Annotated], source: str) -> Iterator[Ranking]:
    for each in annotated:
        if each.kind == "ranking":
            yield Ranking(each.id, each.prompt, each.responses, each.ranks, each.labeler, source)


def _read_ranked(row: Mapping[str, object], where: str) -> Ranked:
    if "chosen" in row or "rejected" in row:
        return read_pair(row, where)
    require_keys(row, ("prompt", "responses", "ranks"), where)
    prompt = validate_prompt(row["prompt"], where)
    responses, ranks = row["responses"], row["ranks"]
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise UserError(f"{where}: 'responses' must be a list of texts")
    if len(responses) < 2:
        raise UserError(f"{where}: 'responses' must hold at least two, not {len(responses)}")
    if not isinstance(ranks, list) or not all(
        type(rank) is int and 1 <= rank <= WORST_RANK for rank in ranks
    ):
        raise UserError(
            f"{where}: 'ranks' must be a list of whole numbers from 1 (the best) to {WORST_RANK:,}"
        )
    if len(ranks) != len(responses):
        raise UserError(f"{where}: {len(responses)} responses but {len(ranks)} ranks")
    return prompt, responses, ranks


def _weight_of(row: Mapping[str, object], where: str) -> float:
    weight = row.get("weight", 1.0)
    if (
        isinstance(weight, bool)
        or not isinstance(weight, int | float)
        or not 0 <= weight < math.inf
    ):
        raise UserError(f"{where}: 'weight' is {weight!r}; expected a number of 0 or more")
    return float(weight)


def _split_of(row: Mapping[str, object], where: str) -> str | None:
    split = row.get("split")
    if split is not None and split not in RANKING_SPLITS:
        raise UserError(
            f"{where}: 'split' is {split!r}; expected one of {', '.join(RANKING_SPLITS)}",
            "leave it out to have the rankings divided",
        )
    return text_of(row, "split", where, default="") or None


def _cut_at_blank_lines(text: str) -> Iterator[str]:
    """Pieces that join to `text`, each the fewest whole paragraphs of `LONG_TEXT_CHARACTERS`."""
    text = text.replace("\r\n", "\n")
    start = 0
    while len(text) - start > LONG_TEXT_CHARACTERS:
        cut = text.find("\n\n", start + LONG_TEXT_CHARACTERS)
        if cut < 0:
            break
        yield text[start : cut + 2]
        start = cut + 2
    yield text[start:]
