"""One batch of experience: responses drawn from the policy, and all that is known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.generation.vocabulary import Vocabulary
from lmsmith.models.batching import PaddedBatch, length_groups, pad_batch, response_log_probs
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.rewards import checked_rewards
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
        scores_b: rewards, the missing-end penalty included.
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

    What stands past a response's end means nothing; `rewards.value_mask` tells where that is.
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
