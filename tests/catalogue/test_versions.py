"""Versions: exactly one is promoted, whatever happens; its files are those of its record."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from lmsmith.catalogue import versions
from lmsmith.catalogue.versions import Gate, Learnt, Version
from lmsmith.core.errors import UserError


def put(name: str, number: int, **values: object) -> Version:
    """A complete version, as a round leaves it."""
    folder = versions.folder_of(name) / versions.NEXT
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.safetensors").write_bytes(os.urandom(50))
    sha256 = versions.hash_model(folder / "model")
    made = Version(name, number, "model", sha256, "runs/one", "2026-11-29", **values)  # type: ignore[arg-type]
    versions.write_version(folder, made)
    versions.put_in_place(made)
    return made


@pytest.fixture
def three() -> list[Version]:
    made = [put("ours", 1), put("ours", 2, parents=(1,)), put("ours", 3, parents=(1,))]
    versions.found_lineage(made[0], "me")
    return made


def test_the_first_version_is_promoted(three: list[Version]) -> None:
    assert versions.promoted("ours") == three[0]
    assert versions.versions("ours") == three
    assert versions.next_number("ours") == 4
    assert versions.names() == ["ours"]
    assert [versions.find(word) for word in ("ours", "ours@3", "other", "a/b", "..")] == [
        three[0],
        three[2],
        None,
        None,
        None,
    ]


def test_promotions_are_listed_and_repeat_nothing(three: list[Version]) -> None:
    versions.promote("ours", 3, "ada", "votes")
    versions.promote("ours", 3, "ada", "votes")
    assert versions.promoted("ours") == three[2]
    found = [
        (each.version, each.action, each.by) for each in versions.lineage_of("ours").promotions
    ]
    assert found == [(1, "first", "me"), (3, "promote", "ada")]


def test_a_clock_that_jumps_back_changes_no_order(
    three: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    years = iter(range(2025, 1990, -1))
    monkeypatch.setattr(versions, "now", lambda: f"{next(years)}-01-01T00:00:00+00:00")
    versions.promote("ours", 2, "ada")
    versions.promote("ours", 3, "ada")
    assert versions.promoted("ours") == three[2]
    assert versions.rollback("ours", "ada") == three[1]
    assert versions.promoted("ours") == three[1]
    assert versions.rollback("ours", "ada") == three[0]


def test_rollbacks_go_back_to_the_first(three: list[Version]) -> None:
    for number in (2, 3):
        versions.promote("ours", number, "me")
    assert [versions.rollback("ours", "me").number for _ in range(2)] == [2, 1]
    with pytest.raises(UserError, match="ours@1 is the first promoted version"):
        versions.rollback("ours", "me")
    versions.promote("ours", 3, "me")
    assert versions.rollback("ours", "me").number == 1


def test_votes_promote_only_instead_of_the_version_they_were_against(three: list[Version]) -> None:
    with pytest.raises(UserError, match="ours@1 was promoted meanwhile, and ours@2 was held"):
        versions.promote("ours", 2, "votes", instead_of=3)
    assert versions.promote("ours", 2, "votes", instead_of=1) == three[1]


@pytest.mark.parametrize("replaced", [False, True])
def test_votes_promote_nothing_when_their_trial_ends_meanwhile(
    three: list[Version], monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    trial, verify = versions.set_trial("ours", 2).trial, versions.verify

    def slow(found: Version) -> None:
        """An admin acts while the model's files are hashed."""
        monkeypatch.setattr(versions, "verify", verify)
        versions.end_trial("ours")
        if replaced:
            versions.set_trial("ours", 3)
        verify(found)

    monkeypatch.setattr(versions, "verify", slow)
    versions.promote("ours", 2, "votes", instead_of=1, trial=trial)
    lineage = versions.lineage_of("ours")
    assert lineage.promoted == 1
    assert (lineage.trial and lineage.trial.candidate) == (3 if replaced else None)


def test_changed_files_are_not_promoted(three: list[Version]) -> None:
    (three[1].path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="not the files of which ours@2"):
        versions.promote("ours", 2, "me")
    assert versions.promoted("ours") == three[0]


def test_a_trial_ends_with_a_promotion(three: list[Version]) -> None:
    trial = versions.set_trial("ours", 2, 0.2).trial
    assert trial is not None
    assert (trial.candidate, trial.share, trial.test.alpha) == (2, 0.2, 0.05)
    assert versions.lineage_of("ours").trial == trial
    versions.promote("ours", 3, "me")
    assert versions.lineage_of("ours").trial is None
    versions.set_trial("ours", 2)
    assert versions.end_trial("ours").trial is None
    with pytest.raises(UserError, match="ours@3 is promoted already"):
        versions.set_trial("ours", 3)
    with pytest.raises(UserError, match="no such version"):
        versions.set_trial("ours", 9)
    with pytest.raises(UserError, match="expected a share"):
        versions.set_trial("ours", 2, 1.5)


def test_a_refused_version_is_on_no_trial(
    three: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Gate("length", "failed", 3.0, 2.0, 4.0, 1.5, "")
    refused = replace(three[1], verdict="refused", gates=(failed,))
    monkeypatch.setattr(versions, "version", lambda *_: refused)
    with pytest.raises(UserError, match=r"ours@2 is refused by its gates \(length\)"):
        versions.set_trial("ours", 2)
    assert versions.lineage_of("ours").trial is None
    assert versions.set_trial("ours", 2, refused=True).trial is not None


def test_a_trial_is_checked_without_the_lineages_lock(
    three: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading gigabytes takes longer than others wait for the lock."""

    def verify(found: Version) -> None:
        with versions.changing(found.name):
            pass

    monkeypatch.setattr(versions, "PATIENCE", 0.0)
    monkeypatch.setattr(versions, "verify", verify)
    assert versions.set_trial("ours", 2).trial is not None


def test_records_of_earlier_versions_of_lmsmith_are_read(three: list[Version]) -> None:
    path = three[1].folder / versions.VERSION_FILE
    record = json.loads(path.read_text())
    for name in ("against", "figures", "gates", "learnt", "parents", "lmsmith"):
        del record[name]
    path.write_text(json.dumps(record))
    found = versions.version("ours", 2)
    assert (found.parents, found.gates, found.compared_with) == ((), (), "")
    versions.verify(found)
    assert versions.promote("ours", 2, "me") == found


def test_a_refusal_by_votes_is_kept_and_ends_its_own_trial_alone(three: list[Version]) -> None:
    first = versions.set_trial("ours", 2).trial
    assert first is not None
    later = replace(first, candidate=3)
    versions.refuse("ours", later, "futile", "of another trial")
    assert versions.lineage_of("ours").trial == first
    versions.refuse("ours", first, "worse", "12 votes")
    lineage = versions.lineage_of("ours")
    assert lineage.trial is None
    (found,) = lineage.refusals
    assert (found.candidate, found.current, found.outcome) == (2, 1, "worse")
    versions.promote("ours", 3, "me")
    assert versions.lineage_of("ours").refusals == (found,)


def test_what_is_not_there_is_said(three: list[Version]) -> None:
    with pytest.raises(UserError, match=r"ours@7: no such version\n  ours has 1, 2, 3"):
        versions.find("ours@7")
    with pytest.raises(UserError, match=r"other has no versions\n  these have: ours"):
        versions.promoted("other")
    (versions.folder_of("ours") / versions.LINEAGE_FILE).write_text('{"promotions": 3}')
    with pytest.raises(UserError, match=r"lineage.json: damaged"):
        versions.promoted("ours")


def test_a_person_leads_to_the_versions_made_with_them() -> None:
    versions.found_lineage(put("a", 1), "me")
    second = put("a", 2, learnt=Learnt(people=("p1", "p2")))
    third = put("a", 3, parents=(2,), learnt=Learnt(people=("p2",)))
    assert versions.made_with("p1") == [second, third]
    assert versions.made_with("p3") == []


def test_a_version_made_from_one_that_somebody_had_a_part_in_is_not_untouched() -> None:
    versions.found_lineage(put("a", 1), "me")
    put("a", 2, parents=(1,), learnt=Learnt(people=("p1",)))
    third = put("a", 3, parents=(2,), learnt=Learnt(people=("p2",)))
    assert versions.untouched(third, {"p1"}).number == 1
    assert versions.untouched(third, {"p2"}).number == 2
    assert versions.untouched(third, {"p3"}) == third
    shutil.rmtree(versions.folder_of("a") / "1")
    assert versions.untouched(third, {"p2"}).number == 2
    with pytest.raises(UserError, match="no version is left that the excluded people had no part"):
        versions.untouched(third, {"p1"})


def test_nobody_goes_back_to_changed_files(three: list[Version]) -> None:
    versions.promote("ours", 2, "me")
    (three[0].path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="not the files of which ours@1"):
        versions.rollback("ours", "me")
    assert versions.promoted("ours") == three[1]


def test_a_number_is_not_used_again(three: list[Version]) -> None:
    """Messages and votes name ours@3, also when its folder is gone."""
    versions.promote("ours", 3, "me")
    shutil.rmtree(three[2].folder)
    assert versions.next_number("ours") == 4


def test_a_number_that_people_voted_on_is_not_used_again(three: list[Version]) -> None:
    """On trial, and refused by their votes."""
    shutil.rmtree(three[1].folder)
    trial = versions.set_trial("ours", 3).trial
    shutil.rmtree(three[2].folder)
    assert versions.next_number("ours") == 4
    assert trial is not None
    versions.refuse("ours", trial, "worse", "40 votes")
    assert versions.next_number("ours") == 4


KILLED = """
import itertools, sys
from lmsmith.catalogue import versions
for turn in itertools.count():
    versions.promote("ours", 2 + turn % 2, "me")
    print(turn, flush=True)
    versions.rollback("ours", "me") if turn % 5 == 4 else None
"""


def test_a_kill_leaves_one_promoted_version(three: list[Version]) -> None:
    for wait in (1, 3, 8, 20):
        with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(wait):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        assert versions.promoted("ours") in three
        versions.promote("ours", 1, "me")  # the lock went with the process
        assert versions.promoted("ours") == three[0]


def test_two_at_once_are_one_after_the_other(three: list[Version]) -> None:
    def promote(number: int) -> None:
        for _ in range(20):
            versions.promote("ours", number, "me")

    threads = [threading.Thread(target=promote, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    promotions = versions.lineage_of("ours").promotions
    assert {each.version for each in promotions} == {1, 2, 3}
    assert all(one.version != other.version for one, other in itertools.pairwise(promotions))
