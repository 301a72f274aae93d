"""Evaluation of tiny real models: what is known must come out, what is missing is left out."""

from __future__ import annotations

import copy
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_world import (
    conversations,
    ending_decoder,
    make_tokenizer,
    stage_folder,
    write_data,
    write_models,
)

from lmsmith.core.config import problems_in
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import read_json, read_jsonl, write_jsonl
from lmsmith.core.recipe import MachineConfig
from lmsmith.evaluation.methods.perplexity import bits_per_byte
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.models.heads import ScalarModel
from lmsmith.prompts import encode_prompt
from lmsmith.rlhf.rollout import response_log_likelihoods, score_sequences
from lmsmith.runs.signals import StopSignal
from lmsmith.stages import evaluate
from lmsmith.stages.evaluate import EvaluateConfig, run
from lmsmith.training.machine import resolve_machine

TOKENIZER = make_tokenizer()
MACHINE = resolve_machine(MachineConfig(precision="fp32"))


def perturbed(decoder: Decoder, seed: int, size: float) -> Decoder:
    generator = torch.Generator().manual_seed(seed)
    made = copy.deepcopy(decoder)
    for parameter in made.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return made


CONFIG = EvaluateConfig(
    max_document_bytes=1_500,
    max_conversations=6,
    max_prompts=24,
    max_new_tokens=20,
    frontier_prompts=16,
)
DECODERS = {name: ending_decoder(TOKENIZER, seed) for seed, name in enumerate(("pretrain", "sft"))}
DECODERS["ppo"] = perturbed(DECODERS["sft"], 3, 0.2)
FILES = ("samples.jsonl", "calibration.json", "frontier.jsonl")


def scorer(seed: int) -> ScalarModel:
    model = ScalarModel(perturbed(DECODERS["sft"], seed, 0.1))
    model.initialise_head(torch.Generator().manual_seed(seed))
    return model


REWARD, JUDGE = scorer(1), scorer(2)


def ranking_rows(count: int) -> list[dict[str, object]]:
    """Human replies against one sample and one reply from elsewhere; all of random words."""
    rows: list[dict[str, object]] = []
    for row in conversations(count, 9, "r"):
        messages: Any = row["messages"]
        turns = [message for message in messages if message["role"] != "system"]
        texts = [turns[1]["content"], turns[2]["content"] + " tea", turns[3]["content"]]
        rows.append(
            {
                "prompt": turns[:1],
                "responses": texts,
                "ranks": [1, 2, 2],
                "origins": ["human", "policy", "elsewhere"],
                "id": row["id"],
            }
        )
    return rows


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_inputs(tmp_path_factory.mktemp("run"))


def make_inputs(folder: Path) -> dict[str, Path]:
    """Folders of a run's stages, by their names, below ``folder``."""
    documents = [
        {"text": " ".join(m["content"] for m in row["messages"]), "id": row["id"]}  # type: ignore[attr-defined]
        for row in conversations(30, 4, "d")
    ]
    data = write_data(folder / "data", test=conversations(20, 3, "t"), test_documents=documents)
    for name in ("rankings", "judge_rankings"):
        write_data(folder / name, test=ranking_rows(40))
    folders = write_models(folder, TOKENIZER, **DECODERS)
    for name, model in (("reward", REWARD), ("judge", JUDGE)):
        save_model(folder / name / "model", model, TOKENIZER, {})
        folders[name] = folder / name
    save_model(folder / "ppo" / "model", DECODERS["ppo"], TOKENIZER, {"metrics": {"iterations": 9}})
    for step, weight in ((3, 0.3), (6, 0.6)):
        between = between_models(DECODERS["sft"], DECODERS["ppo"], weight)
        save_model(folder / "ppo" / "snapshots" / f"step-{step:06d}", between, TOKENIZER, {})
    return {
        "data": data,
        **folders,
        **{name: folder / name for name in ("rankings", "judge_rankings")},
    }


def between_models(one: Decoder, other: Decoder, weight: float) -> Decoder:
    made = copy.deepcopy(one)
    for parameter, target in zip(made.parameters(), other.parameters(), strict=True):
        parameter.data.lerp_(target.data, weight)
    return made


@pytest.fixture(scope="module")
def made(
    inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    out = stage_folder(tmp_path_factory.mktemp("evaluate"))
    return out.path, run(CONFIG, inputs, out)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


def test_the_contracts_metrics_are_there(made: tuple[Path, dict[str, float]]) -> None:
    names = {f"{stage}.{metric}" for stage in ("pretrain", "sft", "ppo")
             for metric in ("bits_per_byte", "reply_perplexity", "reply_tokens")}  # fmt: skip
    for stage, metric in (
        ("reward", "accuracy"),
        ("judge", "accuracy"),
        ("ppo", "win_rate"),
        ("ppo", "win_rate_length_controlled"),
    ):
        names |= {f"{stage}.{metric}{end}" for end in ("", "_low", "_high")}
    for rule in ("longer_wins_accuracy", "likelier_wins_accuracy", "calibration_error"):
        names |= {f"reward.{rule}", f"judge.{rule}"}
    metrics = made[1]
    assert names | {"ppo.kl"} <= set(metrics)
    for name, value in metrics.items():
        assert type(value) is float, name
        if name.endswith("_low"):
            middle = name.removesuffix("_low")
            assert value <= metrics[middle] <= metrics[f"{middle}_high"], name


def test_samples_hold_what_everyone_wrote_and_how_it_scores(
    made: tuple[Path, dict[str, float]],
) -> None:
    rows = rows_of(made[0] / "samples.jsonl")
    assert len(rows) == made[1]["evaluate.prompts"] == 24
    for row in rows[:6]:
        assert set(row["responses"]) == {"pretrain", "sft", "ppo"}
        prompt = encode_prompt(TOKENIZER, row["prompt"]).tokens
        for model, name in ((REWARD, "reward"), (JUDGE, "judge")):
            assert set(row[name]) == {"human", "pretrain", "sft", "ppo"}
            texts = {"human": row["human"], **row["responses"]}
            for replier, text in texts.items():
                ids = TOKENIZER.encode(text)[:20]
                sequence = [*prompt, *ids, TOKENIZER.end_of_turn]
                (score,) = score_sequences(model, [sequence], MACHINE).tolist()
                assert row[name][replier] == pytest.approx(score, abs=2e-3)
    judged = [row["judge"] for row in rows]
    won = sum((s["ppo"] > s["sft"]) + 0.5 * (s["ppo"] == s["sft"]) for s in judged) / len(rows)
    assert made[1]["ppo.win_rate"] == pytest.approx(won, abs=0.03)


def test_bits_per_byte_is_that_of_the_first_documents(
    made: tuple[Path, dict[str, float]], inputs: dict[str, Path]
) -> None:
    texts: list[str] = []
    for row in rows_of(inputs["data"] / "test_documents.jsonl"):
        if sum(map(len, texts)) < 1_500:
            texts.append(row["text"])
    expected = bits_per_byte(DECODERS["sft"], TOKENIZER, texts, MACHINE)
    assert made[1]["sft.bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_accuracies_by_hand(made: tuple[Path, dict[str, float]], inputs: dict[str, Path]) -> None:
    right = {"reward": 0.0, "longer": 0.0, "total": 0.0, "each": 0.0, "policy": 0.0}
    rows = rows_of(inputs["rankings"] / "test.jsonl")
    for row in rows:
        prompt = encode_prompt(TOKENIZER, row["prompt"]).tokens
        replies = [[*TOKENIZER.encode(t), TOKENIZER.end_of_turn] for t in row["responses"]]
        scores = score_sequences(REWARD, [prompt + reply for reply in replies], MACHINE).tolist()
        totals = response_log_likelihoods(DECODERS["sft"], [prompt] * 3, replies, MACHINE).tolist()
        lengths = [len(reply) for reply in replies]
        for other in (1, 2):
            right["reward"] += scores[0] > scores[other]
            right["longer"] += (lengths[0] > lengths[other]) + 0.5 * (lengths[0] == lengths[other])
            right["total"] += totals[0] > totals[other]
            right["each"] += totals[0] / lengths[0] > totals[other] / lengths[other]
        right["policy"] += scores[0] > scores[1]
    metrics = made[1]
    pairs = 2 * len(rows)
    assert metrics["reward.test_pairs"] == pairs
    assert metrics["reward.accuracy"] == pytest.approx(right["reward"] / pairs)
    assert metrics["reward.longer_wins_accuracy"] == pytest.approx(right["longer"] / pairs)
    assert metrics["reward.likelier_total_wins_accuracy"] == pytest.approx(right["total"] / pairs)
    likelier = max(right["total"], right["each"]) / pairs
    assert metrics["reward.likelier_wins_accuracy"] == pytest.approx(likelier)
    assert metrics["reward.accuracy_against_policy"] == pytest.approx(right["policy"] / len(rows))
    above = right["reward"] - max(right["longer"], right["total"], right["each"])
    assert metrics["reward.accuracy_above_rules"] == pytest.approx(above / pairs)


def test_calibration_file_agrees_with_the_error(made: tuple[Path, dict[str, float]]) -> None:
    found: Any = read_json(made[0] / "calibration.json")
    for name in ("reward", "judge"):
        bins = found[name]
        assert sum(each["count"] for each in bins) == 2 * made[1][f"{name}.test_pairs"]
        error = sum(each["count"] * abs(each["observed"] - each["predicted"]) for each in bins)
        error /= sum(each["count"] for each in bins)
        assert made[1][f"{name}.calibration_error"] == pytest.approx(error)


def test_frontier_goes_from_sft_to_the_end_of_ppo(made: tuple[Path, dict[str, float]]) -> None:
    rows = rows_of(made[0] / "frontier.jsonl")
    assert [row["step"] for row in rows] == [0, 3, 6, 9]
    assert rows[0]["kl"] == 0.0
    assert 0 < rows[1]["kl"] < rows[3]["kl"]
    assert all({"reward", "judge"} <= set(row) for row in rows)


def test_ppo_that_is_sft_ties_and_has_no_kl(inputs: dict[str, Path], tmp_path: Path) -> None:
    chosen = {role: inputs[role] for role in ("data", "pretrain", "sft", "judge")}
    metrics = run(CONFIG, {**chosen, "ppo": inputs["sft"]}, stage_folder(tmp_path))
    assert metrics["ppo.kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["ppo.win_rate"] == 0.5
    assert metrics["ppo.win_rate_low"] < 0.5 < metrics["ppo.win_rate_high"]
    assert metrics["ppo.win_rate_length_controlled"] == pytest.approx(0.5)
    assert "judge.accuracy" not in metrics  # no rankings to test it on
    assert not [name for name in metrics if name.startswith("reward.")]
    assert rows_of(tmp_path / "frontier.jsonl") == []


def test_only_pretrain_and_sft(inputs: dict[str, Path], tmp_path: Path) -> None:
    metrics = run(
        CONFIG, {role: inputs[role] for role in ("data", "pretrain", "sft")}, stage_folder(tmp_path)
    )
    assert {"pretrain.bits_per_byte", "sft.reply_perplexity", "sft.ended_share"} <= set(metrics)
    assert not [name for name in metrics if name.startswith(("ppo.", "reward.", "judge."))]
    assert set(rows_of(tmp_path / "samples.jsonl")[0]["responses"]) == {"pretrain", "sft"}
    assert read_json(tmp_path / "calibration.json") == {}


def test_data_without_conversations_leaves_text_alone(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(inputs["data"] / "test_documents.jsonl", data)
    roles = ("pretrain", "sft", "ppo", "judge", "reward")
    metrics = run(
        CONFIG,
        {"data": data, **{role: inputs[role] for role in roles}},
        stage_folder(tmp_path / "e"),
    )
    assert set(metrics) == {f"{name}.bits_per_byte" for name in ("pretrain", "sft", "ppo")}


def test_a_stopped_evaluation_goes_on_and_ends_the_same(
    made: tuple[Path, dict[str, float]],
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = stage_folder(tmp_path)
    real, calls = evaluate.generate, []

    def killing(*arguments: Any, **settings: Any) -> list[list[int]]:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **settings)

    monkeypatch.setattr(evaluate, "generate", killing)
    with pytest.raises(Interrupted), StopSignal():
        run(CONFIG, inputs, out)
    with StopSignal():
        metrics = run(CONFIG, inputs, out)
    assert len(calls) == 5  # three policies and two snapshots, none twice
    assert metrics == made[1]
    for name in FILES:
        assert (out / name).read_bytes() == (made[0] / name).read_bytes()


def test_replies_too_long_for_the_context_are_one_message(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"evaluate\.max_new_tokens = 60"):
        run(EvaluateConfig(max_new_tokens=60), inputs, stage_folder(tmp_path))


def test_settings_out_of_range_are_all_named() -> None:
    config = EvaluateConfig(max_prompts=0, max_new_tokens=1, frontier_snapshots=-1, temperature=0)
    assert [each.key for each in problems_in(config)] == [
        "max_prompts",
        "temperature",
        "frontier_snapshots",
        "max_new_tokens",
    ]
    assert problems_in(EvaluateConfig()) == []


def test_rankings_that_do_not_fit_are_no_test(inputs: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"prompt": "tea " * 200, "chosen": "yes", "rejected": "no", "id": "1"}]
    write_jsonl(tmp_path / "rankings" / "test.jsonl", rows)
    chosen = {role: inputs[role] for role in ("data", "pretrain", "sft", "reward")}
    metrics = run(
        CONFIG, {**chosen, "rankings": tmp_path / "rankings"}, stage_folder(tmp_path / "e")
    )
    assert "reward.accuracy" not in metrics
    assert "sft.reward_score" in metrics
