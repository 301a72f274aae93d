"""Padding changes no log-probability, and temperature is in every one of them."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from lmsmith.generation.engine import SamplingSettings
from lmsmith.generation.sampling import choose_tokens
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.rlhf.rollout import pad_batch, response_log_probs

CONFIG = ModelConfig(layers=2, width=24, heads=3, context=40, vocabulary_size=31)


def random_decoder(seed: int = 0) -> Decoder:
    decoder = Decoder(CONFIG).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.3, generator=generator)
    return decoder


def random_lists(count: int, seed: int, shortest: int, longest: int) -> list[list[int]]:
    source = random.Random(seed)
    return [
        [source.randrange(31) for _ in range(source.randint(shortest, longest))]
        for _ in range(count)
    ]


def plain_log_probs(
    decoder: Decoder, prompt: list[int], response: list[int], temperature: float
) -> tuple[Tensor, Tensor]:
    """Token by token, without padding, masks or positions."""
    log_probs, entropies = [], []
    for place, token in enumerate(response):
        before = torch.tensor([prompt + response[:place]])
        logits = decoder(before)[0, -1] @ decoder.token_embedding.weight.T
        probabilities = (logits / temperature).softmax(dim=0)
        log_probs.append(probabilities[token].log())
        entropies.append(-(probabilities * probabilities.log()).sum())
    return torch.stack(log_probs), torch.stack(entropies)


def test_padded_log_probs_equal_unpadded_ones_at_any_temperature() -> None:
    decoder = random_decoder()
    prompts, responses = random_lists(7, 1, 1, 12), random_lists(7, 2, 1, 9)
    for temperature in (1.0, 0.6):
        with torch.no_grad():
            found = response_log_probs(decoder, pad_batch(prompts, responses), temperature)
            for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
                for values, plain in zip(
                    found, plain_log_probs(decoder, prompt, response, temperature), strict=True
                ):
                    torch.testing.assert_close(
                        values[row, : len(response)], plain, rtol=1e-4, atol=1e-4
                    )
                    assert (values[row, len(response) :] == 0).all()


def test_padded_gradients_equal_unpadded_ones() -> None:
    decoder = random_decoder(1)
    prompts, responses = random_lists(4, 3, 1, 8), random_lists(4, 4, 1, 6)
    response_log_probs(decoder, pad_batch(prompts, responses), 0.8)[0].sum().backward()
    padded = [parameter.grad.clone() for parameter in decoder.parameters()]  # type: ignore[union-attr]
    decoder.zero_grad()
    for prompt, response in zip(prompts, responses, strict=True):
        plain_log_probs(decoder, prompt, response, 0.8)[0].sum().backward()  # type: ignore[no-untyped-call]
    for one, parameter in zip(padded, decoder.parameters(), strict=True):
        assert parameter.grad is not None
        scale = float(parameter.grad.abs().max()) + 1e-6
        torch.testing.assert_close(one, parameter.grad, rtol=0, atol=2e-4 * scale)


def test_log_probs_are_of_the_distribution_that_is_sampled_from() -> None:
    """A fine grid of uniform numbers draws each token as often as its probability says."""
    decoder, draws = random_decoder(2), 20_000
    prompt = [3, 1, 4]
    with torch.no_grad():
        logits = decoder.logits(decoder(torch.tensor([prompt]))[:, -1])
        uniform = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
        chosen = choose_tokens(
            logits.expand(draws, -1), SamplingSettings(temperature=0.7), uniform.to(logits.dtype)
        )
        every_token = pad_batch([prompt] * 31, [[token] for token in range(31)])
        log_probs, _ = response_log_probs(decoder, every_token, 0.7)
    shares = torch.bincount(chosen, minlength=31) / draws
    torch.testing.assert_close(shares, log_probs[:, 0].exp(), rtol=0, atol=2e-4)


def test_prompts_end_and_responses_begin_together() -> None:
    batch = pad_batch([[5], [6, 7, 8]], [[1, 2], [3]])
    assert batch.tokens_bt.tolist() == [[0, 0, 5, 1, 2], [6, 7, 8, 3, 0]]
    assert batch.valid_bt.int().tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch.prompt_length == 3
    assert batch.response_br.tolist() == [[1, 2], [3, 0]]
    assert batch.response_mask_br.tolist() == [[True, True], [True, False]]
    assert batch.left_aligned().tolist() == [[5, 1, 2, 0], [6, 7, 8, 3]]
    swapped = batch.rows(torch.tensor([1, 0]))
    assert swapped.tokens_bt.tolist() == batch.tokens_bt.tolist()[::-1]
    assert pad_batch([[5], [6, 7]]).tokens_bt.tolist() == [[0, 5], [6, 7]]
