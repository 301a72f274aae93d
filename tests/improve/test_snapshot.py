"""Judgements frozen and divided: nothing on two sides, in no round; nobody too heavy."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.errors import UserError
from lmsmith.core.files import write_jsonl
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.judgements import Judgement, read_judgements
from lmsmith.corpus.rows import read_conversations, read_rankings
from lmsmith.corpus.splits import opening_key, split_of
from lmsmith.feedback.store import open_store
from lmsmith.improve.prospect import Sources
from lmsmith.improve.recipe import round_recipe, stages_with_data
from lmsmith.improve.snapshot import (
    SIDES_FILE,
    SNAPSHOT_FILE,
    SnapshotConfig,
    cap_weights,
    divide,
    freeze,
    read_frozen,
    read_sides,
    run,
    weights_of,
)
from lmsmith.improve.summary import summarise
from lmsmith.runs.stage_folder import StageFolder


def some(count: int, people: int, seed: int, first: int = 0) -> list[Judgement]:
    """Judgements of people in their own dialogues, some of which begin alike."""
    drawn = random.Random(seed)
    found = []
    for number in range(first, first + count):
        person = f"p{drawn.randrange(people)}" if people else ""
        prompt = [{"role": "user", "content": f"What is {drawn.randrange(3 * count)}?"}]
        kind = drawn.choice(["ranking", "comparison", "thumb", "demonstration", "better_answer"])
        size = 1 if kind in ("thumb", "demonstration") else 2
        responses = [f"{kind} {number} {place}" for place in range(size)]
        found.append(
            Judgement(f"{kind}-{number:04}", kind, prompt, responses, [1, 2][:size], person, person)
        )
    return found


def out(folder: Path) -> StageFolder:
    return StageFolder(folder, 1, MachineConfig(), QuietProgress())


def taken(
    folder: Path, judgements: list[Judgement], earlier: Path | None = None, **values: Any
) -> Any:
    """What the stage wrote: its snapshot.json."""
    freeze(folder / "frozen", judgements, values.pop("reliability", {}), earlier)
    run(SnapshotConfig(frozen=str(folder / "frozen"), **values), {}, out(folder / "data"))
    return json.loads((folder / "data" / SNAPSHOT_FILE).read_text())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@given(st.integers(0, 10**6), st.sampled_from([0, 1, 3, 40]))
def test_no_person_and_no_prompt_is_on_two_sides(seed: int, people: int) -> None:
    divided = divide(some(120, people, seed), SnapshotConfig(), {})
    for one, other in itertools.combinations(divided.sides.values(), 2):
        assert not {each.opening for each in one} & {each.opening for each in other}
        if divided.by == "person":
            assert not {each.asker for each in one} & {each.asker for each in other}
    assert divided.by == ("person" if people == 40 else "prompt")


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 30))
def test_sides_stay_in_later_rounds(seed: int, people: int, more_people: int) -> None:
    """Whoever joins, and however the division changes between rounds."""
    rounds: list[list[Judgement]] = [some(60, people, seed)]
    for turn in (1, 2):
        rounds.append([*rounds[-1], *some(60, more_people, seed + turn, 60 * turn)])
    earlier: dict[str, Any] = {}
    trained: set[str] = set()
    held: set[str] = set()
    for judgements in rounds:
        divided = divide(judgements, SnapshotConfig(), earlier)
        train = {each.opening for each in divided.sides["train"]}
        held_out = {each.opening for each in divided.sides["held_out"]}
        assert not train & held_out
        assert not train & held
        assert not held_out & trained
        trained, held = trained | train, held | held_out
        earlier = {
            each.id: (side, each.opening) for side, rows in divided.sides.items() for each in rows
        }


def test_the_stage_writes_what_each_later_stage_reads(tmp_path: Path, seed: int) -> None:
    judgements = some(400, 30, seed)
    found = taken(tmp_path, judgements)
    data = tmp_path / "data"
    parts = {
        part: list(read_rankings(data / part))
        for part in (
            "reward/train.jsonl",
            "reward/validation.jsonl",
            "judge/train.jsonl",
            "held_out/test.jsonl",
        )
    }
    assert all(parts.values())
    assert (
        len(list(read_conversations(data / "demonstrations.jsonl")))
        == found["counts"]["demonstrations"]
    )
    assert sum(found["counts"][f"reward/{part}"] for part in ("train", "validation")) == sum(
        each.kind in ("ranking", "comparison", "better_answer")
        for each in divide(judgements, SnapshotConfig(), {}).sides["train"]
    )
    written = {
        name: {opening_key(each.messages) for each in read_conversations(data / f"{name}.jsonl")}
        for name in ("demonstrations", "validation", "test")
    }
    assert written["validation"]
    assert not written["validation"] & (written["demonstrations"] | written["test"])
    assert set(found["people"]) == {each.person for each in judgements}
    sides = read_sides(data / SIDES_FILE)
    again = taken(tmp_path / "again", judgements, data / SIDES_FILE)
    assert read_sides(tmp_path / "again/data" / SIDES_FILE) == sides
    assert (again["new"], found["new"]) == (0, len(sides))


def test_a_better_answer_teaches_twice_and_a_demonstration_once(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "Hello?"}]
    made = [
        Judgement("better-1", "better_answer", prompt, ["mine", "its"], [1, 2], "p", "p"),
        Judgement("demonstration-1", "demonstration", prompt, ["mine"], [1], "p", "p"),
    ]
    taken(tmp_path, made, held_out=0.0, judge=0.0)
    (only,) = rows(tmp_path / "data/demonstrations.jsonl")
    assert only["messages"][-1] == {"role": "assistant", "content": "mine"}
    assert (
        len(rows(tmp_path / "data/reward/train.jsonl"))
        + len(rows(tmp_path / "data/reward/validation.jsonl"))
        == 1
    )


def test_who_is_excluded_is_in_no_file(tmp_path: Path, seed: int) -> None:
    found = taken(tmp_path, some(200, 12, seed), exclude=("p3",))
    assert "p3" not in found["people"]
    assert found["left_out"]["of people who are excluded"] > 0
    assert found["excluded"] == ["p3"]
    written = "".join(path.read_text() for path in (tmp_path / "data").rglob("*.jsonl"))
    assert '"p3"' not in written


def test_the_prompts_of_an_excluded_person_are_left_out_with_their_labels() -> None:
    """Somebody else judged them; the words are of the one who asked."""
    prompt = [{"role": "user", "content": "q"}]
    made = [Judgement("r-1", "ranking", prompt, ["a", "b"], [1, 2], "labeler", "asker")]
    divided = divide(made, SnapshotConfig(exclude=("asker",)), {})
    assert divided.left_out == {"of people who are excluded": 1}


@pytest.mark.parametrize(("askers", "by"), [(7, "prompt"), (8, "person")])
def test_eight_people_who_ask_are_divided_by_person(askers: int, by: str) -> None:
    made = [
        Judgement(f"p-{n}", "prompt", [{"role": "user", "content": f"q {n}"}], asker=f"p{n}")
        for n in range(askers)
    ]
    assert divide(made, SnapshotConfig(by_person_from=8), {}).by == by


def asked_by(name: str, person: str = "", text: str = "the same") -> Judgement:
    """A ranking of one labeler, of what a person asked."""
    prompt = [{"role": "user", "content": text}]
    return Judgement(name, "ranking", prompt, ["a", "b"], [1, 2], f"of {name}", person)


def test_a_dialogue_keeps_its_side_though_its_id_means_another_one(tmp_path: Path) -> None:
    """Three files number their rows from 0; what the second has does not hide the first."""

    def file(word: str) -> list[Judgement]:
        return [asked_by(f"r-{n}", text=f"{word} {n}") for n in range(30)]

    sides, trained, held = None, set[str](), set[str]()
    for turn, word in enumerate(("one", "other", "one")):
        folder = tmp_path / str(turn)
        # The third round holds out, and trains, on what the first did not.
        taken(folder, file(word), sides, held_out=0.6 if turn < 2 else 0.2, judge=0.0)
        sides = folder / "data" / SIDES_FILE
        train = {json.dumps(row["messages"]) for row in rows(folder / "data/prompts.jsonl")}
        test = {json.dumps(row["prompt"]) for row in rows(folder / "data/held_out/test.jsonl")}
        assert not train & held
        assert not test & trained
        trained, held = trained | train, held | test


def test_what_was_trained_on_once_is_never_held_out() -> None:
    """Two databases had a prompt on two sides: from then on it is trained on, or left out."""
    opening = asked_by("c").opening
    earlier: Any = {"a": ("held_out", opening), "b": ("train", opening)}
    divided = divide([asked_by("c")], SnapshotConfig(held_out=0.99, judge=0.0), earlier)
    assert divided.left_out == {"the prompt stands on another side": 1}


def test_a_prompt_of_people_of_two_sides_stays_on_the_side_that_is_needed_most() -> None:
    made = [asked_by(f"p-{n}", f"person {n}") for n in range(40)]
    divided = divide(made, SnapshotConfig(by_person_from=1), {})
    counts = {side: len(rows) for side, rows in divided.sides.items()}
    assert counts["held_out"] > 0
    assert counts["judge"] == counts["train"] == 0
    assert divided.left_out == {"the prompt stands on another side": 40 - counts["held_out"]}


def test_the_rankings_of_a_prompt_are_all_trained_on_or_all_validate(tmp_path: Path) -> None:
    made = [
        Judgement(
            f"r-{n}-{who}",
            "ranking",
            [{"role": "user", "content": f"q {n}"}],
            ["a", "b"],
            [1, 2],
            f"p{who}",
        )
        for n in range(20)
        for who in range(3)
    ]
    taken(tmp_path, made, held_out=0.0, judge=0.0, validation=0.5)
    train, validation = (
        {json.dumps(row["prompt"]) for row in rows(tmp_path / f"data/reward/{part}.jsonl")}
        for part in ("train", "validation")
    )
    assert train
    assert validation
    assert not train & validation


def test_with_few_people_the_cap_is_an_equal_share() -> None:
    assert cap_weights({"a": 90.0, "b": 10.0}, 0.3) == {"a": 10.0, "b": 10.0}


def test_what_is_said_twice_counts_once(seed: int) -> None:
    once = some(50, 10, seed)
    again = [Judgement(f"{each.id}-again", *list(vars_of(each))[1:]) for each in once]
    divided = divide([*once, *again], SnapshotConfig(), {})
    assert divided.left_out["said twice by one person"] >= 50


def asks(person: str, text: str, name: str) -> Judgement:
    return Judgement(name, "prompt", [{"role": "user", "content": text}], asker=person)


def test_two_people_may_ask_the_same() -> None:
    made = [asks("a", "Tea?", "prompt-1"), asks("b", "Tea?", "prompt-2")]
    assert divide(made, SnapshotConfig(), {}).left_out == {}
    assert summarise(made, set()).duplicates == 0
    twice = [asks("a", "Tea?", "prompt-1"), asks("a", "Tea?", "prompt-2")]
    assert divide(twice, SnapshotConfig(), {}).left_out == {"said twice by one person": 1}


@pytest.mark.parametrize(("others", "kept"), [(70, 30), (10, 40)])
def test_prompts_above_a_persons_share_are_not_practised_on(
    tmp_path: Path, others: int, kept: int
) -> None:
    """A flood of prompts has its share; 50 prompts stay, whoever sent them."""
    made = [asks("flood", f"spam {n}", f"prompt-{n:03}") for n in range(500)]
    made += [asks(f"p{n}", f"q {n}", f"prompt-a{n}") for n in range(others)]
    found = taken(tmp_path, made, held_out=0.0, judge=0.0, by_person_from=1000)
    assert found["counts"]["prompts"] == others + kept
    assert found["left_out"]["prompts above one person's share of 30%"] == 500 - kept
    assert summarise(made, set(), cap=0.3).prompts_left_out == {"flood": 500 - kept}


def test_labelers_who_are_no_better_than_chance_teach_no_order(tmp_path: Path) -> None:
    prompts = [[{"role": "user", "content": f"q {n}"}] for n in range(30)]
    made = [
        Judgement(f"r-{n:02}", "ranking", prompt, ["a", "b"], [1, 2], "coin")
        for n, prompt in enumerate(prompts)
    ]
    found = taken(tmp_path, made, held_out=0.0, judge=0.0, reliability={"coin": (0, 10)})
    assert found["counts"]["reward/train"] == found["counts"]["reward/validation"] == 0
    assert found["left_out"] == {"of labelers who order gold pairs no better than chance": 30}
    stages = stages_with_data(round_recipe(), made, {}, {"coin": (0, 10)})
    assert not {"reward", "ppo", "judge"} & set(stages)
    assert {"reward", "ppo"} <= set(stages_with_data(round_recipe(), made, {}))


def test_rankings_of_one_prompt_train(tmp_path: Path) -> None:
    """Also where its side would be validation alone."""
    for number in range(20):
        prompt = [{"role": "user", "content": f"q {number}"}]
        made = [Judgement(f"r-{n}", "ranking", prompt, [str(n), "b"], [1, 2]) for n in range(9)]
        found = taken(tmp_path / str(number), made, held_out=0.0, judge=0.0, validation=0.5)
        assert found["counts"]["reward/train"] == 9


def vars_of(each: Judgement) -> list[Any]:
    return [getattr(each, name) for name in each.__struct_fields__]


@given(
    st.dictionaries(st.sampled_from(["", *"abcdefgh"]), st.floats(0.1, 100), min_size=1),
    st.floats(0.05, 1.0),
)
def test_nobody_has_more_than_the_cap(weights: dict[str, float], cap: float) -> None:
    found = cap_weights(weights, cap)
    people = [name for name in weights if name]
    share = cap if "" in weights else max(cap, 1 / len(people))
    total = sum(found.values())
    assert all(found[name] <= share * total + 1e-6 * total for name in people)
    assert all(found[name] <= weights[name] + 1e-9 for name in weights)
    below = [name for name in weights if found[name] < weights[name] * (1 - 1e-9)]
    assert all(found[name] == pytest.approx(share * total) for name in below)


def test_nobody_is_a_crowd() -> None:
    """Rows that name nobody are not one person's, and are not lowered."""
    found = cap_weights({"": 70.0, "a": 50.0}, 0.3)
    assert found == {"": 70.0, "a": pytest.approx(30.0)}


def test_one_account_moves_nothing_by_more_than_its_share() -> None:
    """Thousands of judgements of one account, against twenty people's."""
    prompt = [{"role": "user", "content": "q"}]
    flood = [
        Judgement(f"r-{i}", "ranking", prompt, [str(i), "b"], [1, 2], "flood") for i in range(5000)
    ]
    others = [
        Judgement(f"s-{i}", "ranking", prompt, [str(i), "c"], [1, 2], f"p{i % 20}")
        for i in range(200)
    ]
    weights = weights_of([*flood, *others], SnapshotConfig(person_cap=0.1), {})
    total = sum(weights.values())
    assert sum(weights[each.id] for each in flood) / total == pytest.approx(0.1)
    assert total == pytest.approx(len(weights))


def test_demonstrations_above_a_persons_share_are_left_out(tmp_path: Path) -> None:
    """Ninety of one account beside ten people's: those above its share are left out, and said."""
    made = [
        Judgement(
            f"d-{n:03}",
            "demonstration",
            [{"role": "user", "content": f"q {n}"}],
            [f"a {n}"],
            [1],
            "flood" if n < 90 else f"p{n}",
        )
        for n in range(100)
    ]
    found = taken(tmp_path, made, held_out=0.0, judge=0.0, person_cap=0.3)
    assert found["counts"]["demonstrations"] + found["counts"]["validation"] == 14
    (reason,) = (each for each in found["left_out"] if "one person's share of 30%" in each)
    assert found["left_out"][reason] == 86
    assert summarise(made, set(), cap=0.3).demonstrations_left_out == {"flood": 86}


def test_reliable_labelers_weigh_more() -> None:
    prompt = [{"role": "user", "content": "q"}]
    made = [
        Judgement(name, "ranking", prompt, [name, "b"], [1, 2], name)
        for name in ("good", "coin", "new")
    ]
    found = weights_of(made, SnapshotConfig(person_cap=1.0), {"good": (40, 40), "coin": (20, 40)})
    assert found["good"] > found["new"] > found["coin"] > 0
    assert found["good"] / found["coin"] == pytest.approx((2 * 43 / 44 - 1) / (2 * 23 / 44 - 1))


def test_exported_files_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "conversations.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        '{"messages": [{"role": "user", "content": "only asked"}]}\n'
    )
    (tmp_path / "rankings.jsonl").write_text(
        '{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2], "labeler": "x", '
        '"source": "feedback.better", "id": "better-1"}\n'
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    )
    (tmp_path / "ratings.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], '
        '"scale": "thumbs", "value": -1, "labeler": "x"}\n'
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], '
        '"scale": "1-7", "score": 3, "labeler": "x"}\n'
    )
    found = list(read_judgements([str(tmp_path)]))
    assert [each.kind for each in found] == [
        "demonstration",
        "prompt",
        "better_answer",
        "ranking",
        "thumb",
    ]
    assert (found[-1].ranks, found[-1].person) == ([2], "x")
    freeze(tmp_path / "frozen", found, {})
    assert read_frozen(tmp_path / "frozen") == sorted(found, key=lambda each: each.id)


def test_nobody_takes_others_out_of_training_by_their_words() -> None:
    """Who repeats what others asked before comes too late; the oldest dialogue has its opening."""
    config = SnapshotConfig(by_person_from=2)
    shares = {"held_out": config.held_out, "judge": config.judge}
    names = [f"p{number}" for number in range(60)]
    learnt_from = [name for name in names if not split_of(name, shares)][:8]
    thief = next(name for name in names if split_of(name, shares) == "held_out")

    def asked(name: str, text: str, created: float) -> Judgement:
        prompt = [{"role": "user", "content": text}]
        number = f"{name} {text}"
        return Judgement(number, "ranking", prompt, ["a", "b"], [1, 2], name, name, created=created)

    first = [asked(name, f"Question of {name}", 10.0) for name in learnt_from]
    copied = [asked(thief, each.prompt[0]["content"], 20.0) for each in first]
    divided = divide(sorted(first + copied, key=lambda each: each.id), config, {})
    assert {each.id for each in divided.sides["train"]} == {each.id for each in first}
    assert divided.sides["held_out"] == []
    assert divided.left_out == {"the prompt stands on another side": 8}


def test_damaged_rows_are_named(tmp_path: Path) -> None:
    freeze(tmp_path, some(2, 1, 1), {})
    (tmp_path / "judgements.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(UserError, match="line 1: no judgement"):
        read_frozen(tmp_path)
    (tmp_path / "thumbs.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], '
        '"scale": "thumbs", "value": 5}\n'
    )
    with pytest.raises(UserError, match="line 1: not a thumb"):
        list(read_judgements([str(tmp_path / "thumbs.jsonl")]))
    for wrong in ('"value": true', '"value": 1, "labeler": ["Ann"]', '"value": "1"'):
        said = (tmp_path / "thumbs.jsonl").read_text()
        (tmp_path / "wrong.jsonl").write_text(said.replace('"value": 5', wrong))
        with pytest.raises(UserError, match="line 1: not a thumb"):
            list(read_judgements([str(tmp_path / "wrong.jsonl")]))
    (problem,) = SnapshotConfig(held_out=0.6, judge=0.5).check()
    assert problem.key == "held_out"


def test_capitals_decide_who_is_excluded(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "x.db"), new=True) as store:
        ids = {name: store.person(name).id for name in ("Ann", "ann", "Bob")}
        for person in ids.values():
            store.add_message(person, store.begin(person).id, None, "user", f"hi from {person}")
    sources = Sources(str(tmp_path / "x.db"))
    for word, name in (("Ann", "Ann"), ("ann", "ann"), (" bob", "Bob"), (ids["ann"], "ann")):
        assert sources.ids_of([word]) == (ids[name],)
    with pytest.raises(UserError, match=r"--exclude ANN: may be .*\n.*give the id") as caught:
        sources.ids_of(["ANN"])
    assert all(f"{name} ({ids[name]})" in str(caught.value) for name in ("Ann", "ann"))


def test_pairs_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    """Public data of chosen and rejected dialogues has a few such rows."""
    asked = "\n\nHuman: Tea?\n\nAssistant:"
    pairs = [(" Yes.", " No."), ("", " No."), (" Yes.", " Yes.")]
    rows = [{"chosen": asked + chosen, "rejected": asked + other} for chosen, other in pairs]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    found = Sources(data=(str(tmp_path / "pairs.jsonl"),)).judged
    assert [each.responses for each in found.judgements] == [["Yes.", "No."]]
    assert found.left_out == {"with an empty message": 1, "of one response twice": 1}
    with pytest.raises(UserError, match="line 2: a message is empty"):
        list(read_judgements([str(tmp_path / "pairs.jsonl")]))
