"""The table of stages: a recipe's parts in the order in which they run.

No stage's module is imported before it is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmsmith.corpus.finished import CORPUS_SHARDS_FILE
from lmsmith.runs.stage_folder import StageFolder

StageFunction = Callable[[Any, Mapping[str, Path], StageFolder], dict[str, float]]
"""``run(config, inputs, out) -> metrics``, which every stage's module has."""


@dataclass(frozen=True)
class Stage:
    """A stage's name, where its code is, and which stages' folders it reads.

    Attributes:
        name: of the recipe's table, and of the folder.
        module: has ``run(config, inputs, out) -> metrics``.
        config: the name of the settings' dataclass in that module.
        needs: role → stage whose folder ``run`` gets under that role, or a choice of stages, one
            of which a recipe has.
        optional: the same, for stages that a recipe may leave out.
        reads: role → patterns of the files that are read in that stage's folder; all if not given.
            Only when one of these changes does the stage run again.
        format: raised when the code changes what the stage makes from the same settings, so
            that folders made before are made again.
        together: whether all processes of a run take part (`lmsmith.training.parallel`); else the
            first alone makes it.
        draws: whether a policy writes responses in it, by the engine of ``generation.engine``.
    """

    name: str
    module: str
    config: str
    needs: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    format: int = 1
    together: bool = False
    draws: bool = False

    def config_type(self) -> type[Any]:
        found: type[Any] = getattr(importlib.import_module(self.module), self.config)
        return found

    def function(self) -> StageFunction:
        found: StageFunction = importlib.import_module(self.module).run
        return found

    def patterns(self, role: str) -> tuple[str, ...]:
        """Patterns of the files that the stage reads from the input of that role."""
        return self.reads.get(role, ("*",))

    def inputs(self, present: Mapping[str, object]) -> dict[str, str]:
        """Role → stage, for a recipe whose stages are ``present``."""
        chosen = {}
        for role, names in self.needs.items():
            choice = (names,) if isinstance(names, str) else names
            chosen[role] = next((name for name in choice if name in present), choice[0])
        return chosen | {role: name for role, name in self.optional.items() if name in present}


FIRST_MODEL = ("pretrain", "base")
"""Fine-tuning begins with one of them: a model pretrained here, or one made before."""

DEMONSTRATIONS = ("data", "flan")
"""Fine-tuning learns from one of them: conversations, or tasks written out as instructions."""

_MODEL = ("model/*",)
_TEXT = ("documents.jsonl", "validation_documents.jsonl", "mixture.json", CORPUS_SHARDS_FILE)
_RANKINGS = ("train.jsonl", "validation.jsonl")

STAGES: tuple[Stage, ...] = (
    Stage("data", "lmsmith.stages.data", "DataConfig"),
    Stage(
        "tokenizer",
        "lmsmith.stages.tokenizer",
        "TokenizerConfig",
        needs={"data": "data"},
        reads={"data": ("*documents.jsonl", CORPUS_SHARDS_FILE)},
    ),
    Stage(
        "pretrain",
        "lmsmith.stages.pretrain",
        "PretrainConfig",
        together=True,
        needs={"data": "data", "tokenizer": "tokenizer"},
        reads={"data": _TEXT},
        format=3,
    ),
    Stage(
        "masked_lm",
        "lmsmith.stages.masked_lm",
        "MaskedLMStageConfig",
        needs={"data": "data", "tokenizer": "tokenizer"},
        optional={"decoder": "pretrain"},
        reads={"data": _TEXT, "decoder": _MODEL},
    ),
    Stage("base", "lmsmith.stages.base", "BaseConfig", format=2),
    Stage("translate", "lmsmith.stages.translate", "TranslateConfig"),
    Stage(
        "finetune",
        "lmsmith.stages.finetune",
        "FinetuneConfig",
        needs={"base": FIRST_MODEL},
        reads={"base": _MODEL},
    ),
    Stage("flan", "lmsmith.stages.flan", "FlanConfig"),
    Stage(
        "sft",
        "lmsmith.stages.sft",
        "SFTConfig",
        together=True,
        needs={"data": DEMONSTRATIONS, "base": FIRST_MODEL},
        reads={"data": ("demonstrations.jsonl", "validation.jsonl"), "base": _MODEL},
        format=2,
    ),
    Stage(
        "zero_shot",
        "lmsmith.stages.zero_shot",
        "ZeroShotConfig",
        needs={"tasks": "flan", "base": FIRST_MODEL, "policy": "sft"},
        reads={"tasks": ("measured/*",), "base": _MODEL, "policy": _MODEL},
    ),
    Stage(
        "distil",
        "lmsmith.stages.distil",
        "DistilConfig",
        needs={"data": "data"},
        optional={name: name for name in ("sft", *FIRST_MODEL)},
        reads={
            "data": (
                "*documents.jsonl",
                "mixture.json",
                CORPUS_SHARDS_FILE,
                *(f"{name}.jsonl" for name in ("demonstrations", "validation", "test")),
            ),
            **dict.fromkeys(("sft", *FIRST_MODEL), _MODEL),
        },
    ),
    Stage("emulator", "lmsmith.stages.emulator", "EmulatorConfig"),
    Stage(
        "offsite",
        "lmsmith.stages.offsite",
        "OffsiteConfig",
        optional={"emulator": "emulator"},
        reads={"emulator": _MODEL},
    ),
    Stage(
        "rankings",
        "lmsmith.stages.rankings",
        "RankingsConfig",
        draws=True,
        together=True,
        needs={"data": "data", "policy": "sft"},
        reads={"data": ("rankings.jsonl", "comparisons.jsonl", "test.jsonl"), "policy": _MODEL},
        format=4,
    ),
    Stage(
        "reward",
        "lmsmith.stages.reward",
        "RewardConfig",
        together=True,
        needs={"rankings": "rankings", "base": "sft"},
        reads={"rankings": _RANKINGS, "base": _MODEL},
        format=3,
    ),
    Stage(
        "ppo",
        "lmsmith.stages.ppo",
        "PPOConfig",
        draws=True,
        together=True,
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
        draws=True,
        together=True,
        needs={"data": "data", "policy": "sft"},
        reads={"data": ("judge.jsonl", "test.jsonl"), "policy": _MODEL},
        format=3,
    ),
    Stage(
        "judge",
        "lmsmith.stages.reward",
        "RewardConfig",
        together=True,
        needs={"rankings": "judge_rankings", "base": FIRST_MODEL},
        reads={"rankings": _RANKINGS, "base": _MODEL},
        format=3,
    ),
    Stage(
        "evaluate",
        "lmsmith.stages.evaluate",
        "EvaluateConfig",
        draws=True,
        together=True,
        needs={"data": "data", "sft": "sft"},
        optional={
            name: name
            for name in (*FIRST_MODEL, "rankings", "reward", "ppo", "judge_rankings", "judge")
        },
        reads={
            "data": ("test.jsonl", "test_documents.jsonl"),
            "ppo": ("model/*", "snapshots/*"),
            **dict.fromkeys(("sft", *FIRST_MODEL, "reward", "judge"), _MODEL),
            **dict.fromkeys(("rankings", "judge_rankings"), ("test.jsonl",)),
        },
        format=4,
    ),
)
