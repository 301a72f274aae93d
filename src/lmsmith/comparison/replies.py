"""What everyone's replies to the same prompts come to: described, compared, and as rows to read.

Throughout, ``texts`` are the replies as a reader sees them, by who wrote them (``human`` and the
policies); ``scores`` the numbers each scorer (``reward``, ``judge``) gives them, by who wrote
them; ``replies`` the policies' own tokens, the end of turn included where it was written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmsmith.comparison.diversity import distinct, most_repeated_share
from lmsmith.comparison.win_rate import length_controlled_win_rate, win_rate
from lmsmith.prompts.selection import PromptAndReply
from lmsmith.tokenizers import Tokenizer

Replies = Mapping[str, Sequence[Sequence[int]]]
Texts = Mapping[str, Sequence[str]]
Scores = Mapping[str, Mapping[str, Sequence[float]]]


def describe_replies(
    tokenizer: Tokenizer, replies: Replies, texts: Texts, scores: Scores
) -> dict[str, float]:
    """Length, variety, ends and mean scores of every replier's replies; nothing without prompts."""
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


def compare_replies(replies: Replies, scores: Scores, seed: int) -> dict[str, float]:
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
    """NaN where there are none."""
    return sum(values) / len(values) if values else math.nan
