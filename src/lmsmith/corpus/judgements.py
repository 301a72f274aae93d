"""Judgements: demonstrations, rankings, comparisons, thumbs and prompts, from any source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_rows
from lmsmith.corpus.annotations import Annotated, AnnotationReader, is_annotated
from lmsmith.corpus.formats import IrregularPair, text_of
from lmsmith.corpus.messages import validate_messages
from lmsmith.corpus.rows import read_conversations, read_rankings
from lmsmith.corpus.sources import ROWS, TALKS, FilesOnce
from lmsmith.corpus.splits import opening_key

Kind = Literal["demonstration", "better_answer", "ranking", "comparison", "thumb", "prompt"]

RANKED: tuple[Kind, ...] = ("ranking", "comparison", "better_answer")
"""Kinds that put responses in an order."""

DEMONSTRATED: tuple[Kind, ...] = ("demonstration", "better_answer")
"""Kinds whose best response is a person's own."""


class Judgement(msgspec.Struct, frozen=True):
    """What a person said of responses to a prompt.

    Attributes:
        id: the same in every round, such as ``comparison-12``.
        kind: ``better_answer`` ranks a person's own response above the model's; a ``thumb`` says
            of one response whether it is good; a ``prompt`` is a message that a person sent.
        prompt: messages, the last of which is the user's.
        responses, ranks: 1 is best, equal numbers are ties; a thumb's rank is 1 for up, 2 for down.
        person: id of the one who judged; empty where a file names nobody.
        asker: id of the one who sent the prompt, if it was somebody here.
        models: that wrote the responses, where it is known.
        created: seconds since 1970.
    """

    id: str
    kind: Kind
    prompt: list[dict[str, str]]
    responses: list[str] = []
    ranks: list[int] = []
    person: str = ""
    asker: str = ""
    models: list[str] = []
    created: float = 0.0

    @property
    def opening(self) -> str:
        """Key of all dialogues that begin alike (`opening_key`)."""
        return opening_key(self.prompt)

    @property
    def said(self) -> bytes:
        """Equal for what one person says twice; of people who are not named, for equal opinions.

        A prompt is said by the one who asked.
        """
        ranks = self.ranks or [0] * len(self.responses)
        order = sorted(zip(self.responses, ranks, strict=True))
        opinion = [response for response, _ in order] if self.person else order
        person = self.asker if self.kind == "prompt" else self.person
        return msgspec.json.encode([self.kind, person, self.prompt, opinion])

    @property
    def people(self) -> tuple[str, ...]:
        """Everybody whose words or opinion it holds."""
        return tuple(dict.fromkeys(name for name in (self.person, self.asker) if name))


@dataclass(frozen=True)
class Collected:
    """What a database or files hold.

    Attributes:
        judgements: of all people, gold tasks left out.
        reliability: person → gold pairs that they ordered rightly, and all; a tie counts ½.
        regenerations: answers that were asked for once more.
        edits: messages that people wrote anew in the place of another.
        names: person → name.
        left_out: pairs of files that cannot be used, by what is wrong with them.
    """

    judgements: list[Judgement]
    reliability: dict[str, tuple[float, float]]
    regenerations: int
    edits: int
    names: dict[str, str]
    left_out: dict[str, int] = field(default_factory=dict)


def read_judgements(
    sources: Sequence[str], left_out: list[IrregularPair] | None = None
) -> Iterator[Judgement]:
    """The judgements of files or folders, in the formats that ``lmsmith feedback export`` writes.

    A file is of conversations (demonstrations), of rankings, or of ratings, by its rows; or it is
    an export of another program (`lmsmith.corpus.annotations`). A rating on another scale than
    thumbs is no judgement that anything learns from, and is left out. Rows whose labeler is not
    named are nobody's. Ids depend on a row alone, not on the file that has it.

    Args:
        sources: paths.
        left_out: takes the pairs of pairwise data that cannot be used, instead of raising the
            first.

    Raises:
        UserError: a file is missing or a row is bad; it is named.
    """
    files = FilesOnce()
    for source in sources:
        for path in files.of(source, tuple(dict.fromkeys((*ROWS, *TALKS)))):
            yield from _read_file(path, left_out)


def _read_file(path: Path, left_out: list[IrregularPair] | None) -> Iterator[Judgement]:
    _, first = next(iter(read_rows(path)), ("", {}))
    if is_annotated(first):
        yield from _annotated(path)
    elif "scale" in first and "messages" in first:
        yield from _thumbs(path)
    elif "messages" in first or "conversations" in first or "instruction" in first:
        for each in read_conversations(path):
            *prompt, reply = each.messages
            if reply["role"] == "assistant" and prompt and prompt[-1]["role"] == "user":
                said, people = [reply["content"]], (each.labeler, each.asker)
                yield Judgement(each.id, "demonstration", prompt, said, [1], *people)
            elif reply["role"] == "user":
                yield Judgement(each.id, "prompt", each.messages, asker=each.asker)
    else:
        for ranking in read_rankings(path, left_out):
            kind: Kind = "comparison" if ranking.source == "feedback.comparison" else "ranking"
            kind = "better_answer" if ranking.source == "feedback.better" else kind
            people = (ranking.labeler, ranking.asker)
            yield Judgement(
                ranking.id, kind, ranking.prompt, ranking.responses, ranking.ranks, *people
            )


def _annotated(path: Path) -> Iterator[Judgement]:
    for kind, name, _, prompt, responses, ranks, labeler in _annotations(path):
        yield Judgement(name, kind, prompt, responses, ranks, labeler)


def _annotations(path: Path) -> Iterator[Annotated]:
    annotations = AnnotationReader()
    for where, row in read_rows(path):
        if not is_annotated(row):
            raise UserError(f"{where}: not of the form of the rows before it", "divide the file")
        yield from annotations.of(row, where)
    yield from annotations.rest()


def _thumbs(path: Path) -> Iterator[Judgement]:
    for where, row in read_rows(path):
        if row.get("scale") != "thumbs":
            continue
        value, person = row.get("value"), row.get("labeler") or ""
        asker = text_of(row, "asker", where, default="")
        *prompt, reply = validate_messages(row.get("messages"), where)
        if type(value) is not int or value not in (-1, 1) or not isinstance(person, str):
            raise UserError(f"{where}: not a thumb", "value is 1 or -1, and labeler is a name")
        if reply["role"] != "assistant" or not prompt:
            raise UserError(f"{where}: not a thumb", "messages end with a model's response")
        name = str(row.get("id") or fingerprint([prompt, reply, person]))
        ranks = [1 if value == 1 else 2]
        yield Judgement(name, "thumb", prompt, [reply["content"]], ranks, person, asker)
