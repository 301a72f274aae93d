"""Stage `data` of a round: judgements are frozen and divided into what each stage learns from.

Three sides are kept apart: ``train`` (SFT, reward model, PPO), ``judge`` (a judge trained apart
from the reward model) and ``held_out`` (gates). A judgement stays on its side in every later
round: the sides of earlier rounds are read first. New judgements are divided by the person who
asked, or, where nobody here asked or few people did, by how their dialogue begins. So a labeler may
judge prompts of all sides, as labelers of InstructGPT did. What would stand on two sides by its
prompt stays on the side of the oldest dialogue that begins so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec

from lmsmith.core.config import NOT_A_SETTING, FractionBelowOne, PositiveInt, Problem
from lmsmith.core.errors import UserError
from lmsmith.core.files import (
    atomic_write,
    fingerprint,
    read_json,
    read_jsonl,
    sha256_file,
    write_json,
    write_jsonl,
)
from lmsmith.corpus.judgements import DEMONSTRATED, RANKED, Judgement, Kind
from lmsmith.corpus.rows import Conversation, Ranking
from lmsmith.corpus.splits import opening_key, split_of
from lmsmith.runs.stage_folder import StageFolder

Side = Literal["train", "judge", "held_out"]
SIDES: tuple[Side, ...] = ("held_out", "judge", "train")
"""The most needed first: a prompt on two sides stays on the first of them."""

FROZEN_FILE, RELIABILITY_FILE = "judgements.jsonl", "reliability.json"
SIDES_FILE, SNAPSHOT_FILE = "sides.jsonl", "snapshot.json"

Row = TypeVar("Row")

_encode = msgspec.json.encode

GOLD_PRIOR = (3.0, 1.0)
"""Right and wrong gold answers that a labeler is credited with before the first."""

NO_BETTER_THAN_CHANCE = "of labelers who order gold pairs no better than chance"

LEAST_PROMPTS = 50
"""So many prompts stay for PPO, even if one person sent most of them."""


@dataclass(frozen=True)
class SnapshotConfig:
    """Which judgements are used and how they are divided."""

    held_out: FractionBelowOne = 0.2
    """Share that only the gates read."""
    judge: FractionBelowOne = 0.25
    """Share that trains the judge, of which nothing else learns."""
    validation: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.1
    """Share of a side's prompts that says when training on it overfits."""
    by_person_from: PositiveInt = 8
    """With so many people who ask, all of a person's dialogues stand on one side; with fewer, all
    that begin alike."""
    person_cap: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.3
    """Greatest share of the weight of a kind of judgement that one person can have, and of PPO's
    prompts, of which 50 stay in any case; with few people, an equal share."""
    exclude: tuple[str, ...] = ()
    """Ids of people whose judgements and prompts are left out."""
    frozen: str = field(default="", metadata=NOT_A_SETTING)
    """Folder of the judgements as they were when the round began."""

    def check(self) -> list[Problem]:
        """Nothing to train on."""
        if self.held_out + self.judge < 1:
            return []
        expected = "held_out and judge leave a share for training"
        return [Problem("held_out", self.held_out, expected, "lower it")]

    def external_files(self) -> list[str]:
        """What was frozen: judgements, labelers' reliability, the sides of earlier rounds."""
        paths = [Path(self.frozen) / name for name in (FROZEN_FILE, RELIABILITY_FILE, SIDES_FILE)]
        return [str(path) for path in paths if path.is_file()]


@dataclass(frozen=True)
class Divided:
    """The judgements of each side, and what was left out.

    Attributes:
        sides: side → judgements, in the order of their ids.
        by: ``person`` or ``prompt``: what new judgements were divided by.
        left_out: reason → count.
        new: judgements that no earlier round has seen.
        openings: id → how the dialogue begins (`opening_key`).
    """

    sides: dict[Side, list[Judgement]]
    by: Literal["person", "prompt"]
    left_out: dict[str, int]
    new: int
    openings: dict[str, str]


def run(config: SnapshotConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Divide and weigh; write a folder a stage (``reward``, ``judge``, ``held_out``), and files."""
    frozen = Path(config.frozen)
    judgements = read_frozen(frozen)
    earlier = read_sides(frozen / SIDES_FILE)
    divided = divide(judgements, config, earlier)
    used = [each for side in SIDES for each in divided.sides[side]]
    people = people_of(used)
    if divided.by == "prompt" and people:
        taste = "one person's taste" if len(people) == 1 else f"the taste of {len(people)} people"
        out.progress.say(
            f"{out.name}: this is {taste}: what is held out are other prompts, not other people"
        )
    path = frozen / RELIABILITY_FILE
    reliability: Any = read_json(path) if path.is_file() else {}
    train, judge, held_out = (divided.sides[side] for side in ("train", "judge", "held_out"))
    written, asked = demonstrations_of(train), prompts_of(train)
    demonstrations = capped(written, config.person_cap)
    prompts = capped(asked, config.person_cap, LEAST_PROMPTS)
    left_out = Counter(divided.left_out)
    share = f"above one person's share of {config.person_cap:.0%}"
    left_out[f"demonstrations {share} (rankings above it weigh less instead)"] = len(written) - len(
        demonstrations
    )
    left_out[f"prompts {share}"] = len(asked) - len(prompts)
    shown = _parts([each for _, each in demonstrations], config.validation, _opening_of_talk)
    conversations = {
        "demonstrations": shown["train"],
        "validation": shown["validation"],
        "prompts": [each for _, each in prompts],
        "test": [each for _, each in prompts_of(held_out)],
    }
    counts = {name: len(rows) for name, rows in conversations.items()}
    for name, talks in conversations.items():
        write_jsonl(out / f"{name}.jsonl", (each.row() for each in talks), private=True)
    for name, side in (("reward", train), ("judge", judge), ("held_out", held_out)):
        ranked, thumbs = (
            _weighed(side, kinds, make, config, reliability, left_out)
            for kinds, make in ((RANKED, ranking_row), (("thumb",), thumb_row))
        )
        parts = {"test": ranked}
        if name != "held_out":
            parts = _parts(ranked, config.validation, _opening_of_row)
        for part, rows in (*parts.items(), ("thumbs", thumbs)):
            write_jsonl(out / name / f"{part}.jsonl", rows, private=True)
            counts[f"{name}/{part}"] = len(rows)
    for reason, count in (+left_out).items():
        out.progress.say(f"{out.name}: left out: {count:,} {reason}")
    sides = {
        each.id: (side, divided.openings[each.id]) for side in SIDES for each in divided.sides[side]
    }
    write_jsonl(
        out / SIDES_FILE,
        (
            {"id": name, "side": side, "opening": opening}
            # What is not here today, since it is excluded or in another file, may come back.
            for name, (side, opening) in (_kept_beside(earlier, sides) | sides).items()
        ),
    )
    write_json(
        out / SNAPSHOT_FILE,
        {
            "sha256": sha256_file(frozen / FROZEN_FILE),
            "counts": counts,
            "people": people,
            "by": divided.by,
            "left_out": dict(+left_out),
            "new": divided.new,
            "excluded": list(config.exclude),
        },
    )
    return {name: float(count) for name, count in counts.items()}


def freeze(
    folder: Path,
    judgements: Iterable[Judgement],
    reliability: Mapping[str, Sequence[float]],
    earlier: Path | None = None,
) -> int:
    """Write the files that `SnapshotConfig.frozen` names; the number of judgements.

    Args:
        folder: where.
        judgements: all there are.
        reliability: person → gold pairs answered rightly, and all.
        earlier: the ``sides.jsonl`` of the version before.
    """
    rows = sorted(judgements, key=lambda each: each.id)
    write_json(folder / RELIABILITY_FILE, {name: list(each) for name, each in reliability.items()})
    if earlier is not None and earlier.is_file():
        atomic_write(folder / SIDES_FILE, earlier.read_bytes())
    atomic_write(
        folder / FROZEN_FILE, b"".join(_encode(each) + b"\n" for each in rows), private=True
    )
    return len(rows)


def read_frozen(folder: Path) -> list[Judgement]:
    """The judgements that were frozen, in the order of their ids.

    Raises:
        UserError: a row is no judgement.
    """
    path, decoder = folder / FROZEN_FILE, msgspec.json.Decoder(Judgement)
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            found.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise UserError(f"{path}, line {number}: no judgement ({error})") from error
    return found


def read_sides(path: Path) -> dict[str, tuple[Side, str]]:
    """Id of a judgement → its side and opening in earlier rounds; empty if there is no file."""
    rows: list[Any] = [row for _, row in read_jsonl(path)] if path.is_file() else []
    return {row["id"]: (row["side"], row["opening"]) for row in rows}


def _kept_beside(
    earlier: Mapping[str, tuple[Side, str]], now: Mapping[str, tuple[Side, str]]
) -> dict[str, tuple[Side, str]]:
    """The earlier sides; one whose id means another dialogue now keeps its side by its dialogue."""
    return {
        name if name not in now or now[name][1] == opening else f"{name} {opening}": (side, opening)
        for name, (side, opening) in earlier.items()
    }


def known_of(judgements: Iterable[Judgement], earlier: Mapping[str, tuple[Side, str]]) -> set[str]:
    """Ids of judgements that an earlier round had. Another database may give an id to something
    else, so the dialogue must begin as it did."""
    there = ((each, earlier.get(each.id)) for each in judgements)
    return {each.id for each, side in there if side is not None and side[1] == each.opening}


def divide(
    judgements: Sequence[Judgement],
    config: SnapshotConfig,
    earlier: Mapping[str, tuple[Side, str]],
) -> Divided:
    """Each judgement's side.

    Args:
        judgements: all there are, in the order of their ids.
        config: shares, and who is left out.
        earlier: sides of earlier rounds, which stay.
    """
    left_out: Counter[str] = Counter()
    kept: list[Judgement] = []
    seen: set[bytes] = set()
    excluded = set(config.exclude)
    for each in judgements:
        if excluded & set(each.people):
            left_out["of people who are excluded"] += 1
            continue
        key = each.said
        if key in seen:
            left_out["said twice by one person"] += 1
            continue
        seen.add(key)
        kept.append(each)
    askers = {each.asker for each in kept if each.asker}
    by: Literal["person", "prompt"] = "person" if len(askers) >= config.by_person_from else "prompt"
    shares = {"held_out": config.held_out, "judge": config.judge}
    openings = {each.id: each.opening for each in kept}
    known = known_of(kept, earlier)
    chosen: dict[str, Side] = {}
    for each in kept:
        if each.id in known:
            chosen[each.id] = earlier[each.id][0]
        else:
            name = each.asker if by == "person" and each.asker else openings[each.id]
            chosen[each.id] = cast(Side, split_of(name, shares) or "train")
    # What an earlier round trained on stays trained on, also if others judge the prompt again.
    settled: dict[str, Side] = {}
    for side, opening in earlier.values():
        settled[opening] = min(settled.get(opening, side), side, key=SIDES[::-1].index)
    # Of two sides the one whose dialogue is older has the opening, so that nobody can take the
    # judgements of others out of training by saying what they said.
    first: dict[str, Side] = {}
    for each in sorted(kept, key=lambda each: (each.created, SIDES.index(chosen[each.id]))):
        first.setdefault(openings[each.id], chosen[each.id])
    sides: dict[Side, list[Judgement]] = {side: [] for side in SIDES}
    for each in kept:
        side, opening = chosen[each.id], openings[each.id]
        if each.id in known or side == settled.get(opening, first[opening]):
            sides[side].append(each)
        else:
            left_out["the prompt stands on another side"] += 1
    new = sum(each.id not in known for rows in sides.values() for each in rows)
    return Divided(sides, by, dict(left_out), new, openings)


def people_of(judgements: Iterable[Judgement]) -> list[str]:
    """Everybody whose words or opinion they hold, sorted."""
    return sorted({name for each in judgements for name in each.people})


def demonstrations_of(judgements: Iterable[Judgement]) -> list[tuple[str, Conversation]]:
    """(person, conversation) of what people wrote themselves, each text once."""
    found: dict[bytes, tuple[str, Conversation]] = {}
    for each in judgements:
        if each.kind in DEMONSTRATED:
            best = each.responses[each.ranks.index(min(each.ranks))]
            messages = [*each.prompt, {"role": "assistant", "content": best}]
            found.setdefault(_encode(messages), (each.person, Conversation(each.id, messages)))
    return list(found.values())


def prompts_of(judgements: Iterable[Judgement]) -> list[tuple[str, Conversation]]:
    """(who asked, prompt) of what people sent or judged, each text once.

    A prompt of several people is nobody's: it is not limited as one person's.
    """
    found: dict[bytes, tuple[str, Conversation]] = {}
    for each in judgements:
        row = Conversation(f"{each.id}/prompt", each.prompt)
        asker, first = found.setdefault(_encode(each.prompt), (each.asker, row))
        if asker != each.asker:
            found[_encode(each.prompt)] = ("", first)
    return list(found.values())


def capped(
    rows: Sequence[tuple[str, Conversation]], cap: float, least: int = 0
) -> list[tuple[str, Conversation]]:
    """Rows of which no person has more than `cap_counts` allows; those left out are chosen by hash.

    Rows of nobody are not limited.
    """
    limits = cap_counts(Counter(person for person, _ in rows), cap, least)
    by_person: dict[str, list[str]] = defaultdict(list)
    for person, each in sorted(rows, key=lambda row: fingerprint(row[1].id)):
        by_person[person].append(each.id)
    kept = {name for person, ids in by_person.items() for name in ids[: limits[person]]}
    return [row for row in rows if row[1].id in kept]


def cap_counts(counts: Mapping[str, int], cap: float, least: int = 0) -> dict[str, int]:
    """How many rows of each person are kept, so that none has more than the share ``cap``.

    Everybody keeps one. ``least`` rows are kept in all if there are so many, whatever the share.
    """
    lowered = cap_weights({name: float(count) for name, count in counts.items()}, cap)
    kept = {name: max(1, int(limit + 1e-9)) for name, limit in lowered.items()}
    while sum(kept.values()) < min(least, sum(counts.values())):
        fewest = min((name for name in kept if kept[name] < counts[name]), key=kept.__getitem__)
        kept[fewest] += 1
    return kept


def cap_weights(weights: Mapping[str, float], cap: float) -> dict[str, float]:
    """Weights of people, lowered until none has more than the share ``cap`` of the sum.

    The name "" stands for nobody and is not lowered. With fewer people than 1/cap, and nobody
    else, the cap is an equal share.
    """
    found = dict(weights)
    people = sorted((name for name in found if name), key=lambda name: -found[name])
    share = cap if found.get("") else max(cap, 1 / max(1, len(people)))
    for capped in range(1, len(people) + 1):
        rest = sum(weight for name, weight in found.items() if name not in people[:capped])
        if share * capped >= 1:
            limit = min(found[name] for name in people[:capped])
        else:
            # limit = share × (capped × limit + rest)
            limit = share * rest / (1 - share * capped)
        following = found[people[capped]] if capped < len(people) else 0.0
        if limit >= following:
            return found | {name: min(found[name], limit) for name in people[:capped]}
    return found


def trust(gold: Sequence[float]) -> float:
    """Weight of a labeler by the gold pairs that they ordered rightly, and all (`weights_of`)."""
    right, answered = gold
    q = (right + GOLD_PRIOR[0]) / (answered + sum(GOLD_PRIOR))
    return max(0.0, 2 * q - 1)


def weights_of(
    judgements: Sequence[Judgement],
    config: SnapshotConfig,
    reliability: Mapping[str, Sequence[float]],
) -> dict[str, float]:
    """Id → weight: 1 on average, by the labeler's reliability, capped by person.

    A labeler who orders gold pairs rightly with probability q weighs 2q − 1, the share of their
    judgements that is not chance; q is (right + 3) / (answered + 4).
    """
    raw = {each.id: trust(reliability.get(each.person, (0.0, 0.0))) for each in judgements}
    by_person: dict[str, float] = defaultdict(float)
    for each in judgements:
        by_person[each.person] += raw[each.id]
    limits = cap_weights(by_person, config.person_cap)
    factors = {name: limits[name] / total if total else 0.0 for name, total in by_person.items()}
    found = {each.id: raw[each.id] * factors[each.person] for each in judgements}
    total = sum(found.values())
    return {name: value * len(found) / total for name, value in found.items()} if total else found


def ranking_row(each: Judgement, weight: float) -> dict[str, object]:
    """The row of a ranking, as the reward stage reads it."""
    kept = Ranking(each.id, each.prompt, each.responses, each.ranks, each.person, each.kind)
    return kept.row() | {"weight": round(weight, 6)}


def thumb_row(each: Judgement, weight: float) -> dict[str, object]:
    """The row of a thumb: its prompt, the response, and whether it is liked."""
    return {
        "id": each.id,
        "prompt": each.prompt,
        "response": each.responses[0],
        "liked": each.ranks[0] == 1,
        "weight": round(weight, 6),
    }


def _weighed(
    side: Sequence[Judgement],
    kinds: Sequence[Kind],
    make: Callable[[Judgement, float], dict[str, object]],
    config: SnapshotConfig,
    reliability: Mapping[str, Sequence[float]],
    left_out: Counter[str],
) -> list[dict[str, object]]:
    """Rows of a side's judgements of some kinds; those without weight are counted, not written."""
    chosen = [each for each in side if each.kind in kinds]
    weights = weights_of(chosen, config, reliability)
    left_out[NO_BETTER_THAN_CHANCE] += sum(not weights[each.id] for each in chosen)
    return [make(each, weights[each.id]) for each in chosen if weights[each.id]]


def _opening_of_row(row: Mapping[str, Any]) -> str:
    return opening_key(row["prompt"])


def _opening_of_talk(talk: Conversation) -> str:
    return opening_key(talk.messages)


def _parts(
    rows: Sequence[Row], validation: float, opening: Callable[[Row], str]
) -> dict[str, list[Row]]:
    """Training and validation rows; those that begin alike stand in one of the two.

    Rows that would all validate all train.
    """
    parts: dict[str, list[Row]] = {"train": [], "validation": []}
    for row in rows:
        key = f"{opening(row)} validation"
        parts[split_of(key, {"validation": validation}) or "train"].append(row)
    return parts if parts["train"] else {"train": parts["validation"], "validation": []}
