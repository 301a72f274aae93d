"""``lmsmith plan``: memory of each GPU, time and cost of a recipe's training, before it runs."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmsmith.core.errors import UserError
from lmsmith.options import documented

if TYPE_CHECKING:
    from lmsmith.core.recipe import Recipe
    from lmsmith.models.config import ModelConfig
    from lmsmith.training.memory import Step, StepMemory

GPT3_BATCHES = {
    "gpt3-125m": 500_000, "gpt3-350m": 500_000, "gpt3-760m": 500_000, "gpt3-1.3b": 1_000_000,
    "gpt3-2.7b": 1_000_000, "gpt3-6.7b": 2_000_000, "gpt3-13b": 2_000_000, "gpt3-175b": 3_200_000,
}  # fmt: skip
"""Tokens of an update (Brown et al. 2020, table 2.1)."""

GPT3_TOKENS = 300_000_000_000
"""Tokens that each of the eight sizes was trained on (section 2.1)."""

LAUNCH_SECONDS = 1e-5
"""What a program in Python takes to start an operation on a GPU, roughly; smaller ones wait."""

GIGABYTE = 1_000_000_000

MOST_MEMORY = 100_000
"""GB of one GPU that ``--memory`` takes."""
"""A GPU of "80 GB" has 7 % more bytes, which its context, NCCL and fragments take."""

SECONDS_A_DAY = 86_400

PLANNED = ("pretrain", "sft", "reward", "judge", "ppo")
"""Stages that train a decoder of the recipe's shape."""

TOKENS_A_PARAMETER = 20
"""Tokens of a shape for which no paper of ours gives them (Hoffmann et al. 2022, table 3)."""

OTHER_VOCABULARY = 50_257
"""Vocabulary size of a recipe that loads a tokenizer: GPT-2's."""


@dataclass(frozen=True)
class Gpus:
    """What is to be paid for.

    Attributes:
        name: as in `lmsmith.device.KNOWN_PEAKS`.
        count: of all machines together.
        memory_bytes: of one.
        peak: operations a second of one, in bf16 products.
    """

    name: str
    count: int
    memory_bytes: int
    peak: float


@dataclass(frozen=True)
class StagePlan:
    """A stage's training.

    Attributes:
        parameters: of the model that is trained.
        rows: of a micro batch on a GPU, each of ``length`` tokens.
        sharded: whether the processes divide weights, gradients and optimiser (FSDP2).
        memory: bytes of a GPU by kind.
        fits: whether they are there.
        fixes: settings with which they would be; empty if none would do.
        gpus_needed: how many of the same GPUs do with all of these settings; 0: no number.
        tokens: trained on in all; 0 where the data says how many.
        tokens_per_second: of all GPUs.
        bound_by: ``peak``, or ``launches`` where starting the operations takes longer than
            computing them at that share: the figure is then rough.
        days, cost: of all tokens.
    """

    stage: str
    parameters: int
    rows: int
    length: int
    sharded: bool
    memory: StepMemory
    fits: bool
    fixes: tuple[str, ...] = ()
    gpus_needed: int = 0
    tokens: int = 0
    tokens_per_second: float | None = None
    bound_by: Literal["", "peak", "launches"] = ""
    days: float | None = None
    cost: float | None = None

    def as_dict(self) -> dict[str, Any]:
        found = dict(vars(self))
        memory = self.memory.by_kind() | {"total": self.memory.total}
        return found | {"memory": memory, "fixes": list(self.fixes)}


@dataclass(frozen=True)
class Plan:
    """A recipe's stages on some GPUs."""

    name: str
    gpus: Gpus
    share: float
    stages: tuple[StagePlan, ...]

    def as_dict(self) -> dict[str, Any]:
        stages = {each.stage: each.as_dict() for each in self.stages}
        return {"name": self.name, "gpus": vars(self.gpus), "share": self.share, "stages": stages}


@documented
def plan(
    recipe: str,
    *,
    gpus: str,
    nodes: int = 1,
    share: float = 0.4,
    price: float = 0.0,
    memory: float = 0.0,
    set: Sequence[str] = (),
) -> Plan:
    """Say what a recipe's training takes of each GPU, whether it fits, how long, and for how much.

    Nothing is trained: the step's own code runs on tensors that have shapes and no numbers. Where
    something does not fit, the settings are named with which it would.

    Args:
        recipe: A shipped recipe, a .toml file, or a model shape by name (lmsmith models presets);
            GPT-3's sizes are trained as in the paper.
        gpus: How many of which on a machine, such as 8xH100.
        nodes: Machines.
        share: Of the GPUs' peak that training reaches; lmsmith doctor --gpu and a run's
            share_of_peak measure it.
        price: What one GPU costs for an hour, in any currency.
        memory: Memory of one GPU, in GB; the data sheet's if left out.
        set: Change a setting, e.g. pretrain.micro_batch_size=4.

    Raises:
        UserError: no such recipe or GPU, or an option out of range.

    >>> lmsmith.plan("gpt3-175b", gpus="8xH100", nodes=64).stages[0].days   # doctest: +SKIP
    """
    chosen = parse_gpus(gpus, nodes, memory)
    if not 0 < share <= 1:
        raise UserError(f"--share {share:g}: above 0, and 1 at most", "0.4 is 40 % of the peak")
    if not 0 <= price < math.inf:
        raise UserError(f"--price {price:g}: 0 or more")
    loaded = recipe_of(recipe, set)
    needs = list(_stages(loaded, chosen))
    if not needs:
        raise UserError(
            f"{recipe}: no stage of it is planned",
            "plan knows pretrain, sft, reward, judge and ppo",
        )
    found = [_planned(loaded, each, chosen, share, price) for each in needs]
    return Plan(loaded.name, chosen, share, tuple(found))


def parse_gpus(text: str, nodes: int = 1, memory: float = 0.0) -> Gpus:
    """``8xH100`` as a number of known GPUs.

    Args:
        memory: of one in GB, in place of the data sheet's.

    Raises:
        UserError: it is of another form, or the GPU is not known.
    """
    from lmsmith.device import KNOWN_MEMORY, KNOWN_PEAKS

    found = re.fullmatch(r"\s*(?:(\d{1,6})\s*[xX×*]\s*)?(\S.*?)\s*", text)
    plain = {_plain(name): name for name in KNOWN_PEAKS}
    name = plain.get(_plain(found[2])) if found else None
    known = ", ".join(KNOWN_PEAKS)
    if found is None or name is None:
        raise UserError(f"--gpus {text}: no such GPU", f"write 8xH100; known are {known}")
    count = int(found[1] or 1) * nodes
    if count < 1:
        raise UserError(f"--gpus {text} --nodes {nodes}: one or more", "write 8xH100 --nodes 2")
    if not 0 <= memory < MOST_MEMORY:
        raise UserError(f"--memory {memory:g}: 0 to {MOST_MEMORY:,} GB")
    size = memory or KNOWN_MEMORY[name]
    return Gpus(name, count, round(size * GIGABYTE), 1e12 * KNOWN_PEAKS[name])


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower().removeprefix("nvidia")


def recipe_of(name: str, settings: Sequence[str]) -> Recipe:
    """A recipe; of a shape's name, one that pretrains it."""
    from lmsmith.core.recipe import load_recipe
    from lmsmith.models.presets import PRESETS
    from lmsmith.stages.pipeline import load_stage_recipe
    from lmsmith.stages.pretrain import PretrainConfig

    if name not in PRESETS:
        return load_stage_recipe(name, settings)
    shape = PRESETS[name].config
    tokens = GPT3_TOKENS if name in GPT3_BATCHES else TOKENS_A_PARAMETER * shape.parameters
    rows = round(GPT3_BATCHES.get(name, 500_000) / shape.context)
    text = (
        f'[pretrain]\noptimiser.name = "adamw"\nmicro_batch_size = 1\ntokens = {tokens}\n'
        f"batch_tokens = {rows * shape.context}\n"
        f'model.preset = "{name}"\nmodel.vocabulary_size = {shape.vocabulary_size}\n'
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.toml"
        path.write_text(text)
        return load_recipe(path, settings, {"pretrain": PretrainConfig})


@dataclass(frozen=True)
class _Need:
    """What a stage computes on one GPU, and what it may change."""

    stage: str
    step: Step
    sharding: str
    models: int = 1
    """Models that are trained together, of the step's shape."""
    frozen: int = 0
    """Bytes of models that are only read, on every GPU."""
    learns: bool = True
    """False: adapters alone."""
    best: bool = True
    cache: int = 0
    tokens: int = 0
    may_shrink: bool = False


def _stages(recipe: Recipe, gpus: Gpus) -> Iterator[_Need]:
    """The training stages of a recipe, in its order."""
    import torch

    from lmsmith.generation.engine import ROWS_AT_ONCE
    from lmsmith.models.batching import ACTIVATION_BYTES, activation_bytes
    from lmsmith.training.memory import WEIGHT_BYTES, Step

    settings: dict[str, Any] = recipe.stages
    shape = _shape(settings)
    if shape is None:
        return
    dtype = torch.float32 if recipe.machine.precision == "fp32" else torch.bfloat16
    plain = Step(shape, 1, shape.context, dtype=dtype)
    sharding = recipe.machine.sharding

    def share(rows: int) -> int:
        return max(1, -(-rows // gpus.count))

    def grouped(rows: int, length: int) -> int:
        """Rows that are computed together where a stage groups them by memory itself."""
        return max(1, min(share(rows), int(ACTIVATION_BYTES // activation_bytes(shape, 1, length))))

    for name in PLANNED:
        if (given := settings.get(name)) is None:
            continue
        length = min(getattr(given, "max_length", 0) or shape.context, shape.context)
        muon = given.optimiser.name == "muon"
        learns = not (hasattr(given, "adapter") and given.adapter.rank)
        step = replace(plain, length=length, muon=muon, checkpointed=given.checkpoint_activations)
        need = _Need(name, step, sharding, learns=learns)
        if name in ("pretrain", "sft"):
            rows = share(given.batch_tokens // length)
            micro = min(rows, given.micro_batch_size or rows)
            first = name == "pretrain"
            step = replace(need.step, rows=micro, passes=min(2, -(-rows // micro)))
            yield replace(need, step=step, tokens=given.tokens if first else 0, may_shrink=True)
        elif name == "ppo":
            length = min(shape.context, given.max_prompt_tokens + given.max_new_tokens)
            rows = grouped(given.minibatch, length)
            step = replace(need.step, rows=rows, length=length, passes=2, packed=False)
            sampled = shape.parameters * dtype.itemsize
            cache = min(share(given.rollouts), ROWS_AT_ONCE)
            cache *= shape.cache_bytes(length, dtype.itemsize)
            frozen = 2 * WEIGHT_BYTES * shape.parameters + sampled
            yield replace(need, step=step, models=2, frozen=frozen, best=False, cache=cache)
        else:
            rows = grouped(given.batch_prompts, length)
            yield replace(need, step=replace(need.step, rows=rows, passes=2))


def _shape(settings: dict[str, Any]) -> ModelConfig | None:
    """The shape of the model that a recipe trains; None if it trains none."""
    if (first := settings.get("pretrain")) is not None:
        vocabulary = first.model.vocabulary_size
        tokenizer = settings.get("tokenizer")
        if not vocabulary and tokenizer is not None and not tokenizer.load:
            vocabulary = tokenizer.vocabulary_size
        model: ModelConfig = first.model
        return replace(model, vocabulary_size=vocabulary or OTHER_VOCABULARY, preset="")
    if (base := settings.get("base")) is None:
        return None
    from lmsmith.catalogue.reading import read_config
    from lmsmith.catalogue.resolve import resolve

    return read_config(resolve(base.place()))


def _planned(recipe: Recipe, need: _Need, gpus: Gpus, share: float, price: float) -> StagePlan:
    """A stage's plan; the settings that would make it fit are tried one after another."""
    config = need.step.config
    sharded = _is_sharded(need, gpus)
    memory = _memory(need, gpus.count if sharded else 1)
    fits = memory.total <= gpus.memory_bytes
    fixes, needed = ((), gpus.count) if fits else _fixed(need, gpus)
    found = StagePlan(
        need.stage, config.parameters, need.step.rows, need.step.length, sharded, memory, fits,
        fixes, needed,
    )  # fmt: skip
    if not need.tokens or recipe.machine.precision == "fp32":
        return found
    at_peak = gpus.count * gpus.peak * share / config.training_flops_per_token()
    by_launches = _launched_tokens_per_second(need.step, gpus)
    speed = min(at_peak, by_launches)
    days = need.tokens / speed / SECONDS_A_DAY
    return replace(
        found,
        tokens=need.tokens,
        tokens_per_second=speed,
        bound_by="peak" if at_peak <= by_launches else "launches",
        days=days,
        cost=days * 24 * gpus.count * price if price else None,
    )


def _launched_tokens_per_second(step: Step, gpus: Gpus) -> float:
    """Tokens a second of all GPUs where starting the operations is what takes time."""
    from lmsmith.training.memory import step_operations

    seconds = step_operations(step) * LAUNCH_SECONDS
    return gpus.count * step.passes * step.rows * step.length / seconds


def _is_sharded(need: _Need, gpus: Gpus) -> bool:
    """As `training.sharding.divided` decides."""
    from lmsmith.training.sharding import MOST_STATE, STATE_BYTES

    if gpus.count == 1 or need.sharding == "off" or not need.learns:
        return False
    state = STATE_BYTES * need.step.config.parameters * need.models
    return need.sharding == "on" or state > MOST_STATE * gpus.memory_bytes


def _memory(need: _Need, devices: int) -> StepMemory:
    from lmsmith.training.memory import WEIGHT_BYTES, step_memory

    found = step_memory(need.step, devices)
    trained = {
        kind: need.models * need.learns * getattr(found, kind)
        for kind in ("gradients", "optimiser", "gathered")
    }
    whole = WEIGHT_BYTES * need.step.config.parameters if devices > 1 and need.stage == "ppo" else 0
    return replace(
        found,
        **trained,
        weights=need.models * found.weights,
        frozen=need.frozen + whole,
        best=found.best * need.best * need.learns,
        cache=need.cache,
    )


def _fixed(need: _Need, gpus: Gpus) -> tuple[tuple[str, ...], int]:
    """The first settings with which a stage fits, from those that cost least; and the number of
    GPUs with which all of them do."""
    from lmsmith.training.memory import gathered_bytes

    fixes: list[str] = []
    devices = gpus.count if _is_sharded(need, gpus) else 1
    if gpus.count > 1 and devices == 1 and need.learns:
        devices = gpus.count
        fixes.append("machine.sharding=on")
    while True:
        if (total := _memory(need, devices).total) <= gpus.memory_bytes:
            return tuple(fixes), gpus.count
        step = need.step
        if need.may_shrink and step.rows > 1:
            need = replace(need, step=replace(step, rows=step.rows // 2, passes=2))
            name = f"{need.stage}.micro_batch_size"
            fixes = [each for each in fixes if not each.startswith(name)]
            fixes.append(f"{name}={need.step.rows}")
        elif not step.checkpointed:
            need = replace(need, step=replace(step, checkpointed=True))
            fixes.append(f"{need.stage}.checkpoint_activations=true")
        else:
            break
    if not need.learns:
        return (), 0
    part = _memory(need, devices)
    divided = devices * (part.weights + part.gradients + part.optimiser + part.best)
    room = gpus.memory_bytes - (total - divided // devices)
    if devices == 1:  # what is gathered comes with the second GPU
        room -= need.models * gathered_bytes(need.step)
    return (), -(-divided // room) if room > 0 else 0
