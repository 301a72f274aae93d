"""Stage `data` of a round: judgements are frozen and divided into what each stage learns from.

Three sides are kept apart: ``train`` (SFT, reward model, PPO), ``judge`` (a judge trained apart
from the reward model) and ``held_out`` (gates). A judgement stays on its side in every later
round: the sides of earlier rounds are read first. New judgements are divided by the person who
asked, or, where nobody here asked or few people did, by how their dialogue begins. So a labeler may
judge prompts of all sides, as labelers of InstructGPT did. What would stand on two sides by its
prompt is left out on the side that is needed less.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

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
from lmsmith.corpus.judgements import DEMONSTRATED, RANKED, Judgement
from lmsmith.corpus.rows import Conversation, Ranking
from lmsmith.corpus.splits import opening_key, split_of
from lmsmith.runs.stage_folder import StageFolder

Side = Literal["train", "judge", "held_out"]
SIDES: tuple[Side, ...] = ("held_out", "judge", "train")
"""The most needed first: a prompt on two sides stays on the first of them."""

FROZEN_FILE, RELIABILITY_FILE = "judgements.jsonl", "reliability.json"
SIDES_FILE, SNAPSHOT_FILE = "sides.jsonl", "snapshot.json"

_encode = msgspec.json.encode

GOLD_PRIOR = (3.0, 1.0)
"""Right and wrong gold answers that a labeler is credited with before the first."""


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
    """Greatest share of the weight of a kind of judgement that one person can have; with few
    people, an equal share."""
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
    written = demonstrations_of(train)
    demonstrations = capped(written, config.person_cap)
    left_out = dict(divided.left_out)
    if above := len(written) - len(demonstrations):
        share = f"one person's share of {config.person_cap:.0%}"
        left_out[f"demonstrations above {share} (rankings above it weigh less instead)"] = above
    for reason, count in left_out.items():
        out.progress.say(f"{out.name}: left out: {count:,} {reason}")
    conversations = {
        "demonstrations": [each for _, each in demonstrations],
        "validation": [each for _, each in demonstrations_of(held_out)],
        "prompts": prompts_of(train),
        "test": prompts_of(held_out),
    }
    counts = {name: len(rows) for name, rows in conversations.items()}
    for name, rows in conversations.items():
        write_jsonl(out / f"{name}.jsonl", (each.row() for each in rows))
    for name, side in (("reward", train), ("judge", judge), ("held_out", held_out)):
        weights = weights_of([each for each in side if each.kind in RANKED], config, reliability)
        ranked = [ranking_row(each, weights[each.id]) for each in side if each.kind in RANKED]
        weights = weights_of([each for each in side if each.kind == "thumb"], config, reliability)
        thumbs = [thumb_row(each, weights[each.id]) for each in side if each.kind == "thumb"]
        parts = {"test": ranked} if name == "held_out" else _parts(ranked, config.validation)
        for part, rows in (*parts.items(), ("thumbs", thumbs)):
            write_jsonl(out / name / f"{part}.jsonl", rows)
            counts[f"{name}/{part}"] = len(rows)
    sides = {
        each.id: (side, divided.openings[each.id]) for side in SIDES for each in divided.sides[side]
    }
    write_jsonl(
        out / SIDES_FILE,
        (
            {"id": name, "side": side, "opening": opening}
            # What is not here today, since it is excluded or in another file, may come back.
            for name, (side, opening) in (earlier | sides).items()
        ),
    )
    write_json(
        out / SNAPSHOT_FILE,
        {
            "sha256": sha256_file(frozen / FROZEN_FILE),
            "counts": counts,
            "people": people,
            "by": divided.by,
            "left_out": left_out,
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
    atomic_write(folder / FROZEN_FILE, b"".join(_encode(each) + b"\n" for each in rows))
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
    first: dict[str, Side] = {}
    for name, side in chosen.items():
        opening = openings[name]
        first[opening] = min(first.get(opening, side), side, key=SIDES.index)
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


def prompts_of(judgements: Iterable[Judgement]) -> list[Conversation]:
    """Every prompt that people sent or judged, each text once."""
    found: dict[bytes, Conversation] = {}
    for each in judgements:
        row = Conversation(f"{each.id}/prompt", each.prompt)
        found.setdefault(_encode(each.prompt), row)
    return list(found.values())


def capped(rows: Sequence[tuple[str, Conversation]], cap: float) -> list[tuple[str, Conversation]]:
    """Rows of which no person has more than the share ``cap``; those left out are chosen by hash.

    Rows of nobody are not limited.
    """
    counts = Counter(person for person, _ in rows)
    limits = cap_weights({name: float(count) for name, count in counts.items()}, cap)
    by_person: dict[str, list[str]] = defaultdict(list)
    for person, each in sorted(rows, key=lambda row: fingerprint(row[1].id)):
        by_person[person].append(each.id)
    kept = {
        name
        for person, ids in by_person.items()
        for name in ids[: max(1, int(limits[person] + 1e-9))]
    }
    return [row for row in rows if row[1].id in kept]


def cap_weights(weights: Mapping[str, float], cap: float) -> dict[str, float]:
    """Weights of people, lowered until none has more than the share ``cap`` of the sum.

    The name "" stands for nobody and is not lowered. With fewer people than 1/cap, and nobody
    else, the cap is an equal share.
    """
    found = dict(weights)
    people = sorted((name for name in found if name), key=lambda name: -found[name])
    share = max(cap, 1 / max(1, len(found)))
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


def weights_of(
    judgements: Sequence[Judgement],
    config: SnapshotConfig,
    reliability: Mapping[str, Sequence[float]],
) -> dict[str, float]:
    """Id → weight: 1 on average, by the labeler's reliability, capped by person.

    A labeler who orders gold pairs rightly with probability q weighs 2q − 1, the share of their
    judgements that is not chance; q is (right + 3) / (answered + 4).
    """
    raw = {}
    for each in judgements:
        right, answered = reliability.get(each.person, (0.0, 0.0))
        q = (right + GOLD_PRIOR[0]) / (answered + sum(GOLD_PRIOR))
        raw[each.id] = max(0.0, 2 * q - 1)
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


def _parts(rows: Sequence[dict[str, Any]], validation: float) -> dict[str, list[dict[str, Any]]]:
    """Training and validation rows; a prompt's stand in one of the two."""
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for row in rows:
        key = f"{opening_key(row['prompt'])} validation"
        parts[split_of(key, {"validation": validation}) or "train"].append(row)
    return parts
