"""What the evaluation measures with: models, prompts, finished parts, and each measurement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith.comparison.frontier import final_step, find_snapshots
from lmsmith.comparison.replies import Scores, Texts, mean
from lmsmith.comparison.scorers import accuracy_beside_rules, accuracy_by_origin
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, read_jsonl, sha256_file, write_json
from lmsmith.corpus.rows import read_conversations, read_documents, read_rankings, rows_of_split
from lmsmith.evaluation.methods.perplexity import bits_per_byte, predict_replies
from lmsmith.generation.engine import SamplingSettings, generate
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import load_decoder, load_scalar_model, load_tokenizer
from lmsmith.models.heads import ScalarModel
from lmsmith.prompts.selection import PromptAndReply, prompt_room, select_prompts
from lmsmith.rlhf.objective import correct_pairs, pair_differences
from lmsmith.rlhf.ranking import (
    EncodedRanking,
    encode_rankings,
    likelihoods,
    rankings_warnings,
    score_rankings,
    score_table,
)
from lmsmith.rlhf.rollout import response_log_likelihoods
from lmsmith.runs.signals import stop_if_requested
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.statistics.bootstrap import bootstrap_ratio
from lmsmith.statistics.calibration import expected_calibration_error, reliability_bins
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine, resolve_machine

if TYPE_CHECKING:
    from lmsmith.stages.evaluate import EvaluateConfig

POLICIES = ("pretrain", "base", "sft", "ppo")
SCORERS = {"reward": "rankings", "judge": "judge_rankings"}
"""The models that score, and the stage whose test rankings each is tested on."""


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


def predict_text(bench: Bench, name: str) -> dict[str, float]:
    """Bits per byte of held-out text, and perplexity of people's replies."""
    decoder, tokenizer = bench.decoder(name), bench.tokenizer
    documents = bench.inputs["data"] / "test_documents.jsonl"
    texts: list[str] = []
    size = 0
    for document in rows_of_split(read_documents, documents):
        if size >= bench.config.max_document_bytes:
            break
        texts.append(document.text)
        size += len(document.text.encode())
    path = bench.inputs["data"] / "test.jsonl"
    found = rows_of_split(read_conversations, path)
    conversations = [each.messages for each in islice(found, bench.config.max_conversations)]
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
    rows = list(rows_of_split(read_rankings, path)) if path is not None else []
    model = bench.scorer(name)
    counts: Counter[str] = Counter()
    context = model.decoder.config.context
    rankings, kept = encode_rankings(bench.tokenizer, rows, context, counts)
    for told in rankings_warnings(counts, context):
        bench.out.progress.say(f"{bench.out.name}: {name}: test rankings: {told}")
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
    found |= accuracy_beside_rules(correct_b, pairs_b, right, seed)

    by_id: dict[str, Any] = {str(row.get("id")): row.get("origins") for _, row in read_jsonl(path)}
    origins = [by_id.get(rows[index].id) for index in kept]
    found |= accuracy_by_origin(
        scores,
        [each.ranks for each in rankings],
        [
            [known[place] for place in each.places] if known else None
            for known, each in zip(origins, rankings, strict=True)
        ],
    )
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


def answer(bench: Bench, policy: str | Decoder, prompts: int | None = None) -> list[list[int]]:
    """A reply to each prompt, or to the first ``prompts``; the same random numbers for all."""
    decoder = bench.decoder(policy) if isinstance(policy, str) else policy
    settings = SamplingSettings(
        max_new_tokens=bench.config.max_new_tokens + 1,
        temperature=bench.config.temperature,
        top_p=bench.config.top_p,
        stop_tokens=(bench.tokenizer.end_of_turn,),
        seed=bench.seed("replies"),
    )
    asked = [each.tokens for each in bench.prompts[:prompts]]
    if not asked:
        return []
    return generate(decoder, asked, settings, machine=bench.machine, tokenizer=bench.tokenizer)


def score_texts(bench: Bench, name: str, texts: Texts) -> dict[str, list[float]]:
    """A scorer's number for every text, by who wrote it.

    The same text to the same prompt is scored once: rounding must not break a tie.
    """
    end = bench.tokenizer.end_of_turn
    rows, places = [], []
    for each, *written in zip(bench.prompts, *texts.values(), strict=False):
        different = list(dict.fromkeys(written))
        replies = [
            [*ids[: bench.config.max_new_tokens], end]
            for ids in bench.tokenizer.encode_batch(different)
        ]
        rows.append(EncodedRanking(each.tokens, replies, [1] * len(replies)))
        places.append([different.index(text) for text in written])
    scores = score_rankings(bench.scorer(name), rows, bench.machine)
    return {
        replier: [row[place[column]] for row, place in zip(scores, places, strict=True)]
        for column, replier in enumerate(texts)
    }


def kl_of_replies(bench: Bench, policy: Decoder, replies: Sequence[Sequence[int]]) -> list[float]:
    """Σ log π(token) − log π_SFT(token) over each of the policy's own replies, in nats.

    Its mean estimates KL(policy ‖ SFT) of a reply without bias, at the temperature sampled with.
    """
    asked = [each.tokens for each in bench.prompts[: len(replies)]]
    sampled = bench.machine, bench.config.temperature, bench.tokenizer
    policy_n, sft_n = (
        response_log_likelihoods(decoder, asked, replies, *sampled)
        for decoder in (policy, bench.decoder("sft"))
    )
    return [float(value) for value in policy_n - sft_n]


def measure_frontier(bench: Bench, kl: Sequence[float], scores: Scores) -> list[dict[str, float]]:
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
