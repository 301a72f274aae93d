"""The round that is under way: one for each name, which the same command continues.

What it began with stands in ``next/round.json``. Other settings or judgements are refused until the
round is finished or dropped.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from lmsmith.catalogue import versions
from lmsmith.catalogue.registry import now
from lmsmith.catalogue.versions import Version
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, write_json
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import Recipe
from lmsmith.improve.prospect import Sources, ledger_of, prospect
from lmsmith.improve.recipe import data_of
from lmsmith.improve.snapshot import SNAPSHOT_FILE, freeze, people_of, read_frozen
from lmsmith.runs.locking import locked

ROUND_FILE, FROZEN = "round.json", "frozen"
AT_WORK = ".improving"
"""The folder whose lock an improvement holds from its beginning to its end."""
ANNOUNCED = "announced.json"
"""Written when a version's trial has begun, the last act of a round."""


class Round(msgspec.Struct, frozen=True):
    """What a round was begun with: it goes on with nothing else.

    Attributes:
        parent: the version that it starts from.
        current: the version that its gates compare with, the promoted one; 0 is the parent.
        began: ISO 8601, UTC.
        recipe: the name of its recipe.
        chosen: a fingerprint of recipe, overrides and sources.
    """

    name: str
    parent: int
    began: str
    recipe: str
    chosen: str
    current: int = 0


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Let no second improvement of a name begin, go on, or drop this one's files."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(versions.folder_of(name) / AT_WORK, QuietProgress()))
        except UserError as error:
            if "at work" not in error.problem:
                raise
            holder = error.problem.partition("(")[2].rstrip(")")
            raise UserError(
                f"{name}: another improvement is at work ({holder})",
                "wait for its end, or stop it; then run this command again",
            ) from None
        yield


def unannounced(name: str, chosen: str) -> Version | None:
    """The newest version, if it was made by this command, which was killed right after."""
    newest = versions.versions(name)[-1]
    path = newest.folder / ROUND_FILE
    if not path.is_file() or (newest.folder / ANNOUNCED).is_file():
        return None
    return newest if _read_round(path).chosen == chosen else None


def _read_round(path: Path) -> Round:
    try:
        return msgspec.convert(read_json(path), Round)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: damaged ({error})", "drop the round: --restart") from error


def refuse_the_words_of_the_deleted(frozen: Path, sources: Sources) -> None:
    """Raises UserError if somebody was deleted after their words were frozen."""
    if sources.data:
        return
    gone = set(people_of(read_frozen(frozen))) - sources.people()
    if gone:
        raise UserError(
            f"{frozen}: the round holds words of {len(gone)} deleted "
            f"{'person' if len(gone) == 1 else 'people'}",
            "begin it again without them: --restart",
        )


def begun(folder: Path, chosen: str, restart: bool) -> Round | None:
    """The round under way, if there is one that may go on."""
    path = folder / ROUND_FILE
    if restart or not path.is_file():
        if folder.exists():
            shutil.rmtree(folder)
        return None
    state = _read_round(path)
    if state.chosen != chosen:
        raise UserError(
            f"{folder}: a round began on {state.began} with other settings or judgements",
            "run that command again to finish it, or drop it: --restart",
        )
    return state


def begin(
    folder: Path, name: str, chosen: str, recipe: Recipe, sources: Sources, force: bool
) -> Round:
    """Freeze the judgements; the round has begun when its file is written."""
    if not sources.judged.judgements:
        raise UserError(
            f"{name}: nobody has judged anything in {sources}",
            "collect more: lmsmith serve, or the labelling queue; or name other --data",
        )
    found = prospect(name, sources, recipe, name)
    summary, ledger = found.summary, ledger_of(name)
    if ledger.is_file() and not summary.new and not force and not _newly_excluded(name, recipe):
        raise UserError(
            f"{name}: nobody has judged anything since version {versions.next_number(name) - 1}",
            "collect more, or go on with --force",
        )
    if not {"sft", "ppo"} & set(found.stages):
        raise UserError(
            f"{name}: nothing to learn from: " + "; ".join(summary.too_little),
            "collect more: lmsmith serve, or the labelling queue",
        )
    if summary.too_little and not force:
        raise UserError("\n".join(summary.too_little), "collect more, or go on with --force")
    freeze(folder / FROZEN, sources.judged.judgements, sources.judged.reliability, ledger)
    state = Round(name, found.parent, now(), recipe.name, chosen, found.current)
    write_json(folder / ROUND_FILE, msgspec.to_builtins(state))
    return state


def _newly_excluded(name: str, recipe: Recipe) -> set[str]:
    """Ids that are excluded now, and were not when the newest version was made."""
    path = versions.versions(name)[-1].folder / "data" / SNAPSHOT_FILE
    before: Any = read_json(path) if path.is_file() else {}
    return set(data_of(recipe).exclude) - set(before.get("excluded", ()))
