"""Several rounds of one model: what may come between them, and who is in which version.

Training is left out: a fake of the stages copies the model, so that a round takes no time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from feedback.test_upgrade import write_sqlite
from improve.tiny_round import make_model, write_data
from lmsmith import api, improvement
from lmsmith.catalogue import versions
from lmsmith.catalogue.resolve import Sampling, advised_sampling, resolve
from lmsmith.cli import main
from lmsmith.core.errors import UserError
from lmsmith.core.files import write_json
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.judgements import Collected
from lmsmith.feedback.collect import collect
from lmsmith.feedback.people import People
from lmsmith.feedback.store import Store, open_store
from lmsmith.feedback.tables import Message, RankedAnswers, Rating
from lmsmith.improve import round, snapshot
from lmsmith.improve.summary import summarise
from lmsmith.runs.locking import locked
from lmsmith.runs.stage_folder import StageFolder
from stores import rank


def fake_run(recipe: Any, folder: Path, **_: Any) -> None:
    """The data stage as it is; a candidate that is the model it began with, and passes."""
    config = recipe.stages["data"]
    snapshot.run(config, {}, StageFolder(folder / "data", 1, MachineConfig(), QuietProgress()))
    for name in ("sft", "ppo"):
        if name in recipe.stages:
            shutil.copytree(
                recipe.stages["base"].model, folder / name / "model", dirs_exist_ok=True
            )
    write_json(folder / "gates/current.json", recipe.stages["gates"].current)
    write_json(folder / "gates/gates.json", {"verdict": "passed", "gates": []})


@dataclass
class World:
    """A model, an empty database, and the folder of the test."""

    folder: Path
    model: str
    database: str
    store: Store

    def person(self, name: str, rankings: int = 0, first: int = 0) -> str:
        """Somebody who ranked the answers to so many prompts."""
        found = self.store.person(name).id
        for number in range(first, first + rankings):
            prompt = [{"role": "user", "content": f"{name} asks {number}?"}]
            rank(self.store, found, prompt, [f"good {number}", "bad"], [1, 2])
        return found

    def improve(self, name: str = "ours", **given: Any) -> versions.Version:
        given = {"database": self.database, "force": True, "quiet": True} | given
        made = improvement.improve(self.model, name=name, **given).version
        assert made is not None
        return made


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: str) -> Iterator[World]:
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(round, "run_recipe", fake_run)
    model = make_model(tmp_path / "model")
    with open_store(database, new=True) as store:
        yield World(tmp_path, model, database, store)


def written(made: versions.Version) -> str:
    """All that the snapshot of a version holds, as text."""
    return "".join(path.read_text() for path in (made.folder / "data").rglob("*.jsonl"))


def openings(made: versions.Version, name: str) -> set[str]:
    rows = map(json.loads, (made.folder / "data" / name).read_text().splitlines())
    return {json.dumps(row["prompt"]) for row in rows}


def test_sides_stay_when_a_round_had_other_files(world: World) -> None:
    """Held out in the first round, away in the second, and still never trained on."""
    first = write_data(world.folder / "first", 60)
    write_data(world.folder / "second", 90)
    rows = (world.folder / "second/rankings.jsonl").read_text().splitlines()[60:]
    (world.folder / "second/rankings.jsonl").write_text("\n".join(rows))
    (world.folder / "second/conversations.jsonl").unlink()
    second = str(world.folder / "second")
    settings = {"set": ("data.held_out=0.5",)}
    one = world.improve(data=[first], **settings)
    world.improve(data=[second], set=("data.held_out=0.1",))
    three = world.improve(data=[first, second], set=("data.held_out=0.0",))
    held = openings(one, "held_out/test.jsonl")
    assert held
    assert not held & openings(three, "reward/train.jsonl")
    assert held <= openings(three, "held_out/test.jsonl")


def test_another_database_may_use_the_same_ids(world: World) -> None:
    person = world.person("Ann", 60)
    one = world.improve()
    with open_store(str(world.folder / "other.db"), new=True) as other:
        someone = other.person("Bob").id
        for number in range(60):
            prompt = [{"role": "user", "content": f"something else, {number}"}]
            rank(other, someone, prompt, ["x", "y"], [1, 2])
    found = improvement.improve(
        world.model, name="ours", database=str(world.folder / "other.db"), dry_run=True
    )
    assert found.prospect.summary.new == 60
    two = world.improve(database=str(world.folder / "other.db"), force=True)
    assert two.learnt.people == (someone,)
    assert one.learnt.people == (person,)


def test_a_deleted_person_is_in_no_later_snapshot(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    ann, bob = world.person("Ann", 40), world.person("Bob", 40)
    one = world.improve()
    assert set(one.learnt.people) == {ann, bob}
    improvement.promote(one.word)
    assert main(["users", "rm", "Ann", "--database", world.database]) == 0
    said = capsys.readouterr().out
    assert said.index("versions made with words of Ann: ours@2") < said.index("is deleted")
    assert f"lmsmith improve ours --exclude {ann} --restart" in said
    two = world.improve()
    assert (two.learnt.people, two.parents) == ((bob,), (2,))
    assert "Ann asks" in written(one)
    assert "Ann asks" not in written(two)
    assert improvement.lineage("ours", database=world.database).record["deleted"] == {"ours@2": 1}
    assert [each.word for each in versions.made_with(ann)] == ["ours@2", "ours@3"]
    assert main(["models", "lineage", "ours", "--database", world.database]) == 0
    assert "ours@2 was made with the words of 1 person who was deleted" in capsys.readouterr().out
    three = world.improve(exclude=[ann], restart=True)
    assert three.parents == (1,)


def test_a_round_that_began_with_their_words_is_not_finished(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = world.person("Ann", 40)
    world.person("Bob", 40)

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(round, "run_recipe", stopped)
        with pytest.raises(KeyboardInterrupt):
            world.improve()
    People(world.store).remove("Ann")
    with pytest.raises(UserError, match="words of 1 deleted person") as caught:
        world.improve()
    assert "--restart" in caught.value.fix
    assert ann not in world.improve(restart=True).learnt.people


def test_a_version_is_made_again_without_a_person(world: World) -> None:
    """By name, from the newest version that they had no part in; and with nothing new."""
    ann, bob = world.person("Ann Lee", 40), world.person("Bob", 40)
    improvement.promote(world.improve().word)
    with pytest.raises(UserError, match="nobody has judged anything since version 2"):
        world.improve(force=False)
    three = world.improve(exclude=["ann  LEE"], restart=True)
    assert (three.parents, three.learnt.people) == ((1,), (bob,))
    assert "Ann Lee asks" not in written(three)
    excluded = json.loads((three.folder / "data/snapshot.json").read_text())["excluded"]
    assert excluded == [ann]
    # People meet version 2, so that the gates and the votes are against it.
    assert (three.against, three.compared_with) == (2, "ours@2")
    assert json.loads((three.folder / "gates/current.json").read_text()) == str(
        versions.version("ours", 2).path
    )
    lineage = versions.lineage_of("ours")
    assert lineage.trial is not None
    assert (lineage.promoted, lineage.trial.candidate) == (2, 3)
    page = (three.folder / "report.html").read_text()
    assert "Made from ours@1 by the recipe" in page
    assert "compared with ours@2" in page
    with pytest.raises(UserError, match="--exclude Cid: nobody of that name") as caught:
        world.improve(exclude=["Cid"])
    assert "Ann Lee, Bob" in caught.value.fix


def test_the_database_is_read_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round begins with the judgements that were counted, and knows who is excluded from them."""
    world.person("Ann", 40)
    world.person("Bob", 40)
    read: list[Store] = []

    def counted(store: Store) -> Collected:
        read.append(store)
        return collect(store)

    monkeypatch.setattr("lmsmith.feedback.collect.collect", counted)
    world.improve(exclude=["Bob"])
    assert len(read) == 1


def test_judgements_of_a_clock_that_jumped_back_are_new(world: World) -> None:
    ann = world.person("Ann", 60)
    world.person("Bob", 60)
    one = world.improve()
    world.person("Ann", 30, first=60)
    with world.store.session.begin() as session:
        for each in session.scalars(select(RankedAnswers).where(RankedAnswers.person_id == ann)):
            each.created = datetime(1999, 1, 1, tzinfo=UTC)
    found = improvement.improve(world.model, name="ours", database=world.database, dry_run=True)
    assert found.prospect.summary.new == 30
    assert one.number == 2


def test_the_reward_model_starts_from_the_newest_ancestors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that had no rankings left none in the version between."""
    ran: list[Any] = []
    monkeypatch.setattr(
        round,
        "run_recipe",
        lambda recipe, folder, **_: (ran.append(recipe), fake_run(recipe, folder)),
    )
    world.person("Ann", 40)
    improvement.promote(world.improve().word)
    assert "previous_reward" not in ran[0].stages
    first = versions.folder_of("ours") / "1/reward/model"
    first.mkdir(parents=True)
    world.improve()
    assert ran[1].stages["previous_reward"].model == str(first)


def test_a_round_without_an_earlier_reward_model_says_so(world: World) -> None:
    """The stages that a dry run lists are those that would run."""
    world.person("Ann", 60)

    def listed() -> list[str]:
        found = improvement.improve(world.model, name="ours", database=world.database, dry_run=True)
        return found.as_dict()["stages"]

    assert "reward" in listed()
    assert "previous_reward" not in listed()
    made = world.improve()
    assert "previous_reward" not in listed()
    (made.folder / "reward/model").mkdir(parents=True)
    improvement.promote(made.word)
    assert "previous_reward" in listed()


def test_two_improvements_at_once(world: World) -> None:
    world.person("Ann", 40)
    world.improve()
    at_work = versions.folder_of("ours") / ".improving"
    for given in ({}, {"restart": True}, {"exclude": ["Ann"]}):
        with (
            locked(at_work, QuietProgress()),
            pytest.raises(UserError, match=r"ours: another improvement is at work \(process"),
        ):
            world.improve(**given)
    assert [each.number for each in versions.versions("ours")] == [1, 2]


def test_a_model_that_vanished_between_rounds(world: World) -> None:
    world.person("Ann", 40)
    made = world.improve()
    improvement.promote(made.word)
    shutil.rmtree(made.path)
    with pytest.raises(UserError, match="not the files of which ours@2 was made") as caught:
        world.improve()
    assert "promote another version" in caught.value.fix
    improvement.rollback("ours")
    with pytest.raises(UserError, match="not the files of which ours@2 was made"):
        world.improve()  # the round began with it
    assert world.improve(restart=True).parents == (1,)


def test_a_promoted_version_whose_folder_is_gone(world: World) -> None:
    world.person("Ann", 40)
    made = world.improve()
    improvement.promote(made.word)
    shutil.rmtree(made.folder)
    with pytest.raises(UserError, match=r"ours@2 is promoted, and its folder .* is gone") as caught:
        world.improve()
    assert caught.value.fix.endswith("lmsmith models promote ours@1")
    improvement.promote("ours@1")
    again = world.improve(restart=True)
    assert (again.parents, again.word) == ((1,), "ours@3")  # messages name another ours@2


def test_versions_without_their_lineage_are_not_overwritten(world: World) -> None:
    world.person("Ann", 40)
    made = world.improve()
    lineage = versions.folder_of("ours") / versions.LINEAGE_FILE
    there = lineage.read_bytes()
    lineage.unlink()
    with pytest.raises(UserError, match=r"holds versions up to 2, and their lineage.json is gone"):
        world.improve()
    lineage.write_bytes(there)
    assert [each.number for each in versions.versions("ours")] == [1, 2]
    versions.verify(versions.version("ours", 1))
    versions.verify(made)


def test_the_first_model_may_be_gone_after_the_first_round(world: World) -> None:
    """Version 1 is a copy of it: the same command goes on."""
    world.person("Ann", 40)
    made = world.improve(name="")
    assert made.word == "model@2"
    shutil.rmtree(world.model)
    assert world.improve(name="").word == "model@3"
    with pytest.raises(UserError, match="no such folder"):
        improvement.improve(
            f"{world.folder}/elsewhere/model", database=world.database, dry_run=True
        )


def test_what_is_excluded_is_not_counted(world: World) -> None:
    world.person("Flood", 200)
    world.person("Ann", 10)
    given = {"database": world.database, "name": "ours", "exclude": ["Flood"]}
    found = improvement.improve(world.model, dry_run=True, **given).prospect.summary
    assert found.counts["ranking"] == 10
    assert not found.bursts
    with pytest.raises(UserError, match="10 compared pairs are few"):
        world.improve(exclude=["Flood"], force=False)
    with pytest.raises(UserError, match="nothing to learn from: 0 compared pairs"):
        world.improve(exclude=["Flood", "Ann"])


def test_judgements_of_deleted_conversations_are_gone(world: World) -> None:
    ann = world.person("Ann", 40)
    name = world.store.begin(ann).id
    asked = world.store.add_message(ann, name, None, "user", "A secret?").id
    answers = [
        world.store.add_message(ann, name, asked, "assistant", text, model="ours@1").id
        for text in ("one", "two")
    ]
    world.store.compare(ann, *answers, "left")
    world.store.improve(ann, answers[0], "three")
    world.store.rate(ann, answers[0], 1)
    one = world.improve()
    world.store.delete(ann, name)
    two = world.improve()
    assert "A secret?" in written(one)
    assert "A secret?" not in written(two)


def test_a_database_of_the_first_version_is_read(world: World) -> None:
    path = world.folder / "first.db"
    write_sqlite(path)
    found = improvement.improve(world.model, name="ours", database=str(path), dry_run=True)
    assert found.prospect.summary.counts["comparison"] > 0


def test_thumbs_alone_teach_nothing(world: World) -> None:
    ann = world.store.person("Ann").id
    name = world.store.begin(ann).id
    asked = world.store.add_message(ann, name, None, "user", "Hello?").id
    with world.store.session.begin() as session:
        answers = [
            Message(
                conversation_id=name, parent_id=asked, role="assistant", content=f"answer {number}"
            )
            for number in range(10_000)
        ]
        session.add_all(answers)
        session.flush()
        session.add_all(Rating(message_id=each.id, person_id=ann, value=1) for each in answers)
    with pytest.raises(UserError, match=r"nothing to learn from: .*10,000 thumbs and no ranking"):
        world.improve()


def test_ties_alone_teach_nothing(world: World) -> None:
    ann = world.store.person("Ann").id
    for number in range(60):
        rank(world.store, ann, [{"role": "user", "content": f"{number}?"}], ["a", "b"], [1, 1])
    with pytest.raises(UserError, match="every ranking is a tie"):
        world.improve()


def test_one_labeler_is_one_persons_taste(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.person("Ann", 60)
    words = ["improve", world.model, "--name", "ours", "--database", world.database]
    words += ["--set", "gates.tasks=[]", "--set", "gates.safety=[]"]
    assert main([*words, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "one person judged: this is one person's taste" in said
    assert """no tasks: name some by --set gates.tasks='["arithmetic/2d_plus"]'""" in said
    assert "data is here of arithmetic, hindsight, refusal, scrambles, toxicity" in said
    assert main([*words, "--dry-run", "--set", 'gates.safety=["refusal"]']) == 0
    assert "safety by refusal" in " ".join(capsys.readouterr().out.split())


def test_caps_and_bursts_are_shown(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.person("Flood", 200)
    for name in ("Ann", "Bob", "Cid", "Dee"):
        world.person(name, 10)
    words = ["improve", world.model, "--name", "ours", "--database", world.database]
    assert main([*words, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Flood made 83% of the rankings, which count as 30% of them" in said
    assert "Flood: 200 judgements within a minute; --exclude Flood leaves them out" in said


def test_caps_are_of_people_alone() -> None:
    assert summarise([], set(), cap=0.1).capped == {}


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_files_say_so(world: World, text: str) -> None:
    path = world.folder / "empty.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"nobody has judged anything in .*empty\.jsonl"):
        world.improve(data=[str(path)])


def test_every_problem_of_a_recipe_is_named(world: World) -> None:
    path = world.folder / "mine.toml"
    path.write_text("[data]\nheld_out = 2\n[gates]\nwin_rates = 0.5\n[previous_reward]\n")
    with pytest.raises(UserError) as caught:
        world.improve(recipe=str(path))
    for word in ("data.held_out", "gates.win_rates", "previous_reward"):
        assert word in str(caught.value)


def test_the_page_is_written_again_if_it_is_missing(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.person("Ann", 60)
    made = world.improve()
    (made.folder / "report.html").unlink()
    assert main(["models", "show", made.word]) == 0
    assert "report.html" in capsys.readouterr().out
    assert "one person's taste" in (made.folder / "report.html").read_text()


def test_labelers_of_files_are_excluded_by_the_name_in_the_file(world: World) -> None:
    data = write_data(world.folder / "data", 90)
    made = world.improve(data=[data], exclude=["p0"])
    assert made.learnt.people == ("p1", "p2")


def test_a_version_promoted_before_its_trial_began_gets_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after the version was made, promoted by hand, and run again."""
    world.person("Ann", 60)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(versions, "set_trial", killed)
        with pytest.raises(KeyboardInterrupt):
            world.improve()
    improvement.promote("ours@2")
    assert world.improve().word == "ours@2"
    assert versions.lineage_of("ours").trial is None
    with pytest.raises(UserError, match="nobody has judged anything since version 2"):
        world.improve(force=False)


@pytest.mark.parametrize("corpus", [True, False])
def test_rankings_alone_keep_the_corpus_that_there_is(
    world: World, monkeypatch: pytest.MonkeyPatch, corpus: bool
) -> None:
    """PPO mixes in the first version's corpus without demonstrations too, else nothing."""
    ran: list[Any] = []
    monkeypatch.setattr(
        round,
        "run_recipe",
        lambda recipe, folder, **_: (ran.append(recipe), fake_run(recipe, folder)),
    )
    data = Path(write_data(world.folder / "data"))
    (data / "conversations.jsonl").unlink()
    round.first_version(world.model, "ours", "me")
    if corpus:
        write_json(versions.folder_of("ours") / "1/pretrain/mixture.json", [1.0])
    improvement.improve("ours", data=[str(data)], force=True, quiet=True)
    stages = ran[0].stages
    assert ("pretrain" in stages) == corpus
    assert "sft" not in stages
    assert (stages["ppo"].ptx_coefficient > 0) == corpus


def test_a_version_is_sampled_as_the_makers_of_the_first_advise(world: World) -> None:
    """Their generation_config.json, or what they say of a fetched model, is kept in the card."""
    exported = world.folder / "theirs"
    api.export(world.model, exported)
    write_json(exported / "generation_config.json", {"temperature": 0.2, "top_p": 0.9})
    world.model = str(exported)
    world.person("Ann", 60)
    made = world.improve()
    for word in ("ours@1", made.word):
        assert advised_sampling(resolve(word)) == Sampling(0.2, 0.9)
