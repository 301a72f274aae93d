"""PPO as a stage, end to end on tiny models: its files, its numbers, and a stop in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from preference_world import (
    conversations,
    count_recomputed,
    ending_decoder,
    make_tokenizer,
    stage_folder,
    write_data,
    write_models,
)

from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import read_jsonl, write_json
from lmsmith.corpus.batches import MIXTURE_FILE, PretrainingBatches
from lmsmith.corpus.shards import write_shards
from lmsmith.models.folder import load_decoder, load_scalar_model, save_model
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.ppo import PPOConfig
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages import ppo as stage
from lmsmith.stages.ppo import few_updates_warning, run, snapshot_iterations, summary
from lmsmith.training import loop
from lmsmith.training.optimiser import OptimiserConfig

TOKENIZER = make_tokenizer()
FAST = OptimiserConfig(learning_rate=2e-3, weight_decay=0.0, epsilon=1e-5)
SHARES = [75.0, 25.0]
CONFIG = PPOConfig(
    iterations=4,
    rollouts=16,
    minibatch=8,
    ptx_coefficient=0.5,
    ptx_rows=2,
    max_new_tokens=10,
    max_prompt_tokens=40,
    snapshots=2,
    sample_rows=3,
    optimiser=FAST,
    value_optimiser=FAST,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("run")
    data = write_data(folder / "data", prompts=conversations(20, 4, "p"))
    models = write_models(folder, TOKENIZER, policy=ending_decoder(TOKENIZER))
    reward = ScalarModel(ending_decoder(TOKENIZER, 1))
    reward.initialise_head(torch.Generator().manual_seed(2))
    reward.shift.fill_(0.3)
    save_model(folder / "reward" / "model", reward, TOKENIZER, {})
    for number, texts in enumerate((["I like tea"] * 9, ["no rain", "we think"] * 9)):
        write_shards(
            folder / "pretrain" / "shards" / f"{number:03d}",
            TOKENIZER.encode_batch(texts),
            TOKENIZER.end_of_text,
            TOKENIZER.vocabulary_size,
        )
    write_json(folder / "pretrain" / MIXTURE_FILE, SHARES)
    return {
        "data": data, "reward": folder / "reward", "pretrain": folder / "pretrain", **models
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(
    inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageFolder, dict[str, float]]:
    out = stage_folder(tmp_path_factory.mktemp("stage") / "ppo")
    return out, run(CONFIG, inputs, out)


def untimed(out: StageFolder) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if "second" not in name}
        for row in read_metrics(out / "metrics.jsonl")
    ]


def test_it_begins_at_sft_and_leaves_what_it_should(
    made: tuple[StageFolder, dict[str, float]], inputs: dict[str, Path]
) -> None:
    out, metrics = made
    rows = untimed(out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["objective/kl"] == 0.0
    assert rows[0]["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert rows[-1]["objective/kl"] != 0.0
    assert all(row["loss/ptx_avg"] > 0 for row in rows)
    assert metrics["iterations"] == 4
    assert metrics["episodes"] == 64
    assert metrics["prompts"] > 20
    assert metrics["kl"] == rows[-1]["objective/kl"]
    before, after = load_decoder(inputs["policy"] / "model"), load_decoder(out / "model")
    assert before.config == after.config
    assert not torch.equal(before.token_embedding.weight, after.token_embedding.weight)
    assert float(load_scalar_model(out / "value").shift) == pytest.approx(0.3)
    assert sorted(path.name for path in (out / "snapshots").iterdir()) == [
        "step-000001",
        "step-000003",
    ]
    snapshot = load_decoder(out / "snapshots/step-000003")
    assert not torch.equal(snapshot.token_embedding.weight, after.token_embedding.weight)


def test_samples_show_prompt_response_score_and_divergence(
    made: tuple[StageFolder, dict[str, float]],
) -> None:
    rows = [row for _, row in read_jsonl(made[0] / "samples.jsonl")]
    assert [row["step"] for row in rows] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    for row in rows:
        assert {"step", "prompt", "response", "score", "kl"} <= set(row)
        assert str(row["prompt"]).startswith("<|endoftext|>")
        assert str(row["prompt"]).endswith("<|assistant|>")
        assert str(row["response"]).endswith("<|end|>") == row["ended"]


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_run_ends_with_the_same_bits(
    made: tuple[StageFolder, dict[str, float]],
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    out = stage_folder(tmp_path / "ppo")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: 2 if len(untimed(out)) == stop else None)
        with pytest.raises(Interrupted):
            run(CONFIG, inputs, out)
    run(CONFIG, inputs, out)
    assert untimed(out) == untimed(made[0])
    names = [f"{name}/model.safetensors" for name in ("model", "value", "snapshots/step-000003")]
    for name in [*names, "samples.jsonl"]:
        assert (out / name).read_bytes() == (made[0] / name).read_bytes(), name


def test_ptx_reads_the_mixture_that_pretraining_read(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Sequence[float]] = []

    def spy(sources: object, weights: Sequence[float], **settings: int) -> PretrainingBatches:
        given.append(weights)
        return PretrainingBatches(sources, weights, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "PretrainingBatches", spy)
    run(replace(CONFIG, iterations=1), inputs, stage_folder(tmp_path / "ppo"))
    assert given == [SHARES]


def test_no_prompt_that_fits_is_one_clear_message(inputs: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hm " * 90}], "id": "a"}]
    data = write_data(tmp_path / "data", prompts=rows)
    with pytest.raises(UserError, match=r"holds no turn of a user that fits .* 1 turns"):
        run(CONFIG, {**inputs, "data": data}, stage_folder(tmp_path / "ppo"))


def test_prompts_are_taken_however_long_the_persons_reply(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Inputs of this kind: ../shared/faults/39-ppo-long-replies."""
    ask = {"role": "user", "content": "tea"}
    rows = [
        {"messages": [ask, {"role": "assistant", "content": "rain " * n}], "id": f"a{n}"}
        for n in (1, 50, 100)
    ]
    rows += [{"messages": [ask], "id": "alone"}]
    rows += [{"messages": [{"role": "user", "content": "hm " * 90}], "id": "long"}]
    data = write_data(tmp_path / "data", prompts=rows)
    out = stage_folder(tmp_path / "ppo")
    metrics = run(replace(CONFIG, iterations=1), {**inputs, "data": data}, out)
    assert (metrics["prompts"], metrics["prompts_left_out"]) == (4, 1)
    said = out.progress.said  # type: ignore[attr-defined]
    assert any("1 of 5 prompts left out" in line for line in said)


def test_a_response_as_long_as_the_context_is_refused(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    config = replace(CONFIG, max_new_tokens=60)
    with pytest.raises(UserError, match="leaves no room for a prompt"):
        run(config, inputs, stage_folder(tmp_path / "ppo"))


def test_snapshots_are_evenly_spread_and_never_the_beginning() -> None:
    assert snapshot_iterations(replace(CONFIG, iterations=20, snapshots=3)) == {5, 10, 15}
    assert snapshot_iterations(replace(CONFIG, iterations=1, snapshots=4)) <= {1}
    assert snapshot_iterations(replace(CONFIG, snapshots=0)) == set()


def test_iterations_that_warm_up_the_value_model_say_nothing_of_the_policy() -> None:
    names = ["kl", "scores", "rlhf_reward", "response_tokens"]
    row = {f"objective/{name}": 1.0 for name in names} | {"episode": 8.0, "val/share_ended": 1.0}
    row |= {"policy/entropy_avg": 2.0, "rollout_tokens_per_second": 3.0}
    row |= {f"seconds/{part}": 1.0 for part in ("rollout", "score", "update")}
    found = summary([row] * 9 + [{**row, "policy/clipfrac_avg": 0.25}])
    assert found["clip_fraction"] == 0.25
    assert found["iterations"] == 10


def test_few_updates_are_said() -> None:
    enough = replace(CONFIG, iterations=18, value_warmup_iterations=4, rollouts=128, minibatch=64)
    assert few_updates_warning(replace(enough, ppo_epochs=1)) == ""
    few = replace(enough, iterations=6, ppo_epochs=1)
    assert few_updates_warning(few).startswith("too few updates of the policy to learn much (4)")


def test_activations_that_are_computed_again_change_no_number(
    made: tuple[StageFolder, dict[str, float]],
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks, out = count_recomputed(monkeypatch), stage_folder(tmp_path / "ppo")
    run(replace(CONFIG, checkpoint_activations=True), inputs, out)
    assert blocks
    for row, plain in zip(untimed(out), untimed(made[0]), strict=True):
        assert row == pytest.approx(plain, rel=1e-5, abs=1e-6)
