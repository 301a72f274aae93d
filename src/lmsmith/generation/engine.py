"""Write replies to a batch of prompts, one token a step, with the past kept in a cache.

What makes it fast (at 64 prompts and a 6 × 256 model):

- keys and values of the past are kept, in bf16 where the machine multiplies it: a step reads them
  once, and that reading is more than half of its time;
- weights are cast and laid out once, not every step, and GELU is fused (`generation/inference.py`);
- rows that are done leave the batch: the last rows move into their places, in the same memory;
- prompts of like length go together, so that little of the cache is padding;
- all random numbers are drawn before the first step, and one CDF inversion serves all rows;
- nothing in a step is a Python loop over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lmsmith.core.config import Problem, report_problems
from lmsmith.core.errors import UserError
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.sampling import SamplingSettings, choose_tokens, row_uniforms
from lmsmith.models.attention import KeyValueCache, padded_mask
from lmsmith.models.batching import pad_batch
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.training.machine import ResolvedMachine

__all__ = ["InferenceDecoder", "SamplingSettings", "generate", "stream"]

CACHE_BYTES = 512 << 20
"""Most memory the cache of one batch may take; more prompts are written in several batches."""

ROWS_AT_ONCE = 128
"""Most rows in one batch: more would share weights' reading but read more padding."""

COMPACT_SHARE = 16
"""Rows leave once a 16th of the batch is done: moving rows costs about what they save in a step."""


def generate(
    decoder: Decoder | InferenceDecoder,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    *,
    machine: ResolvedMachine | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Write a reply to each prompt.

    A reply ends with its stop token, which is part of it, after ``max_new_tokens``, or where
    prompt and reply together fill the context. Chance is drawn from a stream of each row's own,
    keyed by (seed, row): a row's reply does not depend on the other rows, but for the rounding of
    matrix products of other sizes.

    Args:
        decoder: its dropout is off here, whatever its mode.
        prompts: token ids.
        settings: how tokens are drawn.
        machine: gives the precision of matrix products; float32 if None.
        on_token: called with (row, token) for every token, in the order they are drawn.

    Returns:
        Token ids, one list for each prompt.

    Raises:
        UserError: settings out of range, a prompt that is empty or leaves no room in the context,
            or a model whose logits are not finite.
    """
    model = _ready(decoder, machine)
    _check(model.config, prompts, settings)
    replies: list[list[int]] = [[] for _ in prompts]
    for rows in _row_groups(model, prompts, settings):
        batch = _Batch(model, [prompts[row] for row in rows], rows, settings)
        steps: list[tuple[Tensor, Tensor]] = []
        while batch.rows_b.numel():
            rows_b, tokens_b = batch.step()
            steps.append((rows_b, tokens_b))
            if on_token is not None:
                for row, token in zip(rows_b.tolist(), tokens_b.tolist(), strict=True):
                    on_token(row, token)
        for rows_b, tokens_b in steps:
            for row, token in zip(rows_b.tolist(), tokens_b.tolist(), strict=True):
                replies[row].append(token)
    return replies


def stream(
    decoder: Decoder | InferenceDecoder,
    prompt: Sequence[int],
    settings: SamplingSettings,
    *,
    machine: ResolvedMachine | None = None,
) -> Iterator[int]:
    """The tokens of ``generate(decoder, [prompt], settings)[0]``, each as soon as it is drawn.

    The prompt is checked and read at the first token asked for.
    """
    model = _ready(decoder, machine)
    _check(model.config, [prompt], settings)
    batch = _Batch(model, [prompt], [0], settings)
    while batch.rows_b.numel():
        _, tokens_b = batch.step()
        yield int(tokens_b[0])


class _Batch:
    """Prompts that are answered together.

    Columns of the cache are shared: prompts are padded on the left so that they end together, and
    every step adds one column. ``rows_b`` are the prompts' numbers still being answered, with
    ``_active_b`` False for those that are done and have not left yet.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: InferenceDecoder,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        settings: SamplingSettings,
    ) -> None:
        config = model.config
        self._model, self._settings = model, settings
        padded = pad_batch(prompts)
        lengths_b = torch.tensor([len(prompt) for prompt in prompts])
        self._room_b = (config.context - lengths_b).clamp(max=settings.max_new_tokens)
        steps = int(self._room_b.max())
        longest = padded.prompt_length
        self.rows_b = torch.tensor(rows)
        self._active_b = torch.ones(len(rows), dtype=torch.bool)
        self._stop_tokens = torch.tensor(settings.stop_tokens, dtype=torch.long)
        self._uniform_bn = row_uniforms(settings.seed, rows, steps)
        self._step = 0
        self._next_position_b = lengths_b
        self._padded = not bool(padded.valid_bt.all())
        self._valid_bs = torch.cat(
            [padded.valid_bt, torch.ones(len(rows), steps, dtype=torch.bool)], dim=1
        )
        self._cache = KeyValueCache(config, len(rows), longest + steps - 1, model.dtype)
        mask_bts = padded_mask(padded.valid_bt) if self._padded else None
        hidden_btd = model.hidden(padded.tokens_bt, padded.positions_bt, mask_bts, self._cache)
        self._logits_bv = model.logits(hidden_btd[:, -1])
        if not bool(torch.isfinite(self._logits_bv).all()):
            raise UserError(
                "the model's logits are not finite numbers, so it cannot write",
                "its weights are damaged, or its training diverged: run that stage again",
            )

    @torch.inference_mode()
    def step(self) -> tuple[Tensor, Tensor]:
        """Draw the next token of every active row: (rows' numbers, their tokens)."""
        uniform_b = self._uniform_bn[:, self._step]
        tokens_b = choose_tokens(self._logits_bv, self._settings, uniform_b)
        self._step += 1
        was_active_b = self._active_b
        rows_b, drawn_b = self.rows_b[was_active_b], tokens_b[was_active_b]
        done_b = torch.isin(tokens_b, self._stop_tokens) | (self._room_b <= self._step)
        self._active_b = was_active_b & ~done_b
        count, active = len(tokens_b), int(self._active_b.sum())
        if not active:
            self.rows_b = self.rows_b[:0]
            return rows_b, drawn_b
        if (count - active) * COMPACT_SHARE >= count:
            tokens_b = tokens_b[self._compact(active)]
        self._advance(tokens_b)
        return rows_b, drawn_b

    def _advance(self, tokens_b: Tensor) -> None:
        """Read one token a row."""
        mask_b1s = self._valid_bs[:, None, : self._cache.length + 1] if self._padded else None
        # A row that is done but has not left may be past the context's end.
        positions_b1 = self._next_position_b.clamp(max=self._model.config.context - 1)[:, None]
        hidden_b1d = self._model.hidden(tokens_b[:, None], positions_b1, mask_b1s, self._cache)
        self._logits_bv = self._model.logits(hidden_b1d[:, 0])
        self._next_position_b = self._next_position_b + 1

    def _compact(self, active: int) -> Tensor:
        """Let done rows leave; return where each remaining row was.

        The active rows at the end move into the places of those that are done, so that only they
        are copied and the cache stays where it is.
        """
        places = torch.arange(active)
        holes = places[~self._active_b[:active]]
        movers = active + self._active_b[active:].nonzero()[:, 0]
        places[holes] = movers
        cache, filled = self._cache, self._cache.length
        for tensors in (cache.keys, cache.values):
            for layer, tensor in enumerate(tensors):
                if len(holes):
                    tensor[holes, :, :filled] = tensor[movers, :, :filled]
                tensors[layer] = tensor[:active]
        self.rows_b = self.rows_b[places]
        self._active_b = self._active_b[places]
        self._room_b = self._room_b[places]
        self._next_position_b = self._next_position_b[places]
        self._uniform_bn = self._uniform_bn[places]
        self._valid_bs = self._valid_bs[places]
        return places


def _ready(
    decoder: Decoder | InferenceDecoder, machine: ResolvedMachine | None
) -> InferenceDecoder:
    if isinstance(decoder, InferenceDecoder):
        return decoder
    return InferenceDecoder(decoder, machine)


def _check(
    config: ModelConfig, prompts: Sequence[Sequence[int]], settings: SamplingSettings
) -> None:
    problems = settings.check()
    if problems:
        raise report_problems([Problem(*problem) for problem in problems])
    for row, prompt in enumerate(prompts):
        name = "the prompt" if len(prompts) == 1 else f"prompt {row + 1}"
        if not len(prompt):
            raise UserError(f"{name} is empty", "begin it with the end-of-text token")
        if len(prompt) >= config.context:
            raise UserError(
                f"{name} has {len(prompt)} tokens; the model's context of {config.context} "
                "leaves no room for a reply",
                "shorten the prompt, or use a model with a longer context",
            )
        if not (min(prompt) >= 0 and max(prompt) < config.vocabulary_size):
            raise UserError(
                f"{name} has token ids outside 0 to {config.vocabulary_size - 1}",
                "encode it with the model's own tokenizer",
            )


def _row_groups(
    model: InferenceDecoder, prompts: Sequence[Sequence[int]], settings: SamplingSettings
) -> Iterator[list[int]]:
    """Rows to answer together: of like length, and within the cache's memory."""
    config = model.config
    bytes_per_token = config.cache_bytes_per_token(model.dtype.itemsize)
    waiting = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
    while waiting:
        columns = len(prompts[waiting[0]]) + min(settings.max_new_tokens, config.context)
        count = max(1, min(ROWS_AT_ONCE, CACHE_BYTES // (columns * bytes_per_token)))
        group, waiting = waiting[:count], waiting[count:]
        yield group
