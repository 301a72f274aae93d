"""What there is to learn from: how much, by how many, how far they agree, what is missing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from lmsmith.corpus.judgements import DEMONSTRATED, RANKED, Judgement
from lmsmith.improve.snapshot import LEAST_PROMPTS, cap_counts, cap_weights, prompts_of
from lmsmith.statistics.agreement import pairwise_agreement
from lmsmith.statistics.intervals import Interval

BURST_SECONDS, BURST_COUNT = 60.0, 30
"""More judgements of one person in a minute than anybody reads."""

ENOUGH = {"rankings": 200, "people": 2, "prompts": 50}
"""Below these a round is not worth its hour: `--force` goes on."""

LEAST = {"demonstrations": 8, "rankings": 8}
"""Below these a stage has nothing to learn from and is left out, also with `--force`."""


@dataclass(frozen=True)
class Summary:
    """What a database or files hold.

    Attributes:
        counts: judgements by kind; regenerations and edits are counted, and teach nothing.
        people: judgements by person.
        new: judgements since the version before.
        agreement: share of pairs on which two people agree who judged the same responses; None
            where no two did. A judge that is as good as one more person is right as often.
        pairs: compared pairs that are no ties.
        duplicates: judgements that one person made twice.
        bursts: person → most judgements in a minute, where nobody reads so fast.
        capped: person → share of the rankings that is theirs, and that they count for.
        demonstrations_left_out: person → demonstrations of theirs that are left out by the cap.
        prompts_left_out: person → prompts of theirs that PPO does not practise on, by the cap.
        too_little: what there is too little of, in sentences.
    """

    counts: dict[str, int]
    people: dict[str, int]
    new: int
    agreement: Interval | None
    pairs: int
    duplicates: int
    bursts: dict[str, int]
    capped: dict[str, tuple[float, float]]
    demonstrations_left_out: dict[str, int]
    prompts_left_out: dict[str, int]
    too_little: tuple[str, ...]

    @property
    def one_person(self) -> bool:
        """Whether all of it is one person's taste."""
        return len(self.people) == 1

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def summarise(
    judgements: Sequence[Judgement],
    known: Container[str],
    *,
    cap: float = 1.0,
    regenerations: int = 0,
    edits: int = 0,
    seed: int = 0,
) -> Summary:
    """Count and check judgements.

    Args:
        judgements: all there are.
        known: ids that the version before has learnt from or kept back.
        cap: greatest share of the weight of the rankings that one person can have.
        regenerations, edits: of the database's conversations.
        seed: of the interval.
    """
    counts = Counter[str](each.kind for each in judgements)
    ranked = [each for each in judgements if each.kind in RANKED]
    pairs = sum(_pairs(each.ranks) for each in ranked)
    demonstrations = sum(each.kind in DEMONSTRATED for each in judgements)
    people = Counter(each.person for each in judgements if each.person and each.kind != "prompt")
    seen = Counter(each.said for each in judgements)
    too_little = []
    if pairs < ENOUGH["rankings"]:
        missing = ENOUGH["rankings"] - pairs
        too_little.append(
            f"{pairs:,} compared pairs are few: about {missing:,} more, and the reward model can "
            "be told from chance"
        )
    if demonstrations < LEAST["demonstrations"]:
        too_little.append(
            f"{demonstrations:,} demonstrations and better answers: SFT needs "
            f"{LEAST['demonstrations']}, and is left out"
        )
    if counts["thumb"] and not pairs:
        too_little.append(
            f"{counts['thumb']:,} thumbs and no ranking: a thumb is of one response, and says not "
            "which of two is better; it helps a reward model that rankings train, and trains none"
        )
    elif ranked and not pairs:
        too_little.append("every ranking is a tie: nothing says which of two responses is better")
    prompts = len(prompts_of(judgements))
    if prompts < ENOUGH["prompts"]:
        too_little.append(f"{prompts:,} prompts are few: PPO wants {ENOUGH['prompts']} or more")
    return Summary(
        {kind: counts[kind] for kind in (*RANKED, "demonstration", "thumb", "prompt")}
        | {"regeneration": regenerations, "edit": edits},
        dict(people.most_common()),
        sum(each.id not in known for each in judgements),
        _agreement(ranked, seed),
        pairs,
        sum(count - 1 for count in seen.values()),
        _bursts(judgements),
        _capped(Counter(each.person for each in ranked), cap),
        _above_cap(Counter(each.person for each in judgements if each.kind in DEMONSTRATED), cap),
        _above_cap(Counter(person for person, _ in prompts_of(judgements)), cap, LEAST_PROMPTS),
        tuple(too_little),
    )


def _pairs(ranks: Sequence[int]) -> int:
    """Pairs of responses of different ranks."""
    sizes = Counter(ranks).values()
    count = len(ranks)
    return (count * count - sum(size * size for size in sizes)) // 2


def _agreement(ranked: Sequence[Judgement], seed: int) -> Interval | None:
    """Agreement of different people on the same responses to the same prompt."""
    found: dict[bytes, dict[str, list[int]]] = defaultdict(dict)
    for each in ranked:
        order = sorted(range(len(each.responses)), key=lambda place: each.responses[place])
        key = msgspec.json.encode([each.prompt, [each.responses[place] for place in order]])
        found[key][each.person or each.id] = [each.ranks[place] for place in order]
    return pairwise_agreement([list(by.values()) for by in found.values() if len(by) > 1], seed)


def _capped(counts: Mapping[str, int], cap: float) -> dict[str, tuple[float, float]]:
    """People whose rankings count for less than their number, and both shares."""
    lowered = cap_weights({name: float(count) for name, count in counts.items()}, cap)
    before, after = sum(counts.values()), sum(lowered.values())
    return {
        name: (count / before, lowered[name] / after)
        for name, count in counts.items()
        if name and lowered[name] < count * (1 - 1e-9)
    }


def _above_cap(counts: Mapping[str, int], cap: float, least: int = 0) -> dict[str, int]:
    """People with more rows than count, and how many more."""
    kept = cap_counts(counts, cap, least)
    above = {name: count - kept[name] for name, count in counts.items()}
    return {name: count for name, count in above.items() if name and count > 0}


def _bursts(judgements: Sequence[Judgement]) -> dict[str, int]:
    """People with more judgements in a minute than anybody reads, and how many."""
    moments: dict[str, list[float]] = defaultdict(list)
    for each in judgements:
        if each.person and each.created and each.kind != "prompt":
            moments[each.person].append(each.created)
    found = {}
    for person, times in moments.items():
        times.sort()
        first, most = 0, 0
        for last, moment in enumerate(times):
            while moment - times[first] > BURST_SECONDS:
                first += 1
            most = max(most, last - first + 1)
        if most >= BURST_COUNT:
            found[person] = most
    return found
