"""Checkpoints bring back every bit, and a damaged one is passed over with a message."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.training.checkpoint import (
    CHECKSUMS,
    SCALARS,
    TENSORS,
    Checkpoints,
    flatten_state,
    restore_state,
)
from lmsmith.training.optimiser import Optimiser, OptimiserConfig

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**60), 2**60),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.floats(width=32), max_size=3).map(torch.tensor),
    st.integers(-9, 9).map(torch.tensor),
)
keys = st.one_of(st.integers(-2, 9), st.text("a/.1", max_size=3))
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal in type and bits; NaN equals NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


@settings(max_examples=60)
@given(state=states)
def test_any_nested_state_comes_back(state: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    tree, tensors = flatten_state(state)
    assert same(restore_state(tree, tensors), state)


def test_a_state_comes_back_from_disk(tmp_path: Path) -> None:
    state = {
        "tensors": [
            torch.randn(3, 4),
            torch.tensor(True),
            torch.zeros(0),
            torch.ones(2).bfloat16(),
        ],
        "numbers": {0: 1.5, "0": (1e300, -0.0), "best": math.inf, "worst": -math.inf},
        "none": None,
        "nothing": {},
        "random": torch.get_rng_state(),
        "a": {"b": torch.tensor(1)},
        "a/b": torch.tensor(2),
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state)
    found = Checkpoints(tmp_path).load_latest()
    assert found is not None
    assert found[0] == 7
    assert [t.dtype for t in found[1]["tensors"]] == [t.dtype for t in state["tensors"]]
    for one, other in zip(found[1]["tensors"], state["tensors"], strict=True):
        assert torch.equal(one, other)
    for name in ("numbers", "none", "nothing", "random", "a", "a/b"):
        assert same(found[1][name], state[name]), name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimiser_goes_on_as_if_it_had_not_stopped(tmp_path: Path, name: str) -> None:
    def made() -> tuple[torch.nn.Module, Optimiser]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Linear(8, 3))
        config = OptimiserConfig(name=name, learning_rate=0.01)  # type: ignore[arg-type]
        return model, Optimiser(model, config, [model[0]])

    def advance(model: torch.nn.Module, optimiser: Optimiser, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            model(torch.randn(4, 5, generator=generator)).square().sum().backward()
            optimiser.step(0.5 + 0.1 * step)

    unbroken, optimiser = made()
    advance(unbroken, optimiser, range(6))
    first, optimiser = made()
    advance(first, optimiser, range(3))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"model": first.state_dict(), "optimiser": optimiser.state_dict()})
    found = checkpoints.load_latest()
    assert found is not None
    second, optimiser = made()
    second.load_state_dict(found[1]["model"])
    optimiser.load_state_dict(found[1]["optimiser"])
    advance(second, optimiser, range(3, 6))
    for a, b in zip(unbroken.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def filled(folder: Path, *steps: int) -> tuple[Checkpoints, list[str]]:
    said: list[str] = []
    checkpoints = Checkpoints(folder, say=said.append)
    for step in steps:
        checkpoints.save(step, {"value": torch.full((50,), float(step)), "step": step})
    return checkpoints, said


@pytest.mark.parametrize("name", [TENSORS, SCALARS, CHECKSUMS])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_a_damaged_checkpoint_is_passed_over_with_a_message(
    tmp_path: Path, name: str, damage: str
) -> None:
    checkpoints, said = filled(tmp_path, 10, 20)
    path = checkpoints.path(20) / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 0x10
        cut = {"flip": len(content), "cut": len(content) // 2, "empty": 0}[damage]
        path.write_bytes(content[:cut])
    found = checkpoints.load_latest()
    assert found is not None
    assert found[0] == found[1]["step"] == 10
    assert torch.equal(found[1]["value"], torch.full((50,), 10.0))
    assert len(said) == 1
    assert "step-00000020 is damaged" in said[0]
    assert "the one before it" in said[0]


@settings(max_examples=25)
@given(data=st.data())
def test_any_flipped_bit_is_found(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoints, _ = filled(tmp_path_factory.mktemp("checkpoints"), 1)
    name = data.draw(st.sampled_from([TENSORS, SCALARS]))
    path = checkpoints.path(1) / name
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert checkpoints.problem(1)
    assert checkpoints.load_latest() is None


def test_where_all_are_damaged_the_message_says_that_it_begins_anew(tmp_path: Path) -> None:
    checkpoints, said = filled(tmp_path, 10)
    (checkpoints.path(10) / TENSORS).write_bytes(b"")
    assert checkpoints.load_latest() is None
    assert len(said) == 1
    assert "starting from step 0" in said[0]


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    checkpoints, _ = filled(tmp_path, 1, 2, 3)
    assert checkpoints.saved_steps() == [2, 3]
    more = Checkpoints(tmp_path, keep=3)
    more.save(4, {})
    assert more.saved_steps() == [2, 3, 4]
    assert Checkpoints(tmp_path, keep=0).keep == 2


def test_a_damaged_one_does_not_count_as_one_of_those_kept(tmp_path: Path) -> None:
    checkpoints, _ = filled(tmp_path, 10, 20)
    (checkpoints.path(20) / TENSORS).write_bytes(b"")
    assert checkpoints.load_latest() is not None
    checkpoints.save(15, {"step": 15})  # not 20 again: checkpoints are saved by the clock
    assert checkpoints.saved_steps() == [10, 15]


def test_what_cannot_be_kept_is_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    checkpoints, _ = filled(tmp_path, 1)
    with pytest.raises(TypeError, match=r"cannot hold a object \(at .*strange"):
        checkpoints.save(2, {"strange": object()})
    assert checkpoints.saved_steps() == [1]


def test_a_kill_while_saving_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    """A process saves without pause and is killed: whatever stands there is sound."""
    script = textwrap.dedent("""
        import sys, torch
        from pathlib import Path
        from lmsmith.training.checkpoint import Checkpoints
        checkpoints = Checkpoints(Path(sys.argv[1]))
        for step in range(1_000_000):
            checkpoints.save(step, {"value": torch.full((5_000,), float(step)), "step": step})
            print(step, flush=True)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        last = -1
        for line in process.stdout:
            last = int(line)
            if last == 3:
                os.kill(process.pid, signal.SIGKILL)
    found = Checkpoints(tmp_path).load_latest()
    assert found is not None
    assert found[0] >= last >= 3
    assert found[1]["step"] == found[0]
    assert (found[1]["value"] == found[0]).all()
