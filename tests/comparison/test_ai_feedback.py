"""Rankings that a judge makes in place of people."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lmsmith import cli, judgements
from lmsmith.comparison.ai_feedback import left_out_of, rank_answers, rank_responses
from lmsmith.comparison.judges import Compared
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_jsonl
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.rows import read_rankings
from lmsmith.feedback.sample import SampledPrompt, prompts_of, writers_of
from lmsmith.generation.machine import prepare_reading
from lmsmith.generation.settings import SamplingSettings
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer
from model_server import model_server
from tiny_models import TEXTS, random_decoder

ASK = [{"role": "user", "content": "What is tea?"}]


class ByLength:
    """Finds the longer reply better, by at least ``margin`` characters."""

    name, fingerprint = "ruler", "ruler"
    cut = 0

    def __init__(self, margin: int = 1) -> None:
        self.margin, self.asked = margin, 0

    def compare(self, rows: Sequence[Compared]) -> list[dict[str, float]]:
        self.asked += len(rows)
        found = []
        for _, a, b in rows:
            apart = len(a) - len(b)
            score = 0.5 if abs(apart) < self.margin else float(apart > 0)
            found.append({"score_a": score, "score_b": 1 - score})
        return found


class Circular(ByLength):
    """Prefers each of three to the next: no order."""

    def compare(self, rows: Sequence[Compared]) -> list[dict[str, float]]:
        better = {("a", "b"), ("b", "c"), ("c", "a")}
        return [{"score_a": float((a, b) in better), "score_b": 0.5} for _, a, b in rows]


@pytest.mark.parametrize("order", list(itertools.permutations(["a", "bb", "cc", "dddd"])))
def test_each_answer_is_compared_with_each_other(order: tuple[str, ...]) -> None:
    judge = ByLength()
    expected = {"dddd": 1, "cc": 2, "bb": 2, "a": 3}
    assert rank_responses(judge, ASK, order) == [expected[each] for each in order]
    assert judge.asked == 6


def test_a_circle_is_a_tie() -> None:
    assert rank_responses(Circular(), ASK, ["a", "b", "c"]) == [1, 1, 1]


def test_rankings_are_read_by_a_recipe_and_a_run_goes_on(tmp_path: Path) -> None:
    prompts = [SampledPrompt([{"role": "user", "content": f"Say {number}"}]) for number in range(5)]

    def write(prompt: Sequence[dict[str, str]], count: int, seed: int) -> list[str]:
        number = int(prompt[0]["content"][-1])
        return ["same"] * count if number == 3 else [str(number) * n for n in range(1, count + 1)]

    def run(part: Sequence[SampledPrompt], judge: ByLength) -> dict[str, int]:
        return rank_answers(
            part, {"one": write}, judge, tmp_path / "sub/ai.jsonl", answers=3,
            seed=1, progress=QuietProgress(),
        )  # fmt: skip

    counts = run(prompts[:2], ByLength())
    assert counts == counted(rankings=2)
    assert run(prompts, ByLength()) == counted(rankings=2, known=2, dropped=1)
    rows = list(read_rankings(tmp_path / "sub/ai.jsonl"))
    assert {each.prompt[0]["content"] for each in rows} == {"Say 0", "Say 1", "Say 2", "Say 4"}
    for each in rows:
        assert (each.labeler, each.source) == ("ruler", "judge")
        longest = max(each.responses, key=len)
        assert each.ranks[each.responses.index(longest)] == 1
    before = (tmp_path / "sub/ai.jsonl").read_text()
    assert run(prompts[:1], Undecided()) == counted(undecided=1)
    assert (tmp_path / "sub/ai.jsonl").read_text() == before


def test_prompts_that_were_left_out_are_asked_again_only_on_request(tmp_path: Path) -> None:
    prompts = [SampledPrompt([{"role": "user", "content": each}]) for each in ("alike", "same")]
    judge, file, written = Undecided(), tmp_path / "ai.jsonl", list[str]()

    def write(prompt: Sequence[dict[str, str]], count: int, seed: int) -> list[str]:
        written.append(prompt[0]["content"])
        return ["a"] * count if written[-1] == "same" else ["a" * n for n in range(1, count + 1)]

    def run(**given: Any) -> dict[str, int]:
        written.clear()
        chosen = {"seed": 0, "answers": 2, "progress": QuietProgress(), **given}
        return rank_answers(prompts, {"one": write}, judge, file, **chosen)

    assert run() == counted(dropped=1, undecided=1)
    assert {*written} == {"alike", "same"}
    rows = {row["why"]: row for _, row in read_jsonl(left_out_of(file))}
    assert rows["undecided"]["prompt"] == prompts[0].messages
    assert rows["undecided"]["responses"] in (["a", "aa"], ["aa", "a"])
    assert rows["dropped"]["responses"] == ["a"]
    with left_out_of(file).open("a") as out:
        out.write('{"id": "to')  # a kill
    asked = judge.asked
    assert run() == counted(dropped=1, undecided=1, asked_before=2)
    assert (written, judge.asked) == ([], asked)
    assert run(seed=1) == counted(dropped=1, undecided=1), "other answers are another question"
    judge.margin = 1
    assert run(again=True) == counted(rankings=1, dropped=1)
    assert run() == counted(known=1, dropped=1, asked_before=1)
    assert len(list(read_jsonl(left_out_of(file)))) == 4


def counted(**given: int) -> dict[str, int]:
    names = ("rankings", "known", "dropped", "undecided", "asked_before")
    return dict.fromkeys(names, 0) | given


@pytest.mark.parametrize("rest", ["", "\n", '\n{"id": "x", "pro', '\n{"id": "'])
def test_rows_are_added_after_a_line_that_a_kill_or_an_editor_left(
    tmp_path: Path, rest: str
) -> None:
    file, known = tmp_path / "ai.jsonl", {"id": "k", "prompt": ASK, "responses": [], "ranks": []}
    file.write_text(json.dumps(known) + rest)

    def write(prompt: Sequence[dict[str, str]], count: int, seed: int) -> list[str]:
        return ["a" * n for n in range(1, count + 1)]

    def run(drawn_by: object) -> dict[str, int]:
        return rank_answers(
            [SampledPrompt(ASK)], {"one": write}, ByLength(), file, answers=2, seed=0,
            progress=QuietProgress(), drawn_by=drawn_by,
        )  # fmt: skip

    assert run(0.5)["rankings"] == 1
    assert run(0.5)["known"] == 1
    assert run(0.7)["rankings"] == 1  # other settings are another ranking
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows[0] == known
    assert len(rows) == 3


class Undecided(ByLength):
    fingerprint = "another"

    def __init__(self) -> None:
        super().__init__(margin=99)


def test_models_and_judge_are_behind_another_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judge there says the same number in both orders: it decides nothing, and this is said."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "What is tea?"}\n')
    out = tmp_path / "ai.jsonl"
    with model_server() as writes, model_server() as other, model_server() as judges:
        other.text, judges.text = ["Tea", " is a drink"], ["1"]
        words = ["feedback", "rank", f"a={writes.address}", f"b={other.address}"]
        words += ["--judge", judges.address, "--prompts", str(tmp_path / "prompts.jsonl")]
        words += ["--rankings", str(out), "--answers", "2"]
        assert cli.main(words) == 0
        assert "1 prompts left out: the judge found all answers alike" in capsys.readouterr().out
        assert len(judges.bodies) == 2
        assert cli.main(words) == 0
        assert "--again asks them once more" in capsys.readouterr().out
        judges.text = ["no label at all"]
        assert cli.main([*words, "--json"]) == 0
        assert len(judges.bodies) == 2
        found = json.loads(capsys.readouterr().out)
        assert cli.main([*words, "--again", "--quiet"]) == 0
        assert len(judges.bodies) == 4
    assert found == {"file": str(out), **counted(undecided=1, asked_before=1)}


def test_mistakes_are_named(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "What is tea?"}\n')
    for answers, models, message in ((1, {"m": None}, "--answers 1"), (4, {}, "no model writes")):
        with pytest.raises(UserError, match=message):
            rank_answers(
                [SampledPrompt(ASK)], models, ByLength(), tmp_path / "ai.jsonl",  # type: ignore[arg-type]
                answers=answers, seed=0, progress=QuietProgress(),
            )  # fmt: skip
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    (tmp_path / "blank.jsonl").write_text('{"prompt": " "}\n')
    with pytest.raises(UserError, match=r"blank.jsonl, line 1: an empty prompt"):
        list(prompts_of(tmp_path / "blank.jsonl"))
    with pytest.raises(UserError, match="no prompts"):
        judgements.rank_feedback(["m"], judge="j", prompts=empty, rankings=tmp_path / "ai.jsonl")


def test_models_of_one_folder_name_are_two(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS, 300)
    decoder = random_decoder(ModelConfig(1, 16, 2, 32, tokenizer.vocabulary_size))
    words = [str(tmp_path / place / "m") for place in ("x", "y")]
    for word in words:
        save_model(Path(word), decoder, tokenizer, {})
    machine, settings = prepare_reading(MachineConfig()), SamplingSettings(4)
    assert list(writers_of(words, machine, settings)) == words
    assert list(writers_of(words[:1], machine, settings)) == ["m"]
    with pytest.raises(UserError, match="named 2 times"):
        writers_of([words[0], words[0]], machine, settings)
