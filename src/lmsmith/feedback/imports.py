"""From files into the database: prompts and answers to be labelled, rankings, conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_rows
from lmsmith.corpus.formats import is_conversation, messages_of, text_of
from lmsmith.corpus.messages import validate_messages, validate_prompt
from lmsmith.feedback import answers
from lmsmith.feedback.judgements import new_ranking
from lmsmith.feedback.names import Names, person_name
from lmsmith.feedback.queue import new_task
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import KINDS, Conversation, Person, RankedAnswers, Task
from lmsmith.feedback.trees import IMPORTING, Tree, add_trees, in_turn, known_origins, origin_of

_KIND_OF = {0: "demonstration", 1: "rating"}

Row = Mapping[str, Any]


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
    - a conversation: ``messages``, or a form of others (see `lmsmith.corpus.formats`).

    What was imported before is not again. Of rankings and conversations that stand in a file
    several times, each is one, for two labelers without a name may agree; of tasks only the first.

    Args:
        store: the database.
        path: of the file.
        person: the name of whoever the conversations, and rankings of nobody, are.
        overlap: where a row does not say.
        left_out: counts the parts of conversations that are no message of user or assistant.

    Returns:
        ``tasks``, ``rankings``, ``conversations``: how many are new; ``known``: rows that are not.

    Raises:
        UserError: naming the file and the line.
    """
    found = list(_rows(path, Counter() if left_out is None else left_out))
    for where, row in found:
        _check(row, where)
    with store.exclusive(IMPORTING) as session:
        counts = _Import(session, person, overlap).all(found)
    return counts


def _rows(path: Path, left_out: Counter[str]) -> Iterator[tuple[str, Row]]:
    """(place, row), where conversations have ``messages`` whatever their form was."""
    for where, row in read_rows(path):
        if "prompt" in row or "messages" in row or not is_conversation(row):
            yield where, row
            continue
        if messages := begun_by_user(messages_of(row, where, left_out), left_out):
            yield where, {"messages": messages}


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
        messages = validate_messages(row["messages"], where)
        if messages[0]["role"] == "assistant":
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
    if "ranks" not in row:
        _check_task(row, where)


def _check_task(row: Row, where: str) -> None:
    kind, count = _kind(row), len(row.get("responses", []))
    if kind not in KINDS:
        raise UserError(f"{where}: 'kind' must be one of {', '.join(KINDS)}")
    with _at(where):
        answers.check_responses(kind, row.get("responses", []))
        if "gold" in row:
            answers.checked(kind, count, row["gold"], whole=True)


def _kind(row: Row) -> str:
    """What is asked for: as the row says, else by the number of its responses."""
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
    """A row, and the name under which it is in the database once it is imported."""

    where: str
    row: Row
    origin: str


class _Import:
    """The rows of one file, on their way into one transaction.

    Args:
        session: of the transaction.
        person: whose rows of nobody are.
        overlap: of tasks that do not say.
    """

    def __init__(self, session: Session, person: str, overlap: int) -> None:
        self._session, self._person, self._overlap = session, person, overlap
        self._names = Names(session)

    def all(self, found: Sequence[tuple[str, Row]]) -> dict[str, int]:
        """Add what is new; how much that is."""
        tasks, rankings, talks = list[_Named](), list[_Named](), list[_Named]()
        for where, row in found:
            with _at(where):
                if "messages" in row:
                    said = in_turn(validate_messages(row["messages"], where))
                    talks.append(_Named(where, row, origin_of(self._id_of(self._person), said)))
                elif "ranks" in row:
                    rankings.append(_Named(where, row, self._name_of_ranking(row, where)))
                else:
                    tasks.append(_Named(where, row, _name_of_task(row)))
        first = {each.origin: each for each in reversed(tasks)}
        new_tasks = self._new(Task, [each for each in tasks if first[each.origin] is each])
        new_rankings = self._new(RankedAnswers, _numbered(rankings))
        new_talks = self._new(Conversation, _numbered(talks))
        self._session.add_all([self._task(each) for each in new_tasks])
        self._session.add_all([self._ranking(each) for each in new_rankings])
        if new_talks:
            trees = [_tree(each) for each in new_talks]
            add_trees(self._session, self._id_of(self._person), trees)
        self._session.flush()
        new = len(new_tasks) + len(new_rankings) + len(new_talks)
        return {
            "tasks": len(new_tasks),
            "rankings": len(new_rankings),
            "conversations": len(new_talks),
            "known": len(found) - new,
        }

    def _id_of(self, name: str) -> str:
        """The person of that name, who is added if new."""
        if (known := self._names.find(name)) is not None:
            return known
        made = Person(name=person_name(name))
        self._session.add(made)
        self._session.flush()
        self._names.add(made)
        return made.id

    def _new(self, table: Any, named: Iterable[_Named]) -> list[_Named]:
        """Those that are not in the database."""
        rows = list(named)
        known = known_origins(self._session, table, [each.origin for each in rows])
        return [each for each in rows if each.origin not in known]

    def _labeler(self, row: Row, where: str) -> str:
        return self._id_of(text_of(row, "labeler", where, default="") or self._person)

    def _name_of_ranking(self, row: Row, where: str) -> str:
        prompt = validate_prompt(row["prompt"], where)
        said = [prompt, row.get("responses", []), row["ranks"]]
        return fingerprint(["ranking", self._labeler(row, where), *said])

    def _ranking(self, each: _Named) -> RankedAnswers:
        row, where = each.row, each.where
        with _at(where):
            return new_ranking(
                self._labeler(row, where),
                validate_prompt(row["prompt"], where),
                row.get("responses", []),
                row["ranks"],
                origin=each.origin,
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


def _tree(each: _Named) -> Tree:
    title = Path(each.where.partition(",")[0]).name[:300]
    return Tree(title, in_turn(validate_messages(each.row["messages"], each.where)), each.origin)


def _numbered(named: Sequence[_Named]) -> Iterator[_Named]:
    """Rows that say the same are the first, the second and so on of their name."""
    seen = Counter[str]()
    for each in named:
        seen[each.origin] += 1
        yield _Named(each.where, each.row, f"{each.origin}.{seen[each.origin]}")


def _name_of_task(row: Row) -> str:
    gold = row.get("gold")
    return fingerprint(["import", _kind(row), row["prompt"], row.get("responses", []), gold])
