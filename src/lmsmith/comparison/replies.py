"""Figures of a run's policies: their replies to the same prompts, and PPO's snapshots.

Throughout, ``texts`` are the replies as a reader sees them, by who wrote them (``human`` and the
policies); ``scores`` the numbers each scorer (``reward``, ``judge``) gives them, by who wrote
them; ``replies`` the policies' own tokens, the end of turn included where it was written.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lmsmith.comparison.win_rate import length_controlled_win_rate, win_rate, wins
from lmsmith.core.files import read_json
from lmsmith.prompts.selection import PromptAndReply
from lmsmith.statistics.intervals import bootstrap_ratio
from lmsmith.tokenizers import Tokenizer

ReplyTokens = Mapping[str, Sequence[Sequence[int]]]
Texts = Mapping[str, Sequence[str]]
Scores = Mapping[str, Mapping[str, Sequence[float]]]


def describe_replies(
    tokenizer: Tokenizer, replies: ReplyTokens, texts: Texts, scores: Scores
) -> dict[str, float]:
    """Length, variety, ends and mean scores of every writer's replies; nothing without prompts."""
    prompts = len(texts["human"])
    if not prompts:
        return {}
    found: dict[str, float] = {"evaluate.prompts": float(prompts)}
    for replier, each in texts.items():
        tokens = tokenizer.encode_batch(list(each))
        found[f"{replier}.reply_tokens"] = mean([len(ids) for ids in tokens])
        found[f"{replier}.distinct_1"] = distinct(tokens, 1)
        found[f"{replier}.distinct_2"] = distinct(tokens, 2)
        found[f"{replier}.most_repeated_share"] = most_repeated_share(each)
        for name, by_replier in scores.items():
            found[f"{replier}.{name}_score"] = mean(by_replier[replier])
    for name, written in replies.items():
        ended = [reply[-1:] == [tokenizer.end_of_turn] for reply in written]
        found[f"{name}.ended_share"] = mean(ended)
    return found


def compare_replies(replies: ReplyTokens, scores: Scores, seed: int) -> dict[str, float]:
    """PPO against SFT by the judge, raw and at equal length; and by the reward model itself."""
    found: dict[str, float] = {}
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


def sample_rows(
    prompts: Sequence[PromptAndReply], texts: Texts, scores: Scores
) -> list[dict[str, Any]]:
    """One row a prompt: all replies, and each one's scores."""
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
    """NaN where there are none."""
    return sum(values) / len(values) if values else math.nan


def distinct(replies: Sequence[Sequence[int]], n: int) -> float:
    """Share of different n-grams among all n-grams of all replies (Li et al. 2016, section 5).

    It falls as there is more text, so compare it for the same number of replies of like length.
    0 when no reply has n tokens.
    """
    grams = [tuple(reply[i : i + n]) for reply in replies for i in range(len(reply) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def most_repeated_share(texts: Sequence[str]) -> float:
    """Share of the replies that are the most frequent one, case and white space aside."""
    counts = Counter(" ".join(text.casefold().split()) for text in texts)
    return max(counts.values(), default=0) / max(1, len(texts))


LIKELIER = ("likelier_total", "likelier_per_token")
"""The two readings of "the likelier under SFT wins"; the stronger is the one to beat."""


def accuracy_beside_rules(
    correct_b: Tensor, pairs_b: Tensor, rules: Mapping[str, Tensor], seed: int
) -> dict[str, float]:
    """Accuracies of rules that know nothing of the conversation, and the margin above the best.

    Args:
        correct_b: pairs of each prompt that the scorer orders rightly, ties counting ½.
        pairs_b: pairs of each prompt.
        rules: the same as ``correct_b`` for each rule; those of `LIKELIER` must be among them.
        seed: of the margin's bootstrap over prompts.
    """
    found = {
        f"{rule}_wins_accuracy": float(right_b.sum() / pairs_b.sum())
        for rule, right_b in rules.items()
    }
    right = {rule: float(right_b.sum()) for rule, right_b in rules.items()}
    stronger = max(LIKELIER, key=right.__getitem__)
    found["likelier_wins_accuracy"] = found[f"{stronger}_wins_accuracy"]
    strongest = max(right, key=right.__getitem__)
    margin = bootstrap_ratio(correct_b - rules[strongest], pairs_b, seed=seed)
    return found | margin.named("accuracy_above_rules")


def accuracy_by_origin(
    scores: Sequence[Sequence[float]], ranks: Sequence[Sequence[int]], origins: Sequence[object]
) -> dict[str, float]:
    """Accuracy against each kind of other candidate, where a row says what its candidates are.

    Args:
        scores, ranks: of each row's candidates; rank 1 is best.
        origins: the kind of each of the row's candidates; a row of anything else is left out.
    """
    right: dict[str, list[float]] = {}
    for row_scores, row_ranks, kinds in zip(scores, ranks, origins, strict=True):
        if not isinstance(kinds, list) or len(kinds) != len(row_scores):
            continue
        first = min(row_ranks)
        for best in [place for place, rank in enumerate(row_ranks) if rank == first]:
            for place, kind in enumerate(kinds):
                if row_ranks[place] > first:
                    won = wins([row_scores[best]], [row_scores[place]])[0]
                    right.setdefault(str(kind), []).append(float(won))
    return {f"accuracy_against_{kind}": sum(each) / len(each) for kind, each in right.items()}


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
