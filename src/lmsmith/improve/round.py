"""One round of the loop: judgements are frozen, stages run, gates decide, a version is recorded.

A round works in the folder ``next`` beside the versions, as a run of the stages below. Whatever
ends it, the same command goes on; the last step moves the folder to the version's number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lmsmith.catalogue import versions
from lmsmith.catalogue.registry import check_name, now
from lmsmith.catalogue.versions import Gate, Learnt, Version
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_json, write_json
from lmsmith.core.progress import QuietProgress, RunProgress
from lmsmith.core.recipe import Recipe
from lmsmith.corpus.batches import MIXTURE_FILE
from lmsmith.corpus.judgements import Judgement
from lmsmith.improve.first_version import first_version as first_version
from lmsmith.improve.gates import GATES_FILE
from lmsmith.improve.prospect import Sources as Sources
from lmsmith.improve.prospect import name_of
from lmsmith.improve.recipe import ROUND, round_recipe, stages_with_data
from lmsmith.improve.snapshot import (
    RELIABILITY_FILE,
    SIDES_FILE,
    SNAPSHOT_FILE,
    read_frozen,
    read_sides,
)
from lmsmith.improve.under_way import (
    ANNOUNCED,
    FROZEN,
    Round,
    alone,
    begin,
    begun,
    refuse_the_words_of_the_deleted,
    unannounced,
)
from lmsmith.models.adapters import AdapterConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import load_tokenizer, read_model_config
from lmsmith.prompts import encode_prompt
from lmsmith.report.version.page import build_version_page
from lmsmith.runs.integrity import finished_record
from lmsmith.stages.pipeline import run_recipe
from lmsmith.tokenizers import Tokenizer

ADAPTERS_FROM = 60_000_000
"""Parameters from which a model is trained by adapters, unless the recipe says otherwise."""
ADAPTER_RANK = 16
ADAPTER_RATE = 5.0
"""Times the learning rate of all weights that adapters learn with; they begin at nothing."""
LENGTHS_OF = 500
"""Judgements whose lengths say how many tokens are needed."""


def improve(
    word: str,
    sources: Sources,
    recipe: Recipe,
    *,
    name: str = "",
    by: str = "",
    force: bool = False,
    restart: bool = False,
    share: float | None = None,
    progress: RunProgress | None = None,
) -> Version:
    """Make the next version of a model from what people judged; it is not promoted here.

    Killed at any moment, the same call goes on: also after the version is made, until its trial
    has begun.

    Args:
        word: a name that has versions, or any model that `resolve` knows: its first version.
        sources: the judgements.
        recipe: of `round_recipe`.
        name: of the versions; after the model if empty.
        by: who began the lineage.
        force: go on with too little.
        restart: drop a round that was begun with other judgements or settings.
        share: of the chat's turns that show a candidate that is not refused beside the promoted
            version; None begins no trial.
        progress: who watches.

    Returns:
        The candidate, with its gates and its verdict.

    Raises:
        UserError: too little to learn from, another round at work, or a stage's own.
        Interrupted: a signal asked to stop; the same command goes on.
    """
    name = check_name(name_of(word, name))
    with alone(name):
        if versions.find(name) is None:
            first_version(word, name, by)
        chosen = fingerprint([recipe.as_dict(), list(sources.data), sources.database])
        made = None if restart else unannounced(name, chosen)
        if made is None:
            made = _make(name, chosen, recipe, sources, force, restart, progress)
        there = versions.lineage_of(name).promoted
        if share is not None and made.verdict != "refused" and made.number != there:
            versions.set_trial(name, made.number, share)
        write_json(made.folder / ANNOUNCED, {"date": now()})
    return made


def _make(
    name: str,
    chosen: str,
    recipe: Recipe,
    sources: Sources,
    force: bool,
    restart: bool,
    progress: RunProgress | None,
) -> Version:
    """Begin a round, or go on with it, up to the version in its place."""
    folder = versions.folder_of(name) / versions.NEXT
    with versions.changing(name):
        state = begun(folder, chosen, restart)
        if state is None:
            state = begin(folder, name, chosen, recipe, sources, force)
    refuse_the_words_of_the_deleted(folder / FROZEN, sources)
    parent = versions.version(name, state.parent)
    current = versions.version(name, state.current or state.parent)
    for each in (parent, current):
        versions.verify(each)
    progress = progress or QuietProgress()
    fitted = _fitted(recipe, folder, parent, current)
    run_recipe(fitted, folder, progress=progress, stages=ROUND)
    with versions.changing(name):
        return _record(folder, state, fitted, parent, current)


def _fitted(recipe: Recipe, folder: Path, parent: Version, current: Version) -> Recipe:
    """The recipe with the round's files, without stages that have nothing to learn from."""
    frozen = folder / FROZEN
    judgements = read_frozen(frozen)
    reliability: Any = read_json(frozen / RELIABILITY_FILE)
    earlier = read_sides(frozen / SIDES_FILE)
    present = stages_with_data(recipe, judgements, earlier, reliability)
    shape = read_model_config(parent.path)[1]
    needed = _needed(load_tokenizer(parent.path), judgements)
    root = versions.folder_of(parent.name) / "1"
    corpus = root / "pretrain"
    has_corpus = (corpus / MIXTURE_FILE).is_file()
    if has_corpus and "ppo" in present:  # it needs no demonstrations
        present = tuple(each.name for each in ROUND if each.name in {*present, "pretrain"})
    rewards = (each.folder / "reward/model" for each in versions.line_of(parent))
    reward = next((str(each) for each in rewards if each.is_dir()), "")
    told = {
        "data": {"frozen": str(frozen)},
        "base": {"model": str(parent.path), "folder": ""},
        "pretrain": {"corpus": str(corpus) if has_corpus else ""},
        "previous_reward": {"model": reward},
        "gates": {"current": str(current.path) if current != parent else ""},
    }
    shipped = round_recipe().stages
    stages: dict[str, Any] = {}
    for name in present:
        if name == "previous_reward" and not reward:
            continue
        settings: Any = replace(recipe.stages[name], **told.get(name, {}))  # type: ignore[type-var]
        stages[name] = _fitted_to(shape, name, settings, shipped[name], needed)
    if "ppo" in stages and "pretrain" not in stages:
        stages["ppo"] = replace(stages["ppo"], ptx_coefficient=0.0)
    return replace(recipe, stages=stages)


@dataclass(frozen=True)
class _Needed:
    """Tokens that 95 % of the judgements need, if earlier turns of their dialogues are left out.

    Attributes:
        prompt: the last message.
        judged: the last message, and the longest response to it.
    """

    prompt: int
    judged: int


def _needed(tokenizer: Tokenizer, judgements: Sequence[Judgement]) -> _Needed:
    """What `LENGTHS_OF` judgements need, evenly drawn from all."""
    some = judgements[:: max(1, len(judgements) // LENGTHS_OF)]
    prompts, judged = [], []
    for each in some:
        system = [m for m in each.prompt[:-1] if m["role"] == "system"]
        try:
            prompt = len(encode_prompt(tokenizer, [*system, each.prompt[-1]]).tokens)
        except UserError:  # empty, or refused by the template: it is left out later
            continue
        responses = (len(tokenizer.encode(text)) + 1 for text in each.responses)
        prompts.append(prompt)
        judged.append(prompt + max(responses, default=0))
    if not prompts:
        return _Needed(0, 0)
    return _Needed(*(int(np.quantile(each, 0.95, method="higher")) for each in (prompts, judged)))


def _fitted_to(shape: ModelConfig, name: str, settings: Any, shipped: Any, needed: _Needed) -> Any:
    """Settings of a stage with lengths that the context has, and adapters for a large model.

    Where the lengths of the shipped recipe would leave out more than one judgement in twenty they
    are raised: rows are computed in parts that fit the memory. What somebody has chosen stays.

    Args:
        shipped: the stage's settings in the shipped recipe.
    """
    names = {each.name for each in fields(settings)}
    changed: dict[str, Any] = {}

    def long_enough(key: str, wanted: int) -> int:
        given: int = getattr(settings, key)
        return max(given, wanted) if given == getattr(shipped, key) else given

    if "max_length" in names:
        wanted = settings.max_length or shape.context
        if name in ("reward", "judge"):
            wanted = long_enough("max_length", needed.judged) or shape.context
        changed["max_length"] = min(wanted, shape.context)
    if "max_new_tokens" in names:
        changed["max_new_tokens"] = min(settings.max_new_tokens, shape.context // 4)
    if "max_prompt_tokens" in names and settings.max_prompt_tokens:
        most = shape.context - changed["max_new_tokens"] - 1
        changed["max_prompt_tokens"] = min(long_enough("max_prompt_tokens", needed.prompt), most)
    if "batch_tokens" in names:
        row = changed["max_length"]
        changed["batch_tokens"] = max(1, round(settings.batch_tokens / row)) * row
    trained = "epochs" not in names or settings.epochs > 0  # else the head alone is fitted
    large = shape.parameters >= ADAPTERS_FROM
    if "adapter" in names and trained and large and not settings.adapter.rank:
        changed["adapter"] = AdapterConfig(rank=ADAPTER_RANK)
        for key in names & {"optimiser", "value_optimiser"}:
            given = getattr(settings, key)
            if given == getattr(shipped, key):
                rate = given.learning_rate * ADAPTER_RATE
                changed[key] = replace(given, learning_rate=rate)
    return replace(settings, **changed)


def _record(
    folder: Path, state: Round, recipe: Recipe, parent: Version, current: Version
) -> Version:
    """Write the version's record and move its folder into place."""
    gates: Any = read_json(folder / "gates" / GATES_FILE)
    snapshot: Any = read_json(folder / "data" / SNAPSHOT_FILE)
    model = next(f"{name}/model" for name in ("ppo", "sft") if name in recipe.stages)
    figures: dict[str, float] = {}
    for name in recipe.stages:
        record: Any = finished_record(folder / name) or {}
        figures |= {f"{name}.{key}": value for key, value in record.get("metrics", {}).items()}
    made = Version(
        name=state.name,
        number=versions.next_number(state.name),
        model=model,
        sha256=versions.hash_model(folder / model),
        source=state.recipe,
        created=now(),
        parents=(parent.number,),
        learnt=Learnt(
            snapshot["sha256"], snapshot["counts"], tuple(snapshot["people"]), state.began
        ),
        verdict=gates["verdict"],
        gates=tuple(msgspec.convert(gates["gates"], list[Gate])),
        figures=figures,
        against=current.number,
    )
    build_version_page(made, folder)
    versions.write_version(folder, made)
    versions.put_in_place(made)
    return made
