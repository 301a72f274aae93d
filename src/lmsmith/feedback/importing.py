"""From files into the database: prompts and answers to be labelled, rankings, conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_jsonl
from lmsmith.corpus.fields import text_of
from lmsmith.corpus.messages import validate_messages, validate_prompt
from lmsmith.feedback import answers
from lmsmith.feedback.label_tables import KINDS
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import Store

_KIND_OF = {0: "demonstration", 1: "rating"}


def import_file(store: Store, path: Path, *, person: str, overlap: int = 1) -> dict[str, int]:
    """Read a JSONL file, all of which is checked before any of it is kept.

    A row is one of

    - ``prompt`` alone, to be answered by labelers; with ``responses``, one to be rated or two to
      nine to be ranked; with ``gold``, the right answer (``{"score": 2}``, ``{"ranks": [1, 2, 2,
      3]}``), to measure labelers by. ``models`` may name who wrote the responses, ``overlap`` how
      many labelers are to judge them. What is in the queue already is not put there again;
    - ``prompt``, ``responses`` and ``ranks``: a ranking, by ``labeler`` where it names one;
    - ``messages``: a conversation.

    Args:
        store: the database.
        path: of the file.
        person: the name of whoever the conversations, and rankings of nobody, are.
        overlap: where a row does not say.

    Returns:
        ``tasks``, ``rankings``, ``conversations``: how many are new; ``known``: tasks that are not.

    Raises:
        UserError: naming the file and the line.
    """
    found = [(f"{path}, line {line}", row) for line, row in read_jsonl(path)]
    for where, row in found:
        _check(row, where)
    queue, counts = Queue(store), Counter[str](tasks=0, rankings=0, conversations=0, known=0)
    owner = store.person(person).id if any("messages" in row for _, row in found) else ""
    for where, row in found:
        try:
            if "messages" in row:
                _keep_conversation(store, owner, row["messages"], where)
                counts["conversations"] += 1
            elif "ranks" in row:
                labeler = store.person(text_of(row, "labeler", where, default="") or person)
                prompt = validate_prompt(row["prompt"], where)
                store.rank(labeler.id, prompt, row["responses"], row["ranks"])  # type: ignore[arg-type]
                counts["rankings"] += 1
            else:
                counts["tasks" if _add(queue, row, overlap) else "known"] += 1
        except UserError as error:
            raise UserError(f"{where}: {error.problem}", error.mend) from error
    return dict(counts)


def _check(row: Mapping[str, object], where: str) -> None:
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


def _check_task(row: Mapping[str, Any], where: str) -> None:
    kind, count = _kind(row), len(row.get("responses", []))
    if kind not in KINDS:
        raise UserError(f"{where}: 'kind' must be one of {', '.join(KINDS)}")
    try:
        answers.check_responses(kind, row.get("responses", []))
        if "gold" in row:
            answers.checked(kind, count, row["gold"], whole=True)
    except UserError as error:
        raise UserError(f"{where}: {error.problem}", error.mend) from error


def _kind(row: Mapping[str, Any]) -> str:
    """What is asked for: as the row says, else by the number of its responses."""
    return str(row.get("kind", _KIND_OF.get(len(row.get("responses", [])), "ranking")))


def _add(queue: Queue, row: Mapping[str, Any], overlap: int) -> bool:
    responses = row.get("responses", [])
    kind, gold = _kind(row), row.get("gold")
    return queue.add(
        kind,
        row["prompt"],
        responses,
        models=row.get("models", []),
        overlap=row.get("overlap", overlap),
        gold=gold,
        origin=fingerprint(["import", kind, row["prompt"], responses, gold]),
    )


def _keep_conversation(store: Store, owner: str, messages: object, where: str) -> None:
    parent: int | None = None
    talk = store.begin(owner, Path(where.partition(",")[0]).name[:300]).id
    for message in validate_messages(messages, where):
        parent = store.say(owner, talk, parent, message["role"], message["content"]).id
