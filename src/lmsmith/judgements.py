"""Python functions of ``lmsmith feedback``: people's judgements in and out of a database."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.progress import choose_progress
from lmsmith.core.recipe import MachineConfig
from lmsmith.options import documented

if TYPE_CHECKING:
    from lmsmith.feedback.backup import DatabaseCopy
    from lmsmith.feedback.store import Store


@dataclass(frozen=True)
class FeedbackRows:
    """Rows written, read or made.

    Attributes:
        database: its name, without a password.
        rows: kind or file → number of rows.
        folder: of the files, after an export.
        left_out: reason → number of rows left out, after an import.
        kind: what labelers are to do with the tasks, after sampling.
    """

    database: str
    rows: dict[str, int]
    folder: Path | None = None
    left_out: Mapping[str, int] | None = None
    kind: str = ""

    def as_dict(self) -> dict[str, Any]:
        if self.folder is not None:
            return {"folder": str(self.folder), "rows": self.rows}
        left_out = {} if self.left_out is None else {"left_out": dict(self.left_out)}
        kind = {"kind": self.kind} if self.kind else {}
        return {"database": self.database, **kind, **self.rows, **left_out}


@contextlib.contextmanager
def _opened(database: str, *, new: bool = False) -> Iterator[tuple[Store, str]]:
    """The store, and the database's name without a password."""
    with needs_extra("serve"):
        from lmsmith.feedback.database import default_database, make_safe
        from lmsmith.feedback.store import open_store
    name = make_safe(database) if "://" in database else database or default_database()
    with open_store(database, new=new) as store:
        yield store, name


@documented
def export_feedback(
    folder: Path, *, database: str = "", held_out: float = 0.0, with_liked: bool = False
) -> FeedbackRows:
    """Write conversations.jsonl (demonstrations), rankings.jsonl and ratings.jsonl.

    A recipe reads the first two by data.conversations and data.rankings. All files are written,
    also those without a row; where there is nothing at all, the exit code is 2.

    Args:
        folder: Where to; is made if it is missing, and files of an earlier export are replaced.
        held_out: Share of the people whose rows go to FOLDER/held_out, to measure on, and of
            what was imported, by how it begins.
        with_liked: Answers that were thumbed up are demonstrations too.

    Raises:
        UserError: there is no such database, or nobody has judged anything.
    """
    with _opened(database) as (store, name):
        from lmsmith.feedback import export as exporting
        from lmsmith.feedback.queue import Queue

        counts = exporting.export(store, folder, held_out=held_out, with_liked=with_liked)
        if not any(counts.values()):
            fix = (
                "judge answers on the chat page, or fill the queue for labelers: "
                f"lmsmith feedback sample MODEL --prompts FILE{store.option}"
            )
            if tasks := Queue(store).count():
                fix = f"{tasks:,} tasks wait for labelers, at /label of the server"
            problem = f"{name}: nobody has judged anything yet; the files in {folder} are empty"
            raise UserError(problem, fix)
    return FeedbackRows(name, counts, folder)


@documented
def import_feedback(
    file: Path, *, database: str = "", person: str = "import", overlap: int = 1
) -> FeedbackRows:
    """Read prompts and answers to be labelled, rankings, or conversations of a file.

    A row is a prompt to be answered by labelers; with "responses" (one to be rated, two to nine
    to be ranked), and "gold", the right answer, to measure labelers by. With "ranks" it is a
    ranking, with "messages" a conversation; so are rows of ShareGPT, Alpaca and ChatGPT's export
    (conversations.json). Exports of Argilla and Label Studio are read as rankings and
    demonstrations, each by its labeler. A row that is wrong keeps all of the file out; what was
    imported before is left out.

    Args:
        file: JSONL, .jsonl.gz, or .json that holds a list of rows.
        database: A file, made if it is missing, or a URL such as postgresql://host/name; the
            server's if it is left out.
        person: Whose the conversations are, and the rankings that name no labeler; "import" is
            nobody.
        overlap: How many labelers are to do each task, where a row does not say.

    Raises:
        UserError: a row is wrong, or there are none.
    """
    left_out = Counter[str]()
    with _opened(database, new=True) as (store, name):
        from lmsmith.feedback.imports import import_file

        counts = import_file(store, file, person=person, overlap=overlap, left_out=left_out)
    if not any(counts.values()) and not left_out:
        raise UserError(f"{file}: no rows", "see the forms of rows: lmsmith feedback import --help")
    return FeedbackRows(name, counts, left_out=+left_out)


@documented
def sample_feedback(
    models: Sequence[str],
    *,
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
    quiet: bool = False,
) -> FeedbackRows:
    """Let models answer prompts, and put the answers into the queue for labelers.

    Several models write a part of the answers each; labelers do not see whose is whose. An empty
    answer, and one that is the same as another, is drawn again; a prompt without enough is
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

    Returns:
        How many tasks are new, known, or dropped: too few different answers, or deleted meanwhile.

    Raises:
        UserError: there are no prompts or no such model.
    """
    if (prompts is None) == (not logged):
        raise UserError("which prompts?", "name a file by --prompts, or take --logged ones")
    if count < 1:
        raise UserError(f"--count {count}: 1 or more")
    from lmsmith.generation.machine import prepare_reading
    from lmsmith.generation.settings import SamplingSettings
    from lmsmith.runs.signals import StopSignal

    with _opened(database, new=not logged) as (store, name):
        from lmsmith.feedback import sample as sampling
        from lmsmith.feedback.queue import Queue

        wanted = {"ranking": answers, "rating": 1, "demonstration": 0}[kind]
        found = list(
            sampling.logged_prompts(store) if prompts is None else sampling.prompts_of(prompts)
        )
        if not found:
            where = prompts or f"{name}: nobody has asked anything yet"
            raise UserError(f"{where}: no prompts", "take other prompts: --prompts FILE")
        settings = SamplingSettings(max_tokens, temperature, top_p=top_p)
        machine = prepare_reading(MachineConfig())
        writers = sampling.writers_of(models if wanted else (), machine, settings)
        progress = choose_progress("lmsmith feedback sample", quiet)
        with contextlib.closing(progress), StopSignal():
            counts = sampling.fill_queue(
                Queue(store), sampling.drawn(found, count, seed), writers, kind=kind,
                answers=wanted, overlap=overlap, seed=seed, progress=progress,
                drawn_by=sampling.answers_drawn_by(models, settings) if wanted else None,
            )  # fmt: skip
    return FeedbackRows(name, counts, kind=kind)


@dataclass(frozen=True)
class JudgedRankings:
    """Rankings that a judge made of models' answers.

    Attributes:
        file: JSONL, which a recipe's ``data.rankings`` reads.
        rows: ``rankings`` made now, ``known`` from an earlier run, ``dropped`` for want of
            different answers, ``undecided`` where the judge found all alike, ``asked_before`` of
            these two that were not asked now.
    """

    file: Path
    rows: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return {"file": str(self.file), **self.rows}


@documented
def rank_feedback(
    models: Sequence[str],
    *,
    judge: str,
    prompts: Path,
    rankings: Path,
    answers: int = 4,
    count: int = 100,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    again: bool = False,
    quiet: bool = False,
) -> JudgedRankings:
    """Let models answer prompts, and a judge rank the answers, in place of people.

    The judge compares two answers at a time, in both orders. Models and judge may be behind other
    servers. The same command again goes on where it was; prompts that were left out are kept beside
    the rankings, and not asked again.

    Args:
        models: Runs, model folders, registered names, or NAME=openai:URL; they share the answers.
        judge: A model that writes, a reward model's folder, or openai:URL.
        prompts: JSONL with "prompt" (a text, or messages) or "messages" in each row.
        rankings: JSONL that data.rankings of a recipe reads; rows are added to it.
        answers: To each prompt, 2 to 9.
        count: Most prompts, drawn by chance.
        max_tokens: Longest answer.
        temperature: Of the answers.
        top_p: Of the answers.
        seed: Of the choice of prompts and of the answers.
        again: Ask the prompts again that were left out. Models of this machine answer as before;
            another seed or temperature gives other answers.

    Raises:
        UserError: there are no prompts, no such model, or the judge's server fails.
    """
    if count < 1:
        raise UserError(f"--count {count}: 1 or more")
    from lmsmith.comparison.judges import cut_warning, load_judge
    from lmsmith.generation.machine import prepare_reading
    from lmsmith.generation.settings import SamplingSettings
    from lmsmith.runs.signals import StopSignal

    with needs_extra("serve"):
        from lmsmith.comparison.ai_feedback import rank_answers
        from lmsmith.feedback import sample as sampling
    found = list(sampling.prompts_of(prompts))
    if not found:
        raise UserError(f"{prompts}: no prompts", "take another file")
    machine = prepare_reading(MachineConfig())
    settings = SamplingSettings(max_tokens, temperature, top_p=top_p)
    writers, by = sampling.writers_of(models, machine, settings), load_judge(judge, machine)
    progress = choose_progress("lmsmith feedback rank", quiet)
    with contextlib.closing(progress), StopSignal():
        rows = rank_answers(
            sampling.drawn(found, count, seed), writers, by, rankings, answers=answers,
            seed=seed, progress=progress, again=again,
            drawn_by=sampling.answers_drawn_by(models, settings),
        )  # fmt: skip
        if warning := cut_warning(by):
            progress.say(warning)
    return JudgedRankings(rankings, rows)


@documented
def feedback_statistics(*, database: str = "", seed: int = 0) -> dict[str, Any]:
    """Show what is labelled, how far labelers agree, and which model is best.

    Args:
        seed: Of the bootstrap intervals, which are 95 %.

    Returns:
        ``tasks``, ``labelers``, ``agreement``, ``leaderboard`` and ``ratings``.
    """
    with _opened(database) as (store, _):
        from lmsmith.feedback.statistics import statistics_of

        return statistics_of(store, seed)


@documented
def backup_feedback(file: Path, *, database: str = "") -> DatabaseCopy:
    """Copy the database into one file, as it is at this moment, while a server uses it.

    The copy is checked, and its owner alone may read it. For PostgreSQL the message has the
    command of its own program.

    Args:
        file: A new one.

    Raises:
        UserError: there is no such database, it is damaged or PostgreSQL's, or the file is there.
    """
    with needs_extra("serve"):
        from lmsmith.feedback import backup
    return backup.back_up(database, file)


@documented
def restore_feedback(file: Path, *, database: str = "") -> DatabaseCopy:
    """Put a backup back, in one transaction, while a server runs or not.

    What the database held is copied beside it first. Whoever was removed after the backup is back:
    remove them again.

    Args:
        file: A backup, also of an earlier version.

    Raises:
        UserError: the file is no backup or damaged, or the database is PostgreSQL's.
    """
    with needs_extra("serve"):
        from lmsmith.feedback import backup
    return backup.restore(database, file)
