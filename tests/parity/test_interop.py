"""Files of ours in transformers and llama.cpp, and theirs in ours: the same logits.

Everything is random and fresh. Tolerances: 1e-4 in logits for transformers in float32; for
llama.cpp 2e-2 in log-probabilities (its GELU is a float16 table), and the same greedy tokens.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.catalogue.resolve import Source
from lmsmith.models.config import ModelConfig
from lmsmith.models.interop.folders import read_transformers_folder, write_transformers_model
from lmsmith.models.interop.gguf_file import open_gguf
from lmsmith.models.interop.gguf_models import from_gguf
from lmsmith.tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "interop"))

import oracles

pytest.importorskip("transformers")
pytest.importorskip("gguf")

TOKENIZER = Tokenizer.train(["hello there, how are you? I am well, thank you. 你好 🙂"] * 4, 300)
ALL = oracles.SHAPES | oracles.ONLY_TRANSFORMERS
TRANSFORMERS_READS = ["llama", "llama-untied", "llama-one-kv"]
"""Its own reader of GGUF knows neither scalings nor biases nor heads of another width, and of
gpt2 only a context of 1,024."""


def made(config: ModelConfig) -> ReadModel:
    return ReadModel(
        oracles.random_decoder(config), TOKENIZER, Source("lmsmith", Path("tiny"), "tiny"), {}
    )


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What transformers warned of."""
    from transformers.utils import logging as theirs

    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                found.append(record.getMessage())

    handler = Keep()
    theirs.add_handler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    theirs.remove_handler(handler)
    found += [str(each.message) for each in caught]


@pytest.mark.parametrize("name", ALL)
def test_transformers_reads_our_folder(name: str, tmp_path: Path, warned: list[str]) -> None:
    model, tokens = made(ALL[name]), oracles.random_tokens(ALL[name])
    export(model, tmp_path / "hf", "hf")
    theirs = oracles.transformers_logits(tmp_path / "hf", tokens)
    assert float((oracles.logits(model.decoder, tokens) - theirs).abs().max()) < 1e-4
    assert warned == []


@pytest.mark.parametrize("name", ALL)
def test_we_read_a_folder_of_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = ALL[name]
    write_transformers_model(tmp_path, config, oracles.random_decoder(config).state_dict())
    settings = AutoConfig.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    tokens = oracles.random_tokens(config)
    with torch.no_grad():
        theirs = model(tokens).logits
    from lmsmith.catalogue.reading import make_decoder

    decoder = make_decoder(*read_transformers_folder(tmp_path / "theirs"))
    assert float((oracles.logits(decoder, tokens) - theirs).abs().max()) < 1e-4


@pytest.mark.parametrize("name", TRANSFORMERS_READS)
@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_our_gguf(name: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model, tokens = made(ALL[name]), oracles.random_tokens(ALL[name])
    export(model, tmp_path, "gguf", "f32")
    theirs = oracles.transformers_logits(tmp_path, tokens, gguf_file="tiny-f32.gguf")
    assert float((oracles.logits(model.decoder, tokens) - theirs).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", oracles.SHAPES)
def test_we_read_our_gguf(name: str, kind: str, tmp_path: Path) -> None:
    model = made(oracles.SHAPES[name])
    path = export(model, tmp_path, "gguf", kind).path
    config, state = from_gguf(open_gguf(path))
    spelt = oracles.spelt_out(model.decoder.config)
    assert oracles.spelt_out(config) == spelt
    step = {"f32": 0.0, "f16": 2**-10, "bf16": 2**-7, "q8_0": 2**-7}[kind]
    for parameter, weight in model.decoder.state_dict().items():
        off = float((state[parameter] - weight).abs().max())
        assert off <= step * float(weight.abs().max()), parameter


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
@pytest.mark.parametrize("name", oracles.SHAPES)
def test_llama_cpp_runs_our_gguf(name: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    if kind == "q8_0" and name not in ("gpt2", "llama"):
        pytest.skip("one of each architecture is enough")
    config = oracles.SHAPES[name]
    path = export(made(config), tmp_path, "gguf", kind).path
    decoder = read_model(path).decoder  # rounded as the file is
    prompt = oracles.random_tokens(config, 1, 24)[0].tolist()
    plain = range(TOKENIZER.vocabulary_size)
    plain = [n for n in plain if TOKENIZER.token_bytes(n) and TOKENIZER.token_bytes(n).isascii()]
    banned = sorted(set(range(config.vocabulary_size)) - set(plain))
    greedy, likeliest = oracles.llama_cpp_greedy(path, prompt, 12, banned)
    assert len(greedy) == 12
    ours = oracles.logits(decoder, torch.tensor([prompt + greedy]))[0, 23:-1].log_softmax(-1)
    allowed = 2e-2 if kind == "f32" else 0.2  # its q8_0 products round activations to 8 bits
    for place, tokens in enumerate(likeliest):
        for token, log_prob in tokens.items():
            assert abs(float(ours[place, token]) - log_prob) < allowed, place
        assert float(ours[place, plain].max() - ours[place, greedy[place]]) < allowed


def test_a_whole_export_chats_alike(tmp_path: Path) -> None:
    """Tokenizer, template and end tokens too: transformers writes the same greedy reply."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lmsmith.core.recipe import MachineConfig
    from lmsmith.library import load
    from lmsmith.models.folder import save_model

    model = made(ModelConfig(2, 64, 4, 64, TOKENIZER.vocabulary_size))
    save_model(tmp_path / "ours", model.decoder, TOKENIZER, {})
    export(read_model(tmp_path / "ours"), tmp_path / "hf", "hf")
    messages = [{"role": "user", "content": "hello there"}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    out = theirs.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
    reply = tokenizer.decode(out, skip_special_tokens=True)
    fp32 = MachineConfig(precision="fp32")
    for path in ("ours", "hf"):
        ours = load(tmp_path / path, machine=fp32)
        said = ours.chat(messages, temperature=0, max_new_tokens=16)
        assert said.rstrip("\ufffd") == reply.rstrip("\ufffd")  # half a character may end it
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert set(generation["eos_token_id"]) == set(TOKENIZER.stop_tokens)
