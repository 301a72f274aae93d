"""From files into the database: prompts and answers to be labelled, rankings, conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_rows
from lmsmith.corpus.annotations import Annotated, AnnotationReader, is_annotated
from lmsmith.corpus.formats import is_conversation, messages_of, text_of
from lmsmith.corpus.messages import validate_messages, validate_prompt
from lmsmith.feedback import answers
from lmsmith.feedback.database import NAMES_A_QUERY
from lmsmith.feedback.people import Names, person_name
from lmsmith.feedback.queue import new_task
from lmsmith.feedback.store import Store, check_order, new_ranking
from lmsmith.feedback.tables import (
    KINDS,
    Assignment,
    BetterAnswer,
    Conversation,
    Message,
    Person,
    RankedAnswers,
    Rating,
    Task,
    now,
)

IMPORTING = 7_310_552
"""PostgreSQL's advisory lock for importing; any number that nothing else uses."""

_KIND_OF = {0: "demonstration", 1: "rating"}

Row = Mapping[str, Any]


# Files


def import_file(
    store: Store,
    path: Path,
    *,
    person: str,
    overlap: int = 1,
    left_out: Counter[str] | None = None,
) -> dict[str, int]:
    """Read a file of rows, all of it or, where anything is wrong with it, nothing.

    A row is one of

    - ``prompt`` alone, to be answered by labelers; with ``responses``, one to be rated or two to
      nine to be ranked; with ``gold``, the right answer (``{"score": 2}``, ``{"ranks": [1, 2, 2,
      3]}``), to measure labelers by. ``models`` may name who wrote the responses, ``overlap`` how
      many labelers are to judge them;
    - ``prompt``, ``responses`` and ``ranks``: a ranking, by ``labeler`` where it names one;
    - ``prompt`` and ``demonstration``: an answer that ``labeler`` wrote;
    - a conversation: ``messages``, or another form (see `lmsmith.corpus.formats`);
    - a record of Argilla, a task of Label Studio, a question of QA-Feedback
      (`lmsmith.corpus.annotations`): rankings and demonstrations with their labelers.

    Rows that were imported before are skipped. Rankings and conversations that a file has several
    times are all added, for two labelers without a name may agree; of equal tasks only the first.

    Args:
        person: owner of the conversations, and of the rankings without a labeler.
        overlap: for rows without one.
        left_out: counts the parts of conversations that are no message of user or assistant.

    Returns:
        ``tasks``, ``rankings``, ``demonstrations``, ``conversations``: how many are new;
        ``known``: rows that are not.

    Raises:
        UserError: naming the file and the line.
    """
    found = list(_rows(path, Counter() if left_out is None else left_out))
    for where, row in found:
        _check(row, where)
    with store.exclusive(IMPORTING) as session:
        return _Import(session, person, overlap).add_all(found)


def _rows(path: Path, left_out: Counter[str]) -> Iterator[tuple[str, Row]]:
    """(place, row), where conversations have ``messages`` whatever their form was."""
    annotations = AnnotationReader()
    for where, row in read_rows(path):
        if is_annotated(row):
            yield from map(_annotated_row, annotations.of(row, where))
        elif "prompt" in row or "messages" in row or not is_conversation(row):
            yield where, row
        elif messages := begun_by_user(messages_of(row, where, left_out), left_out):
            yield where, {"messages": messages}
    yield from map(_annotated_row, annotations.rest())


def _annotated_row(each: Annotated) -> tuple[str, Row]:
    """What another program exported, as a row of ours."""
    row: dict[str, Any] = {"prompt": each.prompt, "labeler": each.labeler}
    if each.kind == "demonstration":
        return each.where, row | {"demonstration": each.responses[0]}
    return each.where, row | {"responses": each.responses, "ranks": each.ranks}


def begun_by_user(
    messages: list[dict[str, str]] | None, left_out: Counter[str]
) -> list[dict[str, str]]:
    """A conversation without a first message of the assistant's, which answers nothing."""
    if messages and messages[0]["role"] == "assistant":
        left_out["first messages that are the assistant's"] += 1
        return messages[1:]
    return messages or []


def _check(row: Row, where: str) -> None:
    """Refuse a row of the wrong form."""
    if "messages" in row:
        if validate_messages(row["messages"], where)[0]["role"] == "assistant":
            raise UserError(f"{where}: a conversation here begins with the user, or the system")
        return
    if "prompt" not in row:
        raise UserError(f"{where}: no 'prompt' and no 'messages'", "see lmsmith feedback import -h")
    validate_prompt(row["prompt"], where)
    for name in ("responses", "models"):
        texts = row.get(name, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where}: {name!r} must be a list of texts")
    ranks = row.get("ranks", [])
    if not isinstance(ranks, list) or not all(type(rank) is int for rank in ranks):
        raise UserError(f"{where}: 'ranks' must be a list of whole numbers")
    if not isinstance(row.get("gold", {}), dict) or type(row.get("overlap", 1)) is not int:
        raise UserError(f"{where}: 'gold' must be an object, and 'overlap' a whole number")
    if "demonstration" in row:
        with _at(where):
            answers.checked("demonstration", 0, {"content": row["demonstration"]}, whole=True)
        return
    if "ranks" in row:
        return
    kind, responses = _kind(row), row.get("responses", [])
    if kind not in KINDS:
        raise UserError(f"{where}: 'kind' must be one of {', '.join(KINDS)}")
    with _at(where):
        answers.check_responses(kind, responses)
        if "gold" in row:
            answers.checked(kind, len(responses), row["gold"], whole=True)


def _kind(row: Row) -> str:
    """The task's kind: as the row says, else by the number of its responses."""
    return str(row.get("kind", _KIND_OF.get(len(row.get("responses", [])), "ranking")))


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Errors name the file and the line."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error.problem}", error.fix) from error


@dataclass(frozen=True)
class _Named:
    """A row, and its origin in the database once it is imported."""

    where: str
    row: Row
    origin: str


class _Import:
    """Adds the rows of one file, in one transaction."""

    def __init__(self, session: Session, person: str, overlap: int) -> None:
        self._session, self._person, self._overlap = session, person, overlap
        self._names = Names(session)

    def add_all(self, found: Sequence[tuple[str, Row]]) -> dict[str, int]:
        """Add what is new; returns how much that is."""
        tasks, rankings, conversations = list[_Named](), list[_Named](), list[_Named]()
        demonstrations = list[_Named]()
        for where, row in found:
            with _at(where):
                if "messages" in row:
                    origin = origin_of(self._id_of(self._person), _messages(row, where))
                    conversations.append(_Named(where, row, origin))
                elif "demonstration" in row:
                    content = [validate_prompt(row["prompt"], where), row["demonstration"]]
                    origin = fingerprint(["demonstration", self._labeler(row, where), *content])
                    demonstrations.append(_Named(where, row, origin))
                elif "ranks" in row:
                    prompt = validate_prompt(row["prompt"], where)
                    content = [prompt, row.get("responses", []), row["ranks"]]
                    origin = fingerprint(["ranking", self._labeler(row, where), *content])
                    rankings.append(_Named(where, row, origin))
                else:
                    content = [row["prompt"], row.get("responses", []), row.get("gold")]
                    origin = fingerprint(["import", _kind(row), *content])
                    tasks.append(_Named(where, row, origin))
        new_tasks = self._new(Task, _once(tasks))
        new_demonstrations = self._new(Task, _once(demonstrations))
        new_rankings = self._new(RankedAnswers, _numbered(rankings))
        new_conversations = self._new(Conversation, _numbered(conversations))
        self._session.add_all(map(self._task, new_tasks))
        self._session.add_all(map(self._ranking, new_rankings))
        self._demonstrate(new_demonstrations)
        if new_conversations:
            title = Path(new_conversations[0].where.partition(",")[0]).name[:300]
            trees = [
                Tree(title, _messages(each.row, each.where), each.origin)
                for each in new_conversations
            ]
            _add_trees(self._session, self._id_of(self._person), trees)
        self._session.flush()
        counts = {"tasks": len(new_tasks), "rankings": len(new_rankings)}
        counts["demonstrations"] = len(new_demonstrations)
        counts["conversations"] = len(new_conversations)
        return counts | {"known": len(found) - sum(counts.values())}

    def _id_of(self, name: str) -> str:
        """The person of that name, who is added if new."""
        if (known := self._names.find(name)) is not None:
            return known
        made = Person(name=person_name(name))
        self._session.add(made)
        self._session.flush()
        self._names.add(made)
        return made.id

    def _new(self, table: Any, rows: list[_Named]) -> list[_Named]:
        """Rows that are not in the database."""
        known = _known_origins(self._session, table, [each.origin for each in rows])
        return [each for each in rows if each.origin not in known]

    def _labeler(self, row: Row, where: str) -> str:
        return self._id_of(text_of(row, "labeler", where, default="") or self._person)

    def _ranking(self, each: _Named) -> RankedAnswers:
        row, where = each.row, each.where
        prompt = validate_prompt(row["prompt"], where)
        with _at(where):
            labeler = self._labeler(row, where)
            return new_ranking(labeler, prompt, row.get("responses", []), row["ranks"], each.origin)

    def _demonstrate(self, rows: Sequence[_Named]) -> None:
        """Tasks to write an answer, each done by its labeler."""
        tasks = [new_task("demonstration", each.row["prompt"], origin=each.origin) for each in rows]
        self._session.add_all(tasks)
        self._session.flush()
        self._session.add_all(
            Assignment(
                task_id=task.id,
                person_id=self._labeler(each.row, each.where),
                state="done",
                answer={"content": each.row["demonstration"]},
                lease=now(),
                finished=now(),
            )
            for each, task in zip(rows, tasks, strict=True)
        )

    def _task(self, each: _Named) -> Task:
        row = each.row
        with _at(each.where):
            return new_task(
                _kind(row),
                row["prompt"],
                row.get("responses", []),
                models=row.get("models", []),
                overlap=row.get("overlap", self._overlap),
                gold=row.get("gold"),
                origin=each.origin,
            )


def _messages(row: Row, where: str) -> list[ImportedMessage]:
    return in_turn(validate_messages(row["messages"], where))


def _once(rows: Sequence[_Named]) -> list[_Named]:
    """Of rows of one origin only the first."""
    first = {each.origin: each for each in reversed(rows)}
    return [each for each in rows if first[each.origin] is each]


def _numbered(rows: Sequence[_Named]) -> list[_Named]:
    """Equal rows have the first, the second and so on of their origin."""
    seen, found = Counter[str](), []
    for each in rows:
        seen[each.origin] += 1
        found.append(replace(each, origin=f"{each.origin}.{seen[each.origin]}"))
    return found


# Conversations as trees


@dataclass(frozen=True)
class ImportedMessage:
    """A message of a tree.

    Attributes:
        parent: its place in the tree, None at the beginning.
        about: ``model``, ``settings`` and ``finish``, where they are known.
        rating: ``value``, ``reasons`` and ``comment``, if its reader gave one.
        better: a better answer, if its reader gave one.
    """

    parent: int | None
    role: str
    content: str
    about: dict[str, Any] = field(default_factory=dict)
    rating: dict[str, Any] | None = None
    better: str | None = None


@dataclass(frozen=True)
class Tree:
    """A conversation, each message after its parent; only one of an origin is added."""

    title: str
    messages: Sequence[ImportedMessage]
    origin: str


def in_turn(messages: Iterable[dict[str, str]]) -> list[ImportedMessage]:
    """Messages each of which follows the one before."""
    return [
        ImportedMessage(number - 1 if number else None, message["role"], message["content"])
        for number, message in enumerate(messages)
    ]


def origin_of(person: str, messages: Sequence[ImportedMessage]) -> str:
    """The origin of a conversation that a person imports: the same for the same messages, whatever
    file has them. Where a file has them several times, a number follows, from 1."""
    content: list[Any] = [{"role": each.role, "content": each.content} for each in messages]
    parents = [each.parent for each in messages]
    if parents != [None, *range(len(messages) - 1)]:
        content.append(parents)
    return fingerprint(["conversation", person, content])


def check_tree(messages: Sequence[ImportedMessage], where: str) -> None:
    """Raises UserError if a message cannot stand where it does."""
    for number, each in enumerate(messages, start=1):
        before = None if each.parent is None else messages[each.parent].role
        check_order(each.role, before, f"{where}: message {number}: ")


def import_trees(store: Store, person: str, trees: Sequence[Tree]) -> list[Conversation]:
    """Add those of a person's trees that are not there yet; returns the new conversations."""
    first = {tree.origin: tree for tree in reversed(trees)}
    with store.exclusive(IMPORTING) as session:
        known = _known_origins(session, Conversation, list(first))
        new = [tree for tree in trees if first[tree.origin] is tree and tree.origin not in known]
        return _add_trees(session, person, new)


def _known_origins(session: Session, table: Any, origins: Sequence[str]) -> set[str]:
    """Origins that are in the database already."""
    known: set[str] = set()
    for start in range(0, len(origins), NAMES_A_QUERY):
        some = origins[start : start + NAMES_A_QUERY]
        known |= set(session.scalars(select(table.origin).where(table.origin.in_(some))))
    return known


def _add_trees(session: Session, person: str, trees: Sequence[Tree]) -> list[Conversation]:
    """Add conversations of a person: all first messages, then all that follow these, and so on,
    since each needs its parent's number."""
    made = [Conversation(person_id=person, title=tree.title, origin=tree.origin) for tree in trees]
    session.add_all(made)
    session.flush()
    added: list[dict[int, Message]] = [{} for _ in trees]
    left = [dict(enumerate(tree.messages)) for tree in trees]
    while any(left):
        new = []
        for conversation, there, missing in zip(made, added, left, strict=True):
            ready = [
                n for n, each in missing.items() if each.parent is None or each.parent in there
            ]
            for number in ready:
                each = missing.pop(number)
                message = Message(
                    conversation_id=conversation.id,
                    parent_id=None if each.parent is None else there[each.parent].id,
                    role=each.role,
                    content=each.content,
                    **each.about,
                )
                new.append((there, number, message))
        session.add_all(message for _, _, message in new)
        session.flush()
        for there, number, message in new:
            there[number] = message
    for tree, there in zip(trees, added, strict=True):
        for number, each in enumerate(tree.messages):
            of: dict[str, Any] = {"message_id": there[number].id, "person_id": person}
            if each.rating is not None:
                session.add(Rating(**of, **each.rating))
            if each.better is not None:
                session.add(BetterAnswer(**of, content=each.better))
    session.flush()
    return made
