"""Python functions of ``lmsmith improve``, ``simulate`` and ``models lineage``, ``compare``,
``promote`` and ``rollback``.
"""

from __future__ import annotations

import contextlib
import getpass
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmsmith.api import Recorded
from lmsmith.catalogue import versions
from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.progress import choose_progress
from lmsmith.options import documented

if TYPE_CHECKING:
    from lmsmith.catalogue.versions import Lineage, Version
    from lmsmith.improve.prospect import Prospect

_ID = re.compile("[0-9a-f]{16}")
"""Id of a person in a database."""


@dataclass(frozen=True, kw_only=True)
class Improvement(Recorded):
    """A round of `improve`: what there was to learn from, and the candidate; None if it was dry."""

    prospect: Prospect
    version: Version | None = None


@documented
def improve(
    model: str,
    *,
    database: str = "",
    data: Sequence[str] = (),
    recipe: str = "",
    set: Sequence[str] = (),
    name: str = "",
    share: float = 0.1,
    by: str = "",
    dry_run: bool = False,
    exclude: Sequence[str] = (),
    force: bool = False,
    restart: bool = False,
    quiet: bool = False,
) -> Improvement:
    """Make the next version of a model from what people judged, and measure whether it is better.

    Judgements are frozen, divided between training, a judge and gates, and learnt from. The
    candidate is not promoted: where its gates allow, people compare it blind with the present
    version (`lmsmith serve`), and their votes decide. Run it again after anything: it goes on.

    Args:
        model: A model with versions, or any other model, which becomes its own first version.
        database: Judgements of a server: a file or a URL; the server's own if left out.
        data: Judgements in files or folders, as lmsmith feedback export writes them, or exports of
            Argilla and Label Studio. Repeatable.
        recipe: A .toml file of the round's settings.
        set: Change a setting, e.g. ppo.kl_coefficient=0.05.
        name: What the versions are called; after the model if left out.
        share: Share of the chat's turns that show both versions while people vote.
        by: Who makes the first version, for the lineage.
        dry_run: Say what there is to learn from, and run nothing.
        exclude: Somebody, by name or id, of whose judgements and prompts nothing is learnt; the
            round starts from the newest version without them. Repeatable.
        force: Go on with few judgements.
        restart: Drop a round that was begun with other judgements or settings.
        quiet: Show no progress, only warnings.

    Raises:
        UserError: there is too little to learn from, or a stage cannot run.
        Interrupted: after Ctrl-C, once everything is saved.

    >>> lmsmith.improvement.improve("ours", data=["data/feedback"]).version  # doctest: +SKIP
    """
    from lmsmith.improve import round
    from lmsmith.improve.prospect import Sources, learnt_people, prospect
    from lmsmith.improve.recipe import round_recipe, without
    from lmsmith.report.version.page import ensure_version_page

    if not 0 <= share <= 1:
        raise UserError(f"--share {share}: expected a share of the turns, 0 to 1")
    sources = Sources(database, tuple(data))
    settings = without(round_recipe(recipe, set), sources.ids_of(exclude, learnt_people()))
    found = prospect(model, sources, settings, name)
    if dry_run:
        return Improvement(record=found.as_dict(), prospect=found)
    made = round.improve(
        model,
        sources,
        settings,
        name=name,
        by=by,
        force=force,
        restart=restart,
        share=None if data else share,
        progress=choose_progress(f"improve {found.name}", quiet),
    )
    record = {**found.as_dict(), "version": made.as_dict()}
    report = ensure_version_page(made)
    return Improvement(record=record, report=report, prospect=found, version=made)


@documented
def lineage(name: str, *, database: str = "") -> Recorded:
    """Every version of a model: parents, judgements, gates, promotions, and votes on a candidate.

    Args:
        name: Of the versions.
        database: Where the votes are: a file or a URL; the server's own if left out.

    Raises:
        UserError: the name has no versions.
    """
    found = versions.lineage_of(name)
    record: dict[str, Any] = {
        "name": name,
        "promoted": found.promoted,
        "versions": [each.as_dict() for each in versions.versions(name)],
        "promotions": [asdict(each) for each in found.promotions],
        "refusals": [asdict(each) for each in found.refusals],
        "trial": asdict(found.trial) if found.trial else None,
        "deleted": _with_deleted(name, database),
    }
    if found.trial and (votes := _votes(name, found, database)) is not None:
        record["votes"] = votes
    return Recorded(record=record)


def _with_deleted(name: str, database: str) -> dict[str, int]:
    """Version → people it was made with who are no more in the database; empty without one.

    Names in files are not ids, and are passed over.
    """
    from lmsmith.feedback.database import default_database

    made_with = {each.word: each.learnt.people for each in versions.versions(name)}
    ids = {
        word: {each for each in people if _ID.fullmatch(each)} for word, people in made_with.items()
    }
    if not any(ids.values()) or (not database and not Path(default_database()).is_file()):
        return {}
    from lmsmith.improve.prospect import Sources

    there = Sources(database).people()
    return {word: len(found - there) for word, found in ids.items() if found - there}


def _votes(name: str, found: Lineage, database: str) -> dict[str, Any] | None:
    """The state of the vote on a candidate; None without a database."""
    from lmsmith.feedback.database import default_database
    from lmsmith.feedback.store import open_store
    from lmsmith.feedback.votes import votes_on

    assert found.trial is not None
    if not database and not Path(default_database()).is_file():
        return None
    with needs_extra("serve"), open_store(database) as store:
        votes = votes_on(store, f"{name}@{found.trial.candidate}", f"{name}@{found.promoted}")
    return votes.counts() | asdict(votes.decision(found.trial.test))


@documented
def compare_versions(models: Sequence[str], *, database: str = "") -> Recorded:
    """Show versions side by side: what they learnt from, their gates, figures, verdicts and votes.

    All of it is read from their records, so it takes no time. Gates of one version compare it with
    the version of its column's "compared with"; lmsmith compare measures versions afresh, on the
    same prompts and tasks.

    Args:
        models: NAME for all of its versions; NAME@N for that one and the version it was compared
            with; or several of these, where NAME is the promoted one.
        database: Where the votes are: a file or a URL; the server's own if left out.

    Raises:
        UserError: a name has no versions, or there is no such version.
    """
    chosen = _versions_to_compare(models)
    lineages = {each.name: versions.lineage_of(each.name) for each in chosen}
    deleted: dict[str, int] = {}
    for name in lineages:
        deleted |= _with_deleted(name, database)
    shown = []
    for each in chosen:
        lineage = lineages[each.name]
        on_trial = lineage.trial is not None and lineage.trial.candidate == each.number
        marks = {"is_promoted": lineage.promoted == each.number, "is_on_trial": on_trial}
        counts = {"compared_with": each.compared_with, "deleted": deleted.get(each.word, 0)}
        shown.append(each.as_dict() | marks | counts)
    newest = sorted(chosen, key=lambda each: (each.name, -each.number))
    votes = _votes_among([each.word for each in newest], lineages, database)
    measure = f"lmsmith compare {' '.join(each.word for each in newest)}"
    return Recorded(record={"versions": shown, "votes": votes, "measure": measure})


def _versions_to_compare(words: Sequence[str]) -> list[Version]:
    known = f"these have: {', '.join(versions.names()) or 'none'}"
    if not words:
        raise UserError("no versions to compare", known)
    chosen: list[Version] = []
    for word in words:
        found = versions.find(word)
        if found is None:
            name, _ = versions.split_version(word)
            fix = f"{known}; lmsmith compare takes models of any kind"
            raise UserError(f"{name} has no versions", fix)
        chosen.append(found)
    if len(chosen) == 1:
        (one,) = chosen
        if words[0] == one.name:
            chosen = versions.versions(one.name)
        else:
            chosen = [*filter(None, [versions.find(one.compared_with)]), one]
    return list({each.word: each for each in chosen}.values())


def _votes_among(
    words: Sequence[str], lineages: Mapping[str, Lineage], database: str
) -> list[dict[str, Any]]:
    """The votes between versions, the newest first; none without a database."""
    from lmsmith.feedback.database import default_database
    from lmsmith.feedback.store import open_store
    from lmsmith.feedback.votes import votes_among
    from lmsmith.statistics.sequential import SequentialTest

    if not database and not Path(default_database()).is_file():
        return []
    with needs_extra("serve"), open_store(database) as store:
        found = votes_among(store, words)
    rows = []
    for (candidate, current), votes in found.items():
        name, number = versions.split_version(candidate)
        trial = lineages[name].trial
        declared = trial is not None and trial.candidate == number
        declared = declared and current == f"{name}@{lineages[name].promoted}"
        test = trial.test if trial is not None and declared else SequentialTest()
        pair = {"candidate": candidate, "current": current, "on_trial": declared}
        rows.append(pair | votes.counts() | asdict(votes.decision(test)))
    return sorted(rows, key=lambda row: words.index(row["candidate"]))


@documented
def promote(version: str, *, by: str = "", reason: str = "") -> Version:
    """Make a version the one that its name means: serve, chat and the rest take it from then on.

    A running server changes to it without dropping a stream.

    Args:
        version: NAME@NUMBER.
        by: Who decides, for the lineage.
        reason: Why, for the lineage.

    Raises:
        UserError: there is no such version, or its files were changed.
    """
    name, number = versions.split_version(version)
    if number is None:
        versions.lineage_of(name)
        raise UserError(f"{version}: no number", f"write {version}@NUMBER")
    return versions.promote(name, number, by or _user(), reason)


@documented
def rollback(name: str, *, by: str = "", reason: str = "") -> Version:
    """Return to the version that was promoted before the present one.

    Args:
        name: Of the versions.
        by: Who decides, for the lineage.
        reason: Why, for the lineage.

    Raises:
        UserError: no version was promoted before, or its files were changed.
    """
    return versions.rollback(name, by or _user(), reason)


@dataclass(frozen=True, kw_only=True)
class Simulation(Recorded):
    """A simulation of the loop: figures of each round over all seeds, and the page."""


@documented
def simulate(
    model: str,
    *,
    rounds: int = 3,
    labelers: int = 5,
    noise: float = 0.27,
    seeds: int = 3,
    prompts: int = 200,
    answers: int = 4,
    overlap: int = 2,
    votes: int = 600,
    test_prompts: int = 200,
    gates: Literal["decide", "shown"] = "decide",
    length_counts: bool = False,
    gold: str = "",
    rankings: Sequence[str] = (),
    data: Sequence[str] = (),
    recipe: str = "",
    set: Sequence[str] = (),
    folder: Path | None = None,
    quiet: bool = False,
) -> Simulation:
    """Run the loop of improve without people: synthetic labelers rank and vote.

    Each round the newest version answers prompts, labelers rank the answers by a gold reward model
    and noise, a candidate is made from that, and gates and votes promote or refuse it. Nothing
    learns from the gold reward model. Run it again after anything: it goes on.

    Args:
        model: A run, a version or any other model, with which the simulation begins.
        rounds: Of each seed.
        labelers: How many there are.
        noise: Share of the pairs on which two labelers disagree; of people about 0.27.
        seeds: So many simulations that differ in their chance alone.
        prompts: To which labelers rank answers, in each round.
        answers: To each of these prompts, 2 to 9.
        overlap: How many labelers rank the answers to a prompt.
        votes: Most votes on a candidate.
        test_prompts: On which the gold reward of each version is measured.
        gates: Whether a candidate that the gates refuse meets no votes (decide), or they are only
            shown, and votes alone decide.
        length_counts: Labelers judge by the gold reward as it is. Else what an answer's length
            explains of it is subtracted, as gold reward models often like brevity.
        gold: The gold reward model; that of the run's stage judge if left out.
        rankings: Files of people's rankings that train a gold reward model. Repeatable.
        data: Files of conversations whose prompts are answered; the run's own if left out.
            Repeatable.
        recipe: A .toml file of a round's settings; small ones for two cores if left out.
        set: Change a setting of a round, e.g. ppo.iterations=20.
        folder: Of the simulation; runs/MODEL-simulation by default.
        quiet: Show no progress, only warnings.

    Raises:
        UserError: there are too few prompts, no gold reward model, or the folder holds a
            simulation with other settings.
        Interrupted: after Ctrl-C, once everything is saved.

    >>> lmsmith.improvement.simulate("runs/quickstart", rounds=1, seeds=1).report  # doctest: +SKIP
    """
    from lmsmith.improve.recipe import round_recipe
    from lmsmith.report.simulation import build_simulation_page

    with needs_extra("serve"):
        from lmsmith.improve.simulation import running, world

    path = world.place_of(model)
    given = world.place_of_gold(gold) if gold else ""
    plan = world.Plan(
        path,
        given or ("" if rankings else world.own_gold(path)),
        tuple(rankings),
        tuple(data),
        labelers,
        noise,
        prompts,
        answers,
        overlap,
        votes,
        test_prompts,
        gates,
        length_counts,
    )
    place = folder or Path("runs") / f"{Path(model).name}-simulation"
    record = running.simulate(
        plan,
        round_recipe(recipe or str(world.RECIPE), set),
        place,
        rounds=rounds,
        seeds=seeds,
        progress=lambda title: choose_progress(title, quiet),
    )
    return Simulation(record=record, report=build_simulation_page(place, record))


def _user() -> str:
    """The name of the account that runs the command."""
    with contextlib.suppress(OSError, KeyError):
        return getpass.getuser()
    return "somebody"
