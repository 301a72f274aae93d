"""From the database to the files that `lmsmith run` reads: conversations and rankings.

A person's rows are all on one side of the held-out split, and labels of a logged prompt are on the
side of the person who asked. Rows of files belong to nobody. Those with the same opening are on one
side: that of the people who asked the same, if these are all on one (docs/decisions/011).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import and_, select

from lmsmith.core.errors import UserError
from lmsmith.core.files import storage_error, write_jsonl
from lmsmith.corpus.judgements import DEMONSTRATED, RANKED, Judgement
from lmsmith.corpus.rows import Conversation, Ranking
from lmsmith.corpus.splits import opening_key, split_of
from lmsmith.feedback import tables
from lmsmith.feedback.collect import collect
from lmsmith.feedback.people import IMPORTER
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Assignment, BetterAnswer, Message, Rating, Task

FILES = ("conversations", "rankings", "ratings")
HELD_OUT = "held_out"

_Row = tuple[str, str, dict[str, Any]]
"""The person who asked, empty if the row came from a file; the file; the row."""

_THUMBS = (
    select(Rating.id, Rating.reasons, Rating.comment, BetterAnswer.id)
    .outerjoin(
        BetterAnswer,
        and_(
            BetterAnswer.message_id == Rating.message_id,
            BetterAnswer.person_id == Rating.person_id,
        ),
    )
    .order_by(Rating.id)
)
"""Thumbs: reasons, comment, and whether the person also wrote a better answer."""

_SCORES = (
    select(Assignment.person_id, Assignment.answer, Task, tables.Conversation.person_id)
    .join(Task, Assignment.task_id == Task.id)
    .outerjoin(Message, Task.message_id == Message.id)
    .outerjoin(tables.Conversation, Message.conversation_id == tables.Conversation.id)
    .where(Assignment.state == "done", Task.kind == "rating", Task.gold.is_(None))
    .order_by(Assignment.id)
)
"""Labelers' scores of one answer, with the person who asked."""

OWN = ("comparison", "better_answer", "thumb")
"""Judgements that people make in their own conversations."""


def export(
    store: Store, folder: Path, *, held_out: float = 0.0, with_liked: bool = False
) -> dict[str, int]:
    """Write ``conversations.jsonl``, ``rankings.jsonl`` and ``ratings.jsonl``.

    Conversations are demonstrations: labelers', those that end with somebody's better answer, and
    with ``with_liked`` also those whose last answer was thumbed up. Rankings are labelers',
    comparisons (both bad is a tie), and better answers over what they improve. Ratings, thumbs and
    labelers' scores, are for people to look at: no stage learns from them. Gold tasks measure
    labelers and are in no file.

    Args:
        folder: is made if it is missing, for its owner alone; files in it are replaced, and only
            their owner may read them. Files without a row are written too, so that a recipe that
            names them can always be read.
        held_out: share of the people, and of what came from files, in ``held_out/``.
        with_liked: whether answers that were thumbed up are demonstrations.

    Returns:
        File → rows.

    Raises:
        UserError: the share is no share, or a file cannot be written.
    """
    if not 0 <= held_out < 1:
        raise UserError(f"held_out = {held_out}: expected a share of the people, 0 to below 1")
    found: dict[str, list[dict[str, Any]]] = {
        f"{part}{name}": [] for part in ("", f"{HELD_OUT}/") for name in FILES
    }
    rows = [
        (person, opening_key(row.get("messages") or row["prompt"]), file, row)
        for person, file, row in _all(store, with_liked)
    ]
    sides: dict[str, set[str]] = defaultdict(set)
    for person, opening, _, _ in rows:
        if person:
            sides[opening].add(_part(person, held_out))
    for person, opening, file, row in rows:
        part = _part(person or opening, held_out)
        if not person and len(sides[opening]) == 1:
            (part,) = sides[opening]
        found[f"{part}{file}"].append(row)
    counts = {}
    for made in (folder, *([folder / HELD_OUT] if held_out else [])):
        try:
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(made, error) from error
    for name, content in found.items():
        path = folder / f"{name}.jsonl"
        if held_out or path.exists() or not name.startswith(HELD_OUT):
            write_jsonl(path, content, private=True)
        counts[f"{name}.jsonl"] = len(content)
    return counts


def _part(name: str, held_out: float) -> str:
    return f"{HELD_OUT}/" if split_of(name, {HELD_OUT: held_out}) else ""


def _all(store: Store, with_liked: bool) -> Iterator[_Row]:
    """All rows, in a fixed order: people's own by person, then labels, then rankings of files."""
    found = collect(store)
    importer = next((key for key, name in found.names.items() if name == IMPORTER), "")
    with store.session() as session:
        thumbs = {
            f"thumb-{number}": (reasons, comment, better)
            for number, reasons, comment, better in session.execute(_THUMBS)
        }
        scores = list(session.execute(_SCORES))
    judged = [each for each in found.judgements if each.kind != "prompt"]
    judged.sort(key=lambda each: (each.kind not in OWN, each.person if each.kind in OWN else ""))
    for each in judged:
        labeler = each.person or importer
        yield from _learnt(each, labeler)
        if each.kind == "thumb":
            yield from _thumb(each, labeler, thumbs.get(each.id, ([], "", None)), with_liked)
    for labeler, answer, task, asker in scores:
        messages = [*task.prompt, {"role": "assistant", "content": task.responses[0]}]
        row = {"messages": messages, "model": (task.models or [""])[0], "labeler": labeler}
        asker = "" if asker in (None, importer) else asker
        yield asker, "ratings", {**row, "asker": asker, "scale": "1-7", **answer}


def _learnt(each: Judgement, labeler: str) -> Iterator[_Row]:
    """A judgement's demonstration and its ranking, if it has them."""
    if each.kind in DEMONSTRATED:
        yield each.asker, "conversations", _talk(each, labeler, each.id)
    unchanged = each.kind == "better_answer" and len(set(each.responses)) == 1
    if each.kind in RANKED and not unchanged:
        source = f"feedback.{each.id.partition('-')[0]}"
        ranking = Ranking(
            each.id, each.prompt, each.responses, each.ranks, each.person, source, asker=each.asker
        )
        yield each.asker, "rankings", ranking.row()


def _thumb(
    each: Judgement, labeler: str, said: tuple[list[str], str, int | None], with_liked: bool
) -> Iterator[_Row]:
    """A thumb, and the conversation if it is liked and nobody wrote a better answer."""
    reasons, comment, better = said
    liked = each.ranks == [1]
    row = {
        "messages": _answered(each),
        "model": each.models[0],
        "labeler": each.person,
        "asker": each.asker,
    }
    value = {"scale": "thumbs", "value": 1 if liked else -1}
    yield each.asker, "ratings", {**row, **value, "reasons": reasons, "comment": comment}
    if with_liked and liked and better is None:
        yield each.asker, "conversations", _talk(each, labeler, each.id.replace("thumb", "liked"))


def _answered(each: Judgement) -> list[dict[str, str]]:
    return [*each.prompt, {"role": "assistant", "content": each.responses[0]}]


def _talk(each: Judgement, labeler: str, name: str) -> dict[str, Any]:
    """The row of a conversation that ends with the first response."""
    source, _, number = name.partition("-")
    source = source.replace("labelled", "demonstration")
    id = f"{source}-{labeler}-{number}"
    return Conversation(id, _answered(each), each.person, each.asker).row()
