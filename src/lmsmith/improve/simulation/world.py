"""What all seeds of a simulation share: its plan, prompts, and the gold reward model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from lmsmith.catalogue import versions
from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.catalogue.resolve import resolve
from lmsmith.comparison.score import load_reward_model, score_responses
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_json, write_json, write_jsonl
from lmsmith.core.progress import RunProgress
from lmsmith.core.recipe import Recipe
from lmsmith.corpus.rows import Conversation, Ranking, read_conversations, rows_of_split
from lmsmith.corpus.sources import conversations_of, rankings_of
from lmsmith.corpus.splits import opening_key, split_of
from lmsmith.generation.engine import generate
from lmsmith.generation.settings import SamplingSettings
from lmsmith.improve.simulation.labelers import Answered
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.models.heads import ScalarModel
from lmsmith.prompts.selection import PromptAndReply, prompt_room, select_prompts
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.stages import reward
from lmsmith.statistics.intervals import Floats
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine, prepare_process

RECIPE = Path(__file__).with_name("round.toml")
"""The settings of a simulated round, small enough for two cores."""

PER_CONVERSATION = 5
"""Prompts of one conversation."""
HELD_OUT = 0.15
"""Share of the conversations of --data whose prompts only measure."""
ASKED = 4
"""One of so many prompts is for rankings, the others are for votes."""
CURVE_FILE = "gold_length.json"
CURVE_PROMPTS = 1_000
"""Prompts whose answers show how the gold reward depends on length."""
KNOTS = 20


@dataclass(frozen=True)
class Plan:
    """What a simulation is made of; `rounds` and `seeds` may be raised later.

    Attributes:
        model: path of the policy that it begins with.
        gold: path of the gold reward model; empty where it is trained from ``rankings``.
        rankings: files of which the gold reward model is trained.
        data: files of conversations whose prompts are answered; the run's own if empty.
        labelers: how many.
        noise: share of the pairs on which two of them disagree.
        prompts: that labelers rank answers to, in a round.
        answers: to each of these.
        overlap: labelers of each of these.
        votes: most votes on a candidate.
        test_prompts: on which the gold reward of each version is measured.
        gates: whether a candidate that the gates refuse meets no votes (``decide``).
        length_counts: whether labelers judge by the gold reward as it is; else by what an answer's
            length does not explain of it (`LengthCurve`).
    """

    model: str
    gold: str = ""
    rankings: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    labelers: int = 5
    noise: float = 0.27
    prompts: int = 200
    answers: int = 4
    overlap: int = 2
    votes: int = 600
    test_prompts: int = 200
    gates: Literal["decide", "shown"] = "decide"
    length_counts: bool = False

    def check(self) -> None:
        """Raises UserError for a number that is out of range."""
        if not 0 <= self.noise < 0.5:
            raise UserError(
                f"--noise {self.noise:g}: expected 0 up to 0.5, which is chance", "people: 0.27"
            )
        for name, least in (("labelers", 1), ("prompts", 1), ("overlap", 1), ("votes", 1)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {getattr(self, name)}: expected {least} or more")
        if not 2 <= self.answers <= 9:
            raise UserError(f"--answers {self.answers}: expected 2 to 9")
        if self.overlap > self.labelers:
            raise UserError(
                f"--overlap {self.overlap}: more than the {self.labelers} labelers",
                "lower it, or raise --labelers",
            )


def place_of(word: str) -> str:
    """The path of a model: of a version, a run, a folder or a registered name.

    Raises:
        UserError: there is none.
    """
    found = versions.find(word)
    return str((found.path if found else resolve(word).path).absolute())


def place_of_gold(word: str) -> str:
    """The path of a reward model: a folder, or a run, which means its stage judge, else reward.

    Raises:
        UserError: there is none.
    """
    for stage in ("judge", "reward"):
        if (Path(word) / stage / "model/config.json").is_file():
            return str((Path(word) / stage / "model").absolute())
    return str(resolve(word).path.absolute())


def own_gold(model: str) -> str:
    """The judge's model of the run that a model is of; empty if there is none."""
    found = Path(model).parent.parent / "judge/model"
    return str(found) if (found / "config.json").is_file() else ""


class LengthCurve(msgspec.Struct, frozen=True):
    """The median gold reward of answers of so many tokens, between knots a line of log(1 + n).

    A gold reward model that likes brevity makes a simulation of brevity. Subtracting the curve
    leaves what is better or worse than usual at the same length: the longer of two answers is then
    the better one as often as not. (Medians do that. Means do not, where rewards of short answers
    are skewed.)

    Attributes:
        tokens, rewards: the knots; none subtracts nothing.
        explained: the share of the gold reward's variance that the curve explains.
        answers: to which it was fitted.
    """

    tokens: tuple[float, ...] = ()
    rewards: tuple[float, ...] = ()
    explained: float = 0.0
    answers: int = 0

    def of(self, tokens: Sequence[int]) -> Floats:
        """The median gold reward at each number of tokens; beyond the knots that of the last."""
        asked = np.log1p(np.asarray(tokens, np.float64))
        if not self.tokens:
            return np.zeros_like(asked)
        return np.interp(asked, np.log1p(self.tokens), self.rewards)


def fit_length_curve(tokens: Sequence[int], rewards: Sequence[float]) -> LengthCurve:
    """A curve with up to `KNOTS` knots, each the middle of equally many answers.

    Args:
        tokens: of each answer.
        rewards: the gold reward of each.
    """
    lengths, wanted = np.asarray(tokens, np.float64), np.asarray(rewards, np.float64)
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, KNOTS + 1), method="nearest"))
    place = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, max(0, len(edges) - 2))
    parts = [place == number for number in np.unique(place)]
    curve = LengthCurve(
        tuple(float(np.median(lengths[part])) for part in parts),
        tuple(float(np.median(wanted[part])) for part in parts),
        0.0,
        len(tokens),
    )
    spread, rest = float(np.var(wanted)), float(np.var(wanted - curve.of(tokens)))
    return msgspec.structs.replace(curve, explained=1 - rest / spread if spread else 0.0)


@dataclass(frozen=True)
class World:
    """What all seeds share.

    Attributes:
        plan: the settings.
        recipe: of the rounds.
        machine: on which everything runs.
        tokenizer: of the policy.
        gold, gold_tokenizer: the gold reward model.
        curve: what is subtracted from its rewards.
        fresh: prompts that labelers and voters see.
        held_out: prompts that measure, which nobody judges.
        max_new_tokens: of an answer.
    """

    plan: Plan
    recipe: Recipe
    machine: ResolvedMachine
    tokenizer: Tokenizer
    gold: ScalarModel
    gold_tokenizer: Tokenizer
    curve: LengthCurve
    fresh: list[PromptAndReply]
    held_out: list[PromptAndReply]
    max_new_tokens: int

    def score(self, answered: Sequence[Answered]) -> list[list[float]]:
        """The gold reward of each response, its length's share subtracted."""
        found = score_responses(self.gold, self.gold_tokenizer, answered, self.machine)
        lengths = ([len(self.gold_tokenizer.encode(text)) for text in row] for _, row in answered)
        return [
            (np.asarray(row) - self.curve.of(tokens)).tolist()
            for row, tokens in zip(found, lengths, strict=True)
        ]

    @property
    def temperature(self) -> float:
        """Temperature of all answers: that of the rollouts."""
        found: float = getattr(self.recipe.stages["ppo"], "temperature", 1.0)
        return found


def make_world(
    plan: Plan, recipe: Recipe, folder: Path, progress: RunProgress, rounds: int
) -> World:
    machine = prepare_process(recipe.machine)
    read = read_model(plan.model)
    judged = [each for source in plan.rankings for each in rankings_of(source, [])]
    gold = plan.gold
    if not gold:
        gold = str(_train_gold(judged, read, recipe, folder / "gold", progress))
    gold_model, gold_tokenizer = load_reward_model(gold)
    context = read.decoder.config.context
    stage: Any = recipe.stages["ppo"]
    new_tokens = min(stage.max_new_tokens, context // 4)
    room = prompt_room(stage.max_prompt_tokens, new_tokens, context)
    seen = {opening_key(each.prompt) for each in judged}

    def prompts(rows: Iterable[Conversation]) -> list[PromptAndReply]:
        """Prompts whose text and dialogue nothing else has."""
        chosen = select_prompts(
            rows, read.tokenizer, room, most=10**9, per_conversation=PER_CONVERSATION
        )
        found = {
            fingerprint(each.prompt): each
            for each in chosen
            if opening_key(each.prompt) not in seen
        }
        return list(found.values())

    fresh_rows, test_rows = _conversations(plan)
    held_out = prompts(test_rows)[: plan.test_prompts]
    seen |= {opening_key(each.prompt) for each in held_out}
    fresh = prompts(fresh_rows)
    wanted = rounds * plan.prompts
    if len(held_out) < 2 or len(fresh[::ASKED]) < wanted:
        raise UserError(
            f"{len(fresh):,} prompts and {len(held_out):,} test prompts: {rounds} rounds want "
            f"{ASKED * wanted:,} (every {ASKED}th is ranked, the others are for votes)",
            "lower --prompts, or give more conversations: --data",
        )
    world = World(
        plan, recipe, machine, read.tokenizer, gold_model, gold_tokenizer, LengthCurve(), fresh,
        held_out, new_tokens,
    )  # fmt: skip
    if plan.length_counts:
        return world
    path = folder / CURVE_FILE
    if not path.is_file():
        progress.note(
            f"{len(fresh[:CURVE_PROMPTS]):,} answers show what the gold reward makes of length"
        )
        write_json(path, msgspec.to_builtins(_measure_length_curve(world, read.decoder)))
    return replace(world, curve=msgspec.convert(read_json(path), LengthCurve))


def _measure_length_curve(world: World, decoder: Decoder) -> LengthCurve:
    """Answers of the simulation's first version to fresh prompts give the curve."""
    prompts = world.fresh[:CURVE_PROMPTS]
    settings = SamplingSettings(
        max_new_tokens=world.max_new_tokens,
        temperature=world.temperature,
        stop_tokens=world.tokenizer.stop_tokens,
        seed=derive_seed(world.recipe.seed, "length"),
    )
    replies = generate(
        decoder,
        [each.tokens for each in prompts],
        settings,
        machine=world.machine,
        tokenizer=world.tokenizer,
    )
    texts = [world.tokenizer.decode(each).strip() for each in replies]
    answered = [(each.prompt, [text]) for each, text in zip(prompts, texts, strict=True)]
    tokens = [len(world.gold_tokenizer.encode(text)) for text in texts]
    return fit_length_curve(tokens, [row[0] for row in world.score(answered)])


def _conversations(plan: Plan) -> tuple[list[Conversation], list[Conversation]]:
    """Conversations whose prompts are judged, and those that only measure."""
    if not plan.data:
        data = Path(plan.model).parent.parent / "data"
        fresh, held_out = (
            [each for name in names for each in rows_of_split(read_conversations, data / name)]
            for names in (("prompts.jsonl", "comparisons.jsonl"), ("test.jsonl",))
        )
        if fresh and held_out:
            return fresh, held_out
        raise UserError(
            f"{plan.model}: no run with conversations", "name files of conversations: --data"
        )
    sides: dict[str | None, list[Conversation]] = {"held_out": [], None: []}
    for source in plan.data:
        for each in conversations_of(source, Counter()):
            sides[split_of(opening_key(each.messages), {"held_out": HELD_OUT})].append(each)
    return sides[None], sides["held_out"]


def _train_gold(
    judged: Sequence[Ranking],
    read: ReadModel,
    recipe: Recipe,
    folder: Path,
    progress: RunProgress,
) -> Path:
    """Train the gold reward model on rankings of people, beginning with the policy."""
    if not judged:
        raise UserError(
            "no gold reward model: the model is not of a run that has a judge",
            "name one, --gold runs/quickstart/judge, or rankings that train one: --rankings FILE",
        )
    if (folder / "model/config.json").is_file():
        return folder / "model"
    parts: dict[str, list[dict[str, object]]] = {"train": [], "validation": []}
    for each in judged:
        key = f"{opening_key(each.prompt)} validation"
        parts[split_of(key, {"validation": 0.1}) or "train"].append(each.row())
    for name, rows in parts.items():
        write_jsonl(folder / f"rankings/{name}.jsonl", rows)
    save_model(folder / "base/model", read.decoder, read.tokenizer, read.card)
    settings: Any = recipe.stages["judge"]
    out = StageFolder(folder, derive_seed(recipe.seed, "gold"), recipe.machine, progress)
    reward.run(settings, {"rankings": folder / "rankings", "base": folder / "base"}, out)
    return folder / "model"
