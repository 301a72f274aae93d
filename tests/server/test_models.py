"""What serving prepares: drafts change the speed and no reply, and count in the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from worlds import HTTP, MACHINE, RANDOM, TOKENIZER, Running, read, running, said_by

from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.catalogue.resolve import Source
from lmsmith.core.errors import UserError
from lmsmith.generation.native.library import load_library
from lmsmith.models.folder import save_model
from lmsmith.models.presets import llama
from lmsmith.options import Weights
from lmsmith.server.models import Loader, read_models, serve_models
from lmsmith.server.serve import describe
from lmsmith.tokenizers import Tokenizer
from tiny_models import random_decoder


@pytest.fixture
def draft_folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "draft", RANDOM, TOKENIZER, {})
    return tmp_path / "draft"


@pytest.mark.parametrize("kind", ["prompt-lookup", "model"])
def test_a_draft_changes_no_reply(
    kind: str, served: Running, client: openai.OpenAI, draft_folder: Path
) -> None:
    asked: list[dict[str, Any]] = [
        {"model": name, "temperature": temperature, "seed": 3, "logprobs": True, "max_tokens": 40}
        for name in ("parrot", "random")
        for temperature in (0, 0.5)
    ]
    asked.append(asked[-1] | {"n": 2, "stop": ["e"], "frequency_penalty": 0.3})
    with (
        running(draft=kind if kind == "prompt-lookup" else str(draft_folder)) as drafted,
        openai.OpenAI(base_url=f"{drafted.address}/v1", api_key="none", max_retries=0) as other,
    ):
        for each in asked:
            messages = said_by("tea and rain and tea and rain and tea")
            plain, found = (
                one.chat.completions.create(messages=messages, **each) for one in (client, other)
            )
            for ours, theirs in zip(found.choices, plain.choices, strict=True):
                assert ours.message.content == theirs.message.content
                assert ours.finish_reason == theirs.finish_reason
                for a, b in zip(ours.logprobs.content, theirs.logprobs.content, strict=True):
                    assert (a.token, a.logprob) == (b.token, pytest.approx(b.logprob, abs=1e-4))
            assert found.usage.completion_tokens == plain.usage.completion_tokens
        scheduler = drafted.engine.models["random"].scheduler
        assert 0 < scheduler.accepted <= scheduler.guessed
        for _ in range(2):  # asking again counts nothing again
            lines = HTTP.get(f"{drafted.address}/metrics").text.splitlines()
            for name, count in (("guessed", scheduler.guessed), ("accepted", scheduler.accepted)):
                assert f'lmsmith_{name}_tokens_total{{model="random"}} {float(count)}' in lines


def test_the_draft_counts_in_the_memory(draft_folder: Path) -> None:
    def caches(draft: str, memory: int = 40_000_000) -> int:
        (found,) = serve_models(
            {"random": read(RANDOM)},
            machine=MACHINE,
            weights="model",
            draft=draft,
            memory_bytes=memory,
            streams=2,
        )
        return found.cache_bytes

    plain, drafted = caches(""), caches(str(draft_folder))
    assert caches("prompt-lookup") == plain
    tokens = 4 * RANDOM.config.context + 4 * 64
    weights = 40_000_000 - plain
    assert plain - drafted == weights + tokens * RANDOM.config.cache_bytes_per_token(4)
    with pytest.raises(UserError, match="no room for random"):
        caches(str(draft_folder), 40_000_000 - plain + 10**6)


def test_a_draft_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    other = Tokenizer.train(["nothing of the kind is said by anybody here"] * 9, 290)
    config = replace(RANDOM.config, vocabulary_size=other.vocabulary_size)
    save_model(tmp_path, random_decoder(config), other, {})
    with pytest.raises(UserError, match="it has another tokenizer than tiny"):
        serve_models(
            {"random": read(RANDOM)},
            machine=MACHINE,
            weights="model",
            draft=str(tmp_path),
            memory_bytes=0,
            streams=2,
        )


@pytest.mark.parametrize("weights", ["file", "model"])
def test_a_quantised_file_is_served_at_its_own_bits(weights: Weights, tmp_path: Path) -> None:
    """Its line names the types; --weights model expands them."""
    pytest.importorskip("gguf")
    if load_library() is None:
        pytest.skip("the C++ kernels are not here")
    decoder = random_decoder(replace(llama(1, 64, 2, 2, 96, 200), vocabulary_size=400))
    plain = ReadModel(decoder, TOKENIZER, Source("lmsmith", Path("tiny"), "tiny"), {})
    path = export(plain, tmp_path, "gguf", "q8_0").path
    loader = Loader(MACHINE, weights, 0, 4)
    (model,) = loader.first(read_models([f"own={path}"], weights))
    assert (" (Q8_0 as in the file), cache" in describe(model)) == (weights == "file")
    shown = model.scheduler.model.decoder.attention_weights([1, 2, 3], 3)
    expected = read_model(path).decoder.attention_weights([1, 2, 3], 3)
    torch.testing.assert_close(shown, expected)
