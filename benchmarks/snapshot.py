"""Time to read, freeze and divide what people judged: ``python benchmarks/snapshot.py --json``.

A database of conversations with comparisons, thumbs and better answers, and of rankings, is made
first; that is not timed.
"""

from __future__ import annotations

import json as json_module
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert

from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.feedback.collect import collect
from lmsmith.feedback.store import open_store
from lmsmith.feedback.tables import (
    BetterAnswer,
    Comparison,
    Conversation,
    Message,
    Person,
    RankedAnswers,
    Rating,
    now,
)
from lmsmith.improve.snapshot import SnapshotConfig, freeze, run
from lmsmith.improve.summary import summarise
from lmsmith.runs.stage_folder import StageFolder

WORDS = "how do I make a good soup of river stones and old bread for nine hungry friends"
EMPTY = {
    Person: {"role": "user", "token_hash": ""},
    Message: {"settings": {}, "finish": ""},
    Rating: {"reasons": [], "comment": ""},
}
"""Columns that the benchmark does not fill."""


def fill(database: str, count: int, people: int) -> None:
    """A quarter each of prompts, comparisons and thumbs; a tenth of better answers; rankings."""
    drawn, moment = random.Random(0), now()
    quarter = count // 4

    def text(size: int) -> str:
        return " ".join(drawn.choices(WORDS.split(), k=size))

    names = [f"{number:016x}" for number in range(people)]
    rows: dict[type[Any], list[dict[str, Any]]] = {
        Person: [{"id": each, "name": f"Person {each}", "created": moment} for each in names]
    }
    talks, messages = [], []
    for number in range(quarter):
        name, who = f"c{number:015x}", names[number % people]
        talks.append({"id": name, "person_id": who, "created": moment, "updated": moment})
        for place, role in enumerate(("user", "assistant", "assistant")):
            said = f"{text(12)}, {number}?" if role == "user" else text(60)
            parent = 3 * number + 1 if place else None
            about = {"id": 3 * number + 1 + place, "conversation_id": name, "parent_id": parent}
            model = "ours@1" if place else ""
            messages.append(
                {**about, "role": role, "content": said, "model": model, "created": moment}
            )
    rows |= {Conversation: talks, Message: messages}
    rows[Comparison] = [
        {
            "left_id": 3 * number + 2,
            "right_id": 3 * number + 3,
            "person_id": names[number % people],
            "verdict": drawn.choice(("left", "right", "tie")),
            "created": moment,
        }
        for number in range(quarter)
    ]
    answered = [(3 * number + 2, names[number % people]) for number in range(quarter)]
    rows[Rating] = [
        {"message_id": m, "person_id": p, "value": drawn.choice((1, -1)), "created": moment}
        for m, p in answered
    ]
    rows[BetterAnswer] = [
        {"message_id": m, "person_id": p, "content": text(60), "created": moment}
        for m, p in answered[: count // 10]
    ]
    rows[RankedAnswers] = [
        {
            "person_id": drawn.choice(names),
            "prompt": [{"role": "user", "content": f"{text(12)}, ranked {number}?"}],
            "responses": [text(60) for _ in range(4)],
            "ranks": drawn.sample(range(1, 5), 4),
            "models": [],
            "shown": [],
            "created": moment,
        }
        for number in range(count - 3 * quarter - count // 10)
    ]
    with open_store(database, new=True) as store, store.session.begin() as session:
        for table, made in rows.items():
            session.execute(insert(table), [{**EMPTY.get(table, {}), **each} for each in made])


def measure(count: int, people: int) -> dict[str, Any]:
    """Seconds of each part, and of all."""
    with tempfile.TemporaryDirectory() as folder:
        database, frozen = str(Path(folder) / "feedback.db"), Path(folder) / "frozen"
        fill(database, count, people)
        moments, busy = [time.perf_counter()], time.process_time()
        with open_store(database) as store:
            found = collect(store)
        moments.append(time.perf_counter())
        summarise(found.judgements, set(), cap=0.3)
        moments.append(time.perf_counter())
        freeze(frozen, found.judgements, found.reliability)
        out = StageFolder(Path(folder) / "data", 0, MachineConfig(), QuietProgress())
        run(SnapshotConfig(frozen=str(frozen)), {}, out)
        moments.append(time.perf_counter())
    names = ("read", "summarise", "freeze_and_divide")
    parts = {
        name: round(end - begin, 2)
        for name, begin, end in zip(names, moments, moments[1:], strict=False)
    }
    whole, busy = round(moments[-1] - moments[0], 2), round(time.process_time() - busy, 2)
    return {"judgements": len(found.judgements), "seconds": whole, "cpu_seconds": busy, **parts}


def main(judgements: int = 100_000, people: int = 500, json: bool = False) -> None:
    """Make a database of so many judgements, and time what a round does before its first stage.

    Args:
        judgements: In the database.
        people: Who asked and judged.
        json: Print JSON.
    """
    found = measure(judgements, people)
    if json:
        print(json_module.dumps(found))
        return
    table = Table("judgements", "read, s", "summarise, s", "freeze and divide, s", "all, s")
    names = ("read", "summarise", "freeze_and_divide", "seconds")
    table.add_row(f"{found['judgements']:,}", *(f"{found[name]:.2f}" for name in names))
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
