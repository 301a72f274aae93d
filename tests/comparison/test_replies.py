"""What replies come to, on a handful that can be counted by hand."""

from __future__ import annotations

import math

from lmsmith.comparison.replies import compare_replies, describe_replies, mean, sample_rows
from lmsmith.prompts.selection import PromptAndReply
from lmsmith.tokenizers import Tokenizer

TOKENIZER = Tokenizer.train(["tea rain tea"], 262)
END = TOKENIZER.end_of_turn
TEXTS = {"human": ["ab", "abcd"], "sft": ["ab", "AB "], "ppo": ["a", "a"]}
REPLIES = {
    "sft": [[*TOKENIZER.encode("ab"), END], TOKENIZER.encode("AB ")],
    "ppo": [[*TOKENIZER.encode("a"), END], [*TOKENIZER.encode("a"), END]],
}
SCORES = {
    "judge": {"human": [0.0, 3.0], "sft": [1.0, 1.0], "ppo": [2.0, 1.0]},
    "reward": {"human": [0.0, 0.0], "sft": [0.0, 0.0], "ppo": [1.0, 1.0]},
}


def test_replies_are_described() -> None:
    found = describe_replies(TOKENIZER, REPLIES, TEXTS, SCORES)
    assert found["evaluate.prompts"] == 2
    assert found["human.reply_tokens"] == 3
    assert found["human.distinct_1"] == 4 / 6
    assert found["ppo.most_repeated_share"] == found["sft.most_repeated_share"] == 1.0
    assert found["ppo.judge_score"] == 1.5
    assert (found["sft.ended_share"], found["ppo.ended_share"]) == (0.5, 1.0)
    assert "human.ended_share" not in found
    assert describe_replies(TOKENIZER, {"sft": []}, {"human": [], "sft": []}, {}) == {}


def test_ppo_is_compared_with_sft_and_both_with_people() -> None:
    found = compare_replies(REPLIES, SCORES, seed=0)
    assert found["ppo.win_rate"] == 0.75  # a win and a tie
    assert found["ppo.win_rate_over_human"] == found["sft.win_rate_over_human"] == 0.5
    assert found["ppo.win_rate_by_reward"] == 1.0
    assert "ppo.win_rate_length_controlled_low" in found
    assert set(compare_replies(REPLIES, {"reward": SCORES["reward"]}, seed=0)) == {
        f"ppo.win_rate_by_reward{end}" for end in ("", "_low", "_high")
    }


def test_rows_hold_each_reply_and_its_scores() -> None:
    prompt = [{"role": "user", "content": "?"}]
    prompts = [PromptAndReply(f"{n}", "c", prompt, [1], text, 1) for n, text in enumerate("xy")]
    assert sample_rows(prompts, TEXTS, SCORES)[1] == {
        "id": "1",
        "prompt": prompt,
        "human": "y",
        "responses": {"sft": "AB ", "ppo": "a"},
        "judge": {"human": 3.0, "sft": 1.0, "ppo": 1.0},
        "reward": {"human": 0.0, "sft": 0.0, "ppo": 1.0},
    }


def test_the_mean_of_nothing_is_unknown() -> None:
    assert math.isnan(mean([]))
    assert mean([1, 2]) == 1.5
