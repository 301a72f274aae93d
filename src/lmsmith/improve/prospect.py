"""What a round would learn from, without beginning it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from lmsmith.catalogue import versions
from lmsmith.catalogue.resolve import resolve
from lmsmith.catalogue.versions import Version
from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.files import fingerprint
from lmsmith.core.recipe import Recipe
from lmsmith.corpus.formats import IrregularPair
from lmsmith.corpus.judgements import Collected, Judgement, read_judgements
from lmsmith.improve.first_version import reward_of
from lmsmith.improve.recipe import data_of, gates_of, stages_with_data
from lmsmith.improve.snapshot import SIDES_FILE, known_of, read_sides
from lmsmith.improve.summary import Summary, summarise
from lmsmith.improve.tasks import check_tasks


@dataclass(frozen=True)
class Sources:
    """Where judgements are read.

    Attributes:
        database: of the server, a file or a URL; its own if both are empty.
        data: files or folders in the formats of ``lmsmith feedback export``.
    """

    database: str = ""
    data: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(self.data) or self.database or "the server's database"

    @cached_property
    def judged(self) -> Collected:
        """All judgements; read once, so that a round begins with those that were counted."""
        if self.data:
            found: dict[str, Judgement] = {}
            irregular: list[IrregularPair] = []
            for each in read_judgements(self.data, irregular):
                if found.setdefault(each.id, each) != each:  # another file counts its rows too
                    name = f"{each.id}-{fingerprint(msgspec.to_builtins(each))}"
                    found[name] = msgspec.structs.replace(each, id=name)
            left_out = Counter(each.flaw for each in irregular)
            return Collected(list(found.values()), {}, 0, 0, {}, dict(left_out))
        with needs_extra("serve"):
            from lmsmith.feedback.collect import collect
            from lmsmith.feedback.store import open_store
        with open_store(self.database) as store:
            return collect(store)

    def people(self) -> set[str]:
        """Ids of everybody who is in the database."""
        with needs_extra("serve"):
            from lmsmith.feedback.people import People
            from lmsmith.feedback.store import open_store
        with open_store(self.database) as store:
            return {each.id for each in People(store).all()}

    def ids_of(self, words: Sequence[str], learnt: Container[str] = ()) -> tuple[str, ...]:
        """Ids of people, each named by id or name; of files, the names that these give.

        Args:
            words: names and ids.
            learnt: ids that versions were made with, of people who may be deleted.

        Raises:
            UserError: nobody of that name judged or asked, or several people did whose names
                differ in capitals, and none is written so.
        """
        if not words:
            return ()
        found = self.judged
        ids = {person for each in found.judgements for person in each.people}
        chosen = []
        for word in words:
            if word in ids or word in learnt:
                chosen.append(word)
                continue
            alike = {
                person: name
                for person, name in found.names.items()
                if _plain(name).casefold() == _plain(word).casefold()
            }
            exact = {person for person, name in alike.items() if _plain(name) == _plain(word)}
            people = sorted(exact or alike)
            if len(people) > 1:
                both = " and ".join(f"{alike[person]} ({person})" for person in people)
                raise UserError(f"--exclude {word}: may be {both}", "give the id")
            if not people:
                some = ", ".join(sorted(found.names.get(each, each) for each in ids)[:20])
                raise UserError(
                    f"--exclude {word}: nobody of that name or id judged or asked",
                    f"these did: {some}" if some else "there is nobody to exclude",
                )
            chosen += people
        return tuple(dict.fromkeys(chosen))


def _plain(name: str) -> str:
    """A name without regard to the width of letters and spaces."""
    return " ".join(unicodedata.normalize("NFKC", name).split())


@dataclass(frozen=True)
class Prospect:
    """What a round would learn from.

    Attributes:
        name: of the model's versions.
        parent: the version it would start from; 0 where there is none yet.
        current: the promoted version, which its gates would compare with; 0 where there is none.
        summary: of the judgements.
        stages: that would run.
        tasks, safety: on which the gates would measure a fall.
        names: id of a person → name, where they are known.
        left_out: pairs of files that cannot be used, by what is wrong with them.
    """

    name: str
    parent: int
    current: int
    summary: Summary
    stages: tuple[str, ...]
    tasks: tuple[str, ...]
    safety: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.name,
            "parent": self.parent,
            "current": self.current,
            "stages": list(self.stages),
            "tasks": list(self.tasks),
            "safety": list(self.safety),
            "left_out": dict(self.left_out),
            **self.summary.as_dict(),
        }


def name_of(word: str, name: str = "") -> str:
    """What the versions of a model are called: as asked, or after the model's name or folder."""
    if name:
        return name
    bare = versions.split_version(word)[0]
    if versions.find(bare):
        return bare
    last = word.rstrip("/").rpartition("/")[2]
    # Version 1 is a copy, so that the model itself may be gone.
    gone = not Path(word).exists() and versions.find(last) is not None
    if gone and versions.version(last, 1).source == word:
        return last
    return resolve(word).name.rstrip("/").rpartition("/")[2]


def prospect(word: str, sources: Sources, recipe: Recipe, name: str = "") -> Prospect:
    """What a round would learn from, without beginning it.

    Raises:
        UserError: a task of the gates is unknown, or its data is not here.
    """
    gates = gates_of(recipe)
    check_tasks((*gates.tasks, *gates.safety))
    name = name_of(word, name)
    current = versions.find(name)
    parent = versions.untouched(current, data_of(recipe).exclude) if current else None
    earlier = read_sides(ledger_of(name))
    found = sources.judged
    excluded = set(data_of(recipe).exclude)
    judged = [each for each in found.judgements if not excluded.intersection(each.people)]
    summary = summarise(
        judged,
        known_of(judged, earlier),
        cap=data_of(recipe).person_cap,
        regenerations=found.regenerations,
        edits=found.edits,
    )
    stages = stages_with_data(recipe, judged, earlier, found.reliability)
    if not _has_reward(word, parent):
        stages = tuple(each for each in stages if each != "previous_reward")
    start, there = (each.number if each else 0 for each in (parent, current))
    tasks = gates.tasks, gates.safety
    return Prospect(name, start, there, summary, stages, *tasks, found.names, found.left_out)


def _has_reward(word: str, parent: Version | None) -> bool:
    """Whether a reward model is there already, where training would begin."""
    if parent is None:
        return reward_of(resolve(word)) is not None
    return any((each.folder / "reward/model").is_dir() for each in versions.line_of(parent))


def ledger_of(name: str) -> Path:
    """The sides of the newest version, which keep those of all versions before it."""
    made = versions.versions(name)
    newest = made[-1].folder if made else versions.folder_of(name) / "0"
    return newest / "data" / SIDES_FILE


def learnt_people() -> set[str]:
    """Ids of everybody with whose words a version was made."""
    found = (each for name in versions.names() for each in versions.versions(name))
    return {person for each in found for person in each.learnt.people}
