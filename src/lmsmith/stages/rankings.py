"""Stage: rankings for a reward model, the user's own or those of a stated labeler.

The user's rankings (``data/rankings.jsonl``) are split and used. Without them, candidates are
collected for prompts out of conversations that no policy was trained on. The labeler
``human_reply_first`` ranks them: the person's own reply is first; the policy's samples and a real
reply from another conversation are second, tied among themselves.

Neither a candidate's length nor its form may tell where it comes from:

- One window of lengths holds for all candidates; samples and people's replies outside it are
  dropped.
- A sample that did not end within the window is dropped. It would teach that a reply which breaks
  off is bad, which is a fact about the window, and for which PPO has a penalty; an end added to it
  would make a text that nobody wrote.
- Empty samples, and those that repeat another candidate, are dropped: no reply is worse than
  itself.
- The reply from elsewhere is one of those nearest in length to the person's own.
- The candidates stand in random order.

Metrics count what is dropped, and give the mean lengths.
"""

from __future__ import annotations

import math
import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from lmsmith.core.config import NonNegativeFloat, NonNegativeInt, PositiveInt, Problem
from lmsmith.core.errors import UserError
from lmsmith.core.files import write_json, write_jsonl
from lmsmith.corpus.cleaning import same_text
from lmsmith.corpus.rows import Ranking, read_conversations, read_rankings, rows_of_split
from lmsmith.corpus.splits import assign_splits, opening_key, split_of
from lmsmith.generation.engine import InferenceDecoder, SamplingSettings, generate
from lmsmith.generation.vllm import VLLMModel, stage_engine
from lmsmith.models.folder import load_decoder, load_tokenizer
from lmsmith.prompts.selection import (
    LEFT_OUT,
    PromptAndReply,
    prompt_room,
    prompts_warning,
    select_prompts,
)
from lmsmith.runs.signals import stop_if_requested
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine
from lmsmith.training.parallel import apart, give_sign, leave_stage, read_together, team

LABELER = "human_reply_first"

NEAREST = 32
"""The reply from elsewhere is drawn from this many that are nearest in length."""

PROMPTS_AT_ONCE = 128
"""Prompts sampled, and saved, together."""

REASONS = ("not_ended", "empty", "length", "repeated")
"""Reasons to drop a sample."""

MANY_DROPPED = 0.5
"""Share of dropped samples above which the rankings say little about the policy's replies."""


@dataclass(frozen=True)
class RankingsConfig:
    """Settings of the rankings."""

    split: Literal["comparisons", "judge"] = "comparisons"
    """The split that train and validation rankings are made from; ``judge`` for the judge's, which
    nothing else sees."""
    max_prompts: PositiveInt = 3_000
    """Most prompts for training and validation together."""
    prompts_per_conversation: PositiveInt = 4
    """Most prompts of one conversation, evenly spread over it."""
    samples: NonNegativeInt = 2
    """Responses drawn from the policy for a prompt; fewer are ranked where some are dropped."""
    other_replies: NonNegativeInt = 1
    """People's responses from other conversations for a prompt."""
    min_new_tokens: PositiveInt = 3
    """Fewest tokens of a response, its end of turn not counted."""
    max_new_tokens: int = 48
    """Most tokens of a response, its end of turn not counted."""
    max_prompt_tokens: NonNegativeInt = 96
    """Most tokens of a prompt; the oldest turns are dropped beyond it. Reading the prompts takes
    most of the time. 0 allows what the context has beside the longest response."""
    temperature: NonNegativeFloat = 1.0
    """Temperature of the policy's samples."""
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Nucleus sampling of the policy's samples; 1 allows every token."""
    validation_fraction: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.12
    """Share of the conversations held out to stop training by."""
    max_test_prompts: PositiveInt = 600
    """Most prompts of the test rankings, which are made from the test split."""
    test_fraction: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.1
    """Share of the user's own rankings held out for testing."""

    def check(self) -> list[Problem]:
        """Nothing to rank, and no length between the bounds."""
        problems = []
        if self.samples + self.other_replies < 1:
            fix = "ask for at least one candidate beside the person's reply"
            problems.append(Problem("samples", self.samples, "nothing to rank", fix))
        if self.max_new_tokens < self.min_new_tokens:
            expected = f"at least min_new_tokens ({self.min_new_tokens})"
            problems.append(Problem("max_new_tokens", self.max_new_tokens, expected, "raise it"))
        return problems


def run(config: RankingsConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Write ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``."""
    own = inputs["data"] / "rankings.jsonl"
    if config.split == "comparisons" and own.is_file():
        leave_stage()
        return split_human_rankings(config, own, out)
    tokenizer = load_tokenizer(inputs["policy"] / "model")
    decoder = load_decoder(inputs["policy"] / "model")
    if decoder.config.context < 2 * config.max_new_tokens + 2:
        raise UserError(
            f"{out.name}.max_new_tokens = {config.max_new_tokens}: the model's context of "
            f"{decoder.config.context} leaves too little room for a prompt",
            f"lower it to {max(1, decoder.config.context // 2 - 1)} or less",
        )
    if out.generation.engine != "lmsmith":
        leave_stage()  # one process asks a server
    with stage_engine(out, decoder, tokenizer) as engine:
        policy = engine or InferenceDecoder(decoder, resolve_machine(out.machine))
        return collect_rankings(config, Collector(config, tokenizer, policy, out), inputs, out)


def collect_rankings(
    config: RankingsConfig, collector: Collector, inputs: Mapping[str, Path], out: StageFolder
) -> dict[str, float]:
    """Collect the candidates of every split, rank and write them."""
    source = inputs["data"] / f"{config.split}.jsonl"
    given = collector.read(source, config.max_prompts)
    held_out = {"validation": config.validation_fraction}
    parts: dict[str, list[PromptAndReply]] = {"train": [], "validation": [], "test": []}
    for each in given:
        # a name of its own: the id alone has decided the conversation's split in the data stage
        parts[split_of(f"{each.root} held out", held_out) or "train"].append(each)
    parts["test"] = collector.read(inputs["data"] / "test.jsonl", config.max_test_prompts)
    rows = {split: collector.collect(split, found) for split, found in parts.items()}
    leave_stage()
    if not source.is_file():
        raise UserError(
            f"{out.name}: no conversation is in the split {config.split}, of which "
            "rankings are made",
            f"add conversations, or raise data.splits.{config.split}; one is enough",
        )
    if not rows["train"]:
        raise UserError(
            f"{source}: no prompt whose reply has "
            f"{config.min_new_tokens} to {config.max_new_tokens} tokens",
            f"widen {out.name}.min_new_tokens and max_new_tokens, add conversations, or raise "
            f"data.splits.{config.split}",
        )
    for split, found_rows in rows.items():
        write_jsonl(out / f"{split}.jsonl", found_rows)
    return collector.metrics(rows)


def split_human_rankings(config: RankingsConfig, path: Path, out: StageFolder) -> dict[str, float]:
    """Split the user's rankings as they say, else by a hash of how their dialogue begins.

    So no prompt, no dialogue's turns and no tree's branches are in two splits.
    """
    rows: dict[str, list[Ranking]] = {"train": [], "validation": [], "test": []}
    rankings = list(read_rankings(path))
    shares = {"validation": config.validation_fraction, "test": config.test_fraction}
    divided = {ranking.split for ranking in rankings}
    filled = [split for split in (None, *shares) if (split or "train") not in divided]
    openings = [opening_key(ranking.prompt) for ranking in rankings if ranking.split is None]
    assigned = assign_splits(openings, shares, filled)
    for ranking in rankings:
        split = ranking.split or assigned[opening_key(ranking.prompt)] or "train"
        rows[split].append(ranking)
    if missing := [split for split in shares if not rows[split]]:
        out.warn(
            f"no ranking for {' and '.join(missing)}, so the reward model is not measured there; "
            f"{len(rows['train']):,} train it. It takes three dialogues"
        )
    if not rows["train"]:
        raise UserError(
            f"{path}: too few rankings to train on",
            "add rankings, or, with data.rankings_as_conversations, raise data.splits.comparisons",
        )
    for split, rankings in rows.items():
        write_jsonl(out / f"{split}.jsonl", (ranking.row() for ranking in rankings))
    candidates = [len(ranking.responses) for ranking in rows["train"]]
    return {split: float(len(rankings)) for split, rankings in rows.items()} | {
        "candidates": sum(candidates) / len(candidates)
    }


def replies_from_elsewhere(
    each: PromptAndReply, by_length: Sequence[PromptAndReply], count: int, seed: int
) -> list[str]:
    """People's replies in other conversations, drawn from those nearest in length.

    ``by_length`` are the split's prompts, sorted by ``reply_tokens``.
    """
    middle = bisect_left(by_length, each.reply_tokens, key=lambda other: other.reply_tokens)
    near = sorted(
        range(max(0, middle - 2 * NEAREST), min(len(by_length), middle + 2 * NEAREST)),
        key=lambda place: (abs(by_length[place].reply_tokens - each.reply_tokens), place),
    )
    texts: list[str] = []
    for other in (by_length[place] for place in near):
        if other.root != each.root and not any(
            same_text(other.reply, text) for text in [each.reply, *texts]
        ):
            texts.append(other.reply)
        if len(texts) == max(NEAREST, count):
            break
    chance = random.Random(derive_seed(seed, "elsewhere", each.id))
    return chance.sample(texts, min(count, len(texts)))


@dataclass
class Collector:
    """Collects candidates, a saved chunk of prompts at a time; several processes share the chunks.

    A chunk's samples depend on the seed, the split and the chunk's number alone, so a killed run
    continues and ends with the same bytes. The test split has the same seed in every run, so that
    the reward model and the judge are tested on the same candidates.
    """

    config: RankingsConfig
    tokenizer: Tokenizer
    policy: InferenceDecoder | VLLMModel
    out: StageFolder
    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def read(self, path: Path, most: int) -> list[PromptAndReply]:
        """At most ``most`` prompts of a file of conversations; none if it is missing."""
        config, context = self.config, self.policy.config.context
        room = prompt_room(config.max_prompt_tokens, config.max_new_tokens, context)
        counts: Counter[str] = Counter()
        found = select_prompts(
            rows_of_split(read_conversations, path),
            self.tokenizer,
            room,
            most=most,
            per_conversation=config.prompts_per_conversation,
            reply_tokens=(config.min_new_tokens, config.max_new_tokens),
            counts=counts,
        )
        window = f"{config.min_new_tokens} to {config.max_new_tokens} tokens"
        if warning := prompts_warning(counts, room, window):
            left_out = {name: counts[name] for name in LEFT_OUT}
            self.left_out.update(left_out)
            settings = "max_prompt_tokens, min_new_tokens, max_new_tokens"
            line = f"{path.name}: {warning} ({self.out.name}.{settings})"
            many = 2 * sum(left_out.values()) > counts["turns"]
            (self.out.progress.say if many else self.out.progress.note)(line)
        return found

    def collect(self, split: str, prompts: Sequence[PromptAndReply]) -> list[dict[str, Any]]:
        """The rows of a split, in the order of its prompts."""
        by_length = sorted(prompts, key=lambda each: (each.reply_tokens, each.id))
        chunks = math.ceil(len(prompts) / PROMPTS_AT_ONCE)
        paths = [self.out.checkpoints / f"{split}-{number:05d}.json" for number in range(chunks)]
        done = sum(path.exists() for path in paths)
        progress = self.out.progress
        progress.begin(f"{split} candidates", len(prompts), "prompts", done * PROMPTS_AT_ONCE)
        rows: list[dict[str, Any]] = []
        began, drawn = time.perf_counter(), 0
        for number in team().own(chunks):
            start, end = number * PROMPTS_AT_ONCE, (number + 1) * PROMPTS_AT_ONCE
            if not paths[number].exists():
                stop_if_requested()
                with apart():
                    chunk = self.sample(split, number, prompts[start:end], by_length)
                write_json(paths[number], chunk)
                drawn += chunk["counts"]["sampled_tokens"]
            give_sign()
            rate = drawn / (time.perf_counter() - began)
            shown = {"tokens_per_second": rate} if drawn else {}
            progress.update(min(len(prompts), end), **shown)
        for saved in read_together(paths):
            rows += saved["rows"]
            self.counts.update(saved["counts"])
        progress.end()
        return rows

    def sample(
        self,
        split: str,
        number: int,
        prompts: Sequence[PromptAndReply],
        by_length: Sequence[PromptAndReply],
    ) -> dict[str, Any]:
        """The rows of a chunk, and counts of what was drawn and dropped."""
        config = self.config
        seed = derive_seed(0 if split == "test" else self.out.seed, split)
        settings = SamplingSettings(
            max_new_tokens=config.max_new_tokens + 1,
            temperature=config.temperature,
            top_p=config.top_p,
            stop_tokens=(self.tokenizer.end_of_turn,),
            seed=derive_seed(seed, "samples", number),
        )
        draws = config.samples
        asked = [each.tokens for each in prompts for _ in range(draws)]
        replies = generate(self.policy, asked, settings, tokenizer=self.tokenizer) if asked else []
        counts: Counter[str] = Counter(sampled=len(replies), sampled_tokens=sum(map(len, replies)))
        rows = []
        for place, each in enumerate(prompts):
            others = replies_from_elsewhere(each, by_length, config.other_replies, seed)
            candidates = [("human", each.reply), *(("elsewhere", text) for text in others)]
            for reply in replies[place * draws : (place + 1) * draws]:
                text, problem = self.judge_sample(reply, [text for _, text in candidates])
                counts[problem] += 1
                if not problem:
                    candidates.append(("policy", text))
            if len(candidates) < 2:
                counts["without_candidates"] += 1
                continue
            random.Random(derive_seed(seed, "order", each.id)).shuffle(candidates)
            source = "test" if split == "test" else config.split
            rows.append(ranking_row(each, candidates, source))
        del counts[""]
        return {"rows": rows, "counts": dict(counts)}

    def judge_sample(self, reply: Sequence[int], others: Sequence[str]) -> tuple[str, str]:
        """The text of a sample, and the reason to drop it; empty for a candidate."""
        if reply[-1:] != [self.tokenizer.end_of_turn]:
            return "", "dropped_not_ended"
        text = self.tokenizer.decode(reply[:-1])
        if not text.strip():
            return text, "dropped_empty"
        # Counted as a person's reply is: the text may be encoded to other tokens.
        length = len(self.tokenizer.encode(text))
        if not self.config.min_new_tokens <= length <= self.config.max_new_tokens:
            return text, "dropped_length"
        if any(same_text(text, other) for other in others):
            return text, "dropped_repeated"
        return text, ""

    def metrics(self, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
        """Numbers of rows, mean candidates and lengths (of train), and shares dropped."""
        found, train = {split: float(len(each)) for split, each in rows.items()}, rows["train"]
        names = {str(row["id"]).rpartition("#")[0].removesuffix("/other-side") for row in train}
        found["conversations"] = float(len(names))
        found["candidates"] = sum(len(row["responses"]) for row in train) / len(train)
        lengths: dict[str, list[int]] = {}
        for row in train:
            encoded = self.tokenizer.encode_batch(row["responses"])
            for origin, ids in zip(row["origins"], encoded, strict=True):
                lengths.setdefault(origin, []).append(len(ids))
        for origin, each in lengths.items():
            found[f"{origin}_reply_tokens"] = sum(each) / len(each)
        found["sampled_tokens"] = float(self.counts["sampled_tokens"])
        for reason in REASONS:
            share = self.counts[f"dropped_{reason}"] / max(1, self.counts["sampled"])
            found[f"dropped_{reason}_share"] = share
        found["prompts_without_candidates"] = float(self.counts["without_candidates"])
        found |= {f"prompts_{name}": float(self.left_out[name]) for name in LEFT_OUT}
        self.warn(found)
        return found

    def warn(self, found: Mapping[str, float]) -> None:
        """Warn where the policy's samples are of little use, and say why."""
        name, dropped = self.out.name, {each: found[f"dropped_{each}_share"] for each in REASONS}
        if sum(dropped.values()) > MANY_DROPPED:
            shares = [
                f"{share:.1%} {reason.replace('_', ' ')}" for reason, share in dropped.items()
            ]
            fix = (
                "The policy rarely ends a reply: train SFT for more steps (raise "
                f"sft.epochs), or raise {name}.max_new_tokens"
                if dropped["not_ended"] > MANY_DROPPED / 2
                else f"Widen {name}.min_new_tokens and max_new_tokens, or train SFT for longer"
            )
            self.out.warn(
                f"{sum(dropped.values()):.1%} of the policy's {self.counts['sampled']:,} samples "
                f"are dropped ({', '.join(shares)}), so the rankings teach little about its own "
                f"replies. {fix}"
            )
        if missing := self.counts["without_candidates"]:
            self.out.warn(f"{missing:,} prompts left out: no second candidate to rank")


def ranking_row(
    each: PromptAndReply, candidates: Sequence[tuple[str, str]], source: str
) -> dict[str, Any]:
    """A ranking by the labeler, with ``origins`` beside its ranks for analysis."""
    return Ranking(
        id=each.id,
        prompt=each.prompt,
        responses=[text for _, text in candidates],
        ranks=[1 if origin == "human" else 2 for origin, _ in candidates],
        labeler=LABELER,
        source=source,
    ).row() | {"origins": [origin for origin, _ in candidates]}
