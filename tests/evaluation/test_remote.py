"""Evaluation, judges and sampling of a model behind another server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmsmith import judgements
from lmsmith.catalogue.resolve import resolve
from lmsmith.comparison.judges import load_judge
from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig
from lmsmith.evaluation.methods.writing import Writer
from lmsmith.evaluation.model import load_evaluated_model
from lmsmith.evaluation.tasks.spec import AnswerSpec
from lmsmith.training.machine import resolve_machine
from model_server import TEXT, ModelServer, model_server

MACHINE = resolve_machine(MachineConfig(precision="fp32"))


@pytest.fixture
def behind() -> Iterator[ModelServer]:
    with model_server() as state:
        yield state


def test_answers_are_written_by_the_server(behind: ModelServer) -> None:
    model = load_evaluated_model(behind.address, MACHINE, chat=True)
    prompts = model.encode_contexts(["2 + 2 = é", "3 + 3"])
    texts, cut = Writer(model, 7).write(prompts, [0, 1], AnswerSpec(max_new_tokens=9))
    assert texts == [["".join(TEXT)]] * 2
    assert cut == [0, 0]
    asked = {each["messages"][0]["content"] for each in behind.bodies}
    assert asked == {"2 + 2 = é", "3 + 3"}
    assert all(each["max_tokens"] == 9 and each["temperature"] == 0 for each in behind.bodies)


def test_what_needs_probabilities_or_weights_is_refused(behind: ModelServer) -> None:
    model = load_evaluated_model(behind.address, MACHINE)
    with pytest.raises(UserError, match="log-probabilities"):
        _ = model.decoder
    with pytest.raises(UserError, match="weights are not here"):
        resolve(behind.address)


def test_a_judge_reads_the_label_in_both_orders(behind: ModelServer) -> None:
    judge = load_judge(behind.address, MACHINE)
    rows = [([{"role": "user", "content": "hi"}], "a", "b")]
    behind.text = ["Reply ", "1 is better"]
    (first,) = judge.compare(rows)  # whatever stands first is better: a tie
    assert (first["score_a"], first["score_b"]) == (0.5, 0.5)
    assert (first["a_shown_first"], first["a_shown_second"]) == (1.0, 0.0)
    behind.text = ["I cannot say"]
    assert judge.compare(rows)[0]["a_shown_first"] == 0.5


def test_sampling_fills_the_labelling_queue(behind: ModelServer, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "What is tea?"}\n')
    database = str(tmp_path / "feedback.db")
    words = [f"big={behind.address}"]

    def sample(temperature: float = 1.0, **given: Any) -> tuple[int, int]:
        found = judgements.sample_feedback(
            words, prompts=prompts, kind="rating", database=database, quiet=True,
            temperature=temperature, **given,
        )  # fmt: skip
        return found.rows["tasks"], found.rows["known"]

    assert sample() == (1, 0)
    assert sample() == (0, 1)
    assert sample(temperature=0.5) == (1, 0), "other settings draw other answers"
    assert sample(max_tokens=9) == (1, 0)
    assert behind.bodies[0]["messages"] == [{"role": "user", "content": "What is tea?"}]
