"""Models of quantised files: packed where that is wanted and possible, and numbers elsewhere."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lmsmith
from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.catalogue.resolve import Source
from lmsmith.generation import machine
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.presets import llama
from lmsmith.tokenizers import Tokenizer

pytest.importorskip("gguf")

TOKENIZER = Tokenizer.train(["hello there, how are you? I am well."] * 4, 300)
LLAMA = replace(llama(2, 64, 4, 2, 96, 128), vocabulary_size=300)
GPT2 = ModelConfig(2, 64, 4, 128, 300)


def exported(config: ModelConfig, kind: str, folder: Path) -> Path:
    decoder = Decoder(config)
    decoder.initialise(torch.Generator().manual_seed(0))
    read = ReadModel(decoder, TOKENIZER, Source("lmsmith", Path("tiny"), "tiny"), {})
    return export(read, folder, "gguf", kind).path


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_matrices_stay_packed(config: ModelConfig, tmp_path: Path) -> None:
    """The decoder has no numbers of them; what it computes is what the numbers give."""
    path = exported(config, "q8_0", tmp_path)
    packed, whole = read_model(path, packed=True).decoder, read_model(path).decoder
    assert not whole.packed
    matrices = {name for name, each in packed.named_parameters() if each.is_meta}
    assert matrices == set(packed.packed)
    assert all(name in matrices for name in whole.state_dict() if name.endswith("output.weight"))
    model = InferenceDecoder(packed)
    state = model.decoder.state_dict()
    assert all(torch.equal(each, state[name]) for name, each in whole.state_dict().items())
    found = []
    for each in (model, InferenceDecoder(whole)):
        cache = each.new_cache(1, 64)
        found.append(each.logits(each.read([(cache.open(), list(range(5, 35)))], cache)))
    torch.testing.assert_close(*found, rtol=0, atol=0.05 * float(found[1].std()))
    if model.kernels.__class__.__name__ == "NativeKernels":
        assert model.held_bytes < 0.4 * sum(each.nbytes for each in whole.parameters())


def test_reading_does_not_import_the_compiler(tmp_path: Path) -> None:
    """It takes 70 MB and a second, and stays."""
    path = exported(LLAMA, "q8_0", tmp_path)
    code = """
import sys
from lmsmith.catalogue.reading import read_model
from lmsmith.generation.inference import InferenceDecoder
InferenceDecoder(read_model(sys.argv[1], packed=True).decoder)
print(sorted({"torch._dynamo", "sympy"} & sys.modules.keys()))
"""
    run = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=300
    )
    assert run.stdout == "[]\n", run.stderr


def test_a_file_of_plain_numbers_is_read_as_numbers(tmp_path: Path) -> None:
    assert not read_model(exported(LLAMA, "f16", tmp_path), packed=True).decoder.packed


def test_without_kernels_nothing_stays_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "load_library", object)
    assert machine.stays_packed("file")
    assert not machine.stays_packed("model")
    assert not machine.stays_packed("int8")
    monkeypatch.setattr(machine, "load_library", lambda: None)
    assert not machine.stays_packed("file")


@pytest.mark.parametrize("weights", ["file", "model", "int8"])
def test_load_takes_each_kind(weights: str, tmp_path: Path) -> None:
    path = exported(LLAMA, "q8_0", tmp_path)
    model = lmsmith.load(path, weights=weights, draft=path)  # type: ignore[arg-type]
    assert len(model.generate("hello", temperature=0, max_new_tokens=5)) > 0
    assert bool(model.decoder.packed) == machine.stays_packed(weights)  # type: ignore[arg-type]
