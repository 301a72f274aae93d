"""What is drawn is whole characters of tokens, by the distribution renormalised over them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt1_files import gpt1_tokenizer
from lmsmith.catalogue.reading import load_any_tokenizer
from lmsmith.core.errors import UserError
from lmsmith.generation.beam import BeamSettings, beam_search
from lmsmith.generation.engine import Engine, answer, generate, stream
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.kernels import TorchKernels
from lmsmith.generation.native.operations import best_kernels
from lmsmith.generation.requests import Request
from lmsmith.generation.sampling import choose_tokens, filtered, row_uniforms
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.speculative import PromptLookup
from lmsmith.generation.vocabulary import Vocabulary, vocabulary_of
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.gguf import (
    gguf_metadata,
    tokenizer_from_gguf,
)
from lmsmith.tokenizers.gpt import load_gpt2
from lmsmith.tokenizers.hugging_face import load_hugging_face, to_hugging_face
from tiny_models import random_decoder

TEXT = "hello there, how are you? 你好，你今天好吗？🙂🙃 naïve café ¼ ½"
OWN = Tokenizer.train([TEXT] * 4, 300)


def sentence_piece() -> Tokenizer:
    """A SentencePiece vocabulary with byte fallback and few characters, read as GGUF."""
    words = ["▁", "a", "b", "▁a", "你", "▁hello", "é"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(words)]
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.scores": [float(-n) for n in range(len(tokens))],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }
    )


def byte_level_gguf() -> Tokenizer:
    metadata = gguf_metadata(OWN)
    del metadata["tokenizer.huggingface.json"]
    return tokenizer_from_gguf(metadata)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


Kind = Callable[[], Tokenizer]


@pytest.fixture(
    scope="module",
    params=["own", "hugging_face", "byte_level_gguf", "sentence_piece", "gpt1", "gpt2", "smollm2"],
)
def tokenizer(request: pytest.FixtureRequest, folder: Path) -> Tokenizer:
    if request.param == "own":
        return OWN
    if request.param == "hugging_face":
        to_hugging_face(OWN, folder)
        return load_hugging_face(folder)
    if request.param == "gpt1":
        pytest.importorskip("ftfy")
        return gpt1_tokenizer([TEXT] * 5, 90)
    if request.param == "gpt2":
        return load_gpt2(request.getfixturevalue("public_data")("gpt2_vocab"))
    if request.param == "smollm2":
        pytest.importorskip("gguf")
        return load_any_tokenizer(request.getfixturevalue("smollm_gguf"))
    kinds: dict[str, Kind] = {
        "byte_level_gguf": byte_level_gguf,
        "sentence_piece": sentence_piece,
    }
    return kinds[request.param]()


def until_boundary(vocabulary: Vocabulary, tokens: list[int], state: int = 0) -> list[int]:
    """Tokens up to the last character's end."""
    whole = 0
    for count, token in enumerate(tokens, start=1):
        state = vocabulary.next(state, token)
        whole = count if state == 0 else whole
    return tokens[:whole]


@functools.cache
def random_rows(size: int) -> Tensor:
    return 2 * torch.randn(64, size, generator=torch.Generator().manual_seed(size))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    st.integers(0, 2**32),
    st.sampled_from([{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.05}, {"temperature": 3.0}]),
    st.booleans(),
)
def test_what_is_drawn_is_valid_utf8_up_to_its_last_boundary(
    tokenizer: Tokenizer, seed: int, drawn_by: dict[str, float], native: bool
) -> None:
    vocabulary = vocabulary_of(tokenizer, tokenizer.vocabulary_size + 5)
    kernels = best_kernels() if native else TorchKernels()
    chosen = SamplingSettings(**drawn_by)  # type: ignore[arg-type]
    uniforms, rows = row_uniforms(seed, [0], 40), random_rows(vocabulary.size)
    tokens: list[int] = []
    state = 0
    for step in range(40):
        logits_bv = rows[(seed + step) % 64][None]
        mask = vocabulary.mask([state], chosen.temperature)
        (token,) = kernels.draw(logits_bv, chosen, uniforms[:, step], mask).tolist()
        tokens.append(token)
        state = vocabulary.next(state, token)
    whole = until_boundary(vocabulary, tokens)
    names = tokenizer.control_tokens  # which stand between whole characters alone
    b"".join(
        names[each].encode() if each in names else tokenizer.token_bytes(each) for each in whole
    ).decode()
    assert all(token < tokenizer.vocabulary_size for token in tokens)


def model_of(tokenizer: Tokenizer, more: int = 0, seed: int = 3) -> Decoder:
    size = tokenizer.vocabulary_size + more
    return random_decoder(ModelConfig(1, 16, 2, 48, size), seed)


def favouring_padding(decoder: Decoder, known: int) -> Decoder:
    """Makes ids without a token the likeliest everywhere."""
    with torch.no_grad():
        decoder.final_norm.bias.fill_(1.0)
        decoder.token_embedding.weight[known:] = 3.0
    return decoder


@pytest.mark.parametrize("seed", range(4))
def test_replies_of_the_engine_are_whole_characters(seed: int) -> None:
    prompts = [OWN.encode("a"), OWN.encode("hello 你")]
    chosen = SamplingSettings(30, temperature=2.0, seed=seed, stop_tokens=(OWN.end_of_turn,))
    vocabulary = vocabulary_of(OWN, OWN.vocabulary_size)
    broken = 0
    for tokenizer in (OWN, None):
        for reply in generate(model_of(OWN), prompts, chosen, tokenizer=tokenizer):
            text = OWN.decode(until_boundary(vocabulary, reply))
            if tokenizer is not None:
                assert "\ufffd" not in text
                ended = reply[-1] == OWN.end_of_turn
                assert not ended or "\ufffd" not in OWN.decode(reply)
            broken += "\ufffd" in text
    assert broken, "without a tokenizer such a model breaks characters"


def test_a_prompt_that_ends_within_a_character_is_continued() -> None:
    plain = Tokenizer.train(["abc"] * 4, 261)
    prompt = plain.encode("你")[:2]
    engine = Engine(model_of(plain), tokenizer=plain)
    asked = Request(prompt, SamplingSettings(1, samples=20, temperature=3.0))
    replies = answer(engine, [asked])[0]
    assert all(0x80 <= plain.token_bytes(reply.tokens[0])[0] <= 0xBF for reply in replies)
    assert all(len(reply.text) == 1 and reply.text != "\ufffd" for reply in replies)


def test_speculation_draws_whole_characters_too() -> None:
    chosen = SamplingSettings(40, temperature=2.0, seed=5)
    guesser, prompt = PromptLookup(), OWN.encode("a")
    tokens = list(stream(model_of(OWN), prompt, chosen, tokenizer=OWN, drafter=guesser))
    vocabulary = vocabulary_of(OWN, OWN.vocabulary_size)
    assert "\ufffd" not in OWN.decode(until_boundary(vocabulary, tokens))


def test_probabilities_are_renormalised_over_what_may_come() -> None:
    vocabulary = vocabulary_of(OWN, OWN.vocabulary_size)
    logits_bv = random_rows(vocabulary.size)[:1]
    begun = next(n for n in range(vocabulary.size) if OWN.token_bytes(n) == b"\xe4")
    state = vocabulary.next(0, begun)
    chosen = SamplingSettings(temperature=0.7)
    mask = vocabulary.mask([state], 0.7)
    exact = filtered(logits_bv, chosen, mask)[0].softmax(-1)
    assert float(exact.sum()) == pytest.approx(1)
    may = [n for n in range(vocabulary.size) if 0x80 <= (OWN.token_bytes(n) or b"a")[0] <= 0xBF]
    assert set(exact.nonzero()[:, 0].tolist()) <= set(may)
    plain = (logits_bv[0, may] / 0.7).softmax(-1)
    inside = exact[may] > 0
    torch.testing.assert_close(exact[may][inside], plain[inside] / plain[inside].sum())
    uniforms = row_uniforms(0, [0], 3000)[0]
    drawn = choose_tokens(
        logits_bv.expand(3000, -1), chosen, uniforms, vocabulary.mask([state] * 3000, 0.7)
    )
    counts = torch.bincount(drawn, minlength=vocabulary.size) / 3000
    assert float((counts - exact).abs().max()) < 0.04


def test_greedy_text_is_the_models_own_whatever_its_bytes_are() -> None:
    model = model_of(OWN)
    tail = next(n for n in range(OWN.vocabulary_size) if OWN.token_bytes(n) == b"\x80")
    with torch.no_grad():
        model.final_norm.bias.fill_(1.0)
        model.token_embedding.weight[tail] = 5.0
    chosen = SamplingSettings(5, temperature=0)
    prompt = OWN.encode("a")
    assert generate(model, [prompt], chosen, tokenizer=OWN) == [[tail] * 5]
    drawn = generate(model, [prompt], SamplingSettings(5), tokenizer=OWN)[0]
    assert tail not in drawn[:1]


def test_a_bias_that_forbids_all_that_may_follow_lets_the_others_come() -> None:
    begun = next(n for n in range(OWN.vocabulary_size) if OWN.token_bytes(n) == b"\xe4")
    bias = {n: -math.inf for n in range(OWN.vocabulary_size) if n != begun}
    chosen = SamplingSettings(4, logit_bias=bias)
    assert generate(model_of(OWN), [OWN.encode("a")], chosen, tokenizer=OWN) == [[begun] * 4]


PADDING = 37


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_without_a_token_are_never_written_nor_among_the_likeliest(temperature: float) -> None:
    known = OWN.vocabulary_size
    model = favouring_padding(model_of(OWN, PADDING), known)
    chosen = SamplingSettings(
        12, temperature=temperature, log_probs=True, top_log_probs=8, prompt_log_probs=True
    )
    engine = Engine(model, tokenizer=OWN)
    reply = answer(engine, [Request(OWN.encode("hello"), chosen)])[0][0]
    assert all(token < known for token in reply.tokens)
    for found in (*reply.log_probs, *reply.prompt_log_probs):
        assert len(found.top) == 8
        assert all(token < known for token, _ in found.top)
    beams = beam_search(model, OWN.encode("hello"), BeamSettings(max_new_tokens=5), tokenizer=OWN)
    assert all(token < known for beam in beams for token in beam.tokens)


def test_log_probabilities_are_the_models_own_over_all_of_its_rows() -> None:
    model = model_of(OWN, PADDING)
    prompt = OWN.encode("hello 你")
    chosen = SamplingSettings(6, temperature=0.5, seed=2, log_probs=True)
    reply = answer(Engine(model, tokenizer=OWN), [Request(prompt, chosen)])[0][0]
    tokens = torch.tensor([[*prompt, *reply.tokens]])
    with torch.no_grad():
        exact_tv = model.logits(model(tokens))[0].log_softmax(-1)
    for place, found in enumerate(reply.log_probs):
        expected = float(exact_tv[len(prompt) - 1 + place, found.token])
        assert found.log_prob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("token", [OWN.vocabulary_size, OWN.vocabulary_size + PADDING - 1])
def test_a_bias_on_an_id_without_a_token_is_refused(token: int) -> None:
    engine = Engine(model_of(OWN, PADDING), tokenizer=OWN)
    with pytest.raises(UserError, match=r"logit_bias.*no such token"):
        engine.submit(Request([5], SamplingSettings(logit_bias={token: 1.0})))
    with pytest.raises(UserError, match=str(token)):
        engine.submit(Request([5, token], SamplingSettings()))
    most = OWN.vocabulary_size + 1
    with pytest.raises(UserError, match="top_log_probs"):
        engine.submit(Request([5], SamplingSettings(top_log_probs=most)))


def test_a_hole_in_the_ids_is_no_token() -> None:
    description = {**OWN.description, "model": {**OWN.description["model"]}}
    vocabulary = dict(description["model"]["vocab"])
    last = max(vocabulary, key=lambda name: vocabulary[name])
    vocabulary[last] += 3
    description["model"]["vocab"] = vocabulary
    holed = Tokenizer(description, dataclasses.replace(OWN.format))
    found = vocabulary_of(holed, holed.vocabulary_size)
    first = OWN.vocabulary_size - 1
    assert found.unknown([first, first + 1, first + 2, first + 3]) == [first, first + 1, first + 2]
    assert found.tokens == OWN.vocabulary_size


def test_the_table_is_made_once_for_a_tokenizer_and_a_size() -> None:
    assert vocabulary_of(OWN, 400) is vocabulary_of(OWN, 400)
    assert vocabulary_of(OWN, 400) is not vocabulary_of(OWN, 401)
    model = InferenceDecoder(model_of(OWN))
    assert Engine(model, tokenizer=OWN).scheduler.vocabulary is vocabulary_of(
        OWN, model.config.vocabulary_size
    )


def test_whole_characters_alone_need_no_mask() -> None:
    pytest.importorskip("ftfy")
    gpt1 = gpt1_tokenizer([TEXT] * 5, 90)
    found = vocabulary_of(gpt1, gpt1.vocabulary_size)
    assert found.mask([0], 1.0) is None
    assert vocabulary_of(gpt1, gpt1.vocabulary_size + 1).mask([0], 1.0) is not None
