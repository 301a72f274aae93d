"""Stage: every stage against the one before it, on conversations that no stage has seen.

- Each language model: bits per byte of held-out text, and perplexity of people's replies.
- Reward model and judge: accuracy on the test rankings, beside two rules that ignore the
  conversation (the longer wins, the likelier under SFT wins), and calibration.
- PPO against SFT: both answer the same prompts at the same temperature with the same random
  numbers. The judge scores the texts as a reader sees them: each gets an end of turn, whether the
  model wrote it or not. KL says how far PPO moved, in nats a reply.
- PPO's snapshots: reward and judge's score over that KL.

Measurements of stages that the recipe lacks are left out. Every part is saved when it is done, so
that an interrupted evaluation continues; several processes share the parts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from lmsmith.comparison.replies import (
    Scores,
    Texts,
    accuracy_beside_rules,
    accuracy_by_origin,
    compare_replies,
    describe_replies,
    final_step,
    find_snapshots,
    mean,
    sample_rows,
)
from lmsmith.core.config import NonNegativeInt, PositiveFloat, PositiveInt, Problem
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, read_jsonl, sha256_file, write_json, write_jsonl
from lmsmith.corpus.rows import read_conversations, read_documents, read_rankings, rows_of_split
from lmsmith.evaluation.methods.perplexity import bits_per_byte, predict_replies
from lmsmith.generation.engine import SamplingSettings, generate
from lmsmith.generation.vllm import VLLMModel, stage_engine
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import load_decoder, load_scalar_model, load_tokenizer
from lmsmith.models.heads import ScalarModel
from lmsmith.prompts.selection import PromptAndReply, prompt_room, select_prompts
from lmsmith.rlhf.diagnosis import diagnose_frontier
from lmsmith.rlhf.objective import correct_pairs, pair_differences
from lmsmith.rlhf.ranking import (
    EncodedRanking,
    encode_rankings,
    rankings_warnings,
    score_rankings,
    score_table,
    sums_by_prompt,
)
from lmsmith.rlhf.rollout import response_log_likelihoods
from lmsmith.runs.signals import stop_if_requested
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.statistics.calibration import expected_calibration_error, reliability_bins
from lmsmith.statistics.intervals import bootstrap_ratio
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine, resolve_machine
from lmsmith.training.parallel import apart, give_sign, leave_stage, read_together, team


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of the evaluation."""

    max_document_bytes: PositiveInt = 300_000
    """Most bytes of held-out text that bits per byte are measured on."""
    max_conversations: PositiveInt = 80
    """Most test conversations that the perplexity of people's responses is measured on."""
    max_prompts: PositiveInt = 500
    """Most test prompts that every policy answers."""
    prompts_per_conversation: PositiveInt = 2
    """Most prompts of one conversation, evenly spread over it."""
    min_new_tokens: PositiveInt = 3
    """Fewest tokens of the person's response to such a prompt."""
    max_new_tokens: int = 48
    """Most tokens of the person's response, and of a policy's."""
    max_prompt_tokens: NonNegativeInt = 96
    """Most tokens of such a prompt; the oldest turns are dropped beyond it. 0 allows what the
    context has beside the longest response."""
    temperature: PositiveFloat = 1.0
    """Temperature of the policies' responses; with 0 all to a prompt would be the same."""
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Nucleus sampling of the policies' responses; 1 allows every token."""
    frontier_prompts: PositiveInt = 100
    """Prompts that PPO's snapshots answer, for the curve of reward over KL."""
    frontier_snapshots: NonNegativeInt = 4
    """Most snapshots on that curve, evenly spread; 0 leaves it out."""

    def check(self) -> list[Problem]:
        """No length between the bounds."""
        expected = f"at least min_new_tokens ({self.min_new_tokens})"
        problem = Problem("max_new_tokens", self.max_new_tokens, expected, "raise it")
        return [problem] if self.max_new_tokens < self.min_new_tokens else []


def run(config: EvaluateConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Measure; write ``samples.jsonl``, ``calibration.json`` and ``frontier.jsonl``."""
    evaluation = Evaluation(config, inputs, out)
    with stage_engine(out, evaluation.decoder("sft"), evaluation.tokenizer) as engine:
        evaluation.engine = engine
        return measure(evaluation, out)


def measure(evaluation: Evaluation, out: StageFolder) -> dict[str, float]:
    """All parts of the evaluation, and their files."""
    metrics: dict[str, float] = {}
    policies, scorers = evaluation.policies, evaluation.scorers
    found = evaluation.share(
        [
            *(Part(f"replies/{name}", evaluation.answer, name, draws=True) for name in policies),
            *(Part(f"rankings/{name}", evaluation.measure_scorer, name) for name in scorers),
            *(Part(f"text/{name}", evaluation.predict_text, name) for name in policies),
        ]
    )
    for name in policies:
        metrics |= named(name, found[f"text/{name}"])
    calibration: dict[str, Any] = {}
    warnings: list[str] = []
    for name in scorers:
        measured = found[f"rankings/{name}"]
        calibration[name] = measured.pop("calibration", [])
        warnings += measured.pop("warnings", [])
        metrics |= named(name, measured)
    replies: dict[str, list[list[int]]] = {name: found[f"replies/{name}"] for name in policies}
    decode = evaluation.tokenizer.decode
    texts = {"human": [each.reply for each in evaluation.prompts]}
    texts |= {name: [decode(reply) for reply in found] for name, found in replies.items()}
    parts = [Part(f"scores/{name}", evaluation.score_texts, name, texts) for name in scorers]
    compares = "ppo" in replies and bool(evaluation.prompts)
    if compares:
        decoder = evaluation.decoder("ppo")
        parts += [Part("kl", evaluation.kl_of_replies, decoder, replies["ppo"])]
        parts += evaluation.frontier_parts()
    found = evaluation.share(parts)
    leave_stage()
    for text in warnings:
        out.warn(text)
    scores = {name: found[f"scores/{name}"] for name in scorers}
    metrics |= describe_replies(evaluation.tokenizer, replies, texts, scores)
    frontier: list[dict[str, float]] = []
    if compares:
        kl = found["kl"]
        metrics |= bootstrap_ratio(kl, seed=evaluation.seed("kl")).named("ppo.kl")
        metrics |= compare_replies(replies, scores, evaluation.seed("win_rate"))
        frontier = evaluation.frontier(kl, scores, found)
        out.warn(diagnose_frontier(frontier) or "")
    out.progress.end()
    write_jsonl(out / "samples.jsonl", sample_rows(evaluation.prompts, texts, scores))
    write_json(out / "calibration.json", calibration)
    write_jsonl(out / "frontier.jsonl", frontier)
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def named(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """``{"accuracy": …}`` of reward as ``{"reward.accuracy": …}``; None is left out."""
    return {f"{stage}.{name}": value for name, value in metrics.items() if value is not None}


class Part:
    """Something that is measured by itself: its name, what measures it, and whether that writes."""

    def __init__(
        self, name: str, measure: Callable[..., Any], *arguments: object, draws: bool = False
    ) -> None:
        self.name, self.measure, self.draws = name, partial(measure, *arguments), draws


POLICIES = ("pretrain", "base", "sft", "ppo")
SCORERS = {"reward": "rankings", "judge": "judge_rankings"}
"""The models that score, and the stage whose test rankings each is tested on."""


@dataclass
class Evaluation:
    """Models, prompts and finished parts of an evaluation."""

    config: EvaluateConfig
    inputs: Mapping[str, Path]
    out: StageFolder
    tokenizer: Tokenizer = field(init=False)
    machine: ResolvedMachine = field(init=False)
    prompts: list[PromptAndReply] = field(init=False)
    snapshots: list[tuple[int, Path]] = field(init=False)
    done: int = 0
    engine: VLLMModel | None = None
    decoders: dict[str, Decoder] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config
        self.machine = resolve_machine(self.out.machine)
        self.tokenizer = load_tokenizer(self.inputs["sft"] / "model")
        context = self.decoder("sft").config.context
        if context < 2 * config.max_new_tokens + 2:
            raise UserError(
                f"evaluate.max_new_tokens = {config.max_new_tokens}: the model's context of "
                f"{context} leaves too little room for a prompt",
                f"lower it to {max(1, context // 2 - 1)} or less",
            )
        path = self.inputs["data"] / "test.jsonl"
        self.prompts = select_prompts(
            rows_of_split(read_conversations, path),
            self.tokenizer,
            prompt_room(config.max_prompt_tokens, config.max_new_tokens, context),
            most=config.max_prompts,
            per_conversation=config.prompts_per_conversation,
            reply_tokens=(config.min_new_tokens, config.max_new_tokens),
        )
        self.snapshots = find_snapshots(self.inputs.get("ppo"), config.frontier_snapshots)
        parts = 2 * len(self.policies) + 2 * len(self.scorers)
        parts += 1 + len(self.snapshots) if "ppo" in self.inputs else 0
        self.out.progress.begin("evaluate", parts, "parts")

    @property
    def policies(self) -> list[str]:
        """The language models of the run, in the order of their stages."""
        return [name for name in POLICIES if name in self.inputs]

    @property
    def scorers(self) -> list[str]:
        """The models of the run that score."""
        return [name for name in SCORERS if name in self.inputs]

    def seed(self, use: str) -> int:
        return derive_seed(self.out.seed, use)

    def decoder(self, name: str) -> Decoder:
        """A language model by its stage's name, loaded once."""
        if name not in self.decoders:
            self.decoders[name] = load_decoder(self.inputs[name] / "model")
        return self.decoders[name]

    def scorer(self, name: str) -> ScalarModel:
        return load_scalar_model(self.inputs[name] / "model")

    def share(self, parts: Sequence[Part]) -> dict[str, Any]:
        """The results of parts by their names; each process measures some of them, whole.

        A part that was measured before an interruption is read from its file. Where a server
        writes, the first process asks it and the others measure the rest.
        """
        paths = [self.out.checkpoints / f"{each.name.replace('/', '-')}.json" for each in parts]
        for number in self.own(parts):
            if not paths[number].exists():
                stop_if_requested()
                with apart():
                    write_json(paths[number], parts[number].measure())
            give_sign()
            self.out.progress.update(self.done + number + 1)
        found = read_together(paths)
        self.done += len(parts)
        self.out.progress.update(self.done)
        return {each.name: result for each, result in zip(parts, found, strict=True)}

    def own(self, parts: Sequence[Part]) -> Sequence[int]:
        """The numbers of this process's parts."""
        if self.engine is None or team().count == 1:
            return team().own(len(parts))
        drawn = [number for number, each in enumerate(parts) if each.draws]
        if team().leads:
            return drawn
        rest = [number for number in range(len(parts)) if number not in drawn]
        return rest[team().rank - 1 :: team().count - 1]

    def predict_text(self, name: str) -> dict[str, float]:
        """Bits per byte of held-out text, and perplexity of people's replies."""
        decoder, tokenizer, data = self.decoder(name), self.tokenizer, self.inputs["data"]
        texts: list[str] = []
        size = 0
        for document in rows_of_split(read_documents, data / "test_documents.jsonl"):
            if size >= self.config.max_document_bytes:
                break
            texts.append(document.text)
            size += len(document.text.encode())
        found = rows_of_split(read_conversations, data / "test.jsonl")
        conversations = [each.messages for each in islice(found, self.config.max_conversations)]
        replies = predict_replies(decoder, tokenizer, conversations, self.machine)
        return {
            "bits_per_byte": bits_per_byte(decoder, tokenizer, texts, self.machine),
            "reply_perplexity": replies.perplexity,
            "reply_bits_per_byte": replies.bits_per_byte,
        }

    def measure_scorer(self, name: str) -> dict[str, Any]:
        """Accuracy with its interval, the two rules beside it, and calibration."""
        source = self.inputs.get(SCORERS[name])
        path = source / "test.jsonl" if source is not None else None
        rows = list(rows_of_split(read_rankings, path)) if path is not None else []
        model = self.scorer(name)
        counts: Counter[str] = Counter()
        context = model.decoder.config.context
        rankings, kept = encode_rankings(self.tokenizer, rows, context, counts)
        about = rankings_warnings(counts, context)
        said = {"warnings": [f"{name}: test rankings: {warning}" for warning in about]}
        if not rankings or path is None:
            return said
        scores = score_rankings(model, rankings, self.machine)

        def counted(scores: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
            """Pairs of each prompt that are ordered rightly, and all."""
            found = correct_pairs(*score_table(rankings, scores))
            correct_p, pairs_p = (sums_by_prompt(rankings, each_b) for each_b in found)
            return correct_p, pairs_p

        correct_p, pairs_p = counted(scores)
        seed = self.seed("accuracy")
        found: dict[str, Any] = bootstrap_ratio(correct_p, pairs_p, seed=seed).named("accuracy")
        found |= said
        found["test_prompts"] = len(pairs_p)
        found["test_pairs"] = int(pairs_p.sum())

        longer = [[float(len(response)) for response in each.responses] for each in rankings]
        total = self.sft_likelihoods(rankings, path)
        per_token = [
            [sum_ / length for sum_, length in zip(sums, lengths, strict=True)]
            for sums, lengths in zip(total, longer, strict=True)
        ]
        rules = {"longer": longer, "likelier_total": total, "likelier_per_token": per_token}
        right = {rule: counted(scores)[0] for rule, scores in rules.items()}
        found |= accuracy_beside_rules(correct_p, pairs_p, right, seed)

        by_id: Any = {str(row.get("id")): row.get("origins") for _, row in read_jsonl(path)}
        known = [by_id.get(rows[index].id) for index in kept]
        origins = [
            [given[place] for place in each.places] if given else None
            for given, each in zip(known, rankings, strict=True)
        ]
        found |= accuracy_by_origin(scores, [each.ranks for each in rankings], origins)
        differences = pair_differences(*score_table(rankings, scores)).numpy()
        found["calibration"] = reliability_bins(differences)
        found["calibration_error"] = expected_calibration_error(found["calibration"])
        return found

    def sft_likelihoods(self, rankings: Sequence[EncodedRanking], path: Path) -> list[list[float]]:
        """SFT's log-likelihood of every response, computed once for files of the same content.

        Both scorers are tested on the same rows, unless the user brought rankings.
        """
        kept = self.out.checkpoints / f"likelihoods-{sha256_file(path)[:16]}.json"
        if not kept.exists():
            prompts = [each.prompt for each in rankings for _ in each.responses]
            responses = [response for each in rankings for response in each.responses]
            sums_n = response_log_likelihoods(self.decoder("sft"), prompts, responses, self.machine)
            found = torch.split(sums_n, [len(each.responses) for each in rankings])
            write_json(kept, [row.tolist() for row in found])
        saved: Any = read_json(kept)
        return [list(map(float, row)) for row in saved]

    def answer(self, policy: str | Decoder, prompts: int | None = None) -> list[list[int]]:
        """A reply to each prompt, or to the first ``prompts``; the same random numbers for all."""
        asked = [each.tokens for each in self.prompts[:prompts]]
        if not asked:
            return []
        decoder = self.decoder(policy) if isinstance(policy, str) else policy
        settings = SamplingSettings(
            max_new_tokens=self.config.max_new_tokens + 1,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            stop_tokens=(self.tokenizer.end_of_turn,),
            seed=self.seed("replies"),
        )
        if self.engine is not None:
            self.engine.bring(decoder)
        writer = self.engine or decoder
        return generate(writer, asked, settings, machine=self.machine, tokenizer=self.tokenizer)

    def score_texts(self, name: str, texts: Texts) -> dict[str, list[float]]:
        """A scorer's score of every text, by its writer.

        Equal texts to a prompt are scored once: rounding must not break a tie.
        """
        end = self.tokenizer.end_of_turn
        rows, places = [], []
        for each, *written in zip(self.prompts, *texts.values(), strict=False):
            different = list(dict.fromkeys(written))
            replies = [
                [*ids[: self.config.max_new_tokens], end]
                for ids in self.tokenizer.encode_batch(different)
            ]
            rows.append(EncodedRanking(each.tokens, replies, [1] * len(replies)))
            places.append([different.index(text) for text in written])
        scores = score_rankings(self.scorer(name), rows, self.machine)
        return {
            replier: [row[place[column]] for row, place in zip(scores, places, strict=True)]
            for column, replier in enumerate(texts)
        }

    def kl_of_replies(self, policy: Decoder, replies: Sequence[Sequence[int]]) -> list[float]:
        """Σ log π(token) − log π_SFT(token) over each of the policy's own replies, in nats.

        Its mean is an unbiased estimate of KL(policy ‖ SFT) of a reply at that temperature.
        """
        asked = [each.tokens for each in self.prompts[: len(replies)]]
        # What another engine draws is of the whole softmax (`lmsmith.generation.vllm`).
        drawn = self.tokenizer if self.engine is None else None
        sampled = self.machine, self.config.temperature, drawn
        policy_n = response_log_likelihoods(policy, asked, replies, *sampled)
        sft_n = response_log_likelihoods(self.decoder("sft"), asked, replies, *sampled)
        return [float(value) for value in policy_n - sft_n]

    def frontier_parts(self) -> list[Part]:
        """PPO's snapshots."""
        return [
            Part(f"frontier/{step}", self.measure_snapshot, step, folder, draws=True)
            for step, folder in self.snapshots
        ]

    def frontier(
        self, kl: Sequence[float], scores: Scores, found: Mapping[str, Any]
    ) -> list[dict[str, float]]:
        """Reward and judge's score over KL from SFT: at SFT, PPO's snapshots, and PPO's end."""
        if not self.snapshots:
            return []
        prompts = self.config.frontier_prompts
        first, last = (
            {name: mean(by_replier[policy][:prompts]) for name, by_replier in scores.items()}
            for policy in ("sft", "ppo")
        )
        points: list[dict[str, float]] = [{"step": 0, "kl": 0.0, **first}]
        points += [found[f"frontier/{step}"] for step, _ in self.snapshots]
        final = final_step(self.inputs["ppo"], self.snapshots[-1][0])
        if final > self.snapshots[-1][0]:
            points.append({"step": final, "kl": mean(kl[:prompts]), **last})
        return points

    def measure_snapshot(self, step: int, folder: Path) -> dict[str, float]:
        """A snapshot's replies to the first prompts: mean KL, and mean score by each scorer."""
        decoder = load_decoder(folder)
        replies = self.answer(decoder, self.config.frontier_prompts)
        texts = {"ppo": [self.tokenizer.decode(reply) for reply in replies]}
        means = {name: mean(self.score_texts(name, texts)["ppo"]) for name in self.scorers}
        return {"step": step, "kl": mean(self.kl_of_replies(decoder, replies)), **means}
