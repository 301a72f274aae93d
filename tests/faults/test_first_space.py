"""What a text goes on with keeps its first space, by tokenizers that begin texts with one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import decoders

from gpt1_files import gpt1_tokenizer
from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.evaluation.methods.code import make_program
from lmsmith.evaluation.tasks.prompts import Question
from lmsmith.generation.engine import Engine, Request, SamplingSettings, answer
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.tokenizers import StreamDecoder, Tokenizer
from lmsmith.tokenizers.gguf import tokenizer_from_gguf


@pytest.fixture(scope="module")
def spm(zoo: Path) -> ReadModel:
    return read_model(zoo / "spm")


def continued(
    model: ReadModel, prompt: str, written: list[str], *, is_message: bool = False
) -> str:
    """The text of a reply of these tokens."""
    tokenizer = model.tokenizer
    ids = tokenizer.description["model"]["vocab"]
    tokens = tuple(ids[piece] for piece in written)
    prompt_tokens = [*tokenizer.text_start, *tokenizer.encode(prompt)]
    request = Request(
        prompt_tokens,
        SamplingSettings(max_new_tokens=len(tokens)),
        forced=(tokens,),
        is_message=is_message,
    )
    engine = Engine(InferenceDecoder(model.decoder), tokenizer=tokenizer)
    ((reply,),) = answer(engine, [request])
    stream = StreamDecoder(tokenizer, () if is_message else prompt_tokens)
    assert "".join([*map(stream.push, tokens), stream.flush()]) == reply.text
    assert tokenizer.decode(tokens, after=() if is_message else prompt_tokens) == reply.text
    return reply.text


def test_a_continuation_keeps_its_first_space(spm: ReadModel) -> None:
    assert continued(spm, "the capital of france is", ["▁Paris", "▁there"]) == " Paris there"
    assert continued(spm, "", ["▁Paris", "▁there"]) == "Paris there"
    assert continued(spm, "hi", ["▁Paris"], is_message=True) == "Paris"


def test_a_right_body_is_a_right_program(spm: ReadModel) -> None:
    prompt = "def add(a, b):\n"
    body = continued(spm, prompt, ["▁▁", "▁", "▁return", "▁a", "▁", "+", "▁b"])
    assert body == "    return a + b"
    question = Question(
        id="1", contexts=(prompt,), choices=("",), gold=0, answers=("",), plain=prompt
    )
    namespace: dict[str, object] = {}
    exec(make_program(question, body).source, namespace)


def llama_vocabulary() -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = ["▁", "a", "b", "▁a", "▁b"]
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [*tokens, *pieces],
            "tokenizer.ggml.scores": [0.0] * len(tokens) + [-1.0, -2.0, -3.0, -4.0, -5.0],
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces)],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }
    )


def whole(tokenizer: Tokenizer, text: str) -> None:
    """Cut anywhere between tokens, the two parts' texts are the text."""
    ids = tokenizer.encode(text)
    for cut in range(len(ids) + 1):
        before, after = ids[:cut], ids[cut:]
        stream = StreamDecoder(tokenizer, before)
        streamed = "".join([*map(stream.push, after), stream.flush()])
        assert streamed == tokenizer.decode(after, after=before)
        assert tokenizer.decode(before) + streamed == tokenizer.decode(ids)


@pytest.mark.parametrize("text", ["a b", "  a", "a  b ", " b", "b a a"])
def test_llama_vocabularies_of_gguf_files(text: str) -> None:
    tokenizer = llama_vocabulary()
    assert tokenizer.text_start == (1,)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    whole(tokenizer, text)


def test_words_that_end_with_a_space() -> None:
    pytest.importorskip("ftfy")
    whole(gpt1_tokenizer(["hello there, how are you?"] * 4, 50), "hello there you")


def test_the_oracle_agrees(spm: ReadModel) -> None:
    pieces = ["▁the", "▁dog", "▁▁", "▁is"]
    oracle = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    for cut in range(1, len(pieces)):
        before, after = oracle.decode(pieces[:cut]), oracle.decode(pieces)
        vocabulary = spm.tokenizer.description["model"]["vocab"]
        ids = [vocabulary[piece] for piece in pieces]
        assert before + spm.tokenizer.decode(ids[cut:], after=ids[:cut]) == after
