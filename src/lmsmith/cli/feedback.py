"""``lmsmith feedback``: prompts and answers for people to judge, and what they judged."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmsmith import judgements
from lmsmith.cli.output import plain_table, table_console
from lmsmith.cli.parsing import printed
from lmsmith.core.format import format_size

if TYPE_CHECKING:
    from rich.table import Table

    from lmsmith.feedback.backup import DatabaseCopy


def _show_export(found: judgements.FeedbackRows, held_out: float, with_liked: bool) -> None:
    from lmsmith.feedback.export import HELD_OUT

    assert found.folder is not None
    rows = found.rows
    for name, count in rows.items():
        if count or held_out or not name.startswith(HELD_OUT):
            print(f"{found.folder / name}: {count:,} rows")
    read = {f"data.{name}": f"{name}.jsonl" for name in ("conversations", "rankings")}
    paths = [f"{found.folder / name} by {key}" for key, name in read.items() if rows[name]]
    if paths:
        print("a recipe reads", " and ".join(paths))
    elif not with_liked:
        print("no stage reads ratings; --with-liked makes demonstrations of answers with thumbs up")


export = printed(judgements.export_feedback, _show_export)


def _show_import(found: judgements.FeedbackRows) -> None:
    new = {what: count for what, count in found.rows.items() if what != "known"}
    print(", ".join(f"{count:,} {what}" for what, count in new.items() if count) or "nothing new")
    if found.rows["known"]:
        print(f"{found.rows['known']:,} rows were there already")
    if found.left_out:
        most = sorted(found.left_out.items(), key=lambda each: -each[1])
        print("left out:", ", ".join(f"{n:,} {what}" for what, n in most))
    if new["tasks"]:
        print(next_step(found.database))


import_ = printed(judgements.import_feedback, _show_import)


def _show_sample(found: judgements.FeedbackRows, kind: str, answers: int) -> None:
    counts = found.rows
    wanted = {"ranking": answers, "rating": 1}.get(kind, 0)
    print(f"{counts['tasks']:,} tasks are new in the queue")
    if counts["known"]:
        print(f"{counts['known']:,} were there already")
    if counts["dropped"]:
        print(f"{counts['dropped']:,} prompts left out: {_too_few(wanted)}")
    if counts["tasks"] or counts["known"]:
        print(next_step(found.database))


sample = printed(judgements.sample_feedback, _show_sample)


def _show_rank(found: judgements.JudgedRankings, answers: int) -> None:
    counts = found.rows
    print(f"{found.file}: {counts['rankings']:,} new rankings")
    if counts["known"]:
        print(f"{counts['known']:,} were there already")
    if counts["dropped"]:
        print(f"{counts['dropped']:,} prompts left out: {_too_few(answers)}")
    if counts["undecided"]:
        print(f"{counts['undecided']:,} prompts left out: the judge found all answers alike")
    if counts["asked_before"]:
        print(f"{counts['asked_before']:,} of them were asked earlier; --again asks them once more")
    if counts["rankings"] or counts["known"]:
        print(f'next: data.rankings = ["{found.file}"] in a recipe, which a reward model reads')


def _too_few(wanted: int) -> str:
    return (
        f"not {wanted} different answers that are not empty; a higher --temperature or more "
        "--max-tokens gives more"
    )


rank = printed(judgements.rank_feedback, _show_rank)


def next_step(database: str) -> str:
    """The next commands, which bring the tasks of a database to labelers."""
    from lmsmith.feedback.database import option_of

    option = option_of(database) if database else ""
    return (
        f"next: lmsmith users add NAME --role labeler{option}, and lmsmith serve MODEL{option} "
        "where no server runs; who signs in finds the tasks at /label"
    )


def print_statistics(found: Mapping[str, Any]) -> None:
    """Tasks, labelers, agreement and leaderboard, those of which something is known."""
    console = table_console()
    tasks = plain_table("kind", "tasks", "complete", "gold")
    for kind, counts in found["tasks"].items():
        tasks.add_row(kind, *(f"{counts[name]:,}" for name in ("tasks", "complete", "gold")))
    console.print(tasks)
    if found["labelers"]:
        console.print(_labelers(found["labelers"]))
    agreement = plain_table("agreement", "value", "95 %", "tasks")
    for kind, measures in found["agreement"].items():
        for name, shown in _NAMES.items():
            if (interval := measures.get(name)) is not None:
                agreement.add_row(f"{kind}, {shown}", *_interval(interval), str(measures["tasks"]))
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
    names = ("demonstrations", "ratings", "rankings", "skipped", "seconds", "gold alike")
    table = plain_table("labeler", *names)
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


stats = printed(judgements.feedback_statistics, print_statistics)


def _show_backup(found: DatabaseCopy) -> None:
    print(f"{found.file}: {_contents(found)}, as {found.database} was now")
    print(f"it comes back by: lmsmith feedback restore {shlex.quote(str(found.file))}", end="")
    print(_option(found))


backup = printed(judgements.backup_feedback, _show_backup)


def _show_restore(found: DatabaseCopy) -> None:
    print(f"{found.database} is as {found.file}: {_contents(found)}")
    if found.before:
        print(f"what it held before is in {found.before}")


restore = printed(judgements.restore_feedback, _show_restore)


def _contents(found: DatabaseCopy) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in found.rows.items())
    return f"{format_size(found.bytes)}, {counts}"


def _option(found: DatabaseCopy) -> str:
    from lmsmith.feedback.database import option_of

    return option_of(found.database)
