"""Candidates that differ in what they say only, split by conversation, the same after a kill."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from preference_world import (
    conversations,
    ending_decoder,
    make_decoder,
    make_tokenizer,
    sentence,
    stage_folder,
    write_data,
    write_models,
)

from lmsmith.core.config import problems_in
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import read_jsonl
from lmsmith.corpus.cleaning import same_text
from lmsmith.corpus.rows import Conversation, read_conversations, read_rankings
from lmsmith.corpus.splits import split_of
from lmsmith.prompts import encode_prompt
from lmsmith.prompts.selection import select_prompts
from lmsmith.runs.signals import StopSignal
from lmsmith.stages import rankings
from lmsmith.stages.rankings import (
    RankingsConfig,
    replies_from_elsewhere,
    run,
)

TOKENIZER = make_tokenizer()
CONFIG = RankingsConfig(
    max_new_tokens=24, max_prompts=60, max_test_prompts=12, validation_fraction=0.25
)
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_inputs(tmp_path_factory.mktemp("run"))


def make_inputs(folder: Path) -> dict[str, Path]:
    """Folders of the data and of the policy, below ``folder``."""
    data = write_data(
        folder / "data",
        comparisons=conversations(24, 1, "c"),
        judge=conversations(16, 2, "j"),
        test=conversations(10, 3, "t"),
    )
    return {"data": data, **write_models(folder, TOKENIZER, policy=ending_decoder(TOKENIZER))}


@pytest.fixture(scope="module")
def made(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = stage_folder(tmp_path_factory.mktemp("rankings"))
    metrics = run(CONFIG, inputs, out)
    assert metrics["train"] == len(rows_of(out.path, "train"))
    assert metrics["human_reply_tokens"] > 0
    assert 0 <= metrics["dropped_not_ended_share"] < 0.5
    return out.path


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(folder / f"{split}.jsonl")]


def all_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for split in SPLITS for row in rows_of(folder, split)]


def test_the_human_reply_is_first_and_the_others_tie(made: Path, inputs: dict[str, Path]) -> None:
    by_id = {
        c.id: c
        for name in ("comparisons", "test")
        for c in read_conversations(inputs["data"] / f"{name}.jsonl")
    }
    assert all(len(rows_of(made, split)) > 2 for split in SPLITS)
    for row in all_rows(made):
        name, _, turn = row["id"].rpartition("#")
        messages = by_id[name].messages
        best = row["ranks"].index(1)
        assert sorted(row["ranks"]) == [1] + [2] * (len(row["ranks"]) - 1)
        assert row["responses"][best] == messages[int(turn)]["content"]
        assert row["origins"][best] == "human"
        assert row["origins"].count("elsewhere") == 1
        assert row["origins"].count("policy") <= 2
        assert row["labeler"] == "human_reply_first"
        # the prompt is the end of what came before
        history = messages[: int(turn)]
        system = [m for m in history if m["role"] == "system"]
        turns = [m for m in row["prompt"] if m["role"] != "system"]
        assert row["prompt"] == system + turns
        assert turns == history[-len(turns) :]
    assert sum(len(row["responses"]) == 4 for row in all_rows(made)) > 5


def test_files_read_back_as_rankings(made: Path) -> None:
    for split in SPLITS:
        found = list(read_rankings(made / f"{split}.jsonl"))
        assert [r.responses for r in found] == [row["responses"] for row in rows_of(made, split)]


def test_all_candidates_obey_one_window_and_none_repeats(made: Path) -> None:
    for row in all_rows(made):
        lengths = [len(TOKENIZER.encode(text)) for text in row["responses"]]
        assert min(lengths) >= CONFIG.min_new_tokens
        assert max(lengths) <= CONFIG.max_new_tokens
        prompt = encode_prompt(TOKENIZER, row["prompt"]).tokens
        assert len(prompt) + CONFIG.max_new_tokens + 1 <= 64
        for place, text in enumerate(row["responses"]):
            assert not any(same_text(text, other) for other in row["responses"][:place])


def test_splits_share_no_conversation_and_no_turn_repeats(made: Path) -> None:
    seen = [{row["id"].rpartition("#")[0] for row in rows_of(made, split)} for split in SPLITS]
    assert len(set.union(*seen)) == sum(len(each) for each in seen)
    ids = [row["id"] for row in all_rows(made)]
    assert len(ids) == len(set(ids))


def test_conversations_that_one_split_holds_are_divided_all_the_same(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    # the data stage's hash of an id puts all of these into one narrow interval
    rows = [
        row
        for row in conversations(400, 6, "c")
        if split_of(str(row["id"]), {"before": 0.5, "here": 0.1}) == "here"
    ]
    data = write_data(tmp_path / "data", comparisons=rows)
    metrics = run(CONFIG, {**inputs, "data": data}, stage_folder(tmp_path / "out"))
    assert 0.1 < metrics["validation"] / (metrics["validation"] + metrics["train"]) < 0.45


def test_the_place_of_the_best_tells_nothing(made: Path) -> None:
    places = [row["ranks"].index(1) for row in all_rows(made) if len(row["ranks"]) == 4]
    assert set(places) == {0, 1, 2, 3}


def test_a_killed_run_ends_with_the_same_bytes(
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rankings, "PROMPTS_AT_ONCE", 8)
    unbroken = stage_folder(tmp_path / "unbroken")
    run(CONFIG, inputs, unbroken)

    broken = stage_folder(tmp_path / "broken")
    sampled: list[int] = []
    real = rankings.generate

    def counted(
        policy: Any, prompts: Sequence[Any], settings: Any, **options: Any
    ) -> list[list[int]]:
        sampled.append(len(prompts))
        if len(sampled) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(policy, prompts, settings, **options)

    monkeypatch.setattr(rankings, "generate", counted)
    with pytest.raises(Interrupted), StopSignal():
        run(CONFIG, inputs, broken)
    assert len(sampled) == 3
    with StopSignal():
        run(CONFIG, inputs, broken)
    whole = len(list(unbroken.checkpoints.iterdir()))
    assert len(sampled) == whole
    for split in SPLITS:
        name = f"{split}.jsonl"
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes()


def test_judge_and_reward_are_tested_on_the_same_candidates(
    made: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    out = stage_folder(tmp_path, seed=1234)
    run(RankingsConfig(**{**vars(CONFIG), "split": "judge"}), inputs, out)
    assert all(row["id"].startswith("j") for row in rows_of(out.path, "train"))
    assert all(row["source"] == "judge" for row in rows_of(out.path, "train"))
    assert (out / "test.jsonl").read_bytes() == (made / "test.jsonl").read_bytes()


def test_another_seed_draws_other_samples(
    made: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    out = stage_folder(tmp_path, seed=8)
    run(CONFIG, inputs, out)
    assert (out / "train.jsonl").read_bytes() != (made / "train.jsonl").read_bytes()


def test_replies_from_elsewhere_are_of_like_length() -> None:
    prompts = select_prompts(
        [
            Conversation(f"c{n}", [{"role": "user", "content": "why"}, {"role": "assistant",
             "content": "tea " * (1 + n % 20) + str(n)}])
            for n in range(400)
        ],
        TOKENIZER, 23, most=400, per_conversation=1, reply_tokens=(1, 40),
    )  # fmt: skip
    by_length = sorted(prompts, key=lambda each: (each.reply_tokens, each.id))
    for each in prompts[::7]:
        (text,) = replies_from_elsewhere(each, by_length, 1, seed=3)
        assert text != each.reply
        assert abs(len(TOKENIZER.encode(text)) - each.reply_tokens) <= 3
        assert replies_from_elsewhere(each, by_length, 1, seed=3) == [text]


def own_rankings(count: int, turns: int = 3) -> list[dict[str, object]]:
    """Dialogues that were ranked turn by turn: `turns` rankings of one beginning each."""
    source = random.Random(1)
    rows: list[dict[str, object]] = []
    for number in range(count):
        said = [f"{number} {sentence(source)}", *(sentence(source) for _ in range(2 * turns))]
        messages = [{"role": ("user", "assistant")[at % 2], "content": text}
                    for at, text in enumerate(said)]  # fmt: skip
        rows += [
            {"prompt": messages[: 2 * turn + 1], "chosen": "yes", "rejected": "no",
             "id": f"{number}#{turn}"}
            for turn in range(turns)
        ]  # fmt: skip
    return rows


def test_human_rankings_are_used_and_a_dialogue_is_in_one_split(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", rankings=own_rankings(60))
    out = stage_folder(tmp_path / "out")
    metrics = run(RankingsConfig(test_fraction=0.2, validation_fraction=0.2), {"data": data}, out)
    found = {split: rows_of(out.path, split) for split in SPLITS}
    assert sum(len(each) for each in found.values()) == 180
    assert all(metrics[split] == len(each) > 0 for split, each in found.items())
    dialogues = [{row["id"].partition("#")[0] for row in each} for each in found.values()]
    assert sum(len(each) for each in dialogues) == len(set.union(*dialogues)) == 60


def test_a_split_that_rankings_name_is_obeyed(tmp_path: Path) -> None:
    rows = own_rankings(30)
    for number, row in enumerate(rows):
        row["split"] = SPLITS[number % 3]
    data = write_data(tmp_path / "data", rankings=rows)
    out = stage_folder(tmp_path / "out")
    run(RankingsConfig(), {"data": data}, out)
    for number, split in enumerate(SPLITS):
        assert [row["id"] for row in rows_of(out.path, split)] == [
            row["id"] for row in rows[number::3]
        ]


def test_human_rankings_without_any_to_train_on_are_refused(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{**row, "split": "test"} for row in own_rankings(3)]
    data = write_data(tmp_path / "data", rankings=rows)
    with pytest.raises(UserError, match=r"rankings\.jsonl: too few rankings to train on"):
        run(RankingsConfig(), {"data": data}, stage_folder(tmp_path / "out"))


def test_no_eligible_prompt_is_one_clear_message(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = RankingsConfig(min_new_tokens=23, max_new_tokens=24)
    with pytest.raises(UserError, match=r"no prompt whose reply has 23 to 24 tokens"):
        run(config, inputs, stage_folder(tmp_path))
    with pytest.raises(UserError, match="too little room for a prompt"):
        run(RankingsConfig(max_new_tokens=60), inputs, stage_folder(tmp_path))


def test_settings_out_of_range_are_all_named() -> None:
    config = RankingsConfig(
        max_prompts=0,
        samples=0,
        other_replies=0,
        max_new_tokens=1,
        top_p=0.0,
        validation_fraction=1.0,
    )
    keys = [each.key for each in problems_in(config)]
    assert keys == ["max_prompts", "top_p", "validation_fraction", "samples", "max_new_tokens"]
    assert problems_in(RankingsConfig()) == []


def test_a_policy_that_never_ends_is_told_of(inputs: dict[str, Path], tmp_path: Path) -> None:
    models = write_models(tmp_path, TOKENIZER, policy=make_decoder(TOKENIZER))
    out = stage_folder(tmp_path / "rankings")
    metrics = run(CONFIG, {**inputs, **models}, out)
    assert metrics["dropped_not_ended_share"] > 0.5
    (told,) = [said for said in out.progress.said if "samples are dropped" in said]  # type: ignore[attr-defined]
    assert "not ended" in told
    assert "raise sft.epochs" in told


def test_prompts_are_left_out_by_the_length_of_their_reply_aloud(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    out = stage_folder(tmp_path / "rankings")
    config = replace(CONFIG, min_new_tokens=3, max_new_tokens=4, prompts_per_conversation=9)
    metrics = run(config, inputs, out)
    assert metrics["prompts_reply_length"] > 0
    said = "\n".join(out.progress.said)  # type: ignore[attr-defined]
    assert "with a reply outside 3 to 4 tokens" in said
