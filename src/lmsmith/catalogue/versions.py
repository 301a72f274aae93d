"""Versions of a model: each with its parents, the judgements it learnt from, and its evidence.

``LMSMITH_HOME/versions/NAME`` holds a folder a version, ``1``, ``2``, …, and ``lineage.json``,
which lists every promotion: the last one names the promoted version. A version's folder is moved
into place when it is complete, and ``lineage.json`` is replaced as a whole, so that a kill leaves
one promoted version and no half of another. A version's files never change.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from lmsmith.catalogue.registry import check_name, now
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, write_json
from lmsmith.core.paths import versions_folder
from lmsmith.core.progress import QuietProgress
from lmsmith.core.version import VERSION
from lmsmith.runs.locking import locked
from lmsmith.statistics.vote_settings import SequentialTest

VERSION_FILE, LINEAGE_FILE = "version.json", "lineage.json"
NEXT = "next"
"""The folder of the version that is being made."""
PATIENCE = 10.0
"""Seconds to wait for another process that changes the same lineage."""

_WORD = re.compile(r"(?P<name>[^@]+)@(?P<number>\d+)")

Kind = TypeVar("Kind", "Version", "Lineage")
Verdict = Literal["first", "passed", "refused", "not shown"]
Action = Literal["first", "promote", "rollback"]


@dataclass(frozen=True)
class Learnt:
    """The judgements that a version was made from, frozen in its folder.

    Attributes:
        sha256: of the snapshot's files.
        counts: judgements by kind, training and held out.
        people: ids of those whose words are in it, also for training.
        until: when the snapshot was taken, ISO 8601, UTC.
    """

    sha256: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    people: tuple[str, ...] = ()
    until: str = ""


State = Literal["passed", "failed", "not shown"]
"""A gate's state."""


@dataclass(frozen=True)
class Gate:
    """One condition of a promotion.

    Attributes:
        name: e.g. ``win_rate``.
        state: ``not shown`` where it could not be measured, or where the figure may be chance; that
            never counts as passed.
        value, low, high: the figure and its interval, if there is one.
        margin: what the figure is held against.
        reason: one sentence.
    """

    name: str
    state: State
    value: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Version:
    """A version of a model.

    Attributes:
        name, number: it is called ``name@number``.
        parents: numbers of the versions that it was made from.
        model: its model folder, relative to its own folder.
        sha256: of the model's files.
        source: where version 1 came from; the recipe of a later one.
        created: ISO 8601, UTC.
        learnt: the judgements it was made from.
        verdict: of its gates.
        gates: the evidence.
        figures: everything that was measured.
        lmsmith: the package's version.
        against: number of the version that its gates compare it with, the promoted one; the first
            parent if None.
    """

    name: str
    number: int
    model: str
    sha256: str
    source: str
    created: str
    parents: tuple[int, ...] = ()
    learnt: Learnt = field(default_factory=Learnt)
    verdict: Verdict = "first"
    gates: tuple[Gate, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)
    lmsmith: str = VERSION
    against: int | None = None

    @property
    def compared_with(self) -> str:
        """The version that its gates compare it with; empty for the first one."""
        number = self.against or next(iter(self.parents), 0)
        return f"{self.name}@{number}" if number else ""

    @property
    def word(self) -> str:
        """What commands call it."""
        return f"{self.name}@{self.number}"

    @property
    def folder(self) -> Path:
        return folder_of(self.name) / str(self.number)

    @property
    def path(self) -> Path:
        """Its model folder."""
        return self.folder / self.model

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"word": self.word, "path": str(self.path)}


@dataclass(frozen=True)
class Promotion:
    """A version that became the promoted one.

    Attributes:
        version: its number.
        action: ``first``, ``promote`` or ``rollback``.
        by: who did it; ``votes`` where people's votes decided.
        reason: one sentence.
        date: ISO 8601, UTC. The order of the list counts, not the dates.
    """

    version: int
    action: Action
    by: str
    reason: str
    date: str


@dataclass(frozen=True)
class Trial:
    """A candidate that people compare blind with the promoted version.

    Attributes:
        candidate: its number.
        share: of the chat's turns that show both.
        test: by which votes decide, declared before the first one.
        began: ISO 8601, UTC.
    """

    candidate: int
    share: float
    test: SequentialTest
    began: str


@dataclass(frozen=True)
class Refusal:
    """A trial whose votes did not promote the candidate.

    Attributes:
        candidate, current: the numbers of the versions that people compared.
        outcome: ``worse``, or ``futile`` where the candidate is not better by enough.
        reason: the votes, in one sentence.
        date: ISO 8601, UTC.
    """

    candidate: int
    current: int
    outcome: Literal["worse", "futile"]
    reason: str
    date: str


@dataclass(frozen=True)
class Lineage:
    """Everything that happened to the versions of a name.

    Attributes:
        promotions: in their order; the last one's version is promoted.
        trial: of a candidate, while there is one.
        refusals: of candidates, by people's votes, in their order.
    """

    promotions: tuple[Promotion, ...] = ()
    trial: Trial | None = None
    refusals: tuple[Refusal, ...] = ()

    @property
    def promoted(self) -> int:
        """The number of the promoted version."""
        return self.promotions[-1].version


def folder_of(name: str) -> Path:
    """The folder of a name's versions, which may not be there."""
    return versions_folder() / check_name(name)


def names() -> list[str]:
    """Names that have versions."""
    return sorted(path.parent.name for path in versions_folder().glob(f"*/{LINEAGE_FILE}"))


def lineage_of(name: str) -> Lineage:
    """The promotions of a name.

    Raises:
        UserError: it has no versions, or the file is damaged.
    """
    path = folder_of(name) / LINEAGE_FILE
    if not path.is_file():
        known = ", ".join(names())
        fix = f"these have: {known}" if known else f"make one: lmsmith improve {name}"
        raise UserError(f"{name} has no versions", fix)
    lineage = _decoded(Lineage, path)
    if not lineage.promotions:
        raise UserError(f"{path}: no version is promoted", "put back a copy of the file")
    return lineage


def versions(name: str) -> list[Version]:
    """The complete versions of a name, the oldest first."""
    return [version(name, number) for number in _numbers(name)]


def _numbers(name: str) -> list[int]:
    """Numbers of the complete versions of a name, in their order."""
    return sorted(int(each.name) for each in folder_of(name).glob("*") if each.name.isdecimal())


def version(name: str, number: int) -> Version:
    """One version.

    Raises:
        UserError: there is none of that number, or its record is damaged.
    """
    path = folder_of(name) / str(number) / VERSION_FILE
    if not path.is_file():
        lineage_of(name)
        raise UserError(
            f"{name}@{number}: no such version", f"{name} has {_listed(_numbers(name))}"
        )
    return _decoded(Version, path)


def promoted(name: str) -> Version:
    """The promoted version of a name.

    Raises:
        UserError: the name has no versions, or the promoted one's folder is gone.
    """
    number = lineage_of(name).promoted
    if not (folder_of(name) / str(number) / VERSION_FILE).is_file():
        others = [f"{name}@{each}" for each in _numbers(name) if each != number]
        raise UserError(
            f"{name}@{number} is promoted, and its folder {folder_of(name) / str(number)} is gone",
            f"put a copy back, or promote another: lmsmith models promote {others[-1]}"
            if others
            else "put a copy back",
        )
    return version(name, number)


def find(word: str) -> Version | None:
    """The version that ``NAME`` (the promoted one) or ``NAME@NUMBER`` means; None if none is.

    Raises:
        UserError: the name has versions, but not this one.
    """
    match = _WORD.fullmatch(word)
    name = match["name"] if match else word
    if (
        "/" in name
        or name.startswith(".")
        or not (versions_folder() / name / LINEAGE_FILE).is_file()
    ):
        return None
    return version(name, int(match["number"])) if match else promoted(name)


def split_version(word: str) -> tuple[str, int | None]:
    """``NAME@NUMBER`` as its two parts; the number of a bare name is None."""
    match = _WORD.fullmatch(word)
    return (match["name"], int(match["number"])) if match else (word, None)


@contextlib.contextmanager
def changing(name: str) -> Iterator[None]:
    """Hold the lock of a name's lineage.

    Raises:
        UserError: another process holds it for longer than `PATIENCE` seconds.
    """
    waited = time.monotonic() + PATIENCE
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder_of(name), QuietProgress()))
                break
            except UserError:
                if time.monotonic() > waited:
                    raise
                time.sleep(0.02)
        yield


def found_lineage(first: Version, by: str) -> Lineage:
    """Begin the lineage of a name with its complete first version, which is promoted."""
    lineage = Lineage((Promotion(first.number, "first", by, f"from {first.source}", now()),))
    _write(first.name, lineage)
    return lineage


def promote(
    name: str,
    number: int,
    by: str,
    reason: str = "",
    *,
    instead_of: int | None = None,
    trial: Trial | None = None,
) -> Version:
    """Make a version the promoted one. A trial ends, since its votes were against the one before.

    Promoting the promoted version again changes nothing, so the command may be repeated.

    Args:
        name, number: of the version.
        by: who decides.
        reason: one sentence.
        instead_of: the version that must be promoted until now; any if None.
        trial: whose votes decide: nothing changes if another, or none, is on by then.

    Raises:
        UserError: no such version, its model's files are not those of its record, or another
            version than ``instead_of`` is promoted.
    """
    chosen = version(name, number)
    verify(chosen)
    with changing(name):
        lineage = lineage_of(name)
        if trial not in (None, lineage.trial):
            return chosen
        if instead_of not in (None, lineage.promoted):
            raise UserError(
                f"{name}@{lineage.promoted} was promoted meanwhile, and {chosen.word} was held "
                f"against {name}@{instead_of}",
                "compare it with the promoted version",
            )
        if lineage.promoted != number:
            _append(name, lineage, Promotion(number, "promote", by, reason, now()))
    return chosen


def rollback(name: str, by: str, reason: str = "") -> Version:
    """Return to the version that was promoted before the present one.

    Rollbacks follow one another back to the first version: what was rolled back from is passed
    over.

    Raises:
        UserError: no other version was promoted before, or its files are not those of its record.
    """
    with changing(name):
        lineage = lineage_of(name)
        line: list[int] = []
        for each in lineage.promotions:
            if each.action == "rollback":
                while line and line[-1] != each.version:
                    line.pop()
            else:
                line.append(each.version)
        if len(line) < 2:
            raise UserError(
                f"{name}@{lineage.promoted} is the first promoted version: there is none before it",
                f"choose one: lmsmith models promote {name}@NUMBER",
            )
        before = version(name, line[-2])
        verify(before)
        _append(name, lineage, Promotion(before.number, "rollback", by, reason, now()))
    return before


def set_trial(
    name: str,
    number: int,
    share: float = 0.1,
    test: SequentialTest | None = None,
    *,
    refused: bool = False,
) -> Lineage:
    """Let people compare a candidate with the promoted version.

    Args:
        name: of the versions.
        number: the candidate's.
        share: of the chat's turns that show both.
        test: that decides the vote; the usual one if None.
        refused: also a version that its gates refuse.

    Raises:
        UserError: there is no such version, its gates refuse it, it is promoted already, or the
            share is no share.
    """
    test = test or SequentialTest()
    if number != lineage_of(name).promoted:
        candidate = version(name, number)
        if candidate.verdict == "refused" and not refused:
            failed = ", ".join(gate.name for gate in candidate.gates if gate.state == "failed")
            raise UserError(
                f"{candidate.word} is refused by its gates ({failed}), and is shown to nobody",
                "make another version; or promote it by hand, if you know better",
            )
        verify(candidate)  # takes long, so before others have to wait
    with changing(name):
        lineage = lineage_of(name)
        if number == lineage.promoted:
            raise UserError(f"{name}@{number} is promoted already", "choose another version")
        if not 0 <= share <= 1:
            raise UserError(f"share = {share}: expected a share of the turns, 0 to 1")
        lineage = replace(lineage, trial=Trial(number, share, test, now()))
        _write(name, lineage)
    return lineage


def end_trial(name: str) -> Lineage:
    """Show people no candidate any more; its version stays."""
    with changing(name):
        lineage = replace(lineage_of(name), trial=None)
        _write(name, lineage)
    return lineage


def refuse(name: str, trial: Trial, outcome: Literal["worse", "futile"], reason: str) -> None:
    """End a trial whose votes are against the candidate; its version stays.

    Nothing changes if another trial, or none, is on by then.
    """
    with changing(name):
        lineage = lineage_of(name)
        if lineage.trial == trial:
            made = Refusal(trial.candidate, lineage.promoted, outcome, reason, now())
            _write(name, replace(lineage, trial=None, refusals=(*lineage.refusals, made)))


def write_version(folder: Path, made: Version) -> None:
    """The last file of a version's folder, before it is moved into place."""
    write_json(folder / VERSION_FILE, asdict(made))


def put_in_place(made: Version) -> Path:
    """Move ``next`` to the version's number; its record must be in it."""
    (folder_of(made.name) / NEXT / VERSION_FILE).stat()
    (folder_of(made.name) / NEXT).rename(made.folder)
    return made.folder


def next_number(name: str) -> int:
    """The number of the version that comes next; none is used twice, also if a folder is gone.

    Votes on a version that was promoted, refused or on trial are kept under its number.
    """
    numbers = _numbers(name)
    if (folder_of(name) / LINEAGE_FILE).is_file():
        lineage = lineage_of(name)
        numbers += [each.version for each in lineage.promotions]
        numbers += [each.candidate for each in lineage.refusals]
        numbers += [lineage.trial.candidate] if lineage.trial else []
    return max(numbers, default=0) + 1


def made_with(person: str) -> list[Version]:
    """The versions that learnt from a person's words, or were made from one that did."""
    found = []
    for name in names():
        tainted: set[int] = set()
        for each in versions(name):
            if person in each.learnt.people or tainted.intersection(each.parents):
                tainted.add(each.number)
                found.append(each)
    return found


def line_of(start: Version) -> list[Version]:
    """A version and its ancestors, by first parents, back to the first one whose folder is here."""
    line = [start]
    while line[-1].parents:
        number = line[-1].parents[0]
        if not (folder_of(start.name) / str(number) / VERSION_FILE).is_file():
            break  # old versions may be deleted by hand
        line.append(version(start.name, number))
    return line


def untouched(start: Version, people: Container[str]) -> Version:
    """The nearest of a version and its ancestors that none of these people had a part in.

    Raises:
        UserError: there is none, since the folders of older versions are gone.
    """
    clean = None
    for each in reversed(line_of(start)):
        if any(person in people for person in each.learnt.people):
            break
        clean = each
    if clean is None:
        raise UserError(
            f"{start.name}: no version is left that the excluded people had no part in",
            "put back a copy of an older version's folder, or use another --name",
        )
    return clean


def hash_model(folder: Path) -> str:
    """SHA-256 of a model folder: names and contents of its files, sorted; hexadecimal."""
    return hash_files(each for each in folder.iterdir() if each.is_file())


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 of the names and contents of files, sorted; hexadecimal."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                total.update(piece)
    return total.hexdigest()


def verify(found: Version) -> None:
    """Compare a version's model with its record.

    Raises:
        UserError: a file is missing or was changed.
    """
    if not found.path.is_dir() or hash_model(found.path) != found.sha256:
        raise UserError(
            f"{found.path}: not the files of which {found.word} was made",
            f"put a copy of the folder back, or promote another version of {found.name}",
        )


def _append(name: str, lineage: Lineage, made: Promotion) -> None:
    # Votes were for a candidate against the version that was promoted until now.
    _write(name, replace(lineage, promotions=(*lineage.promotions, made), trial=None))


def _write(name: str, lineage: Lineage) -> None:
    write_json(folder_of(name) / LINEAGE_FILE, asdict(lineage))


def _decoded(kind: type[Kind], path: Path) -> Kind:
    try:
        return msgspec.convert(read_json(path), kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: damaged ({error})", "put a copy of the file back") from error


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
