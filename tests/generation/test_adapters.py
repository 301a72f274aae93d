"""Several adapters in one batch against the merged model of each, alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.engine import Engine, answer
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.native.library import load_library
from lmsmith.generation.requests import Reply, Request
from lmsmith.generation.scheduler import Admitted, Failed, Scheduler
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.speculative import PromptLookup
from lmsmith.models.adapters import AdapterConfig, LowRank, add_up, low_rank, merge
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.training.machine import resolve_machine
from tiny_models import random_decoder

LLAMA = ModelConfig(
    2, 32, 4, 128, 97, kv_heads=2, norm="rms", activation="swiglu", positions="rotary",
    qkv_bias=False, attention_output_bias=False, ffn_bias=False,
)  # fmt: skip
GPT1 = ModelConfig(2, 32, 4, 128, 97, norm_position="post", tied_embeddings=False)
MACHINE = replace(resolve_machine(MachineConfig(threads=1)), precision="bf16")
needs_native = pytest.mark.skipif(load_library() is None, reason="needs the C++ kernels")


def random_low_rank(decoder: Decoder, rank: int, seed: int, parts: tuple[str, ...]) -> LowRank:
    """Changes as large as the weights, of the layers whose names end in one of the parts."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(rank, module.in_features, generator=generator) * 0.3,
            torch.randn(module.out_features, rank, generator=generator) * 0.3 / rank**0.5,
        )
        for name, module in decoder.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(parts)
    }


ALL = ("query_key_value", "output", "gate", "inner")


def family(config: ModelConfig) -> tuple[Decoder, dict[str, LowRank]]:
    """A base; adapters of all layers and of some, and of an odd rank."""
    base = random_decoder(config)
    return base, {
        "a": random_low_rank(base, 5, 1, ALL),
        "b": random_low_rank(base, 3, 2, ("query_key_value", "feed_forward.inner")),
        "c": random_low_rank(base, 16, 3, ("attention.output",)),
    }


def merged(base: Decoder, adapter: LowRank | None) -> Decoder:
    """By its own formula: W + B A."""
    decoder = Decoder(base.config).eval()
    state = {name: each.clone() for name, each in base.state_dict().items()}
    for name, (down, up) in (adapter or {}).items():
        state[f"{name}.weight"] += torch.einsum("or,ri->oi", up, down)
    decoder.load_state_dict(state)
    return decoder


def prompts(count: int, seed: int = 5) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(97, (9 + 7 * n % 20,), generator=generator).tolist() for n in range(count)
    ]


GREEDY = SamplingSettings(max_new_tokens=12, temperature=0, top_log_probs=5)
NAMES = ("a", "", "b", "c", "b", "a", "", "c")


def replies(model: InferenceDecoder, names: tuple[str, ...], **more: object) -> list[Reply]:
    engine = Engine(model, **more)  # type: ignore[arg-type]
    requests = [
        Request(prompt, GREEDY, adapter=name)
        for name, prompt in zip(names, prompts(len(names)), strict=True)
    ]
    return [each for (each,) in answer(engine, requests)]


def alone(model: InferenceDecoder, prompt: list[int], adapter: str = "") -> Reply:
    return answer(Engine(model), [Request(prompt, GREEDY, adapter=adapter)])[0][0]


@pytest.mark.parametrize("config", [LLAMA, GPT1], ids=["llama", "gpt1"])
@pytest.mark.parametrize("guesses", [False, True], ids=["", "with guesses"])
def test_replies_of_a_mixed_batch_are_those_of_the_merged_models(
    config: ModelConfig, guesses: bool
) -> None:
    base, adapters = family(config)
    model = InferenceDecoder(base, adapters=adapters)
    found = replies(model, NAMES, drafter=PromptLookup() if guesses else None)
    plain = {name: InferenceDecoder(merged(base, adapters.get(name))) for name in set(NAMES)}
    for name, prompt, reply in zip(NAMES, prompts(len(NAMES)), found, strict=True):
        expected = alone(plain[name], prompt)
        assert reply.tokens == expected.tokens, name
        for ours, theirs in zip(reply.log_probs, expected.log_probs, strict=True):
            assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-4)
    different = {tuple(alone(each, prompts(1)[0]).tokens) for each in plain.values()}
    assert len(different) == len(plain)  # the adapters change what is written


@needs_native
@pytest.mark.parametrize("config", [LLAMA, GPT1], ids=["stack", "one by one"])
def test_in_bf16_a_reply_has_the_same_bits_in_any_company(config: ModelConfig) -> None:
    base, adapters = family(config)
    model = InferenceDecoder(base, MACHINE, adapters=adapters)
    for name, prompt, reply in zip(NAMES, prompts(len(NAMES)), replies(model, NAMES), strict=True):
        assert reply == alone(model, prompt, name)
    without = InferenceDecoder(base, MACHINE)  # the base does not notice the adapters
    assert replies(without, ("",) * 4) == replies(model, ("",) * 4)


@needs_native
def test_the_stack_computes_what_its_operations_compute() -> None:
    base, adapters = family(LLAMA)
    model = InferenceDecoder(base, MACHINE, adapters=adapters)
    assert model._stack is not None
    found = replies(model, NAMES)
    torch.set_num_threads(3)
    assert replies(model, NAMES) == found
    model._stack = None
    assert replies(model, NAMES) == found


@needs_native
@pytest.mark.parametrize("weights", ["model", "int8"])
def test_bf16_is_near_the_merged_model(weights: str) -> None:
    base, adapters = family(LLAMA)
    model = InferenceDecoder(base, MACHINE, adapters=adapters, weights=weights)  # type: ignore[arg-type]
    for name in NAMES[:4]:
        plain = merged(base, adapters.get(name))
        tokens = prompts(1)[0]
        with torch.no_grad():
            exact_nv = plain.logits(plain(torch.tensor([tokens])))[0].log_softmax(dim=-1)
        cache = model.new_cache(1, 64)
        hidden_nd = model.read([(cache.open(), tokens)], cache, [name])
        off = (model.logits(hidden_nd).log_softmax(dim=-1) - exact_nv).abs().mean()
        spread = exact_nv.std()
        assert off < (0.03 if weights == "model" else 0.05) * spread


def test_no_reply_reads_the_cache_of_another_adapter() -> None:
    base, adapters = family(LLAMA)
    model = InferenceDecoder(base, adapters=adapters)
    scheduler = Scheduler(model, None, cache_bytes=1 << 22, rows=4)
    prompt = prompts(1)[0] * 4
    cached = {}
    for name in ("", "a", "b", "a", "b", ""):
        scheduler.submit(Request(prompt, GREEDY, adapter=name))
        tokens = []
        while scheduler.busy:
            for event in scheduler.step():
                assert not isinstance(event, Failed)
                if isinstance(event, Admitted):
                    again = name in cached
                    assert event.cached == (len(prompt) - 1 if again else 0)
                else:
                    tokens.append(event.token)
        assert cached.setdefault(name, tokens) == tokens
        assert tokens == alone(InferenceDecoder(merged(base, adapters.get(name))), prompt).tokens
    assert len({tuple(each) for each in cached.values()}) == 3


def test_a_shared_beginning_is_the_base_s_alone() -> None:
    base, adapters = family(LLAMA)
    model = InferenceDecoder(base, adapters=adapters)
    engine, prompt = Engine(model), prompts(1)[0] * 4
    engine.cache_prefix(prompt[:30])
    ((reply,),) = answer(engine, [Request(prompt, GREEDY, adapter="a")])
    assert reply.tokens == alone(InferenceDecoder(merged(base, adapters["a"])), prompt).tokens


def test_an_unknown_adapter_is_refused_before_anything_is_read() -> None:
    base, adapters = family(LLAMA)
    model = InferenceDecoder(base, adapters=adapters)
    request = Request([1, 2], GREEDY, "prompt 7", adapter="d")
    with pytest.raises(UserError, match=r"prompt 7: no adapter is called 'd'\n.*a, b, c"):
        answer(Engine(model), [request])
    with pytest.raises(UserError, match="the model has none"):
        Scheduler(InferenceDecoder(base), None, cache_bytes=1 << 22, rows=4).check(request)


def test_adapters_on_adapters_add_up_and_zero_columns_are_left_out() -> None:
    base, adapters = family(LLAMA)
    both = add_up(adapters["a"], adapters["b"])
    model = InferenceDecoder(base, adapters={"both": both})
    expected = merged(merged(base, adapters["a"]), adapters["b"])
    prompt = prompts(1)[0]
    assert alone(model, prompt, "both").tokens == alone(InferenceDecoder(expected), prompt).tokens
    state = merge(base.state_dict(), both)
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(state[name], weight, atol=1e-5, rtol=1e-5)
    name, (down, up) = next(iter(adapters["a"].items()))
    wide = {f"{name}.down": torch.cat([down, down]), f"{name}.up": torch.cat([up, 0 * up], dim=1),
            "x.down": down, "x.up": 0 * up}  # fmt: skip
    (found,) = low_rank(AdapterConfig(10, 20.0), wide).items()
    assert found[0] == name
    torch.testing.assert_close(found[1][0], down)
    torch.testing.assert_close(found[1][1], 2 * up)
