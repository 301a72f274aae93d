"""What settings exist, read from the dataclasses of the stages."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field

import pytest

from lmsmith.cli import main
from lmsmith.cli.recipes import all_settings
from lmsmith.core.config import NonNegativeInt, setting_keys
from lmsmith.core.errors import UserError
from lmsmith.core.recipe import GenerationConfig, MachineConfig, shipped_recipes
from lmsmith.core.settings import (
    Setting,
    describe_settings,
    settings_as_markdown,
    settings_as_text,
    with_comments,
)
from lmsmith.improve.recipe import ROUND
from lmsmith.stages.listing import recipe_settings
from lmsmith.stages.table import STAGES


@dataclass(frozen=True)
class Item:
    path: str
    """Where it is."""


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    """How fast. More of it; and more."""


@dataclass(frozen=True)
class Outer:
    steps: NonNegativeInt = 3
    """How many | of them
    there are."""
    inner: Inner = field(default_factory=lambda: Inner(2.0))
    """The inner table."""
    items: tuple[Item, ...] = ()
    """Some items."""


OUTER = [
    Setting("x.steps", "a whole number", "3", "0 or more", "How many | of them there are."),
    Setting("x.inner.rate", "a number", "2.0", "", "How fast. More of it; and more."),
    Setting("x.items", "a list, each a table", "[]", "", "Some items."),
    Setting("x.items.N.path", "text in quotes", None, "", "Where it is."),
]


def test_type_default_range_and_meaning_are_read_from_the_dataclass() -> None:
    assert list(describe_settings(Outer, "x")) == OUTER


def test_every_key_of_every_stage_has_a_meaning() -> None:
    settings = {each.key: each for each in recipe_settings()}
    for name, cls in {
        "machine": MachineConfig,
        "generation": GenerationConfig,
        **{s.name: s.config_type() for s in STAGES},
    }.items():
        assert set(setting_keys(cls, name)) <= set(settings), name
    assert [key for key, each in settings.items() if not each.meaning or not each.type] == []
    assert settings["ppo.optimiser.learning_rate"].default == "9.65e-06"
    assert settings["ppo.gae_lambda"].range == "between 0 and 1"
    assert settings["data.documents.N.path"].default is None


def test_every_key_of_a_round_has_a_meaning_and_its_recipes_default() -> None:
    settings = {each.key: each for each in all_settings("improve")}
    for stage in ROUND:
        keys = set(setting_keys(stage.config_type(), f"improve.{stage.name}"))
        assert keys <= set(settings), stage.name
    assert [key for key, each in settings.items() if not each.meaning or not each.type] == []
    assert settings["improve.reward.thumbs_weight"].default == "0.1"
    assert settings["improve.gates.win_rate"].range == "between 0 and 1"
    assert {each.key.split(".")[1] for each in all_settings("improve.gates")} == {"gates"}
    assert "\n## improve.gates\n" in settings_as_markdown(all_settings())
    with pytest.raises(UserError) as caught:
        all_settings("improve.gate")
    assert caught.value.fix == "did you mean improve.gates?"


def test_one_stage_one_table_or_one_key() -> None:
    assert {each.key.split(".")[0] for each in recipe_settings("sft")} == {"sft"}
    assert [each.key for each in recipe_settings("ppo.gae_lambda")] == ["ppo.gae_lambda"]
    assert len(recipe_settings("ppo.optimiser")) == 9
    for wrong, fix in (("ppo.trace", "write ppo.gae_lambda"), ("reard", "did you mean reward?")):
        with pytest.raises(UserError) as caught:
            recipe_settings(wrong)
        assert caught.value.fix == fix


def test_as_text_and_as_markdown() -> None:
    assert (
        settings_as_text(OUTER[1:2])
        == "x.inner.rate = 2.0\n    A number. How fast. More of it; and more."
    )
    page = settings_as_markdown(OUTER)
    assert (
        "| `x.steps` | a whole number | `3` | 0 or more | How many \\| of them there are. |" in page
    )
    assert "| `x.items.N.path` | text in quotes | must be given |  | Where it is. |" in page


def test_a_copied_recipe_has_a_comment_on_each_key() -> None:
    text = "[x]\nsteps = 1\n# mine\ninner = 2\n[x.inner]\nrate = 3 # so\n[other]\nsteps = 1\n"
    assert with_comments(text, OUTER) == text.replace(
        "steps", "# How many | of them there are.\nsteps", 1
    )
    settings = recipe_settings()
    for name, recipe in shipped_recipes().items():
        copied = with_comments(recipe, settings)
        assert tomllib.loads(copied) == tomllib.loads(recipe), name
        assert copied.count("\n#") > recipe.count("\n#") + 15


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "settings", "ppo.gae_lambda"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("ppo.gae_lambda = 0.95\n    A number, between 0 and 1.")
    assert main(["recipes", "settings", "sft", "--markdown"]) == 0
    assert "| `sft.epochs` |" in capsys.readouterr().out
    assert main(["recipes", "settings", "ppo.gae_lambda", "--json"]) == 0
    assert '"default": "0.95"' in capsys.readouterr().out
