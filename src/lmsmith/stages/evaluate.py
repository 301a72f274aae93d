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
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, read_jsonl, sha256_file, write_json, write_jsonl
from lmsmith.core.runs import StageFolder, derive_seed
from lmsmith.core.signals import stop_if_requested
from lmsmith.corpus.rows import Ranking, read_conversations, read_documents, read_rankings
from lmsmith.evaluation.bootstrap import bootstrap_ratio
from lmsmith.evaluation.calibration import expected_calibration_error, reliability_bins
from lmsmith.evaluation.diversity import distinct, most_repeated_share
from lmsmith.evaluation.perplexity import bits_per_byte, predict_replies
from lmsmith.evaluation.win_rate import length_controlled_win_rate, win_rate, wins
from lmsmith.generation.engine import SamplingSettings, generate
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import load_decoder, load_scalar_model, load_tokenizer
from lmsmith.models.heads import ScalarModel
from lmsmith.prompts.selection import PromptAndReply, row_tokens, select_prompts
from lmsmith.rlhf.candidates import (
    EncodedRanking,
    encode_rankings,
    likelihoods,
    score_rankings,
    score_table,
)
from lmsmith.rlhf.diagnosis import diagnose_frontier
from lmsmith.rlhf.ranking import correct_pairs, pair_differences
from lmsmith.rlhf.scoring import response_log_likelihoods
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine, resolve_machine

POLICIES = ("pretrain", "sft", "ppo")
SCORERS = {"reward": "rankings", "judge": "judge_rankings"}
"""The models that score, and the stage whose test rankings each is tested on."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of the evaluation.

    Attributes:
        document_bytes: at most so much held-out text is read for bits per byte.
        conversations: at most so many test conversations for the perplexity of replies.
        prompts: at most so many test prompts that every policy answers.
        prompts_per_conversation: at most so many of one conversation, evenly spread over it.
        minimum_tokens, maximum_tokens: length of the person's reply to such a prompt; no policy's
            reply is longer than the latter.
        maximum_prompt: most tokens of such a prompt; the oldest turns are dropped beyond it. 0
            allows what the context has beside the longest reply.
        temperature, top_p: of the policies' replies.
        frontier_prompts: prompts that PPO's snapshots answer.
        frontier_snapshots: at most so many snapshots, evenly spread; 0 leaves the curve out.
    """

    document_bytes: int = 300_000
    conversations: int = 80
    prompts: int = 500
    prompts_per_conversation: int = 2
    minimum_tokens: int = 3
    maximum_tokens: int = 48
    maximum_prompt: int = 96
    temperature: float = 1.0
    top_p: float = 1.0
    frontier_prompts: int = 100
    frontier_snapshots: int = 4

    def check(self) -> list[tuple[str, object, str, str]]:
        """Values out of range and contradictions, as (key, value, expected, mend)."""
        problems: list[tuple[str, object, str, str]] = []
        positive = ("document_bytes", "conversations", "prompts", "prompts_per_conversation")
        for key in (*positive, "minimum_tokens", "frontier_prompts"):
            if getattr(self, key) < 1:
                problems.append((key, getattr(self, key), "a positive number", f"raise {key}"))
        if self.maximum_tokens < self.minimum_tokens:
            expected = f"at least minimum_tokens ({self.minimum_tokens})"
            problems.append(("maximum_tokens", self.maximum_tokens, expected, "raise it"))
        for key, mend in (
            ("maximum_prompt", "0 allows what the context has"),
            ("frontier_snapshots", "0 leaves the curve out"),
        ):
            if getattr(self, key) < 0:
                problems.append((key, getattr(self, key), "0 or more", mend))
        if not self.temperature > 0:
            mend = "with 0 every reply to a prompt is the same"
            problems.append(("temperature", self.temperature, "above 0", mend))
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
    metrics |= describe_replies(bench, replies, texts, scores)
    frontier: list[dict[str, float]] = []
    if "ppo" in replies and bench.prompts:
        kl = bench.part("kl", partial(kl_of_replies, bench, bench.decoder("ppo"), replies["ppo"]))
        metrics |= bootstrap_ratio(kl, seed=bench.seed("kl")).named("ppo.kl")
        metrics |= compare(bench, replies, scores)
        frontier = measure_frontier(bench, kl, scores)
        if (warning := diagnose_frontier(frontier)) is not None:
            out.progress.say(f"{out.path.name}: {warning}")
    bench.end()
    write_jsonl(out / "samples.jsonl", sample_rows(bench.prompts, texts, scores))
    write_json(out / "calibration.json", calibration)
    write_jsonl(out / "frontier.jsonl", frontier)
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


@dataclass
class Bench:
    """What is measured with: models, prompts and the place where finished parts are kept."""

    config: EvaluateConfig
    inputs: Mapping[str, Path]
    out: StageFolder
    tokenizer: Tokenizer = field(init=False)
    machine: ResolvedMachine = field(init=False)
    prompts: list[PromptAndReply] = field(init=False)
    snapshots: list[tuple[int, Path]] = field(init=False)
    done: int = 0
    decoders: dict[Path, Decoder] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config
        self.machine = resolve_machine(self.out.machine)
        self.tokenizer = load_tokenizer(self.inputs["sft"] / "model")
        context = self.decoder("sft").config.context
        if context < 2 * config.maximum_tokens + 2:
            raise UserError(
                f"evaluate.maximum_tokens = {config.maximum_tokens}: the model's context of "
                f"{context} leaves too little room for a prompt",
                f"lower it to {max(1, context // 2 - 1)} or less",
            )
        path = self.inputs["data"] / "test.jsonl"
        self.prompts = select_prompts(
            read_conversations(path) if path.is_file() else [],
            self.tokenizer,
            row_tokens(config.maximum_prompt, config.maximum_tokens, context),
            most=config.prompts,
            per_conversation=config.prompts_per_conversation,
            minimum_tokens=config.minimum_tokens,
            maximum_tokens=config.maximum_tokens,
        )
        self.snapshots = find_snapshots(self.inputs.get("ppo"), config.frontier_snapshots)
        parts = 2 * len(self.policies) + 2 * len(self.scorers)
        parts += 1 + len(self.snapshots) if "ppo" in self.inputs else 0
        self.out.progress.begin("evaluate", parts, "parts")

    @property
    def policies(self) -> list[str]:
        """Language models there are, in the order of their stages."""
        return [name for name in POLICIES if name in self.inputs]

    @property
    def scorers(self) -> list[str]:
        """Models that score there are."""
        return [name for name in SCORERS if name in self.inputs]

    def seed(self, use: str) -> int:
        return derive_seed(self.out.seed, use)

    def decoder(self, name: str) -> Decoder:
        """A language model by its stage's name, read once."""
        return self.decoder_at(self.inputs[name] / "model")

    def decoder_at(self, folder: Path) -> Decoder:
        if folder not in self.decoders:
            self.decoders[folder] = load_decoder(folder)
        return self.decoders[folder]

    def scorer(self, name: str) -> ScalarModel:
        return load_scalar_model(self.inputs[name] / "model")

    def text(self, reply: Sequence[int]) -> str:
        """What a reader sees of a reply."""
        return self.tokenizer.decode(reply)

    def part(self, name: str, measure: Callable[[], Any]) -> Any:
        """What ``measure`` returns, or returned before an interruption. JSON can hold it."""
        path = self.out.checkpoints / f"{name.replace('/', '-')}.json"
        if not path.exists():
            stop_if_requested()
            write_json(path, measure())
        self.done += 1
        self.out.progress.update(self.done)
        return read_json(path)

    def end(self) -> None:
        self.out.progress.end()


def named(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """``{"accuracy": …}`` of reward as ``{"reward.accuracy": …}``; what is unknown is left out."""
    return {f"{stage}.{name}": value for name, value in metrics.items() if value is not None}


def predict_text(bench: Bench, name: str) -> dict[str, float]:
    """Bits per byte of held-out text, and perplexity of people's replies."""
    decoder, tokenizer = bench.decoder(name), bench.tokenizer
    documents = bench.inputs["data"] / "test_documents.jsonl"
    texts: list[str] = []
    size = 0
    for document in read_documents(documents) if documents.is_file() else []:
        if size >= bench.config.document_bytes:
            break
        texts.append(document.text)
        size += len(document.text.encode())
    path = bench.inputs["data"] / "test.jsonl"
    conversations = [
        conversation.messages
        for _, conversation in zip(
            range(bench.config.conversations),
            read_conversations(path) if path.is_file() else [],
            strict=False,
        )
    ]
    replies = predict_replies(decoder, tokenizer, conversations, bench.machine)
    return {
        "bits_per_byte": bits_per_byte(decoder, tokenizer, texts, bench.machine),
        "reply_perplexity": replies.perplexity,
        "reply_bits_per_byte": replies.bits_per_byte,
    }


def measure_scorer(bench: Bench, name: str) -> dict[str, Any]:
    """Accuracy with its interval, the two rules beside it, and calibration."""
    source = bench.inputs.get(SCORERS[name])
    path = source / "test.jsonl" if source is not None else None
    rows = list(read_rankings(path)) if path is not None and path.is_file() else []
    model = bench.scorer(name)
    rankings, kept = encode_rankings(bench.tokenizer, rows, model.decoder.config.context)
    if not rankings or path is None:
        return {}
    scores = score_rankings(model, rankings, bench.machine)
    correct_b, pairs_b = correct_pairs(*score_table(rankings, scores))
    seed = bench.seed("accuracy")
    found: dict[str, Any] = bootstrap_ratio(correct_b, pairs_b, seed=seed).named("accuracy")
    found["test_prompts"] = len(rankings)
    found["test_pairs"] = int(pairs_b.sum())

    longer = [[float(len(response)) for response in each.responses] for each in rankings]
    # Both scorers are tested on the same rows, unless the user brought rankings.
    total = bench_likelihoods(bench, rankings, path)
    per_token = [
        [sum_ / length for sum_, length in zip(sums, lengths, strict=True)]
        for sums, lengths in zip(total, longer, strict=True)
    ]
    rules = {"longer": longer, "likelier_total": total, "likelier_per_token": per_token}
    right = {rule: correct_pairs(*score_table(rankings, of))[0] for rule, of in rules.items()}
    for rule, correct in right.items():
        found[f"{rule}_wins_accuracy"] = float(correct.sum() / pairs_b.sum())
    # The stronger of the two readings of "likelier" is the one to beat.
    stronger = max(("likelier_total", "likelier_per_token"), key=lambda r: float(right[r].sum()))
    found["likelier_wins_accuracy"] = found[f"{stronger}_wins_accuracy"]
    strongest = max(right, key=lambda rule: float(right[rule].sum()))
    margin = bootstrap_ratio(correct_b - right[strongest], pairs_b, seed=seed)
    found |= margin.named("accuracy_above_rules")
    found |= accuracy_by_origin(rankings, scores, [rows[i] for i in kept], path)

    differences = pair_differences(*score_table(rankings, scores)).numpy()
    found["calibration"] = reliability_bins(differences)
    found["calibration_error"] = expected_calibration_error(found["calibration"])
    return found


def bench_likelihoods(
    bench: Bench, rankings: Sequence[EncodedRanking], path: Path
) -> list[list[float]]:
    """SFT's log-likelihood of every response, computed once for files of the same content."""
    kept = bench.out.checkpoints / f"likelihoods-{sha256_file(path)[:16]}.json"
    if not kept.exists():
        write_json(kept, likelihoods(bench.decoder("sft"), rankings, bench.machine))
    saved: Any = read_json(kept)
    return [list(map(float, row)) for row in saved]


def accuracy_by_origin(
    rankings: Sequence[EncodedRanking],
    scores: Sequence[Sequence[float]],
    rows: Sequence[Ranking],
    path: Path,
) -> dict[str, float]:
    """Accuracy against each kind of other candidate, where the rows say what they are."""
    origins = {str(row.get("id")): row.get("origins") for _, row in read_jsonl(path)}
    right: dict[str, list[float]] = {}
    for ranking, row_scores, row in zip(rankings, scores, rows, strict=True):
        kinds = origins.get(row.id)
        if not isinstance(kinds, list) or len(kinds) != len(row_scores):
            continue
        for best in ranking.best:
            for place, kind in enumerate(kinds):
                if ranking.ranks[place] > ranking.ranks[best]:
                    won = wins([row_scores[best]], [row_scores[place]])[0]
                    right.setdefault(str(kind), []).append(float(won))
    return {f"accuracy_against_{kind}": sum(each) / len(each) for kind, each in right.items()}


def answer(bench: Bench, policy: str | Decoder, prompts: int | None = None) -> list[list[int]]:
    """A reply to each prompt, or to the first ``prompts``; the same random numbers for all."""
    decoder = bench.decoder(policy) if isinstance(policy, str) else policy
    settings = SamplingSettings(
        max_new_tokens=bench.config.maximum_tokens + 1,
        temperature=bench.config.temperature,
        top_p=bench.config.top_p,
        stop_tokens=(bench.tokenizer.end_of_turn,),
        seed=bench.seed("replies"),
    )
    asked = [each.tokens for each in bench.prompts[:prompts]]
    return generate(decoder, asked, settings, machine=bench.machine) if asked else []


def score_texts(
    bench: Bench, name: str, texts: Mapping[str, Sequence[str]]
) -> dict[str, list[float]]:
    """A scorer's number for every text, by who wrote it.

    The same text to the same prompt is scored once: rounding must not break a tie.
    """
    end = bench.tokenizer.end_of_turn
    rows, places = [], []
    for each, *written in zip(bench.prompts, *texts.values(), strict=False):
        different = list(dict.fromkeys(written))
        replies = [
            [*ids[: bench.config.maximum_tokens], end]
            for ids in bench.tokenizer.encode_batch(different)
        ]
        rows.append(EncodedRanking(each.tokens, replies, [1] * len(replies)))
        places.append([different.index(text) for text in written])
    scores = score_rankings(bench.scorer(name), rows, bench.machine)
    return {
        replier: [row[place[column]] for row, place in zip(scores, places, strict=True)]
        for column, replier in enumerate(texts)
    }


def describe_replies(
    bench: Bench,
    replies: Mapping[str, Sequence[Sequence[int]]],
    texts: Mapping[str, Sequence[str]],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, float]:
    """Length, variety, ends and mean scores of every replier's replies."""
    if not bench.prompts:
        return {}
    found: dict[str, float] = {"evaluate.prompts": float(len(bench.prompts))}
    end = bench.tokenizer.end_of_turn
    for replier, each in texts.items():
        tokens = bench.tokenizer.encode_batch(list(each))
        found[f"{replier}.reply_tokens"] = mean([len(ids) for ids in tokens])
        found[f"{replier}.distinct_1"] = distinct(tokens, 1)
        found[f"{replier}.distinct_2"] = distinct(tokens, 2)
        found[f"{replier}.most_repeated_share"] = most_repeated_share(each)
        for name, by_replier in scores.items():
            found[f"{replier}.{name}_score"] = mean(by_replier[replier])
    for name, written in replies.items():
        found[f"{name}.ended_share"] = mean([reply[-1:] == [end] for reply in written])
    return found


def compare(
    bench: Bench,
    replies: Mapping[str, Sequence[Sequence[int]]],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, float]:
    """PPO against SFT by the judge, raw and at equal length; and by the reward model itself."""
    found: dict[str, float] = {}
    seed = bench.seed("win_rate")
    if "judge" in scores:
        judged = scores["judge"]
        lengths = {name: [max(1, len(reply)) for reply in each] for name, each in replies.items()}
        found |= win_rate(judged["ppo"], judged["sft"], seed=seed).named("ppo.win_rate")
        found |= length_controlled_win_rate(
            judged["ppo"], judged["sft"], lengths["ppo"], lengths["sft"], seed=seed
        ).named("ppo.win_rate_length_controlled")
        for name in ("sft", "ppo"):
            against = win_rate(judged[name], judged["human"], seed=seed)
            found |= against.named(f"{name}.win_rate_over_human")
    if "reward" in scores:
        own = win_rate(scores["reward"]["ppo"], scores["reward"]["sft"], seed=seed)
        found |= own.named("ppo.win_rate_by_reward")
    return found


def kl_of_replies(bench: Bench, policy: Decoder, replies: Sequence[Sequence[int]]) -> list[float]:
    """Σ log π(token) − log π_SFT(token) over each of the policy's own replies, in nats.

    Its mean estimates KL(policy ‖ SFT) of a reply without bias, at the temperature sampled with.
    """
    asked = [each.tokens for each in bench.prompts[: len(replies)]]
    policy_n, sft_n = (
        response_log_likelihoods(decoder, asked, replies, bench.machine, bench.config.temperature)
        for decoder in (policy, bench.decoder("sft"))
    )
    return [float(value) for value in policy_n - sft_n]


def measure_frontier(
    bench: Bench,
    kl: Sequence[float],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
) -> list[dict[str, float]]:
    """Reward and judge's score over KL from SFT: at SFT, PPO's snapshots, and PPO's end."""
    prompts = bench.config.frontier_prompts
    points: list[dict[str, float]] = []
    if not bench.snapshots:
        return points
    first = {name: mean(by_replier["sft"][:prompts]) for name, by_replier in scores.items()}
    points.append({"step": 0, "kl": 0.0, **first})
    for step, folder in bench.snapshots:
        points.append(
            bench.part(f"frontier/{step}", partial(measure_snapshot, bench, step, folder))
        )
    last = {name: mean(by_replier["ppo"][:prompts]) for name, by_replier in scores.items()}
    final = final_step(bench.inputs["ppo"], bench.snapshots[-1][0])
    if final > bench.snapshots[-1][0]:
        points.append({"step": final, "kl": mean(kl[:prompts]), **last})
    return points


def measure_snapshot(bench: Bench, step: int, folder: Path) -> dict[str, float]:
    """A snapshot's replies to the first prompts: mean KL, and mean score by each scorer."""
    decoder = load_decoder(folder)
    replies = answer(bench, decoder, bench.config.frontier_prompts)
    texts = {"ppo": [bench.text(reply) for reply in replies]}
    means = {name: mean(score_texts(bench, name, texts)["ppo"]) for name in bench.scorers}
    return {"step": step, "kl": mean(kl_of_replies(bench, decoder, replies)), **means}


def find_snapshots(ppo: Path | None, most: int) -> list[tuple[int, Path]]:
    """(step, model folder) of PPO's snapshots, at most so many, evenly spread."""
    folder = ppo / "snapshots" if ppo is not None else None
    if folder is None or not folder.is_dir() or most == 0:
        return []
    found = []
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"step-(\d+)", path.name)
        inner = path / "model" if (path / "model").is_dir() else path
        if match and (inner / "config.json").is_file():
            found.append((int(match[1]), inner))
    found.sort()
    if len(found) <= most:
        return found
    return [found[int((index + 0.5) * len(found) / most)] for index in range(most)]


def final_step(ppo: Path, least: int) -> int:
    """How many iterations PPO ran, by its model's card; one after ``least`` if it does not say."""
    card: Any = read_json(ppo / "model" / "card.json")
    for place in ("metrics", "settings"):
        steps = (card.get(place) or {}).get("iterations")
        if isinstance(steps, int | float):
            return int(steps)
    return least + 1


def sample_rows(
    prompts: Sequence[PromptAndReply],
    texts: Mapping[str, Sequence[str]],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
) -> list[dict[str, Any]]:
    """One row a prompt: what everyone replied, and how each reply was scored."""
    return [
        {
            "id": each.id,
            "prompt": each.prompt,
            "human": each.reply,
            "responses": {
                name: written[index] for name, written in texts.items() if name != "human"
            },
            **{
                scorer: {name: round(values[index], 4) for name, values in by_replier.items()}
                for scorer, by_replier in scores.items()
            },
        }
        for index, each in enumerate(prompts)
    ]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
