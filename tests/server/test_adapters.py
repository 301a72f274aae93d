"""Adapters on one base: one scheduler, replies of the merged models, and each by its name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from worlds import HTTP, MACHINE, RANDOM, TOKENIZER, Running, running, said_by

import lmsmith
from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.catalogue.resolve import Source
from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.native.library import load_library
from lmsmith.models.adapters import AdapterConfig, adapt, adapted_layers
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.models.interop.peft import write_peft_folder
from lmsmith.models.presets import llama
from lmsmith.server.models import Loader, read_models
from lmsmith.server.serve import describe
from tiny_models import random_decoder


def adapted(base: Decoder, seed: int, config: AdapterConfig) -> Decoder:
    """The base with adapters that change what it writes."""
    decoder = random_decoder(base.config)
    decoder.load_state_dict(base.state_dict())
    adapt(decoder, config, torch.float32, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in adapted_layers(decoder):
            layer.up.normal_(0, 0.3, generator=generator)
    return decoder


def put_adapter(folder: Path, decoder: Decoder, config: AdapterConfig, base: Path) -> Path:
    save_model(folder, decoder, TOKENIZER, {}, config, base)
    return folder


A, B = AdapterConfig(4, 8.0), AdapterConfig(3, 3.0, ("attention",))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters on it, and c, which stands on a; another base with one adapter."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "base", RANDOM, TOKENIZER, {})
    put_adapter(folder / "a", adapted(RANDOM, 1, A), A, folder / "base")
    put_adapter(folder / "b", adapted(RANDOM, 2, B), B, folder / "base")
    on_a = read_model(folder / "a").decoder
    put_adapter(folder / "c", adapted(on_a, 3, A), A, folder / "a")
    other = random_decoder(replace(RANDOM.config, width=48), seed=9)
    save_model(folder / "other", other, TOKENIZER, {})
    put_adapter(folder / "d", adapted(other, 4, A), A, folder / "other")
    return folder


def words(folder: Path, *names: str) -> list[str]:
    return [f"{name}={folder / name}" for name in names]


@pytest.fixture(scope="module")
def served(folders: Path) -> Iterator[Running]:
    with running(words=words(folders, "a", "base", "b", "c", "d")) as server:
        yield server


def ask(server: Running, model: str, said: str) -> Any:
    body = {"model": model, "messages": said_by(said), "temperature": 0, "max_tokens": 24}
    return HTTP.post(f"{server.address}/v1/chat/completions", json=body).json()


def test_replies_are_those_of_each_model_served_alone(served: Running, folders: Path) -> None:
    said = "tea and rain, said the cat. " * 3
    found = {name: ask(served, name, said) for name in ("base", "a", "b", "c", "d", "a")}
    for name, reply in found.items():
        with running(words=[f"{name}={folders / name}"]) as alone:
            assert ask(alone, name, said)["choices"] == reply["choices"]
            assert alone.engine.models[name].adapter == ""  # alone it is merged
    texts = {each["choices"][0]["message"]["content"] for each in found.values()}
    assert len(texts) == 5
    assert found["a"]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    for name in ("base", "b", "c"):
        assert found[name]["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_one_base_is_held_once(served: Running) -> None:
    models = served.engine.models
    assert list(models) == ["a", "base", "b", "c", "d"]
    shared = [models[name] for name in ("base", "a", "b", "c")]
    assert len({id(each.scheduler) for each in shared}) == 1
    assert models["d"].scheduler is not models["a"].scheduler
    base, a, b, c = shared
    assert (
        base.weight_bytes
        == sum(each.nbytes for each in RANDOM.parameters()) + base.scheduler.model.weight_bytes
    )
    assert 0 < b.weight_bytes < a.weight_bytes < c.weight_bytes < base.weight_bytes
    assert (a.shares, base.shares) == ("base", "")
    assert re.fullmatch(r"a: context 512, adapters of .* on base's weights", describe(a))
    with openai.OpenAI(base_url=f"{served.address}/v1", api_key="none") as client:
        assert [each.id for each in client.models.list()] == list(models)
    assert "lmsmith_cache_used_bytes" in HTTP.get(f"{served.address}/metrics").text


def test_attention_is_the_adapter_s(served: Running, folders: Path) -> None:
    for name in ("base", "c"):
        found = served.engine.models[name]
        shown = found.scheduler.model.merged(found.adapter).attention_weights([1, 2, 3], 3)
        expected = read_model(folders / name).decoder.attention_weights([1, 2, 3], 3)
        torch.testing.assert_close(shown, expected, atol=1e-5, rtol=1e-4)


def test_a_budget_counts_the_base_once(folders: Path) -> None:
    one = Loader(MACHINE, "model", 0, 4).first(read_models(words(folders, "base")))[0]
    served = Loader(MACHINE, "model", 0, 4).first(read_models(words(folders, "base", "a", "b")))
    needed = sum(each.weight_bytes for each in served) + 10_000_000
    assert needed < 2 * one.weight_bytes + 10_000_000
    found = Loader(MACHINE, "model", needed, 4).first(read_models(words(folders, "base", "a", "b")))
    assert sum(each.bytes for each in found) == pytest.approx(needed, rel=1e-3)


@pytest.mark.skipif(load_library() is None, reason="needs the C++ kernels")
def test_adapters_on_a_quantised_base(tmp_path: Path) -> None:
    """PEFT folders whose base is not here, on a file at its own bits: near the merged model."""
    pytest.importorskip("gguf")
    base = random_decoder(replace(llama(1, 64, 2, 2, 96, 200), vocabulary_size=400))
    plain = ReadModel(base, TOKENIZER, Source("lmsmith", Path("tiny"), "tiny"), {})
    file = export(plain, tmp_path, "gguf", "q8_0").path
    given = [f"base={file}"]
    for seed, name in enumerate("ab"):
        decoder = adapted(base, seed, A)
        state = {key: each for key, each in decoder.state_dict().items()
                 if key.endswith((".down", ".up"))}  # fmt: skip
        (tmp_path / name).mkdir()
        write_peft_folder(tmp_path / name, "nobody/nothing", base.config, A, state)
        given.append(f"{name}={tmp_path / name}")
    with pytest.raises(UserError, match="nobody/nothing"):
        read_models(given, "file")
    models = {
        each.name: each
        for each in Loader(MACHINE, "file", 0, 4).first(read_models(given, "file", "base"))
    }
    model = models["a"].scheduler.model
    assert model.packings == ["Q8_0"]
    tokens = [5, 9, 40, 200, 17]
    for name in "ab":
        cache = model.new_cache(1, 64)
        hidden_nd = model.read([(cache.open(), tokens)], cache, [name])
        plain_decoder = model.merged(name)
        with torch.no_grad():
            expected = plain_decoder.logits(plain_decoder(torch.tensor([tokens])))[0]
        off = (model.logits(hidden_nd) - expected).abs().mean()
        assert off < 0.03 * expected.std()


def test_python_writes_with_each(folders: Path) -> None:
    given = {name: folders / name for name in ("a", "b")}
    machine = MachineConfig(precision="fp32")
    model = lmsmith.load(folders / "base", adapters=given, machine=machine)
    for name in ("a", "b"):
        alone = lmsmith.load(folders / name, machine=machine)
        text = model.adapted(name).generate("tea and", temperature=0.0)
        assert text == alone.generate("tea and", temperature=0.0)
        assert text != model.generate("tea and", temperature=0.0)
    assert len(model._ready) == 1
    with pytest.raises(UserError, match=r"no adapter 'c'\n.*a, b"):
        model.adapted("c")
    with pytest.raises(UserError, match="other is a whole model"):
        lmsmith.load(folders / "base", adapters={"x": folders / "other"})


def test_adapters_below_an_adapter_stay_on_another_base(folders: Path, tmp_path: Path) -> None:
    """c stands on a: on a base that --adapters-on names, both are added up too."""
    given = words(folders, "base", "c")
    named, expected = read_models(given, "model", "base")["c"], read_models(given)["c"]
    assert named.adapter is not None
    assert expected.adapter is not None
    for layer, matrices in expected.adapter.items():
        for found, each in zip(named.adapter[layer], matrices, strict=True):
            assert torch.equal(found, each)
    stack = shutil.copytree(folders, tmp_path / "stack")
    shutil.rmtree(stack / "base")
    given = [f"new={folders / 'base'}", f"c={stack / 'c'}", f"a={stack / 'a'}"]
    read = read_models(given, "model", "new")  # the base of the stack is gone
    assert read["c"].adapter is not None
    assert read["a"].adapter is not None
    layer = next(iter(read["a"].adapter))
    assert len(read["c"].adapter[layer][0]) > len(read["a"].adapter[layer][0])
    shutil.rmtree(stack / "a")
    with pytest.raises(UserError, match=r"c holds adapters that stand on other adapters.*stack/a"):
        read_models(given[:2], "model", "new")


def test_python_adds_up_the_adapters_below(folders: Path) -> None:
    machine = MachineConfig(precision="fp32")
    alone = lmsmith.load(folders / "c", machine=machine).generate("tea and", temperature=0.0)
    for base in ("base", "a"):  # c stands on a, whose adapters are merged where a is loaded
        model = lmsmith.load(folders / base, adapters={"c": folders / "c"}, machine=machine)
        assert model.adapted("c").generate("tea and", temperature=0.0) == alone


def test_wrong_adapters_are_named(folders: Path) -> None:
    with pytest.raises(UserError, match=r"--adapters-on a: .*\n.*base"):
        read_models(words(folders, "base", "a"), "model", "a")
    with pytest.raises(UserError, match=r"d.adapter.safetensors: .* has the shape"):
        read_models(words(folders, "base", "d"), "model", "base")
