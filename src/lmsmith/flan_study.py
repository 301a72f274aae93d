"""``lmsmith study flan``: accuracy on unseen clusters by clusters and templates learnt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmsmith.api import Recorded
from lmsmith.core.errors import UserError
from lmsmith.core.files import write_json
from lmsmith.core.progress import choose_progress
from lmsmith.core.version import VERSION
from lmsmith.options import documented
from lmsmith.runs.identity import recipe_identity
from lmsmith.runs.records import read_record, write_record

STAGES = ("flan", "zero_shot")
"""Stages whose metrics an arm keeps."""


@dataclass(frozen=True)
class Arm:
    """What is learnt: so many clusters, and so many templates of each task; 0 is all."""

    clusters: int
    templates: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"clusters-{self.clusters or 'all'}-templates-{self.templates or 'all'}"

    @property
    def words(self) -> str:
        """For people."""
        parts = (("clusters", self.clusters), ("templates", self.templates))
        return ", ".join(
            f"{count or 'all'} {what if count != 1 else what.removesuffix('s')}"
            for what, count in parts
        )


@dataclass(frozen=True, kw_only=True)
class FlanStudy(Recorded):
    """A study of instruction tuning: each arm's metrics, in the order asked."""

    arms: list[dict[str, Any]]


@documented
def study_flan(
    model: str,
    *,
    data: Path | None = None,
    clusters: Sequence[int | str] = (1, 3, "all"),
    templates: Sequence[int | str] = (1, 4),
    set: Sequence[str] = (),
    keep_models: bool = False,
    out: Path = Path("evals/study-flan"),
    quiet: bool = False,
) -> FlanStudy:
    """Tune a model on few and on many tasks and templates, and measure it on unseen clusters.

    Each arm is a run of the recipe flan with equally many demonstrations, which are compared on the
    same unseen items (Wei et al. 2022, section 4.1 and appendix B.1). Run it again after Ctrl-C or
    a kill: what is done is kept.

    Args:
        model: A registered name, a run, or the path of a model.
        data: Where the tasks' files are; also LMSMITH_DATA.
        clusters: Numbers of clusters learnt, all templates of each; all is all.
        templates: Numbers of templates of a task learnt, all clusters; all is all.
        set: Change a setting of the recipe, e.g. flan.examples=2000, sft.adapter.rank=8.
        keep_models: Keep the models of all arms; only measurements are kept otherwise.
        out: The arms, results.json and report.html go here.

    Raises:
        UserError: no such model, or data that cannot be learnt from.
        Interrupted: after Ctrl-C, once everything is saved.

    >>> lmsmith.study_flan("smollm2-135m", data="data").arms                # doctest: +SKIP
    """
    from lmsmith.report.study.flan_page import build_flan_page
    from lmsmith.stages.pipeline import load_stage_recipe, run_recipe

    arms = plan_arms(clusters, templates)
    given = {"base.model": model, **({"flan.data": str(data)} if data else {})}
    common = [*(f"{key}={json.dumps(value)}" for key, value in given.items()), *set]
    recipes = [load_stage_recipe("flan", [*common, *overrides(arm)]) for arm in arms]
    for arm, recipe in zip(arms, recipes, strict=True):
        folder, identity = out / arm.name, recipe_identity(recipe)
        kept = read_record(folder / "measured.json")
        if kept is not None and kept.get("identity") == identity:
            continue
        progress = choose_progress(f"study flan: {arm.words}", quiet)
        named = replace(recipe, name=f"flan, {arm.words}")
        stages: Any = run_recipe(named, folder / "run", progress=progress)["stages"]
        metrics = {name: stages[name]["metrics"] for name in STAGES}
        write_record(folder / "measured.json", {"identity": identity, "of_stages": metrics})
        if not keep_models:
            shutil.rmtree(folder / "run")
    measured = [_measured(arm, out / arm.name) for arm in arms]
    record = {"study": "flan", "version": VERSION, "model": model, "arms": measured}
    write_json(out / "results.json", record)
    return FlanStudy(record=record, arms=measured, report=build_flan_page(out, record))


def plan_arms(clusters: Sequence[int | str], templates: Sequence[int | str]) -> list[Arm]:
    """An arm for each number of clusters with all templates, and the other way round.

    Raises:
        UserError: a word is neither a number from 1 nor ``all``, or there is none.
    """
    arms = [*(Arm(count, 0) for count in _counts("clusters", clusters)),
            *(Arm(0, count) for count in _counts("templates", templates))]  # fmt: skip
    if not arms:
        raise UserError("no arms", "e.g. --clusters 1,3,all")
    return list(dict.fromkeys(arms))


def _counts(option: str, words: Sequence[int | str]) -> list[int]:
    """Numbers, 0 for ``all``."""
    for word in map(str, words):
        if word != "all" and not (word.isdecimal() and int(word[:9]) > 0 and len(word) < 10):
            raise UserError(
                f"--{option} {word[:20]}: neither a number from 1 nor all", "e.g. 1,3,all"
            )
    return [0 if word == "all" else int(word) for word in words]


def overrides(arm: Arm) -> list[str]:
    """The settings of an arm."""
    return [f"flan.clusters={arm.clusters}", f"flan.templates={arm.templates}"]


def _measured(arm: Arm, folder: Path) -> dict[str, Any]:
    kept: Any = read_record(folder / "measured.json")
    return {"arm": arm.words, "clusters": arm.clusters, "templates": arm.templates,
            **kept["of_stages"]}  # fmt: skip
