"""Settings: every mistake at once, each with its key, its value and its fix."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.config import (
    MISSING,
    Problem,
    SettingsError,
    apply_overrides,
    decode,
    encode,
    parse_value,
    refuse_old_keys,
    setting_keys,
    unknown_key,
    with_new_keys,
)
from lmsmith.core.errors import UserError


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Source:
    path: str
    weight: float = 1.0

    def check(self) -> list[Problem]:
        return [] if self.weight > 0 else [Problem("weight", self.weight, "must be above 0")]


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True)
class Settings:
    steps: int
    optimizer: Optimizer = field(default_factory=Optimizer)
    sources: tuple[Source, ...] = ()
    named: dict[str, Source] = field(default_factory=dict)
    extra: Source | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    limit: int | None = None
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5

    def check(self) -> list[Problem]:
        if self.limit is not None and self.limit < self.steps:
            fix = f"raise it to {self.steps} or lower steps"
            return [Problem("limit", self.limit, "is below steps", fix)]
        return []


def lines(table: dict[str, object]) -> list[str]:
    made, problems = decode(Settings, table, "sft")
    assert (made is None) == bool(problems)
    return [str(problem) for problem in problems]


def test_whole_table_becomes_the_dataclass() -> None:
    table: dict[str, object] = {
        "steps": 3,
        "optimizer": {"learning_rate": 1, "betas": [0.5, 1]},
        "sources": [{"path": "a"}, {"path": "b", "weight": 2}],
        "named": {"x": {"path": "c"}},
        "extra": {"path": "d"},
        "schedule": "constant",
    }
    made, problems = decode(Settings, table, "sft")
    assert problems == []
    assert made == Settings(
        3,
        Optimizer(1.0, (0.5, 1.0)),
        (Source("a"), Source("b", 2.0)),
        {"x": Source("c")},
        Source("d"),
        "constant",
    )
    assert type(made.optimizer.learning_rate) is float


def test_every_problem_is_reported_at_once() -> None:
    table: dict[str, object] = {
        "stps": 3,
        "optimizer": {"learning_rat": 0.1, "betas": [0.9]},
        "sources": [{"path": "a"}, {"weight": "much"}],
        "schedule": "linear",
        "limit": 1.5,
        "share": 2.0,
    }
    assert lines(table) == [
        "sft.stps = 3: unknown key; did you mean sft.steps?",
        "sft.steps: missing; set it to a whole number",
        "sft.optimizer.learning_rat = 0.1: unknown key; did you mean sft.optimizer.learning_rate?",
        "sft.optimizer.betas = [0.9]: must be a list of a number, a number",
        "sft.sources.1.path: missing; set it to text in quotes",
        'sft.sources.1.weight = "much": must be a number',
        'sft.schedule = "linear": must be one of "cosine", "constant"',
        "sft.limit = 1.5: must be a whole number or left out",
        "sft.share = 2.0: must be between 0 and 1; lower it",
    ]


def test_numbers_are_finite_and_capitals_of_a_key_are_overlooked() -> None:
    table = {"STEPS": 5, "steps": 5, "optimizer": {"learning_rate": float("inf")}}
    assert lines(table) == [
        "sft.STEPS = 5: unknown key; did you mean sft.steps?",
        "sft.optimizer.learning_rate = inf: must be a finite number",
    ]


def test_contradictions_are_reported_beside_unknown_keys() -> None:
    assert lines({"steps": 5, "limit": 2, "zzz": 1, "sources": [{"path": "a", "weight": 0}]}) == [
        "sft.zzz = 1: unknown key; the keys here are steps, optimizer, sources, named, extra, "
        "schedule, limit, share",
        "sft.sources.0.weight = 0.0: must be above 0",
        "sft.limit = 2: is below steps; raise it to 5 or lower steps",
    ]
    assert lines({"steps": 5, "limit": 2}) == [
        "sft.limit = 2: is below steps; raise it to 5 or lower steps"
    ]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"steps": True}, "sft.steps = true: must be a whole number"),
        ({"steps": 1, "optimizer": 3}, "sft.optimizer = 3: must be a table"),
        ({"steps": 1, "sources": {"path": "a"}}, "must be a list of tables"),
        ({"steps": 1, "sources": ["a"]}, 'sft.sources.0 = "a": must be a table'),
        ({"steps": 1, "named": [1]}, "must be a table of tables"),
        ({"steps": 1, "extra": "a"}, 'sft.extra = "a": must be a table'),
    ],
)
def test_wrong_shapes(table: dict[str, object], expected: str) -> None:
    (line,) = lines(table)
    assert expected in line


def test_error_of_post_init_is_a_problem() -> None:
    @dataclass(frozen=True)
    class Strict:
        size: int = 1

        def __post_init__(self) -> None:
            if self.size < 1:
                raise ValueError("size must be at least 1")

    _, problems = decode(Strict, {"size": 0}, "data")
    assert [str(problem) for problem in problems] == ["data: size must be at least 1"]


def test_long_values_are_shortened() -> None:
    assert len(str(Problem("a", "x" * 500, "must be short"))) < 110


def test_report_counts_the_problems() -> None:
    problems = [Problem("a.b", 1, "is wrong"), Problem("a.c", MISSING, "missing", "set it")]
    error = SettingsError(problems, "my.toml")
    assert str(error) == "my.toml: 2 problems\n  a.b = 1: is wrong\n  a.c: missing; set it"
    assert isinstance(error, SettingsError)
    assert error.problems[1].as_dict() == {
        "key": "a.c",
        "value": None,
        "expected": "missing",
        "fix": "set it",
    }


@given(
    st.builds(
        Settings,
        steps=st.integers(0, 9),
        optimizer=st.builds(Optimizer, learning_rate=st.floats(0, 1)),
        sources=st.lists(st.builds(Source, path=st.text(), weight=st.floats(0.1, 2))).map(tuple),
        extra=st.none() | st.builds(Source, path=st.text(), weight=st.just(1.0)),
        share=st.floats(0, 1),
    )
)
def test_encode_and_decode_are_inverse(settings: Settings) -> None:
    assert decode(Settings, encode(settings), "sft") == (settings, [])


def test_encode_makes_plain_values() -> None:
    assert encode({"path": Path("a/b"), "colour": Colour.RED, 1: (1, 2)}) == {
        "path": "a/b",
        "colour": "red",
        "1": [1, 2],
    }


def test_overrides_read_toml_values_and_change_a_copy() -> None:
    tables = {"ppo": {"kl": 1, "sources": [{"weight": 1}, {"weight": 2}]}, "seed": 0}
    overrides = [
        "ppo.kl=0.05",
        "ppo.name = plain words",
        'ppo.quoted="0.05"',
        "ppo.sources.1.weight=3",
        "ppo.new.deep=[1, 2]",
        "seed=7",
        "ppo.flag=true",
    ]
    assert apply_overrides(tables, overrides) == {
        "ppo": {
            "kl": 0.05,
            "name": "plain words",
            "quoted": "0.05",
            "sources": [{"weight": 1}, {"weight": 3}],
            "new": {"deep": [1, 2]},
            "flag": True,
        },
        "seed": 7,
    }
    assert tables["seed"] == 0


def test_bad_overrides_are_reported_together() -> None:
    tables = {"seed": 1, "data": {"sources": [1]}}
    with pytest.raises(UserError) as caught:
        apply_overrides(tables, ["ppo.kl", "seed.x=1", "data.sources.4=1", ".a=1"])
    message = str(caught.value)
    assert "4 problems" in message
    assert "write --set STAGE.KEY=VALUE" in message
    assert "seed is not a table" in message


@given(st.text())
def test_any_text_is_a_value(text: str) -> None:
    parse_value(text)
    assert parse_value("1\nother = 2") == "1\nother = 2"


@dataclass(frozen=True)
class Rates:
    learning_rate: float = 1.0


@dataclass(frozen=True)
class Stage:
    steps: int = 1
    optimiser: Rates = field(default_factory=Rates)


def test_a_forgotten_table_is_named() -> None:
    keys = setting_keys(Stage, "sft")
    assert keys == ["sft.steps", "sft.optimiser.learning_rate"]
    _, (problem,) = decode(Stage, {"learning_rate": 2.0}, "sft")
    assert problem.fix == "did you mean sft.optimiser.learning_rate?"
    assert unknown_key("lerning_rate", 1, ["data", "sft"], keys).fix == problem.fix
    both = [*keys, "ppo.steps"]
    assert (
        unknown_key("steps", 1, ["data", "sft"], both).fix == "did you mean sft.steps or ppo.steps?"
    )
    assert unknown_key("stf", 1, ["data", "sft"], keys).fix == "did you mean sft?"


@dataclass(frozen=True)
class Renamed:
    gae_lambda: float = 0.95
    max_new_tokens: int = 8
    test: float = 0.1


def test_a_renamed_key_is_told_its_new_name() -> None:
    _, problems = decode(Renamed, {"trace": 0.9, "maximum_tokens": 5, "test": 0.2}, "ppo")
    assert [(problem.key, problem.fix) for problem in problems] == [
        ("ppo.trace", "write ppo.gae_lambda"),
        ("ppo.maximum_tokens", "write ppo.max_new_tokens"),
    ]
    assert str(problems[0]) == "ppo.trace = 0.9: has a new name; write ppo.gae_lambda"
    with pytest.raises(SettingsError, match=r"trace = 0\.9: has a new name; write gae_lambda"):
        refuse_old_keys(Renamed, {"trace": 0.9, "test": 0.2})


def test_files_of_earlier_versions_are_read_by_their_old_keys() -> None:
    table = with_new_keys(Renamed, {"trace": 0.9, "maximum_tokens": 5, "test": 0.2, "other": 1})
    assert table == {"gae_lambda": 0.9, "max_new_tokens": 5, "test": 0.2, "other": 1}
