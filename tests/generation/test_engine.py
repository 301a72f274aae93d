"""What the engine writes with a cache, in batches, is what the plain model would write."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation import engine
from lmsmith.generation.engine import InferenceDecoder, SamplingSettings, generate, stream
from lmsmith.generation.sampling import choose_tokens, row_uniforms
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.rlhf.rollout import pad_batch, response_log_probs
from lmsmith.training.machine import resolve_machine
from tiny_models import random_decoder

CONTEXT, VOCABULARY = 40, 61
BF16 = resolve_machine(MachineConfig(precision="bf16"))
FP32 = resolve_machine(MachineConfig(precision="fp32"))


def make_decoder(seed: int = 0, dropout: float = 0.0) -> Decoder:
    return random_decoder(ModelConfig(2, 32, 4, CONTEXT, VOCABULARY, dropout=dropout), seed)


DECODER = make_decoder()


def random_prompts(count: int, seed: int = 0, longest: int = 20) -> list[list[int]]:
    source = random.Random(seed)
    return [
        [source.randrange(VOCABULARY) for _ in range(source.randint(1, longest))]
        for _ in range(count)
    ]


@torch.no_grad()
def slow_generate(
    decoder: Decoder, prompts: Sequence[Sequence[int]], settings: SamplingSettings
) -> list[list[int]]:
    """The same, one prompt at a time and without a cache: the whole text is read every step."""
    replies = []
    for row, prompt in enumerate(prompts):
        tokens = list(prompt)
        uniforms = row_uniforms(settings.seed, [row], settings.max_new_tokens)
        while len(tokens) < decoder.config.context:
            step = len(tokens) - len(prompt)
            logits_v = decoder.logits(decoder(torch.tensor([tokens]))[0, -1])
            tokens.append(int(choose_tokens(logits_v[None], settings, uniforms[:, step])))
            if tokens[-1] in settings.stop_tokens or step + 1 == settings.max_new_tokens:
                break
        replies.append(tokens[len(prompt) :])
    return replies


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingSettings(max_new_tokens=30, temperature=0),
        SamplingSettings(max_new_tokens=30, seed=1),
        SamplingSettings(max_new_tokens=12, temperature=0.7, seed=2, stop_tokens=(3, 7, 11, 30)),
        SamplingSettings(max_new_tokens=100, top_k=8, top_p=0.9, seed=3, stop_tokens=(5,)),
    ],
)
def test_equal_to_one_at_a_time_without_a_cache(sampling: SamplingSettings) -> None:
    prompts = random_prompts(19)
    assert generate(DECODER, prompts, sampling) == slow_generate(DECODER, prompts, sampling)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30), max_size=8),
    st.integers(0, 2**63),
    st.sets(st.integers(0, VOCABULARY - 1), max_size=20),
    st.integers(1, 50),
)
def test_equal_for_any_prompts_stops_and_lengths(
    prompts: list[list[int]], seed: int, stops: set[int], longest: int
) -> None:
    sampling = SamplingSettings(max_new_tokens=longest, seed=seed, stop_tokens=tuple(stops))
    assert generate(DECODER, prompts, sampling) == slow_generate(DECODER, prompts, sampling)


def test_neither_padding_nor_company_changes_a_reply() -> None:
    sampling = SamplingSettings(max_new_tokens=15, seed=5, stop_tokens=(1, 2, 3))
    prompt = random_prompts(1, seed=9, longest=6)[0]
    alone = generate(DECODER, [prompt], sampling)[0]
    company = random_prompts(30, seed=1, longest=25)
    assert generate(DECODER, [prompt, *company], sampling)[0] == alone
    assert list(stream(DECODER, prompt, sampling)) == alone


def test_few_rows_little_memory_and_short_steps_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampling = SamplingSettings(max_new_tokens=20, seed=6, stop_tokens=tuple(range(12)))
    prompts = random_prompts(23, seed=2)
    expected = generate(DECODER, prompts, sampling)
    assert len({len(reply) for reply in expected}) > 5
    monkeypatch.setattr(engine, "PROMPT_TOKENS_AT_ONCE", 7)
    assert generate(DECODER, prompts, sampling) == expected
    monkeypatch.setattr(engine, "ROWS_AT_ONCE", 4)
    assert generate(DECODER, prompts, sampling) == expected
    monkeypatch.setattr(engine, "CACHE_BYTES", 1)
    assert generate(DECODER, prompts, sampling) == expected


def test_equal_prompts_with_rows_of_their_own_get_different_replies() -> None:
    replies = generate(DECODER, [[1, 2, 3]] * 6, SamplingSettings(max_new_tokens=10))
    assert len({tuple(reply) for reply in replies}) == 6
    again = generate(DECODER, [[1, 2, 3]] * 6, SamplingSettings(max_new_tokens=10))
    other = generate(DECODER, [[1, 2, 3]] * 6, SamplingSettings(max_new_tokens=10, seed=1))
    assert again == replies
    assert other != replies


def test_replies_end_at_a_stop_token_at_the_limit_or_at_the_contexts_end() -> None:
    prompts = [[1], [2] * (CONTEXT - 3), [3] * (CONTEXT - 1), [4, 5]]
    free = generate(DECODER, prompts, SamplingSettings(max_new_tokens=20))
    assert [len(reply) for reply in free] == [20, 3, 1, 20]
    stop = free[0][4]
    stopped = generate(DECODER, prompts, SamplingSettings(max_new_tokens=20, stop_tokens=(stop,)))
    assert stopped[0] == free[0][: free[0].index(stop) + 1]
    assert stopped[0][-1] == stop
    assert all(stop not in reply[:-1] for reply in stopped)


def test_sampled_tokens_have_the_probabilities_ppo_gives_them() -> None:
    """10,000 first tokens against the exact distribution, and the joint one of two tokens."""
    temperature, count = 0.8, 10_000
    sampling = SamplingSettings(max_new_tokens=2, temperature=temperature, seed=11)
    decoder = make_decoder(seed=4)
    prompt = [7, 8, 9]
    replies = generate(decoder, [prompt] * count, sampling)
    pairs: dict[tuple[int, int], int] = {}
    for first, second in replies:
        pairs[first, second] = pairs.get((first, second), 0) + 1
    common = [pair for pair, seen in pairs.items() if seen >= 40]
    assert len(common) > 10
    batch = pad_batch([prompt] * len(common), [list(pair) for pair in common])
    with torch.no_grad():
        log_probs_br, _ = response_log_probs(decoder, batch, temperature)
    expected = (log_probs_br.sum(dim=1).exp() * count).tolist()
    seen = [pairs[pair] for pair in common]
    deviations = [
        (s - e) / math.sqrt(e * (1 - e / count)) for s, e in zip(seen, expected, strict=True)
    ]
    # Pairs were chosen for being seen often, which favours chance's winners a little.
    assert max(map(abs, deviations)) < 5
    assert sum(deviation**2 for deviation in deviations) / len(deviations) < 2


def test_bf16_is_near_float32_and_reproducible() -> None:
    prompts = random_prompts(9)
    sampling = SamplingSettings(max_new_tokens=8, seed=1)
    replies = generate(DECODER, prompts, sampling, machine=BF16)
    assert replies == generate(DECODER, prompts, sampling, machine=BF16)
    exact, rounded = InferenceDecoder(DECODER, FP32), InferenceDecoder(DECODER, BF16)
    tokens = torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        results = []
        for model in (exact, rounded):
            cache = model.new_cache(3, 12)
            spans = [(cache.open(), row) for row in tokens.tolist()]
            results.append(model.logits(model.read(spans, cache)).unflatten(0, (3, 12)))
        with BF16.autocast():
            autocast = DECODER.logits(DECODER(tokens)).float()
    scale = results[0].std()
    assert (results[1] - results[0]).abs().max() < 0.1 * scale
    # As near to the exact result as autocast, by which the policy is trained.
    ours, theirs = (results[1] - results[0]).std(), (autocast - results[0]).std()
    assert ours < 1.25 * theirs


def test_reading_neither_changes_the_decoder_nor_uses_dropout() -> None:
    decoder = make_decoder(dropout=0.5).train()
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    sampling = SamplingSettings(max_new_tokens=10, temperature=0)
    for machine in (None, BF16):
        first = generate(decoder, [[1, 2]], sampling, machine=machine)
        assert first == generate(decoder, [[1, 2]], sampling, machine=machine)
    assert decoder.training
    assert all(torch.equal(before[name], value) for name, value in decoder.state_dict().items())
    assert all(parameter.requires_grad for parameter in decoder.parameters())
    assert torch.is_grad_enabled()
    decoder(torch.tensor([[1, 2]])).sum().backward()


def test_streaming_leaves_gradients_on_between_tokens() -> None:
    for _ in stream(DECODER, [1, 2], SamplingSettings(max_new_tokens=3)):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_on_token_hears_every_token_in_order() -> None:
    heard: dict[int, list[int]] = {row: [] for row in range(7)}
    sampling = SamplingSettings(max_new_tokens=9, seed=2, stop_tokens=tuple(range(9)))
    replies = generate(
        DECODER, random_prompts(7), sampling, on_token=lambda row, token: heard[row].append(token)
    )
    assert [heard[row] for row in range(7)] == replies


def test_no_prompts_no_replies() -> None:
    assert generate(DECODER, [], SamplingSettings()) == []


@pytest.mark.parametrize(
    ("prompts", "sampling", "message"),
    [
        ([[1], []], SamplingSettings(), "prompt 2 is empty"),
        ([[1] * CONTEXT], SamplingSettings(), "the prompt has 40 tokens; the model's context"),
        ([[1], [1] * 90], SamplingSettings(), "prompt 2 has 90 tokens"),
        ([[VOCABULARY]], SamplingSettings(), "token ids outside 0 to 60"),
        ([[-1]], SamplingSettings(), "token ids outside 0 to 60"),
        ([[1]], SamplingSettings(top_p=2), "top_p = 2"),
        ([[1], []], SamplingSettings(top_k=-1, seed=-1), "(?s)3 problems.*top_k.*seed.*prompt 2"),
        ([[1]], SamplingSettings(stop_tokens=(VOCABULARY,)), "stop_tokens"),
        ([[1]], SamplingSettings(stop=("x",)), "tokenizer"),
    ],
)
def test_bad_input_is_named(
    prompts: list[list[int]], sampling: SamplingSettings, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(DECODER, prompts, sampling)


def test_a_model_that_diverged_is_refused() -> None:
    decoder = make_decoder()
    with torch.no_grad():
        decoder.final_norm.weight.fill_(math.nan)
    with pytest.raises(UserError, match="not finite"):
        generate(decoder, [[1]], SamplingSettings())
