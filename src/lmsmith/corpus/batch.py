"""A batch of packed rows: several documents or conversations side by side, none seeing another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NO_TARGET = -100
"""Where nothing is predicted; `torch.nn.functional.cross_entropy` ignores this index."""


@dataclass(frozen=True)
class Batch:
    """`batch_size` rows of `context` positions.

    Attributes:
        tokens_bt: int64, what the model reads.
        targets_bt: int64, the token that follows in the same document, or `NO_TARGET`.
        documents_bt: int32, which document of its row a position belongs to, counted from 0; a
            position attends only to its own. Padding is a document of its own.
        positions_bt: int64, the position inside the document as far as the row holds it, from 0.
    """

    tokens_bt: npt.NDArray[np.int64]
    targets_bt: npt.NDArray[np.int64]
    documents_bt: npt.NDArray[np.int32]
    positions_bt: npt.NDArray[np.int64]

    @property
    def target_count(self) -> int:
        """How many positions have a target: what a mean loss over tokens divides by."""
        return int((self.targets_bt != NO_TARGET).sum())


def generator(seed: int, *names: int) -> np.random.Generator:
    """Chance that is a function of `seed` and of what it is for, so that any step can be redone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *names])))
