"""Votes on a candidate: whose they are, which count, and what they decide."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Comparison
from lmsmith.feedback.votes import FREE_VOTES, votes_among, votes_on
from lmsmith.statistics.sequential import SequentialTest


def shown(store: Store, who: str, asked: str, models: tuple[str, ...]) -> list[int]:
    """Answers of these models to a question, in the order shown."""
    name = store.begin(who).id
    first = store.add_message(who, name, None, "user", asked).id
    return [store.add_message(who, name, first, "assistant", m, model=m).id for m in models]


def test_votes_of_page_and_queue_count_once_for_person_and_prompt(store: Store) -> None:
    ann, bob = store.person("Ann").id, store.person("Bob", "labeler").id
    one, two, again = shown(store, ann, "a", ("m@2", "m@1", "m@2"))
    store.compare(ann, one, two, "left")
    store.compare(ann, two, again, "left")  # the same person and prompt
    three, four = shown(store, ann, "b", ("m@1", "m@2"))
    store.compare(ann, three, four, "left")
    five, six = shown(store, ann, "c", ("m@1", "m@2"))
    store.compare(ann, five, six, "both_bad")
    seven, eight = shown(store, ann, "d", ("m@1", "m@3"))
    store.compare(ann, seven, eight, "left")
    queue = Queue(store)
    queue.add(
        "ranking", [{"role": "user", "content": "e"}], ["x", "y", "z"], models=["m@1", "n", "m@2"]
    )
    held = queue.next(bob)
    assert held is not None
    ranks = [2, 1, 1]
    queue.submit(bob, held[0].id, {"ranks": [ranks[place] for place in held[0].shown]})
    found = votes_on(store, "m@2", "m@1")
    assert found.outcomes == (1.0, 0.0, 0.5, 1.0)
    assert (found.people, found.repeated) == (2, 1)
    assert votes_on(store, "m@3", "m@1").outcomes == (0.0,)
    assert votes_on(store, "m@1", "m@2").outcomes == (0.0, 1.0, 0.5, 0.0)
    assert found.decision(SequentialTest()).outcome == "undecided"
    among = votes_among(store, ["m@3", "m@2", "n", "m@1"])
    assert among[("m@2", "m@1")] == found
    pairs = {pair: votes.outcomes for pair, votes in among.items() if pair != ("m@2", "m@1")}
    assert pairs == {
        ("m@3", "m@1"): (0.0,),
        ("m@2", "n"): (0.5,),
        ("n", "m@1"): (1.0,),
    }


def test_equal_votes_decide_nothing(store: Store) -> None:
    ann = store.person("Ann").id
    for number in range(40):
        one, two = shown(store, ann, f"question {number}", ("m@1", "m@2"))
        store.compare(ann, one, two, "tie")
    found = votes_on(store, "m@2", "m@1")
    decision = found.decision(SequentialTest())
    assert (decision.outcome, decision.share.value, found.first) == ("undecided", 0.5, 0.0)
    assert decision.e_value == pytest.approx(0.36, abs=0.1)


def vote(store: Store, who: str, count: int, verdict: str = "left") -> None:
    """Votes on prompts of their own, the candidate left."""
    for number in range(count):
        one, two = shown(store, who, f"{who} {number} {verdict}", ("m@2", "m@1"))
        store.compare(who, one, two, verdict)


def test_no_account_among_many_decides_alone(store: Store) -> None:
    ann, bob, cem, dee = (store.person(name).id for name in ("Ann", "Bob", "Cem", "Dee"))
    vote(store, ann, 60)
    found = votes_on(store, "m@2", "m@1")
    assert found.outcomes == (1.0,) * FREE_VOTES
    assert (found.people, found.waiting) == (1, 60 - FREE_VOTES)
    assert found.decision(SequentialTest()).outcome == "undecided"
    for who in (bob, cem, dee):
        vote(store, who, 10, "right")
    found = votes_on(store, "m@2", "m@1")
    # Each of the others' 30 votes counts; Ann has 30 % of all, half while only one more votes.
    assert (found.outcomes.count(0.0), found.outcomes.count(1.0)) == (30, 14)
    assert (found.people, found.waiting) == (4, 46)
    assert found.counts()["waiting"] == 46
    assert found.outcomes[:10] == (1.0,) * 5 + (0.0,) * 5


def test_two_of_many_decide_together(store: Store) -> None:
    ann, bob, *_ = (store.person(name).id for name in ("Ann", "Bob", "Cem", "Dee"))
    for _ in range(20):
        vote(store, ann, 1)
        vote(store, bob, 1)
    assert votes_on(store, "m@2", "m@1").outcomes == (1.0,) * 40


def test_what_people_vote_for_does_not_say_which_votes_count(store: Store) -> None:
    """The place of a vote in the order follows from who voted and when."""
    ann, bob, cem, dee = (store.person(name).id for name in ("Ann", "Bob", "Cem", "Dee"))
    drawn = random.Random(5)
    voters = [drawn.choice([ann, ann, ann, bob, cem, dee]) for _ in range(60)]
    orders = []
    for verdicts in (("left", "right"), ("right", "left")):
        for number, who in enumerate(voters):
            one, two = shown(store, who, f"{number} {verdicts}", ("m@2", f"{verdicts[0]}@1"))
            store.compare(who, one, two, verdicts[number % 2])
        orders.append(votes_on(store, "m@2", f"{verdicts[0]}@1"))
    assert orders[0].outcomes == tuple(1 - each for each in orders[1].outcomes)
    assert orders[0].waiting == orders[1].waiting > 0


def test_the_only_account_decides_alone(store: Store) -> None:
    vote(store, store.person("Ann").id, 60)
    assert votes_on(store, "m@2", "m@1").outcomes == (1.0,) * 60


def test_the_votes_of_a_deleted_person_are_gone(store: Store) -> None:
    ann = store.person("Ann").id
    one, two = shown(store, ann, "a", ("m@2", "m@1"))
    store.compare(ann, one, two, "left")
    store.delete_person(ann)
    assert votes_on(store, "m@2", "m@1").outcomes == ()


def test_a_clock_that_jumps_back_changes_no_order(store: Store) -> None:
    """The first vote of a person on a prompt counts, and the order of the votes stays."""
    ann = store.person("Ann").id
    begun = datetime(2026, 11, 29, 12, tzinfo=UTC)
    pairs = [shown(store, ann, f"question {n}", ("m@2", "m@1")) for n in range(3)]
    asked = store.path(ann, pairs[0][0])[0]
    pairs.append(
        [
            store.add_message(ann, asked.conversation_id, asked.id, "assistant", m, model=m).id
            for m in ("m@2", "m@1")
        ]
    )
    for number, ((one, two), verdict) in enumerate(
        zip(pairs, ("left", "right", "tie", "right"), strict=True)
    ):
        made = store.compare(ann, one, two, verdict)
        with store.session.begin() as session:  # an hour earlier each time
            found = session.get_one(Comparison, made.id)
            found.created = begun - timedelta(hours=number)
    found_votes = votes_on(store, "m@2", "m@1")
    assert found_votes.outcomes == (1.0, 0.0, 0.5)
    assert found_votes.repeated == 1
