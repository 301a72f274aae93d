"""Stage: every stage against the one before it, on conversations that no stage has seen.

What is measured, and on what:

- bits per byte of held-out text and perplexity of people's replies, for each language model;
- accuracy of the reward model and of the judge on the test rankings, beside two rules that know
  nothing of the conversation (the longer wins, the likelier under SFT wins), and calibration;
- PPO against SFT: both answer the same prompts at the same temperature with the same random
  numbers, and the judge scores the texts as a reader would see them, so each is given an end of
  turn whether the model wrote it or not; and how far PPO moved, in nats of KL for a reply;
- the reward and the judge's score over that KL, at the snapshots PPO left.

Where a recipe leaves stages out, what needs them is left out. Every part is saved when it is
done, so that an interrupted evaluation goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lmsmith.comparison.replies import compare_replies, describe_replies, sample_rows
from lmsmith.core.files import write_json, write_jsonl
from lmsmith.rlhf.diagnosis import diagnose_frontier
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.bench import (
    Bench,
    answer,
    kl_of_replies,
    measure_frontier,
    measure_scorer,
    predict_text,
    score_texts,
)
from lmsmith.statistics.bootstrap import bootstrap_ratio


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of the evaluation.

    Attributes:
        max_document_bytes: at most so much held-out text is read for bits per byte.
        max_conversations: at most so many test conversations for the perplexity of replies.
        max_prompts: at most so many test prompts that every policy answers.
        prompts_per_conversation: at most so many of one conversation, evenly spread over it.
        min_new_tokens, max_new_tokens: length of the person's reply to such a prompt; no policy's
            reply is longer than the latter.
        max_prompt_tokens: most tokens of such a prompt; the oldest turns are dropped beyond it. 0
            allows what the context has beside the longest reply.
        temperature, top_p: of the policies' replies.
        frontier_prompts: prompts that PPO's snapshots answer.
        frontier_snapshots: at most so many snapshots, evenly spread; 0 leaves the curve out.
    """

    max_document_bytes: int = 300_000
    max_conversations: int = 80
    max_prompts: int = 500
    prompts_per_conversation: int = 2
    min_new_tokens: int = 3
    max_new_tokens: int = 48
    max_prompt_tokens: int = 96
    temperature: float = 1.0
    top_p: float = 1.0
    frontier_prompts: int = 100
    frontier_snapshots: int = 4

    def check(self) -> list[tuple[str, object, str, str]]:
        """Values out of range and contradictions, as (key, value, expected, fix)."""
        problems: list[tuple[str, object, str, str]] = []
        positive = (
            "max_document_bytes",
            "max_conversations",
            "max_prompts",
            "prompts_per_conversation",
        )
        for key in (*positive, "min_new_tokens", "frontier_prompts"):
            if getattr(self, key) < 1:
                problems.append((key, getattr(self, key), "a positive number", f"raise {key}"))
        if self.max_new_tokens < self.min_new_tokens:
            expected = f"at least min_new_tokens ({self.min_new_tokens})"
            problems.append(("max_new_tokens", self.max_new_tokens, expected, "raise it"))
        for key, fix in (
            ("max_prompt_tokens", "0 allows what the context has"),
            ("frontier_snapshots", "0 leaves the curve out"),
        ):
            if getattr(self, key) < 0:
                problems.append((key, getattr(self, key), "0 or more", fix))
        if not self.temperature > 0:
            fix = "with 0 every reply to a prompt is the same"
            problems.append(("temperature", self.temperature, "above 0", fix))
        if not 0 < self.top_p <= 1:
            problems.append(("top_p", self.top_p, "0 < top_p <= 1", "1 allows every token"))
        return problems


def run(config: EvaluateConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Measure; write ``samples.jsonl``, ``calibration.json`` and ``frontier.jsonl``."""
    bench = Bench(config, inputs, out)
    metrics: dict[str, float] = {}
    for name in bench.policies:
        metrics |= named(name, bench.part(f"text/{name}", partial(predict_text, bench, name)))
    calibration: dict[str, Any] = {}
    for name in bench.scorers:
        found = bench.part(f"rankings/{name}", partial(measure_scorer, bench, name))
        calibration[name] = found.pop("calibration", [])
        metrics |= named(name, found)
    replies = {
        name: bench.part(f"replies/{name}", partial(answer, bench, name)) for name in bench.policies
    }
    texts = {
        "human": [each.reply for each in bench.prompts],
        **{name: [bench.text(reply) for reply in found] for name, found in replies.items()},
    }
    scores = {
        name: bench.part(f"scores/{name}", partial(score_texts, bench, name, texts))
        for name in bench.scorers
    }
    metrics |= describe_replies(bench.tokenizer, replies, texts, scores)
    frontier: list[dict[str, float]] = []
    if "ppo" in replies and bench.prompts:
        kl = bench.part("kl", partial(kl_of_replies, bench, bench.decoder("ppo"), replies["ppo"]))
        metrics |= bootstrap_ratio(kl, seed=bench.seed("kl")).named("ppo.kl")
        metrics |= compare_replies(replies, scores, bench.seed("win_rate"))
        frontier = measure_frontier(bench, kl, scores)
        if (warning := diagnose_frontier(frontier)) is not None:
            out.progress.say(f"{out.name}: {warning}")
    bench.end()
    write_jsonl(out / "samples.jsonl", sample_rows(bench.prompts, texts, scores))
    write_json(out / "calibration.json", calibration)
    write_jsonl(out / "frontier.jsonl", frontier)
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def named(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """``{"accuracy": …}`` of reward as ``{"reward.accuracy": …}``; what is unknown is left out."""
    return {f"{stage}.{name}": value for name, value in metrics.items() if value is not None}
