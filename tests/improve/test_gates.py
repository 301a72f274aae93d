"""Gates: what is compared with what, and which figures pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from improve.tiny_round import make_model
from lmsmith.catalogue.versions import Gate
from lmsmith.core.errors import UserError
from lmsmith.core.files import write_jsonl
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.improve import gates
from lmsmith.improve.gates import GatesConfig
from lmsmith.improve.tasks import check_tasks
from lmsmith.models.folder import load_decoder, load_tokenizer, save_model
from lmsmith.models.heads import ScalarModel
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.statistics.intervals import Interval


def changed_model(folder: Path, source: str, seed: int) -> str:
    """Another model of the same shape, saved as a stage saves it; the stage's folder."""
    decoder = load_decoder(Path(source))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in decoder.parameters():
            each.add_(torch.randn(each.shape, generator=generator) * 0.3 * each.std())
    save_model(folder / "model", decoder, load_tokenizer(Path(source)), {})
    return str(folder)


def test_the_candidate_is_compared_with_the_current_version(tmp_path: Path, seed: int) -> None:
    """Training began with one model, people meet another: it is the other that counts."""
    base = make_model(tmp_path / "base/model")
    candidate = changed_model(tmp_path / "sft", base, seed)
    prompts = [{"messages": [{"role": "user", "content": f"Where is cat {n}?"}]} for n in range(12)]
    write_jsonl(tmp_path / "data/test.jsonl", prompts)
    write_jsonl(tmp_path / "data/held_out/test.jsonl", [])
    inputs = {name: tmp_path / name for name in ("base", "sft", "data")}

    def figures_against(current: str) -> dict[str, float]:
        place = StageFolder(
            tmp_path / f"gates{bool(current)}", seed, MachineConfig(), QuietProgress()
        )
        config = GatesConfig(
            max_new_tokens=8,
            min_prompts=8,
            tasks=("arithmetic/2d_plus",),
            task_items=4,
            current=current,
        )
        assert config.external_files() == ([current] if current else [])
        return gates.run(config, inputs, place)

    assert figures_against("")["kl"] > 0.1
    same = figures_against(f"{candidate}/model")
    assert (same["kl"], same["length"], same["tasks/arithmetic/2d_plus"]) == (0, 1, 0)


def test_the_reward_models_accuracy_is_measured_by_prompt_and_by_weight(
    tmp_path: Path, seed: int
) -> None:
    """Fifty labelers of one prompt tell no more than one; a flood counts as its weight does."""
    base = make_model(tmp_path / "base/model")
    model = ScalarModel(load_decoder(Path(base)))
    model.initialise_head(torch.Generator().manual_seed(seed))
    save_model(tmp_path / "reward/model", model, load_tokenizer(Path(base)), {})
    write_jsonl(tmp_path / "data/test.jsonl", [])
    inputs = {name: tmp_path / name for name in ("base", "reward", "data")} | {
        "sft": tmp_path / "base"
    }

    def measured(name: str, labelers: int, weight: float) -> dict[str, float]:
        rows = [
            {"prompt": f"Where is cat {n}?", "responses": [f"cat {n}", "no"], "ranks": [1, 2]}
            for n in range(12)
            for _ in range(labelers)
        ]
        rows += [
            {"prompt": "Where is cat 0?", "responses": [f"dog {n}", f"a {n}"], "ranks": [1, 2]}
            | {"weight": weight}
            for n in range(40)
        ]
        write_jsonl(tmp_path / "data/held_out/test.jsonl", rows)
        place = StageFolder(tmp_path / name, seed, MachineConfig(), QuietProgress())
        return gates.run(GatesConfig(min_pairs=12), inputs, place)

    one, many = measured("one", 1, 0.0), measured("many", 50, 0.0)
    assert many["reward_prompts"] == one["reward_prompts"] == 12
    for end in ("", "_low", "_high"):
        figure = f"reward_accuracy{end}"
        assert many[figure] == pytest.approx(one[figure])
    light, heavy = (measured(f"w{w}", 1, w)["reward_accuracy"] for w in (1e-6, 10.0))
    assert light == pytest.approx(one["reward_accuracy"], abs=1e-4)
    assert heavy != pytest.approx(light, abs=0.02)


def test_gates_at_their_margins() -> None:
    """A needed gate is passed by its low end alone, a bound by its figure."""
    for value, low, state in (
        (0.6, 0.51, "passed"),
        (0.6, 0.5, "not shown"),
        (0.5, 0.4, "failed"),
    ):
        assert gates.above("win_rate", Interval(value, low, 0.7), 0.5, "").state == state
    for value, state in ((30.0, "passed"), (30.1, "failed")):
        assert gates.within("kl", Interval(value, 20.0, 40.0), 30.0, "").state == state


def test_a_failed_gate_refuses_and_a_needed_one_must_be_shown() -> None:
    needed = [Gate(name, "passed") for name in gates.NEEDED]
    unshown = Gate("tasks", "not shown")
    assert gates.verdict_of([*needed, unshown]) == "passed"
    assert gates.verdict_of([*needed, Gate("kl", "failed")]) == "refused"
    assert gates.verdict_of([*needed[1:], Gate(needed[0].name, "not shown")]) == "not shown"
    assert gates.verdict_of([unshown]) == "not shown"


@pytest.mark.parametrize(
    ("fall", "low", "state"),
    [
        (0.02, 0.01, "passed"),
        (-0.3, -0.4, "passed"),
        (0.06, 0.01, "failed"),
        (0.06, 0, "not shown"),
    ],
)
def test_a_fall_beyond_the_margin_fails_if_it_is_no_chance(
    fall: float, low: float, state: str
) -> None:
    found = gates.no_fall("tasks/x", Interval(fall, low, 1.0), 0.02, "")
    assert (found.state, found.value, found.margin) == (state, fall, 0.02)


def test_tasks_are_looked_for_before_the_round() -> None:
    check_tasks(["arithmetic/2d_plus", "refusal"])
    with pytest.raises(UserError, match="no such task"):
        check_tasks(["arithmetics/2d"])
    with pytest.raises(UserError, match=r"gates: .*lambada") as caught:
        check_tasks(["lambada"])
    for name in ("arithmetic", "refusal", "scrambles", "toxicity"):
        assert name in caught.value.fix
