"""A win rate by people: pairs of replies go through the labelling queue, blind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import structs
from sqlalchemy import select, update

from lmsmith.comparison.instructions import Instruction, Replies
from lmsmith.comparison.win_rate import PeoplesWork, Versus, judged_row, summarise
from lmsmith.core.files import fingerprint
from lmsmith.feedback.database import NAMES_A_QUERY
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Assignment, Task
from lmsmith.statistics.agreement import krippendorff_alpha, pairwise_agreement, preferences

JUDGE = "people"


@dataclass
class _QueuedPair:
    """A pair in the queue: how many are to judge it, and each labeler's ranks."""

    overlap: int
    said: list[tuple[str, list[int]]] = field(default_factory=list)

    def won(self, place: int) -> float:
        """The labelers' mean of 1 where this text is better, ½ for a tie, 0 where it is worse."""
        pairs = [(ranks[place], ranks[1 - place]) for _, ranks in self.said]
        return sum((1 + (own < other) - (own > other)) / 2 for own, other in pairs) / len(pairs)


def people_judge(
    store: Store,
    instructions: Sequence[Instruction],
    a: Replies,
    b: Replies,
    labelers: int = 1,
    seed: int = 0,
) -> Versus:
    """Put the pairs that are not there into the queue, and read the judgements of those that are.

    A pair is known by its prompt and both texts, so that running this again adds none twice, and
    earlier judgements of the same texts count. Equal replies are a tie and are not asked; they
    count as soon as every other pair has a judgement. Several labelers' verdicts on a pair are
    averaged; instructions are resampled whole.

    Args:
        labelers: how many are to judge each pair; pairs that are there are given to as many.
        seed: of the intervals.
    """
    queue, added = Queue(store), 0
    triples = list(zip(instructions, a.texts, b.texts, strict=True))
    origins = {each.id: _origin(each, one, two) for each, one, two in triples if one != two}
    for each, one, two in triples:
        if one != two:
            first, second = sorted([(one, a.model), (two, b.model)])
            added += queue.add(
                "ranking",
                list(each.messages),
                [first[0], second[0]],
                models=[first[1], second[1]],
                overlap=labelers,
                origin=origins[each.id],
            )
    pairs = _read_judgements(store, list(dict.fromkeys(origins.values())), labelers)
    # Equal replies would weigh too much beside the few pairs that are judged at first.
    all_judged = all(pair.said for pair in pairs.values())
    rows = []
    for each, one, two in triples:
        if one == two and not all_judged:
            continue
        if one == two:
            rows.append(structs.replace(judged_row(each, one, two, 0.5), judgements=0))
        elif (pair := pairs[origins[each.id]]).said:
            row = judged_row(each, one, two, pair.won(0 if one < two else 1))
            rows.append(structs.replace(row, judgements=len(pair.said)))
    return summarise(JUDGE, rows, a, b, seed, _work(added, pairs, seed))


def _origin(instruction: Instruction, one: str, two: str) -> str:
    return fingerprint(["win rate", list(instruction.messages), sorted([one, two])])


def _read_judgements(
    store: Store, origins: Sequence[str], labelers: int
) -> Mapping[str, _QueuedPair]:
    """Raise each pair's overlap to ``labelers``, then read its judgements, by its origin."""
    pairs: dict[str, _QueuedPair] = {}
    with store.session.begin() as session:
        for start in range(0, len(origins), NAMES_A_QUERY):
            mine = Task.origin.in_(origins[start : start + NAMES_A_QUERY])
            session.execute(
                update(Task).where(mine, Task.overlap < labelers).values(overlap=labelers)
            )
            for task in session.scalars(select(Task).where(mine)):
                pairs[str(task.origin)] = _QueuedPair(task.overlap)
            query = (
                select(Task.origin, Assignment.person_id, Assignment.answer)
                .join(Assignment, Assignment.task_id == Task.id)
                .where(mine, Assignment.state == "done")
                .order_by(Assignment.id)
            )
            for origin, person, answer in session.execute(query):
                pairs[str(origin)].said.append((person, list(answer["ranks"])))
    return pairs


def _work(added: int, pairs: Mapping[str, _QueuedPair], seed: int) -> PeoplesWork:
    several = [[ranks for _, ranks in each.said] for each in pairs.values() if len(each.said) > 1]
    return PeoplesWork(
        added=added,
        judgements=sum(len(each.said) for each in pairs.values()),
        waiting=sum(max(0, each.overlap - len(each.said)) for each in pairs.values()),
        labelers=len({person for each in pairs.values() for person, _ in each.said}),
        several=len(several),
        agreement=pairwise_agreement(several, seed),
        alpha=krippendorff_alpha([preferences(each) for each in several], "ordinal", seed),
    )
