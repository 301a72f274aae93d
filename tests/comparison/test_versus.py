"""Win rates: instructions read, replies judged in both orders, position bias told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmsmith.catalogue.resolve import Sampling
from lmsmith.comparison.instructions import (
    Instruction,
    Replies,
    read_instructions,
    reply_spec,
    write_replies,
)
from lmsmith.comparison.judges import ASKED, Compared, ModelJudge, RewardJudge, load_judge
from lmsmith.comparison.win_rate import Versus, judge_replies
from lmsmith.core.errors import UserError
from lmsmith.core.progress import Progress, QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.evaluation.methods.likelihood import LikelihoodReader
from lmsmith.evaluation.methods.writing import Writer
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.tasks.spec import AnswerSpec
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.models.heads import ScalarModel
from lmsmith.prompts import encode_prompt
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine

USER = [{"role": "user", "content": "where is the dog?"}]
ROWS: list[Compared] = [
    (USER, "The dog sat on the mat.", "sea"),
    (USER, "blue", "blue"),
    (USER, "in it lived three sisters", "by the river and the sea"),
]


class FixedJudge:
    """Says what it is told to, and counts what it is asked."""

    name = "fixed"
    cut = 0

    def __init__(
        self, first: Sequence[float], second: Sequence[float], fingerprint: str = "fixed"
    ) -> None:
        self._pairs = list(zip(first, second, strict=True))
        self.fingerprint = fingerprint
        self.asked: list[str] = []
        self.killed_after: int | None = None

    def compare(self, rows: Sequence[Compared]) -> list[dict[str, float]]:
        if self.killed_after is not None and len(self.asked) >= self.killed_after:
            raise KeyboardInterrupt
        self.asked += [a for _, a, _ in rows]
        said = [self._pairs[int(a.split()[-1])] for _, a, _ in rows]
        return [
            {
                "score_a": (f + s) / 2,
                "score_b": 1 - (f + s) / 2,
                "a_shown_first": f,
                "a_shown_second": s,
            }
            for f, s in said
        ]


def asked(count: int) -> list[Instruction]:
    return [Instruction(str(n), tuple(USER)) for n in range(count)]


def replied(model: str, texts: Sequence[str]) -> Replies:
    return Replies(model, tuple(texts), AnswerSpec(), 0, model)


def numbered(name: str, count: int) -> Replies:
    return replied(name, [f"{name} {n}" for n in range(count)])


def judged(judge: FixedJudge, count: int, folder: Path) -> Versus:
    a, b = numbered("a", count), numbered("b", count)
    return judge_replies(judge, asked(count), a, b, folder / "judged.jsonl", quiet())


def test_a_judge_that_always_takes_the_first_ties_and_is_found_out(tmp_path: Path) -> None:
    found = judged(FixedJudge([0.9] * 8, [0.1] * 8), 8, tmp_path)
    assert found.rate is not None
    assert (found.rate.value, found.ties) == (0.5, 1.0)
    assert found.position_bias is not None
    assert found.position_bias.value == pytest.approx(0.4)
    assert found.consistent == 0.0


def test_wins_ties_and_bias_are_counted(tmp_path: Path) -> None:
    judge = FixedJudge([0.9, 0.2, 0.75, 0.6], [0.8, 0.1, 0.25, 0.5])
    found = judged(judge, 4, tmp_path)
    assert [row.won for row in found.rows] == [1.0, 0.0, 0.5, 1.0]
    assert found.rate is not None
    assert found.at_equal_length is not None
    assert found.rate.value == 0.625
    assert found.at_equal_length.value == pytest.approx(0.625, abs=1e-3)  # lengths are equal
    assert found.ties == 0.25
    assert found.consistent == 0.5  # the third and fourth change sides, the fourth at one half
    first = np.array([0.9, 0.2, 0.75, 0.6]) + 1 - np.array([0.8, 0.1, 0.25, 0.5])
    assert found.position_bias is not None
    assert found.position_bias.value == pytest.approx(float(first.mean() / 2 - 0.5))
    json.dumps(found.as_dict())


def test_after_a_kill_only_what_is_left_is_judged(tmp_path: Path) -> None:
    chance = np.random.default_rng(3).random((2, 20))
    whole = judged(FixedJudge(*chance), 20, tmp_path / "whole")
    killed = FixedJudge(*chance)
    killed.killed_after = 8
    with pytest.raises(KeyboardInterrupt):
        judged(killed, 20, tmp_path)
    assert len(killed.asked) == 8
    second = FixedJudge(*chance)
    again = judged(second, 20, tmp_path)
    assert second.asked == [f"a {n}" for n in range(8, 20)]
    assert again.as_dict() == whole.as_dict()
    assert list(again.rows) == list(whole.rows)
    third = FixedJudge(*chance)
    assert judged(third, 20, tmp_path).as_dict() == whole.as_dict()
    assert third.asked == []


def test_another_judge_or_other_replies_are_judged_anew(tmp_path: Path) -> None:
    judged(FixedJudge([0.9] * 20, [0.9] * 20), 12, tmp_path)
    more = FixedJudge([0.9] * 20, [0.9] * 20)
    judged(more, 20, tmp_path)  # a higher limit
    assert len(more.asked) == 8
    other = FixedJudge([0.1] * 20, [0.1] * 20, "other")
    found = judged(other, 20, tmp_path)
    assert len(other.asked) == 20
    assert found.rate is not None
    assert found.rate.value == 0
    drawn_anew = replace(numbered("b", 20), fingerprint="another seed")
    log = tmp_path / "judged.jsonl"
    judge_replies(other, asked(20), numbered("a", 20), drawn_anew, log, quiet())
    assert len(other.asked) == 40


def test_a_model_is_asked_as_chat_asks_it_and_empty_replies_are_counted(
    tiny: EvaluatedModel,
) -> None:
    own = replace(tiny, sampling=Sampling(0.3, 0.6))
    drawn = reply_spec(own, 7)
    assert (drawn.search, drawn.temperature, drawn.top_p) == ("sample", 0.3, 0.6)
    assert (drawn.max_new_tokens, drawn.stop) == (7, ())
    assert reply_spec(own, 7, greedy=True).search == "greedy"
    said = Replies("a", ("", "x", ""), drawn, 5, "").as_dict()
    assert (said["empty"], said["temperature"], said["top_p"], said["seed"]) == (2, 0.3, 0.6, 5)


def test_a_model_reads_both_orders(tiny: EvaluatedModel) -> None:
    found = ModelJudge(tiny).compare(ROWS)

    def chance_of_first(one: str, two: str) -> float:
        prompt = ASKED.format(conversation="user: where is the dog?", first=one, second=two)
        pairs = tiny.encode_pairs([(prompt, " 1"), (prompt, " 2")])
        a, b = [each.total for each in LikelihoodReader(tiny.model).read(pairs)]
        return float(1 / (1 + np.exp(b - a)))

    for (_, a, b), row in zip(ROWS, found, strict=True):
        assert row["a_shown_first"] == pytest.approx(chance_of_first(a, b), abs=1e-4)
        assert row["a_shown_second"] == pytest.approx(1 - chance_of_first(b, a), abs=1e-4)
        assert row["score_a"] + row["score_b"] == pytest.approx(1)
    assert found[1]["score_a"] == found[1]["score_b"] == 0.5
    turned = ModelJudge(tiny).compare([(messages, b, a) for messages, a, b in ROWS])
    assert [row["score_a"] for row in turned] == pytest.approx([row["score_b"] for row in found])


def test_a_judge_that_does_not_see_all_says_so(tiny: EvaluatedModel, tmp_path: Path) -> None:
    judge, progress = ModelJudge(tiny), QuietProgress()
    short, long = replied("a", ["yes", "no"]), replied("b", ["no", "the sea " * tiny.context])
    judge_replies(judge, asked(2), short, short, tmp_path / "one.jsonl", progress)
    assert (judge.cut, progress.said) == (0, [])
    judge_replies(judge, asked(2), short, long, tmp_path / "two.jsonl", progress)
    assert judge.cut == 2
    assert "did not see all that it judged: 2 questions, two a pair" in progress.said[0]


def test_a_reward_models_folder_is_a_judge_by_its_scores(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    torch.manual_seed(4)
    model = ScalarModel(Decoder(ModelConfig(1, 16, 2, 64, tiny_tokenizer.vocabulary_size))).eval()
    save_model(tmp_path / "reward", model, tiny_tokenizer, {})
    judge = load_judge(
        str(tmp_path / "reward"), resolve_machine(MachineConfig(precision="fp32", threads=1))
    )
    assert isinstance(judge, RewardJudge)
    found = judge.compare(ROWS)
    for (messages, *replies), row in zip(ROWS, found, strict=True):
        for reply, key in zip(replies, ("score_a", "score_b"), strict=True):
            prompt = encode_prompt(tiny_tokenizer, messages).tokens
            tokens = [*prompt, *tiny_tokenizer.encode(reply), tiny_tokenizer.end_of_turn]
            with torch.no_grad():
                expected = float(model(torch.tensor([tokens]))[0, -1])
            assert row[key] == pytest.approx(expected, abs=1e-4)
    assert found[1]["score_a"] == found[1]["score_b"]


def test_replies_are_kept_and_not_written_again(
    tiny: EvaluatedModel,
    make_tiny: Callable[..., EvaluatedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"the dog {n}"}) + "\n" for n in range(10)))
    spec, progress = AnswerSpec(max_new_tokens=5, stop=()), quiet()
    drawn = read_instructions(file, 9)
    assert len(drawn) == 9
    assert drawn == read_instructions(file, 9)
    assert drawn != read_instructions(file)[:9]
    first = write_replies(tiny, drawn, file, tmp_path, spec, 0, progress)
    count = []
    write = Writer.write

    def counted(self: Writer, prompts: Any, *rest: Any, **more: Any) -> Any:
        count.append(len(prompts))
        return write(self, prompts, *rest, **more)

    monkeypatch.setattr(Writer, "write", counted)
    again = write_replies(tiny, read_instructions(file), file, tmp_path, spec, 0, progress)
    assert [again.texts[int(each.id)] for each in drawn] == list(first.texts)
    assert sum(count) == 1
    other = make_tiny(5)
    write_replies(other, read_instructions(file), file, tmp_path, spec, 0, progress)
    assert sum(count) == 11


def quiet() -> Progress:
    return QuietProgress()


def test_instructions_in_all_their_forms(tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    talk = [*USER, {"role": "assistant", "content": "on the mat"}]
    rows = [
        {"prompt": "a"},
        {"instruction": "b"},
        {"messages": talk},
        {"prompt": [*talk, {"role": "user", "content": "why?"}]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_instructions(file)
    assert [each.text for each in found[:3]] == ["a", "b", "where is the dog?"]
    assert found[3].text.endswith("assistant: on the mat\nuser: why?")
    assert len(read_instructions(file, 2)) == 2
    alpaca = [
        {"instruction": "Say it in French.", "input": "Good day", "output": "Bonjour"},
        {"instruction": "Say hello.", "input": "", "output": "Hello"},
        {"prompt": None, "messages": USER},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in alpaca))
    asked = [each.text for each in read_instructions(file)]
    assert asked == ["Say it in French.\n\nGood day", "Say hello.", "where is the dog?"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no instructions"),
        ('{"text": "a"}', "line 1: no instruction"),
        ('{"prompt": [{"role": "user"}]}', "line 1: no instruction"),
        ('{"prompt": "ok"}\n{"prompt": " "}', "line 2: nothing is asked"),
        ('{"messages": []}', "line 1: nothing is asked"),
        ('{"prompt": [{"role": "system", "content": "Be kind."}]}', "line 1: the prompt ends with"),
        ('{"prompt": [{"role": "you", "content": "a"}]}', "line 1.*message 1 has the role 'you'"),
    ],
)
def test_instructions_that_ask_nothing_are_told(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=said):
        read_instructions(file)
