"""A reward model that learns what its labeler prefers, keeps its best, and survives a kill."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from preference_world import (
    count_recomputed,
    make_decoder,
    make_tokenizer,
    sentence,
    stage_folder,
    write_models,
)

from lmsmith.core.config import problems_in
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import write_jsonl
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.rows import Ranking, read_rankings
from lmsmith.models.folder import load_decoder, load_scalar_model
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf import ranking
from lmsmith.rlhf.ranking import EncodedRanking, encode_rankings, score_rankings
from lmsmith.rlhf.rollout import score_sequences
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.signals import StopSignal
from lmsmith.stages import reward
from lmsmith.stages.reward import (
    RewardConfig,
    epoch_batches,
    freeze_layers,
    longer_wins_accuracy,
    reply_lengths,
    run,
    set_shift,
)
from lmsmith.training.machine import resolve_machine
from lmsmith.training.optimiser import OptimiserConfig

TOKENIZER = make_tokenizer()
MACHINE = resolve_machine(MachineConfig(precision="fp32"))
CONFIG = RewardConfig(
    epochs=6,
    batch_prompts=16,
    optimiser=OptimiserConfig(learning_rate=3e-3, weight_decay=0.0),
    patience=0,
    validations=2,
)


def rankings(count: int, seed: int, name: str) -> list[dict[str, object]]:
    """The labeler likes replies with "tea", ranks the others equal, and shuffles them."""
    source = random.Random(seed)
    rows: list[dict[str, object]] = []
    for number in range(count):
        replies = [sentence(source).replace("tea", "rain") for _ in range(source.randint(2, 4))]
        words = replies[0].split()
        words[source.randrange(len(words))] = "tea"
        replies[0] = " ".join(words)
        source.shuffle(replies)
        rows.append(
            {
                "prompt": [{"role": "user", "content": sentence(source)}],
                "responses": replies,
                "ranks": [1 if "tea" in reply.split() else 2 for reply in replies],
                "id": f"{name}{number}",
            }
        )
    return rows


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("run")
    write_jsonl(folder / "rankings" / "train.jsonl", rankings(160, 1, "a"))
    write_jsonl(folder / "rankings" / "validation.jsonl", rankings(60, 2, "b"))
    models = write_models(folder, TOKENIZER, base=make_decoder(TOKENIZER))
    return {"rankings": folder / "rankings", **models}


@pytest.fixture(scope="module")
def made(
    inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    out = stage_folder(tmp_path_factory.mktemp("stage") / "reward")
    return out.path, run(CONFIG, inputs, out)


def encoded(path: Path) -> list[EncodedRanking]:
    return encode_rankings(TOKENIZER, list(read_rankings(path)), 64)[0]


def test_it_learns_the_preference(made: tuple[Path, dict[str, float]]) -> None:
    path, metrics = made
    assert metrics["validation_accuracy"] > 0.9
    assert metrics["longer_wins_validation_accuracy"] < 0.7
    # and scores whole sequences as the rankings' rows were scored
    model = load_scalar_model(path / "model")
    fresh, _ = encode_rankings(TOKENIZER, [Ranking(**row) for row in rankings(30, 5, "f")], 64)  # type: ignore[arg-type]
    liked = [r.prompt + r.responses[i] for r in fresh for i in r.best]
    others = [r.prompt + s for r in fresh for i, s in enumerate(r.responses) if i not in r.best]
    means = [float(score_sequences(model, each, MACHINE).mean()) for each in (liked, others)]
    assert means[0] > means[1] + 0.5


def test_without_epochs_the_head_alone_is_fitted(
    inputs: dict[str, Path], made: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    config = RewardConfig(epochs=0, fit_head=True)
    found = {}
    for name, start in (("reward", {}), ("again", {"start": made[0]})):
        metrics = run(config, inputs | start, stage_folder(tmp_path / name))
        assert metrics["steps"] == 0.0
        assert metrics["train_accuracy"] >= metrics["validation_accuracy"] > 0.55
        found[name] = load_scalar_model(tmp_path / name / "model")
        train = encoded(inputs["rankings"] / "train.jsonl")
        assert reward.measure(found[name], train, MACHINE)[0] == pytest.approx(
            metrics["train_accuracy"], abs=1e-9
        )
        scores = [
            row[place]
            for each, row in zip(train, score_rankings(found[name], train, MACHINE), strict=True)
            for place in each.best
        ]
        assert sum(scores) / len(scores) == pytest.approx(0.0, abs=1e-4)
    # The model it begins with stays as it was: here the base, there one that has learnt already.
    for name, model in (("reward", inputs["base"]), ("again", made[0])):
        before = load_scalar_model(model / "model") if name == "again" else None
        decoder = before.decoder if before else load_decoder(model / "model")
        for key, value in decoder.state_dict().items():
            assert torch.equal(found[name].decoder.state_dict()[key], value), key
    assert not torch.equal(
        found["again"].head.weight, load_scalar_model(made[0] / "model").head.weight
    )


def test_the_best_look_is_what_is_saved(
    made: tuple[Path, dict[str, float]], inputs: dict[str, Path]
) -> None:
    path, metrics = made
    rows = read_metrics(path / "metrics.jsonl")
    looks = {
        row["step"]: row["validation/accuracy"] for row in rows if "validation/accuracy" in row
    }
    assert metrics["validation_accuracy"] == pytest.approx(max(looks.values()))
    assert looks[int(metrics["best_step"])] == max(looks.values())
    assert len(rows) == metrics["steps"] == 60
    assert {"loss", "accuracy", "learning_rate", "gradient_norm", "tokens_per_second"} <= set(
        rows[0]
    )
    again, _ = reward.measure(
        load_scalar_model(path / "model"),
        encoded(inputs["rankings"] / "validation.jsonl"),
        MACHINE,
    )
    assert again == pytest.approx(metrics["validation_accuracy"])


def test_demonstrations_score_zero_on_average(
    made: tuple[Path, dict[str, float]], inputs: dict[str, Path]
) -> None:
    train = encoded(inputs["rankings"] / "train.jsonl")
    scores = score_rankings(load_scalar_model(made[0] / "model"), train, MACHINE)
    best = [row[i] for ranking, row in zip(train, scores, strict=True) for i in ranking.best]
    others = [value for row in scores for value in row]
    assert sum(best) / len(best) == pytest.approx(0.0, abs=1e-4)
    assert sum(others) / len(others) < -0.5


@pytest.mark.parametrize("learning_rate", [3e-3, 1e-9])  # the best is a late look; an early one
def test_a_killed_run_ends_with_the_same_bits(
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    learning_rate: float,
) -> None:
    optimiser = OptimiserConfig(learning_rate=learning_rate)
    config = RewardConfig(**{**vars(CONFIG), "epochs": 2, "dropout": 0.2, "optimiser": optimiser})
    unbroken, broken = (
        stage_folder(tmp_path / "a" / "reward"),
        stage_folder(tmp_path / "b" / "reward"),
    )
    run(config, inputs, unbroken)

    real, calls = reward.ranking_loss, []

    def killing(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) in (9, 17):  # in an evaluation after a step, and in a step
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    for module in (reward, ranking):
        monkeypatch.setattr(module, "ranking_loss", killing)
    for _ in range(2):
        with pytest.raises(Interrupted), StopSignal():
            run(config, inputs, broken)
        torch.manual_seed(0)  # what the process did in between must not matter
    with StopSignal():
        run(config, inputs, broken)
    for name in ("model.safetensors", "card.json"):
        assert (broken / "model" / name).read_bytes() == (unbroken / "model" / name).read_bytes()
    one, other = (read_metrics(out.path / "metrics.jsonl") for out in (unbroken, broken))
    timed = {"seconds", "tokens_per_second"}
    assert [{k: v for k, v in row.items() if k not in timed} for row in one] == [
        {k: v for k, v in row.items() if k not in timed} for row in other
    ]


def test_training_stops_when_accuracy_stops_rising(inputs: dict[str, Path], tmp_path: Path) -> None:
    frozen = OptimiserConfig(learning_rate=1e-9)
    config = RewardConfig(epochs=9, batch_prompts=16, optimiser=frozen, validations=5, patience=2)
    out = stage_folder(tmp_path / "reward")
    metrics = run(config, inputs, out)
    assert metrics["steps"] < 60
    assert any("PPO would learn little" in text for text in out.progress.said)  # type: ignore[attr-defined]


def test_no_validation_rankings_keeps_the_last_weights(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "rankings" / "train.jsonl", rankings(20, 3, "c"))
    config = RewardConfig(epochs=1, batch_prompts=8)
    metrics = run(
        config,
        {"rankings": tmp_path / "rankings", "base": inputs["base"]},
        stage_folder(tmp_path / "reward"),
    )
    assert metrics["steps"] == metrics["best_step"] == 20
    assert "validation_accuracy" not in metrics


def test_nothing_to_learn_from_is_one_clear_message(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    rows = rankings(4, 3, "c")
    for row in rows:
        row["ranks"] = [1] * len(row["ranks"])  # type: ignore[arg-type]
    write_jsonl(tmp_path / "rankings" / "train.jsonl", rows)
    out = stage_folder(tmp_path / "reward")
    with pytest.raises(UserError, match="no ranking to learn from"):
        run(RewardConfig(), {"rankings": tmp_path / "rankings", "base": inputs["base"]}, out)
    assert "4 of 4 rankings left out" in out.progress.said[0]  # type: ignore[attr-defined]


def test_batches_hold_every_prompt_once_an_epoch_and_like_lengths() -> None:
    lengths = [random.Random(i).randint(5, 200) for i in range(203)]
    batches = epoch_batches(lengths, 8, 2, seed=5)
    assert len(batches) == 2 * 26
    for epoch in (batches[:26], batches[26:]):
        assert sorted(index for batch in epoch for index in batch) == list(range(203))
    assert batches[:26] != batches[26:]
    assert batches == epoch_batches(lengths, 8, 2, seed=5)
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    assert sum(spread) / len(spread) < 60  # of 195


def test_frozen_layers_do_not_move() -> None:
    model = ScalarModel(make_decoder(TOKENIZER))
    freeze_layers(model, 1)
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("decoder.blocks.0", "decoder.token", "decoder.position"))
                   for name in moving)  # fmt: skip
    assert any(name.startswith("decoder.blocks.1") for name in moving)
    assert {"head.weight", "head.bias"} <= moving
    whole = ScalarModel(make_decoder(TOKENIZER))
    freeze_layers(whole, -1)
    assert all(parameter.requires_grad for parameter in whole.parameters())


def test_little_data_is_learnt_in_smaller_batches_and_said(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "rankings" / "train.jsonl", rankings(12, 1, "a"))
    out = stage_folder(tmp_path / "reward")
    config = replace(CONFIG, epochs=2)
    metrics = run(config, {**inputs, "rankings": tmp_path / "rankings"}, out)
    assert metrics["batch_prompts"] == 1
    assert metrics["steps"] == 24
    said = "\n".join(out.progress.said)  # type: ignore[attr-defined]
    assert "12 rankings are little data, so batch_prompts = 1 is taken, not 16" in said
    assert "24 steps are too few to learn much: raise reward.epochs" in said


def test_what_teaches_nothing_is_left_out_and_counted(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Inputs of this kind: ../shared/faults/07-equal-after-cut."""
    ask = [{"role": "user", "content": "tea"}]
    same = "rain " * 60
    rows = [
        {"prompt": ask, "responses": [same + "yes", same + "no"], "ranks": [1, 2]},
        {"prompt": ask, "responses": [same, "no"], "ranks": [1, 2]},
        {"prompt": ask, "responses": ["yes", "yes", "no"], "ranks": [1, 2, 3]},
        {"prompt": ask, "responses": ["", "sure"], "ranks": [2, 1]},
        {"prompt": ask, "responses": ["we", "you"], "ranks": [2, 2]},
    ]
    write_jsonl(tmp_path / "rankings" / "train.jsonl", rows)
    out = stage_folder(tmp_path / "reward")
    config = replace(CONFIG, epochs=1)
    metrics = run(config, {**inputs, "rankings": tmp_path / "rankings"}, out)
    assert metrics["prompts"] == 2
    assert {name: metrics[f"left_out_{name}"] for name in ("equal", "empty", "tied")} == {
        "equal": 1, "empty": 1, "tied": 1,
    }  # fmt: skip
    assert (metrics["responses_cut"], metrics["responses_equal"]) == (1, 1)
    said = "\n".join(out.progress.said)  # type: ignore[attr-defined]
    assert "3 of 5 rankings left out: 1 with all responses tied" in said
    assert "1 of 5 responses lose their end, being longer than 47 tokens" in said


@pytest.mark.parametrize("fit_head", [True, False])
def test_rankings_that_weigh_nothing_are_refused(
    inputs: dict[str, Path], tmp_path: Path, fit_head: bool
) -> None:
    rows = [{**row, "weight": 0} for row in rankings(4, 3, "c")]
    write_jsonl(tmp_path / "rankings" / "train.jsonl", rows)
    config = replace(CONFIG, fit_head=fit_head)
    folders = {**inputs, "rankings": tmp_path / "rankings"}
    with pytest.raises(UserError, match="every ranking has the weight 0"):
        run(config, folders, stage_folder(tmp_path / "reward"))


def test_nothing_left_is_one_clear_message(inputs: dict[str, Path], tmp_path: Path) -> None:
    same = "rain " * 60
    rows = [{"prompt": "tea", "chosen": same + "yes", "rejected": same + "no"}]
    write_jsonl(tmp_path / "rankings" / "train.jsonl", rows)
    folders = {**inputs, "rankings": tmp_path / "rankings"}
    with pytest.raises(UserError, match="no ranking to learn from") as raised:
        run(CONFIG, folders, stage_folder(tmp_path / "reward"))
    assert "raise reward.max_length" in raised.value.fix


def test_shift_lengths_and_the_longer() -> None:
    model = ScalarModel(make_decoder(TOKENIZER))
    model.initialise_head(torch.Generator().manual_seed(3))
    each = [
        EncodedRanking([0, 2], [[9, 4], [9, 9, 9, 4]], [1, 2]),
        EncodedRanking([0, 2], [[9, 9, 4], [9, 4], [9, 9, 4]], [1, 2, 1]),
    ]
    set_shift(model, each, MACHINE)
    set_shift(model, each, MACHINE)  # again changes nothing
    scores = score_rankings(model.eval(), each, MACHINE)
    assert scores[0][0] + scores[1][0] + scores[1][2] == pytest.approx(0.0, abs=1e-5)
    assert longer_wins_accuracy(each) == pytest.approx(2 / 3)
    assert reply_lengths(each) == {"best_reply_tokens": 5 / 3, "other_reply_tokens": 2.0}


def test_settings_out_of_range_are_all_named() -> None:
    config = RewardConfig(epochs=-1, patience=-1, frozen_layers=-2, dropout=1.0)
    assert [each.key for each in problems_in(config)] == [
        "epochs",
        "dropout",
        "frozen_layers",
        "patience",
    ]
    assert problems_in(RewardConfig()) == []
    assert [each.key for each in problems_in(RewardConfig(epochs=0))] == ["epochs"]
    assert problems_in(RewardConfig(epochs=0, fit_head=True)) == []


def test_activations_that_are_computed_again_change_no_number(
    made: tuple[Path, dict[str, float]],
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = count_recomputed(monkeypatch)
    out = stage_folder(tmp_path / "reward")
    metrics = run(replace(CONFIG, checkpoint_activations=True), inputs, out)
    assert blocks
    kept = [name for name in metrics if "second" not in name]
    assert {name: metrics[name] for name in kept} == pytest.approx(
        {name: made[1][name] for name in kept}, rel=1e-5, abs=1e-6
    )
