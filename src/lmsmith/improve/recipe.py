"""The stages of a round and their settings, and which of them have something to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from lmsmith.core.recipe import Recipe, load_recipe
from lmsmith.core.settings import Setting, describe_settings
from lmsmith.corpus.judgements import DEMONSTRATED, RANKED, Judgement
from lmsmith.improve.gates import GatesConfig
from lmsmith.improve.snapshot import Side, SnapshotConfig, divide, trust
from lmsmith.improve.summary import LEAST
from lmsmith.stages.table import Stage

RECIPE = Path(__file__).with_name("round.toml")
"""The round that is run where no recipe is named."""

_MODEL = ("model/*",)

ROUND: tuple[Stage, ...] = (
    Stage("data", "lmsmith.improve.snapshot", "SnapshotConfig", format=2),
    Stage("base", "lmsmith.stages.base", "BaseConfig", format=2),
    Stage(
        "pretrain",
        "lmsmith.improve.mixture",
        "MixtureConfig",
        needs={"data": "data", "base": "base"},
        reads={"data": ("demonstrations.jsonl",), "base": _MODEL},
    ),
    Stage(
        "sft",
        "lmsmith.stages.sft",
        "SFTConfig",
        needs={"data": "data", "base": "base"},
        reads={"data": ("demonstrations.jsonl", "validation.jsonl"), "base": _MODEL},
    ),
    Stage("previous_reward", "lmsmith.improve.previous_reward", "PreviousRewardConfig"),
    Stage(
        "reward",
        "lmsmith.improve.reward",
        "RewardConfig",
        needs={"data": "data", "base": ("sft", "base")},
        optional={"start": "previous_reward"},
        reads={"data": ("reward/*",), "base": _MODEL, "start": _MODEL},
    ),
    Stage(
        "ppo",
        "lmsmith.stages.ppo",
        "PPOConfig",
        needs={"data": "data", "policy": ("sft", "base"), "reward": "reward"},
        optional={"pretrain": "pretrain"},
        reads={
            "data": ("prompts.jsonl",),
            "policy": _MODEL,
            "reward": _MODEL,
            "pretrain": ("shards/*", "mixture.json"),
        },
    ),
    Stage(
        "judge",
        "lmsmith.improve.reward",
        "RewardConfig",
        needs={"data": "data", "base": "base"},
        reads={"data": ("judge/*",), "base": _MODEL},
    ),
    Stage(
        "gates",
        "lmsmith.improve.gates",
        "GatesConfig",
        format=2,
        needs={"data": "data", "base": "base"},
        optional={name: name for name in ("sft", "reward", "ppo", "judge")},
        reads={
            "data": ("test.jsonl", "held_out/*"),
            **dict.fromkeys(("base", "sft", "reward", "ppo", "judge"), _MODEL),
        },
    ),
)
"""The stages of a round; what has nothing to learn from is left out."""


def round_recipe(path: str = "", overrides: Sequence[str] = ()) -> Recipe:
    """Read and check the recipe of a round.

    Raises:
        UserError: no such file, or the list of all problems in it.
    """
    given = ("base", "pretrain", "previous_reward")  # by the round; there is nothing to choose
    types = {stage.name: stage.config_type() for stage in ROUND if stage.name not in given}
    recipe = load_recipe(path or str(RECIPE), overrides, types)
    added = {stage.name: stage.config_type()() for stage in ROUND if stage.name in given}
    return replace(recipe, stages=recipe.stages | added, words=())


def without(recipe: Recipe, people: Sequence[str]) -> Recipe:
    """The recipe with more people excluded, by their ids."""
    if not people:
        return recipe
    data = data_of(recipe)
    excluded = tuple(dict.fromkeys((*data.exclude, *people)))
    return replace(recipe, stages=recipe.stages | {"data": replace(data, exclude=excluded)})


def round_settings() -> list[Setting]:
    """Every setting of a round, under ``improve.``, with the values of the shipped recipe."""
    recipe = round_recipe()
    found: list[Setting] = []
    for stage in ROUND:
        defaults = recipe.stages[stage.name]
        found += describe_settings(stage.config_type(), f"improve.{stage.name}", defaults)
    return found


def data_of(recipe: Recipe) -> SnapshotConfig:
    """Settings of the stage ``data``."""
    return cast(SnapshotConfig, recipe.stages["data"])


def gates_of(recipe: Recipe) -> GatesConfig:
    """Settings of the stage ``gates``."""
    return cast(GatesConfig, recipe.stages["gates"])


def stages_with_data(
    recipe: Recipe,
    judgements: Sequence[Judgement],
    earlier: Mapping[str, Any],
    reliability: Mapping[str, Sequence[float]] | None = None,
) -> tuple[str, ...]:
    """The stages of the recipe that have something to learn from, in their order.

    Args:
        recipe: of the round.
        judgements: all there are.
        earlier: sides of earlier rounds.
        reliability: person → gold pairs answered rightly, and all: rankings of those who are no
            better than chance are not learnt from.
    """
    config: Any = recipe.stages["data"]
    sides = divide(sorted(judgements, key=lambda each: each.id), config, earlier).sides

    chance = {person for person, gold in (reliability or {}).items() if not trust(gold)}

    def decided(side: Side) -> int:  # a tie puts nothing in an order
        ranked = (each for each in sides[side] if each.kind in RANKED)
        return sum(len(set(each.ranks)) > 1 and each.person not in chance for each in ranked)

    missing = set()
    demonstrated = sum(each.kind in DEMONSTRATED for each in sides["train"])
    if demonstrated < LEAST["demonstrations"]:
        missing |= {"sft", "pretrain"}
    if decided("train") < LEAST["rankings"]:
        missing |= {"reward", "previous_reward", "ppo"}
    if decided("judge") < LEAST["rankings"]:
        missing |= {"judge"}
    return tuple(each.name for each in ROUND if each.name in {*recipe.stages} - missing)
