"""From files into the database: prompts and answers to be labelled, rankings, conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_rows
from lmsmith.core.terminal import in_one_line
from lmsmith.corpus.annotations import Annotated, AnnotationReader, is_annotated
from lmsmith.corpus.formats import is_conversation, messages_of, text_of
from lmsmith.corpus.messages import validate_messages, validate_prompt
from lmsmith.feedback import answers
from lmsmith.feedback.people import Names, person_name
from lmsmith.feedback.queue import new_task
from lmsmith.feedback.store import Store, new_ranking
from lmsmith.feedback.tables import KINDS, Assignment, Person, RankedAnswers, Task, now
from lmsmith.feedback.trees import (
    IMPORTING,
    Tree,
    check_size,
    import_trees,
    in_turn,
    known_origins,
    origin_of,
    write_in_slices,
)

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
    """Read a file of rows, or nothing of it where anything is wrong with it.

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
    Rows are written in slices, so that a server can write meanwhile. After an import that was
    killed, the same call adds the rest.

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
    rows = [_read(where, row, person, overlap) for where, row in found]
    people = _people(store, rows)
    by_kind: dict[str, list[_New]] = {kind: [] for kind in _TABLES}
    talks = list[_New]()
    for each in rows:
        by_kind.get(each.kind, talks).append(each)
    counts = {
        kind: _write(store, _with_origins(each, people), people) for kind, each in by_kind.items()
    }
    title = in_one_line(Path(talks[0].where.partition(",")[0]).name[:300]) if talks else ""
    trees = [
        Tree(title, each.made, each.origin)
        for each in _numbered(talks, lambda each: origin_of(people[each.labeler], each.made))
    ]
    counts["conversations"] = len(import_trees(store, people.get(person, ""), trees))
    return counts | {"known": len(found) - sum(counts.values())}


def _rows(path: Path, left_out: Counter[str]) -> Iterator[tuple[str, Row]]:
    """(place, row), where conversations have ``messages`` whatever their form was."""
    annotations = AnnotationReader()
    for where, row in read_rows(path, kept=True):
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
        check_size(in_turn(row["messages"]), where)
        return
    if "prompt" not in row:
        raise UserError(f"{where}: no 'prompt' and no 'messages'", "see lmsmith feedback import -h")
    check_size(in_turn(validate_prompt(row["prompt"], where)), where)
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


@dataclass
class _New:
    """A row that is added if there is none of its origin.

    Attributes:
        kind: of rows, as `import_file` counts them.
        labeler: the name of its author or owner.
        made: a task, a ranking, or the messages of a conversation.
        content: from which its origin is made, with the labeler where there is one.
        answer: of a demonstration.
    """

    kind: str
    where: str
    labeler: str
    made: Any
    content: list[Any]
    answer: str = ""
    origin: str = ""


_TABLES: dict[str, Any] = {"tasks": Task, "rankings": RankedAnswers, "demonstrations": Task}


def _read(where: str, row: Row, person: str, overlap: int) -> _New:
    """A row as what it adds; raises UserError if anything is wrong with it."""
    _check(row, where)
    if "messages" in row:
        return _New("conversations", where, person, in_turn(row["messages"]), [])
    prompt, responses = validate_prompt(row["prompt"], where), row.get("responses", [])
    labeler = text_of(row, "labeler", where, default="") or person
    with _at(where):
        if "demonstration" in row:
            answer = row["demonstration"]
            made = new_task("demonstration", prompt)
            return _New("demonstrations", where, labeler, made, [prompt, answer], answer)
        if "ranks" in row:
            ranking = new_ranking("", prompt, responses, row["ranks"])
            return _New("rankings", where, labeler, ranking, [prompt, responses, row["ranks"]])
        task = new_task(
            _kind(row),
            prompt,
            responses,
            models=row.get("models", []),
            overlap=row.get("overlap", overlap),
            gold=row.get("gold"),
        )
        content = ["import", task.kind, row["prompt"], responses, row.get("gold")]
        return _New("tasks", where, "", task, content)


def _people(store: Store, rows: Iterable[_New]) -> dict[str, str]:
    """The ids of all labelers by name; those who are new are added."""
    named = {each.labeler: each.where for each in reversed(list(rows)) if each.labeler}
    found = dict[str, str]()
    with store.exclusive(IMPORTING) as session:
        names = Names(session)
        for name, where in named.items():
            with _at(where):
                known = names.find(name)
                if known is None:
                    made = Person(name=person_name(name))
                    session.add(made)
                    names.add(made)
                    known = made.id
            found[name] = known
    return found


def _with_origins(rows: Sequence[_New], people: Mapping[str, str]) -> list[_New]:
    """Rows of one kind: of equal tasks and demonstrations the first, of rankings all."""
    if not rows:
        return []
    kind = rows[0].kind

    def origin(each: _New) -> str:
        if kind == "tasks":
            return fingerprint(each.content)
        return fingerprint([kind.removesuffix("s"), people[each.labeler], *each.content])

    return _numbered(rows, origin) if kind == "rankings" else _once(rows, origin)


def _once(rows: Iterable[_New], origin: Callable[[_New], str]) -> list[_New]:
    """The first of the rows of each origin."""
    first = dict[str, _New]()
    for each in rows:
        each.origin = origin(each)
        first.setdefault(each.origin, each)
    return list(first.values())


def _numbered(rows: Iterable[_New], origin: Callable[[_New], str]) -> list[_New]:
    """Equal rows have the first, the second and so on of their origin."""
    seen, found = Counter[str](), []
    for each in rows:
        name = origin(each)
        seen[name] += 1
        each.origin = f"{name}.{seen[name]}"
        found.append(each)
    return found


def _write(store: Store, rows: Sequence[_New], people: Mapping[str, str]) -> int:
    """Add the rows of one kind that are new; returns how many those are."""

    def write(session: Session, part: list[_New]) -> int:
        known = known_origins(session, _TABLES[part[0].kind], [each.origin for each in part])
        new = [each for each in part if each.origin not in known]
        for each in new:
            each.made.origin = each.origin
            if each.kind == "rankings":
                each.made.person_id = people[each.labeler]
        session.add_all(each.made for each in new)
        session.flush()
        session.add_all(
            Assignment(
                task_id=each.made.id,
                person_id=people[each.labeler],
                state="done",
                answer={"content": each.answer},
                lease=now(),
                finished=now(),
            )
            for each in new
            if each.kind == "demonstrations"
        )
        return len(new)

    return sum(write_in_slices(store, rows, _weight, write))


def _weight(each: _New) -> int:
    return 1 + len(str(each.content)) // 1000
