"""Which ids of a model are tokens, and which may be drawn after a text.

Drawn tokens never break a character: after its first bytes only tokens that continue it are
allowed, and tokens whose bytes are valid nowhere never (`lmsmith.tokenizers.token_bytes`). The
probabilities of the others are renormalised. Ids without a token (an embedding has often more rows
than its tokenizer has tokens) are never drawn, at temperature 0 neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmsmith.device import HOST
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.token_bytes import BOUNDARY, LONGEST, STATES

ANY = STATES
"""The state in which every token is allowed, as at temperature 0."""


@dataclass(frozen=True)
class Mask:
    """Tokens that may be drawn in each row of a batch."""

    forbidden_sv: Tensor  # float32, 0 where a state allows a token, else −∞
    states_b: Tensor  # int64, the state of each row

    def apply(self, logits_bv: Tensor) -> Tensor:
        """The logits, −∞ for forbidden tokens."""
        return logits_bv + self.forbidden_sv[self.states_b]


class Vocabulary:
    """The ids of a model with a tokenizer; without one every id is an allowed token.

    Args:
        tokenizer: its tokenizer.
        size: rows of the embedding.
        breaks: whether every token may follow, which may break a character: an engine that knows
            nothing of characters draws so.

    Attributes:
        size: ids, the rows of the model's embedding.
        without_token: those that have none.
    """

    def __init__(self, tokenizer: Tokenizer | None, size: int, *, breaks: bool = False) -> None:
        self.size = size
        self.without_token: frozenset[int] = frozenset()
        self._next_sv: NDArray[np.uint8] | None = None
        self._forbidden_sv: Tensor | None = None
        self._on: dict[torch.device, Tensor] = {}
        if tokenizer is None:
            return
        table = tokenizer.utf8
        known = min(size, tokenizer.vocabulary_size)
        allowed_sv = torch.zeros(STATES + 1, size, dtype=torch.bool)
        allowed_sv[:STATES, :known] = torch.from_numpy(table.allowed_sv[:, :known])
        allowed_sv[ANY, :known] = torch.from_numpy(table.is_token_v[:known])
        if breaks:
            allowed_sv[:] = allowed_sv[ANY].clone()
        self.without_token = frozenset((~allowed_sv[ANY]).nonzero()[:, 0].tolist())
        # Where every token is of whole characters (GPT-1) there is no other state.
        if table.next_sv.any() and not breaks:
            self._next_sv = np.zeros((STATES, size), dtype=np.uint8)
            self._next_sv[:, :known] = table.next_sv[:, :known]
        if self._next_sv is not None or not bool(allowed_sv[BOUNDARY].all()):
            zeros_sv = torch.zeros(STATES + 1, size)
            self._forbidden_sv = zeros_sv.masked_fill(~allowed_sv, -math.inf)

    @property
    def tokens(self) -> int:
        """Number of ids that have a token."""
        return self.size - len(self.without_token)

    @property
    def described(self) -> str:
        """Description of valid ids, for messages."""
        if not self.without_token:
            return f"token ids below {self.size}"
        return f"ids of the tokenizer's {self.tokens} tokens (the model has {self.size} rows)"

    def unknown(self, ids: Iterable[int]) -> list[int]:
        """Ids that no token has."""
        return [each for each in ids if not 0 <= each < self.size or each in self.without_token]

    def state_after(self, tokens: Sequence[int]) -> int:
        """The state of the text that ends with these tokens."""
        state = BOUNDARY
        for token in tokens[-LONGEST:]:
            state = self.next(state, token)
        return state

    def next(self, state: int, token: int) -> int:
        """The state of a text after one more token."""
        return BOUNDARY if self._next_sv is None else int(self._next_sv[state, token])

    def states(self, tokens_bt: Tensor, valid_bt: Tensor) -> Tensor:
        """The state before each token of every row, int64; invalid tokens are skipped."""
        states_bt = torch.zeros_like(tokens_bt)
        if self._next_sv is None:
            return states_bt
        next_sv, state_b = torch.from_numpy(self._next_sv), states_bt[:, 0]
        for column in range(tokens_bt.shape[1]):
            states_bt[:, column] = state_b
            after_b = next_sv[state_b, tokens_bt[:, column]].long()
            state_b = torch.where(valid_bt[:, column], after_b, state_b)
        return states_bt

    def forbidden(self, states_n: Tensor) -> Tensor | None:
        """Forbidden tokens of these states, bool (n, vocabulary); None if all are allowed."""
        if self._forbidden_sv is None:
            return None
        return (self._table(states_n.device) < 0)[states_n]

    def _table(self, device: torch.device) -> Tensor:
        """0 where a state allows a token, else −∞, on a device; moved there once."""
        assert self._forbidden_sv is not None
        if device not in self._on:
            self._on[device] = self._forbidden_sv.to(device)
        return self._on[device]

    def mask(
        self, states: Sequence[int], temperature: float, device: torch.device = HOST
    ) -> Mask | None:
        """Allowed tokens of rows with these states; None if all are, as often at temperature 0."""
        if self._forbidden_sv is None or (temperature == 0 and not self.without_token):
            return None
        found = [ANY] * len(states) if temperature == 0 else list(states)
        return Mask(self._table(device), torch.tensor(found, device=device))

    def of_tokens(self, logits_bv: Tensor) -> Tensor:
        """The logits, −∞ for ids without a token."""
        if self._forbidden_sv is None or not self.without_token:
            return logits_bv
        return logits_bv + self._table(logits_bv.device)[ANY]


_made: WeakKeyDictionary[Tokenizer, dict[int, Vocabulary]] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Tokenizer | None, size: int) -> Vocabulary:
    """The vocabulary of a model with ``size`` ids; made once for a tokenizer."""
    if tokenizer is None:
        return Vocabulary(None, size)
    made = _made.setdefault(tokenizer, {})
    if size not in made:
        made[size] = Vocabulary(tokenizer, size)
    return made[size]
