"""One batch of experience: responses drawn from the policy, and all that is known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index

import numpy as np
import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.generation.vocabulary import Vocabulary, vocabulary_of
from lmsmith.models.batching import (
    PaddedBatch,
    length_batches,
    length_groups,
    pad_batch,
    response_log_probs,
)
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.token_bytes import LONGEST
from lmsmith.training.machine import ResolvedMachine, evaluation_mode

RewardFunction = Callable[[list[list[int]], list[list[int]]], Tensor | Sequence[float]]
"""Rewards (batch,) of responses to prompts, both as token ids; see `checked_rewards`."""

ROWS_AT_ONCE = 32
"""Rows computed together, in scoring and in updates; of like length, so that few are padding."""


@dataclass(frozen=True)
class Rollout:
    """Prompts, responses and the numbers PPO needs, before any update.

    Attributes:
        batch: prompts and responses, padded.
        log_probs_br, reference_log_probs_br: of the response tokens (`sampled_log_probs`).
        entropy_br: of the policy at each response token, nats.
        values_bs: the value model's, per state (one more column than response tokens).
        scores_b: rewards, missing_eos_penalty included.
        ended_b: whether the response ended with its stop token.
    """

    batch: PaddedBatch
    log_probs_br: Tensor
    reference_log_probs_br: Tensor
    entropy_br: Tensor
    values_bs: Tensor
    scores_b: Tensor
    ended_b: Tensor


def readable_prompts(
    prompts: Sequence[Sequence[int]], stop_token: int, policy: Decoder
) -> tuple[list[list[int]], int]:
    """Prompts and stop token as plain whole numbers, whatever holds them: lists, arrays, tensors.

    Raises:
        UserError: there is no prompt, or the first that is empty, too long, or no list of tokens
            that the policy has.
    """
    context, vocabulary = policy.config.context, policy.config.vocabulary_size
    try:
        stop = index(stop_token)
    except TypeError:
        stop = -1
    if not 0 <= stop < vocabulary:
        raise UserError(
            f"stop_token = {stop_token!r}: the policy has tokens 0 to {vocabulary - 1}",
            "give the id of the token that ends a response",
        )
    found: list[list[int]] = []
    for number, prompt in enumerate(prompts):
        try:
            tokens = [index(token) for token in prompt]
        except TypeError as error:
            raise UserError(
                f"prompts[{number}] is no list of token ids ({error})",
                "encode texts with the policy's own tokenizer; ids are whole numbers",
            ) from error
        if not tokens:
            problem, fix = "has no tokens", "begin it with the start-of-text token"
        elif len(tokens) >= context:
            problem = (
                f"has {len(tokens)} tokens, which leaves no room for a response in the policy's "
                f"context of {context}"
            )
            fix = "shorten the prompt, or leave it out"
        elif not 0 <= min(tokens) <= max(tokens) < vocabulary:
            problem = f"has token ids outside 0 to {vocabulary - 1}"
            fix = "encode it with the policy's own tokenizer"
        else:
            found.append(tokens)
            continue
        raise UserError(f"prompts[{number}] {problem}", fix)
    if not found:
        raise UserError("PPO has no prompt", "give at least one list of token ids")
    return found, stop


def state_values(value_model: ScalarModel, batch: PaddedBatch) -> Tensor:
    """V of every state of the responses: before each token, and after the last; (batch, r + 1).

    What stands past a response's end means nothing; `objective.value_mask` tells where that is.
    """
    values_bt: Tensor = value_model(batch.left_aligned())
    states = batch.response_mask_br.shape[1] + 1
    columns_bs = (batch.prompt_lengths_b - 1)[:, None] + torch.arange(states)
    return values_bt.gather(1, columns_bs.clamp(max=values_bt.shape[1] - 1))


def sampled_log_probs(
    decoder: Decoder, batch: PaddedBatch, temperature: float, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor]:
    """`response_log_probs` of the distribution that responses are drawn from.

    That is the softmax of logits over temperature, renormalised over what may come: no bytes that
    cannot continue a character, and no id without a token. Rollout, reference and update all read
    it here, so that ratio and KL compare distributions of the same tokens.
    """
    first = max(0, batch.prompt_length - LONGEST)
    states_bt = vocabulary.states(batch.tokens_bt[:, first:], batch.valid_bt[:, first:])
    states_n = states_bt[:, batch.prompt_length - first :][batch.response_mask_br]
    return response_log_probs(decoder, batch, temperature, vocabulary.forbidden(states_n))


def score_rollout(
    policy: Decoder,
    reference: Decoder,
    value_model: ScalarModel,
    reward: RewardFunction,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    stop_token: int,
    missing_eos_penalty: float,
    temperature: float,
    machine: ResolvedMachine,
    vocabulary: Vocabulary,
) -> Rollout:
    """Look at responses with all four models; nothing is trained, dropout is off."""
    batch = pad_batch(prompts, responses)
    log_probs_br = torch.zeros(batch.response_mask_br.shape)
    reference_log_probs_br, entropy_br = torch.zeros_like(log_probs_br), log_probs_br.clone()
    values_bs = torch.zeros(len(prompts), log_probs_br.shape[1] + 1)
    with evaluation_mode(policy, reference, value_model), machine.autocast():
        for group in length_groups(batch.lengths_b, ROWS_AT_ONCE):
            rows = batch.rows(group)
            log_probs_br[group], entropy_br[group] = sampled_log_probs(
                policy, rows, temperature, vocabulary
            )
            reference_log_probs_br[group], _ = sampled_log_probs(
                reference, rows, temperature, vocabulary
            )
            values_bs[group] = state_values(value_model, rows)
    ended_b = torch.tensor([stop_token in response[-1:] for response in responses])
    rewards = reward([list(p) for p in prompts], [list(r) for r in responses])
    scores_b = checked_rewards(rewards, len(responses))
    return Rollout(
        batch=batch,
        log_probs_br=log_probs_br,
        reference_log_probs_br=reference_log_probs_br,
        entropy_br=entropy_br,
        values_bs=values_bs,
        scores_b=scores_b - missing_eos_penalty * (~ended_b),
        ended_b=ended_b,
    )


LARGEST_REWARD = 1e12
"""Beyond it the square of a value's error, and the gradient's norm, leave float32."""


def checked_rewards(rewards: object, count: int) -> Tensor:
    """What a reward function returned as (count,) float32, apart from its graph.

    Args:
        rewards: a tensor, an array or a list of numbers.
        count: of the responses.

    Raises:
        UserError: they are no numbers, not one for each response, not finite or too large.
    """
    expected = f"expected {count} finite numbers, shape ({count},): one for each response"
    try:
        plain = rewards.tolist() if isinstance(rewards, Tensor | np.ndarray) else rewards
        rewards_b = torch.as_tensor(plain, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"the reward function returned {type(rewards).__name__} that is no list of numbers "
            f"({error}); {expected}",
            "return a tensor or a list of floats",
        ) from error
    if rewards_b.shape != (count,):
        column = rewards_b.shape == (count, 1)
        raise UserError(
            f"the reward function returned shape {tuple(rewards_b.shape)}; {expected}",
            "return rewards.squeeze(1)" if column else "return one reward for each response",
        )
    for problem, wrong_b, fix in (
        ("NaN or infinite", ~rewards_b.isfinite(), "look at this response in the reward function"),
        (
            f"beyond ±{LARGEST_REWARD:g}, too large for float32",
            rewards_b.abs() > LARGEST_REWARD,
            "scale the rewards; a deviation of about 1 is usual",
        ),
    ):
        if wrong_b.any():
            first = int(wrong_b.nonzero()[0])
            raise UserError(
                f"the reward function returned {int(wrong_b.sum())} of {count} rewards that are "
                f"{problem}: the first is {float(rewards_b[first])}, of response {first}; "
                f"{expected}",
                fix,
            )
    return rewards_b.float()


TOKENS_AT_ONCE = 16_384


def score_sequences(
    model: ScalarModel, sequences: Sequence[Sequence[int]], machine: ResolvedMachine
) -> Tensor:
    """The reward of each sequence, read at its last token: (sequences,), float32."""
    scores_n = torch.zeros(len(sequences))
    with evaluation_mode(model), machine.autocast():
        for group in length_batches([len(s) for s in sequences], TOKENS_AT_ONCE):
            batch = pad_batch([sequences[i] for i in group])
            values_bt = model(batch.left_aligned())
            scores_n[group] = values_bt.gather(1, batch.lengths_b[:, None] - 1)[:, 0]
    return scores_n


def response_log_likelihoods(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    machine: ResolvedMachine,
    temperature: float = 1.0,
    tokenizer: Tokenizer | None = None,
) -> Tensor:
    """Σ log π(token | before) over each response, in nats: (sequences,), float32.

    Args:
        decoder: π.
        prompts, responses: token ids.
        machine: precision of matrix products.
        temperature: the one that the responses were sampled with; logits are divided by it.
        tokenizer: the one that they were sampled with, which says what could follow; everything
            if None.
    """
    vocabulary = vocabulary_of(tokenizer, decoder.config.vocabulary_size)
    totals_n = torch.zeros(len(prompts))
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    with evaluation_mode(decoder), machine.autocast():
        for group in length_batches(lengths, TOKENS_AT_ONCE // 4):
            batch = pad_batch([prompts[i] for i in group], [responses[i] for i in group])
            log_probs_br, _ = sampled_log_probs(decoder, batch, temperature, vocabulary)
            totals_n[group] = log_probs_br.sum(dim=1)
    return totals_n
