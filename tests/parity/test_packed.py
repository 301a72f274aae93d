"""Quantised files at their own bits, beside llama.cpp, which multiplies them at theirs too.

Its products round activations to 8 bits where ours keep 16: log-probabilities differ by up to 0.2,
and greedy texts may part where its two likeliest tokens are that near.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.catalogue.resolve import Source
from lmsmith.generation.engine import Engine, Request, SamplingSettings, answer
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.native.library import load_library
from lmsmith.models.interop.gguf_file import open_gguf
from lmsmith.models.interop.quantised import MULTIPLIED, PackedTensor
from lmsmith.models.presets import llama
from lmsmith.tokenizers import Tokenizer
from packed_tensors import random_packed, write_packed

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "interop"))

import oracles

pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")
if load_library() is None:
    pytest.skip("the C++ kernels are not here", allow_module_level=True)

NEAR = 0.2
PROMPTS = (
    "The capital of France is",
    "Once upon a time, there was a lighthouse keeper who",
    "def fibonacci(n):\n",
    "Water boils at a temperature of",
)


@pytest.mark.parametrize("names", [*((name,) for name in MULTIPLIED), ("Q4_K", "Q6_K", "Q5_0")])
def test_log_probabilities_of_every_type(names: tuple[str, ...], tmp_path: Path) -> None:
    """Tensors of one type, or of several in turn; the embedding too."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["hello there, how are you? I am well, thank you."] * 4, 300)
    config = replace(llama(2, 256, 4, 2, 512, 64), vocabulary_size=320)
    plain = ReadModel(
        oracles.random_decoder(config), tokenizer, Source("lmsmith", Path("tiny"), "tiny"), {}
    )
    whole = export(plain, tmp_path, "gguf", "f32").path
    path, count = tmp_path / "packed.gguf", iter(range(1000))

    def packed(name: str, tensor: PackedTensor) -> PackedTensor:
        if len(tensor.shape) == 1:
            return tensor
        number = next(count)
        return random_packed(names[number % len(names)], *tensor.shape, seed=number)

    write_packed(path, open_gguf(whole), packed)
    read = read_model(path, packed=True)
    model = InferenceDecoder(read.decoder)
    assert set(model.packings) == set(names) - {"Q5_0"}
    prompt = oracles.random_tokens(config, 1, 24)[0].tolist()
    usable = range(tokenizer.vocabulary_size)
    usable = [n for n in usable if tokenizer.token_bytes(n) and tokenizer.token_bytes(n).isascii()]
    banned = sorted(set(range(config.vocabulary_size)) - set(usable))
    greedy, likeliest = oracles.llama_cpp_greedy(path, prompt, 12, banned)
    cache = model.new_cache(1, 64)
    hidden = model.read([(cache.open(), prompt + greedy)], cache)
    ours = model.logits(hidden)[23:-1].log_softmax(-1)
    exact = oracles.logits(read_model(path).decoder, torch.tensor([prompt + greedy]))[0, 23:-1]
    assert float((ours - exact.log_softmax(-1)).abs().mean()) < NEAR / 5
    for place, tokens in enumerate(likeliest):
        for token, log_prob in tokens.items():
            assert abs(float(ours[place, token]) - log_prob) < NEAR, place


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_of_a_real_file(smollm_gguf: Path, prompt: str) -> None:
    """Token for token llama.cpp's, up to the first place where its choice was a near-tie."""
    read = read_model(smollm_gguf, packed=True)
    tokens = read.tokenizer.encode(prompt)
    model = InferenceDecoder(read.decoder)
    assert "Q4_1" in model.packings
    engine = Engine(model, tokenizer=read.tokenizer, rows=1)
    settings = SamplingSettings(40, temperature=0)
    ours = answer(engine, [Request(tokens, settings, "the prompt")])[0][0].tokens
    theirs, likeliest = oracles.llama_cpp_greedy(smollm_gguf, tokens, 40, [], context=128)
    for place, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other:
            first, second = sorted(likeliest[place].values(), reverse=True)[:2]
            assert first - second < NEAR, place
            assert likeliest[place][mine] > first - NEAR, place
            break
