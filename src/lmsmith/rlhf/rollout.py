"""One batch of experience: prompts and responses with log-probabilities, values and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.core.errors import UserError
from lmsmith.device import HOST, device_of, moved
from lmsmith.generation.vocabulary import Vocabulary, vocabulary_of
from lmsmith.models.batching import length_batches, length_groups
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.objective import masked_mean
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.token_bytes import LONGEST
from lmsmith.training.machine import ResolvedMachine
from lmsmith.training.parallel import add_tables, team

RewardFunction = Callable[[list[list[int]], list[list[int]]], Tensor | Sequence[float]]
"""Rewards (batch,) of responses to prompts, both as token ids; see `checked_rewards`."""

ROWS_AT_ONCE = 32
"""Rows computed together, in scoring and in updates; of like length, so that few are padding."""

TOKENS_AT_ONCE = 16_384

LARGEST_REWARD = 1e12
"""Beyond it the square of a value's error, and the gradient's norm, leave float32."""

IMPOSSIBLE = -1e9
"""Logit in place of −∞: its probability is exactly 0, and 0 times it is a number."""


@dataclass(frozen=True)
class PaddedBatch:
    """Rows ``[padding, prompt, response, padding]``: prompts end, and responses begin, together.

    Attributes:
        tokens_bt: token ids (batch, prompt_length + response_length); padding is 0.
        valid_bt: False on padding.
        prompt_length: columns before the first response token.
    """

    tokens_bt: Tensor
    valid_bt: Tensor
    prompt_length: int

    @property
    def response_br(self) -> Tensor:
        """Response tokens (batch, response_length)."""
        return self.tokens_bt[:, self.prompt_length :]

    @property
    def response_mask_br(self) -> Tensor:
        """True where a response token stands."""
        return self.valid_bt[:, self.prompt_length :]

    @property
    def lengths_b(self) -> Tensor:
        """Tokens of each row, padding not counted."""
        return self.valid_bt.sum(dim=1)

    @property
    def prompt_lengths_b(self) -> Tensor:
        """Tokens of each row's prompt."""
        return self.valid_bt[:, : self.prompt_length].sum(dim=1)

    def rows(self, index: Tensor) -> PaddedBatch:
        """Some rows, in the order of ``index``, with the same padding."""
        return PaddedBatch(self.tokens_bt[index], self.valid_bt[index], self.prompt_length)

    def left_aligned(self) -> Tensor:
        """The tokens moved to the left, (batch, longest row): all padding stands behind them.

        A causal model's states are then those of each row alone, with no mask and with positions
        that count from 0, and the columns that are padding in every row are not computed.
        """
        first_b = self.prompt_length - self.prompt_lengths_b
        columns_bt = torch.arange(int(self.lengths_b.max()))[None] + first_b[:, None]
        inside_bt = columns_bt < (first_b + self.lengths_b)[:, None]
        moved_bt = self.tokens_bt.gather(1, columns_bt.clamp(max=self.tokens_bt.shape[1] - 1))
        return moved_bt.masked_fill(~inside_bt, 0)


def pad_batch(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]] | None = None
) -> PaddedBatch:
    """Pad prompts on the left and responses on the right.

    Args:
        prompts: token ids; without ``responses`` whole sequences, aligned at their ends.
        responses: token ids, one a prompt.
    """
    if responses is None:
        responses = [()] * len(prompts)
    prompt_length = max(len(prompt) for prompt in prompts)
    length = prompt_length + max(len(response) for response in responses)
    tokens_bt = torch.zeros(len(prompts), length, dtype=torch.long)
    valid_bt = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        start, end = prompt_length - len(prompt), prompt_length + len(response)
        tokens_bt[row, start:end] = torch.tensor([*prompt, *response], dtype=torch.long)
        valid_bt[row, start:end] = True
    return PaddedBatch(tokens_bt, valid_bt, prompt_length)


def response_log_probs(
    decoder: Decoder,
    batch: PaddedBatch,
    temperature: float = 1.0,
    vocabulary: Vocabulary | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of response tokens in the distribution that they are drawn from.

    That is the softmax of logits over temperature, renormalised over what may come: no bytes that
    cannot continue a character, and no id without a token. Rollout, reference and update all read
    it here, so that ratio and KL compare distributions of the same tokens.

    Args:
        decoder: called on the whole batch; gradients flow if they are on.
        vocabulary: what may come; every id if None.

    Returns:
        log_probs_br: log π(token | what is before it), 0 on padding.
        entropy_br: entropy in nats of the distribution each token was drawn from, 0 on padding.

        Both on the processor, wherever the decoder is: they are few, and compared there.
    """
    mask_br, device = batch.response_mask_br, device_of(decoder)
    hidden_btd = decoder(moved(batch.left_aligned(), device))
    rows_n, places_n = mask_br.nonzero(as_tuple=True)
    # Each token was drawn from the state of the token before it.
    before_n = batch.prompt_lengths_b[rows_n] - 1 + places_n
    flat_n = rows_n * hidden_btd.shape[1] + before_n
    before_nd = hidden_btd.flatten(0, 1).index_select(0, moved(flat_n, device))
    logits_nv = decoder.logits(before_nd).float() / temperature
    if vocabulary is not None:
        first = max(0, batch.prompt_length - LONGEST)
        states_bt = vocabulary.states(batch.tokens_bt[:, first:], batch.valid_bt[:, first:])
        states_n = states_bt[:, batch.prompt_length - first :][mask_br]
        if (forbidden_nv := vocabulary.forbidden(moved(states_n, device))) is not None:
            logits_nv = logits_nv.masked_fill(forbidden_nv, IMPOSSIBLE)
    all_log_probs_nv = F.log_softmax(logits_nv, dim=-1)
    drawn_n = moved(batch.response_br[mask_br], device)
    log_probs_n = all_log_probs_nv.gather(1, drawn_n[:, None])[:, 0]
    entropy_n = -(all_log_probs_nv.exp() * all_log_probs_nv).sum(dim=-1)
    zeros_br = torch.zeros(mask_br.shape)
    return (
        zeros_br.masked_scatter(mask_br, log_probs_n.to(HOST)),
        zeros_br.masked_scatter(mask_br, entropy_n.to(HOST)),
    )


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
        temperature, tokenizer: those that the responses were sampled with (`response_log_probs`).
    """
    vocabulary = vocabulary_of(tokenizer, decoder.config.vocabulary_size)
    totals_n = torch.zeros(len(prompts))
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    with machine.reading(decoder):
        for group in length_batches(lengths, TOKENS_AT_ONCE // 4):
            batch = pad_batch([prompts[i] for i in group], [responses[i] for i in group])
            log_probs_br, _ = response_log_probs(decoder, batch, temperature, vocabulary)
            totals_n[group] = log_probs_br.sum(dim=1)
    return totals_n


def state_values(value_model: ScalarModel, batch: PaddedBatch) -> Tensor:
    """V of every state of the responses: before each token, and after the last; (batch, r + 1).

    Values past a response's end mean nothing; `objective.value_mask` says where that is.
    """
    values_bt: Tensor = value_model(moved(batch.left_aligned(), device_of(value_model))).to(HOST)
    states = batch.response_mask_br.shape[1] + 1
    columns_bs = (batch.prompt_lengths_b - 1)[:, None] + torch.arange(states)
    return values_bt.gather(1, columns_bs.clamp(max=values_bt.shape[1] - 1))


def score_sequences(
    model: ScalarModel, sequences: Sequence[Sequence[int]], machine: ResolvedMachine
) -> Tensor:
    """The reward of each sequence, read at its last token: (sequences,), float32."""
    scores_n = torch.zeros(len(sequences))
    with machine.reading(model):
        for group in length_batches([len(s) for s in sequences], TOKENS_AT_ONCE):
            batch = pad_batch([sequences[i] for i in group])
            values_bt = model(moved(batch.left_aligned(), device_of(model))).to(HOST)
            scores_n[group] = values_bt.gather(1, batch.lengths_b[:, None] - 1)[:, 0]
    return scores_n


def model_reward(model: ScalarModel, stop_token: int, machine: ResolvedMachine) -> RewardFunction:
    """A reward model as a reward function."""

    def reward(prompts: list[list[int]], responses: list[list[int]]) -> Tensor:
        sequences = []
        for prompt, response in zip(prompts, responses, strict=True):
            # Every response that it was trained on had an end, for which a full context loses a
            # token; missing_eos_penalty is for this one's.
            if response[-1:] != [stop_token]:
                room = model.decoder.config.context - len(prompt) - 1
                response = [*response[:room], stop_token]
            sequences.append(prompt + response)
        return score_sequences(model, sequences, machine)

    return reward


@dataclass(frozen=True)
class Rollout:
    """Prompts, responses and the numbers PPO needs, before any update.

    Attributes:
        log_probs_br, reference_log_probs_br: of the response tokens (`response_log_probs`).
        entropy_br: of the policy at each response token, nats.
        values_bs: the value model's, per state (one more column than response tokens).
        scores_b: rewards, missing_eos_penalty included.
        ended_b: whether the response ended with its stop token.
        drawn_log_probs_br: of the response tokens, as another engine computed them when it drew
            them; None if ours drew them.
    """

    batch: PaddedBatch
    log_probs_br: Tensor
    reference_log_probs_br: Tensor
    entropy_br: Tensor
    values_bs: Tensor
    scores_b: Tensor
    ended_b: Tensor
    drawn_log_probs_br: Tensor | None = None

    def metrics(self, penalties_br: Tensor) -> dict[str, float]:
        """Figures before any update; KL and entropy in nats a response."""
        mask_br = self.batch.response_mask_br
        kl_b = (self.log_probs_br - self.reference_log_probs_br).sum(1)
        non_score, score = float(penalties_br.sum(1).mean()), float(self.scores_b.mean())
        return {
            "objective/kl": float(kl_b.mean()),
            "objective/entropy": float(self.entropy_br.sum(1).mean()),
            "objective/scores": score,
            "objective/scores_std": float(self.scores_b.std(unbiased=False)),
            "objective/non_score_reward": non_score,
            "objective/rlhf_reward": score + non_score,
            "objective/response_tokens": int(mask_br.sum()) / len(self.scores_b),
            "policy/entropy_avg": float(masked_mean(self.entropy_br, mask_br)),
            "val/num_eos_tokens": float(self.ended_b.sum()),
            "val/share_ended": float(self.ended_b.float().mean()),
            **self.engine_metrics(),
        }

    def engine_metrics(self) -> dict[str, float]:
        """How far the log-probabilities of the engine that drew are from the trainer's, nats."""
        if self.drawn_log_probs_br is None:
            return {}
        mask_br = self.batch.response_mask_br
        gaps_n = (self.log_probs_br - self.drawn_log_probs_br)[mask_br].abs()
        return {
            "rollout/logprob_gap": float(gaps_n.mean()),
            "rollout/logprob_gap_max": float(gaps_n.max()),
        }

    def sample_rows(
        self, most: int, decode: Callable[[Sequence[int]], str]
    ) -> list[dict[str, object]]:
        """The first responses, for people to read."""
        rows: list[dict[str, object]] = []
        kl_b = (self.log_probs_br - self.reference_log_probs_br).sum(1)
        for row in range(min(most, len(kl_b))):
            tokens = self.batch.tokens_bt[row][self.batch.valid_bt[row]].tolist()
            start = int(self.batch.prompt_lengths_b[row])
            rows.append(
                {
                    "prompt": decode(tokens[:start]),
                    "response": decode(tokens[start:]),
                    "score": float(self.scores_b[row]),
                    "kl": float(kl_b[row]),
                    "ended": bool(self.ended_b[row]),
                }
            )
        return rows


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
    drawn_log_probs: Sequence[Sequence[float]] | None = None,
) -> Rollout:
    """Read responses with all four models; nothing is trained, dropout is off.

    Processes that train together read a part of the rows each, and all get all.
    """
    batch = pad_batch(prompts, responses)
    log_probs_br = torch.zeros(batch.response_mask_br.shape)
    reference_log_probs_br, entropy_br = torch.zeros_like(log_probs_br), log_probs_br.clone()
    values_bs = torch.zeros(len(prompts), log_probs_br.shape[1] + 1)
    drawn = temperature, vocabulary
    own_b = rows_of(len(prompts), team().rank)

    def parts(rank: int) -> list[Tensor]:
        rows_b = rows_of(len(prompts), rank)
        return [rows_b[part] for part in length_groups(batch.lengths_b[rows_b], ROWS_AT_ONCE)]

    with machine.reading(policy, reference, value_model):
        for group, share in team().parts(parts):
            rows = batch.rows(group)
            log_probs, entropy = response_log_probs(policy, rows, *drawn)
            reference_log_probs, _ = response_log_probs(reference, rows, *drawn)
            values = state_values(value_model, rows)
            if share:
                log_probs_br[group], entropy_br[group] = log_probs, entropy
                reference_log_probs_br[group], values_bs[group] = reference_log_probs, values
    ended_b = torch.tensor([stop_token in response[-1:] for response in responses])
    scores_b = torch.zeros(len(prompts))
    own = own_b.tolist()
    rewards = reward([list(prompts[i]) for i in own], [list(responses[i]) for i in own])
    scores_b[own_b] = checked_rewards(rewards, len(own)) - missing_eos_penalty * (~ended_b[own_b])
    add_tables(log_probs_br, reference_log_probs_br, entropy_br, values_bs, scores_b)
    drawn_br = None
    if drawn_log_probs is not None:
        drawn_br = torch.zeros_like(log_probs_br)
        given = [value for each in drawn_log_probs for value in each]
        drawn_br = drawn_br.masked_scatter(batch.response_mask_br, torch.tensor(given))
    return Rollout(
        batch, log_probs_br, reference_log_probs_br, entropy_br, values_bs, scores_b, ended_b,
        drawn_br,
    )  # fmt: skip


def rows_of(rows: int, rank: int) -> Tensor:
    """The rows that the process of a rank reads."""
    return torch.arange(rank, rows, team().count)


def readable_prompts(
    prompts: Sequence[Sequence[int]], stop_token: int, policy: Decoder
) -> tuple[list[list[int]], int]:
    """Prompts and stop token as plain whole numbers, from lists, arrays or tensors.

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
                f"prompts[{number}] is not a list of token ids ({error})",
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
        raise UserError("PPO has no prompts", "give at least one list of token ids")
    return found, stop


def checked_rewards(rewards: object, count: int) -> Tensor:
    """A reward function's result as (count,) float32, apart from its graph.

    Args:
        rewards: a tensor, an array or a list of numbers.
        count: of the responses.

    Raises:
        UserError: they are not numbers, or not one for each response, not finite or too large.
    """
    expected = f"expected {count} finite numbers, shape ({count},): one for each response"
    try:
        plain = rewards.tolist() if isinstance(rewards, Tensor | np.ndarray) else rewards
        rewards_b = torch.as_tensor(plain, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"the reward function returned {type(rewards).__name__}, which is not a list of "
            f"numbers ({error}); {expected}",
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
