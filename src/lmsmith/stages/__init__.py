"""The table of stages: from raw text to an aligned chat model, in the order they run.

Nothing here imports a stage's module before it is needed, so that the table costs nothing.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmsmith.core.config import Problem, SettingsError, unknown_key
from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig, Recipe, load_recipe, recipe_text
from lmsmith.core.settings import Setting, describe_settings
from lmsmith.runs.stage_folder import StageFolder

StageFunction = Callable[[Any, Mapping[str, Path], StageFolder], dict[str, float]]
"""``run(config, inputs, out) -> metrics``: what every stage's module has."""


@dataclass(frozen=True)
class Stage:
    """A stage's name, where its code is, and which stages' folders it reads.

    Attributes:
        name: of the recipe's table and of the folder.
        module: has ``run(config, inputs, out) -> metrics`` and the settings' dataclass.
        config: the name of that dataclass.
        needs: role → stage whose folder is handed to ``run`` under that role, or a choice of
            stages, one of which a recipe has.
        optional: the same, for stages that a recipe may leave out.
        reads: role → patterns of the files that are read in that stage's folder; all of them where
            none are given. Only when one of these changes does the stage run again.
        format: raised when the code changes what the stage makes from the same settings, so
            that folders made before are made again.
    """

    name: str
    module: str
    config: str
    needs: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    format: int = 1

    def config_type(self) -> type[Any]:
        """The dataclass of the stage's settings."""
        found: type[Any] = getattr(importlib.import_module(self.module), self.config)
        return found

    def function(self) -> StageFunction:
        """The stage itself."""
        found: StageFunction = importlib.import_module(self.module).run
        return found

    def patterns(self, role: str) -> tuple[str, ...]:
        """Patterns of the files that the stage reads from the input of that role."""
        return self.reads.get(role, ("*",))

    def inputs(self, present: Mapping[str, object]) -> dict[str, str]:
        """Role → stage, for a recipe whose stages are ``present``."""
        chosen = {role: name for role, name in self.optional.items() if name in present}
        for role, names in self.needs.items():
            choice = (names,) if isinstance(names, str) else names
            chosen[role] = next((name for name in choice if name in present), choice[0])
        return {role: chosen[role] for role in (*self.needs, *self.optional) if role in chosen}


FIRST_MODEL = ("pretrain", "base")
"""What fine-tuning begins with: a model pretrained here, or one that was there before."""

_MODEL = ("model/*",)

STAGES: tuple[Stage, ...] = (
    Stage("data", "lmsmith.stages.data", "DataConfig"),
    Stage(
        "tokenizer",
        "lmsmith.stages.tokenizer",
        "TokenizerConfig",
        needs={"data": "data"},
        reads={"data": ("*documents.jsonl",)},
    ),
    Stage(
        "pretrain",
        "lmsmith.stages.pretrain",
        "PretrainConfig",
        needs={"data": "data", "tokenizer": "tokenizer"},
        reads={"data": ("documents.jsonl", "validation_documents.jsonl", "mixture.json")},
        format=3,
    ),
    Stage("base", "lmsmith.stages.base", "BaseConfig", format=2),
    Stage(
        "sft",
        "lmsmith.stages.sft",
        "SFTConfig",
        needs={"data": "data", "base": FIRST_MODEL},
        reads={"data": ("demonstrations.jsonl", "validation.jsonl"), "base": _MODEL},
        format=2,
    ),
    Stage(
        "rankings",
        "lmsmith.stages.rankings",
        "RankingsConfig",
        needs={"data": "data", "policy": "sft"},
        reads={"data": ("rankings.jsonl", "comparisons.jsonl", "test.jsonl"), "policy": _MODEL},
        format=4,
    ),
    Stage(
        "reward",
        "lmsmith.stages.reward",
        "RewardConfig",
        needs={"rankings": "rankings", "base": "sft"},
        reads={"rankings": ("train.jsonl", "validation.jsonl"), "base": _MODEL},
        format=3,
    ),
    Stage(
        "ppo",
        "lmsmith.stages.ppo",
        "PPOConfig",
        needs={"data": "data", "policy": "sft", "reward": "reward"},
        optional={"pretrain": "pretrain"},
        reads={
            "data": ("prompts.jsonl",),
            "policy": _MODEL,
            "reward": _MODEL,
            "pretrain": ("shards/*", "mixture.json"),
        },
        format=4,
    ),
    Stage(
        "judge_rankings",
        "lmsmith.stages.rankings",
        "RankingsConfig",
        needs={"data": "data", "policy": "sft"},
        reads={"data": ("judge.jsonl", "test.jsonl"), "policy": _MODEL},
        format=3,
    ),
    Stage(
        "judge",
        "lmsmith.stages.reward",
        "RewardConfig",
        needs={"rankings": "judge_rankings", "base": FIRST_MODEL},
        reads={"rankings": ("train.jsonl", "validation.jsonl"), "base": _MODEL},
        format=3,
    ),
    Stage(
        "evaluate",
        "lmsmith.stages.evaluate",
        "EvaluateConfig",
        needs={"data": "data", "sft": "sft"},
        optional={
            "pretrain": "pretrain",
            "base": "base",
            "rankings": "rankings",
            "reward": "reward",
            "ppo": "ppo",
            "judge_rankings": "judge_rankings",
            "judge": "judge",
        },
        reads={
            "data": ("test.jsonl", "test_documents.jsonl"),
            "ppo": ("model/*", "snapshots/*"),
            **dict.fromkeys(("sft", "pretrain", "base", "reward", "judge"), _MODEL),
            **dict.fromkeys(("rankings", "judge_rankings"), ("test.jsonl",)),
        },
        format=4,
    ),
)


def recipe_settings(key: str = "") -> list[Setting]:
    """Every setting of a recipe, or those of a stage, of a table within it, or one by its key.

    Raises:
        UserError: there is no such stage or key; with the nearest that there is.
    """
    found = [
        Setting("description", "text in quotes", '""', "", "What the recipe makes, in a line."),
        Setting("seed", "a whole number", "0", "", "Seed of all chance: data, weights, samples."),
        *describe_settings(MachineConfig, "machine"),
    ]
    for stage in STAGES:
        found += describe_settings(stage.config_type(), stage.name)
    if not key:
        return found
    chosen = [each for each in found if each.key == key or each.key.startswith(f"{key}.")]
    if not chosen:
        names = [each.key for each in found]
        near = difflib.get_close_matches(key, [*names, *(each.name for each in STAGES)], 1)
        renamed = unknown_key(key, "", names).fix if "." in key else ""
        fix = f"did you mean {near[0]}?" if near and "write" not in renamed else renamed
        raise UserError(f"{key}: no such stage or key", fix or "lmsmith recipes settings lists all")
    return chosen


def load_stage_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = (), stages: Sequence[Stage] = STAGES
) -> Recipe:
    """Read and check a recipe made of these stages.

    Raises:
        UserError: no such recipe, not TOML, or the list of all problems in it.
    """
    recipe_text(name_or_path)  # no such recipe is said at once, before torch is imported
    recipe = load_recipe(
        name_or_path,
        overrides,
        {stage.name: stage.config_type() for stage in stages},
        {stage.name: tuple(stage.needs.values()) for stage in stages},
    )
    coefficient = getattr(recipe.stages.get("ppo"), "ptx_coefficient", 0)
    if coefficient and "pretrain" not in recipe.stages:
        problem = Problem(
            "ppo.ptx_coefficient",
            coefficient,
            "PPO-ptx reads the text of the stage pretrain, but the recipe has no such stage",
            "set it to 0",
        )
        raise SettingsError([problem], str(name_or_path))
    return recipe
