"""``lmsmith feedback``: prompts and answers for people to judge, and what they judged."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmsmith.cli.output import plain_table, print_json, table_console
from lmsmith.core.errors import UserError
from lmsmith.core.extras import needs_extra
from lmsmith.core.files import missing
from lmsmith.core.progress import choose_progress
from lmsmith.core.recipe import MachineConfig

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lmsmith.feedback.store import Store


@contextlib.contextmanager
def opened(database: str, *, new: bool = False) -> Iterator[Store]:
    """A database, the server's if none is named; ``new`` says whether it may be made.

    Raises:
        UserError: there is none.
    """
    with needs_extra("serve"):
        from lmsmith.feedback.database import default_database
        from lmsmith.feedback.store import Store

    database = database or default_database()
    if not new and "://" not in database and not Path(database).is_file():
        raise UserError(
            missing(database),
            "name the database that the server prints when it starts: --database FILE",
        )
    with contextlib.closing(Store(database)) as store:
        yield store


def export(
    folder: Path,
    database: str = "",
    held_out: float = 0.0,
    with_liked: bool = False,
    json: bool = False,
) -> int:
    """Write conversations.jsonl (demonstrations), rankings.jsonl and ratings.jsonl.

    A recipe reads the first two by data.conversations and data.rankings. All files are written,
    also those without a row; where there is nothing at all, the exit code is 2.

    Args:
        folder: Where to; is made if it is missing, and files of an earlier export are replaced.
        database: A file, or a URL such as postgresql://host/name; the server's if it is left out.
        held_out: Share of the people whose rows go to FOLDER/held_out, to measure on, and of
            what was imported, by how it begins.
        with_liked: Answers that were thumbed up are demonstrations too.
        json: Print the files and their rows as one JSON object.
    """
    with opened(database) as store:
        from lmsmith.feedback import exporting

        counts = exporting.export(store, folder, held_out=held_out, with_liked=with_liked)
        if not any(counts.values()):
            raise _nothing(store, folder, _safe(database))
    if json:
        print_json({"folder": str(folder), "rows": counts})
        return 0
    for name, count in counts.items():
        if count or not name.startswith(exporting.HELD_OUT) or held_out:
            print(f"{folder / name}: {count:,} rows")
    read = {f"data.{name}": folder / f"{name}.jsonl" for name in ("conversations", "rankings")}
    read = {key: path for key, path in read.items() if counts[path.name]}
    if read:
        print("a recipe reads", " and ".join(f"{path} by {key}" for key, path in read.items()))
    elif not with_liked:
        print("no stage reads ratings; --with-liked makes demonstrations of answers with thumbs up")
    return 0


def _nothing(store: Store, folder: Path, database: str) -> UserError:
    """The error of an export without a row."""
    from lmsmith.feedback.queue import Queue

    if tasks := Queue(store).count():
        fix = f"{tasks:,} tasks wait for labelers, at /label of the server"
    else:
        fix = (
            "judge answers on the chat page, or fill the queue for labelers: "
            f"lmsmith feedback sample MODEL --prompts FILE{store.option}"
        )
    return UserError(
        f"{database}: nobody has judged anything yet; the files in {folder} are empty", fix
    )


def import_(
    file: Path,
    database: str = "",
    person: str = "import",
    overlap: int = 1,
    json: bool = False,
) -> int:
    """Read prompts and answers to be labelled, rankings, or conversations of a file.

    A row is a prompt to be answered by labelers; with "responses" (one to be rated, two to nine
    to be ranked), and "gold", the right answer, to measure labelers by. With "ranks" it is a
    ranking, with "messages" a conversation; so are rows of ShareGPT, Alpaca and ChatGPT's export
    (conversations.json). A row that is wrong keeps all of the file out; what was imported before is
    left out.

    Args:
        file: JSONL, .jsonl.gz, or .json that holds a list of rows.
        database: A file, made if it is missing, or a URL such as postgresql://host/name; the
            server's if it is left out.
        person: Whose the conversations are, and the rankings that name no labeler; "import" is
            nobody.
        overlap: How many labelers are to do each task, where a row does not say.
        json: Print how many rows of each kind were new as one JSON object.
    """
    with opened(database, new=True) as store:
        from lmsmith.feedback.importing import import_file

        left_out = Counter[str]()
        counts = import_file(store, file, person=person, overlap=overlap, left_out=left_out)
    if not any(counts.values()) and not left_out:
        raise UserError(f"{file}: no rows", "see the forms of rows: lmsmith feedback import --help")
    left_out = +left_out
    if json:
        print_json({"database": _safe(database), **counts, "left_out": left_out})
        return 0
    known = counts.pop("known")
    print(
        ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing new"
    )
    if known:
        print(f"{known:,} rows were there already")
    if left_out:
        print("left out:", ", ".join(f"{n:,} {what}" for what, n in left_out.most_common()))
    if counts["tasks"]:
        print(next_step(database))
    return 0


def sample(
    models: tuple[str, ...],
    database: str = "",
    prompts: Path | None = None,
    logged: bool = False,
    kind: Literal["ranking", "rating", "demonstration"] = "ranking",
    answers: int = 4,
    count: int = 100,
    overlap: int = 1,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Let models answer prompts, and put the answers into the queue for labelers.

    Of several models each writes its part of the answers; labelers do not see whose is whose. An
    empty answer, and one that is the same as another, is drawn anew; a prompt without enough is
    left out. The same command again goes on where it was.

    Args:
        models: Runs, model folders, Hugging Face folders, GGUF files or registered names. None
            for demonstrations.
        database: A file, made if it is missing, or a URL such as postgresql://host/name; the
            server's if it is left out.
        prompts: JSONL with "prompt" (a text, or messages) or "messages" in each row.
        logged: Take what people asked in the database's conversations.
        kind: What labelers are to do: rank several answers, rate one, or write one themselves.
        answers: To each prompt, 2 to 9; of ratings one, of demonstrations none.
        count: Most prompts, drawn by chance.
        overlap: How many labelers are to do each task.
        max_tokens: Longest answer.
        temperature: Of the answers.
        top_p: Of the answers.
        seed: Of the choice of prompts and of the answers.
        json: Print how many tasks were made as one JSON object.
    """
    if (prompts is None) == (not logged):
        raise UserError("which prompts?", "name a file by --prompts, or take --logged ones")
    if count < 1:
        raise UserError(f"--count {count}: 1 or more")
    with opened(database, new=not logged) as store:
        from lmsmith.catalogue.reading import read_model
        from lmsmith.catalogue.resolve import resolve
        from lmsmith.feedback import sampling
        from lmsmith.feedback.queue import Queue
        from lmsmith.generation.settings import SamplingSettings
        from lmsmith.runs.signals import StopSignal
        from lmsmith.training.machine import prepare_reading

        wanted = {"ranking": answers, "rating": 1, "demonstration": 0}[kind]
        found = list(
            sampling.logged_prompts(store) if prompts is None else sampling.prompts_of(prompts)
        )
        if not found:
            where = prompts or f"{_safe(database)}: nobody has asked anything yet"
            raise UserError(f"{where}: no prompts", "take other prompts: --prompts FILE")
        settings = SamplingSettings(max_tokens, temperature, top_p=top_p)
        machine = prepare_reading(MachineConfig())
        writers = {
            Path(resolve(word).name).name or word: sampling.writer_of(
                read_model(word), machine, settings
            )
            for word in (models if wanted else ())
        }
        progress = choose_progress("lmsmith feedback sample", quiet=json)
        try:
            with StopSignal():
                counts = sampling.fill_queue(
                    Queue(store),
                    sampling.drawn(found, count, seed),
                    writers,
                    kind=kind,
                    answers=wanted,
                    overlap=overlap,
                    seed=seed,
                    progress=progress,
                )
        finally:
            progress.close()
    if json:
        print_json({"database": _safe(database), "kind": kind, **counts})
        return 0
    print(f"{counts['tasks']:,} tasks are new in the queue")
    if counts["known"]:
        print(f"{counts['known']:,} were there already")
    if counts["dropped"]:
        print(
            f"{counts['dropped']:,} prompts left out: not {wanted} different answers that are not "
            "empty; a higher --temperature or more --max-tokens gives more"
        )
    if counts["tasks"] or counts["known"]:
        print(next_step(database))
    return 0


def stats(database: str = "", seed: int = 0, json: bool = False) -> int:
    """Show what is labelled, how far labelers agree, and which model is best.

    Args:
        database: A file, or a URL such as postgresql://host/name; the server's if it is left out.
        seed: Of the bootstrap intervals, which are 95 %.
        json: Print everything as one JSON object.
    """
    with opened(database) as store:
        from lmsmith.feedback.statistics import statistics_of

        found = statistics_of(store, seed)
    if json:
        print_json(found)
        return 0
    print_statistics(found)
    return 0


def next_step(database: str) -> str:
    """How the tasks of a database come to labelers."""
    from lmsmith.feedback.database import option_of

    option = option_of(database) if database else ""
    return (
        f"next: lmsmith users add NAME --role labeler{option}, and lmsmith serve MODEL{option} "
        "where no server runs; who signs in finds the tasks at /label"
    )


def _safe(database: str) -> str:
    from lmsmith.feedback.database import default_database, make_safe

    return make_safe(database) if "://" in database else database or default_database()


def print_statistics(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Tasks, labelers, agreement and leaderboard, those of which something is known."""
    console = console or table_console()
    tasks = plain_table("kind", "tasks", "complete", "gold")
    for kind, counts in found["tasks"].items():
        tasks.add_row(kind, *(f"{counts[name]:,}" for name in ("tasks", "complete", "gold")))
    console.print(tasks)
    if found["labelers"]:
        console.print(_labelers(found["labelers"]))
    agreement = plain_table("agreement", "value", "95 %", "tasks")
    for kind, measures in found["agreement"].items():
        for name, interval in measures.items():
            if name != "tasks" and interval is not None:
                row = (f"{kind}, {_NAMES[name]}", *_interval(interval), str(measures["tasks"]))
                agreement.add_row(*row)
    if agreement.row_count:
        console.print(agreement)
    if found["leaderboard"]:
        board = plain_table("model", "preferred to the middle", "95 %", "comparisons")
        for each in found["leaderboard"]:
            board.add_row(each["model"], *_interval(each["rate"]), f"{each['comparisons']:,}")
        console.print(board)
    if found["ratings"]:
        ratings = plain_table("model", "mean rating", "ratings")
        for each in found["ratings"]:
            ratings.add_row(each["model"] or "—", f"{each['mean']:.2f}", f"{each['count']:,}")
        console.print(ratings)


_NAMES = {"pairwise": "pairs alike", "tau_b": "Kendall τ-b", "alpha": "Krippendorff α"}


def _labelers(labelers: list[dict[str, Any]]) -> Table:
    table = plain_table(
        "labeler",
        "demonstrations",
        "ratings",
        "rankings",
        "skipped",
        "seconds",
        "gold alike",
        left=("labeler",),
    )
    for each in labelers:
        gold = each["gold"]["pairwise"]
        table.add_row(
            each["name"],
            *(str(each[name]) for name in ("demonstration", "rating", "ranking", "skipped")),
            "—" if each["seconds"] is None else f"{each['seconds']:.0f}",
            "—" if gold is None else f"{gold['value']:.2f}",
        )
    return table


def _interval(found: Mapping[str, float | None]) -> tuple[str, str]:
    value, low, high = (
        "—" if found[name] is None else f"{found[name]:.2f}" for name in ("value", "low", "high")
    )
    return value, f"{low} to {high}"
