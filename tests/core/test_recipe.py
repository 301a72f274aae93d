"""Recipes: found by name or path, checked as a whole before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lmsmith.core.config import NOT_A_SETTING
from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig, load_recipe, shipped_recipes


@dataclass(frozen=True)
class DataConfig:
    path: str = ""

    def external_files(self) -> list[str]:
        if "*" in self.path:
            raise UserError(f"{self.path}: matches no file", "check the pattern")
        return [self.path] if self.path else []


@dataclass(frozen=True)
class PpoConfig:
    kl_coefficient: float = 0.05


REGISTRY: dict[str, type] = {"data": DataConfig, "ppo": PpoConfig}
NEEDS = {"ppo": ("data",)}


def write(folder: Path, text: str) -> Path:
    path = folder / "my.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path | str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides, REGISTRY, NEEDS)
    return str(caught.value)


def test_file_with_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, 'description = "mine"\nseed = 3\n[ppo]\n[data]\n[machine]\nthreads = 1')
    recipe = load_recipe(path, ["ppo.kl_coefficient=1", "machine.compile=off"], REGISTRY, NEEDS)
    assert (recipe.name, recipe.description, recipe.seed) == ("my", "mine", 3)
    assert recipe.machine == MachineConfig(threads=1, compile="off")
    assert recipe.stages == {"data": DataConfig(), "ppo": PpoConfig(1.0)}
    assert list(recipe.stages) == ["data", "ppo"]  # in the order stages run
    assert recipe.as_dict()["ppo"] == {"kl_coefficient": 1.0}


def test_every_problem_of_a_recipe_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'seed = "one"\ndescripton = "x"\n[ppo]\nkl_coeficient = 0.05\n[machine]\nthreads = -1\n'
        "checkpoint_seconds = -2\n",
    )
    assert message(path).splitlines()[1:] == [
        '  descripton = "x": unknown key; did you mean description?',
        '  seed = "one": must be a whole number',
        "  machine.threads = -1: must be 0 or more; raise it",
        "  machine.checkpoint_seconds = -2.0: must be 0 or more; raise it",
        "  ppo.kl_coeficient = 0.05: unknown key; did you mean ppo.kl_coefficient?",
        "  ppo: needs the stage data; add [data] or remove [ppo]",
    ]


def test_missing_file_of_a_stage_is_a_problem_of_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\npath = "no/such.jsonl"\n[ppo]\nkl_coefficient = "x"\n')
    text = message(path)
    assert 'data = "no/such.jsonl": no such file or folder' in text
    assert 'ppo.kl_coefficient = "x": must be a number' in text


def test_files_that_the_settings_cannot_find_are_a_problem_too(tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\npath = "a/*.jsonl"\n[ppo]\nkl = 1\n')
    assert message(path).splitlines()[1:] == [
        "  data: a/*.jsonl: matches no file; check the pattern",
        "  ppo.kl = 1: unknown key; the keys here are kl_coefficient",
    ]


def test_override_cannot_add_a_stage(tmp_path: Path) -> None:
    path = write(tmp_path, "[data]\n")
    assert "the recipe has no stage ppo" in message(path, "ppo.kl_coefficient=1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[data\n", "not valid TOML"),
        ("", "has no stage; add at least one of [data], [ppo]"),
        ("data = 3", "data = 3: must be a table"),
        ("seed = true\n[data]", "seed = true: must be a whole number"),
    ],
)
def test_unreadable_recipes(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(write(tmp_path, text))


def test_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_bytes(b"\xff\xfe[\x00")
    assert "not UTF-8" in message(tmp_path / "my.toml")


def test_unknown_names(tmp_path: Path) -> None:
    assert "no recipe of that name" in message("quickstrat")
    assert "no such recipe file" in message(tmp_path / "other.toml")
    assert "is a folder" in message(tmp_path)
    for name in shipped_recipes():
        assert name in message("quickstrat")


def test_a_key_without_its_table_is_suggested_with_it(tmp_path: Path) -> None:
    path = write(tmp_path, "[data]\n[ppo]\n")
    assert "did you mean ppo.kl_coefficient?" in message(path, "kl_coefficient=0.1")
    assert "did you mean ppo.kl_coefficient?" in message(path, "kl_coeficient=")
    assert "did you mean data.path?" in message(path, "path=x")


def test_settings_are_told_the_folder_of_the_recipe(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Placed:
        path: str = ""
        folder: str = field(default="", metadata=NOT_A_SETTING)

    path = write(tmp_path, '[data]\npath = "a"\n')
    recipe = load_recipe(path, [], {"data": Placed})
    assert recipe.stages == {"data": Placed("a", str(tmp_path))}
    assert recipe.as_dict()["data"] == {"path": "a"}
