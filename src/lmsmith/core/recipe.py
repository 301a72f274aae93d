"""A recipe: one TOML file that says how to make a model, a table for every stage."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

from lmsmith.core.config import (
    MISSING,
    MOST_TOML,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    SettingsError,
    apply_overrides,
    decode,
    describe_type,
    encode,
    parse_toml,
    setting_keys,
    unknown_key,
)
from lmsmith.core.errors import UserError
from lmsmith.core.files import is_there, missing, read_text

DeviceName = Literal["auto", "cpu", "cuda", "mps"]

DEVICE_VARIABLE = "LMSMITH_DEVICE"
"""Environment variable that says what ``machine.device = "auto"`` stands for."""

Need = str | tuple[str, ...]
"""A stage that another needs, or a choice of stages, exactly one of which it needs."""


@dataclass(frozen=True)
class MachineConfig:
    """Use of the machine; only ``precision`` and ``device`` change the results, by rounding."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of matrix products. auto: bf16 where the chip multiplies it, else fp32; for
    chat, generate and serve, the faster one here (``lmsmith doctor`` shows what was measured)."""
    device: DeviceName = "auto"
    """Where models compute. auto: the GPU by CUDA if there is one, else the processor; the
    environment variable LMSMITH_DEVICE says it for every command."""
    compile: Literal["auto", "on", "off"] = "auto"
    """auto: compile where a C++ compiler is there and compiling pays within the run."""
    threads: NonNegativeInt = 0
    """CPU threads; 0 uses all cores."""
    deterministic: bool = True
    """The run is a function of recipe, data and seed, bit for bit."""
    sharding: Literal["auto", "on", "off"] = "auto"
    """With several processes: whether each holds a part of a model's weights, gradients and
    optimiser alone. auto: where all of them take over half of a process's memory."""
    timeout_seconds: PositiveFloat = 600.0
    """Seconds after which a process that does not answer is given up, where there are several; and
    vLLM's server, where it takes weights by NCCL."""
    checkpoint_seconds: NonNegativeFloat = 30.0
    """Seconds between checkpoints: the most work that a kill can cost. 0 saves after every step."""


def device_of_environment() -> str:
    """What `DEVICE_VARIABLE` says; ``auto`` where it says nothing.

    Raises:
        UserError: no device has that name.
    """
    name = os.environ.get(DEVICE_VARIABLE) or "auto"
    if name not in get_args(DeviceName):
        problem = f"{DEVICE_VARIABLE}={name} (or --device {name}): no such device"
        raise UserError(problem, f"give {', '.join(get_args(DeviceName))}")
    return name


@dataclass(frozen=True)
class GenerationConfig:
    """Engine of the responses that stages draw: rollouts of PPO, candidates, evaluation."""

    engine: Literal["lmsmith", "vllm"] = "lmsmith"
    """``lmsmith`` (this process) or ``vllm`` (a server of vLLM's that gets every new policy)."""
    vllm_python: str = ""
    """Python of the environment where vLLM is installed, which starts the server. Empty: the
    environment variable LMSMITH_VLLM_PYTHON, else this Python."""
    vllm_url: str = ""
    """Address of a running server, such as http://127.0.0.1:8000, in place of starting one. It must
    run with VLLM_SERVER_DEV_MODE=1, and read the files of this machine or take weights by NCCL."""
    vllm_options: tuple[str, ...] = ()
    """More options of the server that is started, such as --tensor-parallel-size=8."""
    vllm_transfer: Literal["auto", "files", "nccl"] = "auto"
    """Way of whole weights to the server: ``files`` that it reads, or ``nccl`` from GPU to GPU.
    auto: NCCL where a server is started on free GPUs, or a running one was started for NCCL.
    Adapters are always files."""
    vllm_memory: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.3
    """Share of the memory (of the GPU, or of the machine) that the server takes."""
    vllm_requests: PositiveInt = 128
    """Maximum number of responses in progress."""
    vllm_start_seconds: PositiveFloat = 900.0
    """Seconds after which a server that is not ready is given up."""


@dataclass(frozen=True)
class Recipe:
    """A recipe read and checked: ``stages`` maps a stage's name to its settings' dataclass.

    ``words`` are those of the command line that read it, ``--set`` included.
    """

    name: str
    description: str
    seed: int
    machine: MachineConfig = field(default_factory=MachineConfig)
    stages: dict[str, object] = field(default_factory=dict)
    words: tuple[str, ...] = field(default=(), compare=False)
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def as_dict(self) -> dict[str, object]:
        """The resolved recipe, every default written out, as plain JSON-able values."""
        return {
            "name": self.name,
            "description": self.description,
            "seed": self.seed,
            "machine": encode(self.machine),
            "generation": encode(self.generation),
            **{name: encode(settings) for name, settings in self.stages.items()},
        }


CORPORA = "corpus"
"""Kind of the recipes that ``lmsmith corpus build`` reads."""


def shipped_recipes(kind: str = "") -> dict[str, str]:
    """The recipes that come with the package: name → TOML text, by name.

    Args:
        kind: that of ``lmsmith run`` if it is empty, else `CORPORA`.
    """
    files = (resources.files("lmsmith") / "recipes" / kind).iterdir()
    texts = {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in files
        if file.name.endswith(".toml")
    }
    return dict(sorted(texts.items()))


def recipe_text(name_or_path: str | Path, kind: str = "") -> tuple[str, str]:
    """(name, TOML text) of a shipped recipe or of a file; UserError if it cannot be read.

    ``kind`` is that of `shipped_recipes`.
    """
    text = str(name_or_path)
    shipped = shipped_recipes(kind)
    if text in shipped:
        return text, shipped[text]
    path = Path(text)
    if path.is_file():
        return path.stem, read_text(path, MOST_TOML)
    if not kind and text in shipped_recipes(CORPORA):
        fix = f"Build it: lmsmith corpus build {text}"
        raise UserError(f"{text}: the recipe of a corpus, not of a run", fix)
    raise _no_such_recipe(text, list(shipped))


def _no_such_recipe(text: str, shipped: list[str]) -> UserError:
    near = difflib.get_close_matches(Path(text).stem, shipped, n=1)
    question = f"Did you mean {near[0]}? " if near else ""
    if Path(text).is_dir():
        problem = f"{text}: is a folder, and a recipe is a .toml file or a shipped name"
    elif text.endswith(".toml") or "/" in text:
        problem = missing(text, "no such recipe file")
    else:
        problem = f"{text}: no recipe of that name"
    fix = f"{question}Shipped recipes: {', '.join(shipped)}. Or name a .toml file"
    return UserError(problem, f"{fix} (lmsmith recipes cp).")


def load_recipe(
    name_or_path: str | Path,
    overrides: Sequence[str],
    registry: Mapping[str, type],
    needs: Mapping[str, Sequence[Need]] | None = None,
) -> Recipe:
    """Read a recipe, put the overrides in and check all of it before anything heavy starts.

    Args:
        name_or_path: a shipped recipe, or a TOML file; paths in it are relative to its folder.
        overrides: ``"stage.key=value"`` each; a path in them is as one in the recipe.
        registry: stage name → dataclass of its settings, in the order stages run.
        needs: stage name → the stages that must be in a recipe that has it.

    Raises:
        UserError: no such recipe, not TOML, or the list of all problems in it.
    """
    name, text = recipe_text(name_or_path)
    written = parse_toml(text, name_or_path)
    tables = apply_overrides(written, overrides)
    folder = "" if str(name_or_path) in shipped_recipes() else str(Path(name_or_path).parent)
    recipe, problems = _decode_recipe(name, tables, registry, folder)
    problems += _missing_stages(tables, registry, needs or {})
    problems += [
        Problem(f"--set {stage}", MISSING, f"the recipe has no stage {stage}", f"add [{stage}]")
        for stage in registry
        if stage in tables and stage not in written
    ]
    if problems:
        raise SettingsError(problems, str(name_or_path))
    place = str(name_or_path) if not folder else str(Path(name_or_path).absolute())
    return replace(recipe, words=(place, *(f"--set={each}" for each in overrides)))


def _decode_recipe(
    name: str, tables: Mapping[str, object], registry: Mapping[str, type], folder: str
) -> tuple[Recipe, list[Problem]]:
    tables_of_all = {"machine": MachineConfig, "generation": GenerationConfig}
    classes = {**tables_of_all, **registry}
    right_keys = ["description", "seed", *classes]
    inside = [
        right for key in classes if key in tables for right in setting_keys(classes[key], key)
    ]
    problems = [
        unknown_key(key, value, right_keys, inside)
        for key, value in tables.items()
        if key not in right_keys
    ]
    for key, kind in (("description", str), ("seed", int)):
        value = tables.get(key, kind())
        if type(value) is not kind:
            problems.append(Problem(key, value, f"must be {describe_type(kind)}"))
    settings: dict[str, object] = {}
    for key, cls in classes.items():
        if key not in tables and key not in tables_of_all:
            continue
        table = tables.get(key, {})
        if not isinstance(table, Mapping):
            problems.append(Problem(key, table, "must be a table", f"write [{key}]"))
            continue
        settings[key], found = decode(cls, table, key)
        settings[key] = _placed(settings[key], folder)
        problems += found or _missing_files(key, settings[key])
    if not any(key in registry for key in tables):
        fix = "add at least one of " + ", ".join(f"[{stage}]" for stage in registry)
        problems.append(Problem("recipe", MISSING, "has no stage", fix))
    machine, generation = (settings.pop(key, None) for key in tables_of_all)
    if problems or not isinstance(machine, MachineConfig):
        return Recipe(name, "", 0), problems
    assert isinstance(generation, GenerationConfig)
    description, seed = str(tables.get("description", "")), tables.get("seed", 0)
    assert isinstance(seed, int)
    return Recipe(name, description, seed, machine, settings, generation=generation), problems


def _placed(settings: Any, folder: str) -> Any:
    """The settings with the recipe's folder, if they name paths that are relative to it."""
    names = {f.name for f in fields(settings)} if settings is not None else set()
    return replace(settings, folder=folder) if "folder" in names else settings


def _missing_files(stage: str, settings: object) -> list[Problem]:
    """Missing ones of the files that the settings name (``external_files() -> list[str]``)."""
    try:
        named: list[str] = getattr(settings, "external_files", list)()
    except UserError as error:
        return [Problem(stage, MISSING, error.problem, error.fix)]
    except OSError as error:  # a name that the system refuses
        return [Problem(stage, MISSING, f"a path cannot be read ({error.strerror})")]
    return [
        Problem(stage, path, "no such file or folder", "check the path")
        for path in named
        if not is_there(path)
    ]


def _missing_stages(
    tables: Mapping[str, object], registry: Mapping[str, type], needs: Mapping[str, Sequence[Need]]
) -> list[Problem]:
    problems: dict[str, Problem] = {}
    for stage in registry:
        for need in needs.get(stage, ()) if stage in tables else ():
            choice = (need,) if isinstance(need, str) else need
            there = [name for name in choice if name in tables]
            names = " or ".join(choice)
            if not there:
                fix = f"add {' or '.join(f'[{name}]' for name in choice)} or remove [{stage}]"
                problems[f"{stage} {names}"] = Problem(
                    stage, MISSING, f"needs the stage {names}", fix
                )
            elif len(there) > 1:
                expected = f"the recipe has {' and '.join(there)}, of which it needs one"
                problems[names] = Problem(there[-1], MISSING, expected, "remove one of them")
    return list(problems.values())
