"""Free answers are what the engine writes for the same prompts, whatever else is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lmsmith.evaluation.methods import writing
from lmsmith.evaluation.methods.likelihood import common_prefix
from lmsmith.evaluation.methods.writing import STREAMS_AN_ITEM
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.run import make_method
from lmsmith.evaluation.tasks.data import Item
from lmsmith.evaluation.tasks.prompts import with_shots
from lmsmith.evaluation.tasks.spec import AnswerSpec, DataSpec, PromptSpec, TaskSpec
from lmsmith.generation.beam import BeamSettings, beam_search
from lmsmith.generation.engine import Engine, Request, SamplingSettings, answer
from lmsmith.generation.inference import InferenceDecoder

PROMPT = PromptSpec(context="Question: {{ q }} Answer:", target="{{ a }}")
ITEMS = [
    Item(str(n), {"q": q, "a": "blue"}, "row")
    for n, q in enumerate(["what is the sky?", "where is the dog and the cat?", "sea?"])
]


def rows_of(subject: EvaluatedModel, spec: AnswerSpec, numbers: list[int]) -> list[Any]:
    task = TaskSpec("made", "free_form", DataSpec(file="a.jsonl"), prompt=PROMPT, answer=spec)
    method = make_method(subject, task, [with_shots(task, item, []) for item in ITEMS], 5)
    return list(method.answer(numbers))


def written(
    subject: EvaluatedModel, text: str, settings: SamplingSettings, stream: int = 0
) -> list[str]:
    engine = Engine(subject.model, tokenizer=subject.tokenizer)
    tokens = [subject.tokenizer.start_of_text, *subject.tokenizer.encode(text)]
    return [reply.text for reply in answer(engine, [Request(tokens, settings, "", stream)])[0]]


def test_samples_do_not_depend_on_the_batch(tiny: EvaluatedModel) -> None:
    spec = AnswerSpec(max_new_tokens=8, search="sample", samples=3, stop=())
    together = rows_of(tiny, spec, [0, 1, 2])
    assert rows_of(tiny, spec, [1]) == together[1:2]
    settings = SamplingSettings(8, 0.7, stop_tokens=tiny.tokenizer.stop_tokens, seed=5, samples=3)
    prompt = "Question: where is the dog and the cat? Answer:"
    assert together[1].texts == written(tiny, prompt, settings, STREAMS_AN_ITEM)


@pytest.mark.parametrize("reason", ["", "Think."])
def test_a_block_that_all_prompts_begin_with_is_read_once(
    tiny: EvaluatedModel, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Texts are the same as with nothing held; tokens read are fewer by the block's."""
    block = PROMPT.context + " blue\n" + "The dog ran to the river and the cat sat. " * 3
    prompt = replace(PROMPT, context=block.replace("{{ q }}", "the sea?") + PROMPT.context)
    spec = AnswerSpec(
        max_new_tokens=6, stop=(), reason=reason, extraction="So it is" if reason else ""
    )
    task = TaskSpec("made", "free_form", DataSpec(file="a.jsonl"), prompt=prompt, answer=spec)
    questions = [with_shots(task, item, []) for item in ITEMS]
    read: list[int] = []
    inner = InferenceDecoder.read

    def counted(model: InferenceDecoder, spans: Any, *more: Any) -> Any:
        read.append(sum(len(tokens) for _, tokens in spans))
        return inner(model, spans, *more)

    monkeypatch.setattr(InferenceDecoder, "read", counted)

    def answered() -> tuple[list[Any], int]:
        read.clear()
        method = make_method(tiny, task, questions)
        # One by one and together: the block is still there after the first.
        rows = [*method.answer([1]), *method.answer([0, 1, 2])]
        return rows, sum(read)

    rows, tokens = answered()
    monkeypatch.setattr(writing, "common_prefix", lambda prompts: ())
    alone, all_tokens = answered()
    assert rows == alone
    held = len(common_prefix([tiny.encode_contexts([q.contexts[0]])[0] for q in questions]))
    assert held > 32
    prompts_read = 4 * (2 if reason else 1)
    assert all_tokens - tokens == (prompts_read - 1) * held


def test_two_passes_reason_first_and_then_answer(tiny: EvaluatedModel) -> None:
    spec = AnswerSpec(
        max_new_tokens=4, stop=(), reason="Think.", extraction="So it is", reason_tokens=6
    )
    row = rows_of(tiny, spec, [2])[0]
    stops = tiny.tokenizer.stop_tokens
    first = "Question: sea? Answer: Think."
    (reason,) = written(tiny, first, SamplingSettings(6, 0.0, stop_tokens=stops))
    second = f"{first}{reason}\nSo it is"
    (text,) = written(tiny, second, SamplingSettings(4, 0.0, stop_tokens=stops))
    assert (row.reasoning, row.texts) == ([reason], [text])
    assert row.answer == text.strip()


def test_beams_are_gpt3s(tiny: EvaluatedModel) -> None:
    row = rows_of(tiny, AnswerSpec(max_new_tokens=6, stop=(), search="beam"), [0])[0]
    tokenizer = tiny.tokenizer
    prompt = [tokenizer.start_of_text, *tokenizer.encode("Question: what is the sky? Answer:")]
    settings = BeamSettings(4, 0.6, 6, tokenizer.stop_tokens)
    best = beam_search(tiny.model, prompt, settings)[0]
    assert row.texts == [tokenizer.decode(best.tokens)]


def test_an_answer_ends_at_a_stop_text(tiny: EvaluatedModel) -> None:
    spec = AnswerSpec(max_new_tokens=12, stop=())
    whole = rows_of(tiny, spec, [0])[0].texts[0]
    stop = whole[3:5]
    assert stop
    for search in ("greedy", "beam"):
        spec = AnswerSpec(max_new_tokens=12, stop=(stop,), search=search)
        assert stop not in rows_of(tiny, spec, [0])[0].texts[0]


@pytest.mark.parametrize("gold", ["blue", None])
def test_a_row_says_what_was_read_as_the_answer_and_whether_it_is_right(
    tiny: EvaluatedModel, gold: str | None
) -> None:
    spec = AnswerSpec(max_new_tokens=6, stop=(), normalise="text")
    said = rows_of(tiny, spec, [0])[0].answer
    items = [Item("0", {"q": "what is the sky?", "a": gold or said}, "row")]
    task = TaskSpec("made", "free_form", DataSpec(file="a.jsonl"), prompt=PROMPT, answer=spec)
    row = next(make_method(tiny, task, [with_shots(task, items[0], [])]).answer([0]))
    assert row.answer == said
    assert row.metrics["exact_match"] == float(gold is None)
