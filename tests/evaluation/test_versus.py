"""Win rates: instructions read, replies judged in both orders, position bias told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmsmith.core.errors import UserError
from lmsmith.core.progress import Progress, QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.evaluation.judges import ASKED, Compared, ModelJudge, RewardJudge, load_a_judge
from lmsmith.evaluation.methods.likelihood import LikelihoodReader
from lmsmith.evaluation.methods.subject import Subject
from lmsmith.evaluation.methods.writing import Writer
from lmsmith.evaluation.tasks.spec import AnswerSpec
from lmsmith.evaluation.versus import Instruction, judge_replies, read_instructions, write_replies
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
    """Says what it is told to."""

    name = "fixed"

    def __init__(self, first: Sequence[float], second: Sequence[float]) -> None:
        self._pairs = list(zip(first, second, strict=True))

    def compare(self, rows: Sequence[Compared]) -> list[dict[str, float]]:
        return [
            {
                "score_a": (f + s) / 2,
                "score_b": 1 - (f + s) / 2,
                "a_shown_first": f,
                "a_shown_second": s,
            }
            for f, s in self._pairs
        ]


def asked(count: int) -> list[Instruction]:
    return [Instruction(str(n), tuple(USER)) for n in range(count)]


def test_a_judge_that_always_takes_the_first_ties_and_is_found_out() -> None:
    replies = [f"reply {n}" for n in range(8)]
    found = judge_replies(FixedJudge([0.9] * 8, [0.1] * 8), asked(8), replies, replies)
    assert (found.rate.value, found.ties) == (0.5, 1.0)
    assert found.position_bias is not None
    assert found.position_bias.value == pytest.approx(0.4)
    assert found.consistent == 0.0


def test_wins_ties_and_bias_are_counted() -> None:
    judge = FixedJudge([0.9, 0.2, 0.75, 0.6], [0.8, 0.1, 0.25, 0.5])
    found = judge_replies(judge, asked(4), ["a"] * 4, ["b"] * 4)
    assert [row["won"] for row in found.rows] == [1.0, 0.0, 0.5, 1.0]
    assert found.rate.value == 0.625
    assert found.at_equal_length.value == pytest.approx(0.625, abs=1e-3)  # lengths are equal
    assert found.ties == 0.25
    assert found.consistent == 0.5  # the third and fourth change sides, the fourth at one half
    first = np.array([0.9, 0.2, 0.75, 0.6]) + 1 - np.array([0.8, 0.1, 0.25, 0.5])
    assert found.position_bias is not None
    assert found.position_bias.value == pytest.approx(float(first.mean() / 2 - 0.5))
    json.dumps(found.as_dict())


def test_a_model_reads_both_orders(tiny: Subject) -> None:
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


def test_a_reward_models_folder_is_a_judge_by_its_scores(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    torch.manual_seed(4)
    model = ScalarModel(Decoder(ModelConfig(1, 16, 2, 64, tiny_tokenizer.vocabulary_size))).eval()
    save_model(tmp_path / "reward", model, tiny_tokenizer, {})
    judge = load_a_judge(
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
    tiny: Subject,
    make_tiny: Callable[..., Subject],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"the dog {n}"}) + "\n" for n in range(10)))
    spec, progress = AnswerSpec(max_new_tokens=5, stop=()), quiet()
    first = write_replies(tiny, read_instructions(file, 9), file, tmp_path, spec, 0, progress)
    count = []
    write = Writer.write

    def counted(self: Writer, prompts: Any, *rest: Any, **more: Any) -> Any:
        count.append(len(prompts))
        return write(self, prompts, *rest, **more)

    monkeypatch.setattr(Writer, "write", counted)
    again = write_replies(tiny, read_instructions(file), file, tmp_path, spec, 0, progress)
    assert again[:9] == first
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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no instructions"),
        ('{"text": "a"}', "line 1: no instruction"),
        ('{"prompt": [{"role": "user"}]}', "line 1: no instruction"),
        ('{"prompt": "ok"}\n{"prompt": " "}', "line 2: nothing is asked"),
        ('{"messages": []}', "line 1: nothing is asked"),
    ],
)
def test_instructions_that_ask_nothing_are_told(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=said):
        read_instructions(file)
