"""List the settings of every stage, as ``lmsmith recipes settings`` prints them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from lmsmith.core.config import unknown_key
from lmsmith.core.errors import UserError
from lmsmith.core.recipe import GenerationConfig, MachineConfig
from lmsmith.core.settings import Setting, describe_settings
from lmsmith.stages.table import STAGES


def recipe_settings(key: str = "") -> list[Setting]:
    """Every setting of a recipe, or those of a stage or of a table in it, or one by its key.

    Raises:
        UserError: no such stage or key; the nearest one is named.
    """
    found = [
        Setting("description", "text in quotes", '""', "", "What the recipe makes, in a line."),
        Setting("seed", "a whole number", "0", "", "Seed of all chance: data, weights, samples."),
        *describe_settings(MachineConfig, "machine"),
        *describe_settings(GenerationConfig, "generation"),
    ]
    for stage in STAGES:
        found += describe_settings(stage.config_type(), stage.name)
    return chosen_settings(found, key) if key else found


def chosen_settings(found: Sequence[Setting], key: str) -> list[Setting]:
    """Settings of a stage or of a table in it, or one by its key.

    Raises:
        UserError: no such stage or key; the nearest one is named.
    """
    chosen = [each for each in found if each.key == key or each.key.startswith(f"{key}.")]
    if not chosen:
        names = [each.key for each in found]
        tables = dict.fromkeys(each.key.rpartition(".")[0] for each in found)
        near = difflib.get_close_matches(key, [*names, *filter(None, tables)], 1)
        renamed = unknown_key(key, "", names).fix if "." in key else ""
        fix = f"did you mean {near[0]}?" if near and "write" not in renamed else renamed
        raise UserError(f"{key}: no such stage or key", fix or "lmsmith recipes settings lists all")
    return chosen
