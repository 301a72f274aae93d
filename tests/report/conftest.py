"""Run folders in the contract's formats, made of random numbers: whole, partial and odd."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from lmsmith.runs.records import write_record

HARDWARE = {
    "cpu": "Intel(R) Xeon(R) Processor",
    "cores": 2,
    "memory_bytes": 16_000_000_000,
    "flags": ["avx512f", "amx_bf16"],
    "platform": "Linux-6.1-x86_64",
    "python": "3.11.9",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"source": "chitchat", "splits": {"judge": 0.2, "test": 0.05}},
    "tokenizer": {"vocabulary_size": 4096},
    "pretrain": {"batch_tokens": 32768, "model": {"layers": 6}, "optimiser": {"name": "muon"}},
    "sft": {"batch_tokens": 8192, "epochs": 2.0},
    "rankings": {"conversations": "comparisons", "samples": 2},
    "reward": {"epochs": 1},
    "ppo": {"iterations": 40, "kl_control": "adaptive", "kl_target": 2.0, "kl_budget": 20.0},
    "judge_rankings": {"conversations": "judge", "samples": 2},
    "judge": {"epochs": 1},
    "evaluate": {"prompts": 200},
}
INPUTS: dict[str, dict[str, str]] = {
    "data": {},
    "tokenizer": {"data": "data"},
    "pretrain": {"data": "data", "tokenizer": "tokenizer"},
    "sft": {"data": "data", "base": "pretrain"},
    "rankings": {"data": "data", "policy": "sft"},
    "reward": {"rankings": "rankings", "base": "sft"},
    "ppo": {"data": "data", "policy": "sft", "reward": "reward", "pretrain": "pretrain"},
    "judge_rankings": {"data": "data", "policy": "sft"},
    "judge": {"rankings": "judge_rankings", "base": "pretrain"},
    "evaluate": {"pretrain": "pretrain", "sft": "sft", "ppo": "ppo", "judge": "judge"},
}
SECONDS = {
    "data": 3.2,
    "tokenizer": 4.9,
    "pretrain": 402.0,
    "sft": 71.3,
    "rankings": 38.0,
    "reward": 55.1,
    "ppo": 236.0,
    "judge_rankings": 30.5,
    "judge": 41.0,
    "evaluate": 58.2,
}
METRICS: dict[str, dict[str, float]] = {
    "data": {
        "documents": 3124,
        "conversations.read": 4500,
        "conversations.kept": 4300,
        "conversations.demonstrations": 900,
        "conversations.test": 215,
    },
    "tokenizer": {"vocabulary_size": 4096, "bytes_per_token": 3.61, "tokens_per_character": 0.28},
    "pretrain": {"validation_bits_per_byte": 1.804, "parameters": 5_900_000, "compiled": 1.0},
    "sft": {"validation_bits_per_byte": 1.71},
    "rankings": {"train": 800, "validation": 100, "test": 200},
    "reward": {"validation/accuracy": 0.6},
    "ppo": {"iterations": 40},
    "judge_rankings": {"train": 700, "validation": 80},
    "judge": {"validation/accuracy": 0.61},
    "evaluate": {
        "pretrain.bits_per_byte": 1.7893,
        "sft.bits_per_byte": 1.8121,
        "ppo.bits_per_byte": 1.8149,
        "pretrain.reply_perplexity": 51.2,
        "sft.reply_perplexity": 38.4,
        "ppo.reply_perplexity": 39.9,
        "reward.accuracy": 0.612,
        "reward.accuracy_low": 0.574,
        "reward.accuracy_high": 0.648,
        "reward.longer_wins_accuracy": 0.521,
        "reward.likelier_wins_accuracy": 0.49,
        "reward.calibration_error": 0.034,
        "judge.accuracy": 0.603,
        "judge.accuracy_low": 0.566,
        "judge.accuracy_high": 0.64,
        "ppo.win_rate": 0.684,
        "ppo.win_rate_low": 0.62,
        "ppo.win_rate_high": 0.744,
        "ppo.win_rate_length_controlled": 0.661,
        "ppo.win_rate_length_controlled_low": 0.59,
        "ppo.win_rate_length_controlled_high": 0.72,
        "ppo.kl": 2.31,
        "ppo.reply_tokens": 14.2,
        "sft.reply_tokens": 13.1,
    },
}
WARNINGS = {"ppo": ["iteration 31: KL rose above its budget; the coefficient may be too small."]}
TEXT = """so i was thinking about the weekend and it feels like a good time to go for a walk near
the river with my dog he loves it there what about you do you have any pets yeah two cats they are
lovely but a bit lazy haha same here what do you do for work"""
WORDS = TEXT.split()
ODD_TEXTS = (
    "<script>alert('x')</script> & <b>bold</b> </p></section>",
    "今天天气不错,我们去公园散步吧。你喜欢什么样的音乐?",
    "👩‍👩‍👧‍👦 family 🇫🇷 e\u0301 مرحبا بك",
    "",
    "a very long reply " * 400,
    "control \x00\x1b characters and a lone \ud83d half",
)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(folder: Path, stages: Iterable[str] = tuple(SETTINGS), seed: int = 1) -> Path:
    """Write a run of which ``stages`` are done."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {
        "name": "quickstart",
        "description": "Real conversations to an aligned chat model in a quarter of an hour.",
        "seed": 7,
        "machine": {"precision": "auto", "compile": "auto", "threads": 0, "deterministic": True},
        **SETTINGS,
    }
    versions = {"lmsmith": "0.2.0", "torch": "2.13.0", "python": "3.11.9"}
    (folder / "recipe.json").write_text(
        json.dumps({"recipe": recipe, "hardware": HARDWARE, "versions": versions})
    )
    for stage in stages:
        write_stage(folder, stage, chance)
    return folder


def write_stage(folder: Path, stage: str, chance: random.Random) -> None:
    place = folder / stage
    place.mkdir(exist_ok=True)
    inputs = {
        role: {"stage": parent, "fingerprint": f"print-{parent}"}
        for role, parent in INPUTS[stage].items()
    }
    manifest = {
        "stage": stage,
        "status": "done",
        "fingerprint": f"print-{stage}",
        "settings": SETTINGS[stage],
        "inputs": inputs,
        "outputs": {},
        "metrics": METRICS[stage],
        "version": "0.2.0",
        "git_commit": "0123456789abcdef",
        "hardware": HARDWARE,
        "started": "2026-01-02T03:04:05+00:00",
        "wall_seconds": SECONDS[stage],
        "peak_memory_bytes": 1_234_000_000,
        "warnings": WARNINGS.get(stage, []),
        "machine": {"precision": "bf16", "threads": 2, "peak_gflops": 812.3},
    }
    write_record(place / "stage.json", manifest)
    if stage in _LOGS:
        write_rows(place / "metrics.jsonl", _LOGS[stage](chance))
    if stage in ("pretrain", "sft", "ppo"):
        write_model(place / "model")
    if stage == "ppo":
        write_rows(place / "samples.jsonl", _ppo_samples(chance))
    if stage in ("rankings", "judge_rankings"):
        write_rows(place / "train.jsonl", [{"labeler": "human_reply_first"}] * 3)
    if stage == "evaluate":
        write_rows(place / "samples.jsonl", _samples(chance))
        write_rows(place / "frontier.jsonl", _frontier())
        (place / "calibration.json").write_text(json.dumps(_calibration(chance)))


def write_model(folder: Path) -> None:
    """A model folder whose safetensors header declares 5,900,000 numbers, without the weights."""
    folder.mkdir()
    shapes = {"embedding": [4096, 256], "blocks": [4_851_424]}
    header = json.dumps(
        {name: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for name, s in shapes.items()}
        | {"__metadata__": {"format": "pt"}}
    ).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    shape = {"layers": 6, "width": 256, "heads": 4, "context": 256, "ffn_width": 0}
    (folder / "config.json").write_text(json.dumps({"kind": "decoder", "model": shape}))


def _text(chance: random.Random, least: int = 4, most: int = 24) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(chance.randint(least, most))).capitalize()


def _loss_rows(steps: int, start: float, end: float) -> Callable[[random.Random], list[dict]]:
    def rows(chance: random.Random) -> list[dict]:
        made = []
        for step in range(1, steps + 1):
            bits = end + (start - end) * math.exp(-9 * step / steps) + chance.gauss(0, 0.035)
            row = {
                "step": step,
                "seconds": 0.6 * step,
                "loss": bits * 2.5,
                "bits_per_byte": bits,
                "learning_rate": 0.02,
                "gradient_norm": 0.5,
                "tokens_per_second": 49_000 + chance.gauss(0, 800),
                "share_of_peak": 0.55,
            }
            if step % max(steps // 14, 1) == 0:
                row["validation/bits_per_byte"] = bits + 0.02
            made.append(row)
        return made

    return rows


def _ranking_rows(chance: random.Random) -> list[dict]:
    made = []
    for step in range(1, 121):
        done = 1 - math.exp(-4 * step / 120)
        row = {
            "step": step,
            "seconds": step * 0.4,
            "loss": 0.7 - 0.06 * done + chance.gauss(0, 0.015),
            "accuracy": 0.5 + 0.14 * done + chance.gauss(0, 0.05),
        }
        if step % 15 == 0:
            row["validation/accuracy"] = 0.5 + 0.11 * done + chance.gauss(0, 0.008)
            row["validation/loss"] = 0.7 - 0.045 * done
        made.append(row)
    return made


def _ppo_rows(chance: random.Random) -> list[dict]:
    made = []
    for step in range(1, 41):
        done = 1 - math.exp(-2.5 * step / 40)
        kl = 2.6 * done + chance.gauss(0, 0.12)
        score = 0.9 * done - 0.1 + chance.gauss(0, 0.07)
        made.append(
            {
                "step": step,
                "seconds": step * 5.8,
                "objective/kl": kl,
                "objective/entropy": 44 - 9 * done + chance.gauss(0, 0.9),
                "objective/scores": score,
                "objective/rlhf_reward": score - 0.05 * kl,
                "objective/response_tokens": 13 + 1.2 * done + chance.gauss(0, 0.4),
                "policy/entropy_avg": 3.3 - 0.6 * done + chance.gauss(0, 0.06),
                "policy/clipfrac_avg": abs(0.03 + 0.02 * done + chance.gauss(0, 0.006)),
                "val/clipfrac_avg": abs(0.05 - 0.03 * done + chance.gauss(0, 0.006)),
                "loss/value_avg": 0.42 * math.exp(-step / 12) + 0.11 + chance.gauss(0, 0.01),
                "seconds/rollout": 2.1,
                "seconds/score": 0.7,
                "seconds/update": 2.8,
                "rollout_tokens_per_second": 3900 + chance.gauss(0, 90),
            }
        )
    return made


_LOGS: dict[str, Callable[[random.Random], list[dict]]] = {
    "pretrain": _loss_rows(600, 7.9, 1.78),
    "sft": _loss_rows(140, 2.3, 1.68),
    "reward": _ranking_rows,
    "judge": _ranking_rows,
    "ppo": _ppo_rows,
}


def _prompt(chance: random.Random) -> list[dict[str, str]]:
    turns = chance.choice((1, 1, 3))
    roles = ["user", "assistant", "user"][-turns:] if turns > 1 else ["user"]
    return [{"role": role, "content": _text(chance)} for role in roles]


def _samples(chance: random.Random) -> list[dict]:
    made = []
    for index in range(20):
        mean = {"human": 0.3, "pretrain": -0.8, "sft": -0.1, "ppo": 0.7}
        row = {
            "prompt": _prompt(chance),
            "human": _text(chance),
            "responses": {stage: _text(chance) for stage in ("pretrain", "sft", "ppo")},
            "reward": {who: chance.gauss(m, 0.5) for who, m in mean.items()},
            "judge": {who: chance.gauss(m * 0.7, 0.5) for who, m in mean.items()},
        }
        if index >= 20 - len(ODD_TEXTS):
            odd = ODD_TEXTS[index - 20 + len(ODD_TEXTS)]
            row["prompt"][-1]["content"] = odd
            row["human"] = odd
            row["responses"]["ppo"] = odd
        made.append(row)
    return made


def _ppo_samples(chance: random.Random) -> list[dict]:
    prompts = [_text(chance) for _ in range(4)]
    return [
        {
            "step": step,
            "prompt": f"<|endoftext|><|user|>{prompt}<|end|><|assistant|>",
            "response": f"{_text(chance)}<|end|>",
            "score": chance.gauss(step / 50, 0.4),
            "kl": step / 16,
        }
        for step in (1, 20, 40)
        for prompt in prompts
    ]


def _frontier() -> list[dict]:
    return [
        {"step": s, "kl": k, "reward": 0.55 * math.sqrt(k), "judge": 0.45 * math.sqrt(k) - 0.04 * k}
        for s, k in ((0, 0.0), (10, 0.6), (20, 1.3), (30, 2.0), (40, 2.6))
    ]


def _calibration(chance: random.Random) -> dict[str, list[dict]]:
    return {
        stage: [
            {
                "low": index / 10,
                "high": (index + 1) / 10,
                "predicted": (index + 0.5) / 10 if index < 9 else None,
                "observed": min(1, max(0, (index + 0.5) / 10 + chance.gauss(0, 0.06)))
                if index < 9
                else None,
                "count": 60 - 5 * abs(index - 5) if index < 9 else 0,
            }
            for index in range(10)
        ]
        for stage in ("reward", "judge")
    }


@pytest.fixture
def whole_run(tmp_path: Path) -> Path:
    """A run of which every stage is done."""
    return write_run(tmp_path / "runs" / "quickstart")


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which every stage is done, for tests that change nothing in it."""
    return write_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture
def partial_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes runs of which only the stages named are done."""

    def make(*stages: str, name: str = "partial") -> Path:
        return write_run(tmp_path / "runs" / name, stages)

    return make
